"""What leads in a catalogue, overall, in each category and among what is new: where every page begins to look for items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stream.ids import find, insert, rehash
from stream.items.catalog import Catalog, showable
from stream.jit import njit

Rows = npt.NDArray[np.void]
LEADERS, CATEGORY_LEADERS, FRESH_DAYS = 240, 32, 14.0
LEADERS_AGE = 5.0  # s of event time after which leaders are found anew
SCAN = 4096  # items looked at in one go, a fraction of a millisecond


class Trending(NamedTuple):
    """Rows of the catalogue that lead, best first, -1 at the end."""

    overall: npt.NDArray[np.int32]  # (LEADERS,)
    popularity: npt.NDArray[np.float32]  # (LEADERS,) of the same
    categories: npt.NDArray[np.int32]  # (K,) key32, sorted
    by_category: npt.NDArray[np.int32]  # (K, CATEGORY_LEADERS)
    fresh: npt.NDArray[np.int32]  # (LEADERS,) newest first


class TrendingIndex:
    """Leaders of a catalogue, found anew as time goes on.

    A catalogue of at most SCAN items is looked through anew where that was more than LEADERS_AGE ago or an item has
    changed. A larger one is looked through all the time, in pieces: a share of it that goes with the event time that has
    passed, so that all of it takes LEADERS_AGE, but never more than SCAN items at a call. No page waits longer.
    """

    def __init__(self, catalog: Catalog, lives: npt.NDArray[np.float64]) -> None:
        """lives: (4,) s, `HalfLives.array` of the signals, of which the first three are those of popularity."""
        self._catalog, self._lives = catalog, lives
        self._leaders: Trending | None = None
        self._found_at, self._version = 0.0, -1  # event time (s) and the catalogue's version when they were found
        self._scan: _Scan | None = None  # under way
        self._rest = 0.0  # what of a row is still to be looked at
        self._asked_at = 0.0  # event time of the last call, s

    def at(self, now: float, figures: Rows, clock: float) -> Trending:
        """What leads at `now` (s, event time).

        figures: (capacity,) FIGURES of the signals, as many as the catalogue has room for; clock: s, `Signals.clock`.
        """
        n = len(self._catalog)
        if self._leaders is None:
            scan = _Scan(now, clock)
            scan.look(self._catalog, figures, self._lives, n)
            return self._finished(scan)
        passed, self._asked_at = abs(now - self._asked_at), now
        if self._scan is None and (abs(now - self._found_at) > LEADERS_AGE or self._version != self._catalog.version):
            self._scan, self._rest = _Scan(now, clock), 0.0
        if self._scan is None:
            return self._leaders
        if n <= SCAN:
            piece = n
        else:
            self._rest += min(n * passed / LEADERS_AGE, SCAN)
            piece = int(self._rest)
            self._rest -= piece
        if self._scan.look(self._catalog, figures, self._lives, piece) < n:
            return self._leaders
        return self._finished(self._scan)

    def _finished(self, scan: _Scan) -> Trending:
        self._leaders = scan.leaders()
        self._found_at, self._version, self._scan = scan.now, scan.version, None
        return self._leaders


@njit
def _insert(rows, scores, row, score, items):  # type: ignore[no-untyped-def]
    """Keep `row` among the best (rows (k,), -1 free; scores (k,) descending; of equals the lowest id first)."""
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
def _look(items, figures, lives, start, end, now, as_of, keys, places, known, overall, popularity, of_category, strength,  # type: ignore[no-untyped-def]
          fresh, added):  # fmt: skip
    """Look through the rows `start` to `end`. lives: `HalfLives.array`. -> the row to go on from, how many categories are known.

    It stops early where the categories fill half of `keys`.
    """
    for row in range(start, end):
        item = items[row]
        if not showable(item, now, 0):
            continue
        f = figures[row]
        gap = max(0.0, as_of - f.time)
        # By the hour, the day and the fortnight: what trends now leads what was once loved.
        score = 0.5 * f.popular[0] * 2.0 ** -(gap / lives[0])
        score += 1.0 * f.popular[1] * 2.0 ** -(gap / lives[1])
        score += 0.25 * f.popular[2] * 2.0 ** -(gap / lives[2])
        if item.category != 0:
            place = find(keys, places, item.category)
            if place < 0:
                if 2 * (known + 1) > keys.shape[0]:
                    return row, known
                insert(keys, places, item.category, known)
                place = np.int32(known)
                known += 1
            _insert(of_category[place], strength[place], row, score, items)
        _insert(overall, popularity, row, score, items)
        if now - FRESH_DAYS * 86_400.0 < item.added <= now:
            _insert(fresh, added, row, item.added, items)
    return end, known


class _Scan:
    """One look through the catalogue, in as many pieces as one likes."""

    _keys: npt.NDArray[np.int64]  # hash of the categories met, and their places
    _places: npt.NDArray[np.int32]
    _of_category: npt.NDArray[np.int32]  # (places, CATEGORY_LEADERS) rows of the catalogue
    _strength: npt.NDArray[np.float64]

    def __init__(self, now: float, clock: float) -> None:
        self.now, self.version = now, -1
        self._as_of = min(now, clock)  # of popularity
        self._at = self._known = 0
        self._overall, self._popularity = np.full(LEADERS, -1, np.int32), np.zeros(LEADERS)
        self._fresh, self._added = np.full(LEADERS, -1, np.int32), np.zeros(LEADERS)
        self._keys, self._places = np.zeros(128, np.int64), np.zeros(128, np.int32)  # of the categories, for `find`
        self._of_category = np.full((64, CATEGORY_LEADERS), -1, np.int32)
        self._strength = np.zeros((64, CATEGORY_LEADERS))

    def _grow(self) -> None:
        """Make room for twice the categories."""
        keys, places = np.zeros(2 * len(self._keys), np.int64), np.zeros(2 * len(self._keys), np.int32)
        rehash(self._keys, self._places, keys, places)
        self._keys, self._places = keys, places
        self._of_category = np.concatenate([self._of_category, np.full_like(self._of_category, -1)])
        self._strength = np.concatenate([self._strength, np.zeros_like(self._strength)])

    def look(self, catalog: Catalog, figures: Rows, lives: npt.NDArray[np.float64], items: int) -> int:
        """Look at so many items more, at most. -> how many have been looked at."""
        if self.version < 0:
            self.version = catalog.version
        end = min(self._at + items, len(catalog))
        while self._at < end:
            self._at, self._known = _look(
                catalog.items, figures, lives, self._at, end, self.now, self._as_of, self._keys, self._places,
                self._known, self._overall, self._popularity, self._of_category, self._strength, self._fresh, self._added,
            )  # fmt: skip
            if self._at < end:
                self._grow()
        return self._at

    def leaders(self) -> Trending:
        found = self._keys != 0
        keys, places = self._keys[found], self._places[found]
        order = np.argsort(keys)
        return Trending(
            self._overall,
            self._popularity.astype(np.float32),
            keys[order].astype(np.int32),
            np.ascontiguousarray(self._of_category[places[order]]),
            self._fresh,
        )
