"""The history model compared with GPT-2 in NumPy, alone and in batches, and with items that it was not trained on."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.history.model import (
    GAP_BUCKETS,
    GRAPH,
    KIND_CODES,
    MAX_INTERACTIONS,
    History,
    HistoryPrediction,
    gap_bucket,
)
from models.manifest import ManifestError
from models.parity import Case, verify
from models.train.history.graph import SCALE, Shape, export
from stream.events import ADD, CLICK, VIEW
from stream.ids import key64
from stream.items.catalog import Catalog
from stream.page.candidates import PROPOSED, Candidates
from stream.profile.fold import blank
from tests.harness.shop import catalog_of, item

Weights = dict[str, npt.NDArray[np.float32]]
WIDTH = 24
KNOWN = 30  # items i0 to i29


def weights_of(layers: int, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    d = WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "gap.weight": (GAP_BUCKETS, d), "kind.weight": (KIND_CODES, d), "layers.wpe.weight": (MAX_INTERACTIONS, d), "attributes": (64, d),
        "layers.ln_f.weight": (d,), "layers.ln_f.bias": (d,),
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


def folder_of(path: Path, layers: int = 1, seed: int = 0) -> Path:
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
    rows: Any = blank(len(histories))
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


@pytest.mark.parametrize("layers", [1, 2])
def test_query_equals_gpt2_over_the_last_items(tmp_path: Path, layers: int) -> None:
    catalog, w = catalog_of(40), weights_of(layers)
    history = History(folder_of(tmp_path, layers), catalog)
    profiles = random_profiles(12, seed=3)
    found = history.predict(profiles)
    for u, profile in enumerate(profiles):
        at = np.flatnonzero(profile["recent_item"])[-MAX_INTERACTIONS:]
        rows = catalog.rows_of(profile["recent_item"][at])
        read = 4.0 * history.vectors[rows, :WIDTH].astype(np.float64) * history.scales[rows][:, None]
        gaps = [0, *(gap_bucket(gap) for gap in np.diff(profile["recent_time"][at]))]
        read += w["gap.weight"][gaps] + w["kind.weight"][profile["recent_kind"][at]]
        expected = SCALE * unit(gpt2(w, layers, read))
        np.testing.assert_allclose(found.query[u, :WIDTH] * found.unit[u], expected, atol=0.005)
        assert not found.query[u, WIDTH:].any()


def test_prediction_is_equal_to_the_bit_alone_and_in_any_batch(tmp_path: Path) -> None:
    history, profiles = History(folder_of(tmp_path), catalog_of(40)), random_profiles(70, seed=5)
    together = history.predict(profiles)
    for part in ([0], [69], [3, 4], [68, 2, 40], list(range(1, 70))):
        apart = history.predict(profiles[part])
        for name in HistoryPrediction._fields:
            np.testing.assert_array_equal(getattr(apart, name), getattr(together, name)[part], name)


def test_proposals_have_the_largest_products_and_shares_are_their_softmax(tmp_path: Path) -> None:
    catalog = catalog_of(120)
    history = History(folder_of(tmp_path), catalog)
    found = history.predict(random_profiles(9, seed=6))
    vectors = history.vectors[:120].astype(np.float64) * history.scales[:120, None]
    scores = found.query.astype(np.float64) @ vectors.T * found.unit[:, None]  # (U, N)
    for u in range(9):
        best = np.argsort(-scores[u], kind="stable")[:PROPOSED]
        assert sorted(found.rows[u].tolist()) == sorted(best.tolist())
        assert (np.diff(scores[u, found.rows[u]]) < 1e-6).all(), "the most likely first"
    rows = np.array([[5, 9, 70, 11], [1, 2, -1, -1]], np.int32)
    two = HistoryPrediction(found.query[:2], found.unit[:2], found.rows[:2])
    scores_found = history.score(two, Candidates(rows, np.zeros_like(rows), np.array([4, 2], np.int32)))
    for u, n in enumerate((4, 2)):
        e = np.exp(scores[u, rows[u, :n]])
        np.testing.assert_allclose(scores_found.shares[u], [*(e / e.sum()), *[0.0] * (4 - n)], atol=1e-5)


def test_shopper_without_known_items_gets_no_prediction(tmp_path: Path) -> None:
    history = History(folder_of(tmp_path), catalog_of(10))
    found = history.predict(blank(1))
    assert (found.rows == -1).all() and found.unit.tolist() == [0.0]
    rows = np.array([[1, 2]], np.int32)
    scores_found = history.score(found, Candidates(rows, np.zeros_like(rows), np.array([2], np.int32)))
    assert not scores_found.shares.any()
    unknown_item = history.predict(profiles_of([("an item of no catalogue", 1e9, CLICK)]))
    assert unknown_item.unit.tolist() == [0.0], "an unknown item gives no prediction either"


def test_item_added_after_training_gets_a_vector_from_its_attributes(tmp_path: Path) -> None:
    catalog = Catalog()
    same: dict[str, Any] = {"category": "c1", "brand": "b", "title": {"en": "oak lamp"}}
    catalog.apply([item("i3"), item("new", **same), item("newer", **same), item("other", category="c2")])
    history = History(folder_of(tmp_path), catalog)
    old, new, newer, other = (catalog.row(key64(name)) for name in ("i3", "new", "newer", "other"))
    assert history.unknown[[old, new, newer, other]].tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(history.vectors[new], history.vectors[newer])
    assert (history.vectors[new] != history.vectors[other]).any() and history.vectors[new].any()


def test_vectors_change_when_the_catalogue_changes(tmp_path: Path) -> None:
    catalog = catalog_of(3)
    history = History(folder_of(tmp_path), catalog)
    catalog.apply([item("late", category="c1"), item("i40", category="c1")])
    late, other = catalog.row(key64("late")), catalog.row(key64("i40"))
    history.predict(blank(1))
    before = history.vectors[late].copy()
    assert before.any() and history.vectors[other].any()
    catalog.apply([item("late", category="another", title={"en": "another thing"})])
    history.predict(blank(1))
    assert (history.vectors[late] != before).any()
    catalog.apply([item(f"more{k}") for k in range(2000)])
    history.predict(blank(1))
    assert history.vectors[: len(catalog)].any(axis=1).all(), "the vectors grow with the catalogue"


def test_gap_buckets_double_in_width() -> None:
    assert [gap_bucket(s) for s in (0.0, 1.9, 2.0, 3.9, 4.0, 60.0, 3600.0, 1e9)] == [
        1,
        1,
        2,
        2,
        3,
        6,
        12,
        GAP_BUCKETS - 1,
    ]


def test_changed_folder_is_rejected(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    data = bytearray((folder / "vectors.npy").read_bytes())
    data[-1] ^= 1
    (folder / "vectors.npy").write_bytes(data)
    with pytest.raises(ManifestError, match=r"vectors.npy has changed"):
        History(folder, catalog_of(3))


def test_verify_compares_the_model_with_its_reference(tmp_path: Path) -> None:
    (check,) = verify(folder_of(tmp_path, layers=2))
    assert check.passed and check.output == "query" and check.difference < 1e-4
    weights = weights_of(1)
    other = case_of({**weights, "layers.ln_f.weight": -weights["layers.ln_f.weight"]}, 1)
    ids, vectors = np.array([1]), np.eye(1, WIDTH, dtype=np.float32)
    shape = Shape(WIDTH, 1, 2, attributes=64)
    export(tmp_path / "wrong", shape, weights, ids, vectors, data="", created="", metrics={}, case=other)
    (check,) = verify(tmp_path / "wrong")
    assert not check.passed and check.difference > 1.0
