"""A history model's files: its vectors, and GPT-2's layers as an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import manifest
from models import parity as reference
from models.history.model import (
    ATTRIBUTES,
    GAP_BUCKETS,
    GRAPH,
    ITEMS,
    KIND_CODES,
    MAX_INTERACTIONS,
    SCALES,
    VECTORS,
    quantise_all,
)
from models.parity import Case
from models.train.recipe import UNTOLD, Recipe

Floats = npt.NDArray[np.float32]
SCALE = 14.0  # of the product of two unit vectors, to logits
LIMITS = (
    "It knows what is touched after what, not why; of an item that it was not trained on it knows the attributes alone."
)
LOUD = 4.0  # length of an item's vector as the layers read it


class Shape(NamedTuple):
    width: int = 96
    layers: int = 1
    heads: int = 2
    dropout: float = 0.25
    attributes: int = 2048  # rows of their table, a power of two
    unseen: float = 0.02  # share of items whose own vector a batch goes without; 1: items have none


class _Builder:
    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._count = 0

    def constant(self, value: npt.NDArray[Any]) -> str:
        self._count += 1
        name = f"c{self._count}"
        self.constants.append(self._numpy.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        self._count += 1
        name = out or f"n{self._count}"
        self.nodes.append(self._helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def linear(self, x: str, weight: Floats, bias: Floats) -> str:
        return self.node("Add", self.node("MatMul", x, self.constant(weight)), self.constant(bias))

    def norm(self, x: str, weight: Floats, bias: Floats) -> str:
        return self.node("LayerNormalization", x, self.constant(weight), self.constant(bias), axis=-1, epsilon=1e-5)


def export(
    folder: Path, shape: Shape, weights: Mapping[str, Floats], ids: npt.NDArray[np.int64], vectors: Floats, *, data: str,
    created: str, metrics: dict[str, float], case: Case, limits: str = LIMITS,
    source: manifest.Source = manifest.UNKNOWN_SOURCE, recipe: Recipe = UNTOLD,
) -> manifest.Manifest:  # fmt: skip
    """Write graph, vectors and manifest into `folder` (made where it is missing).

    weights: as `graph` takes them, and `attributes` (shape.attributes, d); ids (V,): key64 of the items that the model
    knows; vectors (V, d): theirs, of unit length; case: what the graph is compared with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(graph(weights, shape.layers, shape.heads))
    packed, scales = np.zeros(vectors.shape, np.int8), np.zeros(len(vectors), np.float32)
    quantise_all(vectors, packed, scales)
    for name, array in ((ITEMS, ids), (VECTORS, packed), (SCALES, scales), (ATTRIBUTES, weights["attributes"])):
        np.save(folder / name, array)
    reference.write(folder, [case])
    params: dict[str, Any] = {**shape._asdict(), "vocabulary": len(ids)}
    return manifest.write(
        folder, name="history", kind="history", created=created, data=data, metrics=metrics, params=params,
        limits=limits, source=source, recipe=recipe,
    )  # fmt: skip


