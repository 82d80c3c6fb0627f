"""Detects that Kafka is lost, and that fetches stall although Kafka answers other clients.

No other signal shows a stall: the heartbeats continue, the group is stable, and the lag looks like that of a quiet
hour. So the watchdog checks each partition that the next fetch requests. Every answer, even an empty one, changes the
partition's last answer within about 20 ms. If none comes, a separate client asks Kafka: either Kafka is lost, and the
worker waits for it, or the fetches of this process are stuck, and it ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from faust.types import TP

from stream.kafka.client.connection import NoBroker, bootstrap, client_options, connecting, stop_client
from stream.kafka.health.outage import Outage

if TYPE_CHECKING:
    from stream.kafka.app import BatchApp

CHECK_INTERVAL_S = 1.0  # maximum time between two checks
# Silence after which Kafka is probed, at most; with an earlier limit, that limit. Fetches are answered within 20 ms.
PROBE_AFTER_S = 5.0
PROBE_INTERVAL_S = 5.0  # maximum time between two probes while the silence lasts
PROBE_TIMEOUT_S = 10.0  # for the broker to answer the probe
SHUTDOWN_TIMEOUT_S = 30.0  # for the worker to end in good order: whatever is stuck may block its shutdown too


class FetchStalled(RuntimeError):
    """Fetches are not answered, and Kafka is not the reason; the message says since when and what to do."""


class StallDetector:
    """Measures how long each partition has waited for an answer. It has no clock and no Kafka of its own."""

    def __init__(self) -> None:
        self._seen: dict[TP, tuple[object, float]] = {}

    def waits(self, answers: Mapping[TP, object], now: float) -> dict[TP, float]:
        """Seconds since each requested partition's last answer changed. `answers`: a value for each last answer.

        A partition that is not requested does not wait; its wait starts at 0 when it is requested again.
        """
        kept = {tp: self._seen[tp] for tp in answers if tp in self._seen and self._seen[tp][0] == answers[tp]}
        self._seen = {tp: kept.get(tp, (answer, now)) for tp, answer in answers.items()}
        return {tp: now - since for tp, (_, since) in self._seen.items()}

    def reset(self) -> None:
        """Restart every wait at 0."""
        self._seen.clear()


class Watchdog:
    """Checks the fetches of an app, and ends the app if they are no longer answered; start it with `run`."""

    def __init__(self, app: BatchApp) -> None:
        self._app = app
        self._limit: float = app.settings.fetch_timeout
        self._detector = StallDetector()
        self._silent_since: float | None = None  # since when the partition that waits longest has no answer
        self._idle_since: float | None = None  # since when no fetch requests anything
        self._suspected_since: float | None = None  # since when Kafka answers the probe but not our fetches
        self.outage = Outage(app.settings)
        self._answers_at_loss: Mapping[TP, object] = {}  # of the partitions that were silent
        self._probe_at = 0.0  # before this time Kafka is not probed again
        self.problem: str | None = None  # why this process cannot continue
        self._interval = min(CHECK_INTERVAL_S, self._limit / 4)
        self._beat_at = monotonic()
        self._stopped = threading.Event()

    @property
    def longest(self) -> float:
        """How long (s) a partition has waited for the answer to a fetch, or Kafka has been lost; 0 if neither."""
        since = self._silent_since if self.outage.since is None else self.outage.since
        return 0.0 if since is None else monotonic() - since

    async def run(self) -> None:
        """Run forever. If fetches stall, crash the app with FetchStalled, or LookupError if a topic was deleted.

        If the event loop itself is blocked for as long, the process exits at once.
        """
        threading.Thread(target=self._watch_loop, name="watch", daemon=True).start()
        heartbeat = asyncio.create_task(self._beat())
        try:
            while True:
                await asyncio.sleep(self._interval)
                await self._check(monotonic())
        finally:
            heartbeat.cancel()
            self._stopped.set()

    async def _beat(self) -> None:
        """Show that the event loop runs, also while Kafka is probed or the worker is being stopped."""
        while True:
            now = monotonic()
            if now - self._beat_at > 3 * self._interval:
                # This process was suspended itself: a stopped process, or a laptop that slept.
                self._detector.reset()
            self._beat_at = now
            await asyncio.sleep(self._interval)

    async def _check(self, now: float) -> None:
        answers = self._last_answers()
        waits = self._detector.waits(answers, now)
        longest = max(waits.values(), default=0.0)
        self._silent_since = now - longest if longest else None
        if self.outage.since is not None:
            await self._check_outage(answers, now)
            return
        if waits:
            self._idle_since = None
        if longest <= self._limit:
            self._suspected_since = None
        after = min(self._limit, PROBE_AFTER_S)
        if longest > after:
            await self._diagnose([tp for tp, wait in waits.items() if wait > after], now - longest)
        elif not waits:
            await self._check_idle(now)

    async def _check_outage(self, answers: Mapping[TP, object], now: float) -> None:
        """End the outage if the partitions that were silent have been answered, or Kafka answers for them."""
        requested = [tp for tp in self._answers_at_loss if tp in answers]
        are_answered = [answers[tp] not in (None, self._answers_at_loss[tp]) for tp in requested]
        has_ended = bool(are_answered) and all(are_answered)
        if not has_ended and self._may_probe(now):
            error = await self._probe_error(list(self._answers_at_loss))
            has_ended = error is None or isinstance(error, LookupError)
        if has_ended:
            self.outage.end()
            self._silent_since = self._idle_since = None
            self._detector.reset()  # our own clients need time to reconnect

    def _watch_loop(self) -> None:
        """Watch the event loop from a thread. Heartbeats have their own: a blocked loop would keep its partitions."""
        last = since = monotonic()
        beat_at = self._beat_at
        while not self._stopped.wait(self._interval):
            now = monotonic()
            # Before the app has started, the loop may be reading a large catalogue.
            is_blocked = self._app.started and self._beat_at == beat_at
            if not is_blocked or now - last > 3 * self._interval:
                beat_at, since = self._beat_at, now
            elif now - since > self._limit:
                _exit_now(
                    f"shopwindow: the worker stopped: its event loop has been blocked for {now - since:.0f} s; this "
                    "process ends, so that its supervisor restarts it (SHOPWINDOW_FETCH_TIMEOUT is the limit)\n"
                )
            last = now

    async def _check_idle(self, now: float) -> None:
        """Handle that no fetch is requested: all backlogs are full, no partition is ours, or there is a rebalance.

        A rebalance that does not end is a sign of a deleted topic.
        """
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > self._limit:
            since, self._idle_since = self._idle_since, now
            await self._diagnose([], since)

    def _last_answers(self) -> Mapping[TP, object]:
        if not self._app.started or self._app.rebalancing:
            return {}
        return self._app.batch_consumer.last_answers()

    def _may_probe(self, now: float) -> bool:
        """Whether the last probe is long enough ago; if so, count the next as made."""
        if now < self._probe_at:
            return False
        self._probe_at = now + min(PROBE_INTERVAL_S, self._limit / 4)
        return True

    async def _probe_error(self, silent: list[TP]) -> Exception | None:
        """Why Kafka does not answer for these partitions; None if it does."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self._probe_kafka(silent)
        except (NoBroker, KafkaError, OSError, LookupError) as error:
            return error
        return None

    async def _diagnose(self, silent: list[TP], since: float) -> None:
        """Find out why partitions are not answered: a deleted topic, a broker that is down, or this process.

        since: time (monotonic) of the last answer.
        """
        if not self._may_probe(monotonic()):
            return
        answers = self._last_answers()
        error = await self._probe_error(silent)
        if isinstance(error, LookupError):
            # A broker that starts may not know its topics yet.
            if monotonic() - since > self._limit:
                self.problem = str(error)
                await self._end_app(error)
            return
        if error is not None:
            self._answers_at_loss = {tp: answers.get(tp) for tp in silent}
            self.outage.begin(since, error)
            return
        now = self._detector.waits(self._last_answers(), monotonic())
        silent = [tp for tp in silent if now.get(tp, 0.0) > self._limit]
        if not silent:
            return
        if self._suspected_since is None:
            # The broker may have just come back, with our next attempt under way.
            self._suspected_since = monotonic()
        elif monotonic() - self._suspected_since > self._limit / 4:
            tp, hosts = silent[0], ", ".join(bootstrap(self._app.settings))
            self.problem = (
                f"no fetch from '{tp.topic}' {tp.partition} has been answered for {self.longest:.0f} s, though Kafka "
                f"at {hosts} answers; the fetches of this process are stuck and it ends, so that its supervisor "
                "restarts it (SHOPWINDOW_FETCH_TIMEOUT is the limit)"
            )
            await self._end_app(FetchStalled(self.problem))

    async def _probe_kafka(self, silent: list[TP]) -> None:
        """Ask the leaders of the partitions for their ends, with a separate client.

        Raises NoBroker, KafkaError or TimeoutError if Kafka does not answer, and LookupError if a topic was deleted.
        """
        settings = self._app.settings
        probe = AIOKafkaConsumer(**client_options(settings), request_timeout_ms=int(PROBE_TIMEOUT_S * 1000))
        try:
            with connecting(settings):
                await probe.start()
            cluster = await probe._client.fetch_all_metadata()
            for topic in sorted({tp.topic for tp in silent} or self._app.agent_of):
                if not cluster.partitions_for_topic(topic):
                    raise LookupError(
                        f"topic '{topic}' was deleted, with the records that had not been read; `shopwindow topics "
                        "create` creates it, and this worker must be restarted"
                    )
            partitions = [TopicPartition(*tp) for tp in silent]
            probe.assign(partitions)
            if partitions:
                await probe.end_offsets(partitions)
        finally:
            await stop_client(probe)

    async def _end_app(self, error: Exception) -> None:
        """Crash the app. If it has not ended within SHUTDOWN_TIMEOUT_S, exit the process."""
        killer = threading.Timer(SHUTDOWN_TIMEOUT_S, _exit_now, [f"shopwindow: the worker stopped: {error}\n"])
        killer.daemon = True
        killer.start()
        try:
            await self._app.crash(error)
            await asyncio.Event().wait()
        finally:
            killer.cancel()  # the app ended in good order


def _exit_now(message: str) -> None:
    sys.stderr.write(message)
    sys.stderr.flush()
    os._exit(1)
