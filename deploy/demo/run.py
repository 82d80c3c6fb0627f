"""The demo: Kafka, a shop, a worker, and shoppers who see its pages. Everything goes through Kafka, both ways."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Coroutine
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.page.path import popular_group
from deploy.broker.child_process import start_child, stop_child
from deploy.broker.embedded import Broker, BrokerError, free_port
from deploy.demo.audit import Audit, Readback, accepted_events, audit, click_rates
from deploy.demo.screen import Screen, View, summary
from deploy.demo.shop import Item, generate_shop
from deploy.demo.shoppers import Shelves, Shopper, malformed, topic_of
from deploy.io.clients import sender
from deploy.io.files import Outgoing
from deploy.rate import Rate, wilson
from stream.kafka import topics
from stream.kafka.client.connection import client_options, connecting
from stream.kafka.global_topics import read_topic
from stream.profile.codec import decode_record
from stream.profile.fold import PROFILE, PROFILE_VERSION
from stream.row_codec import unpack
from stream.settings import Settings

SHOPPERS = 120
PARTITIONS = 4  # one worker on one machine: more of them only cost more requests
POPULAR_SHARE = 0.5
BROKEN_SHARE = 0.01  # of what is sent
PAUSE = (1.5, 4.5)  # s between a shopper's last act and her next look
OPENING = 10.0  # s in which the shop fills, slowly at first
READY_SECONDS, SETTLE_SECONDS, GIVE_UP_SECONDS = 90.0, 60.0, 10.0


def say(line: str) -> None:
    print(f"shopwindow: {line}", file=sys.stderr, flush=True)


def demo(settings: Settings, seconds: float | None, seed: int, as_json: bool) -> int:
    """Run the demo for `seconds` (None: until Ctrl-C), then audit it. -> exit status: 0 where every invariant holds.

    Raises BrokerError, NoBroker.
    """
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryDirectory(prefix="shopwindow-demo-"))
        broker: Broker | None = None
        if settings.broker:
            # Not among the topics of somebody's real shop.
            settings = dataclasses.replace(settings, prefix=f"{settings.prefix}demo-{uuid.uuid4().hex[:8]}-")
        else:
            broker = stack.enter_context(Broker(say=say))
            settings = dataclasses.replace(
                settings, broker=f"kafka://{broker.bootstrap}", prefix="", replication=1, security_protocol="PLAINTEXT"
            )
        settings = dataclasses.replace(
            settings,
            app_id=f"{settings.prefix}demo",
            partitions=PARTITIONS,
            popular_share=POPULAR_SHARE,
            web_port=free_port(),
            web_host="127.0.0.1",
        )
        return asyncio.run(_guarded(Demo(settings, seconds, seed, as_json, Path(log)).run(), broker))


async def _guarded(run: Coroutine[Any, Any, int], broker: Broker | None) -> int:
    """The run, given up when the embedded Kafka ends before it. Raises BrokerError then."""
    work = asyncio.create_task(run)
    while not (await asyncio.wait([work], timeout=0.5))[0]:
        if broker is not None and broker.poll() is not None:
            for name in ("aiokafka", "asyncio"):  # every client would tell the same, again and again
                logging.getLogger(name).setLevel(logging.CRITICAL)
            work.cancel()
            await asyncio.wait([work], timeout=GIVE_UP_SECONDS)
            raise BrokerError(f"Kafka ended by itself while the demo ran: {broker.last_words()}; start it again")
    return work.result()


class Demo:
    """One run."""

    def __init__(self, settings: Settings, seconds: float | None, seed: int, as_json: bool, folder: Path) -> None:
        self._settings, self._seconds, self._seed, self._as_json = settings, seconds, seed, as_json
        self._log = folder / "worker.log"
        self._stop = asyncio.Event()
        self._shop: list[Item] = []
        self._people: list[Shopper] = []
        self._pages: dict[str, dict[str, Any]] = {}  # newest of each shopper
        self._sent = self._seen = self._letters = self._copies = 0
        self._malformed: dict[tuple[str, bytes], str] = {}
        self._looks: dict[str, set[tuple[str, str]]] = {"personal": set(), "popular": set()}
        self._clicks: dict[str, set[tuple[str, str]]] = {"personal": set(), "popular": set()}
        self._latencies: list[float] = []  # s, of every page that answered an event
        self._recent: deque[float] = deque(maxlen=1000)
        self._answered: dict[str, str] = {}  # shopper -> event of her last page
        self._view = View(seconds=seconds)

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop.set)
        say("creating topics and opening the shop")
        await topics.create(self._settings)
        self._shop = generate_shop(self._seed, now=time.time())
        shelves = Shelves(self._shop)
        self._people = [Shopper(self._seed, number, shelves) for number in range(SHOPPERS)]
        async with sender(self._settings) as client:
            for item in self._shop:
                await client.send(Outgoing("catalog", item["item_id"].encode(), orjson.dumps(item)))
        with self._log.open("wb") as log:
            worker = start_child([sys.executable, "-m", "shopwindow", "worker"], log, self._environ())
        try:
            await self._until_ready(worker)
            await self._live(worker)
            await self._settled(worker)
        finally:
            status = await asyncio.to_thread(stop_child, worker)
        if status:
            raise BrokerError(self._ended(worker))
        return await self._report()

    def _environ(self) -> dict[str, str]:
        environ = dict(os.environ)
        default = Settings()
        for name in (f.name for f in dataclasses.fields(Settings)):
            value = getattr(self._settings, name)
            if value != getattr(default, name):
                environ["SHOPWINDOW_" + name.upper()] = str(value)
        environ["SHOPWINDOW_PREFIX"] = self._settings.prefix
        return environ

    def _ended(self, worker: subprocess.Popen[bytes]) -> str:
        return f"the worker ended with status {worker.poll()}; the last that it said: {self._last_words()}"

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        told = [line.removeprefix("shopwindow: ") for line in lines if line.startswith("shopwindow: ")]
        return (told or lines or ["nothing"])[-1]

    async def _until_ready(self, worker: subprocess.Popen[bytes]) -> None:
        say("starting the worker")
        deadline = time.monotonic() + READY_SECONDS
        async with aiohttp.ClientSession() as session:
            while not self._stop.is_set():
                if worker.poll() is not None:
                    raise BrokerError(self._ended(worker))
                with suppress(aiohttp.ClientError, asyncio.TimeoutError):
                    async with session.get(f"http://127.0.0.1:{self._settings.web_port}/readyz") as answer:
                        if answer.status == 200:
                            return
                if time.monotonic() > deadline:
                    raise BrokerError(f"the worker was not ready after {READY_SECONDS:.0f} s: {self._last_words()}")
                await asyncio.sleep(0.05)

    async def _live(self, worker: subprocess.Popen[bytes]) -> None:
        """Shoppers shop until the time is over, somebody stops them, or the worker dies."""
        if self._stop.is_set():
            return
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), auto_offset_reset="earliest", fetch_max_wait_ms=100
        )
        with connecting(self._settings):
            await consumer.start()
        names = [self._settings.prefix + topic for topic in ("homepages", "dead-letters", "copy")]
        partitions = [TopicPartition(name, p) for name in names for p in range(self._settings.partitions)]
        consumer.assign(partitions)
        start = time.time()
        tasks = [asyncio.create_task(task) for task in (self._read(consumer), self._shopping(start), self._show(start))]
        try:
            deadline = None if self._seconds is None else start + self._seconds
            while not self._stop.is_set() and (deadline is None or time.time() < deadline):
                if worker.poll() is not None:
                    raise BrokerError(self._ended(worker))
                for task in tasks:
                    if task.done():
                        task.result()
                with suppress(asyncio.TimeoutError):
                    left = 0.25 if deadline is None else min(0.25, max(0.01, deadline - time.time()))
                    await asyncio.wait_for(self._stop.wait(), left)
            tasks[1].cancel()
            await asyncio.gather(tasks[1], return_exceptions=True)
            await self._answered_all(consumer)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await consumer.stop()

    async def _answered_all(self, consumer: AIOKafkaConsumer) -> None:
        """Read pages on until none has come for half a second."""
        deadline, seen = time.monotonic() + 10.0, -1
        while seen != self._seen and time.monotonic() < deadline:
            seen = self._seen
            await asyncio.sleep(0.5)

    async def _shopping(self, start: float) -> None:
        """Send each act at its moment; a shopper looks again some seconds after her last act."""
        rng = np.random.default_rng([self._seed, 11])
        turns = [(start + OPENING * float(rng.uniform()) ** 0.5, number) for number in range(SHOPPERS)]
        heapq.heapify(turns)
        acts: list[tuple[float, int, Outgoing, Any]] = []
        counter = 0
        async with sender(self._settings) as client:
            try:
                while True:
                    now = time.time()
                    while turns and turns[0][0] <= now:
                        _, number = heapq.heappop(turns)
                        person = self._people[number]
                        at = now
                        for event in person.visit(self._pages.get(person.key), now):
                            at = _moment(event["time"])
                            counter += 1
                            record = Outgoing(topic_of(event), person.key.encode(), orjson.dumps(event))
                            heapq.heappush(acts, (at, counter, record, event))
                            if rng.random() < BROKEN_SHARE:
                                counter += 1
                                bad = malformed(rng, person, at, counter)
                                heapq.heappush(acts, (at, counter, Outgoing(bad.topic, bad.key, bad.value), bad.error))
                        heapq.heappush(turns, (at + float(rng.uniform(*PAUSE)), number))
                    while acts and acts[0][0] <= now:
                        _, _, record, what = heapq.heappop(acts)
                        await client.send(record)
                        self._sent += 1
                        if isinstance(what, str):
                            self._malformed[record.topic, record.value] = what
                        else:
                            self._follow(what)
                    due = min(turns[0][0], acts[0][0] if acts else turns[0][0])
                    await asyncio.sleep(max(0.0, min(due - time.time(), 0.05)))
            finally:
                await client.acknowledged()

    def _follow(self, event: dict[str, Any]) -> None:
        """Count looks and clicks for the screen, and tell what the followed shopper does."""
        person, user, page = (
            self._people[0],
            event["data"]["user_id"],
            event["data"].get("attribution", {}).get("page_id"),
        )
        if page and event["type"] in ("view_homepage", "select_item"):
            counted = self._looks if event["type"] == "view_homepage" else self._clicks
            counted[_group(user.encode())].add((user, page))
        if event["data"]["user_id"] != person.key or event["type"] == "view_homepage":
            return
        items = event["data"].get("items")
        what = self._title(items[0]["item_id"], person.locale) if items else event["data"].get("search_term", "")
        self._view.did = f"{event['type'].replace('_', ' ')}: {what}"
        self._view.changed = []

    def _title(self, item_id: str, locale: str) -> str:
        return str(next((item["title"][locale] for item in self._shop if item["item_id"] == item_id), item_id))

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Pages as they come: what shoppers see, and how old the event is that each answers."""
        async for record in consumer:
            topic = record.topic.removeprefix(self._settings.prefix)
            if topic == "dead-letters":
                self._letters += 1
            elif topic == "copy":
                self._copies += orjson.loads(record.value)["text"] is not None
            else:
                self._seen += 1
                self._page(orjson.loads(record.value), time.time())

    def _page(self, page: dict[str, Any], now: float) -> None:
        user, trigger = page["user_key"], page["trigger"]
        before = self._pages.get(user)
        self._pages[user] = page
        # A page that comes once more for its headline answers an event that was answered already.
        if self._answered.get(user) != trigger["event_id"]:
            self._answered[user] = trigger["event_id"]
            latency = now - _moment(trigger["event_time"])
            self._latencies.append(latency)
            self._recent.append(latency)
        if user == self._people[0].key:
            self._tell(before, page)

    def _tell(self, before: dict[str, Any] | None, page: dict[str, Any]) -> None:
        """How the page of the followed shopper changed."""
        locale = self._people[0].locale
        for slot in page["slots"]:
            if slot["title_source"] == "gpt2":
                self._view.headline = slot["title"]
                break
        if before is None:
            return
        old = {item["item_id"] for slot in before["slots"] for item in slot["items"]}
        new = [item for slot in page["slots"] for item in slot["items"] if item["item_id"] not in old]
        if new:
            self._view.changed = [
                f"+ {self._title(item['item_id'], locale)}  ({item['reason']['code'].lower().replace('_', ' ')})"
                for item in new[:3]
            ] + ([f"  and {len(new) - 3} more items are new on the page"] if len(new) > 3 else [])

    async def _show(self, start: float) -> None:
        view = self._view
        view.name = self._people[0].name
        marks: deque[tuple[float, int, int]] = deque([(time.time(), 0, 0)], maxlen=8)
        with Screen(self._as_json) as screen:
            while True:
                now = time.time()
                then, sent, seen = marks[0]
                span = max(now - then, 1e-3)
                view.elapsed, view.events, view.pages = now - start, self._sent, self._seen
                view.events_per_second, view.pages_per_second = (self._sent - sent) / span, (self._seen - seen) / span
                if self._recent:
                    p50, p99 = np.percentile(list(self._recent), [50, 99]) * 1000
                    view.freshness = float(p50), float(p99)
                view.dead_letters, view.copies = self._letters, self._copies
                view.rates = {
                    group: Rate(len(self._clicks[group] & looks), len(looks)) for group, looks in self._looks.items()
                }
                screen.show(view)
                marks.append((now, self._sent, self._seen))
                await asyncio.sleep(0.5)

    async def _settled(self, worker: subprocess.Popen[bytes]) -> None:
        """Return when the workers' group has done everything that was sent."""
        group = AIOKafkaConsumer(
            **client_options(self._settings), group_id=self._settings.app_id, enable_auto_commit=False
        )
        await group.start()
        try:
            names = [self._settings.prefix + topic for topic in ("clicks", "purchases", "refreshes")]
            partitions = [TopicPartition(name, p) for name in names for p in range(self._settings.partitions)]
            deadline = time.monotonic() + SETTLE_SECONDS
            while True:
                ends = await group.end_offsets(partitions)
                behind = sum([end - (await group.committed(tp) or 0) for tp, end in ends.items()])
                if behind <= 0:
                    return
                if worker.poll() is not None or time.monotonic() > deadline:
                    raise BrokerError(f"the worker is {behind} records behind: {self._last_words()}")
                await asyncio.sleep(0.1)
        finally:
            await group.stop()

    async def _report(self) -> int:
        say("reading the topics back")
        read = await self._read_back()
        found: Audit = audit(read, self._malformed)
        rates = click_rates([(key, event) for (key, _, _), event in accepted_events(read.behaviour).items()], _group)
        p50, p99 = np.percentile(self._latencies, [50, 99]) * 1000 if self._latencies else (0.0, 0.0)
        result: dict[str, Any] = {
            "events": found.events, "accepted": found.accepted, "dead_letters": len(read.dead_letters), "pages": len(read.homepages),
            "shoppers": len(read.profiles), "freshness_p50_ms": round(float(p50), 2), "freshness_p99_ms": round(float(p99), 2),
            "copies_generated": self._copies,
        }  # fmt: skip
        for group, rate in rates.items():
            result[f"ctr_{group}"] = round(rate.value, 5)
        for group, rate in rates.items():
            result[f"ctr_{group}_ci"] = [round(bound, 5) for bound in wilson(rate)]
        result |= {"invariants": found.invariants, "ok": all(found.invariants.values()) and found.accepted > 0}
        if not found.accepted:
            found.problems.append("nothing was accepted: the demo ended before a shopper came")
        print(summary(result, found.problems), file=sys.stderr if self._as_json else sys.stdout, flush=True)
        if self._as_json:
            print(orjson.dumps(result).decode(), flush=True)
        return 0 if result["ok"] else 1

    async def _read_back(self) -> Readback:
        async def whole(topic: str) -> list[Any]:
            return [record async for record in read_topic(self._settings, topic)]

        profiles: dict[bytes, Any] = {}
        for record in await whole("profiles"):
            if not record.key.startswith(b"\x00"):
                profiles[record.key] = record.value
        rows = unpack([decode_record(value)[0] for value in profiles.values()], PROFILE, PROFILE_VERSION)
        return Readback(
            {topic: await whole(topic) for topic in ("clicks", "purchases")}, await whole("homepages"), await whole("impressions"),
            await whole("dead-letters"), await whole("catalog"), dict(zip(profiles, rows, strict=True)), await whole("copy"),
        )  # fmt: skip


def _group(key: bytes) -> str:
    return "popular" if popular_group(key, POPULAR_SHARE) else "personal"


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
