"""The watchdog ends a worker whose fetches stall, and raises no alarm if there is a reason for the silence."""

import asyncio
import logging
import re
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from deploy.broker.embedded import Broker
from stream.kafka import topics
from stream.kafka.client import fetcher as fetch
from stream.kafka.health.watchdog import FetchStalled, Watchdog
from tests.harness import worker_process as shopwindow
from tests.harness.counting import counting_app, running, scenario, send, settings_for, total, until
from tests.harness.worker_process import open_shop

LIMIT_S = 2.0  # a fetch of an idle topic takes up to a second on a busy machine
WATCHED_S = 1.25 * LIMIT_S


def keys(n: int) -> list[tuple[bytes, bytes]]:
    return [(b"k%d" % (i % 50), b"x") for i in range(n)]


async def longest_silence(watch: Watchdog, seconds: float) -> float:
    """The longest silence (s) that the watchdog sees within the next `seconds`."""
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        longest = max(longest, watch.longest)
        await asyncio.sleep(0.02)
    return longest


@scenario
async def test_idle_topics_rebalances_and_idle_workers_raise_no_alarm(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1, fetch_timeout=LIMIT_S)
    await topics.create(settings)
    apps = [counting_app(settings)[0] for _ in range(2)]
    watches = [Watchdog(app) for app in apps]
    tasks = [asyncio.create_task(watch.run()) for watch in watches]
    async with running(apps[0]):
        assert await longest_silence(watches[0], WATCHED_S) < LIMIT_S, (
            "fetches of an idle topic are answered, without records"
        )
        async with running(apps[1]):
            assert sorted(len(app.partitions("clicks")) for app in apps) == [0, 1]
            await longest_silence(watches[0], WATCHED_S)
            assert [watch.problem or watch.outage.note for watch in watches] == [None, None]
            assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()


@scenario
async def test_partitions_with_a_full_backlog_raise_no_alarm(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1, run_records=5, fetch_timeout=LIMIT_S)
    await topics.create(settings)
    await send(settings, "clicks", keys(100))
    app, counts = counting_app(settings)
    slow = asyncio.Event()
    publish = app.outputs.commit_run

    async def held(*args: Any) -> None:
        await slow.wait()
        await publish(*args)

    app.outputs.commit_run = held  # type: ignore[method-assign, assignment]
    watch = Watchdog(app)
    async with running(app):
        task = asyncio.create_task(watch.run())
        await until(lambda: app.batch_consumer.in_flight and not app.batch_consumer.last_answers(), "full")
        await longest_silence(watch, WATCHED_S)
        assert watch.problem is None and watch.outage.note is None and not task.done()
        slow.set()
        await until(lambda: total(counts) == 100, "all counted")
        task.cancel()


@scenario
async def test_the_watchdog_reports_an_absent_broker_and_waits_for_it() -> None:
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "away-", fetch_timeout=LIMIT_S)
        await topics.create(settings)
        app, counts = counting_app(settings)
        watch = Watchdog(app)
        async with running(app):
            task = asyncio.create_task(watch.run())
            kafka.kill()
            await until(lambda: watch.outage.note, "reported", 30)
            assert watch.outage.note == f"Kafka at {kafka.bootstrap} does not answer; this worker keeps trying"
            await longest_silence(watch, WATCHED_S)
            assert watch.problem is None and not task.done()
            await asyncio.to_thread(kafka.restart)
            await send(settings, "clicks", keys(100))
            await until(lambda: total(counts) == 100, "counted", 60)
            await until(lambda: watch.outage.note is None, "no note any more", 30)
            assert watch.problem is None
            task.cancel()


