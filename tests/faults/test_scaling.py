"""Two workers, then three, then one, under load: no event is lost or doubled, and pages continue."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack

import numpy as np

from tests.harness.counting import lasting
from tests.harness.worker_process import (
    Record,
    assert_answered,
    open_shop,
    read_all,
    record_now,
    replay,
    settings_for,
    until_counted,
    worker,
)


@lasting(1200)
async def test_changing_the_number_of_workers_loses_and_doubles_nothing(
    broker: str,
    topic_prefix: str,
    chance: random.Random,
    size: Callable[[int, int], int],
    progress: Callable[[str], None],
) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    sent: list[Record] = []
    stop = asyncio.Event()
    marks: list[tuple[float, str]] = []

    async def paced() -> AsyncIterator[Record]:
        number = 0
        while not stop.is_set():
            for _ in range(5):
                yield record_now(chance, number)
                number += 1
            await asyncio.sleep(0.05)

    def mark(phase: str) -> None:
        marks.append((time.time(), phase))
        progress(phase)

    with ExitStack() as workers:
        two = [workers.enter_context(worker(settings)) for _ in range(2)]
        for one in two:
            await one.ready()
        sender = asyncio.create_task(replay(settings, paced(), sent))
        mark("two workers")
        await asyncio.sleep(size(2, 20))  # the duration of this phase
        mark("a third joins")
        third = workers.enter_context(worker(settings))
        await third.ready()
        mark("three workers")
        await asyncio.sleep(size(2, 20))
        mark("two leave")
        for one in two:
            one.terminate()
        assert [await one.wait_for_exit() for one in two] == [0, 0]
        left, _ = marks[-1]
        async with asyncio.timeout(60):  # they may end before the third has their partitions
            while max(page.timestamp for page in await read_all(settings, "homepages")) < 1000 * left:
                await asyncio.sleep(0.1)
        mark("one worker")
        await asyncio.sleep(size(2, 20))
        stop.set()
        await sender
        await until_counted(settings, len(sent))
        assert third.poll() is None
    await assert_answered(settings, sent)
    fresh: dict[str, list[float]] = {phase: [] for _, phase in marks}
    for page in await read_all(settings, "homepages"):
        made = page.timestamp / 1000  # when the worker sent it
        begun = [name for start, name in marks if start <= made]
        event = json.loads(page.value)["trigger"]["event_id"]
        fresh[begun[-1]].append(made - float(event.rsplit("@", 1)[1]))
    for phase, ages in fresh.items():
        assert ages, f"no page came while {phase}"
        p50, p99, most = (1000 * float(np.quantile(ages, q)) for q in (0.5, 0.99, 1.0))
        progress(f"{phase:14} {len(ages):5d} pages, freshness p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms")
        assert most < 20_000, f"a page of {most:.0f} ms while {phase}"
