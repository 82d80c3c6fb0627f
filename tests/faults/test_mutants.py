"""Mutated events are accepted or become dead letters with field and reason; nothing crashes, and memory stays flat."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from agents.page.headline_cache import HeadlineCache
from agents.page.path import PagePath, Policy
from models.ranker.model import Ranker
from stream.events.decode import REJECT_CODES, decode_run
from stream.items.signals import ItemTable
from stream.kafka.client.connection import client_options
from stream.kafka.commit import Batch
from stream.kafka.dead_letters import encode_dead_letter
from stream.settings import SHIPPED_MODELS, Settings
from tests.harness.counting import lasting
from tests.harness.events import NOW, record
from tests.harness.mutants import Mutant, mutants
from tests.harness.shop import catalog_of, signals_of
from tests.harness.worker_process import open_shop, read_all, resident, settings_for, worker

RUN_RECORDS = 512


class _Record:
    def __init__(self, mutant: Mutant, offset: int) -> None:
        self.key, self.value = mutant.key, mutant.value
        self.offset, self.headers = offset, ()


def assert_explained(topic: str, records: list[_Record], rejects: list) -> None:  # type: ignore[type-arg]
    """Each reject has a code, a field and a reason short enough for headers, and its dead letter can be sent."""
    for reject in rejects:
        value = records[reject.record].value
        assert reject.code in REJECT_CODES and reject.field and reject.message, (reject, value)
        assert len(reject.message) < 1000 and len(reject.field) < 200, (len(reject.message), reject.field)
        pair, headers = encode_dead_letter(topic, 0, records[reject.record], reject)
        assert Batch(1 << 30).extend([pair], [headers]) == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of this process from /proc")
def test_a_million_mutants_are_accepted_or_explained_and_memory_stays_flat(
    chance: random.Random, size: Callable[[int, int], int], progress: Callable[[str], None]
) -> None:
    n = size(20_000, 1_000_000)
    catalog = catalog_of(50)  # the events use 60 items
    signals = signals_of(catalog, [[f"i{k % 60}" for k in range(s, s + 5)] for s in range(40)])
    items = ItemTable()
    path = PagePath(catalog, signals, Ranker(SHIPPED_MODELS / "ranker"), HeadlineCache(), Policy(copy=False))
    stored: dict[bytes, bytes] = {}
    seen: Counter[str] = Counter()
    waiting: dict[str, list[Mutant]] = {"clicks": [], "purchases": [], "privacy": []}
    offset, warm = 0, 0.0
    for count, mutant in enumerate(mutants(chance, n, huge=1 << 18), 1):
        waiting[mutant.topic].append(mutant)
        run = waiting[mutant.topic]
        if len(run) < RUN_RECORDS and count < n:
            continue
        waiting[mutant.topic] = []
        topic, offsets = mutant.topic, np.arange(offset, offset + len(run))
        offset += len(run)
        values = [one.value for one in run]
        decoded = decode_run(values, [one.key for one in run], [NOW + count] * len(run), topic)
        heads = decoded.rows["record"][decoded.rows["part"] == 0].tolist()
        assert sorted([*heads, *(reject.record for reject in decoded.rejects)]) == list(range(len(run)))
        assert_explained(topic, [_Record(*pair) for pair in zip(run, offsets.tolist(), strict=True)], decoded.rejects)
        assert np.isfinite(decoded.rows["price"]).all() and np.isfinite(decoded.rows["time"]).all()
        result = path.refresh_partition(stored, decoded, offsets, NOW + count)
        stored.update((key, value) for key, value in result.changelog if value is not None)
        signals.apply(items.records(items.fold(topic, 0, result.activity)))
        for page in result.pages:
            json.loads(page.value)
            json.loads(page.impression)
        seen.update(reject.code for reject in decoded.rejects)
        seen["accepted"] += len(heads)
        if not warm and count > n // 4:
            warm = resident()
        if count % 50_000 < RUN_RECORDS:
            progress(f"{count} of {n}: {dict(seen)}, {resident():.0f} MB")
    assert seen.keys() - {"accepted"} == set(REJECT_CODES) and seen["accepted"] > n // 4, seen
    assert max(map(len, stored.values())) <= 8192
    grown = resident() - warm
    assert grown < 100, f"{grown:.0f} MB more than after a quarter of the mutants"


MAX_MESSAGE_BYTES = 12 << 20  # of this test's topics


@lasting(1200)
async def test_a_workers_memory_stays_flat_with_mutants_and_huge_strings(
    broker: str,
    topic_prefix: str,
    chance: random.Random,
    size: Callable[[int, int], int],
    progress: Callable[[str], None],
) -> None:
    n, rounds = size(3_000, 20_000), size(3, 8)
    settings = settings_for(broker, topic_prefix, partitions=1)
    await open_shop(settings)
    for topic in ("clicks", "purchases", "privacy"):
        await allow_message_size(settings, topic, MAX_MESSAGE_BYTES)
    expected: dict[tuple[str, int], tuple[str, str]] = {}
    offsets: Counter[str] = Counter()
    memory = []
    with worker(settings) as process:
        for round in range(rounds):
            made = [*mutants(chance, n), *(huge_search(size) for size in (1 << 20, 5 << 20, 10 << 20))]
            made += [Mutant(topic, *record(kind, "end", f"end-{topic}-{round}", NOW + 1e6 + round, **data))
                     for topic, kind, data in (("clicks", "view_homepage", {}), ("purchases", "refund", {"item": "i1"}),
                                               ("privacy", "identify", {}))]  # fmt: skip
            async with AIOKafkaProducer(**client_options(settings), max_request_size=MAX_MESSAGE_BYTES) as producer:
                sent = [
                    await producer.send(settings.prefix + one.topic, one.value, key=one.key, partition=0)
                    for one in made
                ]
                await asyncio.gather(*sent)
            now = time.time()
            for one in made:
                decoded = decode_run([one.value], [one.key], [now], one.topic)
                for reject in decoded.rejects:
                    expected[one.topic, offsets[one.topic]] = reject.code, reject.field
                offsets[one.topic] += 1
            await wait_until_answered(settings, {f"end-{topic}-{round}" for topic in offsets})
            memory.append(resident(process.pid))
            progress(f"round {round + 1} of {rounds}: {sum(offsets.values())} mutants, {memory[-1]:.0f} MB")
        refused = await read_all(settings, "dead-letters")
    found = {}
    for letter in refused:
        headers = {name: value.decode() for name, value in letter.headers}
        assert headers["message"]
        found[headers["topic"], int(headers["offset"])] = headers["error"], headers["field"]
    assert found == expected and len(refused) == len(expected)
    assert memory[-1] - memory[0] < 60, f"MB after each round: {memory}"


def huge_search(characters: int) -> Mutant:
    return Mutant("clicks", *record("search", "secretly-1", "big", NOW, search_term="tweed " * (characters // 6)))


async def allow_message_size(settings: Settings, topic: str, size: int) -> None:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, settings.prefix + topic, {"max.message.bytes": str(size)})]
        )
    finally:
        await admin.close()


async def wait_until_answered(settings: Settings, events: set[str]) -> None:
    """Wait until each of the events is the trigger of a page."""
    async with asyncio.timeout(120):
        while events - {
            json.loads(page.value)["trigger"]["event_id"]
            for page in await read_all(settings, "homepages")
            if page.value is not None  # a tombstone of an expired profile
        }:
            await asyncio.sleep(0.1)
