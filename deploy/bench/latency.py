"""`shopwindow bench latency`: time from sending an event to receiving its page, compared with a bare aiokafka echo.

A whole worker and the echo run as processes on the same core and take turns at each rate. The worker runs without
GPT-2, because no page waits for a headline. Kafka has the other cores; the clients use what is free. Events arrive as a
Poisson process, so some arrive together. If a page answers several events of a shopper, each is measured from its own
sending.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer, TopicPartition

from deploy.bench.common import Figures, Plan, broker_on_other_cores, report, rounded_median
from deploy.bench.engines import settings_of
from deploy.demo.shop import Item, generate_shop
from stream.kafka import topics
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.client.fetcher import FetchedRecords, Fetcher
from stream.settings import Settings
from stream.times import rfc3339_us

SECONDS = 120.0
RATES = (50, 200, 1000)  # events/s
WARM_UP_RATE = 200  # events/s before the first round, to fill caches, connections and profiles
PARTITIONS, ITEMS, SHOPPERS = 4, 3000, 2000
ANSWER_TIMEOUT_S = 30.0


def measure(settings: Settings, plan: Plan) -> Figures:
    """Return `rates`: for each rate `p50_ms`, `p99_ms`, the same of the echo, and their ratios."""
    with broker_on_other_cores() as broker:
        return asyncio.run(_measure(broker.bootstrap, plan))


def table(figures: Figures) -> str:
    lines = [f"{'events/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'echo p50':>9} {'echo p99':>9} {'p50':>7} {'p99':>7}"]
    lines += [
        f"{rate:>8} {f['p50_ms']:8.1f} {f['p99_ms']:8.1f} {f['echo_p50_ms']:9.1f} {f['echo_p99_ms']:9.1f}"
        f" {f['ratio_p50']:6.1f}x {f['ratio_p99']:6.1f}x"
        for rate, f in figures["rates"].items()
    ]
    return "\n".join(lines)


async def _measure(broker: str, plan: Plan) -> Figures:
    shop = generate_shop(1, ITEMS, now=time.time())
    async with _engine(broker, "echo", shop) as echo, _engine(broker, "worker", shop) as worker:
        return await _rounds(echo, worker, plan)


async def _rounds(echo: _Engine, worker: _Engine, plan: Plan) -> Figures:
    seconds = plan.round_seconds / (2 * len(RATES))
    found: dict[int, list[Figures]] = {rate: [] for rate in RATES}
    for engine in (echo, worker):
        await engine.drive(WARM_UP_RATE, max(1.0, seconds))
    for turn in range(plan.rounds):
        for rate in RATES:
            baseline, ours = await echo.drive(rate, seconds), await worker.drive(rate, seconds)
            found[rate].append(
                {
                    "p50_ms": ours[0], "p99_ms": ours[1], "echo_p50_ms": baseline[0], "echo_p99_ms": baseline[1],
                    "ratio_p50": ours[0] / baseline[0], "ratio_p99": ours[1] / baseline[1],
                }
            )  # fmt: skip
            report(
                f"round {turn + 1}/{plan.rounds} at {rate:4d}/s: p50 {ours[0]:.1f}, p99 {ours[1]:.1f} ms; "
                f"echo {baseline[0]:.1f}, {baseline[1]:.1f} ms"
            )
    rates = {
        str(rate): {name: rounded_median([one[name] for one in rounds]) for name in rounds[0]}
        for rate, rounds in found.items()
    }
    return {"rates": rates, "rounds": plan.rounds, "seconds_a_round": seconds}


class _Trigger(msgspec.Struct):
    event_id: str


class _Page(msgspec.Struct):
    trigger: _Trigger


class _Event(msgspec.Struct):
    id: str


_event, _page = msgspec.json.Decoder(_Event).decode, msgspec.json.Decoder(_Page).decode
# The id of the event that an engine's answer is for.
_EVENT_ID_OF: dict[str, Callable[[bytes], str]] = {
    "echo": lambda value: _event(value).id,
    "worker": lambda value: _page(value).trigger.event_id,
}


class _Engine:
    """One engine with its own topics, and the clients that send to it and read from it.

    Pages are read with our `Fetcher`: aiokafka's consumer takes a quarter of a core for 200 pages/s, and the machine
    may have only two.
    """

    def __init__(
        self, settings: Settings, producer: AIOKafkaProducer, shop: list[Item], event_id_of: Callable[[bytes], str]
    ):
        self._settings, self._producer, self._shop, self._event_id_of = settings, producer, shop, event_id_of
        self._rng = random.Random(settings.prefix)
        self._sent = 0
        self._offsets: Any = {TopicPartition(settings.prefix + "homepages", p): 0 for p in range(PARTITIONS)}
        self.pending: dict[bytes, deque[tuple[str, float]]] = {}  # shopper -> (event id, when sent)
        self.latencies: list[float] = []  # s

    async def drive(self, rate: int, seconds: float) -> tuple[float, float]:
        """Send at `rate` events/s, wait for all answers, and return p50 and p99 in ms.

        Raises RuntimeError if answers are missing after ANSWER_TIMEOUT_S.
        """
        self.latencies.clear()
        reader = asyncio.create_task(Fetcher(self._settings, lambda: self._offsets, self._receive, pause=0.0).run())
        try:
            await self._send_for(rate, seconds)
            deadline = time.monotonic() + ANSWER_TIMEOUT_S
            while self.pending:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{len(self.pending)} shoppers had no answer after {ANSWER_TIMEOUT_S:.0f} s")
                if reader.done():
                    await reader
                await asyncio.sleep(0.01)
        finally:
            reader.cancel()
        latencies = sorted(self.latencies)
        return latencies[len(latencies) // 2] * 1000, latencies[int(len(latencies) * 0.99)] * 1000

    async def _send_for(self, rate: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = start = loop.time()
        while due - start < seconds:
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._send()
            due += self._rng.expovariate(rate)

    async def _send(self) -> None:
        shopper, item = self._rng.randrange(SHOPPERS), self._rng.choice(self._shop)
        self._sent += 1
        id, now = f"{self._settings.prefix}{self._sent}", time.time()
        key = b"shopper-%d" % shopper
        event = {
            "specversion": "1.0", "id": id, "source": "/bench", "type": "select_item", "time": rfc3339_us(now),
            "data": {
                "user_id": key.decode(), "channel": "web", "locale": "en",
                "items": [
                    {name: item[name] for name in ("item_id", "price")}
                    | {"item_category": item["category"], "item_brand": item["brand"]}
                ],
            },
        }  # fmt: skip
        self.pending.setdefault(key, deque()).append((id, time.perf_counter()))
        await self._producer.send(
            self._settings.prefix + "clicks", msgspec.json.encode(event), key=key,
            partition=partition_of(key, self._settings.partitions),
        )  # fmt: skip

    def _receive(self, tp: Any, offset: int, answer: FetchedRecords | None) -> None:
        """Take the latency of every event that a received record answers."""
        received = time.perf_counter()
        assert answer is not None, "pages are never deleted"
        self._offsets[tp] = answer.next_offset
        for record in answer.records:
            waiting = self.pending.get(record.key)
            if waiting is None:
                continue
            newest = self._event_id_of(record.value)
            if all(id != newest for id, _ in waiting):
                continue  # a page for an earlier event
            while waiting:
                id, sent = waiting.popleft()
                self.latencies.append(received - sent)
                if id == newest:
                    break
            if not waiting:
                del self.pending[record.key]


@asynccontextmanager
async def _engine(broker: str, kind: str, shop: list[Item]) -> AsyncIterator[_Engine]:
    """Run an engine in a process of its own, with a catalogue, until the context is closed."""
    settings = settings_of(broker, f"bench-{kind}-{time.time_ns()}-", PARTITIONS)
    await topics.create(settings)
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for item in shop:
            key = item["item_id"].encode()
            await producer.send(
                settings.prefix + "catalog", msgspec.json.encode(item), key=key, partition=partition_of(key, PARTITIONS)
            )
        await producer.flush()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deploy.bench.engines", kind, broker, settings.prefix, str(PARTITIONS),
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            line = ""
            while ": ready" not in line:
                line = (await process.stderr.readline()).decode()
                if not line:
                    raise RuntimeError(
                        f"the engine '{kind}' ended with status {await process.wait()} before it was ready"
                    )
            yield _Engine(settings, producer, shop, _EVENT_ID_OF[kind])
        finally:
            process.terminate()
            await process.wait()
