"""Small history models with random weights, profiles to read, and GPT-2 in NumPy as their reference."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.history.model import GAP_BUCKETS, GRAPH, KIND_CODES, MAX_INTERACTIONS
from models.parity import Case
from models.train.history.graph import SCALE, Shape, export
from stream.events.decode import ADD, CLICK, VIEW
from stream.ids import key64
from stream.profile.row import blank_profiles

Weights = dict[str, npt.NDArray[np.float32]]
WIDTH = 24
KNOWN = 30  # items i0 to i29


def weights_of(layers: int, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    d = WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "gap.weight": (GAP_BUCKETS, d), "kind.weight": (KIND_CODES, d), "attributes": (64, d),
        "layers.wpe.weight": (MAX_INTERACTIONS, d), "layers.ln_f.weight": (d,), "layers.ln_f.bias": (d,),
    }  # fmt: skip
    for layer in range(layers):
        at = f"layers.h.{layer}."
        shapes |= {
            f"{at}ln_1.weight": (d,), f"{at}ln_1.bias": (d,), f"{at}ln_2.weight": (d,), f"{at}ln_2.bias": (d,),
            f"{at}attn.c_attn.weight": (d, 3 * d), f"{at}attn.c_attn.bias": (3 * d,),
            f"{at}attn.c_proj.weight": (d, d), f"{at}attn.c_proj.bias": (d,), f"{at}mlp.c_fc.weight": (d, 4 * d),
            f"{at}mlp.c_fc.bias": (4 * d,), f"{at}mlp.c_proj.weight": (4 * d, d), f"{at}mlp.c_proj.bias": (d,),
        }  # fmt: skip
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def unit(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)  # type: ignore[no-any-return]


def write_history_folder(path: Path, layers: int = 1, seed: int = 0) -> Path:
    ids = np.array([key64(f"i{k}") for k in range(KNOWN)])
    vectors = unit(np.random.default_rng(seed + 1).normal(size=(KNOWN, WIDTH))).astype(np.float32)
    shape = Shape(WIDTH, layers, 2, attributes=64)
    weights = weights_of(layers, seed)
    export(
        path, shape, weights, ids, vectors, data="a test", created="2026-01-01T00:00:00Z", metrics={},
        case=case_of(weights, layers),
    )  # fmt: skip
    return path


def case_of(w: Weights, layers: int) -> Case:
    rng = np.random.default_rng(4)
    vectors = unit(rng.normal(size=(2, MAX_INTERACTIONS, WIDTH))).astype(np.float32)
    gaps, kinds, last = (
        rng.integers(0, GAP_BUCKETS, (2, MAX_INTERACTIONS)),
        rng.integers(0, KIND_CODES, (2, MAX_INTERACTIONS)),
        np.array([3, MAX_INTERACTIONS - 1]),
    )
    read = 4.0 * vectors.astype(np.float64) + w["gap.weight"][gaps] + w["kind.weight"][kinds]
    query = np.stack([SCALE * unit(gpt2(w, layers, read[u, : last[u] + 1])) for u in range(2)])
    return Case(GRAPH, {"vectors": vectors, "gaps": gaps, "kinds": kinds, "last": last}, {"query": query}, 1e-4)


def profiles_of(*histories: list[tuple[str, float, int]]) -> Any:
    """PROFILE rows with histories of (item, time, kind), oldest first."""
    rows: Any = blank_profiles(len(histories))
    for row, history in zip(rows, histories, strict=True):
        for k, (name, time, kind) in enumerate(reversed(history)):
            at = row["recent_item"].shape[0] - 1 - k
            row["recent_item"][at], row["recent_time"][at], row["recent_kind"][at] = key64(name), time, kind
    return rows


def random_profiles(n: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    histories = []
    for length in rng.integers(1, 33, n).tolist():
        times = np.cumsum(rng.exponential(200.0, length)) + 1e9
        histories.append([(f"i{rng.integers(0, 40)}", t, int(rng.choice((VIEW, CLICK, ADD)))) for t in times.tolist()])
    return profiles_of(*histories)


def gpt2(w: Weights, layers: int, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Output (d,) of GPT-2's layers (Radford et al., 2019) for the last row of x (T, d), in double precision."""

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    n, heads = len(x), 2
    x = x + w["layers.wpe.weight"][:n]
    for layer in range(layers):
        at = f"layers.h.{layer}."
        q, k, v = np.split(norm(x, at + "ln_1") @ w[at + "attn.c_attn.weight"] + w[at + "attn.c_attn.bias"], 3, axis=1)
        mixed = np.zeros_like(x)
        for h in range(heads):
            these = slice(h * WIDTH // heads, (h + 1) * WIDTH // heads)
            score = q[:, these] @ k[:, these].T / math.sqrt(WIDTH / heads)
            score[np.triu_indices(n, 1)] = -np.inf
            share = np.exp(score - score.max(axis=1, keepdims=True))
            mixed[:, these] = share / share.sum(axis=1, keepdims=True) @ v[:, these]
        x = x + mixed @ w[at + "attn.c_proj.weight"] + w[at + "attn.c_proj.bias"]
        inner = norm(x, at + "ln_2") @ w[at + "mlp.c_fc.weight"] + w[at + "mlp.c_fc.bias"]
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + inner @ w[at + "mlp.c_proj.weight"] + w[at + "mlp.c_proj.bias"]
    return norm(x, "layers.ln_f")[-1]  # type: ignore[no-any-return]