def graph(weights: Mapping[str, Floats], layers: int, heads: int) -> bytes:
    """vectors (U, LENGTH, d) float32, gaps and kinds (U, LENGTH) int64, last (U,) int64 -> query (U, d) float32.

    What comes after place `last` is not looked at. A query is of length SCALE: its product with an item's unit vector
    is the item's logit. In the last layer only one place is computed, for nothing reads the others. weights: of a GPT-2,
    named as by `transformers` under `layers.`, and the tables `gap.weight` and `kind.weight`.
    """
    from onnx import TensorProto, checker, helper

    b = _Builder()
    width = weights["gap.weight"].shape[1]
    each = width // heads
    x = b.node("Mul", "vectors", b.constant(np.array(LOUD, np.float32)))
    x = b.node("Add", x, b.node("Gather", b.constant(weights["gap.weight"]), "gaps"))
    x = b.node("Add", x, b.node("Gather", b.constant(weights["kind.weight"]), "kinds"))
    x = b.node("Add", x, b.constant(weights["layers.wpe.weight"][None]))  # (U, LENGTH, d)
    places = np.arange(MAX_INTERACTIONS)
    later = b.constant(np.where(places[None, :] > places[:, None], -1e9, 0.0).astype(np.float32)[None, None])
    place = b.node("Unsqueeze", "last", b.ints(1))  # (U, 1)
    beyond = b.node("Greater", b.constant(places[None].astype(np.int64)), place)  # (U, LENGTH)
    beyond = b.node("Where", beyond, b.constant(np.array(-1e9, np.float32)), b.constant(np.array(0.0, np.float32)))
    beyond = b.node("Unsqueeze", beyond, b.ints(1, 2))  # (U, 1, 1, LENGTH)
    at = b.node("Expand", b.node("Unsqueeze", place, b.ints(2)), b.ints(1, 1, width))  # (U, 1, d)
    for layer in range(layers):
        only = layer == layers - 1
        of = {name: weights[f"layers.h.{layer}.{name}"] for name in (
            "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.c_attn.weight", "attn.c_attn.bias",
            "attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight",
            "mlp.c_proj.bias",
        )}  # fmt: skip
        normed = b.norm(x, of["ln_1.weight"], of["ln_1.bias"])
        asked = b.node("GatherElements", normed, at, axis=1) if only else normed
        if only:
            x = b.node("GatherElements", x, at, axis=1)  # (U, 1, d)
        split = of["attn.c_attn.weight"], of["attn.c_attn.bias"]
        parts = []
        for k, source in enumerate((asked, normed, normed)):
            these = slice(k * width, (k + 1) * width)
            part = b.linear(source, split[0][:, these], split[1][these])
            part = b.node("Reshape", part, b.ints(0, 1 if only and k == 0 else MAX_INTERACTIONS, heads, each))
            parts.append(b.node("Transpose", part, perm=[0, 2, 3, 1] if k == 1 else [0, 2, 1, 3]))
        score = b.node("MatMul", parts[0], parts[1])
        score = b.node("Mul", score, b.constant(np.array(1 / math.sqrt(each), np.float32)))
        score = b.node("Add", score, beyond if only else later)
        mixed = b.node("MatMul", b.node("Softmax", score, axis=-1), parts[2])  # (U, heads, 1 or LENGTH, each)
        mixed = b.node("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = b.node("Reshape", mixed, b.ints(0, 1 if only else MAX_INTERACTIONS, width))
        x = b.node("Add", x, b.linear(mixed, of["attn.c_proj.weight"], of["attn.c_proj.bias"]))
        inner = b.linear(b.norm(x, of["ln_2.weight"], of["ln_2.bias"]), of["mlp.c_fc.weight"], of["mlp.c_fc.bias"])
        inner = b.node("Gelu", inner, approximate="tanh")
        x = b.node("Add", x, b.linear(inner, of["mlp.c_proj.weight"], of["mlp.c_proj.bias"]))
    x = b.node("Squeeze", b.norm(x, weights["layers.ln_f.weight"], weights["layers.ln_f.bias"]), b.ints(1))
    x = b.node("LpNormalization", x, axis=-1, p=2)
    b.node("Mul", x, b.constant(np.array(SCALE, np.float32)), out="query")
    built = helper.make_graph(
        b.nodes,
        "history",
        [
            helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["U", MAX_INTERACTIONS, width]),
            helper.make_tensor_value_info("gaps", TensorProto.INT64, ["U", MAX_INTERACTIONS]),
            helper.make_tensor_value_info("kinds", TensorProto.INT64, ["U", MAX_INTERACTIONS]),
            helper.make_tensor_value_info("last", TensorProto.INT64, ["U"]),
        ],
        [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["U", width])],
        b.constants,
    )
    assert weights["gap.weight"].shape[0] == GAP_BUCKETS and weights["kind.weight"].shape[0] == KIND_CODES
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())
