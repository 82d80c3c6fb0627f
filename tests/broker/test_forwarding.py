"""Records of producers with other partitioners are forwarded to the partitions of their keys, and reported."""

import asyncio
import json
import random
import re
import urllib.request
from typing import Any

from aiokafka import AIOKafkaProducer

from stream.events.decode import TOPIC_KINDS
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.keys.forwarding import FORWARDED
from stream.settings import Settings
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.partitioners import partitioners, send_by
from tests.harness.worker_process import (
    Record,
    assert_versions_rise,
    clicks,
    command,
    open_shop,
    pages_of,
    read_all,
    settings_for,
    until_counted,
    worker,
)

SHOPPERS = 40


def purchases(n: int) -> list[Record]:
    """Purchases by shoppers in no order: in turn, they would stay in step with the partitions of round robin."""
    shoppers = random.Random(n).choices(range(SHOPPERS), k=n)
    return [
        record("purchase", f"u{shopper}", f"p{k}", NOW + 10_000 + k, item=f"i{k % 50}", transaction_id=f"t{k}")
        for k, shopper in enumerate(shoppers)
    ]


def consents(n: int) -> list[Record]:
    """Grants: a refusal takes effect from its arrival."""
    return [
        record("consent", f"u{k % SHOPPERS}", f"c{k}", NOW + k, consent={"personalization": True}) for k in range(n)
    ]


def metrics_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def forwarded_of(text: str, topic: str) -> int:
    counted = re.search(rf'shopwindow_forwarded_records_total{{topic="{topic}"}} (\S+)', text)
    return int(float(counted[1])) if counted else 0


async def status_of(settings: Settings) -> Any:
    return json.loads((await asyncio.to_thread(command, settings, "status", "--json")).stdout)


async def assert_in_place(settings: Settings, sent: dict[str, list[Record]]) -> None:
    """Assert that every record is in its partition once, as sent or forwarded, and that nothing is forwarded twice."""
    for topic in TOPIC_KINDS:
        records = await read_all(settings, topic)
        originals = {(r.partition, r.offset): r for r in records if FORWARDED not in dict(r.headers)}
        copies = [r for r in records if FORWARDED in dict(r.headers)]
        assert len(originals) == len(sent.get(topic, ()))
        places = set()
        for copy in copies:
            *own, (name, origin) = copy.headers
            assert name == FORWARDED
            origin_topic, partition, offset = origin.decode().split("/")
            original = originals[int(partition), int(offset)]
            assert origin_topic == topic and own == list(original.headers)
            assert (copy.key, copy.value, copy.timestamp) == (original.key, original.value, original.timestamp)
            assert copy.partition == partition_of(copy.key, settings.partitions) != original.partition
            places.add((original.partition, original.offset))
        misplaced = {at for at, r in originals.items() if partition_of(r.key, settings.partitions) != at[0]}
        assert places == misplaced and len(copies) == len(places)


@scenario
async def test_records_of_other_partitioners_are_forwarded_once_and_reported(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    by = partitioners(settings.partitions)
    viewed = clicks(400, SHOPPERS)
    sent = {"clicks": viewed, "purchases": purchases(120), "privacy": consents(60)}
    await send_by(settings, "clicks", viewed[:200], by["crc32"])
    await send_by(settings, "purchases", sent["purchases"], by["round_robin"])
    with worker(settings) as process:
        await process.ready()
        await send_by(settings, "clicks", viewed[200:300], by["murmur2"])
        await send_by(settings, "clicks", viewed[300:], by["crc32"])
        await send_by(settings, "privacy", sent["privacy"], by["fnv1a"])
        await until_counted(settings, 580)
        for topic, client in (("clicks", "CRC32"), ("purchases", "no key"), ("privacy", "FNV-1a")):
            await process.wait_for_output(rf"of '{topic}' lie in a wrong partition.*seem to use {client}")
        text = metrics_of(await process.port())
        forwarded = {topic: forwarded_of(text, topic) for topic in sent}
        while True:
            status = await status_of(settings)
            if {topic: share["forwarded"] for topic, share in status["forwarded"].items()} == forwarded:
                break
        table = (await asyncio.to_thread(command, settings, "status")).stdout
    assert len(re.findall("lie in a wrong partition", process.output())) == 3, "one warning for each topic"
    assert {topic: share["partitioner"] for topic, share in status["forwarded"].items()} == {
        "clicks": "crc32", "purchases": "random", "privacy": "fnv1a",
    }  # fmt: skip
    for topic, share in status["forwarded"].items():
        assert 0 < share["forwarded"] <= share["records"] <= len(sent[topic])
    assert re.search(r"clicks +\d+\.\d% +crc32", table)
    await assert_in_place(settings, sent)
    pages = await read_all(settings, "homepages")
    assert {page.partition for page in pages if page.key == b"u1"} == {partition_of(b"u1", settings.partitions)}
    assert_versions_rise(pages_of(pages))
    assert not await read_all(settings, "dead-letters")


@scenario
async def test_a_worker_without_an_event_of_its_own_commits_and_ends_in_order(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, store="memory")
    await open_shop(settings)
    sent = clicks(60, SHOPPERS)
    wrong = partitioners(settings.partitions)["murmur2"]
    await send_by(settings, "clicks", sent, lambda key: (wrong(key) + 1) % settings.partitions)
    with worker(settings):
        await until_counted(settings, 60)
        while True:
            status = await status_of(settings)
            committed = {row["partition"]: row for row in status["partitions"] if row["topic"] == "clicks"}
            if all(row["committed"] == row["end"] for row in committed.values()) and status["forwarded"]:
                break
    assert status["forwarded"]["clicks"]["share"] == 1.0
    await assert_in_place(settings, {"clicks": sent})


@scenario
async def test_profiles_on_a_disk_know_what_was_forwarded_to_them(
    broker: str, topic_prefix: str, tmp_path: Any
) -> None:
    settings = settings_for(broker, topic_prefix, store="rocksdb", data_dir=tmp_path)
    await open_shop(settings)
    sent, crc32 = clicks(300, 5), partitioners(settings.partitions)["crc32"]
    await send_by(settings, "clicks", sent[:150], crc32)
    with worker(settings):
        await until_counted(settings, 150)
    copies = [r for r in await read_all(settings, "clicks") if FORWARDED in dict(r.headers)]
    await send_by(settings, "clicks", sent[150:], crc32)
    with worker(settings) as process:
        await process.ready()
        # What a crash of the source would repeat.
        async with AIOKafkaProducer(**client_options(settings)) as producer:
            for copy in copies:
                await producer.send(
                    settings.prefix + "clicks",
                    copy.value,
                    key=copy.key,
                    partition=copy.partition,
                    headers=list(copy.headers),
                )
        await until_counted(settings, 300)
        await send(settings, "clicks", [record("view_homepage", f"u{k}", "end", NOW + 9000) for k in range(5)])
        await until_counted(settings, 305)
        text = metrics_of(await process.port())
    skipped = re.search(r'shopwindow_skipped_records_total{topic="clicks"} (\S+)', text)
    assert skipped is not None and float(skipped[1]) == len(copies) > 0
    assert "shopwindow_duplicates_total 0.0" in text, "they are skipped by their origin, before the ids are compared"
