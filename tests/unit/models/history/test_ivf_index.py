"""Maximum inner product search: exact in a small catalogue, a measured recall in a large one."""

import numpy as np
import numpy.typing as npt
import pytest

from models.history import ivf_index
from models.history.ivf_index import EXACT_SEARCH_ITEMS, SCANNED_ITEMS, IvfIndex
from models.history.model import quantise_all
from stream.types import F32, I8, I16, I32

WIDTH = 48


def clustered_vectors(n: int, seed: int, clusters: int = 60) -> tuple[I8, F32]:
    """Unit vectors (n, WIDTH) in 8 bits and their scales (n,), in clusters as the items of a shop."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(clusters, WIDTH))[rng.integers(0, clusters, n)] + 0.8 * rng.normal(size=(n, WIDTH))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    packed, scales = np.zeros((n, WIDTH), np.int8), np.zeros(n, np.float32)
    quantise_all(vectors, packed, scales)
    return packed, scales


def noisy_queries(packed: I8, n: int, seed: int) -> I16:
    """Queries (n, WIDTH) near random items."""
    rng = np.random.default_rng(seed)
    return (packed[rng.integers(0, len(packed), n)] * 8 + rng.integers(-200, 200, (n, WIDTH))).astype(np.int16)


def exact(queries: I16, packed: I8, scales: F32, k: int) -> list[set[int]]:
    """The oracle: rows of the k largest products with each query, by a scan of all items."""
    scores = (queries.astype(np.int64) @ packed.T.astype(np.int64)).astype(np.float32) * scales
    return [set(np.argsort(-row, kind="stable")[:k].tolist()) for row in scores]


def recall(found: I32, expected: list[set[int]]) -> float:
    """Mean share of the expected rows that were found."""
    shares = [len(set(row.tolist()) & rows) / len(rows) for row, rows in zip(found, expected, strict=True)]
    return float(np.mean(shares))


def index_of(packed: I8, scales: F32) -> IvfIndex:
    index = IvfIndex()
    index.add(0, len(packed), packed, scales)
    return index


def test_a_small_catalogue_is_searched_exactly() -> None:
    packed, scales = clustered_vectors(EXACT_SEARCH_ITEMS, 1)
    index = IvfIndex()
    index.add(0, 1000, packed, scales)
    index.add(1000, EXACT_SEARCH_ITEMS, packed, scales)
    queries = noisy_queries(packed, 5, 2)
    found = index.find(queries, packed, scales, 30)
    assert [set(row.tolist()) for row in found] == exact(queries, packed, scales, 30)
    tiny = IvfIndex()
    tiny.add(0, 10, packed, scales)
    assert tiny.find(queries[:1], packed, scales, 30)[0, 10:].tolist() == [-1] * 20


@pytest.mark.slow
@pytest.mark.parametrize(("items", "least"), [(10_000, 0.98), (30_000, 0.93), (100_000, 0.80)])
def test_recall_of_the_best_fifty_items_is_high(items: int, least: float) -> None:
    """The figures in the docstring of models/history/ivf_index.py are those that this test prints (pytest -s)."""
    packed, scales = clustered_vectors(items, 3)
    queries = noisy_queries(packed, 200, 4)
    found = index_of(packed, scales).find(queries, packed, scales, 50)
    reached = recall(found, exact(queries, packed, scales, 50))
    print(f"{items:,} items, {min(SCANNED_ITEMS / items, 1):.0%} scanned: recall@50 {reached:.3f}")
    assert reached > least


@pytest.mark.slow
def test_scanning_all_lists_finds_what_an_exact_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, scales = clustered_vectors(30_000, 3)
    index, queries = index_of(packed, scales), noisy_queries(packed, 60, 4)
    monkeypatch.setattr(ivf_index, "SCANNED_ITEMS", 30_000)
    monkeypatch.setattr(ivf_index, "MAX_PROBED_LISTS", 1024)
    found = index.find(queries, packed, scales, 50)
    assert [set(row.tolist()) for row in found] == exact(queries, packed, scales, 50), "each item is in one list"


def test_a_query_finds_the_same_items_alone_and_in_a_batch() -> None:
    packed, scales = clustered_vectors(30_000, 3)
    index, queries = index_of(packed, scales), noisy_queries(packed, 60, 4)
    alone = np.concatenate([index.find(queries[k : k + 1], packed, scales, 50) for k in range(60)])
    np.testing.assert_array_equal(alone, index.find(queries, packed, scales, 50))


def test_items_added_after_the_lists_were_built_are_found() -> None:
    packed, scales = clustered_vectors(8_200, 5)
    index = IvfIndex()
    index.add(0, 8_000, packed, scales)
    index.add(8_000, 8_200, packed, scales)
    queries: npt.NDArray[np.int16] = (packed[8_000:8_200].astype(np.int16) * 8).astype(np.int16)
    found = index.find(queries, packed, scales, 5)
    assert all(8_000 + k in row for k, row in enumerate(found.tolist()))
