"""`shopwindow bench stream`: events/s under backlog, compared with a naive Faust agent on the same broker.

In each round every engine processes the same events from fresh topics, in its own process on one core; Kafka has the
other cores. The time is from the first record received to the last one durable.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from deploy.bench.common import Figures, Plan, broker_on_other_cores, report, rounded_median
from deploy.bench.engines import settings_of
from stream.kafka import topics
from stream.kafka.client.connection import client_options, partition_of
from stream.settings import Settings

SECONDS = 90.0
SHOPPERS, PARTITIONS = 20_000, 8
# Share of a round's time for each engine, and a first estimate of its events/s; later rounds use the measured rate.
ENGINES = {"naive": (0.3, 2_000.0), "count": (0.3, 150_000.0), "fold": (0.3, 40_000.0)}
MIN_EVENTS, MAX_EVENTS = 2_000, 1_500_000  # of an engine's round; the maximum bounds disk use


def measure(settings: Settings, plan: Plan) -> Figures:
    """Return events/s and CPU us/event of each engine, and the ratios to naive: `count_ratio`, `ratio` (fold)."""
    estimates = {name: estimate for name, (_, estimate) in ENGINES.items()}
    found: dict[str, list[Figures]] = {name: [] for name in ENGINES}
    with broker_on_other_cores() as broker:
        for turn in range(plan.rounds):
            for name, (share, _) in ENGINES.items():
                n = int(min(MAX_EVENTS, max(MIN_EVENTS, estimates[name] * share * plan.round_seconds)))
                figures = asyncio.run(_round(broker.bootstrap, name, n, turn))
                estimates[name] = figures["per_s"]
                found[name].append(figures)
                report(f"round {turn + 1}/{plan.rounds} {name:6} {n:8d} events {figures['per_s']:10,.0f}/s")
    engines = {
        name: {
            figure: rounded_median([one[figure] for one in rounds])
            for figure in ("per_s", "cpu_us", "rss_mb", "records")
        }
        for name, rounds in found.items()
    }
    ratios = {
        name: rounded_median(
            [ours["per_s"] / base["per_s"] for ours, base in zip(found[name], found["naive"], strict=True)]
        )
        for name in ("count", "fold")
    }
    return {"engines": engines, "count_ratio": ratios["count"], "ratio": ratios["fold"], "rounds": plan.rounds}


def table(figures: Figures) -> str:
    lines = [f"{'engine':24} {'events/s':>10} {'CPU us/event':>13} {'RSS MB':>7} {'vs naive':>9}"]
    names = {"naive": "naive Faust agent", "count": "count, our transport", "fold": "fold, our transport"}
    ratios = {"naive": 1.0, "count": figures["count_ratio"], "fold": figures["ratio"]}
    for name, label in names.items():
        e = figures["engines"][name]
        lines.append(f"{label:24} {e['per_s']:10,.0f} {e['cpu_us']:13.1f} {e['rss_mb']:7.0f} {ratios[name]:8.1f}x")
    return "\n".join(lines)


async def _round(broker: str, engine: str, n: int, turn: int) -> Figures:
    prefix = f"bench-{engine}-{turn}-{time.time_ns()}-"
    settings = settings_of(broker, prefix, PARTITIONS)
    await topics.create(settings)
    try:
        await fill(settings, n)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deploy.bench.engines", engine, broker, prefix, str(PARTITIONS), str(n),
            stdout=subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"the engine '{engine}' ended with status {process.returncode}; its output is above")
        figures: Figures = json.loads(output)
        await _check(settings, engine, n)
        return figures
    finally:
        await _delete(settings)


def events(n: int, start: float = 1_767_225_600.0) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of n realistic clicks of SHOPPERS shoppers, about 430 bytes of JSON each."""
    second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(start))
    for i in range(n):
        shopper = b"shopper-%d" % (i * 7919 % SHOPPERS)
        item = i * 31 % 100_003
        yield (
            shopper,
            b'{"specversion":"1.0","id":"e%012d","source":"/web/eu","type":"select_item","time":"%s.%03dZ","data":'
            b'{"user_id":"%b","session_id":"s%d","channel":"web","locale":"en","consent":{"personalization":true},'
            b'"attribution":{"page_id":"p%d","slot":"for_you","position":%d},"items":[{"item_id":"SKU-%d","price":%d.9,'
            b'"quantity":1,"item_category":"c%d","item_brand":"b%d"}],"currency":"EUR","value":%d.9}}'
            % (
                i,
                second.encode(),
                i % 1000,
                shopper,
                i % 977,
                i,
                i % 12,
                item,
                item % 200,
                item % 40,
                item % 300,
                item % 200,
            ),
        )


async def fill(settings: Settings, n: int) -> None:
    """Send n events to `clicks` in full batches."""
    partition_by_key: dict[bytes, int] = {}
    async with AIOKafkaProducer(**client_options(settings), max_batch_size=500_000, linger_ms=0) as producer:
        batches = [producer.create_batch() for _ in range(settings.partitions)]
        sent = []
        for key, value in events(n):
            p = partition_by_key.get(key)
            if p is None:
                p = partition_by_key[key] = partition_of(key, settings.partitions)
            if batches[p].append(timestamp=None, key=key, value=value) is None:
                sent.append(await producer.send_batch(batches[p], settings.prefix + "clicks", partition=p))
                batches[p] = producer.create_batch()
                batches[p].append(timestamp=None, key=key, value=value)
        for p, batch in enumerate(batches):
            if batch.record_count():
                sent.append(await producer.send_batch(batch, settings.prefix + "clicks", partition=p))
        await asyncio.gather(*sent)


async def _check(settings: Settings, engine: str, n: int) -> None:
    """Raise RuntimeError unless every event has its output in `homepages`."""
    if engine == "fold":
        return
    from aiokafka import AIOKafkaConsumer

    async with AIOKafkaConsumer(**client_options(settings)) as consumer:
        ends = await consumer.end_offsets(
            [TopicPartition(settings.prefix + "homepages", p) for p in range(settings.partitions)]
        )
    if sum(ends.values()) != n:
        raise RuntimeError(f"'{engine}' published {sum(ends.values())} outputs for {n} events")


async def _delete(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin.delete_topics([name for name in await admin.list_topics() if name.startswith(settings.prefix)])
    finally:
        await admin.close()
