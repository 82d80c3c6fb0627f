"""Item signals: popularity, transitions and co-visits. The owner of an item folds them from shoppers' activity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from stream.decay import decay_factor
from stream.events.decode import ADD, BUY
from stream.ids import IdIndex
from stream.items.activity import FOLLOWED_BY, INTERACTION, SOURCE_PREFIX, ActivityBatch, source_key
from stream.items.catalog import Catalog
from stream.items.trending import Trending, TrendingIndex
from stream.jit import njit
from stream.row_codec import pack, rows_at, unpack
from stream.types import F32, F64, I32, I64, Bools, Row, Rows

MAX_NEIGHBOURS = 48  # neighbours kept of each item, the strongest
SWEEP_ROWS = 64  # rows that one sweep checks for expiry


class HalfLives(NamedTuple):
    """Half-lives of the decayed counters, in seconds of event time.

    The best values depend on a shop's traffic, so a ranker's manifest holds those that it was fitted with.
    """

    popularity: tuple[float, float, float] = (3_600.0, 86_400.0, 1_209_600.0)  # 1 hour, 1 day, 14 days
    transitions: float = 2_592_000.0  # 30 days; of co-visits too

    @property
    def retention_s(self) -> float:
        """Seconds without activity until an item's signals are deleted; every count has then decayed below 1/1000."""
        return 10 * max(self.transitions, *self.popularity)

    def array(self) -> F64:
        """(4,) s: the three half-lives of popularity, then that of transitions (column TRANSITIONS)."""
        return np.array([*self.popularity, self.transitions])


HALF_LIVES = HalfLives()
# Increase it if the meaning of a count changes: rankers that were fitted on the previous meaning are then refused.
SIGNALS_MEANING = 1
FORTNIGHT, TRANSITIONS = 2, 3  # columns of `HalfLives.array`; FORTNIGHT is the slowest of popularity

# One item's signals, as stored in the table and on the changelog by position: append fields, never reorder them.
# Counts are decayed to `time`. Zero means no such activity. Letters are those of the features' formulas. A shopper
# counts at most once per item and day in each field, in `popular` and `count` once for each kind of interaction, and
# in T, M and C once for each pair.
#
# field        unit                    meaning
# item         key64                   the item; 0: the row is empty
# time         s, event time           all decayed counts of the row are as of this time; 0: never touched
# near_item    key64                   neighbours; 0: no neighbour
# near_next    transitions / step      T: sum of 1 / step over the transitions item -> neighbour
# near_strict  transitions             M: transitions item -> neighbour of one step
# near_visit   visits                  C: visits with both items; a visit is a day of a shopper
# popular      interactions            at the three half-lives of popularity
# seen         visits                  n: visits with the item
# next_out     transitions / step      O: sum of T over all neighbours, also those no longer kept
# strict_out   transitions             m: sum of M over all neighbours, also those no longer kept
# repeat       transitions             M[item, item]
# buys         purchases               at the slowest half-life of popularity
# carts        additions to the cart   at the slowest half-life of popularity
# count        interactions            not decayed
SIGNAL_VERSION = 1
SIGNAL = np.dtype(
    [
        ("item", "i8"),
        ("time", "f8"),
        ("near_item", "i8", MAX_NEIGHBOURS),
        ("near_next", "f4", MAX_NEIGHBOURS),
        ("near_strict", "f4", MAX_NEIGHBOURS),
        ("near_visit", "f4", MAX_NEIGHBOURS),
        ("popular", "f4", 3),
        ("seen", "f4"),
        ("next_out", "f4"),
        ("strict_out", "f4"),
        ("repeat", "f4"),
        ("buys", "f4"),
        ("carts", "f4"),
        ("count", "f4"),
    ]
)

_BLANK = np.zeros(1, SIGNAL)


@njit
def _decay_row(s: Row, time: float, half_lives: F64) -> None:
    """Decay a SIGNAL row to `time` in place, if that is later than the row's time. half_lives: `HalfLives.array`."""
    if time <= s.time:
        return
    elapsed = time - s.time
    if s.time > 0.0:
        slow = np.float32(decay_factor(elapsed, half_lives[TRANSITIONS]))
        for j in range(s.near_item.shape[0]):
            s.near_next[j] *= slow
            s.near_strict[j] *= slow
            s.near_visit[j] *= slow
        s.seen *= slow
        s.next_out *= slow
        s.strict_out *= slow
        s.repeat *= slow
        for life in range(3):
            s.popular[life] *= np.float32(decay_factor(elapsed, half_lives[life]))
        sales = np.float32(decay_factor(elapsed, half_lives[FORTNIGHT]))
        s.buys *= sales
        s.carts *= sales
    s.time = time


