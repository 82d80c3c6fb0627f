"""The ONNX graph of a GPT-2 checkpoint, with int8 weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

Array = npt.NDArray[Any]


class Graph:
    """An ONNX graph under construction."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self.helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}

    def const(self, name: str, value: Any) -> str:
        self.weights.setdefault(name, self._numpy.from_array(np.array(value, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        made = [name or f"{kind}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(self.helper.make_node(kind, list(inputs), made, **attributes))
        return made[0] if outputs == 1 else made

    def linear(self, x: str, weight: Array, name: str, bias: Array | None = None) -> str:
        """x (N, K) float32 times weight (K, M) in int8: a scale for each row of x, one for each column of the weight.

        A scale for the whole of x, as DynamicQuantizeMatMul has it, would let one sample change another. Seven bits, for
        eight overflow the 16-bit sums of AVX2.
        """
        scale = np.maximum(np.abs(weight).max(0), 1e-12) / 63
        quantised = np.rint(weight / scale).astype(np.int8)
        peak = self.op("ReduceMax", self.op("Abs", x), self.const("one", np.array([1])), keepdims=0)
        step = self.op("Mul", peak, self.const("1/127", np.float32(1 / 127)))
        from onnx import TensorProto

        zero = self.op(
            "ConstantOfShape", self.op("Shape", step), value=self._numpy.from_array(np.array([128], np.uint8), "zero")
        )
        small = self.op("QuantizeLinear", x, step, zero, axis=0)
        product = self.op("MatMulInteger", small, self.const(name + ".q", quantised), self.const("u128", np.uint8(128)))
        y = self.op("Cast", product, to=TensorProto.FLOAT)
        y = self.op("Mul", y, self.op("Unsqueeze", step, self.const("one", np.array([1]))))
        y = self.op("Mul", y, self.const(name + ".s", scale.astype(np.float32)))
        return str(self.op("Add", y, self.const(name + ".b", bias)) if bias is not None else y)


def build(checkpoint: Path) -> bytes:
    """GPT-2 as ONNX: ids (B, S) int64, past (2 L, B, H, P, D) -> logits (B, V) of the last position, present.

    checkpoint: a folder as `transformers` saves it: config.json and model.safetensors, float32.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    layers, width, heads = config["n_layer"], config["n_embd"], config["n_head"]
    weights = load_file(checkpoint / "model.safetensors")
    from onnx import TensorProto, checker

    g = Graph()
    h = g.helper
    depth = width // heads

    def w(name: str) -> Array:
        return np.asarray(weights["transformer." + name])

    def ints(name: str, *values: int) -> str:
        return g.const(name, np.array(values, np.int64))

    last, minus = ints("axis-1", -1), ints("-1", -1)
    flat = ints("flat", -1, width)
    shape = g.op("Shape", "ids")
    size = g.op("Gather", shape, g.const("i1", np.array(1)))
    before = g.op("Gather", g.op("Shape", "past"), g.const("i3", np.array(3)))
    total = g.op("Add", before, size)
    query = g.op("Range", before, total, g.const("step", np.array(1)))
    key = g.op("Range", g.const("i0", np.array(0)), total, "step")
    future = g.op("Less", g.op("Unsqueeze", query, ints("a1", 1)), g.op("Unsqueeze", key, ints("a0", 0)))  # (S, T)
    mask = g.op("Where", future, g.const("-1e9", np.float32(-1e9)), g.const("0", np.float32(0)))
    # The embedding is the head's own int8 columns: they are four fifths of a small model.
    head = w("wte.weight").T
    scale = np.maximum(np.abs(head).max(0), 1e-12) / 63
    columns = g.op("Gather", g.const("head.q", np.rint(head / scale).astype(np.int8)), "ids", axis=1)
    embedded = g.op("Transpose", g.op("Cast", columns, to=TensorProto.FLOAT), perm=[1, 2, 0])
    factor = g.op("Unsqueeze", g.op("Gather", g.const("head.s", scale.astype(np.float32)), "ids"), last)
    placed = g.op("Gather", g.const("wpe", w("wpe.weight")), query)
    x = g.op("Reshape", g.op("Add", g.op("Mul", embedded, factor), placed), flat)  # (B S, E)
    apart = g.op("Concat", shape, ints("heads", heads, depth), axis=0)
    together = g.op("Concat", shape, minus, axis=0)
    present = []

    def norm(y: str, name: str) -> str:
        return str(
            g.op(
                "LayerNormalization",
                y,
                g.const(name + ".g", w(name + ".weight")),
                g.const(name + ".b", w(name + ".bias")),
                epsilon=1e-5,
            )
        )

    for layer in range(layers):
        at = f"h.{layer}."
        qkv = g.linear(norm(x, at + "ln_1"), w(at + "attn.c_attn.weight"), at + "qkv", w(at + "attn.c_attn.bias"))
        parts = g.op("Split", g.op("Reshape", qkv, together), outputs=3, axis=-1, num_outputs=3)
        q, k, v = (g.op("Transpose", g.op("Reshape", part, apart), perm=[0, 2, 1, 3]) for part in parts)
        grown = []
        for plane, new in ((2 * layer, k), (2 * layer + 1, v)):
            old = g.op("Gather", "past", g.const(f"plane{plane}", np.array(plane)), axis=0)
            grown.append(g.op("Concat", old, new, axis=2))
            present.append(g.op("Unsqueeze", grown[-1], ints("a0", 0)))
        scores = g.op(
            "MatMul",
            g.op("Mul", q, g.const("scale", np.float32(depth**-0.5))),
            g.op("Transpose", grown[0], perm=[0, 1, 3, 2]),
        )
        share = g.op("Softmax", g.op("Add", scores, mask), axis=-1)
        mixed = g.op("Reshape", g.op("Transpose", g.op("MatMul", share, grown[1]), perm=[0, 2, 1, 3]), flat)
        x = g.op("Add", x, g.linear(mixed, w(at + "attn.c_proj.weight"), at + "proj", w(at + "attn.c_proj.bias")))
        inner = g.linear(norm(x, at + "ln_2"), w(at + "mlp.c_fc.weight"), at + "fc", w(at + "mlp.c_fc.bias"))
        inner = g.op("Gelu", inner, approximate="tanh")
        x = g.op("Add", x, g.linear(inner, w(at + "mlp.c_proj.weight"), at + "out", w(at + "mlp.c_proj.bias")))
    ends = g.op("Gather", g.op("Reshape", norm(x, "ln_f"), together), g.const("last", np.array(-1)), axis=1)  # (B, E)
    logits = g.linear(ends, head, "head")
    g.op("Identity", logits, name="logits")
    g.op("Concat", *present, name="present", axis=0)
    cache = ["planes", "B", heads, "P", depth]
    graph = h.make_graph(
        g.nodes, "gpt2",
        [h.make_tensor_value_info("ids", TensorProto.INT64, ["B", "S"]), h.make_tensor_value_info("past", TensorProto.FLOAT, cache)],
        [h.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "V"]),
         h.make_tensor_value_info("present", TensorProto.FLOAT, ["planes", "B", heads, "T", depth])],
        list(g.weights.values()),
    )  # fmt: skip
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())
