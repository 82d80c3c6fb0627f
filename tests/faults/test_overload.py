"""Overload with a real broker: the worker degrades rung by rung, recovers, and makes every deferred page in the end."""

import asyncio
import itertools
import signal
from typing import Any

from agents.worker import Worker
from stream import metrics
from stream.degradation import FULL, PACED, Load
from stream.kafka.global_topics import read_table
from stream.profile.codec import owing_pages
from stream.settings import Settings
from tests.harness.counting import scenario, send, until
from tests.harness.worker_process import (
    assert_versions_rise,
    clicks,
    open_shop,
    pages_of,
    read_all,
    settings_for,
    until_counted,
    worker,
)

SHOPPERS = 40


async def pages_once_answered(settings: Settings, newest: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The pages of each shopper, once the last of each answers their newest event. Fails after a timeout."""
    pages: dict[str, list[dict[str, Any]]] = {}
    try:
        async with asyncio.timeout(60):
            while True:
                pages = pages_of(await read_all(settings, "homepages"))
                if {key: made[-1]["trigger"]["event_id"] for key, made in pages.items()} == newest:
                    return pages
                await asyncio.sleep(0.1)
    except TimeoutError:
        last = {key: made[-1]["trigger"]["event_id"] for key, made in pages.items()}
        wrong = {key: (last.get(key), event) for key, event in newest.items() if last.get(key) != event}
        raise AssertionError(f"the last page of {len(wrong)} shoppers answers another event: {wrong}") from None


def newest_of(events: int) -> dict[str, str]:
    """The id of each shopper's last event in `clicks(events, SHOPPERS)`."""
    return {f"u{k % SHOPPERS}": f"e{k}" for k in range(events)}


@scenario
async def test_7_a_backlog_degrades_pages_until_it_is_done_and_no_deferred_page_is_lost(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix, run_records=20, overload_lag=0.1)
    await open_shop(settings)
    events = 20_000
    await send(settings, "clicks", clicks(events, SHOPPERS))
    deferred_before = metrics.REGISTRY.get_sample_value("shopwindow_deferred_pages_total") or 0.0
    stop = asyncio.Event()
    busy = Worker(settings)
    rungs: list[int] = []
    observe = busy.load_shedder.observe

    def observe_and_note(load: Load, now: float) -> None:
        observe(load, now)
        rungs.append(busy.load_shedder.controller.rung)

    busy.load_shedder.observe = observe_and_note  # type: ignore[method-assign]
    run = asyncio.create_task(busy.run(stop, lambda line: None))
    try:
        await until_counted(settings, events)
        pages = await pages_once_answered(settings, newest_of(events))
        await until(lambda: rungs[-1] == FULL, "full pages again")
    finally:
        stop.set()
        await run
    assert max(rungs) == PACED
    assert all(abs(b - a) <= 1 for a, b in itertools.pairwise(rungs)), "rung by rung"
    assert_versions_rise(pages)
    assert any("page_every:0.4" in page["rules_applied"] for made in pages.values() for page in made)
    deferred = (metrics.REGISTRY.get_sample_value("shopwindow_deferred_pages_total") or 0.0) - deferred_before
    assert deferred > sum(map(len, pages.values())), "fewer pages than usual"
    assert len(busy.profiles.deferred) == 0


@scenario
async def test_7_deferred_pages_survive_a_kill(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, run_records=20, overload_lag=0.25)
    await open_shop(settings)
    events = 8_000
    await send(settings, "clicks", clicks(events, SHOPPERS))

    async def deferred_pages() -> int:
        return len(owing_pages(await read_table(settings, "profiles")))

    with worker(settings) as process:
        await process.ready()
        # Send events until a page is deferred, however fast the worker is: it must have a backlog when it is killed.
        while not await deferred_pages():
            assert process.poll() is None, "the worker stopped by itself"
            await send(settings, "clicks", clicks(2_000, SHOPPERS, first=events))
            events += 2_000
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert await deferred_pages() > 0, "it was killed while pages were deferred"
    with worker(settings):
        await until_counted(settings, events)
        pages = await pages_once_answered(settings, newest_of(events))
    assert await deferred_pages() == 0
    assert_versions_rise(pages, may_repeat=True)
