"""GPT-2 in numpy, as defined by Radford et al. (2019) and the config of transformers: the oracle of the ONNX graph.

It shares no code with the graph builder, so that a mistake there is not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import erf, pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.types import F64, I64

_erf = np.vectorize(erf, otypes=[np.float64])


def logits(config: Mapping[str, Any], weights: Mapping[str, npt.NDArray[Any]], ids: I64) -> F64:
    """Return the logits (N, T, V) after each token of N texts of equal length. ids: (N, T) tokens.

    config, weights: as in `gpt2_graph.build_graph`, which has validated them.
    """
    prefix = "transformer." if "transformer.wte.weight" in weights else ""

    def weight(name: str) -> F64:
        return weights[prefix + name].astype(np.float64)

    def norm(x: F64, name: str) -> F64:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.get("layer_norm_epsilon", 1e-5))
        return x * weight(name + ".weight") + weight(name + ".bias")

    def linear(x: F64, name: str) -> F64:
        found: F64 = x @ weight(name + ".weight") + weight(name + ".bias")
        return found

    n, steps = ids.shape
    embedding = weight("wte.weight")
    x = embedding[ids] + weight("wpe.weight")[:steps]
    future = np.triu(np.full((steps, steps), -np.inf), 1)
    for layer in range(config["n_layer"]):
        at = f"h.{layer}."
        qkv = linear(norm(x, at + "ln_1"), at + "attn.c_attn")
        q, k, v = (
            part.reshape(n, steps, config["n_head"], -1).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1)
        )  # (N, H, T, D)
        scale = q.shape[3] ** -0.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx"):
            scale /= layer + 1
        score = q @ k.transpose(0, 1, 3, 2) * scale + future
        share = np.exp(score - score.max(axis=-1, keepdims=True))
        mixed = (share / share.sum(axis=-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(n, steps, -1), at + "attn.c_proj")
        inner = _activated(config, linear(norm(x, at + "ln_2"), at + "mlp.c_fc"))
        x = x + linear(inner, at + "mlp.c_proj")
    untied = not config.get("tie_word_embeddings", True) and "lm_head.weight" in weights
    head = weights["lm_head.weight"].astype(np.float64) if untied else embedding
    found: F64 = norm(x, "ln_f") @ head.T
    return found


def _activated(config: Mapping[str, Any], x: F64) -> F64:
    kind = config.get("activation_function", "gelu_new")
    if kind == "relu":
        return np.maximum(x, 0.0)
    inner = _erf(x / sqrt(2)) if kind == "gelu" else np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
    return np.asarray(0.5 * x * (1 + inner))


def log_softmax(logits: F64) -> F64:
    """Log-softmax over the last axis."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    found: F64 = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found
