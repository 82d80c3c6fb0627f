"""Maximum inner product search: an exact scan in a small catalogue, an inverted file in a large one.

The inverted file follows Jégou, Douze and Schmid (2011), without residuals. Each item is in the list of its nearest
centre, and a query scans the lists of its nearest centres until it has seen SCANNED_ITEMS items. So the cost of a page
does not grow with the catalogue. Products are sums of integers, so they are equal to the bit in any batch.

Recall of the best 50 items against an exact scan, measured by tests/unit/models/history/test_ivf_index.py on vectors
of width 48 in 60 clusters: 0.997 of 10,000 items, 0.954 of 30,000 (14% scanned), 0.831 of 100,000 (4% scanned).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stream.jit import njit
from stream.types import F32, I8, I16, I32, I64

EXACT_SEARCH_ITEMS = 4096  # a catalogue up to this size is scanned completely
SCANNED_ITEMS = 4096  # items that a query scans in a larger catalogue, about
ITEMS_PER_LIST = 64  # average
MAX_LISTS = 1024  # more lists would cost too much at every start and for every new item
MAX_PROBED_LISTS = 128  # lists that a query scans
KMEANS_ROUNDS = 6
KMEANS_ITEMS_PER_LIST = 16  # sample that k-means learns from
_REBUILD_SHARE = 16  # lists are built again when a 16th of the items is in none


class Lists(NamedTuple):
    """K lists of n items; vectors and scales are copied in the order of the lists, to be read in sequence."""

    centres: I8  # (K, width)
    starts: I64  # (K + 1,) offsets of the lists in the arrays below
    rows: I32  # (n,)
    vectors: I8  # (n, width)
    scales: F32  # (n,)


@njit
def product(queries: I8 | I16, u: int, vectors: I8, row: int) -> np.int32:
    """Inner product of queries[u] and vectors[row], of small integers, as int32."""
    total = np.int32(0)
    for k in range(queries.shape[1]):
        total += np.int32(queries[u, k]) * np.int32(vectors[row, k])
    return total


@njit
def _assign(rows: I32, vectors: I8, centres: I8, nearest: I32) -> None:
    """Write to nearest (n,) the centre with the largest product for each row; the first one if several are equal."""
    for i in range(rows.shape[0]):
        largest, at = np.int32(-2147483648), 0
        for c in range(centres.shape[0]):
            similarity = product(centres, c, vectors, rows[i])
            if similarity > largest:
                largest, at = similarity, c
        nearest[i] = at


@njit
def _update_centres(rows: I32, nearest: I32, vectors: I8, scales: F32, centres: I8) -> None:
    """Set each centre to the mean direction of its rows, in 8 bits. A centre without rows does not change."""
    width = vectors.shape[1]
    sums = np.zeros((centres.shape[0], width), np.float64)
    for i in range(rows.shape[0]):
        for k in range(width):
            sums[nearest[i], k] += vectors[rows[i], k] * scales[rows[i]]
    for c in range(centres.shape[0]):
        square = 0.0
        for k in range(width):
            square += sums[c, k] ** 2
        if square == 0.0:
            continue
        # All centres have one scale, so that their products compare: the largest entry of a unit vector is 1.
        for k in range(width):
            centres[c, k] = np.int8(np.rint(sums[c, k] / np.sqrt(square) * 127.0))


@njit
def _offer(score: float, row: int, scores: F32, rows: I32, size: int) -> int:
    """Add a row to a min-heap, in place of the weakest if it is full, and return the new size.

    scores, rows (capacity,). If the heap is full, `score` must be larger than scores[0].
    """
    if size < rows.shape[0]:
        at = size
        while at > 0 and scores[(at - 1) // 2] > score:
            scores[at], rows[at] = scores[(at - 1) // 2], rows[(at - 1) // 2]
            at = (at - 1) // 2
        scores[at], rows[at] = score, row
        return size + 1
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and scores[child + 1] < scores[child]:
            child += 1
        if scores[child] >= score:
            break
        scores[at], rows[at] = scores[child], rows[child]
        at = child
    scores[at], rows[at] = score, row
    return size


@njit
def _search(
    queries: I16, vectors: I8, scales: F32, lists: Lists, tail: I32, scanned_items: int, max_lists: int, found: I32
) -> None:
    """Write to found (U, K) the rows of the largest products of each query, the largest first, -1 beyond.

    Lists are scanned from the nearest centre on until `scanned_items` rows were seen; then the tail, the rows that are
    in no list. Oracle: `exact` in tests/unit/models/history/test_ivf_index.py.
    """
    centres, starts, list_rows, list_vectors, list_scales = lists
    scores, rows = np.empty(found.shape[1], np.float32), np.empty(found.shape[1], np.int32)
    probe_scores, probes = np.empty(max_lists, np.float32), np.empty(max_lists, np.int32)
    for u in range(queries.shape[0]):
        size, seen, probed = 0, 0, 0
        for c in range(centres.shape[0]):
            score = np.float32(product(queries, u, centres, c))
            if probed < max_lists or score > probe_scores[0]:
                probed = _offer(score, c, probe_scores, probes, probed)
        order = np.argsort(-probe_scores[:probed], kind="mergesort")
        for i in range(probed):
            if seen >= scanned_items:
                break
            start = starts[probes[order[i]]]
            end = min(starts[probes[order[i]] + 1], start + scanned_items - seen)
            seen += end - start
            for j in range(start, end):
                score = np.float32(product(queries, u, list_vectors, j)) * list_scales[j]
                # Compare before the call, which would cost as much as the product.
                if size < rows.shape[0] or score > scores[0]:
                    size = _offer(score, list_rows[j], scores, rows, size)
        for j in range(tail.shape[0]):
            row = tail[j]
            score = np.float32(product(queries, u, vectors, row)) * scales[row]
            if size < rows.shape[0] or score > scores[0]:
                size = _offer(score, row, scores, rows, size)
        ranked = np.argsort(-scores[:size], kind="mergesort")
        for j in range(found.shape[1]):
            found[u, j] = rows[ranked[j]] if j < size else -1


def _no_lists(width: int) -> Lists:
    return Lists(
        np.zeros((0, width), np.int8),
        np.zeros(1, np.int64),
        np.zeros(0, np.int32),
        np.zeros((0, width), np.int8),
        np.zeros(0, np.float32),
    )


class IvfIndex:
    """Index of the first n rows of the caller's vectors (capacity, width) int8 and scales (capacity,)."""

    def __init__(self) -> None:
        self._lists: Lists | None = None
        self._tail = np.zeros(0, np.int32)  # rows added since the lists were built

    def add(self, first: int, end: int, vectors: I8, scales: F32) -> None:
        """Add rows `first` to `end`. Builds the lists again once a 16th of all rows is in no list."""
        self._tail = np.concatenate([self._tail, np.arange(first, end, dtype=np.int32)])
        if end > EXACT_SEARCH_ITEMS and _REBUILD_SHARE * len(self._tail) > end:
            self._lists = _build_lists(end, vectors, scales)
            self._tail = np.zeros(0, np.int32)

    def find(self, queries: I16, vectors: I8, scales: F32, count: int) -> I32:
        """Return rows (U, count) of the largest products with queries (U, width), the largest first; -1 beyond."""
        found = np.empty((len(queries), count), np.int32)
        lists = self._lists or _no_lists(vectors.shape[1])
        _search(queries, vectors, scales, lists, self._tail, SCANNED_ITEMS, MAX_PROBED_LISTS, found)
        return found


def _build_lists(n: int, vectors: I8, scales: F32) -> Lists:
    """Lists of rows 0 to n, by k-means over a sample. The sample depends only on n."""
    count = min(MAX_LISTS, n // ITEMS_PER_LIST)
    sample = np.random.default_rng(n).permutation(n)[: KMEANS_ITEMS_PER_LIST * count].astype(np.int32)
    centres = vectors[sample[:count]].copy()
    _update_centres(sample[:count], np.arange(count, dtype=np.int32), vectors, scales, centres)
    nearest = np.empty(len(sample), np.int32)
    for _ in range(KMEANS_ROUNDS):
        _assign(sample, vectors, centres, nearest)
        _update_centres(sample, nearest, vectors, scales, centres)
    nearest = np.empty(n, np.int32)
    _assign(np.arange(n, dtype=np.int32), vectors, centres, nearest)
    rows = np.argsort(nearest, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(nearest, minlength=count))]).astype(np.int64)
    return Lists(centres, starts, rows, vectors[rows], scales[rows])
