"""`shopwindow bench recovery`: how fast a worker restores its profiles, compared with a stock Faust table.

All tables read a changelog of realistic rows, each in its own process on one core; the broker has the other cores.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from time import monotonic, process_time
from typing import Any

from aiokafka import AIOKafkaProducer

from agents.worker import profiles_of
from deploy.bench import population
from deploy.bench.common import Figures, Plan, broker_on_other_cores, one_core, report, rounded_median
from deploy.bench.naive import stock_table
from stream.kafka import topics
from stream.kafka.app import make_app, serve, tune_garbage_collection
from stream.kafka.client import record_batch
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.commit import BATCH_BYTES, Batch
from stream.kafka.tables.table import ExactTable
from stream.settings import Settings

SECONDS = 60.0
BATCH_PROFILES = 512
KINDS = ("memory", "rocksdb", "stock")
SHOPPERS_PER_SECOND = 4_000  # profiles in the changelog per second of the planned duration
STOCK_FRACTION = 8  # the stock table reads a changelog of 1/8 the size
DISTINCT_ROWS = 4_000
READ_TIMEOUT_S = 300.0  # for one restore


def measure(settings: Settings, plan: Plan) -> Figures:
    """Return records/s, memory and CPU per profile of our table in memory and in RocksDB, and ratios to stock Faust."""
    shoppers = max(8_000, int(plan.seconds * SHOPPERS_PER_SECOND))
    rows = population.records(DISTINCT_ROWS)
    found: dict[str, list[Figures]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="shopwindow-bench-") as folder, broker_on_other_cores() as broker:
        base = dataclasses.replace(
            settings, broker=f"kafka://{broker.bootstrap}", replication=1, security_protocol="PLAINTEXT",
            data_dir=Path(folder), web_port=0, session_timeout=6.0, heartbeat=0.5,
        )  # fmt: skip
        of_kind = {kind: shoppers // (STOCK_FRACTION if kind == "stock" else 1) for kind in KINDS}
        for size in set(of_kind.values()):
            report(f"writing a changelog of {size:,} profiles, {sum(map(len, rows)) / len(rows):,.0f} bytes each")
            asyncio.run(fill(dataclasses.replace(base, prefix=f"{size}-"), rows, size))
        for turn in range(plan.rounds):
            for kind in KINDS:
                round_settings = dataclasses.replace(base, prefix=f"{of_kind[kind]}-", app_id=f"{kind}-{turn}")
                figures = _restore_in_process(kind, round_settings)
                if figures["records"] != of_kind[kind]:
                    raise RuntimeError(f"{kind} recovered {figures['records']} of {of_kind[kind]} profiles")
                report(f"round {turn + 1}: {kind} {figures['records'] / figures['seconds']:,.0f} records/s")
                found[kind].append(figures)
    return _figures(shoppers, rows, found)


def _figures(shoppers: int, rows: list[bytes], found: dict[str, list[Figures]]) -> Figures:
    rate = {kind: rounded_median([one["records"] / one["seconds"] for one in rounds]) for kind, rounds in found.items()}
    resident = {
        kind: rounded_median([(one["resident"] - one["resident_before"]) / one["records"] for one in rounds])
        for kind, rounds in found.items()
    }

    def of(kind: str) -> Figures:
        return {
            "records_per_s": round(rate[kind]),
            "bytes_per_shopper": round(resident[kind]),
            "million_seconds": round(1e6 / rate[kind], 2),
            "cpu_us_per_record": rounded_median([one["cpu"] / one["records"] * 1e6 for one in found[kind]], 3),
        }

    return {
        **of("memory"),
        "ratio": round(rate["memory"] / rate["stock"], 1),
        "rocksdb": of("rocksdb") | {"ratio": round(rate["rocksdb"] / rate["stock"], 1)},
        "stock": of("stock"),
        "shoppers": shoppers,
        "row_bytes": round(sum(map(len, rows)) / len(rows)),
        "start_seconds": rounded_median([one["start"] - one["seconds"] for one in found["memory"]], 3),
        "pinned": all(one["pinned"] for rounds in found.values() for one in rounds),
    }


def table(figures: Figures) -> str:
    rows = [("memory", figures), ("rocksdb", figures["rocksdb"]), ("stock Faust", figures["stock"])]
    lines = [
        f"a changelog of {figures['shoppers']:,} profiles of {figures['row_bytes']:,} bytes",
        "",
        f"{'':12}{'records/s':>12}{'CPU us/record':>16}{'bytes/profile':>16}{'a million in':>14}",
        *(
            f"{name:12}{one['records_per_s']:>12,}{one['cpu_us_per_record']:>16}{one['bytes_per_shopper']:>16,}"
            f"{one['million_seconds']:>12,.1f} s"
            for name, one in rows
        ),
        "",
        f"{figures['ratio']:.0f} times stock Faust; a start takes {figures['start_seconds']:.2f} s besides reading",
    ]
    return "\n".join(lines)


async def fill(settings: Settings, rows: list[bytes], shoppers: int) -> None:
    """Create the topics and write the changelog of `shoppers` profiles, in batches like those of a worker."""
    await topics.create(settings, 2 * BATCH_BYTES)
    by_partition: dict[int, list[bytes]] = {}
    for key in population.keys(shoppers):
        by_partition.setdefault(partition_of(key, settings.partitions), []).append(key)
    async with AIOKafkaProducer(**client_options(settings), max_request_size=4_000_000) as producer:
        for partition, keys in by_partition.items():
            remaining = iter(enumerate(keys))
            sent = []
            while chunk := list(islice(remaining, BATCH_PROFILES)):
                batch = Batch(2 * BATCH_BYTES)
                batch.extend([(key, rows[at % len(rows)]) for at, key in chunk])
                sent.append(await producer.send_batch(batch, settings.prefix + "profiles", partition=partition))
            await asyncio.gather(*sent)


def _restore_in_process(kind: str, settings: Settings) -> Figures:
    """Restore the table of `kind` in a process of its own and return the figures that it prints."""
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}
    command = [sys.executable, "-m", "deploy.bench.recovery", kind]
    done = subprocess.run(
        command, input=json.dumps(fields), capture_output=True, text=True, timeout=READ_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the restore of '{kind}' failed: {done.stderr.strip().splitlines()[-1:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _resident() -> int:
    """Resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status does not give the resident memory")


