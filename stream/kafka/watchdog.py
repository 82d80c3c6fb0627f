"""Notices a feed that has gone deaf: the process lives and Kafka answers others, but no fetch of ours is answered.

Nothing else shows it: the heartbeats go on, the group is content, and the lag is that of a quiet hour. So each partition
that the next fetch asks for is looked at: an answer, even an empty one, leaves a trace within some 20 ms.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from faust.types import TP

from stream.kafka.client.connection import NoBroker, bootstrap, client_options, connecting

if TYPE_CHECKING:
    from stream.kafka.app import BatchApp

log = logging.getLogger(__name__)
LOOK = 1.0  # s between two looks, at most
ANSWER = 10.0  # s that a broker has to answer the question whether it is there
ORDERLY = 30.0  # s that the worker has to end by itself: what is stuck may hold up the end too


class FetchStalled(RuntimeError):
    """Fetches are not answered, and Kafka is not the reason; the message says since when and what to do."""


class StallDetector:
    """For how long each partition has waited for an answer. Knows no clock and no Kafka."""

    def __init__(self) -> None:
        self._seen: dict[TP, tuple[object, float]] = {}

    def waits(self, traces: Mapping[TP, object], now: float) -> dict[TP, float]:
        """The wait (s) of each partition that a fetch asks for, by what its last answer left behind.

        A partition that is not asked for has nothing to wait for, and begins anew.
        """
        kept = {tp: self._seen[tp] for tp in traces if tp in self._seen and self._seen[tp][0] == traces[tp]}
        self._seen = {tp: kept.get(tp, (trace, now)) for tp, trace in traces.items()}
        return {tp: now - since for tp, (_, since) in self._seen.items()}

    def forgive(self) -> None:
        """Let every wait begin anew."""
        self._seen.clear()


class Watchdog:
    """Looks at the fetches of an app, and ends it where they are answered no more; run it with `run`."""

    def __init__(self, app: BatchApp) -> None:
        self._app = app
        self._limit: float = app.settings.fetch_timeout
        self._silence = StallDetector()
        self._idle_since: float | None = None  # since when no fetch asks for anything
        self._suspected: float | None = None  # since when Kafka answers others and not us
        self._away_since: float | None = None
        self.longest = 0.0  # s that a partition has waited by now
        self.problem: str | None = None  # why this process is of no use any more
        self.note: str | None = None  # what is wrong, but not with this process
        self._pause = min(LOOK, self._limit / 4)
        self._looked = self._beaten = monotonic()
        self._over = threading.Event()

    async def run(self) -> None:
        """Never returns; where the feed is deaf, it crashes the app with Deaf, or LookupError where a topic is gone.

        Where the loop itself is held up for as long, the process ends at once.
        """
        threading.Thread(target=self._watch_the_loop, name="watch", daemon=True).start()
        beats = asyncio.create_task(self._beat())
        try:
            await self._look()
        finally:
            beats.cancel()
            self._over.set()

    async def _beat(self) -> None:
        """A sign of life of the loop, also while Kafka is asked or the worker is being stopped."""
        while True:
            self._beaten = monotonic()
            await asyncio.sleep(self._pause)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._pause)
            if monotonic() - self._looked > 3 * self._pause:
                self._silence.forgive()  # we have been held up ourselves: a stopped process, a laptop that slept
            self._looked = monotonic()
            waits = self._silence.waits(self._traces(), self._looked)
            self.longest = max(waits.values(), default=0.0)
            if waits:
                self._idle_since = None
            if self.longest <= self._limit:
                self._suspected = None
            if self.longest > self._limit:
                await self._judge([tp for tp, wait in waits.items() if wait > self._limit])
            elif not waits:
                await self._idle(monotonic())
            elif self.longest < self._limit / 2:
                self._answers_again()

    def _watch_the_loop(self) -> None:
        """In a thread of its own: heartbeats go on from another one, so that a loop that is stuck would keep its partitions."""
        last = since = monotonic()
        beaten = self._beaten
        while not self._over.wait(self._pause):
            now = monotonic()
            held_up = (
                self._app.started and self._beaten == beaten
            )  # before it has started it may read a large catalogue
            if not held_up or now - last > 3 * self._pause:
                beaten, since = self._beaten, now
            elif now - since > self._limit:
                _end_at_once(
                    f"shopwindow: the worker stopped: its event loop has been held up for {now - since:.0f} s, so that it "
                    "has gone deaf and ends, for its supervisor to start it anew (SHOPWINDOW_FETCH_TIMEOUT is the limit)\n"
                )
            last = now

    async def _idle(self, now: float) -> None:
        """Enough is waiting, we own nothing, or a rebalance is under way; one without end is that of a topic that is gone."""
        if self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > self._limit:
            self._idle_since = now
            await self._judge([])

    def _answers_again(self) -> None:
        if self._away_since is not None:
            log.warning("Kafka answers again, after %.0f s", monotonic() - self._away_since)
            self._away_since = self.note = None

    def _traces(self) -> Mapping[TP, object]:
        return self._app.feed.traces() if self._app.started and not self._app.rebalancing else {}

    async def _judge(self, silent: list[TP]) -> None:
        hosts = ", ".join(bootstrap(self._app.settings))
        try:
            await self._ask_kafka(silent)
        except LookupError as error:
            self.problem = str(error)
            await self._end(error)
        except (NoBroker, KafkaError, OSError, TimeoutError) as error:
            self._silence.forgive()
            if self._away_since is None:
                self._away_since = monotonic() - self.longest
                self.note = f"Kafka at {hosts} does not answer; this worker keeps trying"
                log.warning("%s (%s)", self.note, error or type(error).__name__)
            return
        if self._away_since is not None:
            self._answers_again()
            self._silence.forgive()  # connecting again takes its time
            return
        now = self._silence.waits(self._traces(), monotonic())
        silent = [tp for tp in silent if now.get(tp, 0.0) > self._limit]
        if not silent:
            return
        if self._suspected is None:
            self._suspected = monotonic()  # a broker may be back this very moment, and our next attempt on its way
        elif monotonic() - self._suspected > self._limit / 4:
            tp = silent[0]
            self.problem = (
                f"no fetch from '{tp.topic}' {tp.partition} has been answered for {self.longest:.0f} s, though Kafka at "
                f"{hosts} answers; this process has gone deaf and ends, so that its supervisor starts it anew "
                "(SHOPWINDOW_FETCH_TIMEOUT is the limit)"
            )
            await self._end(FetchStalled(self.problem))

    async def _ask_kafka(self, silent: list[TP]) -> None:
        """Ask the leaders of the partitions for their ends, as a client of its own.

        Raises NoBroker, KafkaError or TimeoutError where Kafka does not answer, LookupError where a topic is gone.
        """
        settings = self._app.settings
        asker = AIOKafkaConsumer(**client_options(settings), request_timeout_ms=int(ANSWER * 1000))
        try:
            async with asyncio.timeout(ANSWER):
                with connecting(settings):
                    await asker.start()
                cluster = await asker._client.fetch_all_metadata()
                for topic in sorted({tp.topic for tp in silent} or self._app.agent_of):
                    if not cluster.partitions_for_topic(topic):
                        raise LookupError(
                            f"topic '{topic}' is gone, and with it what had not been read; `shopwindow topics create` "
                            "creates it, and this worker is to be started anew"
                        )
                partitions = [TopicPartition(*tp) for tp in silent]
                asker.assign(partitions)
                if partitions:
                    await asker.end_offsets(partitions)
        finally:
            await asker.stop()

    async def _end(self, error: Exception) -> None:
        deregister = f"shopwindow: the worker stopped: {error}\n"
        killer = threading.Timer(ORDERLY, _end_at_once, [deregister])
        killer.daemon = True
        killer.start()
        try:
            await self._app.crash(error)
            await asyncio.Event().wait()
        finally:
            killer.cancel()  # ended in good order: whoever holds the app lives on


def _end_at_once(deregister: str) -> None:
    sys.stderr.write(deregister)
    sys.stderr.flush()
    os._exit(1)
