"""The demo's traffic: sends the events of all simulated shoppers at their times, with a share of malformed records."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import orjson

from deploy.demo.figures import DemoFigures
from deploy.demo.shoppers import Event, Shopper, malformed_record, topic_of
from deploy.io.files import Outgoing
from deploy.io.send import sender
from stream.settings import Settings
from stream.times import parse_rfc3339

MALFORMED_SHARE = 0.01  # of the sent records
PAUSE_S = (1.5, 4.5)  # between a shopper's last event and their next visit
OPENING_S = 10.0  # in which the shoppers arrive, slowly at first
MAX_SLEEP_S = 0.05


class _Due(NamedTuple):
    """A record and when it is sent; `number` keeps the order of records due at the same time."""

    at: float  # s since the epoch
    number: int
    record: Outgoing
    event: Event | None  # None: malformed
    error: str  # code of the malformed record


class Traffic:
    """Simulated shoppers visiting the shop. `malformed` maps (topic, value) of malformed records to their error."""

    def __init__(self, settings: Settings, seed: int, shoppers: Sequence[Shopper], figures: DemoFigures) -> None:
        self._settings, self._shoppers, self._figures = settings, shoppers, figures
        self._rng = np.random.default_rng([seed, 11])
        self._due: list[_Due] = []  # a heap
        self._visits: list[tuple[float, int]] = []  # a heap: when (s since the epoch), number of the shopper
        self._count = 0
        self.malformed: dict[tuple[str, bytes], str] = {}

    async def run(self, start: float) -> None:
        """Send until cancelled, then wait for the acknowledgement of what was sent."""
        self._visits = [
            (start + OPENING_S * float(self._rng.uniform()) ** 0.5, number) for number in range(len(self._shoppers))
        ]
        heapq.heapify(self._visits)
        async with sender(self._settings) as client:
            try:
                while True:
                    now = time.time()
                    while self._visits[0][0] <= now:
                        self._visit(heapq.heappop(self._visits)[1], now)
                    while self._due and self._due[0].at <= now:
                        due = heapq.heappop(self._due)
                        await client.send(due.record)
                        if due.event is None:
                            self.malformed[due.record.topic, due.record.value] = due.error
                        self._figures.record_sent(due.event)
                    next_at = min(self._visits[0][0], self._due[0].at if self._due else self._visits[0][0])
                    await asyncio.sleep(max(0.0, min(next_at - time.time(), MAX_SLEEP_S)))
            finally:
                await client.acknowledged()

    def _visit(self, number: int, now: float) -> None:
        """Let a shopper visit the shop: schedule the events of this visit, and the next visit."""
        shopper, at = self._shoppers[number], now
        for event in shopper.visit(self._figures.newest_page.get(shopper.key), now):
            at = parse_rfc3339(event["time"])
            self._schedule(at, Outgoing(topic_of(event), shopper.key.encode(), orjson.dumps(event)), event)
            if self._rng.random() < MALFORMED_SHARE:
                bad = malformed_record(self._rng, shopper, at, self._count + 1)
                self._schedule(at, Outgoing(bad.topic, bad.key, bad.value), None, bad.error)
        heapq.heappush(self._visits, (at + float(self._rng.uniform(*PAUSE_S)), number))

    def _schedule(self, at: float, record: Outgoing, event: Event | None, error: str = "") -> None:
        self._count += 1
        heapq.heappush(self._due, _Due(at, self._count, record, event, error))
