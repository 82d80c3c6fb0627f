"""Report a worker's state to `worker-status`, for `shopwindow status`."""

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

from agents.health.load_shedder import EVENT_TOPICS
from stream import metrics
from stream.degradation import RUNGS
from stream.kafka.client.producer import SendTimedOut
from stream.kafka.commit import Pair
from stream.kafka.health.worker_status import STATUS_INTERVAL_S, TOPIC, ForwardedShare, WorkerStatus, encode

if TYPE_CHECKING:
    from agents.headlines.agent import HeadlineAgent
    from stream.settings import Settings

DEREGISTER_TIMEOUT_S = 2.0  # the broker may be down
RATE_SAMPLES = 5  # reports over which events/s is averaged
log = logging.getLogger(__name__)


class ReportingApp(Protocol):
    """The app whose state is reported: of a worker that makes pages, or of one that only writes headlines."""

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
    """Reports at intervals while `run` runs; `deregister` ends that and deletes the worker's record."""

    def __init__(
        self, app: ReportingApp, rung: Callable[[], int], metrics_at: str, headlines: HeadlineAgent | None = None,
        forwarded: Callable[[], dict[str, ForwardedShare]] = dict,
    ) -> None:  # fmt: skip
        self._app, self._rung, self._metrics_at, self._headlines = app, rung, metrics_at, headlines
        self._forwarded = forwarded
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._samples: deque[tuple[float, float]] = deque(maxlen=RATE_SAMPLES)  # time (s), records done
        self._most_remaining = 0  # changelog records
        self._is_deregistered = False
        self._wake = asyncio.Event()

    def report_now(self) -> None:
        """Report without waiting for the interval to end: an operator who waited for the worker looks at once."""
        self._wake.set()

    async def run(self) -> None:
        """Report for ever. An error of the broker is only logged here; the agents that send events handle it."""
        while True:
            if self._app.started and not self._is_deregistered:
                try:
                    await self._send(encode(self.status()))
                except SendTimedOut:
                    pass  # Kafka is lost, which is logged once
                except KafkaError as error:
                    if not self._app.should_stop:
                        log.warning("the status of this worker could not be sent: %s", type(error).__name__)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), STATUS_INTERVAL_S)
            self._wake.clear()

    async def deregister(self) -> None:
        """Delete the worker's record, so that a worker which stops in good order is not reported as dead."""
        self._is_deregistered = True
        if self._app.started:
            with suppress(KafkaError, TimeoutError):
                await asyncio.wait_for(self._send(None), DEREGISTER_TIMEOUT_S)

    async def _send(self, value: bytes | None) -> None:
        await self._app.send_record(TOPIC, (self.name.encode(), value))

    def status(self) -> WorkerStatus:
        """The present state. The rate is that of the last RATE_SAMPLES calls."""
        self._samples.append((monotonic(), _records_done()))
        (since, done_before), (now, done) = self._samples[0], self._samples[-1]
        remaining = self._app.recovery_remaining()
        self._most_remaining = max(self._most_remaining, remaining) if remaining else 0
        return WorkerStatus(
            worker=self.name, app_id=self._app.settings.app_id, state=self._state(remaining),
            events_per_s=round((done - done_before) / (now - since), 1) if now > since else 0.0,
            rung=RUNGS[self._rung()], recovery_remaining=remaining,
            recovery_share=round(1 - remaining / self._most_remaining, 4) if self._most_remaining else 1.0,
            metrics=self._metrics_at, partitions=self._partitions(), role=self._app.settings.role,
            session_timeout=self._app.settings.session_timeout,
            forwarded=self._forwarded(),
        )  # fmt: skip

    def _partitions(self) -> dict[str, list[int]]:
        assigned = {topic: self._app.partitions(topic) for topic in sorted(self._app.read_topics())}
        if self._headlines is not None:
            assigned["copy-requests"] = self._headlines.group.partitions()
        return {topic: sorted(numbers) for topic, numbers in assigned.items() if numbers}

    def _state(self, remaining: int) -> str:
        if self._app.ready:
            return "ready"
        if self._app.rebalancing:
            return "rebalancing"
        return "recovering" if remaining else "starting"


def _records_done() -> float:
    # Ask this metric alone: for one sample, the registry collects all metrics, which takes some ms.
    [runs] = metrics.RUN_RECORDS.collect()
    return sum(
        sample.value
        for sample in runs.samples
        if sample.name.endswith("_sum") and sample.labels["topic"] in EVENT_TOPICS
    )
