"""Overload over a real broker: the worker climbs the ladder, comes back, and owes nobody a page in the end."""

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
from tests.harness.worker_process import clicks, open_shop, pages_of, read_all, settings_for, until_counted, worker

SHOPPERS = 40


async def pages_that_answer(settings: Settings, newest: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The pages of each shopper, once the last of each answers her newest event. Fails where one does not in time."""
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
    """The id of the last of `clicks(events, SHOPPERS)` of each shopper."""
    return {f"u{k % SHOPPERS}": f"e{k}" for k in range(events)}


@scenario
async def test_7_a_backlog_makes_the_worker_climb_and_come_back_and_every_page_that_is_owed_goes_out(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix, run_records=20, overload_lag=0.1)
    await open_shop(settings)
    events = 20_000
    await send(settings, "clicks", clicks(events, SHOPPERS))
    deferred = metrics.REGISTRY.get_sample_value("shopwindow_deferred_pages_total") or 0.0
    stop = asyncio.Event()
    busy = Worker(settings)
    rungs: list[int] = []
    look = busy.overload.look

    def noted(load: Load, now: float) -> None:
        look(load, now)
        rungs.append(busy.overload.ladder.rung)

    busy.overload.look = noted  # type: ignore[method-assign]
    run = asyncio.create_task(busy.run(stop, lambda line: None))
    try:
        await until_counted(settings, events)
        pages = await pages_that_answer(settings, newest_of(events))
        await until(lambda: rungs[-1] == FULL, "all is well again")
    finally:
        stop.set()
        await run
    assert max(rungs) == PACED
    assert all(abs(b - a) <= 1 for a, b in itertools.pairwise(rungs)), "rung by rung"
    for key, made in pages.items():
        assert [page["version"] for page in made] == list(range(1, len(made) + 1)), key
    assert any("page_every:0.4" in page["rules_applied"] for made in pages.values() for page in made)
    defer = (metrics.REGISTRY.get_sample_value("shopwindow_deferred_pages_total") or 0.0) - deferred
    assert defer > sum(map(len, pages.values())), "fewer pages than usual"
    assert len(busy.profiles.deferred) == 0


@scenario
async def test_7_pages_that_are_owed_survive_a_kill_9(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, run_records=20, overload_lag=0.25)
    await open_shop(settings)
    events = 8_000
    await send(settings, "clicks", clicks(events, SHOPPERS))

    async def owed() -> int:
        return len(owing_pages(await read_table(settings, "profiles")))

    with worker(settings) as process:
        await process.ready()
        # More events come till it owes pages, however fast it is, so that there is a backlog when it is killed.
        while not await owed():
            assert process.poll() is None, "the worker stopped by itself"
            await send(settings, "clicks", clicks(2_000, SHOPPERS, first=events))
            events += 2_000
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert await owed() > 0, "it was killed while pages were owed"
    with worker(settings):
        await until_counted(settings, events)
        pages = await pages_that_answer(settings, newest_of(events))
    assert await owed() == 0
    for key, made in pages.items():
        versions = [page["version"] for page in made]
        # After a crash a page may come once more at its version; none is left out, none goes back.
        assert versions[0] == 1 and all(0 <= b - a <= 1 for a, b in itertools.pairwise(versions)), (key, versions)
