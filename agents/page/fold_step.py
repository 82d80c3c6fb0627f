"""First stage of the page path: fold events into profile rows, and select the shoppers who get a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agents.page.headline_cache import RefreshRequest
from stream.degradation import Degradation
from stream.events.decode import EVENT, Decoded
from stream.items.activity import ACTIVITY, ROBOT_EVENTS_PER_MINUTE, WITHOUT_ACTIVITY, fold_with_activity
from stream.name_patterns import NO_NAMES, NamePatterns
from stream.profile.codec import decode_records
from stream.profile.exposure import OWED_ID_BYTES, SERVING, apply_feedback, expired, touch
from stream.profile.fold import FOLDED, TOO_LATE, TRANSACTION_FORGOTTEN, shortest_id_window
from stream.profile.row import PROFILE
from stream.row_codec import rows_at
from stream.times import record_seconds
from stream.types import I32, I64, Bools, Rows

NO_EVENT, NO_ACTIVITY = np.zeros(0, np.bool_), np.zeros(0, ACTIVITY)


class PageTrigger(NamedTuple):
    """The event that a page answers."""

    event_id: str
    event_time: float  # s since the epoch
    arrived: float = 0.0  # timestamp of the event's record, s, as its producer wrote it; 0: unknown


class PartitionInput(NamedTuple):
    """The work for one partition: either a run of events, or refresh requests."""

    stored: Mapping[bytes, bytes]  # changelog values by shopper key
    decoded: Decoded = Decoded(np.zeros(0, EVENT), [], [], [], 0, [])
    offsets: I64 = np.zeros(0, np.int64)  # (records,)
    refreshes: Mapping[bytes, RefreshRequest] = {}  # by shopper key
    clock: float = 0.0  # s, newest event time of the partition before this input


class FoldRules(NamedTuple):
    """Settings that affect the fold."""

    profile_ttl: float = 0.0  # s of the partition's event time after which a profile expires; 0: never
    refuses_late: bool = True  # events that cannot be distinguished from redeliveries
    robot_events: int = ROBOT_EVENTS_PER_MINUTE  # more in a minute mean a robot; 0: no limit
    excluded_shoppers: NamePatterns = NO_NAMES  # cause no activity of items


class FoldReport(NamedTuple):
    """What the fold of a partition's input left out."""

    late_records: Sequence[int] = ()  # indices of the records refused as too late
    forgotten_transactions: int = 0
    id_window: float = np.inf  # s, the shortest window of a full ring of ids
    without_activity: Mapping[str, int] = {}  # interactions that change no signals, by reason


class FoldedPartition(NamedTuple):
    """The shoppers of one partition who get a page; the first four fields have an entry for each."""

    keys: list[bytes]
    indices: list[int]  # of each shopper among all shoppers of the partition's input
    triggers: list[PageTrigger]
    first_arrivals: list[float]  # timestamp of the record of their first fresh event, s since the epoch; 0: none
    fresh: Bools  # (n,) of the event rows, False for duplicates
    activity: Rows  # (m,) ACTIVITY
    clock: float  # s, newest event time of the partition, this input included
    expired: Sequence[bytes] = ()  # shoppers who returned after their profile had expired
    report: FoldReport = FoldReport()


def fold_partitions(
    inputs: Sequence[PartitionInput], degradation: Degradation, rules: FoldRules
) -> tuple[list[FoldedPartition], Rows, Rows]:
    """Fold the events of each partition, and return who gets a page, with their profile and exposure rows.

    Returns the folded partitions, and for all of their shoppers, partition after partition, profiles (S,) PROFILE and
    serving (S,) SERVING. The rows of all partitions share one array from the start, because concatenating such arrays
    costs more than folding.
    """
    keys = [_shoppers_of(one) for one in inputs]
    profiles, serving = decode_records(
        [one.stored.get(key) for one, shoppers in zip(inputs, keys, strict=True) for key in shoppers]
    )
    folded: list[FoldedPartition] = []
    indices: list[int] = []  # among the shoppers of all partitions
    start = 0
    for one, shoppers in zip(inputs, keys, strict=True):
        own = slice(start, start + len(shoppers))
        if one.refreshes:
            partition = _select_refreshes(one, shoppers, serving[own], degradation, rules.profile_ttl)
        else:
            partition = _fold_events(one, shoppers, profiles[own], serving[own], rules)
        folded.append(partition)
        indices.extend(start + index for index in partition.indices)
        start = own.stop
    if len(indices) < start:
        profiles, serving = rows_at(profiles, indices), rows_at(serving, indices)
    return folded, profiles, serving


