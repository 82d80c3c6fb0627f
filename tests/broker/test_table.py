"""The exact table: what its changelog holds, and how a worker gets it back."""

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from stream.kafka import commit as outputs
from stream.kafka import topics
from stream.kafka.app import make_app
from stream.kafka.client import brokers as leaders
from stream.kafka.client.connection import client_options
from stream.kafka.global_topics import read_table, read_topic
from stream.kafka.tables.recovery import TableProgress
from stream.kafka.tables.table import ExactTable
from tests.harness.counting import Counts, counting_app, running, scenario, send, settings_for, total, until


@scenario
async def test_rows_and_watermark_of_a_run_are_one_append(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1, run_records=1000)
    await topics.create(settings)
    await send(settings, "clicks", [(b"k%d" % i, b"x") for i in range(300)])
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: total(counts) == 300, "300 counted")
    records = [record async for record in read_topic(settings, "profiles")]
    marks = [record for record in records if record.key == b"\x00wm:clicks:0"]
    assert marks[-1].value == b"300" and records[-1] == marks[-1], "the watermark closes each batch"
    assert len(records) == 300 + len(marks)


@scenario
async def test_a_changelog_larger_than_its_batch_is_refused_whole(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "CHANGELOG_BYTES", 1000)
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", [(b"k%d" % i, b"x") for i in range(2000)])
    app, _ = counting_app(settings)
    with pytest.raises(ValueError, match="exceeds one batch of 1000 bytes"):
        async with running(app) as worker:
            await until(worker.done, "stopped")


