"""Trending items of a catalogue: overall, by category, and the newest. Retrieval of every page uses them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stream.decay import decay_factor
from stream.ids import find, insert, rehash
from stream.items.catalog import Catalog, showable
from stream.jit import njit
from stream.types import F32, F64, I32, I64, Rows

TRENDING_ITEMS, TRENDING_PER_CATEGORY = 240, 32
FRESH_DAYS = 14.0
TRENDING_MAX_AGE_S = 5.0  # event time after which the trending items are computed again
SCAN_ITEMS = 4096  # most items that one call scans, a fraction of a millisecond


class Trending(NamedTuple):
    """Rows of the catalogue, best first, -1 at the end."""

    overall: I32  # (TRENDING_ITEMS,)
    popularity: F32  # (TRENDING_ITEMS,) of the same items
    categories: I32  # (K,) key32, ascending
    by_category: I32  # (K, TRENDING_PER_CATEGORY)
    fresh: I32  # (TRENDING_ITEMS,) newest first


class TrendingIndex:
    """Trending items of a catalogue, kept up to date as event time advances.

    A catalogue of at most SCAN_ITEMS is scanned again if the last scan is older than TRENDING_MAX_AGE_S or an item has
    changed. A larger one is scanned in pieces. The size of a piece is proportional to the event time that has passed,
    so that a whole scan takes TRENDING_MAX_AGE_S. No call scans more than SCAN_ITEMS: no page waits longer.
    """

    def __init__(self, catalog: Catalog, half_lives: F64) -> None:
        """half_lives (4,) s, `HalfLives.array` of the signals; the first three are those of popularity."""
        self._catalog, self._half_lives = catalog, half_lives
        self._trending: Trending | None = None
        self._trending_at, self._version = 0.0, -1  # event time (s) and catalogue version of the last whole scan
        self._scan: _Scan | None = None  # in progress
        self._remainder = 0.0  # fraction of an item that the next piece includes
        self._called_at = 0.0  # event time of the last call, s

    def at(self, now: float, summaries: Rows, clock: float) -> Trending:
        """Trending items at event time `now`, s.

        summaries (capacity,) SIGNAL_SUMMARY, of the catalogue's capacity; clock: s, `Signals.clock`.
        """
        n = len(self._catalog)
        if self._trending is None:
            scan = _Scan(now, clock)
            scan.advance(self._catalog, summaries, self._half_lives, n)
            return self._finish(scan)
        passed, self._called_at = abs(now - self._called_at), now
        is_stale = abs(now - self._trending_at) > TRENDING_MAX_AGE_S or self._version != self._catalog.version
        if self._scan is None and is_stale:
            self._scan, self._remainder = _Scan(now, clock), 0.0
        if self._scan is None:
            return self._trending
        if n <= SCAN_ITEMS:
            piece = n
        else:
            self._remainder += min(n * passed / TRENDING_MAX_AGE_S, SCAN_ITEMS)
            piece = int(self._remainder)
            self._remainder -= piece
        if self._scan.advance(self._catalog, summaries, self._half_lives, piece) < n:
            return self._trending
        return self._finish(self._scan)

    def _finish(self, scan: _Scan) -> Trending:
        self._trending = scan.trending()
        self._trending_at, self._version, self._scan = scan.now, scan.version, None
        return self._trending


@njit
def _insert_sorted(rows: I32, scores: F64, row: int, score: float, items: Rows) -> None:
    """Insert `row` if it is among the best: rows (k,), -1 free; scores (k,) descending; ties go to the lowest id."""
    j = rows.shape[0] - 1
    if rows[j] >= 0 and (scores[j] > score or (scores[j] == score and items[rows[j]].id < items[row].id)):
        return
    while j > 0 and (
        rows[j - 1] < 0 or scores[j - 1] < score or (scores[j - 1] == score and items[rows[j - 1]].id > items[row].id)
    ):
        rows[j], scores[j] = rows[j - 1], scores[j - 1]
        j -= 1
    rows[j], scores[j] = row, score


@njit
def _scan_rows(
    items: Rows,
    summaries: Rows,
    half_lives: F64,
    start: int,
    end: int,
    now: float,
    as_of: float,
    keys: I64,
    places: I32,
    known: int,
    overall: I32,
    popularity: F64,
    by_category: I32,
    strength: F64,
    fresh: I32,
    added: F64,
) -> tuple[int, int]:
    """Scan the rows from `start` to `end`; return the row to continue from and the number of categories known.

    Stops early if the categories fill half of the hash (keys, places). Mutates the hash and the lists: overall with
    popularity, by_category with strength (both by place), fresh with added. Oracle: `expected_trending` in the tests.
    """
    for row in range(start, end):
        item = items[row]
        if not showable(item, now, 0):
            continue
        s = summaries[row]
        elapsed = max(0.0, as_of - s.time)
        # Popularity at half-lives of an hour, a day and a fortnight: current trends outrank past success.
        score = 0.5 * s.popular[0] * decay_factor(elapsed, half_lives[0])
        score += 1.0 * s.popular[1] * decay_factor(elapsed, half_lives[1])
        score += 0.25 * s.popular[2] * decay_factor(elapsed, half_lives[2])
        if item.category != 0:
            place = find(keys, places, item.category)
            if place < 0:
                if 2 * (known + 1) > keys.shape[0]:
                    return row, known
                insert(keys, places, item.category, known)
                place = np.int32(known)
                known += 1
            _insert_sorted(by_category[place], strength[place], row, score, items)
        _insert_sorted(overall, popularity, row, score, items)
        if now - FRESH_DAYS * 86_400.0 < item.added <= now:
            _insert_sorted(fresh, added, row, item.added, items)
    return end, known


class _Scan:
    """One scan of the catalogue, in any number of pieces."""

    def __init__(self, now: float, clock: float) -> None:
        self.now, self.version = now, -1
        self._popularity_at = min(now, clock)  # event time that popularity is decayed to
        self._next_row = self._known = 0
        self._overall, self._popularity = np.full(TRENDING_ITEMS, -1, np.int32), np.zeros(TRENDING_ITEMS)
        self._fresh, self._added = np.full(TRENDING_ITEMS, -1, np.int32), np.zeros(TRENDING_ITEMS)
        # Hash of the categories found so far, for `find`: key32 -> place in the two arrays below.
        self._keys: I64 = np.zeros(128, np.int64)
        self._places: I32 = np.zeros(128, np.int32)
        self._by_category: I32 = np.full((64, TRENDING_PER_CATEGORY), -1, np.int32)
        self._strength: F64 = np.zeros((64, TRENDING_PER_CATEGORY))

    def _grow(self) -> None:
        """Double the capacity for categories."""
        keys, places = np.zeros(2 * len(self._keys), np.int64), np.zeros(2 * len(self._keys), np.int32)
        rehash(self._keys, self._places, keys, places)
        self._keys, self._places = keys, places
        self._by_category = np.concatenate([self._by_category, np.full_like(self._by_category, -1)])
        self._strength = np.concatenate([self._strength, np.zeros_like(self._strength)])

    def advance(self, catalog: Catalog, summaries: Rows, half_lives: F64, items: int) -> int:
        """Scan at most `items` more items; return how many are scanned in total."""
        if self.version < 0:
            self.version = catalog.version
        end = min(self._next_row + items, len(catalog))
        while self._next_row < end:
            self._next_row, self._known = _scan_rows(
                catalog.items, summaries, half_lives, self._next_row, end, self.now, self._popularity_at, self._keys,
                self._places, self._known, self._overall, self._popularity, self._by_category, self._strength,
                self._fresh, self._added,
            )  # fmt: skip
            if self._next_row < end:
                self._grow()
        return self._next_row

    def trending(self) -> Trending:
        found = self._keys != 0
        keys, places = self._keys[found], self._places[found]
        order = np.argsort(keys)
        return Trending(
            self._overall,
            self._popularity.astype(np.float32),
            keys[order].astype(np.int32),
            np.ascontiguousarray(self._by_category[places[order]]),
            self._fresh,
        )
