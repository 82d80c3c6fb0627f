"""Compressed record batches: by the producer or by the topic, with every codec, in every topic that is read."""

import asyncio
import random
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from stream.kafka import topics
from stream.kafka.client.connection import client_options
from stream.kafka.global_topics import GlobalTopics, read_table, read_topic
from stream.kafka.group import GroupMember
from tests.harness import worker_process
from tests.harness.codecs import CODECS, stored_codecs
from tests.harness.counting import counting_app, running, scenario, send, settings_for, total, until
from tests.harness.shop import item
from tests.harness.worker_process import assert_answered, command, mixed_clicks, until_counted, worker

each_codec = pytest.mark.parametrize("codec", CODECS)


def compress_topics(monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    """Let `topics.create` create topics that the broker compresses."""
    compressed = tuple(topic._replace(configs={**topic.configs, "compression.type": codec}) for topic in topics.TOPICS)
    monkeypatch.setattr(topics, "TOPICS", compressed)


@each_codec
@scenario
async def test_every_topic_may_be_compressed_by_its_setting(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    settings = settings_for(broker, topic_prefix)
    compress_topics(monkeypatch, codec)
    await topics.create(settings)
    assert await topics.check(settings) == []
    await send(settings, "clicks", [(b"k%d" % (n % 50), b"x" * 200) for n in range(500)])
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: total(counts) == 500, "500 counted")
    for topic in ("clicks", "profiles", "impressions"):
        assert await stored_codecs(settings, topic) == {CODECS[codec]}
    recovering, recovered = counting_app(settings)
    async with running(recovering):
        assert recovered.rows == counts.rows and total(recovered) == 500, "the changelog is read"
    assert sum(map(int, (await read_table(settings, "profiles")).values())) == 500

    for topic in ("catalog", "item-signals", "copy", "copy-requests", "dead-letters", "worker-status", "redrives"):
        await send(settings, topic, [(b"k%d" % n, b"value") for n in range(20)])
        assert sorted([record.key async for record in read_topic(settings, topic)]) == sorted(
            b"k%d" % n for n in range(20)
        )
    held = GlobalTopics(settings, ["catalog", "item-signals", "copy"])
    await held.start()
    assert sum(len(part.records) for part in held.drain()) == 60
    await held.stop()
    async with GroupMember(settings, "copy-requests", f"{topic_prefix}-copy") as group:
        taken: list[Any] = []
        while len(taken) < 20:
            taken += await group.take(100, 1.0)
    assert {record.value for record in taken} == {b"value"}


@each_codec
@scenario
async def test_batches_that_aiokafka_compresses_are_read(broker: str, topic_prefix: str, codec: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    async with AIOKafkaProducer(**client_options(settings), compression_type=codec) as producer:
        await asyncio.gather(
            *[await producer.send(settings.prefix + "clicks", b"x" * 200, key=b"k%d" % (n % 50)) for n in range(500)]
        )
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: total(counts) == 500, "500 counted")
    assert await stored_codecs(settings, "clicks") == {CODECS[codec]}


@scenario
async def test_a_worker_and_the_commands_read_topics_with_zstd(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = worker_process.settings_for(broker, topic_prefix)
    compress_topics(monkeypatch, "zstd")
    await topics.create(settings)
    checked = await asyncio.to_thread(command, settings, "topics", "check")
    assert checked.returncode == 0, checked
    shop = b"\n".join(item(f"i{k}")[1] for k in range(50)).decode()
    loaded = await asyncio.to_thread(command, settings, "catalog", "load", "-", input=shop)
    assert "loaded 50 items" in loaded.stdout, loaded
    sent = mixed_clicks(random.Random(1), 200, 10)
    for half, counted in ((sent[:100], 100), (sent[100:], 200)):
        await send(settings, "clicks", half)
        with worker(settings):  # the second recovers the first's tables
            await until_counted(settings, counted)
    await assert_answered(settings, sent)
    assert "10 profiles" in (await asyncio.to_thread(command, settings, "profiles")).stdout
    for topic in ("catalog", "clicks", "profiles", "homepages", "item-activity", "item-signals"):
        assert await stored_codecs(settings, topic) == {CODECS["zstd"]}, topic
