"""`shopwindow bench client`: each piece of custom code that replaces a library, measured apart against that library.

Every part runs our code and the library's on the same data, alternating in each round, on one core in one process. An
embedded Kafka has the other cores. The parts:

fetch_backlog   `Fetcher` and aiokafka's consumer read the same backlog
fetch_single    the same, but one record at a time: from sending it to receiving it, after a random pause
frames          fetch responses received in place, and by asyncio's stream reader (bytes, not records)
produce         `BatchSender` and aiokafka's producer send a small batch to each partition and wait for all of them
produce_busy    the same while another task takes BUSY_S of every turn of the event loop, as a worker's steps do
crc             the CRC-32C kernel and aiokafka's C function
ivf             `IvfIndex` and an exact search with numpy's matrix product; `recall` is the share of exact results found
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from deploy.bench import population
from deploy.bench.common import (
    Figures,
    Plan,
    broker_on_other_cores,
    one_core,
    report,
    rounded_median,
    worker_garbage_collection,
)
from deploy.bench.engines import settings_of
from deploy.bench.page_workload import Crowd, history_lengths, shop_of
from deploy.bench.stream import events, fill
from models.history.ivf_index import IvfIndex
from models.history.model import History
from stream.kafka import topics
from stream.kafka.client.brokers import (
    FETCH_BYTES,
    ISOLATION_LEVELS,
    PARTITION_BYTES,
    connect_client,
    send_request,
    track_topics,
)
from stream.kafka.client.connection import client_options
from stream.kafka.client.fetcher import FetchedRecords, Fetcher
from stream.kafka.client.producer import BatchSender
from stream.kafka.client.record_batch import CRC_END, CRC_START, LENGTH_END, LENGTH_START, checksums_match
from stream.kafka.commit import Batch
from stream.page.candidates import MAX_PROPOSALS
from stream.profile.codec import decode_records
from stream.settings import SHIPPED_MODELS, Settings

SECONDS = 30.0
PARTITIONS = 4
BACKLOG_EVENTS = 60_000
BATCH_RECORDS = 4  # of a small batch that is sent
TIMEOUT_S = 60.0  # for one send, or for reading the backlog once
BUSY_S = 0.001
MAX_PAUSE_S = 0.02  # before a single record is sent
CHECKED_BATCHES, CHECKED_BATCH_RECORDS = 2, 512  # 1 MB, what one fetch brings of a partition
ITEMS, QUERIES, QUERY_BATCH = 100_000, 256, 32
PARTS = {
    "fetch_backlog": ("records", "aiokafka consumer"),
    "fetch_single": ("records", "aiokafka consumer"),
    "frames": ("MB", "asyncio stream reader"),
    "produce": ("batches", "aiokafka producer"),
    "produce_busy": ("batches", "aiokafka producer"),
    "crc": ("MB", "aiokafka C function"),
    "ivf": ("queries", "exact search in numpy"),
}


class Sample(NamedTuple):
    """The result of one measurement."""

    per_s: float  # units per second of wall time
    cpu_us: float  # CPU time of this process per unit


Measurement = Callable[[float], Awaitable[Sample]]  # measures for a number of seconds
Call = Callable[[], Awaitable[float]]  # does some work and returns its units


def measure(settings: Settings, plan: Plan) -> Figures:
    """Return for each part units/s and CPU microseconds per unit of both sides, and `ratio`, ours to the baseline."""
    with one_core() as is_pinned, broker_on_other_cores() as broker, worker_garbage_collection():
        figures = asyncio.run(_measure(broker.bootstrap, plan))
    return figures | {"rounds": plan.rounds, "pinned": is_pinned}


def table(figures: Figures) -> str:
    lines = [
        f"{'part':14} {'ours':>12} {'':9} {'baseline':>12} {'ratio':>7} {'CPU us':>9} {'baseline':>9}  compared with"
    ]
    for name, (unit, baseline) in PARTS.items():
        row = figures[name]
        lines.append(
            f"{name:14} {row['per_s']:12,.0f} {unit + '/s':9} {row['baseline_per_s']:12,.0f} {row['ratio']:6.2f}x"
            f" {row['cpu_us']:9,.2f} {row['baseline_cpu_us']:9,.2f}  {baseline}"
        )
    lines.append(f"recall of ivf: {figures['ivf']['recall']:.1%} of the exact results among {ITEMS:,} items")
    return "\n".join(lines)


async def _measure(broker: str, plan: Plan) -> Figures:
    settings = settings_of(broker, f"bench-client-{time.time_ns()}-", PARTITIONS)
    await topics.create(settings)
    await fill(settings, BACKLOG_EVENTS)
    report("building the index")
    ivf, exact, recall = _searches()
    sides: dict[str, tuple[Measurement, Measurement]] = {
        "fetch_backlog": (_backlog(settings, _our_reader), _backlog(settings, _aiokafka_reader)),
        "fetch_single": (_single(settings, _our_reader), _single(settings, _aiokafka_reader)),
        "frames": (_frames(settings, in_place=True), _frames(settings, in_place=False)),
        "produce": (_produce(settings, _our_producer), _produce(settings, _aiokafka_producer)),
        "produce_busy": (
            _with_busy_loop(_produce(settings, _our_producer)),
            _with_busy_loop(_produce(settings, _aiokafka_producer)),
        ),
        "crc": _checksums(),
        "ivf": (ivf, exact),
    }
    found: dict[str, list[tuple[Sample, Sample]]] = {name: [] for name in sides}
    # The first, short round only warms both sides up.
    for turn in range(plan.rounds + 1):
        seconds = plan.round_seconds / (2 * len(sides)) if turn else 0.05
        for name, (ours, baseline) in sides.items():
            samples = await ours(seconds), await baseline(seconds)
            if turn:
                found[name].append(samples)
        if turn:
            report(f"round {turn}/{plan.rounds}")
    figures = {name: _figures(rounds) for name, rounds in found.items()}
    figures["ivf"]["recall"] = round(recall, 4)
    return figures


def _figures(rounds: list[tuple[Sample, Sample]]) -> Figures:
    return {
        "per_s": rounded_median([ours.per_s for ours, _ in rounds]),
        "baseline_per_s": rounded_median([baseline.per_s for _, baseline in rounds]),
        "ratio": rounded_median([ours.per_s / baseline.per_s for ours, baseline in rounds], 3),
        "cpu_us": rounded_median([ours.cpu_us for ours, _ in rounds]),
        "baseline_cpu_us": rounded_median([baseline.cpu_us for _, baseline in rounds]),
    }


async def _sample(call: Call, seconds: float) -> Sample:
    """Repeat `call` for about `seconds`, at least once."""
    start, cpu_start, units = time.perf_counter(), time.process_time(), 0.0
    while not units or time.perf_counter() - start < seconds:
        units += await call()
    return Sample(units / (time.perf_counter() - start), (time.process_time() - cpu_start) / units * 1e6)


def _repeated(units: float, work: Callable[[], object]) -> Measurement:
    """Return the measurement of a synchronous function that does `units` of work per call."""

    async def call() -> float:
        work()
        return units

    return lambda seconds: _sample(call, seconds)


class Reader(NamedTuple):
    """A running consumer that passes the number of records of each fetch to a callback."""

    read_from: Callable[[dict[TopicPartition, int]], None]
    stop: Callable[[], Awaitable[None]]


StartReader = Callable[[Settings, dict[TopicPartition, int], Callable[[int], None]], Awaitable[Reader]]


async def _our_reader(settings: Settings, offsets: dict[TopicPartition, int], receive: Callable[[int], None]) -> Reader:
    positions: Any = dict(offsets)

    def take(tp: Any, offset: int, answer: FetchedRecords | None) -> None:
        assert answer is not None, "records are never deleted"
        if positions[tp] != offset:
            return  # requested before `read_from`
        positions[tp] = answer.next_offset
        receive(len(answer.records))

    # Without a pause: the worker's pause after small fetches forms batches and is no property of the client.
    task = asyncio.create_task(Fetcher(settings, lambda: positions, take, pause=0.0).run())

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    return Reader(positions.update, stop)


async def _aiokafka_reader(
    settings: Settings, offsets: dict[TopicPartition, int], receive: Callable[[int], None]
) -> Reader:
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False)
    await consumer.start()
    consumer.assign(list(offsets))

    def read_from(offsets: dict[TopicPartition, int]) -> None:
        for tp, offset in offsets.items():
            consumer.seek(tp, offset)

    async def read() -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                receive(len(records))

    read_from(offsets)
    task = asyncio.create_task(read())

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await consumer.stop()

    return Reader(read_from, stop)


def _partitions(settings: Settings, topic: str, offset: int = 0) -> dict[TopicPartition, int]:
    return {TopicPartition(settings.prefix + topic, p): offset for p in range(settings.partitions)}


def _backlog(settings: Settings, start_reader: StartReader) -> Measurement:
    """Read the whole backlog again and again."""
    start = _partitions(settings, "clicks")

    async def measurement(seconds: float) -> Sample:
        received, all_received = 0, asyncio.Event()

        def receive(records: int) -> None:
            nonlocal received
            received += records
            if received >= BACKLOG_EVENTS:
                all_received.set()

        async def call() -> float:
            nonlocal received
            received = 0
            all_received.clear()
            reader.read_from(start)
            await asyncio.wait_for(all_received.wait(), TIMEOUT_S)
            return BACKLOG_EVENTS

        reader = await start_reader(settings, start, receive)
        try:
            await asyncio.wait_for(all_received.wait(), TIMEOUT_S)
            return await _sample(call, seconds)
        finally:
            await reader.stop()

    return measurement


def _single(settings: Settings, start_reader: StartReader) -> Measurement:
    """Send one record, wait until the reader has it, pause, and so on. `per_s` is 1 / median wait, without pauses."""
    rng = random.Random(1)
    topic = settings.prefix + "purchases"

    async def measurement(seconds: float) -> Sample:
        received = asyncio.Event()
        async with AIOKafkaProducer(**client_options(settings), acks="all") as producer:
            reader = await start_reader(settings, await _ends(settings, "purchases"), lambda _: received.set())
            try:
                waits: list[float] = []
                cpu_start, deadline = time.process_time(), time.perf_counter() + seconds
                while not waits or time.perf_counter() < deadline:
                    await asyncio.sleep(rng.uniform(0.0, MAX_PAUSE_S))
                    received.clear()
                    start = time.perf_counter()
                    await producer.send(topic, b"x" * 400, partition=rng.randrange(PARTITIONS))
                    await asyncio.wait_for(received.wait(), TIMEOUT_S)
                    waits.append(time.perf_counter() - start)
                return Sample(1 / median(waits), (time.process_time() - cpu_start) / len(waits) * 1e6)
            finally:
                await reader.stop()

    return measurement


async def _ends(settings: Settings, topic: str) -> dict[TopicPartition, int]:
    async with AIOKafkaConsumer(**client_options(settings)) as consumer:
        found: dict[TopicPartition, int] = await consumer.end_offsets(list(_partitions(settings, topic)))
    return found


def _frames(settings: Settings, in_place: bool) -> Measurement:
    """Fetch the start of all partitions again and again, one request at a time; the response is not parsed."""
    topic = settings.prefix + "clicks"
    wanted = [(topic, [(p, 0, PARTITION_BYTES) for p in range(settings.partitions)])]

    async def measurement(seconds: float) -> Sample:
        client = await connect_client(settings)
        try:
            await track_topics(client, {topic})
            leader = client.cluster.leader_for_partition(TopicPartition(topic, 0))

            async def call() -> float:
                request = FetchRequest(100, 1, FETCH_BYTES, ISOLATION_LEVELS[settings.isolation], wanted)
                response = await (
                    send_request(client, leader, request) if in_place else _plain_send(client, leader, request)
                )
                return sum(len(row[-1]) for _, rows in response.topics for row in rows) / 1e6

            await call()
            return await _sample(call, seconds)
        finally:
            await client.close()

    return measurement


async def _plain_send(client: AIOKafkaClient, leader: int, request: Any) -> Any:
    await client.ready(leader)
    return await client.send(leader, request)


Send = Callable[[Batch, str, int], Awaitable[Awaitable[Any]]]


@asynccontextmanager
async def _our_producer(settings: Settings) -> AsyncIterator[Send]:
    client = await connect_client(settings)
    sender = BatchSender(client, TIMEOUT_S)
    try:
        await track_topics(client, {settings.prefix + "homepages"})

        async def send_batch(batch: Batch, topic: str, partition: int) -> Awaitable[Any]:
            return sender.send(batch, topic, partition)

        yield send_batch
    finally:
        await sender.close()
        await client.close()


@asynccontextmanager
async def _aiokafka_producer(settings: Settings) -> AsyncIterator[Send]:
    async with AIOKafkaProducer(**client_options(settings), acks="all") as producer:

        async def send_batch(batch: Batch, topic: str, partition: int) -> Awaitable[Any]:
            acknowledged: Awaitable[Any] = await producer.send_batch(batch, topic, partition=partition)
            return acknowledged

        yield send_batch


def _produce(settings: Settings, producer: Callable[[Settings], Any]) -> Measurement:
    """Send one small batch to each partition and wait for all acknowledgements, again and again."""
    topic, records = settings.prefix + "homepages", [(key, value) for key, value in events(BATCH_RECORDS)]

    async def measurement(seconds: float) -> Sample:
        async with AsyncExitStack() as stack:
            send_batch: Send = await stack.enter_async_context(producer(settings))

            async def call() -> float:
                sent = []
                for partition in range(PARTITIONS):
                    batch = Batch(PARTITION_BYTES)
                    batch.extend(records)
                    sent.append(await send_batch(batch, topic, partition))
                await asyncio.gather(*sent)
                return PARTITIONS

            await call()
            return await _sample(call, seconds)

    return measurement


def _with_busy_loop(measurement: Measurement) -> Measurement:
    """Measure while another task keeps the event loop busy; its CPU time is part of `cpu_us`."""

    async def work() -> None:
        while True:
            until = time.perf_counter() + BUSY_S
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(0)

    async def busy_measurement(seconds: float) -> Sample:
        task = asyncio.create_task(work())
        try:
            return await measurement(seconds)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return busy_measurement


def _fetched_bytes() -> bytes:
    """Record batches of changelog rows, as a broker returns them."""
    rows = population.records(1000)
    keys = list(population.keys(CHECKED_BATCH_RECORDS))
    data = bytearray()
    for at in range(CHECKED_BATCHES):
        builder = DefaultRecordBatchBuilder(
            magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1,
            batch_size=4 << 20,
        )  # fmt: skip
        for number, key in enumerate(keys):
            builder.append(number, 1_767_225_600_000, key, rows[(at * 7 + number) % len(rows)], [])
        data += builder.build()
    return bytes(data)


def _checksums() -> tuple[Measurement, Measurement]:
    """Verify the checksums of the same batches."""
    data = _fetched_bytes()
    covered, batch = [], 0
    while batch < len(data):
        end = batch + LENGTH_END + int.from_bytes(data[batch + LENGTH_START : batch + LENGTH_END], "big")
        covered.append((batch, memoryview(data)[batch + CRC_END : end]))
        batch = end

    def aiokafka() -> bool:
        return all(
            calc_crc32c(part) == int.from_bytes(data[batch + CRC_START : batch + CRC_END], "big")
            for batch, part in covered
        )

    if not (checksums_match(data) and aiokafka()):
        raise RuntimeError("our checksums and aiokafka's differ")
    megabytes = sum(len(part) for _, part in covered) / 1e6
    return _repeated(megabytes, lambda: checksums_match(data)), _repeated(megabytes, aiokafka)


def _searches() -> tuple[Measurement, Measurement, float]:
    """Return the measurements of both searches, and the recall of the index, for queries of simulated shoppers."""
    shop = shop_of(ITEMS)
    crowd = Crowd(shop, history_lengths(QUERIES), ITEMS)
    history = History(SHIPPED_MODELS / "history", shop.catalog)
    profiles, _ = decode_records([crowd.stored[key] for key in crowd.keys])
    prediction = history.predict(profiles)
    queries = prediction.query[prediction.unit > 0]
    queries = queries[: len(queries) - len(queries) % QUERY_BATCH]
    vectors, scales = history.vectors[:ITEMS], history.scales[:ITEMS]
    index = IvfIndex()
    index.add(0, ITEMS, history.vectors, history.scales)
    matrix = np.ascontiguousarray((vectors.astype(np.float32) * scales[:, None]).T)  # (width, ITEMS)

    def ivf(batch: Any) -> Any:
        return index.find(batch, history.vectors, history.scales, MAX_PROPOSALS)

    def exact(batch: Any) -> Any:
        scores = batch.astype(np.float32) @ matrix
        best = np.argpartition(-scores, MAX_PROPOSALS - 1, axis=1)[:, :MAX_PROPOSALS]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    batches = [queries[at : at + QUERY_BATCH] for at in range(0, len(queries), QUERY_BATCH)]
    shares = [
        len(np.intersect1d(found, best)) / MAX_PROPOSALS
        for batch in batches
        for found, best in zip(ivf(batch), exact(batch), strict=True)
    ]
    return (
        _repeated(QUERY_BATCH, lambda: ivf(batches[0])),
        _repeated(QUERY_BATCH, lambda: exact(batches[0])),
        float(np.mean(shares)),
    )
