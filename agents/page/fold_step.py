"""What a step has to do in a partition, and who gets a page of it: events folded into rows, pages owed, shoppers who lapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from agents.page.headline_cache import Refresh
from stream.degradation import Degradation
from stream.events import EVENT, Decoded
from stream.items.activity import ACTIVITY, fold_with_activity
from stream.profile.codec import decode_records
from stream.profile.exposure import OWED_ID_BYTES, SERVING, expired, apply_feedback, touch
from stream.profile.row import PROFILE
from stream.row_codec import rows_at

Rows = npt.NDArray[np.void]
NO_EVENT, NO_ACTIVITY = np.zeros(0, np.bool_), np.zeros(0, ACTIVITY)


class Trigger(NamedTuple):
    event_id: str
    event_time: float


class PartitionInput(NamedTuple):
    """What a step has to do in one partition: a run of events, or pages to make once more."""

    stored: Mapping[bytes, bytes]  # changelog values by shopper key
    decoded: Decoded = Decoded(np.zeros(0, EVENT), [], [], [], 0)
    offsets: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # (records,)
    refreshes: Mapping[bytes, Refresh] = {}
    clock: float = 0.0  # s, the newest event time that the partition has seen before


class Folded(NamedTuple):
    """The shoppers of one part who get a page, in parallel."""

    keys: list[bytes]
    places: list[int]  # of each among the part's shoppers
    triggers: list[Trigger]
    fresh: npt.NDArray[np.bool_]
    activity: Rows
    clock: float
    lapsed: Sequence[bytes] = ()


def folded(parts: Sequence[PartitionInput], shed: Degradation, ttl: float) -> tuple[list[Folded], Rows, Rows]:
    """Who gets a page of each part, and of all of them, part after part, profiles (S,) PROFILE and serving (S,) SERVING.

    The rows of all parts lie in common arrays from the start: to join such arrays costs more than to fold.
    """
    keys = [_shoppers(part) for part in parts]
    profiles, serving = decode_records(
        [part.stored.get(key) for part, mine in zip(parts, keys, strict=True) for key in mine]
    )
    found: list[Folded] = []
    places: list[int] = []  # among all
    start = 0
    for part, mine in zip(parts, keys, strict=True):
        these = slice(start, start + len(mine))
        if part.refreshes:
            one = _to_refresh(part, mine, serving[these], shed, ttl)
        else:
            one = _fold(part, mine, profiles[these], serving[these], ttl)
        found.append(one)
        places.extend(start + at for at in one.places)
        start = these.stop
    if len(places) < start:
        profiles, serving = rows_at(profiles, places), rows_at(serving, places)
    return found, profiles, serving


def _shoppers(part: PartitionInput) -> list[bytes]:
    """Keys whose rows the part needs, each once."""
    if part.refreshes:
        return [key for key in part.refreshes if key in part.stored]
    return [key for key in dict.fromkeys(part.decoded.keys) if key]


def _fold(part: PartitionInput, keys: list[bytes], profiles: Rows, serving: Rows, ttl: float) -> Folded:
    """Fold the part's events into its rows, in place."""
    decoded, rows = part.decoded, part.decoded.rows
    place_of = {key: at for at, key in enumerate(keys)}
    records, times = rows["record"].tolist(), rows["time"]
    who = np.array([place_of[decoded.keys[record]] for record in records], np.int32)  # (n,)
    lapsed: list[bytes] = []
    if ttl:
        began = expired(serving["touched"], who, times, part.clock, ttl)
        lapsed = [key for key, at in zip(keys, began.tolist(), strict=True) if at >= 0]
    newest = np.empty(len(keys), np.int64)
    if lapsed:
        room, room_serving, who = _begun_anew(profiles, serving, who, began)
        fresh, activity, clock = _fold_into(room, room_serving, who, part, newest)
        profiles[:], serving[:] = room[: len(keys)], room_serving[: len(keys)]
    else:
        fresh, activity, clock = _fold_into(profiles, serving, who, part, newest)
    of = newest.tolist()
    places = [s for s, at in enumerate(of) if at >= 0]
    seconds = times.tolist()
    triggers = [Trigger(decoded.ids[records[of[s]]], seconds[of[s]]) for s in places]
    return Folded([keys[s] for s in places], places, triggers, fresh, activity, clock, lapsed)


