"""Reading whole topics: once to the end, or continuously."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer

from stream.kafka import topics
from stream.kafka.client.connection import NoBroker, client_options, partition_of
from stream.kafka.global_topics import GlobalTopics, read_table, read_topic
from tests.harness.counting import scenario, send, settings_for, until


@scenario
async def test_global_topics_start_with_all_records_and_then_follow(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "catalog", [(b"item%d" % i, b"old") for i in range(3000)])
    await send(settings, "copy", [(b"segment", b"text")])
    progress: list[tuple[int, int]] = []
    global_topics = GlobalTopics(settings, ["catalog", "copy"])
    await global_topics.start(lambda read, there: progress.append((read, there)))
    try:
        held = global_topics.drain()
        assert global_topics.ready and progress[-1] == (3001, 3001)
        assert {part.topic for part in held} == {"catalog", "copy"}
        assert sum(len(part.records) for part in held) == 3001
        assert all(len(s.records) == len(s.offsets) and s.offsets[0] == 0 for s in held)
        assert global_topics.drain() == []
        await send(settings, "catalog", [(b"item7", b"new"), (b"item8", None)])
        changes: list[tuple[bytes, bytes | None]] = []
        while len(changes) < 2:
            await global_topics.arrived()
            changes += [record for part in global_topics.drain() for record in part.records]
        assert sorted(changes) == [(b"item7", b"new"), (b"item8", None)]
    finally:
        await global_topics.stop()


@scenario
async def test_records_that_arrive_during_the_start_are_not_lost(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "catalog", [(b"item%d" % i, b"old") for i in range(500)])
    global_topics = GlobalTopics(settings, ["catalog"])
    async with AIOKafkaProducer(**client_options(settings)) as producer:

        async def more() -> None:
            for i in range(500, 1000):
                key = b"item%d" % i
                partition = partition_of(key, settings.partitions)
                await producer.send_and_wait(settings.prefix + "catalog", b"new", key=key, partition=partition)

        sending = asyncio.create_task(more())
        await global_topics.start()
        keys: list[bytes] = []

        def all_there() -> bool:
            keys.extend(key for part in global_topics.drain() for key, _ in part.records)
            return len(keys) >= 1000

        await until(all_there, "1000 items")
        await sending
    await global_topics.stop()
    assert len(keys) == len(set(keys)) == 1000


@scenario
async def test_read_table_returns_the_newest_rows_without_watermarks(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "profiles", [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None)])
    await send(settings, "profiles", [(b"\x00wm:clicks:0", b"5")])
    assert await read_table(settings, "profiles") == {b"a": b"2"}


@scenario
async def test_reading_ends_if_the_last_offset_has_no_record(broker: str, topic_prefix: str) -> None:
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
async def test_readers_raise_no_broker(topic_prefix: str) -> None:
    with pytest.raises(NoBroker, match=r"no Kafka answers at 127.0.0.1:1"):
        await read_table(settings_for("127.0.0.1:1", topic_prefix), "profiles")


def test_keys_have_the_partition_of_kafkas_own_clients() -> None:
    # From the tests of the Java client's Utils.murmur2: hash & 0x7fffffff, modulo 1000.
    java = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536}
    assert {key: partition_of(key, 1000) for key in java} == {key: (h & 0x7FFFFFFF) % 1000 for key, h in java.items()}
