"""What the transport itself costs: an agent that only counts by key, one output a key and run.

    python -m tests.bench.transport [--broker HOST:PORT] [--records N] [--shoppers N]

Prints records/s under backlog (worker's CPU per record beside it), recovery of the table in records/s, and the latency
of a single record on an idle worker, from just before its send to its output in the hands of a consumer.
"""

import argparse
import asyncio
import json
import time
from contextlib import ExitStack
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from deploy.broker import Broker
from stream.kafka import topics
from stream.kafka.app import BatchApp, make_app
from stream.kafka.connect import client_options, partition_of
from stream.kafka.outputs import Output
from stream.kafka.table import ExactTable
from tests.counting import Counts, running, settings_for, total, until

SINGLES = 500


def counting(settings: Any) -> tuple[BatchApp, Counts]:
    app = make_app(settings)
    counts = Counts()

    async def count(runs: Any) -> None:
        async for run in runs:
            rows = counts.rows[run.partition]
            touched = {}
            for record in run.records:
                rows[record.key] = touched[record.key] = rows.get(record.key, 0) + 1
            changelog = [(key, b"%d" % n) for key, n in touched.items()]
            pages = [(key, value) for key, value in changelog]
            await app.outputs.commit_run(run, [Output("homepages", run.partition, pages)], changelog)

    app.listen(["clicks"], count, ExactTable(app, "profiles", counts))
    return app, counts


async def fill(settings: Any, n: int, shoppers: int) -> None:
    value = b"x" * 200  # an event is 200 to 600 bytes of JSON
    keys = [b"shopper-%d" % i for i in range(shoppers)]
    by_partition: dict[int, list[bytes]] = {}
    for key in keys:
        by_partition.setdefault(partition_of(key, settings.partitions), []).append(key)
    async with AIOKafkaProducer(**client_options(settings), max_batch_size=500_000) as producer:
        for partition, own in by_partition.items():
            sent, left = [], n // len(by_partition)
            while left:
                batch = producer.create_batch()
                while left and batch.append(timestamp=None, key=own[left * 7 % len(own)], value=value):
                    left -= 1
                sent.append(await producer.send_batch(batch, settings.prefix + "clicks", partition=partition))
            await asyncio.gather(*sent)


async def main(broker: str, n: int, shoppers: int) -> None:
    settings = settings_for(broker, f"bench-{time.time_ns()}-", partitions=8, run_records=512)
    await topics.create(settings)
    await fill(settings, n, shoppers)
    figures: dict[str, Any] = {"records": n, "shoppers": shoppers, "run_records": settings.run_records}

    app, counts = counting(settings)
    loop = asyncio.get_running_loop()
    async with running(app):
        while not total(counts):
            await asyncio.sleep(0.001)
        began, cpu, already = loop.time(), time.process_time(), total(counts)
        await until(lambda: total(counts) >= n // 8 * 8, "all counted", 300)
        took, cpu = loop.time() - began, time.process_time() - cpu
        figures["records_per_s"] = round((total(counts) - already) / took)
        figures["cpu_us_per_record"] = round(cpu / (total(counts) - already) * 1e6, 2)

        homepages = [TopicPartition(settings.prefix + "homepages", p) for p in range(settings.partitions)]
        async with (
            AIOKafkaProducer(**client_options(settings)) as producer,
            AIOKafkaConsumer(**client_options(settings), fetch_max_wait_ms=20) as consumer,
        ):
            consumer.assign(homepages)
            await consumer.seek_to_end(*homepages)
            latencies = []
            for i in range(SINGLES):
                key = b"single-%d" % i
                sent = loop.time()
                partition = partition_of(key, settings.partitions)
                await producer.send(settings.prefix + "clicks", b"x" * 200, key=key, partition=partition)
                while (await consumer.getone()).key != key:
                    pass
                latencies.append((loop.time() - sent) * 1000)
                await asyncio.sleep(0.01)
        latencies.sort()
        for name, rank in (("p50", SINGLES // 2), ("p99", SINGLES * 99 // 100)):
            figures[f"single_{name}_ms"] = round(latencies[rank], 2)

    app, counts = counting(settings)
    began = loop.time()
    async with running(app):
        took = loop.time() - began
    figures["recovery"] = {"changelog_records": counts.applied, "ready_s": round(took, 2)}
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", help="host:port of a Kafka (default: an embedded one)")
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--shoppers", type=int, default=20_000)
    given = parser.parse_args()
    with ExitStack() as stack:
        bootstrap = given.broker or stack.enter_context(Broker()).bootstrap
        asyncio.run(main(bootstrap, given.records, given.shoppers))
