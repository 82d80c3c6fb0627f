"""The items whose vectors have the largest product with a query: all are asked in a small catalogue, in a large one the near.

An inverted file (Jégou, Douze and Schmid, 2011, without residuals): items lie in lists by the centre that is nearest, and
of a query the lists of the nearest centres are looked through until SCANNED items were seen. So a page costs the same in a
catalogue of a million. Products are sums of integers: the same to the bit in any batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stream.jit import njit

Floats = npt.NDArray[np.float32]
EXACT = 4096  # items up to which all are asked
SCANNED = 4096  # items that are looked at else, about
PER_LIST = 64
LISTS = 1024  # at most: to find the nearest of more would cost a start and every new item more
LOOKED_INTO = 128  # lists at most
ROUNDS = 6  # of k-means
SAMPLE = 16  # items a list that k-means learns from


@njit
def product(queries, u, vectors, row):  # type: ignore[no-untyped-def]
    """Of two rows of small integers, as int32."""
    total = np.int32(0)
    for k in range(queries.shape[1]):
        total += np.int32(queries[u, k]) * np.int32(vectors[row, k])
    return total


@njit
def _nearest(rows, vectors, centres, out):  # type: ignore[no-untyped-def]
    """The centre of the largest product with each of the rows, of equals the first."""
    for i in range(rows.shape[0]):
        best, at = np.int32(-2147483648), 0
        for c in range(centres.shape[0]):
            p = product(centres, c, vectors, rows[i])
            if p > best:
                best, at = p, c
        out[i] = at


@njit
def _means(rows, of, vectors, scales, centres):  # type: ignore[no-untyped-def]
    """In place: each centre the mean direction of its rows, in 8 bits; one without rows stays."""
    width = vectors.shape[1]
    sums = np.zeros((centres.shape[0], width), np.float64)
    for i in range(rows.shape[0]):
        for k in range(width):
            sums[of[i], k] += vectors[rows[i], k] * scales[rows[i]]
    for c in range(centres.shape[0]):
        square = 0.0
        for k in range(width):
            square += sums[c, k] ** 2
        if square == 0.0:
            continue
        # All centres on one scale, so that their products compare: a unit vector's largest entry is 1.
        for k in range(width):
            centres[c, k] = np.int8(np.rint(sums[c, k] / np.sqrt(square) * 127.0))


@njit
def _offer(score, row, strength, heap, size):  # type: ignore[no-untyped-def]
    """Put one that is strong enough into a heap with the weakest on top, which goes where it is full. -> how many it holds."""
    if size < heap.shape[0]:
        at = size
        while at > 0 and strength[(at - 1) // 2] > score:
            strength[at], heap[at] = strength[(at - 1) // 2], heap[(at - 1) // 2]
            at = (at - 1) // 2
        strength[at], heap[at] = score, row
        return size + 1
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and strength[child + 1] < strength[child]:
            child += 1
        if strength[child] >= score:
            break
        strength[at], heap[at] = strength[child], heap[child]
        at = child
    strength[at], heap[at] = score, row
    return size


@njit
def _best(queries, vectors, scales, centres, starts, order, listed, listed_scales, tail, scanned, strength, heap,  # type: ignore[no-untyped-def]
          nearness, near, out):  # fmt: skip
    """For each query the rows of the largest products, the largest first, into out (U, K); -1 beyond.

    Lists are looked through by nearness until `scanned` rows were seen, then the rows of the tail, which are in no list.
    """
    for u in range(queries.shape[0]):
        size, seen = 0, 0
        lists = 0
        for c in range(centres.shape[0]):
            score = np.float32(product(queries, u, centres, c))
            if lists < near.shape[0] or score > nearness[0]:
                lists = _offer(score, c, nearness, near, lists)
        nearest = np.argsort(-nearness[:lists], kind="mergesort")
        for i in range(lists):
            if seen >= scanned:
                break
            start = starts[near[nearest[i]]]
            end = min(starts[near[nearest[i]] + 1], start + scanned - seen)
            seen += end - start
            for j in range(start, end):
                score = np.float32(product(queries, u, listed, j)) * listed_scales[j]
                if size < heap.shape[0] or score > strength[0]:  # the call alone would cost as much as the product
                    size = _offer(score, order[j], strength, heap, size)
        for j in range(tail.shape[0]):
            row = tail[j]
            score = np.float32(product(queries, u, vectors, row)) * scales[row]
            if size < heap.shape[0] or score > strength[0]:
                size = _offer(score, row, strength, heap, size)
        ranked = np.argsort(-strength[:size], kind="mergesort")
        for j in range(out.shape[1]):
            out[u, j] = heap[ranked[j]] if j < size else -1


class IvfIndex:
    """Finds among vectors (capacity, width) int8 with scales (capacity,), of which the caller says which rows there are."""

    def __init__(self) -> None:
        self._centres = np.zeros((0, 0), np.int8)  # (K, width)
        self._starts, self._order = np.zeros(1, np.int64), np.zeros(0, np.int32)  # (K + 1,), rows list by list
        # Vectors and scales once more in the order of the lists: what is looked through lies side by side.
        self._listed, self._listed_scales = np.zeros((0, 0), np.int8), np.zeros(0, np.float32)
        self._tail = np.zeros(0, np.int32)  # rows that came since

    def add(self, first: int, end: int, vectors: npt.NDArray[np.int8], scales: Floats) -> None:
        """Rows `first` to `end` have come; lists are made anew once those without are a sixteenth of all."""
        self._tail = np.concatenate([self._tail, np.arange(first, end, dtype=np.int32)])
        if end > EXACT and 16 * len(self._tail) > end:
            self._make_lists(end, vectors, scales)

    def _make_lists(self, n: int, vectors: npt.NDArray[np.int8], scales: Floats) -> None:
        count = min(LISTS, n // PER_LIST)
        rows = np.random.default_rng(n).permutation(n)[: SAMPLE * count].astype(np.int32)
        centres = vectors[rows[:count]].copy()
        _means(rows[:count], np.arange(count, dtype=np.int32), vectors, scales, centres)
        of = np.empty(len(rows), np.int32)
        for _ in range(ROUNDS):
            _nearest(rows, vectors, centres, of)
            _means(rows, of, vectors, scales, centres)
        every, of = np.arange(n, dtype=np.int32), np.empty(n, np.int32)
        _nearest(every, vectors, centres, of)
        self._centres, self._order = centres, np.argsort(of, kind="stable").astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(of, minlength=count))]).astype(np.int64)
        self._listed, self._listed_scales = vectors[self._order], scales[self._order]
        self._tail = np.zeros(0, np.int32)

    def find(
        self, queries: npt.NDArray[np.int16], vectors: npt.NDArray[np.int8], scales: Floats, count: int
    ) -> npt.NDArray[np.int32]:
        """Rows (U, count) of the largest products with queries (U, width), the largest first; -1 beyond."""
        out = np.empty((len(queries), count), np.int32)
        strength, heap = np.empty(count, np.float32), np.empty(count, np.int32)
        none = np.zeros((0, vectors.shape[1]), np.int8)
        centres, listed = (self._centres, self._listed) if len(self._centres) else (none, none)
        _best(
            queries, vectors, scales, centres, self._starts, self._order, listed, self._listed_scales, self._tail, SCANNED,
            strength, heap, np.empty(LOOKED_INTO, np.float32), np.empty(LOOKED_INTO, np.int32), out,
        )  # fmt: skip
        return out
