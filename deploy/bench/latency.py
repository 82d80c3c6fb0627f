"""`shopwindow bench latency`: from an event sent to the page received, at fixed rates, against a bare aiokafka echo.

A whole worker (without GPT-2, for which no page waits) and the echo run side by side, each as a process on the same core,
and get their turns at each rate. Kafka has the other cores, and the clients take what is free. Events come at the gaps of
a Poisson process, so that some come together. Where a page answers several events of a shopper, each of them counts from
its own sending.
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

from deploy.bench.common import Figures, Plan, broker_beside, middle, say
from deploy.bench.engines import settings_of
from deploy.demo.shop import Item, generate_shop, rfc3339
from stream.kafka import topics
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.client.fetcher import FetchedRecords, Fetcher
from stream.settings import Settings

SECONDS = 120.0
RATES = (50, 200, 1000)  # events/s
WARM = 200  # events/s before the first round: caches, connections, profiles
PARTITIONS, ITEMS, SHOPPERS = 4, 3000, 2000
LATE = 30.0  # s after which an answer is given up


def measure(settings: Settings, plan: Plan) -> Figures:
    """Rounds of each rate. -> JSON `rates`: rate -> `p50_ms`, `p99_ms`, those of the echo, `ratio_p50`, `ratio_p99`."""
    with broker_beside() as broker:
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
        await engine.drive(WARM, max(1.0, seconds))
    for turn in range(plan.rounds):
        for rate in RATES:
            base, ours = await echo.drive(rate, seconds), await worker.drive(rate, seconds)
            found[rate].append(
                {
                    "p50_ms": ours[0], "p99_ms": ours[1], "echo_p50_ms": base[0], "echo_p99_ms": base[1],
                    "ratio_p50": ours[0] / base[0], "ratio_p99": ours[1] / base[1],
                }
            )  # fmt: skip
            say(
                f"round {turn + 1}/{plan.rounds} at {rate:4d}/s: p50 {ours[0]:.1f}, p99 {ours[1]:.1f} ms; "
                f"echo {base[0]:.1f}, {base[1]:.1f} ms"
            )
    rates = {
        str(rate): {name: middle([one[name] for one in rounds]) for name in rounds[0]} for rate, rounds in found.items()
    }
    return {"rates": rates, "rounds": plan.rounds, "seconds_a_round": seconds}


class _Trigger(msgspec.Struct):
    event_id: str


class _Page(msgspec.Struct):
    trigger: _Trigger


class _Event(msgspec.Struct):
    id: str


_event, _page = msgspec.json.Decoder(_Event).decode, msgspec.json.Decoder(_Page).decode
# Which event an answer of the engine is for.
_ANSWERS: dict[str, Callable[[bytes], str]] = {
    "echo": lambda value: _event(value).id,
    "worker": lambda value: _page(value).trigger.event_id,
}


class _Engine:
    """One engine with topics of its own, and the clients that send to it and read from it.

    Pages are read by a client of ours: aiokafka's takes a quarter of a core for 200 pages/s, of the two that there may be.
    """

    def __init__(
        self, settings: Settings, producer: AIOKafkaProducer, shop: list[Item], event_of: Callable[[bytes], str]
    ):
        self._settings, self._producer, self._shop, self._event_of = settings, producer, shop, event_of
        self._chance = random.Random(settings.prefix)
        self._sent = 0
        self._offsets: Any = {TopicPartition(settings.prefix + "homepages", p): 0 for p in range(PARTITIONS)}
        self.pending: dict[bytes, deque[tuple[str, float]]] = {}  # shopper -> (event id, sent at)
        self.latencies: list[float] = []  # s

    async def drive(self, rate: int, seconds: float) -> tuple[float, float]:
        """Send for so long, wait for all answers. -> p50 and p99 in ms. Raises RuntimeError where answers stay away."""
        self.latencies.clear()
        reader = asyncio.create_task(Fetcher(self._settings, lambda: self._offsets, self._take, pause=0.0).run())
        try:
            await self._send_for(rate, seconds)
            deadline = time.monotonic() + LATE
            while self.pending:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{len(self.pending)} shoppers had no answer after {LATE:.0f} s")
                if reader.done():
                    await reader
                await asyncio.sleep(0.01)
        finally:
            reader.cancel()
        found = sorted(self.latencies)
        return found[len(found) // 2] * 1000, found[int(len(found) * 0.99)] * 1000

    async def _send_for(self, rate: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = start = loop.time()
        while due - start < seconds:
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._send()
            due += self._chance.expovariate(rate)

    async def _send(self) -> None:
        shopper, item = self._chance.randrange(SHOPPERS), self._chance.choice(self._shop)
        self._sent += 1
        id, now = f"{self._settings.prefix}{self._sent}", time.time()
        key = b"shopper-%d" % shopper
        event = {
            "specversion": "1.0", "id": id, "source": "/bench", "type": "select_item", "time": rfc3339(now),
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

    def _take(self, tp: Any, asked: int, answer: FetchedRecords | None) -> None:
        came = time.perf_counter()
        assert answer is not None, "nothing removes pages"
        self._offsets[tp] = answer.next_offset
        for record in answer.records:
            waiting = self.pending.get(record.key)
            if waiting is None:
                continue
            newest = self._event_of(record.value)
            if all(id != newest for id, _ in waiting):
                continue  # a page of before
            while waiting:
                id, sent = waiting.popleft()
                self.latencies.append(came - sent)
                if id == newest:
                    break
            if not waiting:
                del self.pending[record.key]


@asynccontextmanager
async def _engine(broker: str, kind: str, shop: list[Item]) -> AsyncIterator[_Engine]:
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
            said = ""
            while ": ready" not in said:
                said = (await process.stderr.readline()).decode()
                if not said:
                    raise RuntimeError(f"the engine '{kind}' ended with status {await process.wait()} at its start")
            yield _Engine(settings, producer, shop, _ANSWERS[kind])
        finally:
            process.terminate()
            await process.wait()
