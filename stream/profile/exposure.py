"""What a shopper was shown: the version of their page, the items on it, and the fatigue of items that they ignored."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stream.decay import decay_factor
from stream.events.decode import ADD, BUY, CLICK, HOME, VIEW
from stream.jit import njit
from stream.profile.fold import is_covered
from stream.types import F64, I8, I32, I64, Bools, Row, Rows

FATIGUE_HALF_LIFE_S = 86_400.0

# As many items of a page are remembered as can have fatigue.
SHOWN_ITEMS, FATIGUE_ITEMS = 24, 24
OWED_ID_BYTES = 64
SERVING_VERSION = 3
# Serving state depends on how events were batched. It is therefore stored beside the profile, not in it.
# Items are the low 32 bits of their key64, as in `hidden_item` of a profile.
SERVING = np.dtype(
    [
        ("version", "i8"),  # of the last published page, see `next_page`; 0 if there is none
        ("touched", "i4"),  # s, the partition's event time when the shopper was last seen; 0 never, or consent refused
        ("pad", "i4"),
        ("paged_at", "f8"),  # s, time of the last page; 0 unless pages are paced
        ("owed_time", "f8"),  # s, event time of the newest event whose page is deferred; 0 if none is
        ("owed_id", "i4", OWED_ID_BYTES // 4),  # id of that event in UTF-8; 0 if none
        ("shown_item", "i4", SHOWN_ITEMS),  # items of the last page; 0 empty
        ("fatigue_item", "i4", FATIGUE_ITEMS),  # items shown at a homepage view and not taken since; 0 empty
        ("fatigue_count", "f4", FATIGUE_ITEMS),  # decayed showings of each
        ("fatigue_time", "i4", FATIGUE_ITEMS),  # s, time that each count is decayed to
    ]
)
_VERSION_1: list[Any] = [
    ("version", "i8"),
    ("shown_item", "i8", 40),
    ("fatigue_item", "i8", 24),
    ("fatigue_count", "f4", 24),
    ("fatigue_time", "i4", 24),
]
_ADDED_BY_VERSION_2: list[Any] = [("paged_at", "f8"), ("owed_time", "f8"), ("owed_id", "i4", 16)]
# Dtypes of rows that earlier releases wrote, by version.
OLD_SERVING_DTYPES = {1: np.dtype(_VERSION_1), 2: np.dtype(_VERSION_1 + _ADDED_BY_VERSION_2)}


@njit
def _add_fatigue(row: Row, item: int, time: float) -> None:
    """Count one showing of `item` in SERVING row `row`, in place. A full table evicts the lowest decayed count.

    Oracle: `with_feedback` in tests/unit/stream/profile/test_exposure.py.
    """
    slot, weakest, lowest = -1, 0, np.inf
    for j in range(row.fatigue_item.shape[0]):
        if row.fatigue_item[j] == item:
            slot = j
            break
        count = 0.0
        if row.fatigue_item[j] != 0:
            age = max(0.0, time - row.fatigue_time[j])
            count = row.fatigue_count[j] * decay_factor(age, FATIGUE_HALF_LIFE_S)
        if count < lowest:
            weakest, lowest = j, count
    if slot < 0:
        slot = weakest
        row.fatigue_item[slot] = item
        row.fatigue_count[slot] = 0.0
        row.fatigue_time[slot] = np.int32(time)
    age = max(0.0, time - row.fatigue_time[slot])
    row.fatigue_count[slot] = row.fatigue_count[slot] * decay_factor(age, FATIGUE_HALF_LIFE_S) + 1.0
    row.fatigue_time[slot] = max(row.fatigue_time[slot], np.int32(time))


@njit
def _clear_fatigue(row: Row, item: int) -> None:
    """Remove the fatigue of `item` from SERVING row `row`, in place."""
    for j in range(row.fatigue_item.shape[0]):
        if row.fatigue_item[j] == item:
            row.fatigue_item[j] = 0
            row.fatigue_count[j] = 0.0
            row.fatigue_time[j] = 0


@njit
def remember_shown(serving: Rows, placed: Rows, count: I32, items: Rows) -> None:
    """Store the items of each page in its SERVING row, in place.

    serving (S,) SERVING; placed (S, MAX_PAGE_ITEMS) PLACED; count (S,) items placed; items (I,) ITEM.
    """
    for u in range(serving.shape[0]):
        for j in range(serving[u].shown_item.shape[0]):
            serving[u].shown_item[j] = np.int32(items[placed[u, j].row].id) if j < count[u] else np.int32(0)


@njit
def _forget_exposure(row: Row) -> None:
    """Clear the items shown and all fatigue of SERVING row `row`, in place."""
    row.shown_item[:] = 0
    row.fatigue_item[:] = 0
    row.fatigue_count[:] = 0.0
    row.fatigue_time[:] = 0


@njit
def apply_feedback(serving: Rows, profiles: Rows, row_of: I32, events: Rows, fresh: Bools) -> None:
    """Update fatigue, in place: a homepage view adds it to the items shown, an interaction clears it for its item.

    A refusal of consent clears the exposure before it. Events that consent does not cover add nothing.
    serving (S,) SERVING; profiles (S,) PROFILE after the fold of the events; row_of (n,) int32 row of each event's
    shopper; events (n,) EVENT in order; fresh (n,) bool, False for duplicates.
    """
    for e in range(events.shape[0]):
        if not fresh[e]:
            continue
        row = serving[row_of[e]]
        kind = events[e].kind
        if events[e].part == 0 and events[e].consent < 0:
            _forget_exposure(row)
        if not is_covered(profiles[row_of[e]], events[e].time):
            continue
        if kind == HOME:
            if events[e].part == 0:
                for j in range(row.shown_item.shape[0]):
                    if row.shown_item[j] != 0:
                        _add_fatigue(row, row.shown_item[j], events[e].time)
        elif kind in (VIEW, CLICK, ADD, BUY):
            _clear_fatigue(row, np.int32(events[e].item))


@njit
def touch(serving: Rows, profiles: Rows, row_of: I32, events: Rows, fresh: Bools, clock: float, newest: I64) -> float:
    """Record when each shopper was last seen, in event time of the partition. Return that time after the events.

    serving (R,) SERVING, mutated, and profiles (R,) PROFILE; row_of (n,) the row of each event's shopper;
    events (n,) EVENT in order; fresh (n,) bool; clock, s: newest event time of the partition so far.
    newest (S,), S <= R, is filled with the index of each shopper's newest fresh event, of equal times the last;
    -1 if there is none. A shopper who refuses consent gets 0 as the time when they were last seen.
    """
    newest[:] = -1
    for i in range(events.shape[0]):
        clock = max(clock, events[i].time)
        if not fresh[i]:
            continue
        s = row_of[i]
        serving[s].touched = np.int32(clock)
        if events[i].part != 0 or s >= newest.shape[0]:
            continue
        if newest[s] < 0 or events[i].time >= events[newest[s]].time:
            newest[s] = i
    for s in range(newest.shape[0]):
        if profiles[s].consent < 0:
            serving[s].touched = 0
    return clock


@njit
def _next_page(
    serving: Rows, profiles: Rows, shopper: I64, newest: F64, first_arrivals: F64, paged_at: float, share: float,
    default_locale: int, now: F64, personal: Bools, locales: I8, seeds: I64,
) -> None:  # fmt: skip
    """See `next_page`. Fills now, personal, locales and seeds, each (S,)."""
    for u in range(serving.shape[0]):
        p, row = profiles[u], serving[u]
        row.version = max(row.version + 1, np.int64(np.rint(first_arrivals[u] * 1e3)))
        row.owed_time = 0.0
        row.owed_id[:] = 0
        row.paged_at = 0.0 if p.consent < 0 else paged_at
        now[u] = max(p.last_seen, newest[u])
        popular = (shopper[u] & 0x7FFFFFFF) / 2.0**31 < share
        personal[u] = not popular and p.consent >= 0 and p.recent_item[p.recent_item.shape[0] - 1] != 0
        locales[u] = p.locale if p.locale != 0 else default_locale
        seeds[u] = shopper[u] ^ (row.version * -7046029254386353131)


def next_page(
    serving: Rows,
    profiles: Rows,
    shopper: I64,
    newest: Sequence[float],
    first_arrivals: Sequence[float],
    paged_at: float,
    popular_share: float,
    default_locale: int,
) -> tuple[F64, Bools, I8, I64]:
    """Advance each shopper to the next version of their page, in place. A deferred page is no longer owed.

    serving (S,) SERVING, mutated; profiles (S,) PROFILE; shopper (S,) key64; newest (S,) time of the newest event that
    arrived, s; first_arrivals (S,) timestamp of the record of the first one, s, 0 without events; paged_at, s: stored
    as the time of this page unless consent is refused.

    A version is the first arrival in ms, or the previous version plus one if that is larger. So versions also rise from
    the last page before a profile was deleted to the first one afterwards.

    Return four arrays (S,): now, s; whether the page is personal; the code of its locale; the seed of its exploration.
    `now` is the time of the shopper's newest event, so that a page has the same bytes in every batch.
    """
    n = len(serving)
    now, personal = np.array(newest, np.float64), np.empty(n, np.bool_)
    arrivals = np.array(first_arrivals, np.float64)
    locales, seeds = np.empty(n, np.int8), np.empty(n, np.int64)
    _next_page(
        serving, profiles, shopper, now, arrivals, paged_at, popular_share, default_locale, now, personal, locales,
        seeds,
    )  # fmt: skip
    return now, personal, locales, seeds


@njit
def _expired(touched: I32, row_of: I32, times: F64, clock: float, ttl: float, out: I64) -> None:
    """See `expired`. Fills out (S,) and mutates touched. Oracle: tests/unit/agents/page/test_expiry.py."""
    for i in range(row_of.shape[0]):
        s = row_of[i]
        clock = max(clock, times[i])
        if touched[s] > 0 and clock - touched[s] > ttl:
            out[s] = i
        touched[s] = np.int32(clock)


def expired(touched: I32, row_of: I32, times: F64, clock: float, ttl: float) -> I64:
    """Index (S,) of the last event that finds its shopper's profile expired; -1 if there is none.

    The profile starts blank with that event. touched (S,) as in SERVING; row_of (n,) the shopper of each event;
    times (n,) its event time, s; clock, s: newest event time of the partition so far; ttl, s.

    The result depends on the order in the partition, not on how it is cut into runs. One exception: until their run
    ends, duplicates count as a sign of life.
    """
    out = np.full(len(touched), -1, np.int64)
    _expired(touched.copy(), row_of, times, clock, ttl, out)
    return out
