"""Runs that are committed in the background, while the partition's next run takes its step: in order and exact."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from stream.kafka import consumer as transport
from stream.kafka import topics
from stream.kafka.app import make_app
from stream.kafka.client.producer import BatchTooLarge
from stream.kafka.commit import Output
from stream.kafka.global_topics import read_table
from stream.kafka.run import Run
from stream.kafka.tables.table import ExactTable
from tests.harness.counting import Counts, counting_app, running, scenario, send, settings_for, total, until
from tests.harness.worker_process import read_all


class Held:
    """An app over one partition that commits in the background; the first changelog waits until `go` is set."""

    def __init__(self, broker: str, prefix: str, value: Callable[[Run], bytes] = lambda run: b"1") -> None:
        self.settings = settings_for(broker, prefix, partitions=1)
        self.app, self.go = make_app(self.settings), asyncio.Event()
        self.runs: list[Run] = []
        self.wrote: list[int] = []  # first offsets, in the order of their changelogs
        write = self.app.outputs._write_changelog

        async def held(run: Run, changelog: Any) -> None:
            if run.first == 0:
                await self.go.wait()
            self.wrote.append(run.first)
            await write(run, changelog)

        self.app.outputs._write_changelog = held  # type: ignore[method-assign]

        async def body(runs: Any) -> None:
            async for run in runs:
                self.runs.append(run)
                key = run.records[0].key
                outputs = [Output("homepages", 0, [(key, value(run))])]
                self.app.outputs.commit_in_background(run, outputs, [(key, b"%d" % run.first)])

        self.app.listen(["clicks"], body, ExactTable(self.app, "profiles", Counts()))

    async def click(self, key: bytes) -> None:
        """Send one more event; return once the agent has taken it."""
        taken = len(self.runs) + 1
        await send(self.settings, "clicks", [(key, b"x")])
        await until(lambda: len(self.runs) == taken, f"{taken} runs")

    async def pages(self) -> list[bytes]:
        return [record.key for record in await read_all(self.settings, "homepages")]


@scenario
async def test_outputs_wait_for_an_earlier_changelog_only_if_a_row_is_shared(broker: str, topic_prefix: str) -> None:
    held = Held(broker, topic_prefix)
    await topics.create(held.settings)
    async with running(held.app):
        await held.click(b"ann")
        await held.click(b"bob")
        while await held.pages() != [b"ann", b"bob"]:
            await asyncio.sleep(0.01)
        assert not any(run.is_committed for run in held.runs) and await read_table(held.settings, "profiles") == {}
        await send(held.settings, "clicks", [(b"bob", b"x")])
        held.go.set()
        await until(lambda: len(held.runs) == 3 and held.runs[2].is_committed, "the third")
    assert held.wrote == [0, 1, 2]

    held = Held(broker, topic_prefix + "same-")
    await topics.create(held.settings)
    async with running(held.app):
        await held.click(b"ann")
        while await held.pages() != [b"ann"]:
            await asyncio.sleep(0.01)
        await held.click(b"ann")
        second = held.runs[1]
        assert not second.outputs_sent
        held.go.set()
        await until(lambda: second.is_committed, "the second")
        assert await held.pages() == [b"ann", b"ann"] and held.wrote == [0, 1]
        assert await read_table(held.settings, "profiles") == {b"ann": b"1"}


@scenario
async def test_the_uncommitted_runs_of_a_partition_are_bounded(broker: str, topic_prefix: str) -> None:
    held = Held(broker, topic_prefix)
    await topics.create(held.settings)
    async with running(held.app):
        for n in range(transport.MAX_UNCOMMITTED_RUNS):
            await held.click(b"%d" % n)
        await send(held.settings, "clicks", [(b"%d" % n, b"x") for n in range(5)])
        await until(
            lambda: [len(waiting) for waiting in held.app.batch_consumer._backlog.values()] == [5], "the others fetched"
        )
        assert len(held.runs) == transport.MAX_UNCOMMITTED_RUNS
        held.go.set()
        await until(lambda: held.app.lag() and sum(held.app.lag().values()) == 0, "all")
    assert [len(run.records) for run in held.runs] == [1] * transport.MAX_UNCOMMITTED_RUNS + [5], (
        "the waiting records are one run"
    )


@scenario
async def test_a_run_behind_a_failed_one_is_never_committed(broker: str, topic_prefix: str) -> None:
    held = Held(broker, topic_prefix, lambda run: bytes(3 << 20) if run.first == 0 else b"fits")
    await topics.create(held.settings)
    held.go.set()
    await send(held.settings, "clicks", [(b"ann", b"x")])
    with pytest.raises(BatchTooLarge, match=r"Kafka refuses a batch of \d+ bytes"):
        async with running(held.app) as worker:
            await send(held.settings, "clicks", [(b"bob", b"x")])
            await until(worker.done, "stopped")
    assert await read_table(held.settings, "profiles") == {}
    app, counts = counting_app(held.settings, behind=True)
    async with running(app):
        await until(lambda: total(counts) == 2, "both, by a worker whose outputs fit")


@scenario
async def test_a_lost_partition_drops_its_uncommitted_runs(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    app, counts = counting_app(settings, behind=True)
    expelled = asyncio.Event()
    write = app.outputs._write_changelog

    async def write_late(run: Run, changelog: Any) -> None:
        if run.last >= 2 and not expelled.is_set():  # as the client reacts to the broker's answer "unknown member"
            expelled.set()
            coordinator = app.batch_consumer._thread._ensure_consumer()._coordinator
            app.batch_consumer._thread.thread_loop.call_soon_threadsafe(coordinator.reset_generation)
            while coordinator.generation == run.generation:
                await asyncio.sleep(0.001)
        await write(run, changelog)

    app.outputs._write_changelog = write_late  # type: ignore[method-assign]
    async with running(app):
        await send(settings, "clicks", [(b"k", b"x")] * 2)
        await until(lambda: app.lag() and sum(app.lag().values()) == 0, "the first")
        await send(settings, "clicks", [(b"k", b"x"), (b"l", b"x"), (b"m", b"x"), (b"k", b"x")])
        await expelled.wait()
        await until(lambda: app.ready and total(counts) == 6 and sum(app.lag().values()) == 0, "repeated")
    assert await read_table(settings, "profiles") == {b"k": b"4", b"l": b"1", b"m": b"1"}
