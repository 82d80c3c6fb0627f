"""The way of a click. Decode, take one step over the run, publish; nothing else happens here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agents.batcher import MicroBatcher, OffLoop
from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import Refresh
from agents.page.path import PagePath, PageResult
from agents.poison import place, told, without_poison
from stream import metrics
from stream.events import KINDS, TOPIC_KINDS, Reject, decode_run
from stream.items.activity import encode_activity, owner, split_activity
from stream.kafka.commit import Output, Outputs
from stream.kafka.dead_letters import count_dead_letters, to_dead_letters
from stream.kafka.run import Run
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.page.json_kernels import MODES
from stream.profile.store import CLOCK, MemoryProfileStore
from stream.row_codec import rows_at
from stream.settings import Settings

TOPICS = ("clicks", "purchases", "privacy", "refreshes")
Answer = tuple[PageResult, list[Output]]
ACTIVITY_ROWS = 8192  # of one record, about
SOUND = 10.0  # s without a bad answer after which the ranker counts as well again
BRIEF = 4  # records of a step that is not worth a change of threads
ALL_POISON = 100  # records in a row: a step that fails for each of them fails for another reason
OUT_OF_MEMORY = (
    "the memory is used up; the events wait in Kafka: give the worker more, or fewer partitions (start more workers), or "
    "smaller runs (SHOPWINDOW_RUN_RECORDS)"
)
log = logging.getLogger(__name__)
# Children of the metrics' labels: to look one up takes longer than to count in it.
_STAGES = {stage: metrics.STAGE.labels(stage) for stage in metrics.STAGES}
_RUN_RECORDS = {topic: metrics.RUN_RECORDS.labels(topic) for topic in TOPICS}
_PAGES = {mode: metrics.PAGES.labels(mode) for mode in MODES}
_EVENTS = {
    topic: {kind: metrics.EVENTS.labels(topic, KINDS[kind]) for kind in sorted(kinds)}
    for topic, kinds in TOPIC_KINDS.items()
}
PAGE_OWED = msgspec.json.encode(Refresh("", "", 0.0))  # a record of `refreshes`; the shopper's row says for which event


class _Made(NamedTuple):
    """What a run came to."""

    part: PartitionInput
    rejects: list[Reject]
    step: PageResult
    outputs: list[Output]


class Shoppers:
    """The agent of `clicks`, `purchases`, `privacy` and `refreshes`, which share the profiles' partitions."""

    def __init__(
        self,
        settings: Settings,
        path: PagePath,
        profiles: MemoryProfileStore | DiskProfileStore,
        out: Outputs,
        off_loop: OffLoop,
    ) -> None:
        self._settings, self._path, self._profiles, self._out = settings, path, profiles, out
        self._off_loop = off_loop
        self._unsound_at: float | None = None  # s, when the ranker last gave no probabilities, while it is broken
        self._poisoned = 0  # records in a row that made a step fail
        self._answer = MicroBatcher(self._answer_all, off_loop, _brief)

    async def live(self, runs: AsyncIterator[Run]) -> None:
        """Fold each run into profiles and publish the refreshed pages.

        A run is acknowledged when its outputs and its profiles are, so that a crash anywhere replays it whole.
        """
        async for run in runs:
            step, outputs = await self._answer(run)
            published = partial(_published, run.topic, step, time.perf_counter())
            self._out.commit_in_background(run, outputs, step.changelog).add_done_callback(published)

    def _answer_all(self, runs: Sequence[Run]) -> list[Answer]:
        """One step over the runs of several partitions, and what each of them sends; never two at once."""
        now = time.time()
        try:
            made = self._make([(run, run.records) for run in runs], now)
            self._poisoned = 0
        except MemoryError:
            raise RuntimeError(OUT_OF_MEMORY) from None
        except Exception:
            made = [self._without_poison(run, now) for run in runs]
        for stage, seconds in made[0].step.seconds.items():
            _STAGES[stage].observe(seconds)
        self._path.took_effect([one.step for one in made], now)
        for run, one in zip(runs, made, strict=True):
            _count(run, one)
            self._retire(run, one)
            self._profiles.apply(run.partition, one.step.changelog)
        self._look_at_the_ranker([one.step for one in made], now)
        return [(one.step, one.outputs) for one in made]

    def _look_at_the_ranker(self, steps: Sequence[PageResult], now: float) -> None:
        """Say once when it stops to give probabilities, and once when it has given nothing else for a while."""
        metrics.HISTORY_UP.set(self._path.history is not None)
        unsound = sum(sum(step.unsound) for step in steps)
        metrics.UNSOUND_PAGES.inc(unsound)
        if unsound:
            if self._unsound_at is None:
                metrics.RANKER_BROKEN.set(1)
                log.error(
                    "the ranker in %s gives no probabilities (NaN, or it fails), so that pages are the popular ones; put "
                    "the one of before there, or fit it again (shopwindow train ranker), and restart the worker",
                    self._settings.models_dir / "ranker",
                )  # fmt: skip
            self._unsound_at = now
        elif (
            self._unsound_at is not None
            and not 0 <= now - self._unsound_at < SOUND
            and any(mode in ("full", "cached_copy") for step in steps for mode in step.modes)
        ):
            metrics.RANKER_BROKEN.set(0)
            log.warning("the ranker gives probabilities again; pages are personal")
            self._unsound_at = None

    def _make(self, taken: Sequence[tuple[Run, Sequence[Any]]], now: float) -> list[_Made]:
        """What records of each run come to. Changes nothing: it may be tried."""
        start = time.perf_counter()
        read = [self._read(run, records) for run, records in taken]
        decoding = time.perf_counter() - start
        steps = self._path.steps([part for part, _ in read], now)
        steps[0].seconds["decode"] = decoding
        return [
            _Made(part, rejects, step, to_dead_letters(run, records, rejects) + self._outputs(run, step))
            for (run, records), (part, rejects), step in zip(taken, read, steps, strict=True)
        ]

    def _without_poison(self, run: Run, now: float) -> _Made:
        """What the run comes to less the records that make a step raise: they go to `dead-to_dead_letters`.

        Raises RuntimeError where the records are not to blame.
        """
        try:
            made, poison = without_poison(run.records, lambda records: self._make([(run, records)], now)[0])
            if not poison:
                return made
            self._outputs(run, self._path.probe(now))
        except MemoryError:
            raise RuntimeError(OUT_OF_MEMORY) from None
        except Exception as fault:
            # Not `from fault`: its message may hold what belongs to a shopper.
            raise RuntimeError(
                f"no page can be made, whatever the event ({place(fault)}); nothing is lost, the events wait in Kafka: "
                "run an earlier version, or with the models of before (SHOPWINDOW_MODELS_DIR), and report it"
            ) from None
        self._poisoned = self._poisoned + len(poison) if len(poison) == len(run.records) else 0
        if self._poisoned >= ALL_POISON:
            raise RuntimeError(
                f"the last {self._poisoned} records, all there were, made a step fail ({place(poison[0])}), so that it "
                "is hardly their fault; they wait in Kafka: run an earlier version, or with the models of before "
                "(SHOPWINDOW_MODELS_DIR), and report it"
            )
        rejects = []
        for at, error in sorted(poison.items()):
            record = run.records[at]
            rejects.append(Reject(at, "poison", "value", told(error, record.key, record.value)))
            where = {"topic": run.topic, "partition": run.partition, "offset": record.offset}
            log.error(
                "a record of '%s' (partition %d, offset %d) makes a step fail: %s; it lies in dead-letters",
                *where.values(), place(error), extra=where,
            )  # fmt: skip
            if run.topic == "refreshes":
                self._profiles.owed.forget(run.partition, record.key)
        return made._replace(
            rejects=[*made.rejects, *rejects], outputs=[*made.outputs, *to_dead_letters(run, run.records, rejects)]
        )

    def _read(self, run: Run, records: Sequence[Any]) -> tuple[PartitionInput, list[Reject]]:
        stored = self._profiles.of(run.partition)
        if run.topic == "refreshes":
            refreshes, rejects = _refreshes(records)
            return PartitionInput(stored, refreshes=refreshes, clock=self._profiles.clock(run.partition)), rejects
        decoded = decode_run(
            [record.value for record in records], [record.key for record in records],
            [record.timestamp / 1000 for record in records], run.topic, self._settings.future_tolerance,
        )  # fmt: skip
        offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
        return PartitionInput(stored, decoded, offsets, clock=self._profiles.clock(run.partition)), decoded.rejects

    def _retire(self, run: Run, made: _Made) -> None:
        """Add to what a run sends: tombstones of profiles that have expired, a few at a time, and the partition's time.

        A storefront must forget the page of who is forgotten: when she comes back, her pages count from 1 again.
        """
        step, ttl = made.step, self._settings.profile_ttl
        if not ttl:
            return
        if step.clock > self._profiles.clock(run.partition):
            step.changelog.append((CLOCK, repr(step.clock).encode()))
        gone = self._profiles.sweep(run.partition, step.clock, ttl, {key for key, _ in step.changelog})
        step.changelog.extend((key, None) for key in gone)
        forgotten = [*step.lapsed, *gone]
        if forgotten:
            made.outputs.insert(0, Output("homepages", run.partition, [(key, None) for key in forgotten]))
            metrics.EXPIRED.inc(len(forgotten))

    def _outputs(self, run: Run, step: PageResult) -> list[Output]:
        outputs = []
        if step.pages:
            outputs.append(Output("homepages", run.partition, step.pages))
            outputs.append(Output("impressions", None, step.impressions))
        asked = [request for requests in step.requests for request in requests]
        if asked:
            records = [(request.segment.encode(), msgspec.json.encode(request)) for request in asked]
            outputs.append(Output("copy-requests", None, records))
        if len(step.activity):
            owners = owner(step.activity["item"], self._settings.partitions)
            by_owner = rows_at(step.activity, np.argsort(owners, kind="stable"))
            ends = np.cumsum(np.bincount(owners, minlength=self._settings.partitions)).tolist()
            for p, (start, end) in enumerate(pairwise([0, *ends])):
                if start < end:
                    parts = split_activity(by_owner[start:end], ACTIVITY_ROWS)
                    values = [(None, encode_activity(run.topic, run.partition, rows)) for rows in parts]
                    outputs.append(Output("item-activity", p, values))
        return outputs

    async def headlines_came(self, served: dict[bytes, Refresh]) -> None:
        """Have the pages of waiting shoppers made once more, by way of their partition: only its owner writes there."""
        if self._path.shed.copy:
            return
        asked = [(key, msgspec.json.encode(served[key])) for key in self._profiles.owned(served)]
        await self._out.send("refreshes", None, asked)

    async def pay_pages(self) -> None:
        """Have pages that are owed made, each when the shopper may have one again: by way of her partition, as above.

        The rows at rest say to whom a page is owed, so that a crash at any point forgets none. One that is asked for
        twice is made once: the page settles it.
        """
        owed = self._profiles.owed
        metrics.OWED_PAGES.set(len(owed))
        if len(owed):
            now, after = time.monotonic(), self._path.shed.page_every
            for partition, keys in await self._off_loop(lambda: owed.due(now, after)):
                await self._out.send("refreshes", partition, [(key, PAGE_OWED) for key in keys])