async def _restore_ours(settings: Settings, kind: str) -> Figures:
    app = make_app(settings)
    store, disk = profiles_of(dataclasses.replace(settings, store=kind))
    app.listen(["clicks"], _skip, ExactTable(app, "profiles", store, disk))
    record_batch.warm()
    tune_garbage_collection()  # as a worker does before it starts
    before, start, cpu, stop = _resident(), monotonic(), process_time(), asyncio.Event()
    done = asyncio.Event()
    app.when_ready(done.set)
    worker = asyncio.create_task(serve(app, stop))
    waiting = asyncio.create_task(done.wait())
    await asyncio.wait({worker, waiting}, return_when=asyncio.FIRST_COMPLETED, timeout=READ_TIMEOUT_S)
    ready = monotonic()
    figures = _times(app.recovery, start, ready, cpu) | {
        "records": app.recovery.records_read,
        "resident_before": before,
    }
    gc.collect()
    figures["resident"] = _resident()
    stop.set()
    await worker
    store.close()
    return figures


async def _skip(runs: Any) -> None:
    async for run in runs:
        run.acknowledge()


async def _restore_stock(settings: Settings, kind: str) -> Figures:
    app, held = stock_table(settings)
    gc.collect()
    before, start, cpu = _resident(), monotonic(), process_time()
    await app.start()
    async with asyncio.timeout(READ_TIMEOUT_S):
        while not app.tables.recovery.completed.is_set():
            await asyncio.sleep(0.01)
    figures = _times(app.tables.recovery, start, monotonic(), cpu) | {"records": len(held), "resident_before": before}
    gc.collect()
    figures["resident"] = _resident()
    await app.stop()
    return figures


def _times(recovery: Any, start: float, ready: float, cpu: float) -> Figures:
    """Seconds of recovery by Faust's own timestamps, the same for both kinds, and of the whole start."""
    return {
        "cpu": process_time() - cpu,
        "seconds": recovery._recovery_ended_at - recovery._recovery_started_at,
        "start": ready - start,
    }


def _main() -> None:
    fields = json.loads(sys.stdin.read())
    paths = {name: Path(value) for name, value in fields.items() if name.endswith(("_dir", "_file")) and value}
    settings = Settings(**(fields | paths))
    restore = _restore_stock if sys.argv[1] == "stock" else _restore_ours
    with one_core() as pinned:
        figures = asyncio.run(restore(settings, sys.argv[1]))
    print(json.dumps(figures | {"pinned": pinned}))


if __name__ == "__main__":
    _main()
