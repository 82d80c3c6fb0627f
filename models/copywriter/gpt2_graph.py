"""GPT-2 as an ONNX graph, built node by node from a checkpoint's weights, without torch or tracing.

Weights are int8 with one scale for each output column; activations are uint8 with one scale for each row. With one
scale for the whole batch, as in DynamicQuantizeMatMul, one text would change another. Attention is ONNX Runtime's
`GroupQueryAttention`, which appends keys and values in place.

Inputs:

    ids, positions   (B, S) int64     tokens of each sequence, padded on the right
    seqlens_k        (B,) int32       length of each sequence after this run, minus one
    query_seqlens    (B,) int32       tokens of `ids` that are not padding
    capacity         (1,) int32       T
    rows             (R,) int64       positions to return, as b S + s
    scoring          () bool          True: return logprob; False: return top_*
    k                (1,) int64       K, of top_*
    targets          (R, C) int64     of logprob
    past_key.0 ...   (B, H, T, D) float32; present_key.0 ... are the same memory
Outputs:

    logits           (R, V) float32
    top_logits, top_ids  (R, K) float32 and int64: the likeliest first; equal logits by id
    logprob          (R, C) float32   of `targets`, in nats
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from models.copywriter.gpt2 import SHAPE_KEY
from models.manifest import ManifestError

Array = npt.NDArray[Any]
Precision = Literal["int8", "float32"]
MICROSOFT = "com.microsoft"
MAX_GRAPH_BYTES = (1 << 31) - (1 << 20)  # a protobuf message cannot be larger
# By the names of transformers; all but `gelu` and `relu` are the tanh approximation.
ACTIVATIONS = {
    "gelu_new": "FastGelu",
    "gelu_pytorch_tanh": "FastGelu",
    "gelu_fast": "FastGelu",
    "gelu": "BiasGelu",
    "relu": "Relu",
}


class CheckpointError(ManifestError):
    """The checkpoint is not a GPT-2, or cannot run here; the message says what is missing and what to do."""


class _Graph:
    """Nodes and weights of a graph under construction; a tensor is identified by its name."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}
        self._zeros: dict[str, str] = {}

    def const(self, name: str, value: Any) -> str:
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        return self.const("ints" + "_".join(map(str, values)), np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, out: str = "", domain: str = "", **attributes: Any) -> str:
        name = out or f"{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def linear(self, x: str, weight: Array, name: str, like: str, out: str = "") -> str:
        """Add x (N, K) float32 times weight (K, M), without bias.

        (N, M). All x with the same `like` have the same N.
        """
        if self.precision == "float32":
            return self.op("MatMul", x, self.const(name + ".weight", weight), out=out)
        quantised, scale = quantise(weight)
        # Each row spans 127 steps to both sides of the zero point 128. uint8, because int8 activations are 20 times
        # slower.
        peak = self.op("ReduceMax", self.op("Abs", x), self.ints(1), keepdims=1)
        step = self.op("Mul", peak, self.const("1/127", np.float32(1 / 127)))  # (N, 1)
        flat = self.op("Squeeze", step, self.ints(1))
        if like not in self._zeros:
            value = numpy_helper.from_array(np.array([128], np.uint8), "value")
            self._zeros[like] = self.op("ConstantOfShape", self.op("Shape", flat), value=value)
        small = self.op("QuantizeLinear", x, flat, self._zeros[like], axis=0)
        product = self.op(
            "MatMulIntegerToFloat", small, self.const(name + ".weight", quantised), self.const("1", np.float32(1)),
            self.const(name + ".scale", scale), self.const("128", np.uint8(128)), domain=MICROSOFT,
        )  # fmt: skip
        return self.op("Mul", product, step, out=out)


