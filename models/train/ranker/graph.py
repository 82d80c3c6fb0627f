"""The ranker's ONNX graphs: from phi (U, C, F) float32, mask (U, C) bool and theta (F, 1) to probability (U, C)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stream.types import F32, F64

WIDE, NARROW = 32, 32  # units of the first and the second hidden layer


class Head(NamedTuple):
    """An MLP head. With raw phi as x, score(x) = w . x + v . relu(B relu(A x + a) + b)."""

    linear: F32  # (F, 1)
    first: F32  # (F, WIDE)
    first_bias: F32  # (WIDE,)
    second: F32  # (WIDE, NARROW)
    second_bias: F32  # (NARROW,)
    last: F32  # (NARROW, 1)
    loss: float  # mean cross-entropy of held-out choices, in nats
    position_weights: F32 = np.zeros(0, np.float32)  # weights of the position's features; not served

    def score(self, phi: npt.NDArray[Any]) -> F64:
        """(..., 1) scores of phi (..., F) in double precision: the reference of the graph."""
        x = phi.astype(np.float64)
        hidden = np.maximum(np.maximum(x @ self.first + self.first_bias, 0.0) @ self.second + self.second_bias, 0.0)
        return x @ self.linear + hidden @ self.last  # type: ignore[no-any-return]


def graph() -> bytes:
    """The logit: theta . phi, and the softmax over the candidates of the mask. Names of nodes are part of the hash."""
    from onnx import helper

    return _softmax("softmax", [helper.make_node("MatMul", ["phi", "theta"], ["column"])], [])


def head_graph(head: Head) -> bytes:
    """The MLP head: the softmax over its scores. theta is its linear part."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("MatMul", ["phi", "first"], ["a"]),
        helper.make_node("Add", ["a", "first_bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "second"], ["d"]),
        helper.make_node("Add", ["d", "second_bias"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "last"], ["bent"]),
        helper.make_node("MatMul", ["phi", "theta"], ["straight"]),
        helper.make_node("Add", ["bent", "straight"], ["column"]),
    ]
    names = ("first", "first_bias", "second", "second_bias", "last")
    return _softmax("head", nodes, [numpy_helper.from_array(getattr(head, name), name) for name in names])


def _softmax(name: str, scoring: Sequence[Any], weights: Sequence[Any]) -> bytes:
    """A graph with the softmax after the nodes `scoring`, which lead from phi and theta to `column` (U, C, 1)."""
    from onnx import TensorProto, checker, helper

    nodes = [
        *scoring,
        helper.make_node("Squeeze", ["column", "axis"], ["raw"]),
        helper.make_node("Where", ["mask", "raw", "lowest"], ["score"]),
        helper.make_node("Softmax", ["score"], ["share"], axis=1),
        helper.make_node("Where", ["mask", "share", "zero"], ["probability"]),
    ]
    built = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info("phi", TensorProto.FLOAT, ["U", "C", "F"]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["U", "C"]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["F", 1]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["U", "C"])],
        [
            *weights,
            helper.make_tensor("axis", TensorProto.INT64, [1], [2]),
            helper.make_tensor("lowest", TensorProto.FLOAT, [], [-1e30]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())