@scenario
async def test_a_large_changelog_batch_is_accepted_and_read_back(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send(settings, "clicks", [(b"k", b"x")])
    rows = [(b"row%d" % i, bytes(4096)) for i in range(2000)]  # 8 MB: eight times what Kafka takes unless told
    app = make_app(settings)

    async def write(runs: Any) -> None:
        async for run in runs:
            await app.outputs.commit_run(run, [], rows)

    app.listen(["clicks"], write, ExactTable(app, "profiles", Counts()))
    async with running(app):
        await until(lambda: app.lag() and sum(app.lag().values()) == 0, "written")
    assert await read_table(settings, "profiles") == dict(rows)


@scenario
async def test_a_worker_recovers_its_table_before_it_takes_a_record(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    old = [(b"k%d" % i, b"%d" % (i + 1)) for i in range(5000)]
    await send(settings, "profiles", old)
    await send(settings, "profiles", [(b"k7", None), (b"k8", b"1000")])
    await send(settings, "clicks", [(b"k8", b"x")])
    app, counts = counting_app(settings)
    applied_at_first_run: list[int] = []
    original = app.outputs.commit_run

    async def note(*args: Any) -> None:
        applied_at_first_run.append(counts.applied)
        await original(*args)

    monkeypatch.setattr(app.outputs, "commit_run", note)
    async with running(app):
        await until(lambda: applied_at_first_run, "a run")
        await until(lambda: sum(app.lag().values()) == 0, "done")
    assert applied_at_first_run == [5002]
    rows = {key: count for partition in counts.rows.values() for key, count in partition.items()}
    expected = {key: int(value) for key, value in old} | {b"k8": 1001}
    del expected[b"k7"]
    assert rows == expected


@scenario
async def test_recovery_ends_where_the_changelogs_last_offset_holds_no_record(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=2)
    await topics.create(settings)
    await send(settings, "profiles", [(b"k%d" % i, b"1") for i in range(10)])
    # A transaction's marker takes an offset and is never delivered; compaction leaves such ends too.
    producer = AIOKafkaProducer(**client_options(settings), transactional_id=topic_prefix)
    await producer.start()
    async with producer.transaction():
        await producer.send(settings.prefix + "profiles", b"1", key=b"marked", partition=1)
    await producer.stop()
    app, counts = counting_app(settings)
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with running(app):
        assert loop.time() - before < 4, "Faust looks again only every 5 s"
        assert total(counts) == 11


@scenario
async def test_empty_and_idle_partitions_recover_at_once(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=16)
    await topics.create(settings)
    await send(settings, "profiles", [(b"only", b"1")])
    app, counts = counting_app(settings)
    loop = asyncio.get_running_loop()
    before = loop.time()
    async with running(app):
        assert total(counts) == 1
        took = loop.time() - before
    assert took < 3, f"{took:.1f} s"


@scenario
async def test_ready_says_when_the_tables_are_there(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    app, _ = counting_app(settings)
    assert not app.ready
    calls: list[set[int]] = []
    app.when_ready(lambda: calls.append(app.partitions("clicks")))
    async with running(app):
        assert app.ready
        await until(lambda: app.batch_consumer.fetched_at() is not None, "fetched")
    assert calls == [{0, 1, 2, 3}]
    assert not app.ready


@scenario
async def test_recovery_says_how_far_it_is(broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(broker, topic_prefix, partitions=2)
    await topics.create(settings)
    await send(settings, "profiles", [(b"k%d" % i, b"%d" % i) for i in range(3000)])
    app, counts = counting_app(settings)
    seen: list[TableProgress] = []
    apply = counts.apply

    def note(partition: int, records: Any) -> None:
        seen.extend(app.recovery.progress())
        apply(partition, records)

    monkeypatch.setattr(counts, "apply", note)
    monkeypatch.setattr(leaders, "PARTITION_BYTES", 10_000)
    async with running(app):
        [after] = app.recovery.progress()
    first, last = seen[0], seen[-1]
    assert (first.table, first.partitions, first.read, first.to_read) == ("profiles", 2, 0, 3000)
    assert first.seconds_left is None and last.seconds_left is not None and last.seconds_left > 0
    reads = [one.read for one in seen]
    assert reads == sorted(reads) and 0 < last.read < 3000
    assert (after.read, after.to_read, after.seconds_left) == (3000, 3000, 0.0)


@scenario
async def test_a_rebalance_that_leaves_a_partition_reads_nothing_of_it_again(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=4)
    await topics.create(settings)
    await send(settings, "profiles", [(b"k%d" % i, b"1") for i in range(2000)])
    one, _ = counting_app(settings)
    two, counts = counting_app(settings)
    async with running(one):
        assert one.recovery.records_read == 2000
        async with running(two):
            await until(lambda: len(two.partitions("clicks")) == 2, "two share")
            await until(lambda: one.ready and len(one.partitions("clicks")) == 2, "one has the others")
            assert one.recovery.records_read == 2000, "what it keeps it does not read again"
            mine = two.partitions("clicks")
            assert two.recovery.records_read == total(counts) and set(counts.rows) == mine
        await until(lambda: one.ready and len(one.partitions("clicks")) == 4, "one alone")
        assert one.recovery.records_read == 2000 + total(counts), "and what comes back it reads"


@scenario
async def test_a_standby_copy_follows_and_takes_over_without_a_recovery(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=4, standbys=1)
    await topics.create(settings)
    await send(settings, "profiles", [(b"k%d" % i, b"1") for i in range(2000)])
    one, ones = counting_app(settings)
    two, twos = counting_app(settings)
    async with running(one):
        async with running(two):
            await until(lambda: len(two.partitions("clicks")) == 2 and two.ready, "two share")
            await until(lambda: one.ready and len(one.partitions("clicks")) == 2, "one has the others")
            await until(lambda: total(twos) == 2000, "two has everything, half of it as a copy")
            await send(settings, "clicks", [(b"k%d" % i, b"x") for i in range(2000)])
            await until(lambda: total(ones) == total(twos) == 4000, "the copies follow")
            before = one.recovery.records_read
        await until(lambda: one.ready and len(one.partitions("clicks")) == 4, "one alone")
        assert one.recovery.records_read - before < 20, "it has read nothing again but what came last"
        assert total(ones) == 4000 and ones.rows == {p: rows for p, rows in ones.rows.items() if rows}
        await send(settings, "clicks", [(b"k%d" % i, b"x") for i in range(2000)])
        await until(lambda: total(ones) == 6000, "and it counts on")
    assert {int(value) for value in (await read_table(settings, "profiles")).values()} == {3}
