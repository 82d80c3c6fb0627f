"""Activity of items: what an interaction of a shopper means for the signals, and how it travels to the item's owner."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stream.events import ADD, BUY, CLICK, VIEW
from stream.jit import njit
from stream.profile.fold import fold_event

Rows = npt.NDArray[np.void]

STEPS = 10  # a transition is counted up to this many steps back, with weight 1 / step
SESSION_GAP = 1800.0  # s without activity end a session

SEEN, NEXT, BACK = 1, 2, 3  # kinds of activity: of the item itself; item -> other; other -> item
ACTIVITY = np.dtype(
    [
        ("item", "i8"),  # whose signals change: the owner's key
        ("other", "i8"),  # 0 for SEEN
        ("time", "f8"),
        ("offset", "i8"),  # of the source record: the owner skips what it has seen
        ("kind", "i1"),  # SEEN, NEXT, BACK
        ("event", "i1"),  # code of the event's kind
        ("step", "i1"),  # 1..STEPS; 0 for SEEN
        ("first", "i1"),  # 1 where this is the pair's (SEEN: the item's) first time in the session
        ("pad", "i1", 4),
    ]
)

GAP_KINDS = (VIEW, CLICK, ADD, BUY)


@njit
def _emit(out, at, item, other, time, offset, kind, event, step, first):  # type: ignore[no-untyped-def]
    a = out[at]
    a.item, a.other, a.time, a.offset = item, other, time, offset
    a.kind, a.event, a.step, a.first = kind, event, step, first


@njit
def _activity_of(p, e, offset, out, n):  # type: ignore[no-untyped-def]
    """The activity of one folded interaction, from the shopper's ring. -> number of rows written so far."""
    size = p.recent_item.shape[0]
    place = -1
    for j in range(size - 1, -1, -1):
        if p.recent_item[j] == e.item and p.recent_time[j] == e.time and p.recent_kind[j] == e.kind:
            place = j
            break
    if place < 0:
        # Older than a full ring: it counts for popularity, its session is forgotten.
        _emit(out, n, e.item, 0, e.time, offset, SEEN, e.kind, 0, 0)
        return n + 1
    seen_before = False
    start, time = place, e.time
    while start > 0 and p.recent_item[start - 1] != 0 and time - p.recent_time[start - 1] <= SESSION_GAP:
        start -= 1
        time = p.recent_time[start]
        if p.recent_item[start] == e.item:
            seen_before = True
    _emit(out, n, e.item, 0, e.time, offset, SEEN, e.kind, 0, 0 if seen_before else 1)
    n += 1
    # A click and the view that follows it, or a view and its addition to the cart, are one step of the session.
    step, later_item, later_kind = 0, e.item, e.kind
    for j in range(place - 1, start - 1, -1):
        item, kind = p.recent_item[j], p.recent_kind[j]
        if item == later_item and kind != later_kind:
            later_kind = kind
            continue
        step += 1
        later_item, later_kind = item, kind
        if step > STEPS:
            break
        if item == e.item:
            if step == 1:
                _emit(out, n, item, item, e.time, offset, NEXT, e.kind, step, 0)
                n += 1
            continue
        first = 0 if seen_before else 1
        for k in range(j + 1, place):
            if p.recent_item[k] == item:
                first = 0
        _emit(out, n, item, e.item, e.time, offset, NEXT, e.kind, step, first)
        _emit(out, n + 1, e.item, item, e.time, offset, BACK, e.kind, step, first)
        n += 2
    return n


@njit
def _fold_with_activity(profiles, who, events, offsets, fresh, out):  # type: ignore[no-untyped-def]
    n = 0
    for i in range(events.shape[0]):
        p, e = profiles[who[i]], events[i]
        fresh[i] = fold_event(p, e, i > 0 and fresh[i - 1])
        if fresh[i] and p.consent >= 0 and e.item != 0 and e.kind in GAP_KINDS:
            n = _activity_of(p, e, offsets[e.record], out, n)
    return n


def fold_with_activity(
    profiles: Rows, who: npt.NDArray[np.int32], events: Rows, offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], Rows]:
    """`profile.fold`, and what it means for the items' signals.

    profiles (S,) PROFILE in place; who (n,) int32; events (n,) EVENT; offsets of the run's records.
    -> fresh (n,) bool; (m,) ACTIVITY in order of offset. What each interaction means is read from the ring right after
    its fold: the session so far, from the shopper's own past.
    """
    fresh = np.empty(len(events), np.bool_)
    out = np.zeros((1 + 2 * STEPS) * len(events), ACTIVITY)
    return fresh, out[: _fold_with_activity(profiles, who, events, offsets, fresh, out)]


