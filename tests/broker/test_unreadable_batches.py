"""Record batches that cannot be read: events go to dead-letters as raw bytes, and the partition goes on."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from deploy.broker.embedded import Broker
from deploy.operate.dead_letters import refusal_reason
from stream import metrics
from stream.kafka import topics
from stream.kafka.client.connection import client_options
from stream.kafka.dead_letters import DeadLetter, decode_dead_letter
from stream.kafka.global_topics import GlobalTopics, read_table, read_topic
from stream.kafka.group import GroupMember
from stream.kafka.tables.changelog_reader import UnreadableChangelog
from tests.harness.counting import counting_app, running, scenario, settings_for, total, until
from tests.harness.damaged_log import StoredBatch, flip_bit, set_unknown_codec, stored_batches

DAMAGES = {"wrong checksum": (flip_bit, "the checksum is wrong"),
           "unknown codec": (set_unknown_codec, "Unknown compression codec 0x07")}  # fmt: skip
ROOT = Path(__file__).parents[2]
Damage = Callable[[StoredBatch], bytes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kafka")


@pytest.fixture(scope="module")
def broker(folder: Path) -> Iterator[str]:
    """`host:port` of a Kafka whose files are in `folder`."""
    with Broker(data=folder, heap_mb=384) as kafka:
        yield kafka.bootstrap


async def send_batches(settings: Any, topic: str, batches: int, records: int = 5) -> None:
    """Send batches of records with the keys k0, k1, ... to partition 0."""
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for number in range(batches):
            batch = producer.create_batch()
            for index in range(records):
                value = b"%d" % (number * records + index)
                assert batch.append(timestamp=None, key=b"k%d" % (number * records + index), value=value) is not None
            await (await producer.send_batch(batch, settings.prefix + topic, partition=0))


def damage_batch(settings: Any, folder: Path, topic: str, number: int, damage: Damage = flip_bit) -> bytes:
    return damage(list(stored_batches(folder, settings.prefix + topic, 0))[number])


async def letters(settings: Any) -> list[DeadLetter]:
    return [decode_dead_letter(record) async for record in read_topic(settings, "dead-letters")]


def counted(counts: Any) -> set[int]:
    return {int(key[1:]) for rows in counts.rows.values() for key in rows}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("behind", [False, True], ids=["in order", "in the background"])
@scenario
async def test_events_that_cannot_be_read_are_dead_letters_and_the_partition_goes_on(
    broker: str, folder: Path, topic_prefix: str, caplog: pytest.LogCaptureFixture, damage: Damage, reason: str,
    behind: bool,
) -> None:  # fmt: skip
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send_batches(settings, "clicks", 6)
    broken = [damage_batch(settings, folder, "clicks", number, damage) for number in (0, 2, 3, 5)]
    before = metrics.DEAD_LETTERS.labels("clicks", "unreadable")._value.get()
    app, counts = counting_app(settings, behind=behind)
    async with running(app):
        await until(lambda: app.lag() == {("clicks", 0): 0}, "all done")
        assert counted(counts) == {*range(5, 10), *range(20, 25)}
        await send_batches(settings, "clicks", 1)
        await until(lambda: total(counts) == 15, "what comes later")
        await until(lambda: app.lag() == {("clicks", 0): 0}, "all done")
    found = await letters(settings)
    assert [(letter.topic, letter.partition, letter.offset, letter.last_offset) for letter in found] == [
        ("clicks", 0, 0, 4), ("clicks", 0, 10, 14), ("clicks", 0, 15, 19), ("clicks", 0, 25, 29)
    ]  # fmt: skip
    assert [letter.value for letter in found] == broken
    assert {(letter.error, letter.field, letter.key, letter.headers, letter.cut_from) for letter in found} == {
        ("unreadable", "batch", None, (), 0)
    }
    assert found[1].message == f"the record batch at offsets 10 to 14 cannot be read: {reason}"
    assert "no consumer can read" in refusal_reason(found[0], force=True)
    assert metrics.DEAD_LETTERS.labels("clicks", "unreadable")._value.get() == before + 4
    assert caplog.text.count("its bytes were sent to dead-letters") == 4
    again, recovered = counting_app(settings)
    async with running(again):
        assert counted(recovered) == {*range(0, 10), *range(20, 25)} and len(await letters(settings)) == 4


@pytest.mark.parametrize(("point", "letters_of_last"), [("outputs", 1), ("changelog", 2), ("ack", 1)])
@scenario
async def test_a_kill_at_any_step_of_an_unreadable_batch_loses_nothing(
    broker: str, folder: Path, topic_prefix: str, point: str, letters_of_last: int
) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send_batches(settings, "clicks", 6)
    for number in (0, 2, 4):  # the batch of the fifth run, in which the worker kills itself
        damage_batch(settings, folder, "clicks", number)
    program = [sys.executable, "-m", "tests.harness.counting", broker, topic_prefix, "0", "before"]
    with subprocess.Popen([*program, point], cwd=ROOT) as killed:
        await until(lambda: killed.poll() is not None, "dead", 60.0)
        assert killed.returncode == -signal.SIGKILL
    expected = [0, 10, *[20] * letters_of_last]
    with subprocess.Popen(program, cwd=ROOT) as worker:
        while len(await read_table(settings, "profiles")) < 15:
            await asyncio.sleep(0.1)
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, 30) == 0
    assert sorted(letter.offset for letter in await letters(settings)) == expected
    table = await read_table(settings, "profiles")
    assert table == {b"k%d" % n: b"1" for number in (1, 3, 5) for n in range(5 * number, 5 * number + 5)}


@scenario
async def test_an_unreadable_batch_larger_than_a_dead_letter_is_cut(
    broker: str, folder: Path, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    large = tuple(
        topic._replace(configs={**topic.configs, "max.message.bytes": str(8 << 20)})
        if topic.name == "clicks"
        else topic
        for topic in topics.TOPICS
    )
    monkeypatch.setattr(topics, "TOPICS", large)
    await topics.create(settings)
    async with AIOKafkaProducer(**client_options(settings), max_request_size=8 << 20) as producer:
        await producer.send_and_wait(settings.prefix + "clicks", bytes(4 << 20), key=b"k0", partition=0)
    broken = damage_batch(settings, folder, "clicks", 0)
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: app.lag() == {("clicks", 0): 0}, "done")
    [letter] = await letters(settings)
    assert letter.cut_from == len(broken) and letter.value and broken.startswith(letter.value) and not counts.rows[0]
    assert len(letter.value) > 1_000_000 and (letter.offset, letter.last_offset, letter.key) == (0, 0, None)


@scenario
async def test_a_worker_refuses_a_changelog_that_it_cannot_read(broker: str, folder: Path, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send_batches(settings, "clicks", 1)
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: total(counts) == 5, "counted")
    damage_batch(settings, folder, "profiles", 0)
    app, _ = counting_app(settings)
    expected = (
        rf"partition 0 of '{topic_prefix}profiles': the record batch at offsets 0 to 5 cannot be read: .* replica"
    )
    with pytest.raises(UnreadableChangelog, match=expected):
        async with running(app) as worker:
            await until(worker.done, "stopped")
    assert await letters(settings) == []


@scenario
async def test_global_topics_skip_log_and_count_what_cannot_be_read(
    broker: str, folder: Path, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send_batches(settings, "catalog", 3)
    damage_batch(settings, folder, "catalog", 0)
    damage_batch(settings, folder, "catalog", 2, set_unknown_codec)
    before = metrics.UNREADABLE.labels("catalog")._value.get()
    held = GlobalTopics(settings, ["catalog"])
    await held.start()
    try:
        assert [key for part in held.drain() for key, _ in part.records] == [b"k%d" % n for n in range(5, 10)]
        assert metrics.UNREADABLE.labels("catalog")._value.get() == before + 2
        assert "partition 0 of 'catalog': the record batch at offsets 10 to 14 cannot be read" in caplog.text
        await send_batches(settings, "catalog", 1, records=1)
        await held.arrived()
        assert [part.records for part in held.drain()] == [[(b"k0", b"0")]]
    finally:
        await held.stop()
    assert (await read_table(settings, "catalog")).keys() == {b"k0", *(b"k%d" % n for n in range(5, 10))}


@scenario
async def test_headline_requests_that_cannot_be_read_are_dead_letters(
    broker: str, folder: Path, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send_batches(settings, "copy-requests", 3)
    broken = damage_batch(settings, folder, "copy-requests", 1)
    async with GroupMember(settings, "copy-requests", f"{topic_prefix}-copy") as group:
        taken: list[Any] = []
        while len(taken) < 10:
            taken += await group.take(4, 1.0)
        assert [int(record.value) for record in taken] == [*range(5), *range(10, 15)]
        await group.done(taken)
        assert group.lag() == {0: 0}
    [letter] = await letters(settings)
    assert (letter.topic, letter.offset, letter.last_offset, letter.error) == ("copy-requests", 5, 9, "unreadable")
    assert letter.value == broken
