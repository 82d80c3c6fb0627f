"""The engines that the benchmarks compare. Each runs in its own process.

    python -m deploy.bench.engines naive|count|fold BROKER PREFIX PARTITIONS RECORDS
    python -m deploy.bench.engines echo|worker BROKER PREFIX PARTITIONS

naive: counts clicks per shopper with a stock Faust agent. count: the same job on our transport.
fold: the real fold into profiles with its changelog, without pages. These print one JSON object and exit.
echo: copies clicks to homepages with plain aiokafka. worker: a whole worker. These run until SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from deploy.bench.common import Meter, one_core
from deploy.bench.naive import count_with_faust
from stream.kafka.client.connection import client_options
from stream.profile.store import MemoryProfileStore
from stream.settings import Settings

RUN_RECORDS = 4096


def settings_of(broker: str, prefix: str, partitions: int) -> Settings:
    return replace(
        Settings(), broker=f"kafka://{broker}", prefix=prefix, app_id=prefix + "bench", partitions=partitions,
        run_records=RUN_RECORDS,
    )  # fmt: skip


class Shopper(msgspec.Struct):
    user_id: str


class Click(msgspec.Struct):
    data: Shopper


async def _serve(settings: Settings, meter: Meter, make_agent: Callable[[Any, Any, Meter], Any]) -> None:
    """Run one of our agents until all expected records are durable, and print its figures."""
    from stream.kafka.app import make_app, serve, tune_garbage_collection
    from stream.kafka.tables.table import ExactTable

    app, stop = make_app(settings), asyncio.Event()
    tune_garbage_collection()
    store = MemoryProfileStore()
    app.listen(["clicks"], make_agent(app, store, meter), ExactTable(app, "profiles", store))
    worker = asyncio.create_task(serve(app, stop))
    await asyncio.wait([worker, asyncio.create_task(meter.all_done.wait())], return_when=asyncio.FIRST_COMPLETED)
    meter.print_figures()
    stop.set()
    await worker


def count_agent(app: Any, store: MemoryProfileStore, meter: Meter) -> Any:
    from stream.kafka.commit import Output

    decode = msgspec.json.Decoder(Click).decode
    counts: dict[int, dict[str, int]] = defaultdict(dict)

    async def count(runs: Any) -> None:
        async for run in runs:
            meter.start()
            own, changed, out = counts[run.partition], {}, []
            for record in run.records:
                shopper = decode(record.value).data.user_id
                own[shopper] = changed[shopper] = n = own.get(shopper, 0) + 1
                out.append((record.key, b'{"shopper":"%b","count":%d}' % (record.key, n)))
            changelog = [(shopper.encode(), b"%d" % n) for shopper, n in changed.items()]
            await app.outputs.commit_run(run, [Output("homepages", run.partition, out)], changelog)
            meter.add(len(run.records))

    return count


def fold_agent(app: Any, store: MemoryProfileStore, meter: Meter) -> Any:
    import numpy as np

    from stream.events.decode import decode_run
    from stream.items.activity import fold_with_activity
    from stream.profile.row import PROFILE, PROFILE_VERSION
    from stream.row_codec import pack, unpack

    async def fold(runs: Any) -> None:
        async for run in runs:
            meter.start()
            rows, records = store.rows_of(run.partition), run.records
            decoded = decode_run(
                [r.value for r in records],
                [r.key for r in records],
                [r.timestamp / 1000 for r in records],
                "clicks",
                300.0,
            )
            number_of: dict[bytes, int] = {}  # shopper key -> row of `profiles`
            of_record = np.array(
                [number_of.setdefault(key, len(number_of)) if key else -1 for key in decoded.keys], np.int32
            )
            profiles = np.zeros(len(number_of), PROFILE)
            known = [number for key, number in number_of.items() if key in rows]
            profiles[known] = unpack([rows[key] for key in number_of if key in rows], PROFILE, PROFILE_VERSION)
            offsets = np.fromiter((r.offset for r in records), np.int64, len(records))
            fold_with_activity(profiles, of_record[decoded.rows["record"]], decoded.rows, offsets)
            changelog = list(zip(number_of, pack(profiles, PROFILE_VERSION), strict=True))
            store.apply(run.partition, changelog)
            await app.outputs.commit_run(run, (), changelog)
            meter.add(len(records))

    return fold


async def echo(settings: Settings) -> None:
    """Copy each click to `homepages` unchanged: the time that Kafka and aiokafka take by themselves."""
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

    async with (
        AIOKafkaConsumer(settings.prefix + "clicks", **client_options(settings), group_id=settings.app_id) as consumer,
        AIOKafkaProducer(**client_options(settings)) as producer,
    ):
        await consumer.seek_to_end()
        print("shopwindow: ready", file=sys.stderr, flush=True)
        async for record in consumer:
            await producer.send(
                settings.prefix + "homepages", record.value, key=record.key, partition=record.partition
            )  # fmt: skip


def main(kind: str, broker: str, prefix: str, partitions: str, records: str = "0") -> int:
    settings, meter = settings_of(broker, prefix, int(partitions)), Meter(int(records))
    with one_core():
        if kind == "naive":
            asyncio.run(count_with_faust(settings, meter))
        elif kind == "echo":
            asyncio.run(echo(settings))
        elif kind == "worker":
            from agents.worker import run

            return run(replace(settings, copy=False, web_port=0, run_records=Settings().run_records))
        else:
            asyncio.run(_serve(settings, meter, {"count": count_agent, "fold": fold_agent}[kind]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
