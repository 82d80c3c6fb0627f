"""The demo: Kafka, a shop, a worker and simulated shoppers. Shoppers and worker meet only through Kafka."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.broker.child_process import start_child, stop_child
from deploy.broker.embedded import Broker, BrokerError, free_port
from deploy.demo.audit import Readback, accepted_events, audit, click_rates
from deploy.demo.figures import POPULAR_SHARE, DemoFigures, group_of
from deploy.demo.screen import Screen, summary
from deploy.demo.shop import Item, generate_shop
from deploy.demo.shoppers import Shelves, Shopper
from deploy.demo.traffic import Traffic
from deploy.io.files import Outgoing
from deploy.io.send import sender
from deploy.rate import wilson
from stream.kafka import topics
from stream.kafka.client.connection import client_options, connecting, stop_client
from stream.kafka.global_topics import read_topic
from stream.logs import say
from stream.profile.codec import decode_record, unpack_profiles
from stream.settings import Settings, to_environ

SHOPPERS = 120
PARTITIONS = 4  # enough for one worker; more would only cost more requests
READY_TIMEOUT_S, CATCH_UP_TIMEOUT_S, CANCEL_TIMEOUT_S = 90.0, 60.0, 10.0
LAST_PAGES_TIMEOUT_S, LAST_PAGES_QUIET_S = 10.0, 0.5
SCREEN_INTERVAL_S = 0.5


def demo(settings: Settings, seconds: float | None, seed: int, as_json: bool) -> int:
    """Run the demo for `seconds` (None: until Ctrl-C) and audit it. Return 0 if every invariant holds, else 1.

    Raises BrokerError, NoBroker.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="shopwindow-demo-"))
        broker: Broker | None = None
        if settings.broker:
            # A prefix keeps the demo away from the topics of a real shop.
            settings = dataclasses.replace(settings, prefix=f"{settings.prefix}demo-{uuid.uuid4().hex[:8]}-")
        else:
            broker = stack.enter_context(Broker(report=say))
            settings = dataclasses.replace(
                settings, broker=f"kafka://{broker.bootstrap}", prefix="", replication=1, security_protocol="PLAINTEXT"
            )
        settings = dataclasses.replace(
            settings,
            app_id=f"{settings.prefix}demo",
            partitions=PARTITIONS,
            popular_share=POPULAR_SHARE,
            robot_events_per_minute=0,  # simulated shoppers act ten times as fast as people
            web_port=free_port(),
            web_host="127.0.0.1",
        )
        run = Demo(settings, seconds, seed, as_json, Path(folder) / "worker.log").run()
        return asyncio.run(_while_broker_lives(run, broker))


