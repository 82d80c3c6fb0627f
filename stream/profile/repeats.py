"""What a shopper did before on the same day, and how fast: it decides which interactions count for other shoppers.

A day is a day in UTC, of event time. The ring of recent interactions tells what was before. Interactions that have left
the ring are kept as bits by hash, for the newest of their days only. A collision of hashes therefore makes a new
interaction look like a repetition, but never the other way round.
Oracle of the kernels: tests/unit/stream/items/test_influence.py.
"""

import numpy as np

from stream.events.decode import ADD, BUY, CLICK, VIEW
from stream.jit import njit
from stream.types import Row

DAY_S, MINUTE_S = 86_400.0, 60
SESSION_GAP_S = 1800.0  # inactivity that ends a session
SESSION_KINDS = (VIEW, CLICK, ADD, BUY)  # kinds of events that are steps of a session: interactions
ALL_KINDS = -1  # as a set of kinds


@njit
def utc_day(time: float) -> int:
    """Days from the epoch to `time`, in seconds."""
    return np.int64(time / DAY_S)  # type: ignore[return-value]


@njit
def _overflow_bit(p: Row, item: int, kind: int) -> int:
    """Place in `overflow` of an item (key64) and kind: bits of the item's hash, other ones for each kind."""
    return (item >> (6 * kind)) & (8 * p.overflow.shape[0] - 1)  # type: ignore[no-any-return]


@njit
def add_to_overflow(p: Row, item: int, time: float, kind: int) -> None:
    """Note an interaction that is not, or no longer, in the ring. Only those of the newest day are kept. Mutates p."""
    day = utc_day(time)
    if day > p.overflow_day:
        p.overflow_day = day
        p.overflow[:] = 0
    if day == p.overflow_day:
        bit = _overflow_bit(p, item, kind)
        p.overflow[bit >> 3] |= 1 << (bit & 7)


@njit
def kinds_before(p: Row, place: int) -> int:
    """Kinds of the other interactions of the same day with the item at `place` of the ring: a set, bit by kind.

    ALL_KINDS if they are no longer known: for a day that is older than one of which the ring has lost interactions, and
    for a day on which behaviour was erased because consent was refused.
    """
    item, day = p.recent_item[place], utc_day(p.recent_time[place])
    if day < p.overflow_day or (p.refused_time != 0.0 and day <= utc_day(p.granted_time)):
        return ALL_KINDS
    kinds = 0
    for j in range(p.recent_item.shape[0]):
        if j != place and p.recent_item[j] == item and utc_day(p.recent_time[j]) == day:
            kinds |= 1 << p.recent_kind[j]
    if day == p.overflow_day:
        for kind in SESSION_KINDS:
            bit = _overflow_bit(p, item, kind)
            if p.overflow[bit >> 3] >> (bit & 7) & 1:
                kinds |= 1 << kind
    return kinds


@njit
def is_pair_before(p: Row, other: int, place: int) -> bool:
    """True if `other` comes before another interaction of the same day with the item at `place`, in one session.

    Also if this is not known, because the ring may have lost interactions of the session. The ring must hold all
    interactions of the day.
    """
    item, day = p.recent_item[place], utc_day(p.recent_time[place])
    for k in range(p.recent_item.shape[0]):
        if k == place or p.recent_item[k] != item or utc_day(p.recent_time[k]) != day:
            continue
        j = k
        while j > 0 and p.recent_item[j - 1] != 0 and p.recent_time[j] - p.recent_time[j - 1] <= SESSION_GAP_S:
            j -= 1
            if p.recent_item[j] == other:
                return True
        if j == 0:
            return True
    return False


@njit
def is_likely_robot(p: Row, time: float, per_minute: int) -> bool:
    """True if the ring of event ids has more than `per_minute` events in a minute; 0: never.

    Minutes that ended more than a day before `time`, in seconds, do not count.
    """
    if per_minute == 0:
        return False
    for newest in range(p.id_time.shape[0] - 1, per_minute - 1, -1):
        oldest = p.id_time[newest - per_minute]
        if oldest == 0 or p.id_time[newest] < time - DAY_S:
            return False
        if p.id_time[newest] - oldest < MINUTE_S:
            return True
    return False
