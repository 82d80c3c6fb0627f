"""Reading whole topics: once to the end, or ever on."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from stream.kafka import topics
from stream.kafka.client.connection import NoBroker, client_options, partition_of
from stream.kafka.global_topics import GlobalTopics, read_table, read_topic
from tests.harness.counting import scenario, send, settings_for, until


@scenario
async def test_a_broadcast_starts_with_all_there_is_and_then_follows(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "catalog", [(b"item%d" % i, b"old") for i in range(3000)])
    await send(settings, "copy", [(b"segment", b"text")])
    progress: list[tuple[int, int]] = []
    broadcast = GlobalTopics(settings, ["catalog", "copy"])
    await broadcast.start(lambda read, there: progress.append((read, there)))
    try:
        held = broadcast.drain()
        assert broadcast.ready and progress[-1] == (3001, 3001)
        assert {stretch.topic for stretch in held} == {"catalog", "copy"}
        assert sum(len(stretch.records) for stretch in held) == 3001
        assert all(len(s.records) == len(s.offsets) and s.offsets[0] == 0 for s in held)
        assert broadcast.drain() == []
        await send(settings, "catalog", [(b"item7", b"new"), (b"item8", None)])
        news: list[tuple[bytes, bytes | None]] = []
        while len(news) < 2:
            await broadcast.arrived()
            news += [record for stretch in broadcast.drain() for record in stretch.records]
        assert sorted(news) == [(b"item7", b"new"), (b"item8", None)]
    finally:
        await broadcast.stop()


@scenario
async def test_what_arrives_while_a_broadcast_starts_is_not_lost(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "catalog", [(b"item%d" % i, b"old") for i in range(500)])
    broadcast = GlobalTopics(settings, ["catalog"])
    async with AIOKafkaProducer(**client_options(settings)) as producer:

        async def more() -> None:
            for i in range(500, 1000):
                key = b"item%d" % i
                partition = partition_of(key, settings.partitions)
                await producer.send_and_wait(settings.prefix + "catalog", b"new", key=key, partition=partition)

        sending = asyncio.create_task(more())
        await broadcast.start()
        keys: list[bytes] = []

        def all_there() -> bool:
            keys.extend(key for stretch in broadcast.drain() for key, _ in stretch.records)
            return len(keys) >= 1000

        await until(all_there, "1000 items")
        await sending
    await broadcast.stop()
    assert len(keys) == len(set(keys)) == 1000


@scenario
async def test_a_table_read_by_anyone_holds_the_newest_rows_and_no_watermarks(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "profiles", [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None)])
    await send(settings, "profiles", [(b"\x00wm:clicks:0", b"5")])
    assert await read_table(settings, "profiles") == {b"a": b"2"}


@scenario
async def test_reading_ends_where_the_last_offset_holds_no_record(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    producer = AIOKafkaProducer(**client_options(settings), transactional_id=topic_prefix)
    await producer.start()
    async with producer.transaction():
        await producer.send(settings.prefix + "copy", b"1", key=b"a", partition=0)
    await producer.stop()
    assert [record.value async for record in read_topic(settings, "copy")] == [b"1"]
    assert [record async for record in read_topic(settings, "catalog")] == [], "an empty topic ends at once"


@scenario
async def test_a_missing_topic_is_named_with_the_command_that_creates_it(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    with pytest.raises(LookupError, match=f"topic '{topic_prefix}catalog' is missing; `shopwindow topics create`"):
        await GlobalTopics(settings, ["catalog"]).start()
    with pytest.raises(LookupError, match="is missing"):
        await read_table(settings, "profiles")


@scenario
async def test_readers_say_when_no_broker_answers(topic_prefix: str) -> None:
    with pytest.raises(NoBroker, match=r"no Kafka answers at 127.0.0.1:1"):
        await read_table(settings_for("127.0.0.1:1", topic_prefix), "profiles")


def test_a_key_goes_where_kafkas_own_clients_send_it() -> None:
    # From the tests of the Java client's Utils.murmur2: hash & 0x7fffffff, modulo 1000.
    java = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    assert {key: partition_of(key, 1000) for key in java} == {key: (h & 0x7FFFFFFF) % 1000 for key, h in java.items()}
