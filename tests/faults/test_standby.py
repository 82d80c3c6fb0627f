"""Failover: a worker with a standby copy of a dead worker's profiles serves its shoppers at once."""

import asyncio
import time
from typing import Any

import pytest

from deploy.broker.embedded import free_port
from stream.kafka import topics
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.worker_process import clicks, fetch, profiles_of, settings_for, until_counted, worker


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
@scenario
async def test_a_standby_takes_over_from_a_killed_worker_without_recovery(
    broker: str, topic_prefix: str, store: str, tmp_path: Any
) -> None:
    ports = free_port(), free_port()
    one, two = (
        settings_for(broker, topic_prefix, web_port=port, store=store, data_dir=tmp_path / str(port)) for port in ports
    )
    await topics.create(one)

    async def progress_of(port: int) -> dict[str, Any]:
        readiness = await asyncio.to_thread(fetch, port, "/readyz") or {}
        read: dict[str, Any] = readiness.get("recovery", {}).get("profiles", {})
        return read

    with worker(two):
        with worker(one) as victim:
            await send(one, "clicks", clicks(3000, 1000))
            await until_counted(one, 3000)
            async with asyncio.timeout(30):
                while not all(
                    read.get("partitions") == read.get("standby_partitions") == 2
                    and read["standby_records_to_read"] == 0
                    for read in [await progress_of(port) for port in ports]
                ):
                    await asyncio.sleep(0.1)
            victim.kill()
            killed = time.monotonic()
            again = [record("view_item", f"u{k}", f"again{k}", NOW + 5000 + k, item="i1") for k in range(1000)]
            await send(two, "clicks", again)
            await until_counted(two, 4000)
            took = time.monotonic() - killed
        read = await progress_of(ports[1])
        assert read["partitions"] == 4
        assert read["records_to_read"] < 200, f"{read['records_to_read']} of the changelog read after the takeover"
        assert took < two.session_timeout + 6, f"the last of a thousand shoppers was served after {took:.1f} s"
    assert {int(row["events"]) for row in (await profiles_of(two)).values()} == {4}