def _shoppers_of(one: PartitionInput) -> list[bytes]:
    """Distinct keys whose rows the input needs."""
    if one.refreshes:
        return [key for key in one.refreshes if key in one.stored]
    return [key for key in dict.fromkeys(one.decoded.keys) if key]


def _fold_events(
    one: PartitionInput, keys: list[bytes], profiles: Rows, serving: Rows, rules: FoldRules
) -> FoldedPartition:
    """Fold the events of a partition into its rows, in place."""
    decoded, events = one.decoded, one.decoded.rows
    index_of = {key: index for index, key in enumerate(keys)}
    records, times = events["record"].tolist(), events["time"]
    shopper_of = np.array([index_of[decoded.keys[record]] for record in records], np.int32)  # (n,)
    is_excluded = _are_excluded(keys, rules.excluded_shoppers)[shopper_of]  # (n,)
    expired_keys: list[bytes] = []
    if rules.profile_ttl:
        first_after_expiry = expired(serving["touched"], shopper_of, times, one.clock, rules.profile_ttl)
        expired_keys = [key for key, event in zip(keys, first_after_expiry.tolist(), strict=True) if event >= 0]
    newest_event = np.empty(len(keys), np.int64)
    if expired_keys:
        both, both_serving, shopper_of = _split_expired(profiles, serving, shopper_of, first_after_expiry)
        folded = _fold_rows(both, both_serving, shopper_of, one, newest_event, is_excluded, rules)
        profiles[:], serving[:] = both[: len(keys)], both_serving[: len(keys)]
    else:
        folded = _fold_rows(profiles, serving, shopper_of, one, newest_event, is_excluded, rules)
    newest = newest_event.tolist()
    indices = [index for index, event in enumerate(newest) if event >= 0]
    seconds = times.tolist()
    timestamps = decoded.timestamps or [0.0] * len(decoded.ids)
    triggers = []
    for index in indices:
        event = newest[index]
        record = records[event]
        triggers.append(PageTrigger(decoded.ids[record], seconds[event], timestamps[record]))
    fresh, activity, clock, report = folded
    first_arrivals = _first_arrivals(decoded.timestamps, records, seconds, fresh, shopper_of, indices)
    shopper_keys = [keys[index] for index in indices]
    return FoldedPartition(
        shopper_keys, indices, triggers, first_arrivals, fresh, activity, clock, expired_keys, report
    )


def _first_arrivals(
    timestamps: Sequence[float], records: Sequence[int], seconds: Sequence[float], fresh: Bools, shopper_of: I32,
    indices: Sequence[int],
) -> list[float]:  # fmt: skip
    """When the first fresh event of each shopper arrived: see `FoldedPartition.first_arrivals`.

    timestamps: of the records, s. records, seconds, fresh and shopper_of (n,): record and time of each event, whether
    it is new, and its shopper. indices: of the shoppers who get a page.

    Of two timestamps within a run the first one counts, because a run that is repeated after a crash starts with the
    same record, but may end with another. Without timestamps the result is 0, so that versions count pages.
    """
    if not timestamps:
        return [0.0] * len(indices)
    first_of: dict[int, int] = {}  # faster than NumPy for the short runs that are usual
    for event, (shopper, is_fresh) in enumerate(zip(shopper_of.tolist(), fresh.tolist(), strict=True)):
        if is_fresh:
            first_of.setdefault(shopper, event)
    first = [first_of[index] for index in indices]
    return [record_seconds(timestamps[records[event]]) or seconds[event] for event in first]


def _are_excluded(keys: Sequence[bytes], patterns: NamePatterns) -> Bools:
    """(S,) True for the shoppers whose key matches a pattern."""
    if not patterns:
        return np.zeros(len(keys), np.bool_)
    return np.array([patterns.match(key.decode("utf-8", "surrogatepass")) is not None for key in keys], np.bool_)