@njit
def _find_or_evict_neighbour(s: Row, other: int) -> int:
    """Place of `other` among the neighbours of a SIGNAL row. A new neighbour replaces the weakest, with zero counts."""
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
def _fold_activity(
    rows: Rows, at: I32, activity: Rows, clock: float, half_lives: F64, retention_s: float, blank: Rows
) -> float:
    """Count activity in the table's rows, and return the table's new clock.

    rows: SIGNAL, changed in place; at (n,): the row of each of the n ACTIVITY rows; clock: newest event time of the
    table; blank (1,): an empty SIGNAL row. Oracle: test_transitions_and_co_visits_equal_those_of_the_sessions.
    """
    for i in range(activity.shape[0]):
        a = activity[i]
        clock = max(clock, a.time)
        if clock - rows[at[i]].time > retention_s:
            rows[at[i]] = blank[0]  # the result must not depend on whether the sweep has reached the row
        s = rows[at[i]]
        s.item = a.item
        _decay_row(s, a.time, half_lives)
        late = s.time - a.time
        weight = np.float32(decay_factor(late, half_lives[TRANSITIONS]))
        if a.kind == INTERACTION:
            for life in range(3):
                s.popular[life] += np.float32(decay_factor(late, half_lives[life]))
            sales = np.float32(decay_factor(late, half_lives[FORTNIGHT]))
            if a.event == BUY:
                s.buys += sales
            elif a.event == ADD:
                s.carts += sales
            s.count += np.float32(1.0)
            s.seen += weight * a.first
        elif a.other == a.item:
            s.repeat += weight
            s.strict_out += weight
            s.next_out += weight
        else:
            j = _find_or_evict_neighbour(s, a.other)
            s.near_visit[j] += weight * a.first
            if a.kind == FOLLOWED_BY:
                s.near_next[j] += weight / np.float32(a.step)
                s.next_out += weight / np.float32(a.step)
                if a.step == 1:
                    s.near_strict[j] += weight
                    s.strict_out += weight
    return clock


@njit
def _mark_new(rows: Rows, ends: I64, source_of: I32, next_offsets: I64, is_new: Bools) -> None:
    """Set is_new (n,) for activity that is not counted yet, and advance next_offsets (sources,).

    rows (n,) ACTIVITY; ends (records,): end of each record's rows; source_of (records,): index into next_offsets. A row
    is new if its offset is at least the next offset of its source.
    """
    start = 0
    for r in range(ends.shape[0]):
        next_offset = next_offsets[source_of[r]]
        for i in range(start, ends[r]):
            is_new[i] = rows[i].offset >= next_offset
            if is_new[i]:
                next_offsets[source_of[r]] = rows[i].offset + 1
        start = ends[r]


