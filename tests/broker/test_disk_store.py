"""A table in RocksDB with a real changelog: what a restarted worker reads, and when it must start from nothing."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition

from stream.kafka import topics
from stream.kafka.app import BatchApp, make_app
from stream.kafka.global_topics import read_table
from stream.kafka.tables import table
from stream.kafka.tables.disk_store import STATE_KEY, DiskProfileStore
from stream.kafka.tables.table import ExactTable
from tests.harness.counting import running, scenario, send, settings_for, until


def counting(settings: Any, folder: Path) -> tuple[BatchApp, DiskProfileStore]:
    """An app that counts clicks by key, in RocksDB."""
    app = make_app(settings)
    store = DiskProfileStore(folder)

    async def count(runs: Any) -> None:
        async for run in runs:
            rows, touched = store.partitions[run.partition], dict[bytes, int]()
            for record in run.records:
                touched[record.key] = touched.get(record.key, int(rows.get(record.key, b"0"))) + 1
            changelog = [(key, b"%d" % n) for key, n in touched.items()]
            store.apply(run.partition, changelog)
            await app.outputs.commit_run(run, (), changelog)

    app.listen(["clicks"], count, ExactTable(app, "profiles", store, store))
    return app, store


def rows_of(store: DiskProfileStore) -> dict[bytes, int]:
    return {key: int(row) for rows in store.partitions.values() for key, row in rows.items()}


async def counted(app: BatchApp, store: DiskProfileStore, settings: Any, clicks: int, keys: int = 100) -> None:
    """Send clicks; return once they are in the rows and committed."""
    total = sum(rows_of(store).values()) + clicks
    await send(settings, "clicks", [(b"k%d" % (n % keys), b"x") for n in range(clicks)])
    # The lag alone is not enough: of some partitions it may only include the older records yet.
    await until(
        lambda: sum(rows_of(store).values()) == total and sum(app.lag().values()) == 0,
        "all clicks counted and committed",
    )


@asynccontextmanager
async def at_work(settings: Any, folder: Path) -> AsyncIterator[tuple[BatchApp, DiskProfileStore]]:
    """Run the counting app; at the end close its files."""
    app, store = counting(settings, folder)
    try:
        async with running(app):
            yield app, store
    finally:
        store.close()


@scenario
async def test_a_restarted_worker_reads_only_what_others_wrote(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    async with at_work(settings, tmp_path / "one") as (one, store):
        await counted(one, store, settings, 2000)
        assert rows_of(store) == {b"k%d" % k: 20 for k in range(100)}

    async with at_work(settings, tmp_path / "one") as (again, store):
        assert again.recovery.records_read == 0 and rows_of(store) == {b"k%d" % k: 20 for k in range(100)}

    async with at_work(settings, tmp_path / "two") as (two, other_store):
        everything = two.recovery.records_read
        assert everything > 100
        await counted(two, other_store, settings, 100)

    back, store = counting(settings, tmp_path / "one")
    async with running(back):
        assert 100 <= back.recovery.records_read < everything + 100
        assert back.recovery.records_read <= 100 + 4 * 100, "what the second wrote: rows, and a watermark per run"
        await counted(back, store, settings, 100)
        assert rows_of(store) == {b"k%d" % k: 22 for k in range(100)}
    assert {int(row) for row in (await read_table(settings, "profiles")).values()} == {22}
    store.close()


async def _recreated(settings: Any) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.broker.removeprefix("kafka://"))
    await admin.start()
    try:
        await admin.delete_topics([settings.prefix + "profiles"])
        while settings.prefix + "profiles" in await admin.list_topics():
            pass
    finally:
        await admin.close()
    await topics.create(settings)


async def _truncated(settings: Any) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.broker.removeprefix("kafka://"))
    await admin.start()
    name = settings.prefix + "profiles"
    configs = dict(next(topic.configs for topic in topics.TOPICS if topic.name == "profiles"))
    try:  # Kafka does not truncate a topic that is only compacted
        for policy in ("delete", "compact"):
            changed = configs | {"cleanup.policy": policy}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, changed)])
            if policy == "delete":
                await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(-1)})
    finally:
        await admin.close()


@pytest.mark.parametrize(("how", "reason"), [(_recreated, "was recreated"), (_truncated, "was truncated")])
@scenario
async def test_rows_that_do_not_match_the_changelog_are_wiped(
    broker: str, topic_prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: Any, reason: str
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    async with at_work(settings, tmp_path) as (app, store):
        await counted(app, store, settings, 300)
    if how is _truncated:  # later records, which the truncation removes
        await send(settings, "profiles", [(b"k1", b"9")] * 10)
    await how(settings)
    await send(settings, "profiles", [(b"fresh", b"5")])
    with caplog.at_level(logging.WARNING):
        async with at_work(settings, tmp_path) as (app, store):
            assert rows_of(store) == {b"fresh": 5}
    assert reason in caplog.text


@scenario
async def test_files_that_may_miss_a_tombstone_are_wiped(
    broker: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    app, store = counting(settings, tmp_path)
    async with running(app):
        await counted(app, store, settings, 300)
        store.partitions[0].db[b"erased"] = b"7"  # its tombstone has been removed by compaction
    stored = json.loads(store.partitions[0].db.get(STATE_KEY) or "")
    store.partitions[0].db[STATE_KEY] = json.dumps(stored | {"at": stored["at"] - table.MAX_DISK_AGE_S - 1}).encode()
    store.close()

    async with at_work(settings, tmp_path) as (app, store):
        assert app.recovery.records_read == 0 and b"erased" in rows_of(store), "the changelog has no newer records"
    await send(settings, "profiles", [(b"other", b"1")])
    async with at_work(settings, tmp_path) as (app, store):
        assert rows_of(store) == {b"k%d" % k: 3 for k in range(100)} | {b"other": 1}


@scenario
async def test_a_full_disk_stops_the_worker_and_loses_nothing(
    broker: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    app, store = counting(settings, tmp_path)
    write, writes = store._write, iter(range(1 << 30))

    def full(db: Any, batch: Any) -> None:
        if next(writes) >= 2:
            raise Exception("IO error: No space left on device: While appending to file")
        write(db, batch)

    monkeypatch.setattr(store, "_write", full)
    with pytest.raises(RuntimeError, match=r"disk of '.*' is full; free some of it"):
        async with running(app) as worker:
            await send(settings, "clicks", [(b"k%d" % (n % 100), b"x") for n in range(2000)])
            await until(worker.done, "ended")
    store.close()
    async with at_work(settings, tmp_path) as (app, store):
        await until(lambda: app.lag() and sum(app.lag().values()) == 0, "all clicks counted")
        assert rows_of(store) == {b"k%d" % k: 20 for k in range(100)}
