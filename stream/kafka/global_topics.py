"""Whole topics: held in full by every worker, or read once to the end. No consumer group, no commits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition, conn

from stream.kafka.client.connection import NoBroker, client_options, connecting, stop_client
from stream.profile.store import META_PREFIX

if TYPE_CHECKING:
    from stream.settings import Settings

# How many bytes a connection buffers before it stops reading: a fetch has a megabyte from each partition. With
# aiokafka's 64 KiB a fetch stops and starts dozens of times.
conn.READER_LIMIT = 4 << 20
FETCH_WAIT_MS = 100  # how long the broker holds a fetch while it has no record
FOLLOW_TIMEOUT_MS = 60_000
READ_TIMEOUT_MS = 200
SILENCE_TIMEOUT_S = 30.0  # without a record of a partition that is not read to its end; a broker restarts in 5 to 15 s
KeyValue = tuple[bytes, bytes | None]
Progress = Callable[[int, int], None]  # records read, records that the topics had at the start


class PartitionRecords(NamedTuple):
    """Records of one partition, in order."""

    topic: str  # logical name
    records: list[KeyValue]
    partition: int
    offsets: list[int]  # of each record: compaction leaves gaps


class GlobalTopics:
    """Compacted topics that every worker holds in full, such as the catalogue.

    `start` reads the existing records; then a task follows new ones. Records wait until `drain` takes them: the caller
    applies them between its own batches, so that the tables do not change during a batch.
    """

    def __init__(self, settings: Settings, topics: Sequence[str]) -> None:
        self._settings = settings
        self._topics = topics
        self._waiting: deque[PartitionRecords] = deque()
        self._arrived = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self.ready = False

    async def start(self, progress: Progress | None = None) -> None:
        """Return once everything that the topics held at the call waits in `drain`.

        Raises NoBroker, and LookupError if a topic is missing.
        """
        self._consumer = await connect_reader(self._settings)
        ends = await assign(self._consumer, [self._settings.prefix + topic for topic in self._topics])
        async for records in read_to_end(self._consumer, ends, progress):
            self._put(records)
        self.ready = True
        self._follower = asyncio.create_task(self._follow(self._consumer))

    def drain(self) -> list[PartitionRecords]:
        """Return what arrived since the last call, in order; the value of a deleted key is None."""
        self._arrived.clear()
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    async def arrived(self) -> None:
        """Return once `drain` has records. Raises the error that ended the follower: then no more records will come."""
        if self._waiting:
            return
        assert self._follower is not None, "start first"
        arrival = asyncio.ensure_future(self._arrived.wait())
        try:
            await asyncio.wait({arrival, self._follower}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrival.cancel()
        if self._follower.done():
            self._follower.result()

    async def stop(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        if self._consumer is not None:
            await stop_client(self._consumer)

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=FOLLOW_TIMEOUT_MS)).values():
                self._put(records)

    def _put(self, records: Sequence[Any]) -> None:
        topic = records[0].topic.removeprefix(self._settings.prefix)
        rows = [(record.key, record.value) for record in records]
        offsets = [record.offset for record in records]
        self._waiting.append(PartitionRecords(topic, rows, records[0].partition, offsets))
        self._arrived.set()


async def read_topic(settings: Settings, topic: str, progress: Progress | None = None) -> AsyncIterator[Any]:
    """Yield every record of `topic` (logical name) up to its end at the call, in order within each partition.

    Raises NoBroker, and LookupError if the topic is missing.
    """
    async with _reader(settings) as consumer:
        ends = await assign(consumer, [settings.prefix + topic])
        async for records in read_to_end(consumer, ends, progress):
            for record in records:
                yield record


async def read_table(settings: Settings, topic: str) -> dict[bytes, bytes]:
    """Return the newest value of every key of a compacted topic (logical name), without watermarks.

    Raises NoBroker, and LookupError if the topic is missing.
    """
    rows: dict[bytes, bytes] = {}
    async for record in read_topic(settings, topic):
        if record.key.startswith(META_PREFIX):
            continue
        if record.value is None:
            rows.pop(record.key, None)
        else:
            rows[record.key] = record.value
    return rows


@asynccontextmanager
async def _reader(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = await connect_reader(settings)
    try:
        yield consumer
    finally:
        await stop_client(consumer)


async def connect_reader(settings: Settings) -> AIOKafkaConsumer:
    """Return a started consumer without a group. Raises NoBroker or a Kafka error, and then leaves nothing open."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest",
        fetch_max_wait_ms=FETCH_WAIT_MS,
    )  # fmt: skip
    try:
        with connecting(settings):
            await consumer.start()
    except BaseException:
        await stop_client(consumer)
        raise
    return consumer


async def assign(consumer: AIOKafkaConsumer, names: Sequence[str]) -> dict[TopicPartition, int]:
    """Assign all partitions of the topics (as the cluster names them), from their start. Return their ends.

    Raises LookupError if a topic is missing.
    """
    partitions = []
    # This asks the cluster: the consumer's own partitions_for_topic() knows only topics that it already reads.
    cluster = await consumer._client.fetch_all_metadata()
    for name in names:
        numbers = cluster.partitions_for_topic(name)
        if not numbers:
            raise LookupError(f"topic '{name}' is missing; `shopwindow topics create` creates it")
        partitions += [TopicPartition(name, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    return dict(await consumer.end_offsets(partitions))


async def read_to_end(
    consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int], progress: Progress | None
) -> AsyncIterator[list[Any]]:
    """Yield the fetched records, one partition at a time, until every position has reached its end.

    Raises NoBroker if nothing comes for SILENCE_TIMEOUT_S.

    Positions decide, not records: compaction leaves topics whose last offsets have no record. Records that arrive after
    `ends` was read are left to a later fetch of the same consumer.
    """
    total = 0
    behind = {}
    for partition, end in ends.items():
        start = await consumer.position(partition)
        if start < end:
            behind[partition] = end
            total += end - start
    read, empty_reads = 0, 0
    while behind:
        fetched = await consumer.getmany(*behind, timeout_ms=READ_TIMEOUT_MS)
        empty_reads = 0 if fetched else empty_reads + 1
        for partition, records in fetched.items():
            read += len(records)
            end = behind[partition]
            if records[-1].offset >= end:
                consumer.seek(partition, end)
                records = [record for record in records if record.offset < end]
            if records:
                yield records
        for partition in list(behind):
            if await consumer.position(partition) >= behind[partition]:
                del behind[partition]
        if progress is not None:
            progress(min(read, total), total)
        if behind and empty_reads * READ_TIMEOUT_MS > SILENCE_TIMEOUT_S * 1000:
            topic, number = next(iter(behind))
            raise NoBroker(
                f"Kafka has sent nothing of '{topic}' {number} for {SILENCE_TIMEOUT_S:.0f} s; check its brokers"
            )
