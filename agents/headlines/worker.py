"""A worker that makes no pages: it writes their headlines, and tells of itself as the others do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agents.headlines.agent import TOPICS, HeadlineAgent
from agents.headlines.copywriter_process import CopywriterProcess, CopywriterUnavailable, SamplingSettings
from agents.health import http as web
from agents.health.status_reporter import StatusReporter
from models.copywriter.locate import copywriter_folder_of
from stream import metrics
from stream.degradation import FULL
from stream.kafka.commit import Pair
from stream.kafka.group import Group
from stream.kafka.topics import WrongTopics, check, copy_group
from stream.settings import Settings


def copies_of(settings: Settings) -> tuple[CopywriterProcess, HeadlineAgent]:
    """Who writes headlines, and who has them written. Raises ManifestError where the copywriter does not fit."""
    sampling = SamplingSettings(
        settings.copy_temperature, settings.copy_top_k, settings.copy_top_p, settings.copy_max_tokens, settings.copy_samples
    )  # fmt: skip
    scribe = CopywriterProcess(copywriter_folder_of(settings), sampling)
    return scribe, HeadlineAgent(settings, scribe, Group(settings, TOPICS[0], copy_group(settings)))


def note_lag(copies: HeadlineAgent) -> None:
    """Add the requests that wait to the gauges of the lag."""
    waiting, oldest = copies.group.lag(), copies.group.oldest()
    if waiting:
        metrics.LAG.labels(TOPICS[0]).set(sum(waiting.values()))
        metrics.LAG_SECONDS.labels(TOPICS[0]).set(0.0 if oldest is None else max(0.0, time.time() - oldest))


class CopyWorker:
    """Everything of one such process. Raises ManifestError as `copies_of`."""

    rebalancing = False  # as `StatusReporter` looks at a worker

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.scribe, self._copies = copies_of(settings)
        self.should_stop = self._warm = False

    @property
    def ready(self) -> bool:
        return self._copies.group.joined

    @property
    def started(self) -> bool:
        return self.ready

    def read_topics(self) -> set[str]:
        return set()  # what is read is the copies', which `StatusReporter` knows

    def partitions(self, topic: str) -> set[int]:
        return set()

    def recovery_remaining(self) -> int:
        return 0

    async def tell(self, topic: str, record: Pair) -> None:
        await self._copies.group.send(topic, record)

    def conditions(self) -> dict[str, bool]:
        """What must hold before the worker counts as ready."""
        return {"partitions_assigned": self.ready, "copywriter_warmed": self._warm}

    def update_gauges(self) -> None:
        """Figures that are read when somebody asks."""
        metrics.COPYWRITER_UP.set(self.scribe.alive)
        metrics.READY.set(all(self.conditions().values()))
        metrics.LAG.clear()
        metrics.LAG_SECONDS.clear()
        note_lag(self._copies)

    async def run(self, stop: asyncio.Event, say: Callable[[str], None]) -> None:
        """Write until `stop` is set. Raises what keeps it from it: NoBroker, WrongTopics, a Kafka error."""
        endpoint = await web.start(self.settings, self.conditions, self.update_gauges)
        tasks: list[asyncio.Task[Any]] = []
        try:
            problems = await check(self.settings)
            if problems:
                raise WrongTopics("\n".join(problems))
            with suppress(CopywriterUnavailable):  # it has said so, and is tried again
                await self.scribe.start()
            self._warm = True
            address = f"{self.settings.web_host}:{endpoint.port}"
            say(f"metrics at http://{address}/metrics")
            telling = StatusReporter(self, lambda: FULL, address, self._copies)
            work = self._copies.run(), telling.run(), self._say_ready(telling, say), stop.wait()
            tasks = [asyncio.create_task(one) for one in work]
            *_, told_to_stop = tasks
            while not told_to_stop.done():
                done, _ = await asyncio.wait([t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            self.should_stop = True
            await telling.deregister()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.scribe.stop()
            await endpoint.stop()

    async def _say_ready(self, telling: StatusReporter, say: Callable[[str], None]) -> None:
        await self._copies.group.joining()
        telling.report_now()
        say(f"ready: {len(self._copies.group.partitions())} partitions of copy-requests")
