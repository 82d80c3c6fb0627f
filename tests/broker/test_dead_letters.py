"""Redriving rejected events against a real broker: each is sent once, whatever happens to the operator."""

import asyncio
import json
import uuid
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from deploy.operate.dead_letters import redrive_letters
from stream.events.decode import Reject
from stream.kafka import redrive as protocol
from stream.kafka import topics
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.dead_letters import decode_dead_letter, encode_dead_letter
from stream.settings import Settings
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.kafka_parts import consumed
from tests.harness.shop import item
from tests.harness.worker_process import Record, clicks, command, read_all, settings_for, until_counted, worker


async def refused(settings: Settings, records: list[Record], topic: str = "clicks") -> None:
    """Write dead letters of good events, as another version may have rejected them."""
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for at, (key, value) in enumerate(records):
            home = partition_of(key or b"", settings.partitions)
            reject = Reject(0, "poison", "value", "it hurt")
            _, headers = encode_dead_letter(topic, home, consumed(key, value, (), home, at), reject)
            await producer.send(settings.prefix + "dead-letters", value, key=key, headers=headers, partition=home)
        await producer.flush()


async def run(settings: Settings, *arguments: str) -> Any:
    return await asyncio.to_thread(command, settings, "dead-letters", *arguments)


@scenario
async def test_letters_are_listed_shown_and_redriven_once_with_their_attempts(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "catalog", [item(f"i{k}") for k in range(20)])
    good = clicks(12, 3)
    await send(settings, "clicks", [*good[:10], (b"u1", b"{half an event"), (b"u1", b"\x00\xffbytes")])
    await refused(settings, good[10:])
    with worker(settings):
        await until_counted(settings, 10)
        while len(await read_all(settings, "dead-letters")) < 4:
            await asyncio.sleep(0.05)
        listed = [json.loads(line) for line in (await run(settings, "list", "--json")).stdout.splitlines()]
        assert sorted(letter["reason"] for letter in listed) == ["not_json", "not_json", "poison", "poison"]
        poison = next(letter for letter in listed if letter["reason"] == "poison" and letter["offset"] == 0)
        shown = (await run(settings, "show", poison["id"])).stdout
        assert "it hurt" in shown and good[10][1].decode() in shown  # type: ignore[union-attr]
        dump = next(letter["id"] for letter in listed if letter["bytes"] == 7)
        assert "00000000  00 ff 62 79 74 65 73" in (await run(settings, "show", dump)).stdout

        dry = await run(settings, "redrive", "--dry-run")
        assert "2 dead letters would be sent back" in dry.stdout and "2 left:" in dry.stdout, dry
        assert len(await read_all(settings, "clicks")) == 12
        first = await run(settings, "redrive", "--reason", "poison")
        assert "2  poison         to clicks" in first.stdout, first
        await until_counted(settings, 12)
        assert "0 dead letters sent back" in (await run(settings, "redrive", "--reason", "poison")).stdout
        twice = await run(settings, "redrive", poison["id"])
        assert twice.returncode == 1 and "is not sent twice" in twice.stdout
        assert "poison" not in (await run(settings, "list")).stdout
        assert "sent back" in (await run(settings, "list", "--all")).stdout
        assert len(await read_all(settings, "clicks")) == 14

        assert "1 dead letter sent back" in (await run(settings, "redrive", dump, "--force")).stdout
        while len(await read_all(settings, "dead-letters")) < 5:
            await asyncio.sleep(0.05)
    letters = [decode_dead_letter(letter) for letter in await read_all(settings, "dead-letters")]
    (before, after) = sorted((x for x in letters if x.value == b"\x00\xffbytes"), key=lambda x: x.attempts)
    assert (before.attempts, after.attempts) == (1, 2)
    assert (before.topic, before.partition, before.offset) == (after.topic, after.partition, after.offset)
    missing = await run(settings, "show", "0-999")
    assert missing.returncode == 1 and "there is no dead letter 0-999" in missing.stderr


@scenario
async def test_concurrent_operators_send_each_letter_once(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await refused(settings, clicks(700, 20))
    done = await asyncio.gather(*(redrive_letters(settings, None, (), False, False) for _ in range(3)))
    sent = sum(one.sent.total() for one in done)
    assert sent == 700
    values = [record.value for record in await read_all(settings, "clicks")]
    assert len(values) == len(set(values)) == 700


async def claimed(settings: Settings, letter: str, home: int, sent: bool, value: bytes) -> None:
    """Leave a claim, as an operator that died before it noted that it was done."""
    line = msgspec.json.encode({"by": uuid.uuid4().hex, "end": len(await read_all(settings, "clicks"))})
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        key = letter.encode()
        await producer.send_and_wait(
            settings.prefix + "redrives", line, key=key, partition=partition_of(key, settings.partitions)
        )
        if sent:
            (mine,) = [x for x in await read_all(settings, "dead-letters") if f"{x.partition}-{x.offset}" == letter]
            headers = protocol.redrive_headers(decode_dead_letter(mine))
            await producer.send_and_wait(settings.prefix + "clicks", value, key=b"u1", partition=home, headers=headers)


@scenario
async def test_letters_of_a_dead_operator_are_found_or_sent(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    records = [record("view_item", "u1", f"e{k}", NOW, item="i") for k in range(3)]
    await refused(settings, list(records))
    home = partition_of(b"u1", settings.partitions)
    ids = {x.value: f"{x.partition}-{x.offset}" for x in await read_all(settings, "dead-letters")}
    other = AIOKafkaProducer(**client_options(settings), transactional_id=topic_prefix)
    await other.start()
    await other.begin_transaction()
    await other.send_and_wait(settings.prefix + "clicks", b"still open", partition=home)
    await claimed(settings, ids[records[0][1]], home, True, records[0][1])
    await claimed(settings, ids[records[1][1]], home, False, records[1][1])
    early = await redrive_letters(settings, None, (), False, False)
    assert early.sent.total() == 1 and early.left.total() == 2
    assert all("claimed" in why for _, why in early.left), "the claim may still be active"
    monkeypatch.setattr(protocol, "CLAIM_EXPIRY_S", 0.0)
    late = await redrive_letters(settings, None, (), False, False)
    assert late.sent.total() == 1 and [why for _, why in late.left] == ["an interrupted redrive had sent it already"]
    await other.abort_transaction()
    await other.stop()
    assert sorted(x.value for x in await read_all(settings, "clicks")) == sorted(value for _, value in records)
    assert (await redrive_letters(settings, None, (), False, False)).sent.total() == 0
