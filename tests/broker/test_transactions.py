"""Producers with transactions: what is aborted or still open is never read, however transactions interleave."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from deploy.operate.status import partition_lags
from stream.kafka import topics
from stream.kafka.client.connection import client_options
from stream.kafka.global_topics import GlobalTopics, read_table, read_topic
from tests.harness.counting import counting_app, running, scenario, send, settings_for, total, until

Send = Callable[..., Coroutine[Any, Any, None]]
BATCHES = 3  # of each transaction, so that those of two producers alternate


class AiokafkaTransactions:
    """A transactional producer of aiokafka; each `send` is a batch of its own."""

    def __init__(self, settings: Any, name: str) -> None:
        self._topic = settings.prefix + "clicks"
        self._producer = AIOKafkaProducer(**client_options(settings), transactional_id=settings.prefix + name)

    async def start(self) -> None:
        await self._producer.start()

    async def begin(self) -> None:
        await self._producer.begin_transaction()

    async def send(self, key: bytes) -> None:
        await self._producer.send_and_wait(self._topic, b"x", key=key, partition=0)

    async def end(self, commit: bool) -> None:
        await (self._producer.commit_transaction() if commit else self._producer.abort_transaction())

    async def stop(self) -> None:
        await self._producer.stop()


class LibrdkafkaTransactions:
    """The same with librdkafka."""

    def __init__(self, settings: Any, name: str) -> None:
        self._topic = settings.prefix + "clicks"
        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": settings.broker.removeprefix("kafka://"), "transactional.id": settings.prefix + name}
        )

    async def start(self) -> None:
        await asyncio.to_thread(self._producer.init_transactions)

    async def begin(self) -> None:
        self._producer.begin_transaction()

    async def send(self, key: bytes) -> None:
        self._producer.produce(self._topic, b"x", key, 0)
        assert await asyncio.to_thread(self._producer.flush, 30) == 0

    async def end(self, commit: bool) -> None:
        await asyncio.to_thread(self._producer.commit_transaction if commit else self._producer.abort_transaction)

    async def stop(self) -> None:
        pass


@asynccontextmanager
async def started(*producers: Any) -> AsyncIterator[None]:
    for producer in producers:
        await producer.start()
    try:
        yield
    finally:
        for producer in producers:
            await producer.stop()


async def interleave(outcomes: Sequence[tuple[Any, bytes, bool]]) -> None:
    """Send BATCHES batches of each (producer, key, is committed), one of each in turn, then end in reverse order."""
    for producer, _, _ in outcomes:
        await producer.begin()
    for _ in range(BATCHES):
        for producer, key, _ in outcomes:
            await producer.send(key)
    for producer, _, is_committed in reversed(outcomes):
        await producer.end(is_committed)


def keys_of(counts: Any) -> dict[bytes, int]:
    return {key: count for rows in counts.rows.values() for key, count in rows.items()}


@pytest.mark.parametrize("kind", [AiokafkaTransactions, LibrdkafkaTransactions])
@scenario
async def test_aborted_events_are_not_counted_and_committed_ones_are(broker: str, topic_prefix: str, kind: Any) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    one, two = kind(settings, "one"), kind(settings, "two")
    expected: dict[bytes, int] = {}

    async def shop(turn: int) -> None:
        commits = bool(turn & 1), bool(turn & 2)
        await interleave([(one, b"one-%d" % turn, commits[0]), (two, b"two-%d" % turn, commits[1])])
        await send(settings, "clicks", [(b"plain-%d" % turn, b"x")])
        expected.update({b"one-%d" % turn: BATCHES} if commits[0] else {})
        expected.update({b"two-%d" % turn: BATCHES} if commits[1] else {})
        expected[b"plain-%d" % turn] = 1

    async with started(one, two):
        for turn in range(4):  # read in one fetch
            await shop(turn)
        app, counts = counting_app(settings)
        async with running(app):
            for turn in range(4, 8):  # read as they come
                await shop(turn)
                await until(lambda: keys_of(counts) == expected, f"{len(expected)} keys")
            await until(lambda: app.lag() == {("clicks", 0): 0}, "no lag")
    assert {record.key async for record in read_topic(settings, "clicks")} == expected.keys()


@scenario
async def test_an_open_transaction_holds_back_what_follows_and_is_no_lag(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send(settings, "clicks", [(b"before", b"x")])
    producer = AiokafkaTransactions(settings, "one")
    app, counts = counting_app(settings)
    async with running(app), started(producer):
        await until(lambda: total(counts) == 1, "the first")
        await producer.begin()
        await producer.send(b"open")
        await send(settings, "clicks", [(b"after", b"x")])
        await until(lambda: app.batch_consumer.next_fetch_offset(partition(app)) == 1, "the first is passed")
        answered = app.batch_consumer.fetched_at()
        await until(lambda: app.batch_consumer.fetched_at() not in (None, answered), "another fetch")
        await until(lambda: app.lag() == {("clicks", 0): 0}, "no lag")
        assert keys_of(counts) == {b"before": 1}
        assert [record.key async for record in read_topic(settings, "clicks")] == [b"before"]
        await producer.end(commit=True)
        await until(lambda: keys_of(counts) == {b"before": 1, b"open": 1, b"after": 1}, "all")


def partition(app: Any) -> Any:
    (tp,) = (tp for tp in app.batch_consumer.assignment() if tp.topic.endswith("clicks"))
    return tp


@scenario
async def test_markers_and_aborted_records_at_the_end_are_committed(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    producer = AiokafkaTransactions(settings, "one")
    app, counts = counting_app(settings)
    clicks = TopicPartition(settings.prefix + "clicks", 0)
    reader = AIOKafkaConsumer(**client_options(settings), group_id=settings.app_id, enable_auto_commit=False)
    async with started(producer), running(app):
        await interleave([(producer, b"good", True)])
        await until(lambda: total(counts) == BATCHES, "the good ones")
        await until(lambda: app.lag() == {("clicks", 0): 0}, "the marker is passed")
        await interleave([(producer, b"bad", False)])
        await until(lambda: [*app.batch_consumer.acknowledged.values()] == [2 * BATCHES + 2], "aborted ones too")
        assert app.lag() == {("clicks", 0): 0}
    async with reader:
        assert await reader.committed(clicks) == 2 * BATCHES + 2
    lag = (await partition_lags(settings))["clicks", 0]
    assert (lag["committed"], lag["end"], lag["lag_records"]) == (2 * BATCHES + 2, 2 * BATCHES + 2, 0)


@scenario
async def test_reading_uncommitted_is_a_setting(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1, isolation="read_uncommitted")
    await topics.create(settings)
    producer = AiokafkaTransactions(settings, "one")
    app, counts = counting_app(settings)
    async with running(app), started(producer):
        await interleave([(producer, b"aborted", False)])
        await producer.begin()
        await producer.send(b"open")
        await until(lambda: keys_of(counts) == {b"aborted": BATCHES, b"open": 1}, "all")
        assert {record.key async for record in read_topic(settings, "clicks")} == {b"aborted", b"open"}
        await producer.end(commit=False)


@scenario
async def test_global_topics_hold_no_aborted_items(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    producer = AIOKafkaProducer(**client_options(settings), transactional_id=settings.prefix + "feed")
    held = GlobalTopics(settings, ["catalog"])

    async def load(value: bytes, commit: bool) -> None:
        await producer.begin_transaction()
        await producer.send_and_wait(settings.prefix + "catalog", value, key=b"item", partition=0)
        await (producer.commit_transaction() if commit else producer.abort_transaction())

    async with producer:
        await load(b"good", True)
        await load(b"bad", False)
        await held.start()
        try:
            assert [part.records for part in held.drain()] == [[(b"item", b"good")]]
            await load(b"worse", False)
            await load(b"better", True)
            await held.arrived()
            assert [part.records for part in held.drain()] == [[(b"item", b"better")]]
        finally:
            await held.stop()
    assert await read_table(settings, "catalog") == {b"item": b"better"}
