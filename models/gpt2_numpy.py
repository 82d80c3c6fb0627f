"""GPT-2 in numpy, as Radford et al. (2019) and the config of transformers define it: slow, plain, what a graph is compared with."""

from __future__ import annotations

from math import erf, pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from models.gpt2_graph import Shape

Floats = npt.NDArray[np.float64]
_erf = np.vectorize(erf, otypes=[np.float64])


def logits(shape: Shape, ids: npt.NDArray[np.int64]) -> Floats:
    """(N, T, V) of what follows each token of N texts of equal length. ids: (N, T) tokens."""

    def norm(x: Floats, name: str) -> Floats:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + shape.epsilon)
        return x * shape.weight(name + ".weight", shape.width) + shape.weight(name + ".bias", shape.width)

    def linear(x: Floats, name: str, width: int) -> Floats:
        weight = shape.weight(name + ".weight", x.shape[-1], width).astype(np.float64)
        return x @ weight + shape.weight(name + ".bias", width)

    n, steps = ids.shape
    x = shape.embedding[ids].astype(np.float64) + shape.weight("wpe.weight", shape.positions, shape.width)[:steps]
    future = np.triu(np.full((steps, steps), -np.inf), 1)
    for layer in range(shape.layers):
        at = f"h.{layer}."
        qkv = linear(norm(x, at + "ln_1"), at + "attn.c_attn", 3 * shape.width)
        q, k, v = (
            part.reshape(n, steps, shape.heads, -1).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1)
        )  # (N, H, T, D)
        score = q @ k.transpose(0, 1, 3, 2) * shape.attention_scale(layer) + future
        share = np.exp(score - score.max(axis=-1, keepdims=True))
        mixed = (share / share.sum(axis=-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(n, steps, -1), at + "attn.c_proj", shape.width)
        inner = _ACTIVATED[shape.activation](linear(norm(x, at + "ln_2"), at + "mlp.c_fc", shape.inner))
        x = x + linear(inner, at + "mlp.c_proj", shape.width)
    found: Floats = norm(x, "ln_f") @ shape.head.T.astype(np.float64)
    return found


def log_softmax(logits: Floats) -> Floats:
    """Over the last axis."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    found: Floats = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return found


def _by_tanh(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))))


def _exactly(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + _erf(x / sqrt(2))))


def _positive(x: Floats) -> Floats:
    return np.maximum(x, 0.0)


_ACTIVATED: Any = {"FastGelu": _by_tanh, "BiasGelu": _exactly, "Relu": _positive}  # by name in gpt2_graph.ACTIVATIONS