@scenario
async def test_fausts_own_watch_over_fetches_logs_nothing(
    broker: str, topic_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(broker, topic_prefix, fetch_timeout=LIMIT_S)
    await topics.create(settings)
    app, _ = counting_app(settings)
    async with running(app):
        consumer = app.batch_consumer
        consumer._thread.time_started -= 3600  # Faust complains five minutes after the start
        await consumer.verify_all_partitions_active()
        for tp in consumer.assignment():
            consumer.verify_recovery_event_path(time.monotonic(), tp)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    # Clients of other tests may log too, such as a connection that is closed by the garbage collector.
    assert not [record for record in warnings if record.name.split(".")[0] not in ("aiokafka", "asyncio")]


@scenario
async def test_a_worker_that_was_suspended_continues(broker: str, topic_prefix: str) -> None:
    settings = shopwindow.settings_for(broker, topic_prefix, fetch_timeout=LIMIT_S)
    await open_shop(settings)
    with shopwindow.worker(settings) as process:
        await process.ready()
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5 * LIMIT_S)  # as when a laptop sleeps
        process.send_signal(signal.SIGCONT)
        await send(settings, "clicks", shopwindow.clicks(50, 5))
        await shopwindow.until_counted(settings, 50)
        assert process.poll() is None


async def never(*_: Any) -> bool:
    await asyncio.Event().wait()
    return True


@scenario
async def test_a_stalled_consumer_ends_the_worker_with_a_sentence(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix, fetch_timeout=LIMIT_S)
    await topics.create(settings)
    app, _ = counting_app(settings)
    watch = Watchdog(app)
    task = asyncio.create_task(watch.run())
    with pytest.raises(
        FetchStalled, match=r"clicks' \d has been answered for [1-9] s, though Kafka at .* answers; .*supervisor"
    ):
        async with running(app) as worker:
            monkeypatch.setattr(fetch.Fetcher, "_fetch", never)
            await asyncio.wait([worker])
    assert watch.problem and watch.longest > LIMIT_S
    task.cancel()


WEDGED = """
import asyncio, os, sys, time
from deploy.cli.main import main
from stream.kafka.health import watchdog as watch; from stream.kafka.client import fetcher as fetch

watch.SHUTDOWN_TIMEOUT_S = 3.0
how, flag = sys.argv[1:]
original = fetch.Fetcher._fetch

async def stuck(self, *args, **named):
    while os.path.exists(flag):
        time.sleep(3600) if how == "blocked" else await asyncio.sleep(3600)
    return await original(self, *args, **named)

fetch.Fetcher._fetch = stuck
sys.exit(main(["worker"]))
"""


@scenario
async def test_a_worker_with_a_blocked_loop_ends_with_1(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    settings = shopwindow.settings_for(broker, topic_prefix, fetch_timeout=LIMIT_S)
    await open_shop(settings)
    flag = tmp_path / "stuck"
    with shopwindow.worker(settings, "-c", WEDGED, "blocked", str(flag)) as process:
        await process.ready()
        flag.touch()
        assert await process.wait_for_exit() == 1
        assert re.search(r"its event loop has been blocked for [1-9] s; this process ends", process.output())


@scenario
async def test_a_worker_whose_fetch_is_stuck_is_unhealthy_and_ends_with_1(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shopwindow.settings_for(broker, topic_prefix, fetch_timeout=LIMIT_S)
    await open_shop(settings)
    flag = tmp_path / "stuck"
    with shopwindow.worker(settings, "-c", WEDGED, "waiting", str(flag)) as process:
        await process.ready()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{await process.port()}") as session:
            async with session.get("/healthz") as answer:
                assert answer.status == 200
            flag.touch()
            problem, silence = "", 0.0
            while not problem:
                async with session.get("/metrics") as answer:
                    shown = [line for line in (await answer.text()).splitlines() if "_fetch_silence_seconds " in line]
                    silence = max(silence, float(shown[-1].split()[1]))
                async with session.get("/healthz") as answer:
                    problem = await answer.text() if answer.status == 503 else ""
        assert "are stuck and it ends" in problem and silence > 0.5
        assert await process.wait_for_exit() == 1
        lines = [line for line in process.output().splitlines() if "worker stopped" in line]
        assert lines == [f"shopwindow: the worker stopped: {problem.strip()}"]
