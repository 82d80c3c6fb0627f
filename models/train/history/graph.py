"""Export of a history model: item vectors, and GPT-2's layers as an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import manifest, parity
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
from models.train.recipe import NO_RECIPE, Recipe
from stream.types import F32, I64

SCALE = 14.0  # of the product of two unit vectors, to logits
# The `limits` text of manifests.
LIMITS = (
    "It knows what is touched after what, not why; of an item that it was not trained on it knows the attributes alone."
)
INPUT_SCALE = 4.0  # length of an item's vector as the layers read it
MASKED = -1e9  # added to attention logits of places that must not be read


class Shape(NamedTuple):
    """Hyperparameters of a history model. They are part of its manifest and recipe."""

    width: int = 96
    layers: int = 1
    heads: int = 2
    dropout: float = 0.25
    attributes: int = 2048  # rows of the attribute table, a power of two
    unseen: float = 0.02  # share of items whose own vector is left out of a batch; with 1, items have no own vector


def export(
    folder: Path, shape: Shape, weights: Mapping[str, F32], ids: I64, vectors: F32, *, data: str, created: str,
    metrics: dict[str, float], case: Case, limits: str = LIMITS, source: manifest.Source = manifest.UNKNOWN_SOURCE,
    recipe: Recipe = NO_RECIPE,
) -> manifest.Manifest:  # fmt: skip
    """Write graph, vectors and manifest into `folder`, created if missing.

    weights: as `graph` takes them, and `attributes` (shape.attributes, d). ids: (V,) key64 of the items that the model
    knows. vectors: (V, d) their unit vectors. case: reference inputs and outputs of the graph.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(graph(weights, shape.layers, shape.heads))
    packed, scales = np.zeros(vectors.shape, np.int8), np.zeros(len(vectors), np.float32)
    quantise_all(vectors, packed, scales)
    for name, array in ((ITEMS, ids), (VECTORS, packed), (SCALES, scales), (ATTRIBUTES, weights["attributes"])):
        np.save(folder / name, array)
    parity.write(folder, [case])
    params: dict[str, Any] = {**shape._asdict(), "vocabulary": len(ids)}
    return manifest.write(
        folder, name="history", kind="history", created=created, data=data, metrics=metrics, params=params,
        limits=limits, source=source, recipe=recipe,
    )  # fmt: skip


def graph(weights: Mapping[str, F32], layers: int, heads: int) -> bytes:
    """The graph from vectors (U, LENGTH, d), gaps and kinds (U, LENGTH), last (U,) to query (U, d).

    vectors and query are float32, the others int64. Places after `last` are not read. A query has length SCALE, so that
    its product with an item's unit vector is the item's logit. weights: of a GPT-2, named as by `transformers` under
    `layers.`, and the tables `gap.weight` and `kind.weight`.

    Names and order of the nodes are part of the model's hash.
    """
    from onnx import TensorProto, checker, helper

    assert weights["gap.weight"].shape[0] == GAP_BUCKETS and weights["kind.weight"].shape[0] == KIND_CODES
    builder = _Builder(weights, heads)
    builder.query(layers)
    width = builder.width
    built = helper.make_graph(
        builder.nodes,
        "history",
        [
            helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["U", MAX_INTERACTIONS, width]),
            helper.make_tensor_value_info("gaps", TensorProto.INT64, ["U", MAX_INTERACTIONS]),
            helper.make_tensor_value_info("kinds", TensorProto.INT64, ["U", MAX_INTERACTIONS]),
            helper.make_tensor_value_info("last", TensorProto.INT64, ["U"]),
        ],
        [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["U", width])],
        builder.constants,
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())


class _Place(NamedTuple):
    """Names of tensors that depend on `last`, and of the causal mask."""

    causal_mask: str  # (1, 1, LENGTH, LENGTH): MASKED for later places
    last_mask: str  # (U, 1, 1, LENGTH): MASKED for places after `last`
    last_index: str  # (U, 1, d): index of `last` for GatherElements


