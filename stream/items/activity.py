"""Activity of items: what a shopper's interaction adds to the signals of items, and how it travels to their owners."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stream.jit import njit
from stream.profile.fold import DUPLICATE, FOLDED, fold_event, is_covered
from stream.profile.repeats import (
    ALL_KINDS,
    SESSION_GAP_S,
    SESSION_KINDS,
    is_likely_robot,
    is_pair_before,
    kinds_before,
    utc_day,
)
from stream.types import I32, I64, U8, Bools, Row, Rows

MAX_STEPS = 10  # a transition is counted up to this many steps back, with weight 1 / step
# More events of one shopper in a minute mean a robot. The fastest of 21,210 recorded sessions has 18 clicks in a
# minute, and a click may come with a view and an addition to the cart.
ROBOT_EVENTS_PER_MINUTE = 60
# Why an interaction causes no activity; flags beside the outcomes of `fold_event`.
REPEATED, ROBOT, EXCLUDED = 8, 16, 32
WITHOUT_ACTIVITY = {"repeat": REPEATED, "robot": ROBOT, "excluded": EXCLUDED}  # by the reason that metrics give

# Kinds of activity: an interaction with the item; the transition item -> other; the transition other -> item.
INTERACTION, FOLLOWED_BY, PRECEDED_BY = 1, 2, 3
# One row of activity, as written to item-activity.
#
# field   unit              meaning
# item    key64             the item whose signals change; selects the owner
# other   key64             the other item of a transition; 0 for INTERACTION
# time    s, event time
# offset  source's offset   of the source record: the owner skips offsets that it has counted
# kind    code              INTERACTION, FOLLOWED_BY, PRECEDED_BY
# event   code              kind of the event
# step    steps             1..MAX_STEPS; 0 for INTERACTION
# first   0 or 1            1 for the shopper's first interaction with the item on its day and in its session
ACTIVITY = np.dtype(
    [
        ("item", "i8"),
        ("other", "i8"),
        ("time", "f8"),
        ("offset", "i8"),
        ("kind", "i1"),
        ("event", "i1"),
        ("step", "i1"),
        ("first", "i1"),
        ("pad", "i1", 4),
    ]
)


@njit
def _write_activity(
    out: Rows, at: int, item: int, other: int, time: float, offset: int, kind: int, event: int, step: int, first: int
) -> None:
    a = out[at]
    a.item, a.other, a.time, a.offset = item, other, time, offset
    a.kind, a.event, a.step, a.first = kind, event, step, first


@njit
def _place_in_ring(p: Row, e: Row) -> int:
    """Place of the folded interaction in the ring of recent interactions; -1 if it is older than a full ring."""
    for j in range(p.recent_item.shape[0] - 1, -1, -1):
        if p.recent_item[j] == e.item and p.recent_time[j] == e.time and p.recent_kind[j] == e.kind:
            return j
    return -1


@njit
def _write_activity_of(p: Row, e: Row, offset: int, out: Rows, n: int) -> int:
    """Write the activity of one folded interaction to out[n:], and return the new n; the same n for a repetition.

    p: PROFILE row right after the fold, so its ring holds the session up to the event; e: EVENT row. Oracles:
    test_transitions_and_co_visits_equal_those_of_the_sessions and tests/unit/stream/items/test_influence.py.
    """
    place = _place_in_ring(p, e)
    # Older than everything in a full ring: whether it is a repetition, and its session, are no longer known.
    before = ALL_KINDS if place < 0 else kinds_before(p, place)
    if before == ALL_KINDS:
        return n
    is_in_session = False
    start, time = place, e.time
    while start > 0 and p.recent_item[start - 1] != 0 and time - p.recent_time[start - 1] <= SESSION_GAP_S:
        start -= 1
        time = p.recent_time[start]
        if p.recent_item[start] == e.item:
            is_in_session = True
    is_first = 0 if before != 0 or is_in_session else 1
    if not before >> e.kind & 1:
        _write_activity(out, n, e.item, 0, e.time, offset, INTERACTION, e.kind, 0, is_first)
        n += 1
    # The ring has lost interactions of the day: which pairs the earlier visits of the item made is not known.
    if before != 0 and utc_day(e.time) <= p.overflow_day:
        return n
    # A click and the view that follows it, or a view and its addition to the cart, are one step of the session.
    step, later_item, later_kind = 0, e.item, e.kind
    for j in range(place - 1, start - 1, -1):
        item, kind = p.recent_item[j], p.recent_kind[j]
        if item == later_item and kind != later_kind:
            later_kind = kind
            continue
        step += 1
        later_item, later_kind = item, kind
        if step > MAX_STEPS:
            break
        if item == e.item and step > 1:
            continue
        is_repeated = before != 0 and is_pair_before(p, item, place)
        # Of an item that occurs several times, only the fewest steps count.
        for k in range(j + 1, place):
            is_repeated = is_repeated or p.recent_item[k] == item
        if is_repeated:
            continue
        if item == e.item:
            _write_activity(out, n, item, item, e.time, offset, FOLLOWED_BY, e.kind, step, 0)
            n += 1
            continue
        _write_activity(out, n, item, e.item, e.time, offset, FOLLOWED_BY, e.kind, step, is_first)
        _write_activity(out, n + 1, e.item, item, e.time, offset, PRECEDED_BY, e.kind, step, is_first)
        n += 2
    return n


@njit
def _fold_with_activity(
    profiles: Rows, profile_of: I32, events: Rows, offsets: I64, refuses_late: bool, robot_events: int,
    is_excluded: Bools, outcomes: U8, out: Rows,
) -> int:  # fmt: skip
    """Kernel of `fold_with_activity`: fills outcomes (n,) and out, and returns the number of activity rows."""
    n, outcome = 0, DUPLICATE
    for i in range(events.shape[0]):
        p, e = profiles[profile_of[i]], events[i]
        outcome = fold_event(p, e, outcome, refuses_late)
        outcomes[i] = outcome
        if not (outcome & FOLDED and is_covered(p, e.time) and e.item != 0 and e.kind in SESSION_KINDS):
            continue
        if is_excluded[i]:
            outcomes[i] |= EXCLUDED
        elif is_likely_robot(p, e.time, robot_events):
            outcomes[i] |= ROBOT
        else:
            end = _write_activity_of(p, e, offsets[e.record], out, n)
            if end == n:
                outcomes[i] |= REPEATED
            n = end
    return n


def fold_with_activity(
    profiles: Rows, profile_of: I32, events: Rows, offsets: I64, refuses_late: bool = False,
    robot_events: int = ROBOT_EVENTS_PER_MINUTE, is_excluded: Bools | None = None,
) -> tuple[U8, Rows]:  # fmt: skip
    """Fold events into profiles like `profile.fold`, and return the activity that they cause.

    profiles (S,) PROFILE, changed in place; profile_of (n,): the profile of each event; events (n,) EVENT; offsets: of
    the run's records; refuses_late: as in `fold_event`; robot_events: events in a minute above which a shopper is
    likely a robot, 0 for never; is_excluded (n,): events that cause no activity, by default none. Returns (n,) outcomes
    as of `fold_event`, with REPEATED, ROBOT or EXCLUDED for an interaction without activity, and (m,) ACTIVITY in order
    of offset. The activity of an event is read from the shopper's ring right after its fold: it depends only on the
    shopper's own behaviour so far.
    """
    outcomes = np.empty(len(events), np.uint8)
    out = np.zeros((1 + 2 * MAX_STEPS) * len(events), ACTIVITY)
    if is_excluded is None:
        is_excluded = np.zeros(len(events), np.bool_)
    n = _fold_with_activity(
        profiles, profile_of, events, offsets, refuses_late, robot_events, is_excluded, outcomes, out
    )
    return outcomes, out[:n]


def owner_partitions(items: I64, partitions: int) -> I64:
    """Partition of item-activity and item-signals that owns each item id (key64). (n,) -> (n,)."""
    return (items & np.int64(0x7FFFFFFF)) % partitions


SOURCE_PREFIX = b"\x00src:"  # of changelog keys whose value is the next offset to count of a source


def source_key(topic: str, partition: int) -> bytes:
    """Changelog key of a source of activity."""
    return b"%s%s:%d" % (SOURCE_PREFIX, topic.encode(), partition)


_HEAD = struct.Struct("<BHHI")  # version, length of the topic's name, partition, number of rows
ACTIVITY_VERSION = 1


def encode_activity(source: str, partition: int, rows: Rows) -> bytes:
    """Value of an item-activity record: (n,) ACTIVITY rows caused by one partition of the topic `source`."""
    name = source.encode()
    return _HEAD.pack(ACTIVITY_VERSION, len(name), partition, len(rows)) + name + rows.tobytes()


def split_activity(rows: Rows, max_rows: int) -> list[Rows]:
    """Split (n,) ACTIVITY, in order of offset, into parts of about `max_rows` rows.

    Rows of one source record stay in one part: the owner skips the offsets that it has counted.
    """
    if len(rows) <= max_rows:
        return [rows]
    offsets = rows["offset"]
    # (k,) the first row of a new offset at or after each multiple of `max_rows`.
    cuts = np.searchsorted(offsets, offsets[max_rows::max_rows], side="left")
    return [part for part in np.split(rows, np.unique(cuts)) if len(part)]


def decode_activity(value: bytes | None) -> tuple[str, int, Rows]:
    """Source topic, its partition, and (n,) ACTIVITY. Raises ValueError for bytes not written by `encode_activity`."""
    source, partition, data = _split_value(value)
    rows = _activity_rows(data)
    if problem := _problem(rows):
        raise ValueError(problem)
    return source, partition, rows


class ActivityBatch(NamedTuple):
    """Activity of several records of item-activity, in order."""

    sources: list[bytes]  # of each record: a key of `ItemTable.sources`
    rows: Rows  # (n,) ACTIVITY of all records
    ends: I64  # (records,) end of each record's rows


def decode_activities(values: Sequence[bytes | None]) -> tuple[ActivityBatch, list[tuple[int, str]]]:
    """Activity of the valid records, and for each invalid record its index and what is wrong with it."""
    kept: list[tuple[int, bytes, bytes]] = []
    rejects: list[tuple[int, str]] = []
    for at, value in enumerate(values):
        try:
            topic, partition, data = _split_value(value)
        except ValueError as error:
            rejects.append((at, str(error)))
        else:
            kept.append((at, source_key(topic, partition), data))
    rows = _activity_rows(b"".join(data for _, _, data in kept))
    if _problem(rows):
        problems = {at: problem for at, _, data in kept if (problem := _problem(_activity_rows(data)))}
        rejects = sorted([*rejects, *problems.items()])
        kept = [one for one in kept if one[0] not in problems]
        rows = _activity_rows(b"".join(data for _, _, data in kept))
    ends = np.cumsum([len(data) // ACTIVITY.itemsize for _, _, data in kept], dtype=np.int64)
    return ActivityBatch([source for _, source, _ in kept], rows, ends), rejects


def _split_value(value: bytes | None) -> tuple[str, int, bytes]:
    """Source topic, its partition, and the bytes of the rows."""
    if value is None or len(value) < _HEAD.size:
        raise ValueError(f"a value of {len(value or b'')} bytes is too short for item activity")
    version, length, partition, count = _HEAD.unpack_from(value)
    start = _HEAD.size + length
    if version != ACTIVITY_VERSION or len(value) != start + count * ACTIVITY.itemsize:
        raise ValueError(f"item activity of version {version} with {count} rows cannot have {len(value)} bytes")
    return value[_HEAD.size : start].decode("utf-8", "replace"), partition, value[start:]


def _activity_rows(data: bytes) -> Rows:
    return np.ndarray(len(data) // ACTIVITY.itemsize, ACTIVITY, bytearray(data))


def _problem(rows: Rows) -> str | None:
    """What is wrong with (n,) ACTIVITY, or None."""
    kind, step = rows["kind"], rows["step"]
    if ((kind < INTERACTION) | (kind > PRECEDED_BY) | (step < 0) | (step > MAX_STEPS)).any():
        return "item activity has an unknown kind, or a step outside its range"
    if ((kind == FOLLOWED_BY) & (step < 1)).any() or not np.isfinite(rows["time"]).all():
        return "item activity has a transition without a step, or a non-finite time"
    return None