def _fold_rows(
    profiles: Rows, serving: Rows, shopper_of: I32, one: PartitionInput, newest_event: I64, is_excluded: Bools,
    rules: FoldRules,
) -> tuple[Bools, Rows, float, FoldReport]:  # fmt: skip
    """Fold in place. Return which events were fresh, the items' activity, the partition's clock, and the report.

    `touch` fills `newest_event`.
    """
    events = one.decoded.rows
    outcomes, activity = fold_with_activity(
        profiles, shopper_of, events, one.offsets, rules.refuses_late, rules.robot_events, is_excluded
    )
    fresh = (outcomes & FOLDED).astype(np.bool_)
    report = FoldReport(id_window=shortest_id_window(profiles))
    if outcomes.max(initial=0) > FOLDED:
        report = report._replace(
            late_records=events["record"][(outcomes == TOO_LATE) & (events["part"] == 0)].tolist(),
            forgotten_transactions=int(np.count_nonzero(outcomes & TRANSACTION_FORGOTTEN)),
            without_activity={
                reason: count
                for reason, flag in WITHOUT_ACTIVITY.items()
                if (count := int(np.count_nonzero(outcomes & flag)))
            },
        )
    apply_feedback(serving, profiles, shopper_of, events, fresh)
    clock = touch(serving, profiles, shopper_of, events, fresh, one.clock, newest_event)
    return fresh, activity, clock, report


def _split_expired(profiles: Rows, serving: Rows, shopper_of: I32, first_after_expiry: I64) -> tuple[Rows, Rows, I32]:
    """Give each expired shopper two rows, and return the rows with the row index of each event.

    The shopper's own row is reset, but for the version of the page, and takes the events from `first_after_expiry` on.
    A copy of the old row, appended behind all others, takes the events before that.
    """
    expired_rows = np.flatnonzero(first_after_expiry >= 0)
    old_row_of = np.full(len(first_after_expiry), -1, np.int32)
    old_row_of[expired_rows] = np.arange(len(first_after_expiry), len(first_after_expiry) + len(expired_rows))
    is_old = np.arange(len(shopper_of)) < first_after_expiry[shopper_of]
    profiles = np.concatenate([profiles, profiles[expired_rows]])
    serving = np.concatenate([serving, serving[expired_rows]])
    versions = serving["version"][expired_rows]
    profiles[expired_rows], serving[expired_rows] = np.zeros(1, PROFILE), np.zeros(1, SERVING)
    serving["version"][expired_rows] = versions
    return profiles, serving, np.where(is_old, old_row_of[shopper_of], shopper_of).astype(np.int32)


def _select_refreshes(
    one: PartitionInput, keys: list[bytes], serving: Rows, degradation: Degradation, profile_ttl: float
) -> FoldedPartition:
    """Select the refresh requests that lead to a page: those of a deferred page, and those of a new headline.

    The latter are skipped while headlines are degraded.
    """
    triggers, indices = [], []
    for index, (key, deferred_time) in enumerate(zip(keys, serving["owed_time"].tolist(), strict=True)):
        request = one.refreshes[key]
        if request.segment and degradation.sheds_headlines:
            continue
        # The profile has expired, but the sweep has not reached it yet.
        if profile_ttl and 0 < serving["touched"][index] < one.clock - profile_ttl:
            continue
        if deferred_time > 0:
            event_id = serving["owed_id"][index].tobytes().rstrip(b"\0").decode("utf-8", "surrogatepass")
            triggers.append(PageTrigger(event_id, deferred_time))
        elif request.segment:
            triggers.append(PageTrigger(request.event_id, request.event_time))
        else:
            continue  # a later page has replaced the deferred one
        indices.append(index)
    keys = [keys[index] for index in indices]
    return FoldedPartition(keys, indices, triggers, [0.0] * len(keys), NO_EVENT, NO_ACTIVITY, one.clock)


def is_too_soon(
    profiles: Rows, serving: Rows, triggers: Sequence[PageTrigger], now: float, min_interval: float
) -> Bools:
    """(S,) True for each shopper who had a page less than `min_interval` s before `now`.

    Never True for a shopper who refused consent, because nothing may be stored about them, not even an event's id. Nor
    if the event's id is too long to be stored, nor if the clock has been set back.
    """
    age = now - serving["paged_at"]
    too_soon: Bools = (age >= 0) & (age < min_interval) & (profiles["consent"] >= 0)
    for index in np.flatnonzero(too_soon).tolist():
        name = triggers[index].event_id.encode("utf-8", "surrogatepass")
        too_soon[index] = len(name) <= OWED_ID_BYTES and not name.endswith(b"\0")
    return too_soon


def defer(serving: Rows, is_deferred: Sequence[bool], triggers: Sequence[PageTrigger]) -> None:
    """In place: record the trigger of each deferred page. An older deferred page with a newer trigger is kept."""
    for index, trigger in enumerate(triggers):
        if is_deferred[index] and trigger.event_time >= serving["owed_time"][index]:
            serving["owed_time"][index] = trigger.event_time
            name = trigger.event_id.encode("utf-8", "surrogatepass").ljust(OWED_ID_BYTES, b"\0")
            serving["owed_id"][index] = np.frombuffer(name, np.int32)
