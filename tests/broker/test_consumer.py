"""Runs: what an agent gets, when a run is acknowledged, and what a rebalance or a crash changes."""

import asyncio
import gc
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from stream.events.decode import Reject
from stream.kafka import consumer as transport
from stream.kafka import topics
from stream.kafka.app import make_app, serve
from stream.kafka.client.connection import NoBroker, client_options
from stream.kafka.client.fetcher import FetchedRecords
from stream.kafka.client.producer import BatchTooLarge
from stream.kafka.commit import Output
from stream.kafka.dead_letters import dead_letters
from stream.kafka.global_topics import read_table, read_topic
from stream.kafka.run import PartitionLost, Run
from stream.kafka.tables.table import ExactTable
from stream.kafka.topics import WrongTopics
from tests.harness.counting import (
    Counts,
    counting_app,
    run_worker,
    running,
    scenario,
    send,
    settings_for,
    total,
    until,
)

ROOT = Path(__file__).parents[2]


def keys(n: int, distinct: int = 50) -> list[tuple[bytes, bytes]]:
    return [(b"k%d" % (i % distinct), b"%d" % i) for i in range(n)]


async def committed(settings: Any, topic: str) -> int:
    """Sum of the group's committed offsets over the partitions of `topic`."""
    reader = AIOKafkaConsumer(**client_options(settings), group_id=settings.app_id, enable_auto_commit=False)
    async with reader:
        partitions = [TopicPartition(settings.prefix + topic, p) for p in range(settings.partitions)]
        return sum([await reader.committed(partition) or 0 for partition in partitions])


@scenario
async def test_an_agent_gets_each_record_once_in_order_and_in_bounded_runs(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, run_records=70)
    await topics.create(settings)
    await send(settings, "clicks", keys(1000))
    seen: list[Run] = []
    app = make_app(settings)

    async def collect(runs: Any) -> None:
        async for run in runs:
            seen.append(run)
            run.acknowledge()

    app.listen(["clicks"], collect)
    async with running(app):
        await until(lambda: sum(len(run.records) for run in seen) >= 1000, "1000 records")
    assert max(len(run.records) for run in seen) <= 70
    assert {run.topic for run in seen} == {"clicks"}, "the logical name, without the prefix"
    for partition in range(settings.partitions):
        offsets = [record.offset for run in seen if run.partition == partition for record in run.records]
        assert offsets == list(range(len(offsets)))
    assert await committed(settings, "clicks") == 1000


