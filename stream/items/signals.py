"""Item signals: popularity, transitions and co-visits, folded from shoppers' activity by the item's owner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stream.events import ADD, BUY
from stream.ids import IdIndex
from stream.items.activity import NEXT, SEEN, SOURCE, Activity, source_key
from stream.items.catalog import Catalog
from stream.items.trending import Trending, TrendingIndex
from stream.jit import njit
from stream.row_codec import pack, rows_at, unpack

Rows = npt.NDArray[np.void]

NEAR = 48  # neighbours kept of each item, the strongest
SWEPT = 64  # rows that a run looks at for whether they are forgotten


class HalfLives(NamedTuple):
    """In which what was counted fades to a half, s of event time.

    A shop of a million sessions a day has others than one of a hundred: a ranker brings those that it was fitted with.
    """

    popularity: tuple[float, float, float] = (3_600.0, 86_400.0, 1_209_600.0)  # 1 hour, 1 day, 14 days
    transitions: float = 2_592_000.0  # 30 days; of co-visits too

    @property
    def forgotten(self) -> float:
        """s after which an item that nobody has touched is forgotten: nothing of it weighs more than a thousandth."""
        return 10 * max(self.transitions, *self.popularity)

    def array(self) -> npt.NDArray[np.float64]:
        """(4,): those of popularity, that of transitions."""
        return np.array([*self.popularity, self.transitions])


HALF_LIVES = HalfLives()

SIGNAL_VERSION = 1
SIGNAL = np.dtype(
    [
        ("item", "i8"),
        ("time", "f8"),  # all decayed figures of the row are as of this event time
        ("near_item", "i8", NEAR),  # key64 of the neighbour; 0 absent
        ("near_next", "f4", NEAR),  # T: sum of 1 / step over transitions item -> neighbour
        ("near_strict", "f4", NEAR),  # M: transitions of one step
        ("near_visit", "f4", NEAR),  # C: sessions that hold both
        ("popular", "f4", 3),  # interactions, decayed at three half-lives
        ("seen", "f4"),  # n: sessions that hold the item
        ("next_out", "f4"),  # O: sum of all T
        ("strict_out", "f4"),  # m: sum of all M
        ("repeat", "f4"),  # M[item, item]
        ("buys", "f4"),  # decayed at the slowest of the three
        ("carts", "f4"),
        ("count", "f4"),  # interactions, not decayed
    ]
)

_BLANK = np.zeros(1, SIGNAL)


@njit
def _age(s, time, lives):  # type: ignore[no-untyped-def]
    """Decay a SIGNAL row to `time`, where that is later than it is as of. lives: `HalfLives.array`."""
    if time <= s.time:
        return
    gap = time - s.time
    if s.time > 0.0:
        slow = np.float32(2.0 ** -(gap / lives[3]))
        for j in range(s.near_item.shape[0]):
            s.near_next[j] *= slow
            s.near_strict[j] *= slow
            s.near_visit[j] *= slow
        s.seen *= slow
        s.next_out *= slow
        s.strict_out *= slow
        s.repeat *= slow
        for life in range(3):
            s.popular[life] *= np.float32(2.0 ** -(gap / lives[life]))
        stock = np.float32(2.0 ** -(gap / lives[2]))
        s.buys *= stock
        s.carts *= stock
    s.time = time


@njit
def _neighbour(s, other):  # type: ignore[no-untyped-def]
    """Place of `other` among the neighbours; the weakest makes room."""
    weakest, least = 0, np.inf
    for j in range(s.near_item.shape[0]):
        if s.near_item[j] == other:
            return j
        strength = -1.0 if s.near_item[j] == 0 else np.float64(s.near_next[j] + s.near_visit[j])
        if strength < least or (strength == least and s.near_item[j] < s.near_item[weakest]):
            weakest, least = j, strength
    s.near_item[weakest] = other
    s.near_next[weakest] = s.near_strict[weakest] = s.near_visit[weakest] = 0.0
    return weakest


@njit
def _fold_activity(rows, at, acts, clock, lives, forgotten, blank):  # type: ignore[no-untyped-def]
    """clock: the newest event time of the table before; blank (1,): an empty row. -> the newest after."""
    for i in range(acts.shape[0]):
        a = acts[i]
        clock = max(clock, a.time)
        if clock - rows[at[i]].time > forgotten:
            rows[at[i]] = blank[0]  # whether the sweep has come by or not
        s = rows[at[i]]
        s.item = a.item
        _age(s, a.time, lives)
        late = s.time - a.time
        weight = np.float32(2.0 ** -(late / lives[3]))
        if a.kind == SEEN:
            for life in range(3):
                s.popular[life] += np.float32(2.0 ** -(late / lives[life]))
            stock = np.float32(2.0 ** -(late / lives[2]))
            if a.event == BUY:
                s.buys += stock
            elif a.event == ADD:
                s.carts += stock
            s.count += np.float32(1.0)
            s.seen += weight * a.first
        elif a.other == a.item:
            s.repeat += weight
            s.strict_out += weight
            s.next_out += weight
        else:
            j = _neighbour(s, a.other)
            s.near_visit[j] += weight * a.first
            if a.kind == NEXT:
                s.near_next[j] += weight / np.float32(a.step)
                s.next_out += weight / np.float32(a.step)
                if a.step == 1:
                    s.near_strict[j] += weight
                    s.strict_out += weight
    return clock


@njit
def _count_once(rows, ends, of, marks, fresh):  # type: ignore[no-untyped-def]
    """Which rows (n,) are new, into fresh (n,): those of record r are from offset marks[of[r]] on; the marks go on."""
    start = 0
    for r in range(ends.shape[0]):
        mark = marks[of[r]]
        for i in range(start, ends[r]):
            fresh[i] = rows[i].offset >= mark
            if fresh[i]:
                marks[of[r]] = rows[i].offset + 1
        start = ends[r]


class ItemTable:
    """The signals of the items of one partition, and how far each source of activity is counted in them."""

    def __init__(self, half_lives: HalfLives = HALF_LIVES) -> None:
        self._lives, self._forgotten = half_lives.array(), half_lives.forgotten
        self.rows = np.zeros(256, SIGNAL)
        self.index = IdIndex()
        self.sources: dict[bytes, int] = {}  # key of the source -> next offset
        self.clock = 0.0  # s, the newest event time of any row
        self._swept = 0  # row that the sweep looks at next

    def __len__(self) -> int:
        """Items with signals."""
        return int(np.count_nonzero(self.rows["item"]))

    def fold(self, source: str, partition: int, acts: Rows) -> set[int]:
        """Count activity whose offsets are new. -> rows that changed. A source's activity comes in order of offset."""
        return self.fold_all(Activity([source_key(source, partition)], acts, np.array([len(acts)])))

    def fold_all(self, activity: Activity) -> set[int]:
        """`fold` of each record, in order."""
        keys = list(dict.fromkeys(activity.sources))
        number = {key: at for at, key in enumerate(keys)}
        of = np.array([number[key] for key in activity.sources], np.int32)  # (records,)
        before = [self.sources.get(key, 0) for key in keys]
        marks, fresh = np.array(before, np.int64), np.empty(len(activity.rows), np.bool_)
        _count_once(activity.rows, activity.ends, of, marks, fresh)
        acts = activity.rows if fresh.all() else rows_at(activity.rows, np.flatnonzero(fresh))
        if not len(acts):
            return set()
        at = self._places_of(acts["item"])
        self.clock = _fold_activity(self.rows, at, acts, self.clock, self._lives, self._forgotten, _BLANK)
        self.sources.update(
            (key, mark) for key, was, mark in zip(keys, before, marks.tolist(), strict=True) if mark > was
        )
        return set(at.tolist())

    def rows_of(self, changed: Iterable[int]) -> Rows:
        """The rows that `fold` says have changed, copied. (n,) SIGNAL."""
        return rows_at(self.rows, sorted(changed))

    def records(self, changed: Iterable[int]) -> list[tuple[bytes, bytes]]:
        """Changelog of the changed rows and of the sources: written in one batch, they cannot disagree."""
        rows = self.rows_of(changed)
        packed = pack(rows, SIGNAL_VERSION)
        keys = [_key(item) for item in rows["item"].tolist()]
        return [*zip(keys, packed, strict=True), *((key, b"%d" % offset) for key, offset in self.sources.items())]

    def sweep(self, count: int = SWEPT) -> list[tuple[bytes, None]]:
        """Forget those of the next `count` rows that nobody has touched for long. -> their tombstones.

        The numbers of rows that `fold` has given do not hold any more.
        """
        start, end = self._swept, min(self._swept + count, len(self.index))
        some = self.rows[start:end]
        gone = (some["item"] != 0) & (self.clock - some["time"] > self._forgotten)
        keys = [_key(item) for item in some["item"][gone].tolist()]
        some[gone] = np.zeros(1, SIGNAL)
        self._swept = end
        if end == len(self.index):
            self._swept = 0
            self._close_up()
        return [(key, None) for key in keys]

    def _close_up(self) -> None:
        """Give back the room of forgotten rows, once they are the greater part."""
        rows = self.rows[: len(self.index)]
        live = rows[rows["item"] != 0]
        if 2 * len(live) < len(rows) and len(rows) > 256:
            self.rows = np.zeros(max(256, 2 * len(live)), SIGNAL)
            self.rows[: len(live)] = live
            self.index = IdIndex(len(live))
            self.index.add_all(np.ascontiguousarray(live["item"]))

    def apply(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Changelog records in order; None forgets an item."""
        for key, value in records:
            if key.startswith(SOURCE) and value is not None:
                self.sources[key] = int(value)
        found, gone = _newest(records)
        if len(gone):
            at = self.index.get_all(gone)
            self.rows[at[at >= 0]] = np.zeros(1, SIGNAL)
        if len(found):
            at = self._places_of(found["item"])  # makes room
            self.rows[at] = found
            self.clock = max(self.clock, float(found["time"].max()))

    def _places_of(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        rows = self.index.get_all(np.ascontiguousarray(items))
        for at in np.flatnonzero(rows < 0).tolist():
            rows[at] = self.index.add(int(items[at]))
        while len(self.index) > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        return rows


def _key(item: int) -> bytes:
    """The changelog's key of an item id."""
    return b"%016x" % (item & (2**64 - 1))


def _newest(records: Sequence[tuple[bytes, bytes | None]]) -> tuple[Rows, npt.NDArray[np.int64]]:
    """The last word on each item of a changelog: (n,) SIGNAL rows, (m,) ids that are forgotten."""
    newest = {key: value for key, value in records if not key.startswith(b"\x00")}
    gone = [int(key, 16) for key, value in newest.items() if value is None]
    rows = unpack([value for value in newest.values() if value is not None], SIGNAL, SIGNAL_VERSION)
    return rows, np.array(gone, np.uint64).view(np.int64)


# What phi reads of every candidate and retrieval of every neighbour: one cache line an item.
FIGURES = np.dtype(
    [
        ("time", "f8"),  # all are as of this event time
        *((name, SIGNAL[name]) for name in ("popular", "seen", "next_out", "strict_out", "repeat", "buys", "carts")),
        ("known", "i4"),  # 1 where there are signals
        ("pad", "i4", 4),
    ]
)
assert FIGURES.itemsize == 64


class Signals:
    """The signals of all items in the rows of the catalogue, as every worker reads them."""

    def __init__(self, catalog: Catalog, half_lives: HalfLives = HALF_LIVES) -> None:
        self._catalog = catalog
        self.lives = half_lives.array()  # (4,)
        self.rows = np.zeros(len(catalog.items), SIGNAL)  # (capacity,) SIGNAL; item 0 where there is none
        self.near_row = np.full((len(catalog.items), NEAR), -1, np.int32)  # (capacity, NEAR) rows of the neighbours
        self.figures = np.zeros(len(catalog.items), FIGURES)  # (capacity,) FIGURES
        # (capacity,) sessions of each once more, by itself: a walk asks it of a thousand neighbours.
        self.seen = np.zeros(len(catalog.items), np.float32)
        self.count = 0
        # s, the newest event time that is counted in them. For a shopper whose time is later they are as of that one: where
        # nothing new comes in, what led goes on leading, and features do not drift from what theta was fitted on.
        self.clock = 0.0
        self._leaderboard = TrendingIndex(catalog, self.lives)

    def apply(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Set the rows of item-signals records; None forgets an item. Raises ValueError for rows of another version."""
        rows, gone = _newest(records)
        if len(gone):
            self._forget(gone)
        self.set(rows)

    def set(self, rows: Rows) -> None:
        """Set the signals of items (n,) SIGNAL, which the catalogue need not know yet."""
        at = self._catalog.rows_of(rows["item"])
        near = self._catalog.rows_of(rows["near_item"].reshape(-1)).reshape(len(rows), NEAR)
        self.put(at, rows, near)

    def _forget(self, items: npt.NDArray[np.int64]) -> None:
        self.fit()
        at = self._catalog.index.get_all(items)
        at = at[at >= 0]
        self.count -= int((self.rows["item"][at] != 0).sum())
        self.rows[at], self.near_row[at] = np.zeros(1, SIGNAL), -1
        self.figures[at], self.seen[at] = np.zeros(1, FIGURES), 0.0

    def put(self, at: npt.NDArray[np.int32], rows: Rows, near: npt.NDArray[np.int32]) -> None:
        """Set the signals of the catalogue's rows `at` (n,): (n,) SIGNAL and (n, NEAR) rows of their neighbours."""
        self.fit()
        self.count += int((self.rows["item"][np.unique(at)] == 0).sum())
        # Of an item that comes twice the later row holds, as in numpy's assignment.
        self.rows[at] = rows
        self.near_row[at] = near
        figures: Any = np.zeros(len(rows), FIGURES)
        for name in FIGURES.names or ():
            if name in (SIGNAL.names or ()):
                figures[name] = rows[name]
        figures["known"] = 1
        self.figures[at], self.seen[at] = figures, rows["seen"]
        if len(rows):
            self.clock = max(self.clock, float(rows["time"].max()))

    def fit(self) -> None:
        """Grow to the catalogue's capacity: call before a batch reads both."""
        missing = len(self._catalog.items) - len(self.rows)
        if missing > 0:
            self.rows = np.concatenate([self.rows, np.zeros(missing, SIGNAL)])
            self.near_row = np.concatenate([self.near_row, np.full((missing, NEAR), -1, np.int32)])
            self.figures = np.concatenate([self.figures, np.zeros(missing, FIGURES)])
            self.seen = np.concatenate([self.seen, np.zeros(missing, np.float32)])

    def leaders(self, now: float) -> Trending:
        """What leads at `now` (s, event time), see `TrendingIndex.at`."""
        self.fit()
        return self._leaderboard.at(now, self.figures, self.clock)
