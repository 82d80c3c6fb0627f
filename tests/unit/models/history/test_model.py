"""The history model compared with GPT-2 in NumPy, alone and in batches, and with items that it was not trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.history.model import (
    GAP_BUCKETS,
    MAX_INTERACTIONS,
    History,
    HistoryPrediction,
    gap_bucket,
)
from models.manifest import ManifestError
from models.parity import verify
from models.train.history.graph import SCALE, Shape, export
from stream.events.decode import CLICK
from stream.ids import key64
from stream.items.catalog import Catalog
from stream.page.candidates import MAX_PROPOSALS, Candidates
from stream.profile.row import blank_profiles
from tests.harness.history_model import (
    WIDTH,
    case_of,
    gpt2,
    profiles_of,
    random_profiles,
    unit,
    weights_of,
    write_history_folder,
)
from tests.harness.shop import catalog_of, item


@pytest.mark.parametrize("layers", [1, 2])
def test_query_equals_gpt2_over_the_last_items(tmp_path: Path, layers: int) -> None:
    catalog, w = catalog_of(40), weights_of(layers)
    history = History(write_history_folder(tmp_path, layers), catalog)
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
    history, profiles = History(write_history_folder(tmp_path), catalog_of(40)), random_profiles(70, seed=5)
    together = history.predict(profiles)
    for part in ([0], [69], [3, 4], [68, 2, 40], list(range(1, 70))):
        apart = history.predict(profiles[part])
        for name in HistoryPrediction._fields:
            np.testing.assert_array_equal(getattr(apart, name), getattr(together, name)[part], name)


def test_proposals_have_the_largest_products_and_shares_are_their_softmax(tmp_path: Path) -> None:
    catalog = catalog_of(120)
    history = History(write_history_folder(tmp_path), catalog)
    found = history.predict(random_profiles(9, seed=6))
    vectors = history.vectors[:120].astype(np.float64) * history.scales[:120, None]
    scores = found.query.astype(np.float64) @ vectors.T * found.unit[:, None]  # (U, N)
    for u in range(9):
        best = np.argsort(-scores[u], kind="stable")[:MAX_PROPOSALS]
        assert sorted(found.rows[u].tolist()) == sorted(best.tolist())
        assert (np.diff(scores[u, found.rows[u]]) < 1e-6).all(), "the most likely first"
    rows = np.array([[5, 9, 70, 11], [1, 2, -1, -1]], np.int32)
    two = HistoryPrediction(found.query[:2], found.unit[:2], found.rows[:2])
    scores_found = history.score(two, Candidates(rows, np.zeros_like(rows), np.array([4, 2], np.int32)))
    for u, n in enumerate((4, 2)):
        e = np.exp(scores[u, rows[u, :n]])
        np.testing.assert_allclose(scores_found.shares[u], [*(e / e.sum()), *[0.0] * (4 - n)], atol=1e-5)


def test_shopper_without_known_items_gets_no_prediction(tmp_path: Path) -> None:
    history = History(write_history_folder(tmp_path), catalog_of(10))
    found = history.predict(blank_profiles(1))
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
    history = History(write_history_folder(tmp_path), catalog)
    old, new, newer, other = (catalog.row(key64(name)) for name in ("i3", "new", "newer", "other"))
    assert history.unknown[[old, new, newer, other]].tolist() == [0, 1, 1, 1]
    np.testing.assert_array_equal(history.vectors[new], history.vectors[newer])
    assert (history.vectors[new] != history.vectors[other]).any() and history.vectors[new].any()


def test_vectors_change_when_the_catalogue_changes(tmp_path: Path) -> None:
    catalog = catalog_of(3)
    history = History(write_history_folder(tmp_path), catalog)
    catalog.apply([item("late", category="c1"), item("i40", category="c1")])
    late, other = catalog.row(key64("late")), catalog.row(key64("i40"))
    history.predict(blank_profiles(1))
    before = history.vectors[late].copy()
    assert before.any() and history.vectors[other].any()
    catalog.apply([item("late", category="another", title={"en": "another thing"})])
    history.predict(blank_profiles(1))
    assert (history.vectors[late] != before).any()
    catalog.apply([item(f"more{k}") for k in range(2000)])
    history.predict(blank_profiles(1))
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
    folder = write_history_folder(tmp_path)
    data = bytearray((folder / "vectors.npy").read_bytes())
    data[-1] ^= 1
    (folder / "vectors.npy").write_bytes(data)
    with pytest.raises(ManifestError, match=r"vectors.npy has changed"):
        History(folder, catalog_of(3))


def test_verify_compares_the_model_with_its_reference(tmp_path: Path) -> None:
    (check,) = verify(write_history_folder(tmp_path, layers=2))
    assert check.passed and check.output == "query" and check.difference < 1e-4
    weights = weights_of(1)
    other = case_of({**weights, "layers.ln_f.weight": -weights["layers.ln_f.weight"]}, 1)
    ids, vectors = np.array([1]), np.eye(1, WIDTH, dtype=np.float32)
    shape = Shape(WIDTH, 1, 2, attributes=64)
    export(tmp_path / "wrong", shape, weights, ids, vectors, data="", created="", metrics={}, case=other)
    (check,) = verify(tmp_path / "wrong")
    assert not check.passed and check.difference > 1.0