async def _while_broker_lives(run: Coroutine[Any, Any, int], broker: Broker | None) -> int:
    """Return the result of `run`, but cancel it and raise BrokerError if the embedded Kafka exits first."""
    work = asyncio.create_task(run)
    while not (await asyncio.wait([work], timeout=0.5))[0]:
        if broker is not None and broker.poll() is not None:
            # Every client would log the lost connection again and again.
            for name in ("aiokafka", "asyncio"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            work.cancel()
            await asyncio.wait([work], timeout=CANCEL_TIMEOUT_S)
            raise BrokerError(f"Kafka ended by itself while the demo ran: {broker.end_reason()}")
    return work.result()


class Demo:
    """One run: open the shop, start a worker, let shoppers shop, wait for the worker, audit the topics."""

    def __init__(self, settings: Settings, seconds: float | None, seed: int, as_json: bool, log: Path) -> None:
        self._settings, self._seconds, self._seed, self._as_json = settings, seconds, seed, as_json
        self._log = log
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Return the exit status. Raises BrokerError if the worker dies, is not ready in time or falls behind."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        say("creating topics and opening the shop")
        await topics.create(self._settings)
        shop = generate_shop(self._seed, now=time.time())
        shelves = Shelves(shop)
        shoppers = [Shopper(self._seed, number, shelves) for number in range(SHOPPERS)]
        figures = DemoFigures(shop, shoppers[0], self._seconds)
        traffic = Traffic(self._settings, self._seed, shoppers, figures)
        await self._publish_catalog(shop)
        say("starting the worker")
        with self._log.open("wb") as log:
            environ = to_environ(self._settings, os.environ)
            worker = start_child([sys.executable, "-m", "shopwindow", "worker"], log, environ)
        try:
            await self._wait_until_ready(worker)
            await self._shop(worker, traffic, figures)
            await self._wait_until_caught_up(worker)
        finally:
            status = await asyncio.to_thread(stop_child, worker)
        if status:
            raise BrokerError(self._worker_ended(worker))
        return await self._report(traffic, figures)

    async def _publish_catalog(self, shop: list[Item]) -> None:
        async with sender(self._settings) as client:
            for item in shop:
                await client.send(Outgoing("catalog", item["item_id"].encode(), orjson.dumps(item)))

    def _worker_ended(self, worker: subprocess.Popen[bytes]) -> str:
        return f"the worker ended with status {worker.poll()}; its last log line: {self._last_log_line()}"

    def _last_log_line(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        messages = [line.removeprefix("shopwindow: ") for line in lines if line.startswith("shopwindow: ")]
        return (messages or lines or ["none"])[-1]

    async def _wait_until_ready(self, worker: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while not self._stop.is_set():
                if worker.poll() is not None:
                    raise BrokerError(self._worker_ended(worker))
                with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    async with session.get(f"http://127.0.0.1:{self._settings.web_port}/readyz") as answer:
                        if answer.status == 200:
                            return
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"the worker was not ready after {READY_TIMEOUT_S:.0f} s: {self._last_log_line()}"
                    )
                await asyncio.sleep(0.05)

    async def _shop(self, worker: subprocess.Popen[bytes], traffic: Traffic, figures: DemoFigures) -> None:
        """Let shoppers shop until the time is over, the user stops the demo, or the worker dies."""
        if self._stop.is_set():
            return
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), auto_offset_reset="earliest", fetch_max_wait_ms=100
        )
        try:
            with connecting(self._settings):
                await consumer.start()
        except BaseException:
            await stop_client(consumer)
            raise
        consumer.assign(self._partitions("homepages", "dead-letters", "copy"))
        start = time.time()
        shopping = asyncio.create_task(traffic.run(start))
        readers = [
            asyncio.create_task(self._read(consumer, figures)),
            asyncio.create_task(self._show(start, figures)),
        ]
        try:
            await self._watch(worker, [shopping, *readers], start)
            shopping.cancel()
            await asyncio.gather(shopping, return_exceptions=True)
            await _wait_for_last_pages(figures)
        finally:
            for task in (shopping, *readers):
                task.cancel()
            await asyncio.gather(shopping, *readers, return_exceptions=True)
            await stop_client(consumer)

    async def _watch(self, worker: subprocess.Popen[bytes], tasks: list[asyncio.Task[None]], start: float) -> None:
        """Return when the time is over or the user stops the demo. Raises if the worker or a task has failed."""
        deadline = None if self._seconds is None else start + self._seconds
        while not self._stop.is_set() and (deadline is None or time.time() < deadline):
            if worker.poll() is not None:
                raise BrokerError(self._worker_ended(worker))
            for task in tasks:
                if task.done():
                    task.result()
            with suppress(asyncio.TimeoutError):
                left = 0.25 if deadline is None else min(0.25, max(0.01, deadline - time.time()))
                await asyncio.wait_for(self._stop.wait(), left)

    async def _read(self, consumer: AIOKafkaConsumer, figures: DemoFigures) -> None:
        """Pass pages, dead letters and headlines to the figures as they arrive."""
        async for record in consumer:
            topic = record.topic.removeprefix(self._settings.prefix)
            if topic == "dead-letters":
                figures.dead_letters += 1
            elif topic == "copy":
                figures.headlines += orjson.loads(record.value)["text"] is not None
            else:
                figures.record_page(orjson.loads(record.value), time.time())

    async def _show(self, start: float, figures: DemoFigures) -> None:
        with Screen(self._as_json) as screen:
            while True:
                screen.show(figures.view(start, time.time()))
                await asyncio.sleep(SCREEN_INTERVAL_S)

    async def _wait_until_caught_up(self, worker: subprocess.Popen[bytes]) -> None:
        """Return when the workers' group has committed everything that was sent."""
        group = AIOKafkaConsumer(
            **client_options(self._settings), group_id=self._settings.app_id, enable_auto_commit=False
        )
        try:
            with connecting(self._settings):
                await group.start()
            partitions = self._partitions("clicks", "purchases", "refreshes")
            deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
            while True:
                ends = await group.end_offsets(partitions)
                behind = sum([end - (await group.committed(tp) or 0) for tp, end in ends.items()])
                if behind <= 0:
                    return
                if worker.poll() is not None or time.monotonic() > deadline:
                    raise BrokerError(f"the worker is {behind} records behind: {self._last_log_line()}")
                await asyncio.sleep(0.1)
        finally:
            await stop_client(group)

    def _partitions(self, *names: str) -> list[TopicPartition]:
        full_names = [self._settings.prefix + name for name in names]
        return [TopicPartition(topic, p) for topic in full_names for p in range(self._settings.partitions)]

    async def _report(self, traffic: Traffic, figures: DemoFigures) -> int:
        """Audit the topics, print the summary, and return the exit status."""
        say("reading the topics back")
        read = await self._read_back()
        found = audit(read, traffic.malformed)
        rates = click_rates(
            [(key, event) for (key, _, _), event in accepted_events(read.event_records).items()], group_of
        )
        p50, p99 = np.percentile(figures.latencies, [50, 99]) * 1000 if figures.latencies else (0.0, 0.0)
        result: dict[str, Any] = {
            "events": found.events,
            "accepted": found.accepted,
            "dead_letters": len(read.dead_letters),
            "pages": len(read.homepages),
            "shoppers": len(read.profiles),
            "freshness_p50_ms": round(float(p50), 2),
            "freshness_p99_ms": round(float(p99), 2),
            "copies_generated": figures.headlines,
        }
        for group, rate in rates.items():
            result[f"ctr_{group}"] = round(rate.value, 5)
        for group, rate in rates.items():
            result[f"ctr_{group}_ci"] = [round(bound, 5) for bound in wilson(rate)]
        result |= {"invariants": found.invariants, "ok": all(found.invariants.values()) and found.accepted > 0}
        if not found.accepted:
            found.problems.append("no event was accepted: the demo ended before a shopper arrived")
        print(summary(result, found.problems), file=sys.stderr if self._as_json else sys.stdout, flush=True)
        if self._as_json:
            print(orjson.dumps(result).decode(), flush=True)
        return 0 if result["ok"] else 1

    async def _read_back(self) -> Readback:
        async def all_of(topic: str) -> list[Any]:
            return [record async for record in read_topic(self._settings, topic)]

        values: dict[bytes, bytes] = {}
        for record in await all_of("profiles"):
            # Keys that start with a zero byte are the table's metadata.
            if not record.key.startswith(b"\x00"):
                values[record.key] = record.value
        rows = unpack_profiles([decode_record(value)[0] for value in values.values()])
        return Readback(
            event_records={topic: await all_of(topic) for topic in ("clicks", "purchases")},
            homepages=await all_of("homepages"),
            impressions=await all_of("impressions"),
            dead_letters=await all_of("dead-letters"),
            catalog=await all_of("catalog"),
            profiles=dict(zip(values, rows, strict=True)),
            copy=await all_of("copy"),
        )


async def _wait_for_last_pages(figures: DemoFigures) -> None:
    """Return once no page has arrived for LAST_PAGES_QUIET_S."""
    deadline, pages = time.monotonic() + LAST_PAGES_TIMEOUT_S, -1
    while pages != figures.pages and time.monotonic() < deadline:
        pages = figures.pages
        await asyncio.sleep(LAST_PAGES_QUIET_S)
