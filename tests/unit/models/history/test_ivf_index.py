"""The nearest items: exactly in a small catalogue, nearly all of them in a large one, and none that came late is lost."""

import numpy as np
import numpy.typing as npt
import pytest

from models.history import ivf_index
from models.history.ivf_index import EXACT, IvfIndex
from models.history.model import quantise_all

WIDTH = 48


def some(n: int, seed: int, clusters: int = 60) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Unit vectors in 8 bits that lie in clusters, as items of a shop do."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(clusters, WIDTH))[rng.integers(0, clusters, n)] + 0.8 * rng.normal(size=(n, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    packed, scales = np.zeros((n, WIDTH), np.int8), np.zeros(n, np.float32)
    quantise_all(vectors, packed, scales)
    return packed, scales


def queries_of(packed: npt.NDArray[np.int8], n: int, seed: int) -> npt.NDArray[np.int16]:
    rng = np.random.default_rng(seed)
    return (packed[rng.integers(0, len(packed), n)] * 8 + rng.integers(-200, 200, (n, WIDTH))).astype(np.int16)


def exact(
    queries: npt.NDArray[np.int16], packed: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], k: int
) -> list[set[int]]:
    scores = (queries.astype(np.int64) @ packed.T.astype(np.int64)).astype(np.float32) * scales
    return [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in scores]


def test_in_a_small_catalogue_all_are_asked() -> None:
    packed, scales = some(EXACT, 1)
    nearest = IvfIndex()
    nearest.add(0, 1000, packed, scales)
    nearest.add(1000, EXACT, packed, scales)
    queries = queries_of(packed, 5, 2)
    found = nearest.find(queries, packed, scales, 30)
    assert [set(row.tolist()) for row in found] == exact(queries, packed, scales, 30)
    few = IvfIndex()
    few.add(0, 10, packed, scales)
    assert few.find(queries[:1], packed, scales, 30)[0, 10:].tolist() == [-1] * 20


def test_in_a_large_catalogue_the_near_are_found_by_looking_at_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, scales = some(30_000, 3)
    nearest = IvfIndex()
    nearest.add(0, 30_000, packed, scales)
    queries = queries_of(packed, 60, 4)
    found = nearest.find(queries, packed, scales, 50)
    wanted = exact(queries, packed, scales, 50)
    share = np.mean([len(set(row.tolist()) & best) / 50 for row, best in zip(found, wanted, strict=True)])
    assert share > 0.9
    monkeypatch.setattr(ivf_index, "SCANNED", 30_000)
    monkeypatch.setattr(ivf_index, "LOOKED_INTO", 1024)
    assert [set(row.tolist()) for row in nearest.find(queries, packed, scales, 50)] == wanted, "nothing is in no list"
    apart = np.concatenate([nearest.find(queries[k : k + 1], packed, scales, 50) for k in range(60)])
    np.testing.assert_array_equal(apart, nearest.find(queries, packed, scales, 50))


def test_what_comes_after_the_lists_were_made_is_found_too() -> None:
    packed, scales = some(8_200, 5)
    nearest = IvfIndex()
    nearest.add(0, 8_000, packed, scales)
    nearest.add(8_000, 8_200, packed, scales)
    queries = (packed[8_000:8_200].astype(np.int16) * 8).astype(np.int16)
    found = nearest.find(queries, packed, scales, 5)
    assert all(8_000 + k in row for k, row in enumerate(found.tolist()))
