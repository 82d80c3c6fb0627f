"""GPT-2 in numpy, as Radford et al. (2019) and the config of transformers define it: slow, plain, what a graph is compared with.

It shares nothing with the graph's builder, so that a mistake there is not made here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import erf, pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_erf = np.vectorize(erf, otypes=[np.float64])


def logits(config: Mapping[str, Any], weights: Mapping[str, npt.NDArray[Any]], ids: npt.NDArray[np.int64]) -> Floats:
    """(N, T, V) of what follows each token of N texts of equal length. ids: (N, T) tokens.

    config, weights: as `gpt2_graph.build_graph` takes them, and accepts them.
    """
    prefix = "transformer." if "transformer.wte.weight" in weights else ""

    def weight(name: str) -> Floats:
        return weights[prefix + name].astype(np.float64)

    def norm(x: Floats, name: str) -> Floats:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.get("layer_norm_epsilon", 1e-5))
        return x * weight(name + ".weight") + weight(name + ".bias")

    def linear(x: Floats, name: str) -> Floats:
        found: Floats = x @ weight(name + ".weight") + weight(name + ".bias")
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
    found: Floats = norm(x, "ln_f") @ head.T
    return found


def _activated(config: Mapping[str, Any], x: Floats) -> Floats:
    kind = config.get("activation_function", "gelu_new")
    if kind == "relu":
        return np.maximum(x, 0.0)
    inner = _erf(x / sqrt(2)) if kind == "gelu" else np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
    return np.asarray(0.5 * x * (1 + inner))


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    found: Floats = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found