def owner(items: npt.NDArray[np.int64], partitions: int) -> npt.NDArray[np.int64]:
    """The partition of item-activity and item-signals that owns each item id. (n,) int64."""
    return (items & np.int64(0x7FFFFFFF)) % partitions


SOURCE = b"\x00src:"  # a key that starts so: up to where a source's activity is counted


def source_key(topic: str, partition: int) -> bytes:
    return b"%s%s:%d" % (SOURCE, topic.encode(), partition)


_HEAD = struct.Struct("<BHHI")
ACTIVITY_VERSION = 1


def encode_activity(source: str, partition: int, rows: Rows) -> bytes:
    """Activity of one run of `source` (topic, partition) for the items of one partition."""
    name = source.encode()
    return _HEAD.pack(ACTIVITY_VERSION, len(name), partition, len(rows)) + name + rows.tobytes()


def split_activity(rows: Rows, most: int) -> list[Rows]:
    """Activity in order of offset as stretches of about `most` rows that never part what one source record caused.

    The owner of the items skips, record by record, the offsets that it has counted.
    """
    if len(rows) <= most:
        return [rows]
    offsets = rows["offset"]
    # (k,) the first row of a new offset at or after each multiple of `most`.
    cuts = np.searchsorted(offsets, offsets[most::most], side="left")
    return [part for part in np.split(rows, np.unique(cuts)) if len(part)]


def decode_activity(value: bytes | None) -> tuple[str, int, Rows]:
    """-> source topic, its partition, (n,) ACTIVITY. Raises ValueError for anything that `encode_activity` did not write."""
    source, partition, data = _parts(value)
    rows = _activity(data)
    if problem := _problem(rows):
        raise ValueError(problem)
    return source, partition, rows


class Activity(NamedTuple):
    """What records of item-activity tell, in order."""

    sources: list[bytes]  # of each record: a key of `ItemTable.sources`
    rows: Rows  # (n,) ACTIVITY of all records
    ends: npt.NDArray[np.int64]  # (records,) where the rows of each end


def decode_activities(values: Sequence[bytes | None]) -> tuple[Activity, list[tuple[int, str]]]:
    """-> what the good ones tell; the indices of those that `encode_activity` did not write, and what is wrong with each."""
    kept: list[tuple[int, bytes, bytes]] = []
    rejects: list[tuple[int, str]] = []
    for at, value in enumerate(values):
        try:
            topic, partition, data = _parts(value)
        except ValueError as error:
            rejects.append((at, str(error)))
        else:
            kept.append((at, source_key(topic, partition), data))
    rows = _activity(b"".join(data for _, _, data in kept))
    if _problem(rows):
        problems = {at: problem for at, _, data in kept if (problem := _problem(_activity(data)))}
        rejects = sorted([*rejects, *problems.items()])
        kept = [one for one in kept if one[0] not in problems]
        rows = _activity(b"".join(data for _, _, data in kept))
    ends = np.cumsum([len(data) // ACTIVITY.itemsize for _, _, data in kept], dtype=np.int64)
    return Activity([source for _, source, _ in kept], rows, ends), rejects


def _parts(value: bytes | None) -> tuple[str, int, bytes]:
    """-> source topic, its partition, the bytes of its rows."""
    if value is None or len(value) < _HEAD.size:
        raise ValueError(f"{len(value or b'')} bytes are no activity")
    version, length, partition, count = _HEAD.unpack_from(value)
    start = _HEAD.size + length
    if version != ACTIVITY_VERSION or len(value) != start + count * ACTIVITY.itemsize:
        raise ValueError(f"activity of version {version} with {count} rows cannot have {len(value)} bytes")
    return value[_HEAD.size : start].decode("utf-8", "replace"), partition, value[start:]


def _activity(data: bytes) -> Rows:
    return np.ndarray(len(data) // ACTIVITY.itemsize, ACTIVITY, bytearray(data))


def _problem(rows: Rows) -> str | None:
    kind, step = rows["kind"], rows["step"]
    if ((kind < SEEN) | (kind > BACK) | (step < 0) | (step > STEPS)).any():
        return "activity with an unknown kind or step"
    if ((kind == NEXT) & (step < 1)).any() or not np.isfinite(rows["time"]).all():
        return "activity without a step or a time"
    return None
