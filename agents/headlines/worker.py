"""A worker that makes no pages: it writes headlines for the others, and reports its state as they do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agents.headlines.agent import TOPICS, HeadlineAgent
from agents.headlines.copywriter_process import CopywriterProcess, CopywriterUnavailable, SamplingSettings
from agents.health import http
from agents.health.lag_gauges import LagGauges
from agents.health.status_reporter import StatusReporter
from models.copywriter.locate import copywriter_folder_of
from stream import metrics
from stream.addresses import Address
from stream.degradation import FULL
from stream.kafka.commit import Pair
from stream.kafka.group import GroupMember
from stream.kafka.health.outage import Outage
from stream.kafka.topics import WrongTopics, check, copy_group
from stream.settings import Settings


def headline_agent_of(settings: Settings) -> tuple[CopywriterProcess, HeadlineAgent]:
    """The copywriter, and the agent that uses it. Raises ManifestError if the copywriter does not fit this program."""
    sampling = SamplingSettings(
        settings.copy_temperature, settings.copy_top_k, settings.copy_top_p, settings.copy_max_tokens,
        settings.copy_samples,
    )  # fmt: skip
    copywriter = CopywriterProcess(copywriter_folder_of(settings), sampling)
    return copywriter, HeadlineAgent(settings, copywriter, GroupMember(settings, TOPICS[0], copy_group(settings)))


def update_headline_lag(gauges: LagGauges, headlines: HeadlineAgent) -> None:
    """Set the lag gauges of the headline requests."""
    group = headlines.group
    assigned = {(TOPICS[0], number) for number in group.partitions()} if group.joined else None
    waiting, oldest = {(TOPICS[0], number): lag for number, lag in group.lag().items()}, group.oldest()
    age = 0.0 if oldest is None else max(0.0, time.time() - oldest)
    gauges.update(assigned, waiting, dict.fromkeys(waiting, age))


class HeadlineWorker:
    """A process with SHOPWINDOW_ROLE=copy, which also is the app that `StatusReporter` reports on.

    Raises ManifestError as `headline_agent_of`.
    """

    rebalancing = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._copywriter, self._headlines = headline_agent_of(settings)
        self.outage = Outage(settings)
        self._lag = LagGauges()
        self.should_stop = self._is_warm = False

    @property
    def ready(self) -> bool:
        return self._headlines.group.joined

    @property
    def started(self) -> bool:
        return self.ready

    def read_topics(self) -> set[str]:
        return set()  # `StatusReporter` knows the agent's own

    def partitions(self, topic: str) -> set[int]:
        return set()

    def recovery_remaining(self) -> int:
        return 0

    async def send_record(self, topic: str, record: Pair) -> None:
        await self._headlines.group.send(topic, record)

    def conditions(self) -> dict[str, bool]:
        """The conditions that must be true before the worker counts as ready."""
        return {
            "partitions_assigned": self.ready,
            "copywriter_warmed": self._is_warm,
            "kafka_answers": self.outage.seconds <= self.settings.fetch_timeout,
        }

    def health(self) -> http.Health:
        return http.Health(note=self.outage.note)

    def update_gauges(self) -> None:
        """Set the gauges that are computed only for a scrape."""
        metrics.COPYWRITER_UP.set(self._copywriter.is_alive)
        metrics.READY.set(all(self.conditions().values()))
        metrics.FETCH_SILENCE.set(self.outage.seconds)
        update_headline_lag(self._lag, self._headlines)

    async def run(self, stop: asyncio.Event, say: Callable[[str], None]) -> None:
        """Write headlines until `stop` is set. Raises NoBroker, WrongTopics, or a Kafka error that does not pass."""
        endpoint = await http.start(self.settings, self.conditions, self.update_gauges, self.health)
        tasks: list[asyncio.Task[Any]] = []
        try:
            problems = await check(self.settings)
            if problems:
                raise WrongTopics("\n".join(problems))
            with suppress(CopywriterUnavailable):  # it is logged, and tried again
                await self._copywriter.start()
            self._is_warm = True
            address = str(Address(self.settings.web_host, endpoint.port))
            say(f"metrics at http://{address}/metrics")
            reporter = StatusReporter(self, lambda: FULL, address, self._headlines)
            # Not a TaskGroup: the first error is raised as it is, and `deregister` runs before the tasks are cancelled.
            work = (
                self._headlines.run(), reporter.run(), self._report_ready(reporter, say),
                self._headlines.group.watch(self.outage), stop.wait(),
            )  # fmt: skip
            tasks = [asyncio.create_task(one) for one in work]
            *_, stopped = tasks
            while not stopped.done():
                done, _ = await asyncio.wait([t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            self.should_stop = True
            await reporter.deregister()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._copywriter.stop()
            await endpoint.stop()

    async def _report_ready(self, reporter: StatusReporter, say: Callable[[str], None]) -> None:
        await self._headlines.group.wait_joined()
        reporter.report_now()
        say(f"ready: {len(self._headlines.group.partitions())} partitions of copy-requests")
