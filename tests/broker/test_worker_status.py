"""`shopwindow status` with workers that run, stop and are killed, and how workers stop."""

import asyncio
import json
import signal
import time
from typing import Any

from stream.kafka import topics
from stream.settings import Settings
from tests.harness.counting import scenario, send
from tests.harness.shop import item
from tests.harness.worker_process import clicks, command, settings_for, until_counted, worker


async def status(settings: Settings) -> tuple[int, dict[str, Any]]:
    done = await asyncio.to_thread(command, settings, "status", "--json")
    assert done.returncode in (0, 1) and not done.stderr, done
    return done.returncode, json.loads(done.stdout)


def lag(seen: dict[str, Any], topic: str) -> int:
    return sum(row["lag_records"] for row in seen["partitions"] if row["topic"] == topic)


@scenario
async def test_status_shows_workers_and_lag_also_after_workers_ended(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "catalog", [item(f"i{k}") for k in range(20)])
    await send(settings, "clicks", clicks(40, 8))
    code, seen = await status(settings)
    assert code == 1 and seen["workers"] == [] and lag(seen, "clicks") == 40
    assert "start one with `shopwindow worker`" in (await asyncio.to_thread(command, settings, "status")).stdout
    with worker(settings) as first:
        await until_counted(settings, 40)
        while True:
            code, seen = await status(settings)
            if seen["workers"] and seen["workers"][0]["state"] == "ready" and not lag(seen, "clicks"):
                break
            await asyncio.sleep(0.2)
        (mine,) = seen["workers"]
        assert code == 0 and mine["worker"].endswith(f":{first.pid}") and mine["rung"] == "full"
        assert mine["partitions"]["clicks"] == mine["partitions"]["purchases"] == [0, 1, 2, 3]
        assert all(row["worker"] == mine["worker"] for row in seen["partitions"] if row["topic"] == "clicks")
        assert all(row["lag_seconds"] == 0 for row in seen["partitions"] if not row["lag_records"])
    code, seen = await status(settings)
    assert code == 1 and seen["workers"] == [], "a worker that stopped in good order is not listed"

    with worker(settings) as second:
        while not (await status(settings))[1]["workers"]:
            await asyncio.sleep(0.1)
        second.send_signal(signal.SIGKILL)
        second.wait()
    sent_at = time.time()
    await send(settings, "clicks", clicks(8, 8, start=2e9))
    while True:
        code, seen = await status(settings)
        if seen["workers"][0]["state"] == "dead":
            break
        await asyncio.sleep(0.5)
    assert code == 1 and lag(seen, "clicks") == 8
    behind = [row for row in seen["partitions"] if row["topic"] == "clicks" and row["lag_records"]]
    assert all(0 < row["lag_seconds"] <= time.time() - sent_at and row["worker"] is None for row in behind), behind


@scenario
async def test_a_worker_that_is_stopped_while_it_requests_pages_exits_with_0(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    await send(settings, "clicks", clicks(8, 4))
    with worker(settings, "-m", "tests.harness.refreshing_worker") as process:
        await until_counted(settings, 8)
    assert process.returncode == 0 and "stopped" not in process.output(), process.output()