@scenario
async def test_hostile_records_arrive_byte_for_byte(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    hostile = [(b"\xff\xfe", b"\x00{"), (None, b"no key"), (b"no value", None), (b"", b"")]
    await send(settings, "clicks", hostile)
    seen: list[tuple[bytes | None, bytes | None]] = []
    app = make_app(settings)

    async def collect(runs: Any) -> None:
        async for run in runs:
            seen.extend((record.key, record.value) for record in run.records)
            run.acknowledge()

    app.listen(["clicks"], collect)
    async with running(app):
        await until(lambda: len(seen) >= len(hostile), "all")
    assert sorted(seen, key=repr) == sorted(hostile, key=repr)


@scenario
async def test_an_agent_that_raises_stops_the_worker_and_loses_nothing(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", keys(300))
    app = make_app(settings)

    async def fail(runs: Any) -> None:
        async for _ in runs:
            raise ValueError("a bug")

    app.listen(["clicks"], fail)
    with pytest.raises(ValueError, match="a bug"):
        async with running(app) as worker:
            await until(worker.done, "stopped")
    assert await committed(settings, "clicks") == 0
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: total(counts) == 300, "300 counted")


@scenario
async def test_an_agent_that_forgets_to_commit_raises_an_error(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", keys(10))
    app = make_app(settings)

    async def forget(runs: Any) -> None:
        async for _ in runs:
            pass

    app.listen(["clicks"], forget)
    with pytest.raises(RuntimeError, match="'clicks' took the next run and has not committed the last"):
        async with running(app) as worker:
            await until(worker.done, "stopped")


@scenario
async def test_a_failed_send_stops_the_worker_before_the_table_counts_the_run(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", [(b"k", b"x")])
    app = make_app(settings)
    table = ExactTable(app, "profiles", Counts())

    async def too_large(runs: Any) -> None:
        async for run in runs:
            page = (b"k", bytes(3 << 20))
            await app.outputs.commit_run(run, [Output("homepages", run.partition, [page])], [(b"k", b"1")])

    app.listen(["clicks"], too_large, table)
    with pytest.raises(BatchTooLarge, match=r"Kafka refuses a batch of \d+ bytes"):
        async with running(app) as worker:
            await until(worker.done, "stopped")
    assert await read_table(settings, "profiles") == {}
    assert await committed(settings, "clicks") == 0


@scenario
async def test_a_record_of_full_size_is_cut_to_fit_into_the_dead_letters(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    largest, whole = 1_048_480, 1_048_000  # largest: of a producer with default settings
    await send(settings, "clicks", [(b"k", bytes(largest)), (b"k", bytes(whole))])
    app = make_app(settings)

    async def refuse(runs: Any) -> None:
        async for run in runs:
            rejects = [Reject(index, "not_json", "", "not JSON: \udcff") for index in range(len(run.records))]
            await app.outputs.commit_run(run, dead_letters(run, rejects))

    app.listen(["clicks"], refuse)
    async with running(app):
        await until(lambda: sum(app.lag().values()) == 0 and app.lag(), "done")
    cut, kept = [record async for record in read_topic(settings, "dead-letters")]
    assert dict(cut.headers)["cut_from"] == b"%d" % largest and largest - 2000 < len(cut.value) < largest
    assert len(kept.value) == whole and "cut_from" not in dict(kept.headers)
    headers = dict(cut.headers)
    assert (headers["topic"], headers["offset"], headers["error"]) == (b"clicks", b"0", b"not_json")


@scenario
async def test_records_below_the_watermark_never_reach_the_agent_again(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", keys(500))
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: total(counts) == 500, "500 counted")
    # Another group has no commits: everything is delivered again, 100 new records behind it.
    await send(settings, "clicks", keys(100))
    settings.app_id += "-again"
    app, counts = counting_app(settings)
    async with running(app):
        await until(lambda: total(counts) >= 600, "600 counted")
        await until(lambda: sum(app.lag().values()) == 0, "all done")
    (table,) = app.tables.values()
    assert total(counts) == 600 and table.skipped == 500
    outputs = [record.value async for record in read_topic(settings, "impressions")]
    assert len(outputs) == len(set(outputs)) == 600


@scenario
async def test_partitions_run_concurrently_but_topics_of_one_take_turns(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, run_records=20)
    await topics.create(settings)
    await send(settings, "clicks", keys(400))
    await send(settings, "purchases", keys(400))
    at_work: set[int] = set()
    most = done = 0
    app = make_app(settings)

    async def collect(runs: Any) -> None:
        nonlocal most, done
        async for run in runs:
            assert run.partition not in at_work, "two concurrent runs of one partition"
            at_work.add(run.partition)
            most = max(most, len(at_work))
            for _ in range(20):
                await asyncio.sleep(0)
            at_work.remove(run.partition)
            done += len(run.records)
            run.acknowledge()

    app.listen(["clicks", "purchases"], collect)
    async with running(app):
        await until(lambda: done == 800, "800 records")
    assert most > 1


@scenario
async def test_an_agent_that_hangs_does_not_delay_another(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, run_records=5)
    await topics.create(settings)
    await send(settings, "copy-requests", [(b"k", bytes(10_000))] * 600)
    app, counts = counting_app(settings)
    free = asyncio.Event()

    async def hang(runs: Any) -> None:
        async for run in runs:
            await free.wait()
            run.acknowledge()

    app.listen(["copy-requests"], hang)
    async with running(app):
        await send(settings, "clicks", keys(2000))
        await until(lambda: total(counts) == 2000, "2000 counted beside a hanging agent")
        held = sum(len(records) for records in app.batch_consumer._backlog.values())
        assert 0 < held < 300, "only a fetch or two of a hanging agent's topic are held"
        free.set()


@scenario
async def test_records_that_arrive_during_a_run_form_the_next(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    sizes: list[int] = []
    free = asyncio.Event()
    app = make_app(settings)

    async def collect(runs: Any) -> None:
        async for run in runs:
            sizes.append(len(run.records))
            await free.wait()
            run.acknowledge()

    app.listen(["clicks"], collect)
    async with running(app):
        await send(settings, "clicks", [(b"k", b"first")])
        await until(lambda: sizes, "the first run")
        for _ in range(5):
            await send(settings, "clicks", [(b"k", b"x")] * 10)
        await until(lambda: sum(len(records) for records in app.batch_consumer._backlog.values()) == 50, "50 fetched")
        free.set()
        await until(lambda: sum(sizes) == 51, "all")
    assert sizes == [1, 50]


@scenario
async def test_records_that_waited_at_a_rebalance_are_delivered_once(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    seen: list[tuple[str, int]] = []
    free = asyncio.Event()
    app = make_app(settings)

    async def collect(runs: Any) -> None:
        async for run in runs:
            seen.extend((run.topic, record.offset) for record in run.records)
            await free.wait()
            run.acknowledge()

    app.listen(["clicks", "purchases"], collect)
    async with running(app):
        await send(settings, "clicks", [(b"k", b"x")] * 10)
        await until(lambda: seen, "a run in flight")
        await send(settings, "purchases", [(b"k", b"x")] * 10)
        await until(lambda: len(app.batch_consumer._delivered) == 2, "another run waiting for the same partition")
        epoch = app.batch_consumer.epoch
        thread = app.batch_consumer._thread
        thread.thread_loop.call_soon_threadsafe(thread._ensure_consumer()._coordinator.request_rejoin)
        await until(lambda: app.batch_consumer.epoch > epoch, "a rebalance")
        free.set()
        await until(lambda: app.ready and len(seen) >= 20, "all")
        await until(lambda: app.lag() and sum(app.lag().values()) == 0, "done")
    assert sorted(seen) == [(topic, offset) for topic in ("clicks", "purchases") for offset in range(10)]


@pytest.mark.parametrize("behind", [False, True])
@scenario
async def test_repeated_rebalances_lose_nothing_and_repeat_nothing(
    broker: str, topic_prefix: str, behind: bool
) -> None:
    settings = settings_for(broker, topic_prefix, run_records=20)
    await topics.create(settings)
    app, counts = counting_app(settings, pause=0.002, behind=behind)
    async with running(app):
        thread = app.batch_consumer._thread
        for wave in range(1, 13):
            epoch = app.batch_consumer.epoch
            sending = asyncio.create_task(send(settings, "clicks", keys(250)))
            while total(counts) <= (wave - 1) * 230:
                await asyncio.sleep(0.001)
            thread.thread_loop.call_soon_threadsafe(thread._ensure_consumer()._coordinator.request_rejoin)
            while app.batch_consumer.epoch == epoch:
                await asyncio.sleep(0.001)
            await sending
        await until(lambda: total(counts) >= 3000, "3000 counted")
        await until(lambda: app.ready and sum(app.lag().values()) == 0, "done")
    (table,) = app.tables.values()
    assert total(counts) == 3000 and table.skipped == 0
    outputs = [record.value async for record in read_topic(settings, "impressions")]
    assert len(outputs) == len(set(outputs)) == 3000


@scenario
async def test_the_seek_precedes_the_records_of_uncommitted_partitions(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "profiles", [(b"k", b"0")])
    await send(settings, "clicks", keys(200))
    active_at_seek = []
    seek = transport.BatchConsumer.perform_seek

    async def noted_seek(batch_consumer: transport.BatchConsumer) -> None:
        active_at_seek.append({tp for tp in batch_consumer._get_active_partitions() if tp.topic.endswith("clicks")})
        await seek(batch_consumer)

    monkeypatch.setattr(transport.BatchConsumer, "perform_seek", noted_seek)
    app = make_app(settings)
    table = ExactTable(app, "profiles", Counts())
    free = asyncio.Event()

    async def hang(runs: Any) -> None:
        async for run in runs:
            await free.wait()
            await app.outputs.commit_run(run)

    app.listen(["clicks"], hang, table)
    async with running(app):
        assert active_at_seek == [set()], "records of the old position could be delivered"
        sources = [tp for tp in app.batch_consumer.assignment() if tp.topic.endswith("clicks")]
        await until(
            lambda: all((app.batch_consumer.next_fetch_offset(tp) or 0) > 0 for tp in sources), "fetched, not committed"
        )
        app.batch_consumer.epoch += 1  # as a rebalance begins, with a fetch under way
        app.batch_consumer.stop_flow()
        await app.batch_consumer.perform_seek()
        await until(
            lambda: [app.batch_consumer.next_fetch_offset(tp) for tp in sources] == [0] * settings.partitions,
            "back at 0",
        )
        free.set()


@pytest.mark.parametrize("behind", [False, True])
@scenario
async def test_a_rebalance_repeats_no_work_and_moves_the_table(broker: str, topic_prefix: str, behind: bool) -> None:
    settings = settings_for(broker, topic_prefix, run_records=10)
    await topics.create(settings)
    await send(settings, "profiles", [(b"seed%d" % i, b"0") for i in range(40)])
    await send(settings, "clicks", keys(1500))
    first, counts = counting_app(settings, pause=0.003, behind=behind)
    second, more = counting_app(settings, pause=0.003, behind=behind)
    async with running(first):
        await until(lambda: total(counts) > 300, "half-way")
        async with running(second):
            await until(lambda: second.partitions("clicks") and first.partitions("clicks") and first.ready, "shared")
            await until(lambda: total(counts) + total(more) >= 1500, "1500 counted")
            firsts, seconds = first.partitions("clicks"), second.partitions("clicks")
            assert firsts | seconds == set(range(settings.partitions)) and not firsts & seconds
            assert set(counts.rows) <= firsts and set(more.rows) <= seconds, "a revoked partition takes its rows along"
            assert total(counts) + total(more) == 1500
        # The second has left: the first gets everything back, from the changelog.
        await until(lambda: first.partitions("clicks") == set(range(settings.partitions)) and first.ready, "back")
        assert total(counts) == 1500 and sum(len(rows) for rows in counts.rows.values()) == 90
    assert [table.skipped for app in (first, second) for table in app.tables.values()] == [0, 0]
    outputs = [record.value async for record in read_topic(settings, "impressions")]
    assert len(outputs) == len(set(outputs)) == 1500


@scenario
async def test_a_run_of_a_lost_partition_writes_no_changelog_and_is_repeated(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    app = make_app(settings)
    counts = Counts()
    table = ExactTable(app, "profiles", counts)
    expelled = False

    async def count(runs: Any) -> None:
        nonlocal expelled
        async for run in runs:
            rows = counts.rows[run.partition]
            for record in run.records:
                rows[record.key] = rows.get(record.key, 0) + 1
            if not expelled and run.first > 0:  # as the client reacts to the broker's answer "unknown member"
                expelled = True
                coordinator = app.batch_consumer._thread._ensure_consumer()._coordinator
                app.batch_consumer._thread.thread_loop.call_soon_threadsafe(coordinator.reset_generation)
                while coordinator.generation == run.generation:
                    await asyncio.sleep(0.001)
                with pytest.raises(PartitionLost):
                    await run.ensure_owned()
            await app.outputs.commit_run(run, [], [(r.key, b"%d" % rows[r.key]) for r in run.records])

    app.listen(["clicks"], count, table)
    async with running(app):
        await send(settings, "clicks", [(b"k", b"x"), (b"k", b"x")])
        while await committed(settings, "clicks") < 2:
            await asyncio.sleep(0.01)
        await send(settings, "clicks", [(b"k", b"x")] * 5)
        await until(lambda: expelled, "expelled")
        await until(lambda: app.ready and app.lag() and sum(app.lag().values()) == 0, "repeated")
        assert total(counts) == 7, "the rows in memory were read again, without the lost run"
    assert await read_table(settings, "profiles") == {b"k": b"7"}


@scenario
async def test_the_changelog_waits_for_a_silent_coordinator(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    app, _counts = counting_app(settings)
    async with running(app):
        thread = app.batch_consumer._thread
        thread.heartbeat_at -= 1000  # the last answer is older than a session; the next comes within a heartbeat
        before = thread.heartbeat_at
        await send(settings, "clicks", [(b"k", b"x")])
        await until(lambda: sum(app.lag().values()) == 0 and app.lag(), "done")
        assert thread.heartbeat_at > before + 900


@scenario
async def test_a_run_that_outlasts_a_stop_is_an_error_and_is_repeated(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "FINISH_TIMEOUT_S", 0.2)
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", keys(20))
    app = make_app(settings)
    table = ExactTable(app, "profiles", Counts())
    started = asyncio.Event()

    async def hang(runs: Any) -> None:
        async for _ in runs:
            started.set()
            await asyncio.Event().wait()

    app.listen(["clicks"], hang, table)
    with pytest.raises(RuntimeError, match="has not ended in"):
        async with running(app):
            await started.wait()
    assert await committed(settings, "clicks") == 0


@scenario
async def test_a_recreated_source_topic_is_refused_by_its_table(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send(settings, "profiles", [(b"\x00wm:clicks:0", b"500"), (b"k", b"3")])
    app, _ = counting_app(settings)
    with pytest.raises(RuntimeError, match=r"ends at 0, but 'profiles' has counted it up to 500"):
        async with running(app) as worker:
            await until(worker.done, "stopped")


@scenario
async def test_a_worker_without_a_broker_raises_no_broker(topic_prefix: str) -> None:
    settings = settings_for("127.0.0.1:1", topic_prefix)
    app, _ = counting_app(settings)
    with pytest.raises(NoBroker, match=r"no Kafka answers at 127.0.0.1:1"):
        await serve(app, asyncio.Event())


@scenario
async def test_a_worker_refuses_a_cluster_whose_topics_are_missing(broker: str, topic_prefix: str) -> None:
    app, _ = counting_app(settings_for(broker, topic_prefix))
    with pytest.raises(WrongTopics, match="are missing; `shopwindow topics create`"):
        await serve(app, asyncio.Event())


def test_a_failed_worker_process_exits_with_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    app, _ = counting_app(settings_for("127.0.0.1:1", "none-"))
    assert run_worker(app) == 1
    assert "shopwindow: the worker stopped: no Kafka answers at 127.0.0.1:1" in capfd.readouterr().err


@scenario
async def test_sigterm_lets_a_worker_process_finish_and_commit(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", keys(3000))
    command = [sys.executable, "-m", "tests.harness.counting", broker, topic_prefix, "0.01", "behind"]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        while not await read_table(settings, "profiles"):
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, "stopped", 5)
        assert process.returncode == 0
    finally:
        process.kill()
    counted = sum(int(count) for count in (await read_table(settings, "profiles")).values())
    assert 0 < counted == await committed(settings, "clicks")


@scenario
async def test_a_paced_topic_is_fetched_in_beats_and_others_at_once(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    app, runs_of = make_app(settings), {"item-activity": list[Run](), "clicks": list[Run]()}

    async def collect(runs: Any) -> None:
        async for run in runs:
            runs_of[run.topic].append(run)
            run.acknowledge()

    app.listen(["item-activity"], collect, limit=50, pace=0.5)
    app.listen(["clicks"], collect)
    start = asyncio.get_running_loop().time()
    async with running(app):
        for n in range(60):
            await send(settings, "item-activity", [(b"%d" % k, b"%d" % n) for k in range(4)])
            await send(settings, "clicks", [(b"%d" % n, b"x")])
        await until(lambda: sum(len(run.records) for run in runs_of["item-activity"]) == 240, "all activity")
        await until(lambda: sum(len(run.records) for run in runs_of["clicks"]) == 60, "all clicks")
        beats = 2 + (asyncio.get_running_loop().time() - start) / 0.5
    assert len(runs_of["item-activity"]) <= beats * settings.partitions * 2, (
        "many records per run, at most two runs per beat"
    )
    assert len(runs_of["clicks"]) > 30, "a topic without a pace is read as records arrive"
    for partition in range(settings.partitions):
        offsets = [r.offset for run in runs_of["item-activity"] if run.partition == partition for r in run.records]
        assert offsets == list(range(len(offsets)))


@scenario
async def test_a_run_is_bounded_in_bytes_if_its_agent_has_a_limit(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", [(b"k", bytes(1000)) for _ in range(95)] + [(b"k", bytes(9000))] * 2)
    seen: list[Run] = []
    app = make_app(settings)

    async def collect(runs: Any) -> None:
        async for run in runs:
            seen.append(run)
            run.acknowledge()

    app.listen(["clicks"], collect, limit_bytes=5000)
    async with running(app):
        await until(lambda: sum(len(run.records) for run in seen) == 97, "all")
    assert max(len(run.records) for run in seen) == 5
    assert [len(run.records) for run in seen][-2:] == [1, 1], "a single record may exceed the limit"


@scenario
async def test_only_wanted_partitions_are_fetched_and_never_by_the_group_client(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, run_records=5)
    await topics.create(settings)
    app, counts = counting_app(settings)
    slow, publish = asyncio.Event(), app.outputs.commit_run

    async def held(*args: Any) -> None:
        await slow.wait()
        await publish(*args)

    app.outputs.commit_run = held  # type: ignore[method-assign, assignment]
    async with running(app):
        assert {tp.topic for tp in app.batch_consumer.wanted()} == {settings.prefix + "clicks"}, "and not the changelog"
        await send(settings, "clicks", keys(800))
        await until(lambda: not app.batch_consumer.wanted(), "full backlogs in all partitions")
        slow.set()
        await until(lambda: total(counts) == 800, "800 counted")
        await until(lambda: len(app.batch_consumer.wanted()) == settings.partitions, "all wanted again")
        assert not app.batch_consumer._thread._ensure_consumer()._fetcher._records


@scenario
async def test_a_truncated_log_is_read_from_its_new_beginning(
    broker: str, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await topics.create(settings)
    await send(settings, "clicks", [(b"k", b"%d" % n) for n in range(100)])
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    app, counts = counting_app(settings)
    perform_seek = app.batch_consumer.perform_seek

    async def seek() -> None:
        await perform_seek()
        await admin.delete_records({TopicPartition(settings.prefix + "clicks", 0): RecordsToDelete(before_offset=60)})

    app.batch_consumer.perform_seek = seek  # type: ignore[method-assign]
    try:
        async with running(app):
            await until(lambda: total(counts) == 40, "the rest counted")
    finally:
        await admin.close()
    assert "has nothing at offset 0 any more and is read from 60 on" in caplog.text


@scenario
async def test_fetched_records_are_freed_without_the_garbage_collector(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    app, counts = counting_app(settings)

    def held() -> int:
        return sum(type(one) is FetchedRecords for one in gc.get_objects())

    async with running(app):
        gc.collect()
        gc.disable()
        try:
            for turn in range(1, 21):
                await send(settings, "clicks", keys(50))
                await until(lambda turn=turn: total(counts) == 50 * turn, "counted")  # type: ignore[misc]
            assert held() < 10, f"{held()} answers are held after 20 turns of {settings.partitions} partitions"
        finally:
            gc.enable()
