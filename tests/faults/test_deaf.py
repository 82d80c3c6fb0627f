"""A consumer that silently stops is noticed and ends; whoever has a reason to be silent is left alone."""

import asyncio
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
from stream.kafka.watchdog import FetchStalled, Watchdog
from tests.harness import worker_process as shopwindow
from tests.harness.counting import counting_app, running, scenario, send, settings_for, total, until
from tests.harness.worker_process import open_shop

LIMIT = 1.0


def keys(n: int) -> list[tuple[bytes, bytes]]:
    return [(b"k%d" % (i % 50), b"x") for i in range(n)]


async def watched(watch: Watchdog, seconds: float) -> float:
    """The longest silence within so long."""
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        longest = max(longest, watch.longest)
        await asyncio.sleep(0.02)
    return longest


@scenario
async def test_an_idle_topic_a_rebalance_and_a_worker_without_partitions_raise_no_alarm(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1, fetch_timeout=LIMIT)
    await topics.create(settings)
    apps = [counting_app(settings)[0] for _ in range(2)]
    watches = [Watchdog(app) for app in apps]
    tasks = [asyncio.create_task(watch.run()) for watch in watches]
    async with running(apps[0]):
        assert await watched(watches[0], 2.5) < LIMIT, "an idle topic's fetches are answered, with nothing"
        async with running(apps[1]):
            assert sorted(len(app.partitions("clicks")) for app in apps) == [0, 1]
            await watched(watches[0], 2.5)
            assert [watch.problem or watch.note for watch in watches] == [None, None]
            assert not any(task.done() for task in tasks)
    for task in tasks:
        task.cancel()


@scenario
async def test_partitions_that_have_enough_waiting_raise_no_alarm(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1, run_records=5, fetch_timeout=LIMIT)
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
        await until(lambda: app.feed.in_flight and not app.feed.traces(), "full")
        await watched(watch, 2.5)
        assert watch.problem is None and watch.note is None and not task.done()
        slow.set()
        await until(lambda: total(counts) == 100, "all counted")
        task.cancel()


@scenario
async def test_a_broker_that_is_away_is_told_of_and_waited_for() -> None:
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "away-", fetch_timeout=2 * LIMIT)
        await topics.create(settings)
        app, counts = counting_app(settings)
        watch = Watchdog(app)
        async with running(app):
            task = asyncio.create_task(watch.run())
            kafka.kill()
            await until(lambda: watch.note, "told of", 30)
            assert watch.note == f"Kafka at {kafka.bootstrap} does not answer; this worker keeps trying"
            await watched(watch, 2.5)
            assert watch.problem is None and not task.done()
            await asyncio.to_thread(kafka.restart)
            await send(settings, "clicks", keys(100))
            await until(lambda: total(counts) == 100, "counted", 60)
            await until(lambda: watch.note is None, "content again", 30)
            assert watch.problem is None
            task.cancel()


@scenario
async def test_a_worker_that_was_itself_asleep_goes_on(broker: str, topic_prefix: str) -> None:
    settings = shopwindow.settings_for(broker, topic_prefix, fetch_timeout=LIMIT)
    await open_shop(settings)
    with shopwindow.worker(settings) as process:
        await process.ready()
        process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(3 * LIMIT)  # as a laptop does
        process.send_signal(signal.SIGCONT)
        await send(settings, "clicks", shopwindow.clicks(50, 5))
        await shopwindow.until_counted(settings, 50)
        assert process.poll() is None


async def never(*_: Any) -> bool:
    await asyncio.Event().wait()
    return True


@scenario
async def test_a_feed_that_has_gone_deaf_ends_the_worker_with_a_sentence(
    broker: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(broker, topic_prefix, fetch_timeout=LIMIT)
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
    assert watch.problem and watch.longest > LIMIT
    task.cancel()


WEDGED = """
import asyncio, os, sys, time
from deploy.cli.main import main
from stream.kafka import fetch, watch

watch.ORDERLY = 3.0
how, sign = sys.argv[1:]
original = fetch.Feed._fetch

async def stuck(self, *args, **named):
    while os.path.exists(sign):
        time.sleep(3600) if how == "blocked" else await asyncio.sleep(3600)
    return await original(self, *args, **named)

fetch.Feed._fetch = stuck
sys.exit(main(["worker"]))
"""


@scenario
async def test_a_worker_whose_loop_is_held_up_ends_with_1(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    settings = shopwindow.settings_for(broker, topic_prefix, fetch_timeout=1.0)
    await open_shop(settings)
    sign = tmp_path / "stuck"
    with shopwindow.worker(settings, "-c", WEDGED, "blocked", str(sign)) as process:
        await process.ready()
        sign.touch()
        assert await process.ends() == 1
        assert re.search(r"its event loop has been held up for [1-9] s, so that it has gone deaf", process.said())


@scenario
async def test_a_worker_whose_fetch_is_stuck_is_unhealthy_and_ends_with_1(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = shopwindow.settings_for(broker, topic_prefix, fetch_timeout=1.0)
    await open_shop(settings)
    sign = tmp_path / "stuck"
    with shopwindow.worker(settings, "-c", WEDGED, "waiting", str(sign)) as process:
        await process.ready()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{await process.port()}") as session:
            async with session.get("/healthz") as answer:
                assert answer.status == 200
            sign.touch()
            told, silence = "", 0.0
            while not told:
                async with session.get("/metrics") as answer:
                    shown = [line for line in (await answer.text()).splitlines() if "_fetch_silence_seconds " in line]
                    silence = max(silence, float(shown[-1].split()[1]))
                async with session.get("/healthz") as answer:
                    told = await answer.text() if answer.status == 503 else ""
        assert "has gone deaf and ends" in told and silence > 0.5
        assert await process.ends() == 1
        lines = [line for line in process.said().splitlines() if "worker stopped" in line]
        assert lines == [f"shopwindow: the worker stopped: {told.strip()}"]