def quantise(weight: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Quantise (K, M) float32 to int8 in [-63, 63] with a scale (M,) for each column.

    Seven bits: AVX2 adds two products of a uint8 and an int8 in 16 bits, which eight bits would overflow.
    """
    scale = (np.maximum(np.abs(weight).max(axis=0), 1e-12) / 63).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


def build_graph(config: Mapping[str, Any], weights: Mapping[str, Array], precision: Precision = "int8") -> bytes:
    """Return the graph described above, serialised.

    config: a `transformers.GPT2Config`. weights: those of `GPT2LMHeadModel` or `GPT2Model`, float32, with or without
    the prefix `transformer.`; without `lm_head.weight`, or if they are tied, the head is the embedding. Raises
    CheckpointError if it is not a GPT-2 or has an unsupported option.
    """
    from onnx import checker

    shape = Shape(config, weights)
    g = _Graph(precision)
    w = shape.weight
    minus, width = g.ints(-1), g.ints(-1, shape.width)

    embedded = _embedding(g, shape)
    placed = g.op("Gather", g.const("wpe", w("wpe.weight", shape.positions, shape.width)), "positions")
    x = g.op("Add", embedded, g.op("Reshape", placed, width))  # (B S, E)
    packed = g.op("Concat", g.op("Shape", "ids"), minus, axis=0)  # (B, S, what is left)
    normal = g.op("LayerNormalization", x, *_norm(g, shape, "h.0.ln_1"), epsilon=shape.epsilon)

    def add_and_norm(x: str, more: str, bias: str, name: str) -> tuple[str, str]:
        """Return x + more + bias, and its layer norm."""
        outputs = [name + ".out", "", "", name + ".sum"]
        inputs = [x, more, *_norm(g, shape, name), g.const(bias, w(bias, shape.width))]
        g.nodes.append(
            helper.make_node(
                "SkipLayerNormalization", inputs, outputs, name=name, domain=MICROSOFT, epsilon=shape.epsilon
            )
        )
        return outputs[3], outputs[0]

    caches = []
    for layer in range(shape.layers):
        at = f"h.{layer}."
        qkv = g.linear(normal, w(at + "attn.c_attn.weight", shape.width, 3 * shape.width), at + "attn.c_attn", "all")
        qkv = g.op("Add", qkv, g.const(at + "attn.c_attn.bias", w(at + "attn.c_attn.bias", 3 * shape.width)))
        past = [f"past_key.{layer}", f"past_value.{layer}"]
        mixed = [at + "attn", f"present_key.{layer}", f"present_value.{layer}"]
        caches += past
        g.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [g.op("Reshape", qkv, packed), "", "", *past, "seqlens_k", "capacity", *[""] * 9, "query_seqlens"],
                mixed, name=at + "attn", domain=MICROSOFT, num_heads=shape.heads, kv_num_heads=shape.heads,
                scale=shape.attention_scale(layer),
            )
        )  # fmt: skip
        attended = g.op("Reshape", mixed[0], width)
        attended = g.linear(attended, w(at + "attn.c_proj.weight", shape.width, shape.width), at + "attn.c_proj", "all")
        x, normal = add_and_norm(x, attended, at + "attn.c_proj.bias", at + "ln_2")
        inner = g.linear(normal, w(at + "mlp.c_fc.weight", shape.width, shape.inner), at + "mlp.c_fc", "all")
        bias = g.const(at + "mlp.c_fc.bias", w(at + "mlp.c_fc.bias", shape.inner))
        if shape.activation == "Relu":
            inner = g.op("Relu", g.op("Add", inner, bias))
        else:
            inner = g.op(shape.activation, inner, bias, domain=MICROSOFT)
        inner = g.linear(inner, w(at + "mlp.c_proj.weight", shape.inner, shape.width), at + "mlp.c_proj", "all")
        follows = f"h.{layer + 1}.ln_1" if layer + 1 < shape.layers else "ln_f"
        x, normal = add_and_norm(x, inner, at + "mlp.c_proj.bias", follows)

    # The head is a third of the work, and most rows are not asked for.
    asked = g.op("Gather", normal, "rows")  # (R, E)
    g.linear(asked, shape.head.T, "head", "asked", out="logits")
    g.nodes.append(_result_branch())
    _check_quantised(g, shape)

    def value(name: str, kind: int, *dims: int | str) -> Any:
        return helper.make_tensor_value_info(name, kind, dims)

    cache = ("B", shape.heads, "T", shape.width // shape.heads)
    graph = helper.make_graph(
        g.nodes, "gpt2",
        [
            value("ids", TensorProto.INT64, "B", "S"), value("positions", TensorProto.INT64, "B", "S"),
            value("seqlens_k", TensorProto.INT32, "B"), value("query_seqlens", TensorProto.INT32, "B"),
            value("capacity", TensorProto.INT32, 1), value("rows", TensorProto.INT64, "R"),
            value("scoring", TensorProto.BOOL), value("k", TensorProto.INT64, 1),
            value("targets", TensorProto.INT64, "R", "C"),
            *(value(name, TensorProto.FLOAT, *cache) for name in caches),
        ],
        [
            value("logits", TensorProto.FLOAT, "R", shape.vocabulary), value("top_logits", TensorProto.FLOAT, "R", "K"),
            value("top_ids", TensorProto.INT64, "R", "K"), value("logprob", TensorProto.FLOAT, "R", "C"),
            *(value(name.replace("past", "present"), TensorProto.FLOAT, *cache) for name in caches),
        ],
        list(g.weights.values()),
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)], ir_version=10
    )
    helper.set_model_props(model, {SHAPE_KEY: json.dumps(shape.as_dict())})
    if model.ByteSize() > MAX_GRAPH_BYTES:
        raise CheckpointError(
            f"the graph would have {model.ByteSize() / 1e9:.1f} GB, and a file of ONNX holds 2; take a smaller GPT-2"
        )
    checker.check_model(model)
    return bytes(model.SerializeToString())


class Shape:
    """The dimensions and options of a checkpoint's config, and its weights by name."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        kind = config.get("model_type")
        if kind != "gpt2":
            raise CheckpointError(f"config.json says model_type {kind!r}, expected 'gpt2'; give a GPT-2")
        try:
            self.width, self.heads = int(config["n_embd"]), int(config["n_head"])
            self.layers, self.positions = int(config["n_layer"]), int(config["n_positions"])
            self.vocabulary = int(config["vocab_size"])
        except KeyError as error:
            raise CheckpointError(f"config.json lacks {error.args[0]!r}; give the config of a GPT-2") from None
        self.inner = int(config.get("n_inner") or 4 * self.width)
        self.epsilon = float(config.get("layer_norm_epsilon", 1e-5))
        activation = config.get("activation_function", "gelu_new")
        if activation not in ACTIVATIONS:
            raise CheckpointError(
                f"config.json says activation_function {activation!r}, expected one of {', '.join(ACTIVATIONS)}"
            )
        self.activation = ACTIVATIONS[activation]
        if config.get("add_cross_attention"):
            raise CheckpointError(
                "config.json says add_cross_attention: the decoder of an encoder-decoder model cannot write headlines"
            )
        if self.heads < 1 or self.width % self.heads:
            raise CheckpointError(f"config.json has n_embd {self.width}, expected a multiple of n_head {self.heads}")
        self._scaled = bool(config.get("scale_attn_weights", True))
        self._by_layer = bool(config.get("scale_attn_by_inverse_layer_idx", False))
        self._weights = weights
        self._prefix = "transformer." if "transformer.wte.weight" in weights else ""
        self.tied = bool(config.get("tie_word_embeddings", True)) or "lm_head.weight" not in weights
        self.embedding = self.weight("wte.weight", self.vocabulary, self.width)
        self.head = self.embedding if self.tied else self._named("lm_head.weight", self.vocabulary, self.width)

    def weight(self, name: str, *expected: int) -> Array:
        """Return the transformer's weight `name`, float32 of the shape `expected`."""
        return self._named(self._prefix + name, *expected)

    def _named(self, name: str, *expected: int) -> Array:
        if name not in self._weights:
            raise CheckpointError(f"the weights lack {name!r}; give a complete checkpoint of a GPT-2")
        found = self._weights[name]
        if found.shape != expected:
            raise CheckpointError(
                f"{name!r} has the shape {found.shape}, config.json expects {expected}; they are not from the same "
                f"checkpoint"
            )
        return found.astype(np.float32, copy=False)

    def attention_scale(self, layer: int) -> float:
        scale = (self.width // self.heads) ** -0.5 if self._scaled else 1.0
        return scale / (layer + 1) if self._by_layer else scale

    def as_dict(self) -> dict[str, int]:
        return {
            "layers": self.layers, "heads": self.heads, "width": self.width, "positions": self.positions,
            "vocabulary": self.vocabulary,
        }  # fmt: skip


def _norm(g: _Graph, shape: Shape, name: str) -> tuple[str, str]:
    gain, shift = (shape.weight(f"{name}.{what}", shape.width) for what in ("weight", "bias"))
    return g.const(name + ".weight", gain), g.const(name + ".bias", shift)


def _embedding(g: _Graph, shape: Shape) -> str:
    """Return the token embeddings (B S, E).

    If the head is tied, they are its int8 columns, to hold them once: a third of GPT-2, and most of a small model.
    """
    flat = g.op("Reshape", "ids", g.ints(-1))
    if g.precision == "float32":
        return g.op("Gather", g.const("wte", shape.embedding), flat)
    quantised, scale = quantise(shape.embedding.T)  # (E, V), (V,)
    name = "head" if shape.tied else "wte"
    columns = g.op("Gather", g.const(name + ".weight", quantised), flat, axis=1)
    rows = g.op("Transpose", g.op("Cast", columns, to=TensorProto.FLOAT), perm=[1, 0])
    factor = g.op("Gather", g.const(name + ".scale", scale), flat)
    return g.op("Mul", rows, g.op("Unsqueeze", factor, g.ints(1)))


def _result_branch() -> Any:
    """Return the node that computes logprob if `scoring` is set, else top_logits and top_ids; the others stay empty.

    It is a branch because ONNX Runtime also computes outputs that nobody fetches: a softmax over 50,000 tokens is 1%
    of a step.
    """

    def branch(name: str, nodes: list[Any], *results: tuple[str, int]) -> Any:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(n, kind, None) for n, kind in results])

    def empty(name: str, kind: int) -> Any:
        return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, (0, 0), []))

    scored = branch(
        "score",
        [
            empty("no_logits", TensorProto.FLOAT), empty("no_ids", TensorProto.INT64),
            helper.make_node("LogSoftmax", ["logits"], ["logprobs"]),
            helper.make_node("GatherElements", ["logprobs", "targets"], ["of_targets"], axis=1),
        ],
        ("no_logits", TensorProto.FLOAT), ("no_ids", TensorProto.INT64), ("of_targets", TensorProto.FLOAT),
    )  # fmt: skip
    likeliest = branch(
        "likeliest",
        [
            helper.make_node("TopK", ["logits", "k"], ["likely_logits", "likely_ids"], axis=-1, sorted=1),
            empty("no_logprob", TensorProto.FLOAT),
        ],
        ("likely_logits", TensorProto.FLOAT), ("likely_ids", TensorProto.INT64), ("no_logprob", TensorProto.FLOAT),
    )  # fmt: skip
    return helper.make_node(
        "If",
        ["scoring"],
        ["top_logits", "top_ids", "logprob"],
        name="answer",
        then_branch=scored,
        else_branch=likeliest,
    )


def _check_quantised(g: _Graph, shape: Shape) -> None:
    """Raise AssertionError if a weight is not quantised: such a graph passes every other test at half the speed."""
    if g.precision != "int8":
        return
    products = [node for node in g.nodes if node.op_type.startswith(("MatMul", "Gemm"))]
    unquantised = [node.name for node in products if node.op_type != "MatMulIntegerToFloat"]
    unquantised += [
        name for name, of in g.weights.items()
        if len(of.dims) > 1 and name != "wpe" and of.data_type != TensorProto.INT8
    ]  # fmt: skip
    if unquantised or len(products) != 4 * shape.layers + 1:
        raise AssertionError(f"{len(products)} products for {shape.layers} layers, not quantised: {unquantised}")
