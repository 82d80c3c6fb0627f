"""The shopper agent: decode a run, refresh the pages of its shoppers, publish them."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agents import run_metrics
from agents.batcher import MicroBatcher, OffLoop
from agents.health.ranker_health import RankerHealth
from agents.items import MAX_SIGNAL_BYTES
from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import RefreshRequest
from agents.page.path import PagePath, PageResult
from agents.placement_monitor import PlacementMonitor
from agents.poison import PoisonFilter
from agents.profile_expiry import expire_profiles
from agents.run_cutter import RunCutter
from stream import metrics
from stream.events.decode import TOO_LATE_CODE, Decoded, Reject, decode_run
from stream.events.ignored_types import IgnoredTypes
from stream.items.activity import ACTIVITY, encode_activity, owner_partitions, split_activity
from stream.kafka.commit import BATCH_OVERHEAD, RECORD_OVERHEAD, Output, Outputs
from stream.kafka.dead_letters import count_dead_letters, to_dead_letters
from stream.kafka.keys.forwarding import Routed, forward, route, stranded, too_large
from stream.kafka.run import Run
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.kafka.topics import BATCH_LIMIT
from stream.profile.row import EVENT_IDS
from stream.profile.store import SWEEP_ROWS, MemoryProfileStore
from stream.row_codec import rows_at
from stream.settings import Settings
from stream.times import rfc3339

TOPICS = run_metrics.TOPICS
# What a run's changelog has beside the rows of its shoppers: its watermark, the partition's clock, and tombstones of
# expired profiles. The longest key has 1 KiB.
CHANGELOG_ROOM_BYTES = (SWEEP_ROWS + 2) * (1024 + RECORD_OVERHEAD)
BRIEF_RECORDS = 4  # for so few, changing threads costs more than the work
OUT_OF_MEMORY = (
    "the memory is used up; the events wait in Kafka: give the worker more memory, or fewer partitions (start more "
    "workers), or smaller runs (SHOPWINDOW_RUN_RECORDS)"
)

log = logging.getLogger(__name__)


class DecodedRun(NamedTuple):
    """Some records of a run, decoded and sorted by the partition that they belong to."""

    partition_input: PartitionInput
    rejects: list[Reject]  # by index of the records
    routed: Routed = Routed()
    misplaced: Sequence[Any] = ()  # records that are forwarded
    forwarded: Sequence[Output] = ()  # the same as outputs
    keyless: int = 0  # rejected records without a key


class Processed(NamedTuple):
    """A run's input, and what it has led to so far. Nothing is published yet."""

    decoded: DecodedRun
    rejects: list[Reject]
    result: PageResult
    outputs: list[Output]

    @property
    def changelog(self) -> list[tuple[bytes, bytes | None]]:
        """The rows that the run changes, without those of expired profiles."""
        row = self.decoded.routed.row
        return [*self.result.changelog, row] if row else self.result.changelog


