"""A minimal worker that counts records by key, in the test's process or as `python -m tests.harness.counting`."""

import asyncio
import functools
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from aiokafka import AIOKafkaProducer

from agents.run_cutter import RunCutter
from stream.kafka.app import BatchApp, make_app, serve
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.commit import Output
from stream.kafka.tables.table import ExactTable


def settings_for(broker: str, prefix: str, **more: Any) -> Any:
    """The settings that stream/kafka reads, with short group sessions for tests."""
    values = {
        "broker": f"kafka://{broker}", "prefix": prefix, "app_id": prefix + "counting",
        "partitions": 4, "replication": 1,
        "security_protocol": "PLAINTEXT", "ssl_ca_file": None, "ssl_cert_file": None, "ssl_key_file": None,
        "sasl_mechanism": "PLAIN", "sasl_username": None, "sasl_password": None, "isolation": "read_committed",
        "run_records": 200, "session_timeout": 2.0, "heartbeat": 0.3, "standbys": 0,
    }  # fmt: skip
    return SimpleNamespace(**(values | more))


class Counts:
    """A store of counts by key, per partition."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[bytes, int]] = defaultdict(dict)
        self.applied = 0

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        self.applied += len(records)
        for key, value in records:
            if value is None:
                self.rows[partition].pop(key, None)
            else:
                self.rows[partition][key] = int(value)

    def drop(self, partition: int) -> None:
        self.rows.pop(partition, None)


def counting_app(
    settings: Any, topics: Sequence[str] = ("clicks",), pause: float = 0.0, behind: bool = False, row_bytes: int = 0
) -> tuple[BatchApp, Counts]:
    """An app that counts by key in 'profiles', and writes the origin of each record to 'impressions'.

    `pause`: seconds that each run takes. `behind`: commit each run in the background. `row_bytes`: least size of a row;
    runs are cut so that their changelog fits.
    """
    app = make_app(settings)
    counts = Counts()
    table = ExactTable(app, "profiles", counts)
    cutter = RunCutter(lambda: app.outputs.changelog_limit("profiles") - 200)

    async def count(runs: Any) -> None:
        async for run in runs:
            rows = counts.rows[run.partition]
            cutter.cut_to_estimate(run)
            while True:
                touched: dict[bytes, int] = {}
                for record in run.records:
                    touched[record.key] = touched.get(record.key, rows.get(record.key, 0)) + 1
                changelog = [(key, (b"%d" % count).rjust(row_bytes)) for key, count in touched.items()]
                if not row_bytes or not cutter.cut_to_fit(run, changelog):
                    break
            rows.update(touched)
            if pause:
                await asyncio.sleep(pause)
            seen = [(r.key, b"%s %d %d" % (run.topic.encode(), run.partition, r.offset)) for r in run.records]
            outputs = [Output("impressions", run.partition, seen)]
            if behind:
                app.outputs.commit_in_background(run, outputs, changelog)
            else:
                await app.outputs.commit_run(run, outputs, changelog)

    app.listen(topics, count, table)
    return app, counts


FULL_ROW_BYTES = 5000  # about the size of a full profile
Scenario = Callable[..., Coroutine[Any, Any, None]]


def lasting(seconds: float) -> Callable[[Scenario], Callable[..., None]]:
    """Decorator for a test that is a coroutine and must end within `seconds`."""

    def decorate(test: Scenario) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **named: Any) -> None:
            asyncio.run(asyncio.wait_for(test(*args, **named), seconds))

        return run

    return decorate


scenario = lasting(180.0)


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Wait until `condition` is true. Fail after `seconds`; `what` describes the condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not: {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def running(app: BatchApp) -> AsyncIterator[asyncio.Task[None]]:
    """Run the app until it is ready, and stop it in good order at the end. Raises what crashed the app."""
    stop = asyncio.Event()
    worker = asyncio.create_task(serve(app, stop))
    try:
        await until(lambda: app.ready or worker.done(), "ready")
        yield worker
    finally:
        stop.set()
        await worker


async def send(settings: Any, topic: str, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
    """Send (key, value) records, each to the partition of its key, and wait until they are acknowledged."""
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for key, value in records:
            partition = partition_of(key or b"", settings.partitions)
            await producer.send(settings.prefix + topic, value, key=key, partition=partition)
        await producer.flush()


def total(counts: Counts) -> int:
    return sum(sum(rows.values()) for rows in counts.rows.values())


def die_at(app: BatchApp, point: str, runs: int) -> None:
    """Let the process kill itself (-9) in its `runs`-th run, before its `outputs`, its `changelog` or its `ack`."""
    step = {"outputs": (app.outputs, "_enqueue"), "changelog": (app.outputs, "_write_changelog")}
    owner, name = step.get(point, (app.batch_consumer, "acknowledge"))
    original = getattr(owner, name)
    calls = iter(range(1, 1 << 30))

    def fatal(*args: Any) -> Any:
        if next(calls) == runs:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(owner, name, fatal)


def run_worker(app: BatchApp) -> int:
    """Run the app until SIGTERM or SIGINT. Return the exit status: 0, or 1 with a sentence on stderr."""

    async def run_until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(app, stop)

    try:
        asyncio.run(run_until_signal())
    except Exception as error:
        print(f"shopwindow: the worker stopped: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    broker, prefix, pause, behind, *death = sys.argv[1:]
    worker, _ = counting_app(
        settings_for(broker, prefix), ("clicks", "purchases"), float(pause), behind != "before",
        FULL_ROW_BYTES if behind == "split" else 0,
    )  # fmt: skip
    if death:
        worker.when_ready(lambda: die_at(worker, death[0], 5))
    sys.exit(run_worker(worker))
