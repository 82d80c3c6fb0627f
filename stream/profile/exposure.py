"""What was served: the version of a shopper's page, the items it showed, and the fatigue of items shown in vain."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.events import ADD, BUY, CLICK, HOME, VIEW
from stream.jit import njit

Rows = npt.NDArray[np.void]
FATIGUE_HALF_LIFE = 86_400.0  # s

# Of a page, as many items are remembered as can tire.
SHOWN, FATIGUE, OWED_ID = 24, 24, 64
SERVING_VERSION = 3
# What was served to the shopper. It depends on how events were batched, so it lives beside the profile, not in it.
# Items by the low half of their id, as in `hidden_item`.
SERVING = np.dtype(
    [
        ("version", "i8"),  # of the last page published
        ("touched", "i4"),  # s, the partition's event time when she was last seen; 0 never, or refused consent
        ("pad", "i4"),
        ("paged_at", "f8"),  # s, when the last page was made; only while pages are paced, else 0
        ("owed_time", "f8"),  # s, event time of the newest event whose page is owed; 0 none is
        ("owed_id", "i4", OWED_ID // 4),  # that event's id in UTF-8
        ("shown_item", "i4", SHOWN),  # items of that page
        ("fatigue_item", "i4", FATIGUE),  # shown at a view of the homepage and not taken since
        ("fatigue_count", "f4", FATIGUE),
        ("fatigue_time", "i4", FATIGUE),
    ]
)
_SERVED: list[Any] = [
    ("version", "i8"),
    ("shown_item", "i8", 40),
    ("fatigue_item", "i8", 24),
    ("fatigue_count", "f4", 24),
    ("fatigue_time", "i4", 24),
]
_OWED: list[Any] = [("paged_at", "f8"), ("owed_time", "f8"), ("owed_id", "i4", 16)]
SERVING_BEFORE = {1: np.dtype(_SERVED), 2: np.dtype(_SERVED + _OWED)}  # dtypes of older rows, by version


@njit
def _tire(row, item, time):  # type: ignore[no-untyped-def]
    """Count one showing of `item`; the weakest entry makes room."""
    slot, weakest, least = -1, 0, np.inf
    for j in range(row.fatigue_item.shape[0]):
        if row.fatigue_item[j] == item:
            slot = j
            break
        strength = 0.0
        if row.fatigue_item[j] != 0:
            strength = row.fatigue_count[j] * 2.0 ** -(max(0.0, time - row.fatigue_time[j]) / FATIGUE_HALF_LIFE)
        if strength < least:
            weakest, least = j, strength
    if slot < 0:
        slot = weakest
        row.fatigue_item[slot] = item
        row.fatigue_count[slot] = 0.0
        row.fatigue_time[slot] = np.int32(time)
    age = max(0.0, time - row.fatigue_time[slot])
    row.fatigue_count[slot] = row.fatigue_count[slot] * 2.0 ** -(age / FATIGUE_HALF_LIFE) + 1.0
    row.fatigue_time[slot] = max(row.fatigue_time[slot], np.int32(time))


@njit
def _rest(row, item):  # type: ignore[no-untyped-def]
    for j in range(row.fatigue_item.shape[0]):
        if row.fatigue_item[j] == item:
            row.fatigue_item[j] = 0
            row.fatigue_count[j] = 0.0
            row.fatigue_time[j] = 0


@njit
def show(serving, placed, count, items):  # type: ignore[no-untyped-def]
    """In place: remember the items of each page. serving (S,) SERVING; placed (S, POSITIONS) PLACED; count (S,)."""
    for u in range(serving.shape[0]):
        for j in range(serving[u].shown_item.shape[0]):
            serving[u].shown_item[j] = np.int32(items[placed[u, j].row].id) if j < count[u] else np.int32(0)


@njit
def react(serving, who, events, fresh):  # type: ignore[no-untyped-def]
    """In place: a look at the homepage tires the items that it showed; an item that is taken is fresh again.

    serving (S,) SERVING; who (n,) int32; events (n,) EVENT in order; fresh (n,) bool.
    """
    for e in range(events.shape[0]):
        if not fresh[e]:
            continue
        row = serving[who[e]]
        kind = events[e].kind
        if kind == HOME:
            if events[e].part == 0:
                for j in range(row.shown_item.shape[0]):
                    if row.shown_item[j] != 0:
                        _tire(row, row.shown_item[j], events[e].time)
        elif kind in (VIEW, CLICK, ADD, BUY):
            _rest(row, np.int32(events[e].item))


@njit
def touch(serving, profiles, who, events, fresh, clock, newest):  # type: ignore[no-untyped-def]
    """In place: note when each shopper was last seen, by the clock of her partition; nothing of who refused consent.

    serving, profiles: rows of all that `who` (n,) names; events (n,) EVENT and fresh (n,) bool in order; clock: s, the
    newest event time that the partition has seen before. newest (S,) int64 becomes the row of the newest fresh event of
    the first S, of equals the last; -1 where none is. -> the clock after them.
    """
    newest[:] = -1
    for i in range(events.shape[0]):
        clock = max(clock, events[i].time)
        if not fresh[i]:
            continue
        s = who[i]
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
def _turn(serving, profiles, shopper, newest, paged_at, share, default_locale, now, personal, locales, seeds):  # type: ignore[no-untyped-def]
    for u in range(serving.shape[0]):
        p, row = profiles[u], serving[u]
        row.version += 1
        row.owed_time = 0.0
        row.owed_id[:] = 0
        row.paged_at = 0.0 if p.consent < 0 else paged_at
        now[u] = max(p.last_seen, newest[u])
        popular = (shopper[u] & 0x7FFFFFFF) / 2.0**31 < share
        personal[u] = not popular and p.consent >= 0 and p.recent_item[p.recent_item.shape[0] - 1] != 0
        locales[u] = p.locale if p.locale != 0 else default_locale
        seeds[u] = shopper[u] ^ (row.version * -7046029254386353131)


def turn(
    serving: Rows,
    profiles: Rows,
    shopper: npt.NDArray[np.int64],
    newest: Sequence[float],
    paged_at: float,
    popular_share: float,
    default_locale: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """In place: the next version of each shopper's page, which settles what was owed.

    serving (S,) SERVING; profiles (S,) PROFILE; shopper (S,) key64; newest (S,) time of the newest event that came, s;
    paged_at: what theirs becomes, 0 where consent is refused.
    -> now (S,) s, one time a shopper, her newest event: a page is the same to the bit alone and in any batch; whether it is
    a personal page; the code of its locale; the seed of its draw.
    """
    n = len(serving)
    now, personal = np.array(newest, np.float64), np.empty(n, np.bool_)
    locales, seeds = np.empty(n, np.int8), np.empty(n, np.int64)
    _turn(
        serving, profiles, shopper, now, paged_at, popular_share, default_locale, now, personal, locales, seeds,
    )  # fmt: skip
    return now, personal, locales, seeds


@njit
def _lapses(touched, who, times, clock, ttl, out):  # type: ignore[no-untyped-def]
    for i in range(who.shape[0]):
        s = who[i]
        clock = max(clock, times[i])
        if touched[s] > 0 and clock - touched[s] > ttl:
            out[s] = i
        touched[s] = np.int32(clock)


def lapses(
    touched: npt.NDArray[np.int32],
    who: npt.NDArray[np.int32],
    times: npt.NDArray[np.float64],
    clock: float,
    ttl: float,
) -> npt.NDArray[np.int64]:
    """Which of a run's events finds its shopper expired, so that she begins anew with it.

    touched (S,) as in SERVING; who (n,) shopper of each event; times (n,) s, its event time; clock: s, the newest event
    time that the partition has seen before.
    -> (S,) the last such event, -1 where there is none. Depends on the order in the partition, not on runs, but for
    duplicates, which count as a sign of life until their run ends.
    """
    out = np.full(len(touched), -1, np.int64)
    _lapses(touched.copy(), who, times, clock, ttl, out)
    return out