class ShopperAgent:
    """The agent of `clicks`, `purchases`, `privacy` and `refreshes`, which share the partitions of the profiles."""

    def __init__(
        self,
        settings: Settings,
        path: PagePath,
        profiles: MemoryProfileStore | DiskProfileStore,
        out: Outputs,
        off_loop: OffLoop,
    ) -> None:
        self._settings, self._path, self._profiles, self._out = settings, path, profiles, out
        self._ignored_types = IgnoredTypes(settings.ignored_types.split(","))
        self._poison = PoisonFilter()
        self._cutter = RunCutter(lambda: out.changelog_limit("profiles") - CHANGELOG_ROOM_BYTES)
        self._ranker_health = RankerHealth(settings.models_dir / "ranker")
        self._refresh = MicroBatcher(self._refresh_all, off_loop, _is_brief)
        self.placement = PlacementMonitor(settings.partitions)

    async def handle_runs(self, runs: AsyncIterator[Run]) -> None:
        """Fold each run into profiles and publish the refreshed pages.

        A run is acknowledged after its outputs and its changelog batch, so a crash at any point replays the whole run.
        """
        async for run in runs:
            result, outputs = await self._refresh(run)
            self.placement.warn_if_due()
            published = partial(run_metrics.count_published, run.topic, result, time.perf_counter())
            self._out.commit_in_background(run, outputs, result.changelog).add_done_callback(published)

    def _refresh_all(self, runs: Sequence[Run]) -> list[tuple[PageResult, list[Output]]]:
        """Process the runs of several partitions in one call. The batcher never makes two calls at once."""
        now = time.time()
        try:
            processed = self._process_fitting(runs, now)
        except MemoryError:
            raise RuntimeError(OUT_OF_MEMORY) from None
        results = [one.result for one in processed]
        run_metrics.observe_stages(results[0].seconds)
        self._path.record_published(results, now)
        self._ranker_health.observe(results, now)
        metrics.HISTORY_UP.set(self._path.history is not None)
        return [self._apply(run, one) for run, one in zip(runs, processed, strict=True)]

    def _process_fitting(self, runs: Sequence[Run], now: float) -> list[Processed]:
        """Process the runs together, each cut to the records whose changelog fits one batch."""
        for run in runs:
            self._cutter.cut_to_estimate(run)
        processed = self._process_all(runs, now)
        while oversized := [at for at, run in enumerate(runs) if self._cutter.cut_to_fit(run, processed[at].changelog)]:
            again = self._process_all([runs[at] for at in oversized], now)
            for at, one in zip(oversized, again, strict=True):
                processed[at] = one
        return processed

    def _process_all(self, runs: Sequence[Run], now: float) -> list[Processed]:
        """Process the runs together, or each without its poison records if that fails."""
        try:
            processed = self._process([(run, run.records) for run in runs], now)
        except MemoryError:
            raise
        except Exception:
            return [self._process_without_poison(run, now) for run in runs]
        self._poison.reset()
        return processed

    def _process(self, selected: Sequence[tuple[Run, Sequence[Any]]], now: float) -> list[Processed]:
        """Process some records of each run. This has no side effects, so it may be tried."""
        start = time.perf_counter()
        decoded = [self._decode(run, records) for run, records in selected]
        decode_seconds = time.perf_counter() - start
        results = self._path.refresh_pages([one.partition_input for one in decoded], now)
        results[0].seconds["decode"] = decode_seconds
        processed = []
        for (run, records), one, result in zip(selected, decoded, results, strict=True):
            rejects = one.rejects
            if result.report.late_records:
                rejects = [*rejects, *_late_rejects(one, result.report.late_records)]
            outputs = self._dead_letters(run, records, rejects) + self._outputs(run, result)
            processed.append(Processed(one, rejects, result, outputs))
        return processed

    def _process_without_poison(self, run: Run, now: float) -> Processed:
        """Process a run; the records that make this fail are rejected. Raises RuntimeError if they are not to blame."""
        processed, rejects = self._poison.process(
            run,
            lambda records: self._process([(run, records)], now)[0],
            lambda: self._outputs(run, self._path.self_test(now)),
        )
        if run.topic == "refreshes":
            for reject in rejects:
                self._profiles.deferred.forget(run.partition, run.records[reject.record].key)
        return processed._replace(
            rejects=[*processed.rejects, *rejects],
            outputs=[*processed.outputs, *self._dead_letters(run, run.records, rejects)],
        )

    def _dead_letters(self, run: Run, records: Sequence[Any], rejects: Sequence[Reject]) -> list[Output]:
        return to_dead_letters(run, records, rejects, self._out.batch_limit("dead-letters"))

    def _decode(self, run: Run, records: Sequence[Any]) -> DecodedRun:
        stored, clock = self._profiles.rows_of(run.partition), self._profiles.clock(run.partition)
        if run.topic == "refreshes":
            refreshes, rejects = _decode_refreshes(records)
            return DecodedRun(PartitionInput(stored, refreshes=refreshes, clock=clock), rejects)
        routed = route(run.topic, run.partition, records, self._settings.partitions, stored)
        own = records if routed.own is None else [records[index] for index in routed.own]
        decoded = self._decode_events(run.topic, own)
        offsets = np.fromiter((record.offset for record in own), np.int64, len(own))
        partition_input = PartitionInput(stored, decoded, offsets, clock=clock)
        rejects = decoded.rejects
        keyless = sum(own[reject.record].key is None for reject in rejects) if rejects else 0
        if routed.own is None:
            return DecodedRun(partition_input, rejects, routed, keyless=keyless)
        rejects = [reject._replace(record=routed.own[reject.record]) for reject in rejects]
        # A record that its owner would refuse is refused here, so that it is not read twice.
        candidates = list(routed.misplaced)
        checked = self._decode_events(run.topic, [records[index] for index in candidates])
        rejects += [reject._replace(record=candidates[reject.record]) for reject in checked.rejects]
        valid = {index: routed.misplaced[index] for index, key in zip(candidates, checked.keys, strict=True) if key}
        rejects += stranded(run.topic, run.partition, records, routed)
        rejects += (refused := too_large(records, valid, self._out.batch_limit(run.topic)))
        for reject in refused:
            del valid[reject.record]
        misplaced = [records[index] for index in valid]
        forwarded = forward(run.topic, run.partition, records, valid)
        return DecodedRun(partition_input, rejects, routed, misplaced, forwarded, keyless)

    def _decode_events(self, topic: str, records: Sequence[Any]) -> Decoded:
        return decode_run(
            [record.value for record in records], [record.key for record in records],
            [record.timestamp / 1000 for record in records], topic, self._settings.future_tolerance,
            lambda index: records[index].headers, self._ignored_types,
        )  # fmt: skip

    def _outputs(self, run: Run, result: PageResult) -> list[Output]:
        """Pages, impressions, headline requests and item activity of a run."""
        outputs = []
        if result.pages:
            outputs.append(Output("homepages", run.partition, result.page_records()))
            outputs.append(Output("impressions", run.partition, result.impression_records()))
        requests = [request for page in result.pages for request in page.headline_requests]
        if requests:
            records = [(request.segment.encode(), msgspec.json.encode(request)) for request in requests]
            outputs.append(Output("copy-requests", None, records))
        limit = min(
            self._out.batch_limit("item-activity") // ACTIVITY.itemsize,
            self._out.changelog_limit("item-signals") // MAX_SIGNAL_BYTES,
        )
        return outputs + _activity_outputs(run, result, self._settings.partitions, limit // 2)

    def _without_oversized(self, output: Output) -> Output:
        """Pages or impressions, without those that are too large for their topic, which are logged and counted.

        Their events count, so they are no dead letters; the shopper keeps the previous page. Kafka would refuse the
        whole batch, which would stop the worker and the pages of all other shoppers.
        """
        limit = self._out.batch_limit(output.topic)
        sizes = [
            len(key or b"") + len(value or b"") + BATCH_OVERHEAD + RECORD_OVERHEAD for key, value in output.records
        ]
        if max(sizes) <= limit:
            return output
        for size in sizes:
            if size > limit:
                metrics.OVERSIZED.labels(output.topic).inc()
                log.error(
                    "a record of %d bytes for '%s' %s is left out: the topic takes at most %d bytes; raise its %s",
                    size, self._settings.prefix + output.topic, output.partition, limit, BATCH_LIMIT,
                )  # fmt: skip
        fitting = [record for record, size in zip(output.records, sizes, strict=True) if size <= limit]
        return output._replace(records=fitting)

    def _apply(self, run: Run, processed: Processed) -> tuple[PageResult, list[Output]]:
        """Apply a run to the profiles in memory. Return its result and outputs, those of expired profiles included."""
        result = processed.result
        count_dead_letters(processed.outputs)
        run_metrics.count_run(run, processed.decoded.partition_input, result)
        self._count_placement(run, processed.decoded)
        expiry = expire_profiles(self._profiles, run.partition, result, self._settings.profile_ttl)
        result = result._replace(changelog=[*processed.changelog, *expiry.changelog])
        self._profiles.apply(run.partition, result.changelog)
        outputs = [
            self._without_oversized(output) if output.topic in ("homepages", "impressions") else output
            for output in processed.outputs
        ]
        return result, [*expiry.tombstones, *outputs, *processed.decoded.forwarded]

    def _count_placement(self, run: Run, decoded: DecodedRun) -> None:
        """Count the records that are forwarded, and repetitions of those that were forwarded to this partition."""
        if run.topic == "refreshes":
            return
        written = len(run.records) - decoded.routed.arrived
        self.placement.observe(run.topic, run.partition, written, decoded.misplaced, decoded.keyless)
        if decoded.misplaced:
            metrics.FORWARDED.labels(run.topic).inc(len(decoded.misplaced))
        if decoded.routed.duplicates:
            metrics.SKIPPED.labels(run.topic).inc(decoded.routed.duplicates)


def _late_rejects(one: DecodedRun, late: Sequence[int]) -> list[Reject]:
    """Rejects of events that are older than all event ids that their shopper's profile still has.

    `late`: indices of the run's own records, those that are not forwarded.
    """
    decoded, own = one.partition_input.decoded, one.routed.own
    is_head = decoded.rows["part"] == 0
    times = dict(zip(decoded.rows["record"][is_head].tolist(), decoded.rows["time"][is_head].tolist(), strict=True))
    return [
        Reject(
            record if own is None else own[record], TOO_LATE_CODE, "time",
            f"time is {rfc3339(times[record])}, older than the newest {EVENT_IDS} events of the shopper, so that it "
            "cannot be distinguished from a redelivery; SHOPWINDOW_LATE_EVENTS=fold accepts it",
        )
        for record in late
    ]  # fmt: skip


def _activity_outputs(run: Run, result: PageResult, partitions: int, max_rows: int) -> list[Output]:
    """The items' activity, by the partition that owns each item's signals. A record has about `max_rows` rows."""
    if not len(result.activity):
        return []
    outputs = []
    owners = owner_partitions(result.activity["item"], partitions)
    by_owner = rows_at(result.activity, np.argsort(owners, kind="stable"))
    ends = np.cumsum(np.bincount(owners, minlength=partitions)).tolist()
    for partition, (start, end) in enumerate(pairwise([0, *ends])):
        if start < end:
            pieces = split_activity(by_owner[start:end], max_rows)
            values = [(None, encode_activity(run.topic, run.partition, rows)) for rows in pieces]
            outputs.append(Output("item-activity", partition, values))
    return outputs


def _decode_refreshes(records: Sequence[Any]) -> tuple[dict[bytes, RefreshRequest], list[Reject]]:
    refreshes: dict[bytes, RefreshRequest] = {}
    rejects = []
    for index, record in enumerate(records):
        try:
            request = msgspec.json.decode(record.value, type=RefreshRequest)
            # A deferred page is always made; a page for its headline may be skipped under load.
            if record.key not in refreshes or not request.segment:
                refreshes[record.key] = request
        except (msgspec.MsgspecError, TypeError) as error:
            rejects.append(Reject(index, "invalid", "value", f"not a refresh request: {error}"))
    return refreshes, rejects


def _is_brief(runs: Sequence[Run]) -> bool:
    return sum(len(run.records) for run in runs) <= BRIEF_RECORDS
