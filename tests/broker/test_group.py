"""Headline workers in their own processes and consumer group, apart from the page workers."""

import asyncio
import itertools
import json
import signal
from typing import Any

from deploy.operate.status import cluster_status
from stream.settings import Settings
from tests.harness.counting import lasting, send
from tests.harness.worker_process import (
    WorkerProcess,
    clicks,
    open_shop,
    read_all,
    settings_for,
    until_counted,
    worker,
)

SECONDS = 120.0  # enough for a copywriter to start on a busy machine


def workers(broker: str, prefix: str) -> tuple[Settings, Settings]:
    """Settings of a page worker and of a headline worker."""
    return settings_for(broker, prefix, copy=True, role="pages"), settings_for(broker, prefix, copy=True, role="copy")


async def owners(settings: Settings) -> dict[str, dict[str, list[int]]]:
    """Role and partitions of each ready worker, by its process id."""
    seen = await cluster_status(settings)
    return {
        worker["worker"].rsplit(":", 1)[1]: {"role": worker["role"], **worker["partitions"]}
        for worker in seen["workers"]
        if worker["state"] == "ready"
    }


async def until(what: str, condition: Any) -> Any:
    try:
        async with asyncio.timeout(SECONDS):
            while not (found := await condition()):
                await asyncio.sleep(0.1)
            return found
    except TimeoutError:
        raise AssertionError(f"after {SECONDS:.0f} s still not: {what}") from None


@lasting(400.0)
async def test_killing_a_headline_worker_costs_no_page(broker: str, topic_prefix: str) -> None:
    settings, writing = workers(broker, topic_prefix)
    await open_shop(settings)
    with worker(settings) as pages, worker(writing) as copies:
        await send(settings, "copy-requests", [(b"garbage", b"{")])
        await send(settings, "clicks", clicks(200, 20))
        await until_counted(settings, 200)

        async def with_headlines() -> bool:
            made = [json.loads(page.value) for page in await read_all(settings, "homepages")]
            return any(slot["title_source"] == "gpt2" for page in made for slot in page["slots"])

        await until("a page has a headline of GPT-2", with_headlines)
        letters = await until("the garbage is rejected", lambda: read_all(settings, "dead-letters"))
        # More than once if the group rebalances before the commit, which a busy machine causes.
        assert {(dict(letter.headers)["topic"], letter.value) for letter in letters} == {(b"copy-requests", b"{")}
        found = await until("both report their status", lambda: both(settings))
        assert found[str(pages.pid)]["role"] == "pages" and "copy-requests" not in found[str(pages.pid)]
        assert found[str(copies.pid)] == {"role": "copy", "copy-requests": [0, 1, 2, 3]}
        before = {json.loads(text.value)["segment"] for text in await read_all(settings, "copy")}

        copies.send_signal(signal.SIGKILL)
        copies.wait()
        await send(settings, "clicks", clicks(400, 40)[200:])
        await until_counted(settings, 400)
        assert pages.poll() is None and pages.output().count("shopwindow: ready") == 1, "there was no rebalance"
        with worker(writing):
            await send(settings, "clicks", clicks(600, 60)[400:])
            await until_counted(settings, 600)

            async def more() -> bool:
                return {json.loads(text.value)["segment"] for text in await read_all(settings, "copy")} > before

            await until("the next worker continues", more)


async def both(settings: Settings) -> dict[str, dict[str, Any]]:
    found = await owners(settings)
    return found if len(found) == 2 else {}


@lasting(400.0)
async def test_headline_workers_share_requests_and_survivors_take_over(broker: str, topic_prefix: str) -> None:
    settings, writing = workers(broker, topic_prefix)
    await open_shop(settings)

    async def shared() -> bool:
        found = [worker.get("copy-requests", []) for worker in (await owners(settings)).values()]
        return sorted(map(len, found)) == [2, 2] and sorted(itertools.chain(*found)) == [0, 1, 2, 3]

    async def taken_over_by(left: WorkerProcess) -> bool:
        return (await owners(settings)).get(str(left.pid), {}).get("copy-requests") == [0, 1, 2, 3]

    with worker(writing) as first, worker(writing) as second:
        await until("two share four partitions", shared)
        first.send_signal(signal.SIGKILL)
        first.wait()
        await until("the other has all four", lambda: taken_over_by(second))
        with worker(writing) as third:
            await until("two share four partitions again", shared)
            second.send_signal(signal.SIGTERM)
            assert await second.wait_for_exit() == 0
            await until("a worker that stops hands over", lambda: taken_over_by(third))
