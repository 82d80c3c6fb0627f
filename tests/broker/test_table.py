"""The exact table: the content of its changelog, and its recovery."""

from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from stream.kafka import commit, topics
from stream.kafka.app import make_app
from stream.kafka.client import brokers
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
async def test_a_changelog_larger_than_its_batch_is_refused(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "MAX_CHANGELOG_BYTES", 1000)
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", [(b"k%d" % i, b"x") for i in range(2000)])
    app, _ = counting_app(settings)
    with pytest.raises(
        commit.ChangelogTooLarge, match=r"profiles' takes at most 1000 bytes: raise its max\.message\.bytes"
    ):
        async with running(app) as worker:
            await until(worker.done, "stopped")


@scenario
async def test_a_large_changelog_batch_is_accepted_and_read_back(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings, 16 << 20)
    await send(settings, "clicks", [(b"k", b"x")])
    rows = [(b"row%d" % i, bytes(4096)) for i in range(2000)]  # 8 MB: eight times Kafka's default limit
    app = make_app(settings)

    async def write(runs: Any) -> None:
        async for run in runs:
            await app.outputs.commit_run(run, [], rows)

    app.listen(["clicks"], write, ExactTable(app, "profiles", Counts()))
    async with running(app):
        await until(lambda: app.lag() and sum(app.lag().values()) == 0, "written")
    assert await read_table(settings, "profiles") == dict(rows)


@scenario
async def test_a_worker_recovers_its_table_before_its_first_run(
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
async def test_recovery_ends_if_the_last_offset_has_no_record(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=2)
    await topics.create(settings)
    await send(settings, "profiles", [(b"k%d" % i, b"1") for i in range(10)])
    # A transaction's marker has an offset and is never delivered; compaction leaves such ends too.
    producer = AIOKafkaProducer(**client_options(settings), transactional_id=topic_prefix)
    await producer.start()
    async with producer.transaction():
        await producer.send(settings.prefix + "profiles", b"1", key=b"marked", partition=1)
    await producer.stop()
    app, counts = counting_app(settings)
    async with running(app):
        assert total(counts) == 11


@scenario
async def test_empty_partitions_recover(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=16)
    await topics.create(settings)
    await send(settings, "profiles", [(b"only", b"1")])
    app, counts = counting_app(settings)
    async with running(app):
        assert total(counts) == 1


@scenario
async def test_ready_is_true_once_the_tables_are_recovered(broker: str, topic_prefix: str) -> None:
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
async def test_recovery_reports_its_progress(broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr(brokers, "PARTITION_BYTES", 10_000)
    async with running(app):
        [after] = app.recovery.progress()
    first, last = seen[0], seen[-1]
    assert (first.table, first.partitions, first.read, first.to_read) == ("profiles", 2, 0, 3000)
    assert first.seconds_left is None and last.seconds_left is not None and last.seconds_left > 0
    reads = [one.read for one in seen]
    assert reads == sorted(reads) and 0 < last.read < 3000
    assert (after.read, after.to_read, after.seconds_left) == (3000, 3000, 0.0)


@scenario
async def test_a_partition_that_stays_is_not_read_again(broker: str, topic_prefix: str) -> None:
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
            assert one.recovery.records_read == 2000, "partitions that stay are not read again"
            mine = two.partitions("clicks")
            assert two.recovery.records_read == total(counts) and set(counts.rows) == mine
        await until(lambda: one.ready and len(one.partitions("clicks")) == 4, "one alone")
        assert one.recovery.records_read == 2000 + total(counts), "partitions that return are read"


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
            await until(lambda: total(twos) == 2000, "the second has everything, half of it as standby copies")
            await send(settings, "clicks", [(b"k%d" % i, b"x") for i in range(2000)])
            await until(lambda: total(ones) == total(twos) == 4000, "the copies follow")
            before = one.recovery.records_read
        await until(lambda: one.ready and len(one.partitions("clicks")) == 4, "one alone")
        assert one.recovery.records_read - before < 20, "only the latest records are read"
        assert total(ones) == 4000 and ones.rows == {p: rows for p, rows in ones.rows.items() if rows}
        await send(settings, "clicks", [(b"k%d" % i, b"x") for i in range(2000)])
        await until(lambda: total(ones) == 6000, "counting continues")
    assert {int(value) for value in (await read_table(settings, "profiles")).values()} == {3}