class ItemTable:
    """Signals of the items of one partition, and the next offset to count of each source of activity."""

    def __init__(self, half_lives: HalfLives = HALF_LIVES) -> None:
        self._half_lives, self._retention_s = half_lives.array(), half_lives.retention_s
        self.rows = np.zeros(256, SIGNAL)
        self.index = IdIndex()
        self.sources: dict[bytes, int] = {}  # key of the source -> next offset
        self.clock = 0.0  # s, the newest event time of any row
        self._next_swept = 0  # row that the next sweep starts at

    def __len__(self) -> int:
        """Number of items with signals."""
        return int(np.count_nonzero(self.rows["item"]))

    def fold(self, source: str, partition: int, activity: Rows) -> set[int]:
        """Count activity with new offsets, and return the rows that changed. activity (n,) ACTIVITY, by offset."""
        return self.fold_all(ActivityBatch([source_key(source, partition)], activity, np.array([len(activity)])))

    def fold_all(self, batch: ActivityBatch) -> set[int]:
        """`fold` of each record, in order."""
        keys = list(dict.fromkeys(batch.sources))
        number = {key: at for at, key in enumerate(keys)}
        source_of = np.array([number[key] for key in batch.sources], np.int32)  # (records,)
        before = [self.sources.get(key, 0) for key in keys]
        next_offsets, is_new = np.array(before, np.int64), np.empty(len(batch.rows), np.bool_)
        _mark_new(batch.rows, batch.ends, source_of, next_offsets, is_new)
        activity = batch.rows if is_new.all() else rows_at(batch.rows, np.flatnonzero(is_new))
        if not len(activity):
            return set()
        at = self._places_of(activity["item"])
        self.clock = _fold_activity(self.rows, at, activity, self.clock, self._half_lives, self._retention_s, _BLANK)
        self.sources.update(
            (key, after) for key, was, after in zip(keys, before, next_offsets.tolist(), strict=True) if after > was
        )
        return set(at.tolist())

    def rows_of(self, changed: Iterable[int]) -> Rows:
        """Copies of the rows that `fold` returned. (n,) SIGNAL."""
        return rows_at(self.rows, sorted(changed))

    def records(self, changed: Iterable[int]) -> list[tuple[bytes, bytes]]:
        """Changelog records of the changed rows and of all sources. Written as one batch, they stay consistent."""
        rows = self.rows_of(changed)
        packed = pack(rows, SIGNAL_VERSION)
        keys = [_changelog_key(item) for item in rows["item"].tolist()]
        return [*zip(keys, packed, strict=True), *((key, b"%d" % offset) for key, offset in self.sources.items())]

    def sweep(self, count: int = SWEEP_ROWS) -> list[tuple[bytes, None]]:
        """Delete the expired among the next `count` rows, and return their tombstones.

        Row numbers that `fold` has returned are invalid afterwards.
        """
        start, end = self._next_swept, min(self._next_swept + count, len(self.index))
        swept = self.rows[start:end]
        expired = (swept["item"] != 0) & (self.clock - swept["time"] > self._retention_s)
        keys = [_changelog_key(item) for item in swept["item"][expired].tolist()]
        swept[expired] = np.zeros(1, SIGNAL)
        self._next_swept = end
        if end == len(self.index):
            self._next_swept = 0
            self._compact()
        return [(key, None) for key in keys]

    def _compact(self) -> None:
        """Free the memory of deleted rows, if they are more than half of a table of more than 256."""
        rows = self.rows[: len(self.index)]
        live = rows[rows["item"] != 0]
        if 2 * len(live) < len(rows) and len(rows) > 256:
            self.rows = np.zeros(max(256, 2 * len(live)), SIGNAL)
            self.rows[: len(live)] = live
            self.index = IdIndex(len(live))
            self.index.add_all(np.ascontiguousarray(live["item"]))

    def apply(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Apply changelog records in order; the value None deletes an item."""
        for key, value in records:
            if key.startswith(SOURCE_PREFIX) and value is not None:
                self.sources[key] = int(value)
        found, deleted = _decode_changelog(records)
        if len(deleted):
            at = self.index.get_all(deleted)
            self.rows[at[at >= 0]] = np.zeros(1, SIGNAL)
        if len(found):
            at = self._places_of(found["item"])  # may replace self.rows, so it comes first
            self.rows[at] = found
            self.clock = max(self.clock, float(found["time"].max()))

    def _places_of(self, items: I64) -> I32:
        """Row of each item, a new row if it has none. (n,) -> (n,)."""
        rows = self.index.get_all(np.ascontiguousarray(items))
        for at in np.flatnonzero(rows < 0).tolist():
            rows[at] = self.index.add(int(items[at]))
        while len(self.index) > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros_like(self.rows)])
        return rows


def _changelog_key(item: int) -> bytes:
    return b"%016x" % (item & (2**64 - 1))


def _decode_changelog(records: Sequence[tuple[bytes, bytes | None]]) -> tuple[Rows, I64]:
    """The last value of each item: (n,) SIGNAL rows, and the (m,) ids of deleted items."""
    newest = {key: value for key, value in records if not key.startswith(b"\x00")}
    deleted = [int(key, 16) for key, value in newest.items() if value is None]
    rows = unpack([value for value in newest.values() if value is not None], SIGNAL, SIGNAL_VERSION)
    return rows, np.array(deleted, np.uint64).view(np.int64)


# The fields of SIGNAL that the features read of every candidate, and trending of every item: one cache line an item.
# Units are those of SIGNAL. `known` is 1 if the item has signals.
SIGNAL_SUMMARY = np.dtype(
    [
        ("time", "f8"),
        *((name, SIGNAL[name]) for name in ("popular", "seen", "next_out", "strict_out", "repeat", "buys", "carts")),
        ("known", "i4"),
        ("pad", "i4", 4),
    ]
)
assert SIGNAL_SUMMARY.itemsize == 64


class Signals:
    """Signals of all items, indexed by the rows of the catalogue. Every worker holds them for reading."""

    def __init__(self, catalog: Catalog, half_lives: HalfLives = HALF_LIVES) -> None:
        self._catalog = catalog
        self.half_lives = half_lives.array()  # (4,)
        self.rows = np.zeros(len(catalog.items), SIGNAL)  # (capacity,); item is 0 without signals
        self.neighbour_rows: I32 = np.full((len(catalog.items), MAX_NEIGHBOURS), -1, np.int32)  # (capacity, neighbours)
        self.summaries = np.zeros(len(catalog.items), SIGNAL_SUMMARY)  # (capacity,)
        # (capacity,) a contiguous copy of `seen`: expanding neighbours reads it for about a thousand items a page.
        self.seen: F32 = np.zeros(len(catalog.items), np.float32)
        self.count = 0  # items with signals
        # Newest event time counted, s. For shoppers with a later time, signals are as of this clock. So trending items
        # stay while no activity arrives, and features keep the distribution that theta was fitted on.
        self.clock = 0.0
        self._trending = TrendingIndex(catalog, self.half_lives)

    def apply(self, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Apply records of item-signals; the value None deletes an item. Raises ValueError for another row version."""
        rows, deleted = _decode_changelog(records)
        if len(deleted):
            self._delete(deleted)
        self.set_signals(rows)

    def set_signals(self, rows: Rows) -> None:
        """Set the signals (n,) SIGNAL of items; items new to the catalogue get a row."""
        at = self._catalog.rows_of(rows["item"])
        near = self._catalog.rows_of(rows["near_item"].reshape(-1)).reshape(len(rows), MAX_NEIGHBOURS)
        self.set_rows(at, rows, near)

    def _delete(self, items: I64) -> None:
        self.grow_to_catalog()
        at = self._catalog.index.get_all(items)
        at = at[at >= 0]
        self.count -= int((self.rows["item"][at] != 0).sum())
        self.rows[at], self.neighbour_rows[at] = np.zeros(1, SIGNAL), -1
        self.summaries[at], self.seen[at] = np.zeros(1, SIGNAL_SUMMARY), 0.0

    def set_rows(self, at: I32, rows: Rows, neighbour_rows: I32) -> None:
        """Set the signals of the catalogue's rows `at` (n,): rows (n,) SIGNAL, neighbour_rows (n, MAX_NEIGHBOURS).

        If a row occurs twice, the later one counts.
        """
        self.grow_to_catalog()
        self.count += int((self.rows["item"][np.unique(at)] == 0).sum())
        self.rows[at] = rows
        self.neighbour_rows[at] = neighbour_rows
        summaries: Any = np.zeros(len(rows), SIGNAL_SUMMARY)
        for name in SIGNAL_SUMMARY.names or ():
            if name in (SIGNAL.names or ()):
                summaries[name] = rows[name]
        summaries["known"] = 1
        self.summaries[at], self.seen[at] = summaries, rows["seen"]
        if len(rows):
            self.clock = max(self.clock, float(rows["time"].max()))

    def grow_to_catalog(self) -> None:
        """Grow to the catalogue's capacity. Call it before a kernel reads both."""
        missing = len(self._catalog.items) - len(self.rows)
        if missing > 0:
            self.rows = np.concatenate([self.rows, np.zeros(missing, SIGNAL)])
            self.neighbour_rows = np.concatenate(
                [self.neighbour_rows, np.full((missing, MAX_NEIGHBOURS), -1, np.int32)]
            )
            self.summaries = np.concatenate([self.summaries, np.zeros(missing, SIGNAL_SUMMARY)])
            self.seen = np.concatenate([self.seen, np.zeros(missing, np.float32)])

    def trending(self, now: float) -> Trending:
        """Trending items at event time `now`, s; see `TrendingIndex.at`."""
        self.grow_to_catalog()
        return self._trending.at(now, self.summaries, self.clock)