def _published(topic: str, step: PageResult, since: float, counts: asyncio.Task[None]) -> None:
    """Count the pages of a run that counts; since: s, when they were handed over."""
    if counts.cancelled() or counts.exception() is not None:
        return
    _STAGES["publish"].observe(time.perf_counter() - since)
    now = time.time()
    for trigger, owed in zip(step.triggers, step.owed, strict=True):
        if owed or topic != "refreshes":  # a page for its headline only says nothing of the event
            metrics.FRESHNESS.observe(max(0.0, now - trigger.event_time))
    for mode, count in Counter(step.modes).items():
        _PAGES[mode].inc(count)


def _refreshes(records: Sequence[Any]) -> tuple[dict[bytes, Refresh], list[Reject]]:
    refreshes: dict[bytes, Refresh] = {}
    rejects = []
    for at, record in enumerate(records):
        try:
            refresh = msgspec.json.decode(record.value, type=Refresh)
            # A page that is owed is made in any case, one for its headline may be shed.
            if record.key not in refreshes or not refresh.segment:
                refreshes[record.key] = refresh
        except (msgspec.MsgspecError, TypeError) as error:
            rejects.append(Reject(at, "invalid", "value", f"not a refresh: {error}"))
    return refreshes, rejects


def _brief(runs: Sequence[Run]) -> bool:
    return sum(len(run.records) for run in runs) <= BRIEF


def _count(run: Run, made: _Made) -> None:
    decoded, step = made.part.decoded, made.step
    count_dead_letters(made.outputs)
    _RUN_RECORDS[run.topic].observe(len(run.records))
    if run.skipped:
        metrics.SKIPPED.labels(run.topic).inc(run.skipped)
    heads = decoded.rows["part"] == 0
    # (2 kinds,) how many events of each kind, first the duplicates, then the fresh ones.
    counts = np.bincount((decoded.rows["kind"] + len(KINDS) * step.fresh)[heads], minlength=2 * len(KINDS)).tolist()
    for kind, count in enumerate(counts[len(KINDS) :]):
        if count:
            _EVENTS[run.topic][kind].inc(count)
    metrics.DUPLICATES.inc(sum(counts[: len(KINDS)]))
    metrics.CLAMPED.inc(decoded.clamped)
    metrics.DEFERRED_PAGES.inc(len(step.changelog) - len(step.pages))
