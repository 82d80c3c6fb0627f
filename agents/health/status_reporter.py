"""A worker tells of itself in `worker-status`, for `shopwindow status`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from aiokafka.errors import KafkaError

from agents.health.load_shedder import EVENTS
from stream import metrics
from stream.degradation import RUNGS
from stream.kafka.commit import Pair
from stream.kafka.worker_status import STATUS_INTERVAL_S, TOPIC, WorkerStatus, encode

if TYPE_CHECKING:
    from agents.headlines.agent import HeadlineAgent
    from stream.settings import Settings

GOODBYE = 2.0  # s that a farewell may take; the broker may be gone
LOOKS = 5  # over so many the rate is taken
log = logging.getLogger(__name__)


class Member(Protocol):
    """Of whom is told: the app of a worker that makes pages, or one that only writes headlines."""

    settings: Settings

    @property
    def started(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def rebalancing(self) -> bool: ...
    @property
    def should_stop(self) -> bool: ...
    def read_topics(self) -> set[str]: ...
    def partitions(self, topic: str) -> set[int]: ...
    def recovery_remaining(self) -> int: ...
    async def send_record(self, topic: str, record: Pair) -> None: ...


class StatusReporter:
    """Run it with `run`; `deregister` ends it and takes away what was told."""

    def __init__(
        self, app: Member, rung: Callable[[], int], metrics_at: str, copies: HeadlineAgent | None = None
    ) -> None:
        self._app, self._rung, self._metrics_at, self._copies = app, rung, metrics_at, copies
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._done: deque[tuple[float, float]] = deque(maxlen=LOOKS)  # time, records
        self._most = 0  # changelog records that there were to read
        self._ended = False
        self._news = asyncio.Event()

    def report_now(self) -> None:
        """Not after the rest of EVERY seconds: an operator who waited for the worker looks at once."""
        self._news.set()

    async def run(self) -> None:
        """For ever. A broker that does not take it is a matter of those who send events: here it is only logged."""
        while True:
            if self._app.started and not self._ended:
                try:
                    await self._send(encode(self.status()))
                except KafkaError as error:
                    if not self._app.should_stop:
                        log.warning("the status of this worker could not be sent: %s", type(error).__name__)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), STATUS_INTERVAL_S)
            self._news.clear()

    async def deregister(self) -> None:
        """Take away what was told: who stops in good order is not missed."""
        self._ended = True
        if self._app.started:
            with suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(self._send(None), GOODBYE)

    async def _send(self, value: bytes | None) -> None:
        await self._app.send_record(TOPIC, (self.name.encode(), value))

    def status(self) -> WorkerStatus:
        """As it is now; the rate is that since LOOKS calls ago."""
        self._done.append((monotonic(), _records_done()))
        (since, before), (now, done) = self._done[0], self._done[-1]
        remaining = self._app.recovery_remaining()
        self._most = max(self._most, remaining) if remaining else 0
        return WorkerStatus(
            worker=self.name, app_id=self._app.settings.app_id, state=self._state(remaining),
            events_per_s=round((done - before) / (now - since), 1) if now > since else 0.0,
            rung=RUNGS[self._rung()], recovery_remaining=remaining,
            recovery_share=round(1 - remaining / self._most, 4) if self._most else 1.0, metrics=self._metrics_at,
            partitions=self._partitions(), role=self._app.settings.role,
        )  # fmt: skip

    def _partitions(self) -> dict[str, list[int]]:
        ours = {topic: self._app.partitions(topic) for topic in sorted(self._app.read_topics())}
        if self._copies is not None:
            ours["copy-requests"] = self._copies.group.partitions()
        return {topic: sorted(numbers) for topic, numbers in ours.items() if numbers}

    def _state(self, remaining: int) -> str:
        if self._app.ready:
            return "ready"
        if self._app.rebalancing:
            return "rebalancing"
        return "recovering" if remaining else "starting"


def _records_done() -> float:
    [runs] = metrics.RUN_RECORDS.collect()  # the registry would collect all metrics for each sample: some ms
    return sum(one.value for one in runs.samples if one.name.endswith("_sum") and one.labels["topic"] in EVENTS)