class _Builder:
    """Adds the nodes and constants of a history model's graph. Methods return the names of their outputs."""

    def __init__(self, weights: Mapping[str, F32], heads: int) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._weights, self._heads = weights, heads
        self.width = weights["gap.weight"].shape[1]
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._count = 0

    def query(self, layers: int) -> None:
        """All nodes from the inputs to `query`."""
        x = self._input()
        place = self._places()
        for layer in range(layers):
            x = self._layer(x, layer, place, is_last=layer == layers - 1)
        final = self._norm(x, self._weights["layers.ln_f.weight"], self._weights["layers.ln_f.bias"])
        x = self._node("Squeeze", final, self._ints(1))
        x = self._node("LpNormalization", x, axis=-1, p=2)
        self._node("Mul", x, self._scalar(SCALE), out="query")

    def _input(self) -> str:
        """(U, LENGTH, d): what the first layer reads."""
        x = self._node("Mul", "vectors", self._scalar(INPUT_SCALE))
        x = self._node("Add", x, self._node("Gather", self._constant(self._weights["gap.weight"]), "gaps"))
        x = self._node("Add", x, self._node("Gather", self._constant(self._weights["kind.weight"]), "kinds"))
        return self._node("Add", x, self._constant(self._weights["layers.wpe.weight"][None]))

    def _places(self) -> _Place:
        places = np.arange(MAX_INTERACTIONS)
        is_later = places[None, :] > places[:, None]
        causal_mask = self._constant(np.where(is_later, MASKED, 0.0).astype(np.float32)[None, None])
        last = self._node("Unsqueeze", "last", self._ints(1))  # (U, 1)
        is_after = self._node("Greater", self._constant(places[None].astype(np.int64)), last)  # (U, LENGTH)
        last_mask = self._node("Where", is_after, self._scalar(MASKED), self._scalar(0.0))
        last_mask = self._node("Unsqueeze", last_mask, self._ints(1, 2))
        last_column = self._node("Unsqueeze", last, self._ints(2))
        last_index = self._node("Expand", last_column, self._ints(1, 1, self.width))
        return _Place(causal_mask, last_mask, last_index)

    def _layer(self, x: str, layer: int, place: _Place, *, is_last: bool) -> str:
        """One GPT-2 block. The last one computes the place `last` alone, because nothing reads the others."""
        prefix = f"layers.h.{layer}."
        weights = {name.removeprefix(prefix): value for name, value in self._weights.items() if name.startswith(prefix)}
        normed = self._norm(x, weights["ln_1.weight"], weights["ln_1.bias"])
        queried = self._node("GatherElements", normed, place.last_index, axis=1) if is_last else normed
        if is_last:
            x = self._node("GatherElements", x, place.last_index, axis=1)  # (U, 1, d)
        mixed = self._attention(queried, normed, weights, place, is_last=is_last)
        x = self._node("Add", x, self._linear(mixed, weights["attn.c_proj.weight"], weights["attn.c_proj.bias"]))
        normed = self._norm(x, weights["ln_2.weight"], weights["ln_2.bias"])
        hidden = self._linear(normed, weights["mlp.c_fc.weight"], weights["mlp.c_fc.bias"])
        hidden = self._node("Gelu", hidden, approximate="tanh")
        return self._node("Add", x, self._linear(hidden, weights["mlp.c_proj.weight"], weights["mlp.c_proj.bias"]))

    def _attention(self, queried: str, normed: str, weights: Mapping[str, F32], place: _Place, *, is_last: bool) -> str:
        """(U, 1 or LENGTH, d): multi-head self-attention without its output projection."""
        head_width = self.width // self._heads
        weight, bias = weights["attn.c_attn.weight"], weights["attn.c_attn.bias"]
        parts = []
        for k, source in enumerate((queried, normed, normed)):
            columns = slice(k * self.width, (k + 1) * self.width)
            part = self._linear(source, weight[:, columns], bias[columns])
            rows = 1 if is_last and k == 0 else MAX_INTERACTIONS
            part = self._node("Reshape", part, self._ints(0, rows, self._heads, head_width))
            parts.append(self._node("Transpose", part, perm=[0, 2, 3, 1] if k == 1 else [0, 2, 1, 3]))
        query, key, value = parts
        score = self._node("MatMul", query, key)
        score = self._node("Mul", score, self._scalar(1 / math.sqrt(head_width)))
        score = self._node("Add", score, place.last_mask if is_last else place.causal_mask)
        mixed = self._node("MatMul", self._node("Softmax", score, axis=-1), value)
        mixed = self._node("Transpose", mixed, perm=[0, 2, 1, 3])
        return self._node("Reshape", mixed, self._ints(0, 1 if is_last else MAX_INTERACTIONS, self.width))

    def _constant(self, value: npt.NDArray[Any]) -> str:
        self._count += 1
        name = f"c{self._count}"
        self.constants.append(self._numpy.from_array(np.ascontiguousarray(value), name))
        return name

    def _scalar(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _ints(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _node(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        self._count += 1
        name = out or f"n{self._count}"
        self.nodes.append(self._helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def _linear(self, x: str, weight: F32, bias: F32) -> str:
        return self._node("Add", self._node("MatMul", x, self._constant(weight)), self._constant(bias))

    def _norm(self, x: str, weight: F32, bias: F32) -> str:
        return self._node("LayerNormalization", x, self._constant(weight), self._constant(bias), axis=-1, epsilon=1e-5)