def _fold_into(
    profiles: Rows, serving: Rows, who: npt.NDArray[np.int32], part: PartitionInput, newest: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.bool_], Rows, float]:
    """-> which events were fresh, the items' activity, the partition's clock; `newest` as `touch` fills it."""
    rows = part.decoded.rows
    fresh, activity = fold_with_activity(profiles, who, rows, part.offsets)
    apply_feedback(serving, who, rows, fresh)
    return fresh, activity, touch(serving, profiles, who, rows, fresh, part.clock, newest)


def _begun_anew(
    profiles: Rows, serving: Rows, who: npt.NDArray[np.int32], began: npt.NDArray[np.int64]
) -> tuple[Rows, Rows, npt.NDArray[np.int32]]:
    """Shoppers with an event `began` >= 0 are blank from it on; her events before it go to a copy, behind all others."""
    gone = np.flatnonzero(began >= 0)
    copy_of = np.full(len(began), -1, np.int32)
    copy_of[gone] = np.arange(len(began), len(began) + len(gone))
    before = np.arange(len(who)) < began[who]
    profiles, serving = np.concatenate([profiles, profiles[gone]]), np.concatenate([serving, serving[gone]])
    profiles[gone], serving[gone] = np.zeros(1, PROFILE), np.zeros(1, SERVING)
    return profiles, serving, np.where(before, copy_of[who], who).astype(np.int32)


def _to_refresh(part: PartitionInput, keys: list[bytes], serving: Rows, shed: Degradation, ttl: float) -> Folded:
    """Who gets a page of a part of refreshes: to whom one is owed, and who waits for a headline unless copy is shed."""
    triggers, taken = [], []
    for at, (key, time) in enumerate(zip(keys, serving["owed_time"].tolist(), strict=True)):
        refresh = part.refreshes[key]
        if refresh.segment and shed.copy:
            continue
        if ttl and 0 < serving["touched"][at] < part.clock - ttl:
            continue  # expired; the sweep has not come by yet
        if time > 0:
            event_id = serving["owed_id"][at].tobytes().rstrip(b"\0").decode("utf-8", "surrogatepass")
            triggers.append(Trigger(event_id, time))
        elif refresh.segment:
            triggers.append(Trigger(refresh.event_id, refresh.event_time))
        else:
            continue  # a later page has settled it
        taken.append(at)
    return Folded([keys[at] for at in taken], taken, triggers, NO_EVENT, NO_ACTIVITY, part.clock)


def is_too_soon(
    profiles: Rows, serving: Rows, triggers: Sequence[Trigger], now: float, every: float
) -> npt.NDArray[np.bool_]:
    """(S,) True for who had a page less than `every` s before `now`.

    Not who refused consent: nothing is kept of her, not the id of an event either. Nor whose event has an id that is too
    long to be kept. Where the clock has been set back, the page is made.
    """
    age = now - serving["paged_at"]
    soon: npt.NDArray[np.bool_] = (age >= 0) & (age < every) & (profiles["consent"] >= 0)
    for at in np.flatnonzero(soon).tolist():
        name = triggers[at].event_id.encode("utf-8", "surrogatepass")
        soon[at] = len(name) <= OWED_ID_BYTES and not name.endswith(b"\0")
    return soon


def defer(serving: Rows, late: Sequence[bool], triggers: Sequence[Trigger]) -> None:
    """In place: note of whom `late` is true that a page for the newest of her events is owed."""
    for at, (event_id, time) in enumerate(triggers):
        if late[at] and time >= serving["owed_time"][at]:
            serving["owed_time"][at] = time
            name = event_id.encode("utf-8", "surrogatepass").ljust(OWED_ID_BYTES, b"\0")
            serving["owed_id"][at] = np.frombuffer(name, np.int32)
