"""The way of a click. Decode, take one step over the run, publish; nothing else happens here."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import numpy as np

from agents.together import OffLoop, Together
from models.copybook import Refresh
from models.path import PagePath, Part, Step
from stream import metrics
from stream.events import KINDS, Decoded, Reject, decode_run
from stream.kafka.dead_letters import dead_letters
from stream.kafka.disk import DiskProfiles
from stream.kafka.outputs import Output, Outputs
from stream.kafka.transport import Run
from stream.settings import Settings
from stream.signals import encode_activity, owner, split_activity
from stream.store import Profiles

TOPICS = ("clicks", "purchases", "privacy", "refreshes")
Answer = tuple[Step, list[Output]]
ACTIVITY_ROWS = 8192  # of one record, about


class Shoppers:
    """The agent of `clicks`, `purchases`, `privacy` and `refreshes`, which share the profiles' partitions."""

    def __init__(
        self, settings: Settings, path: PagePath, profiles: Profiles | DiskProfiles, out: Outputs, off_loop: OffLoop
    ) -> None:
        self._settings, self._path, self._profiles, self._out = settings, path, profiles, out
        self._answer = Together(self._answer_all, off_loop)

    async def live(self, runs: AsyncIterator[Run]) -> None:
        """Fold each run into profiles and publish the refreshed pages.

        A run is acknowledged when its outputs and its profiles are, so that a crash anywhere replays it whole.
        """
        async for run in runs:
            step, outputs = await self._answer(run)
            start = time.perf_counter()
            await self._out.commit_run(run, outputs, step.changelog)
            metrics.STAGE.labels("publish").observe(time.perf_counter() - start)
            done = time.time()
            for trigger in step.triggers if run.topic != "refreshes" else ():
                metrics.FRESHNESS.observe(max(0.0, done - trigger.event_time))
            for mode, count in Counter(step.modes).items():
                metrics.PAGES.labels(mode).inc(count)

    def _answer_all(self, runs: Sequence[Run]) -> list[Answer]:
        """In the thread of the batches: one step over the runs of several partitions, and what each of them sends."""
        start = time.perf_counter()
        read = [self._read(run) for run in runs]
        decoding = time.perf_counter() - start
        steps = self._path.steps([part for part, _ in read], time.time())
        for stage, seconds in {"decode": decoding, **steps[0].seconds}.items():
            metrics.STAGE.labels(stage).observe(seconds)
        for run, (part, _), step in zip(runs, read, steps, strict=True):
            self._profiles.apply(run.partition, step.changelog)
            _count(run, part.decoded, step)
        return [
            (step, dead_letters(run, rejects) + self._outputs(run, step))
            for run, (_, rejects), step in zip(runs, read, steps, strict=True)
        ]

    def _read(self, run: Run) -> tuple[Part, list[Reject]]:
        records, stored = run.records, self._profiles.partitions[run.partition]
        if run.topic == "refreshes":
            refreshes, rejects = _refreshes(records)
            return Part(stored, refreshes=refreshes), rejects
        decoded = decode_run(
            [record.value for record in records], [record.key for record in records],
            [record.timestamp / 1000 for record in records], run.topic, self._settings.future_tolerance,
        )  # fmt: skip
        offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
        return Part(stored, decoded, offsets), decoded.rejects

    def _outputs(self, run: Run, step: Step) -> list[Output]:
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
            for p in np.unique(owners).tolist():
                parts = split_activity(step.activity[owners == p], ACTIVITY_ROWS)
                values = [(None, encode_activity(run.topic, run.partition, rows)) for rows in parts]
                outputs.append(Output("item-activity", p, values))
        return outputs

    async def headlines_came(self, served: dict[bytes, Refresh]) -> None:
        """Have the pages of waiting shoppers made once more, by way of their partition: only its owner writes there."""
        asked = [(key, msgspec.json.encode(served[key])) for key in self._profiles.owned(served)]
        await self._out.send("refreshes", None, asked)


def _refreshes(records: Sequence[Any]) -> tuple[dict[bytes, Refresh], list[Reject]]:
    refreshes: dict[bytes, Refresh] = {}
    rejects = []
    for at, record in enumerate(records):
        try:
            refreshes[record.key] = msgspec.json.decode(record.value, type=Refresh)
        except (msgspec.MsgspecError, TypeError) as error:
            rejects.append(Reject(at, "invalid", "value", f"not a refresh: {error}"))
    return refreshes, rejects


def _count(run: Run, decoded: Decoded, step: Step) -> None:
    metrics.RUN_RECORDS.labels(run.topic).observe(len(run.records))
    if run.skipped:
        metrics.SKIPPED.labels(run.topic).inc(run.skipped)
    heads = decoded.rows["part"] == 0
    kinds = decoded.rows["kind"][heads & step.fresh]
    for kind, count in enumerate(np.bincount(kinds, minlength=len(KINDS)).tolist()):
        if count:
            metrics.EVENTS.labels(run.topic, KINDS[kind]).inc(count)
    metrics.DUPLICATES.inc(int((heads & ~step.fresh).sum()))
    metrics.CLAMPED.inc(decoded.clamped)
