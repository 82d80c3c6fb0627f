"""Faults around a worker: it continues, or it ends with one sentence that says what to do."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from stream.events.decode import decode_run
from stream.kafka import topics
from stream.kafka.client.connection import client_options
from stream.profile.fold import fold
from stream.profile.row import blank_profiles
from tests.harness.counting import lasting, scenario, send
from tests.harness.events import NOW, record
from tests.harness.worker_process import (
    Record,
    WorkerProcess,
    assert_answered,
    clicks,
    command,
    mixed_clicks,
    open_shop,
    pages_of,
    read_all,
    resident,
    settings_for,
    until_counted,
    worker,
)

SHIFTED_CLOCK_WORKER = """
import sys, time
from pathlib import Path
offset, real = Path(sys.argv[1]), time.time
time.time = lambda: real() + float(offset.read_text() or 0)
from deploy.cli.main import main
sys.exit(main(["worker"]))
"""


async def metrics_of(process: WorkerProcess) -> dict[str, float]:
    """The worker's metrics by name and labels."""
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{await process.port()}") as session,
        session.get("/metrics") as answer,
    ):
        lines = (await answer.text()).splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


async def health(process: WorkerProcess) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{await process.port()}") as session,
        session.get("/healthz") as answer,
    ):
        return answer.status, (await answer.text()).strip()


def folded(sent: list[Record]) -> dict[str, Any]:
    """The profiles after these events, folded in order."""
    good = [(key, value) for key, value in sent if key]
    decoded = decode_run([value for _, value in good], [key for key, _ in good], [NOW + 1e6] * len(good), "clicks")
    assert not decoded.rejects
    names = sorted({key for key, _ in good})
    rows, shopper_of = blank_profiles(len(names)), np.array([names.index(key) for key, _ in good], np.int32)
    fold(rows, shopper_of[decoded.rows["record"]], decoded.rows)
    return {name.decode(): row for name, row in zip(names, rows, strict=True)}


@scenario
async def test_a_clock_that_jumps_changes_no_profile_and_makes_no_negative_lag(
    broker: str, topic_prefix: str, chance: random.Random, tmp_path: Path
) -> None:
    settings = settings_for(broker, topic_prefix, fetch_timeout=3.0, page_ttl=60.0)
    await open_shop(settings)
    sent = mixed_clicks(chance, 1200, 20)
    clock = tmp_path / "clock"
    clock.write_text("0")
    with worker(settings, "-c", SHIFTED_CLOCK_WORKER, str(clock)) as process:
        await process.ready()
        for part, offset in enumerate((0, 3600, -3600, 0)):
            pending = tmp_path / "next"
            pending.write_text(str(offset))
            pending.rename(clock)
            await send(settings, "clicks", sent[300 * part : 300 * (part + 1)])
            profiles = await until_counted(settings, 300 * (part + 1))
            found = await metrics_of(process)
            assert not {name: value for name, value in found.items() if value < 0}
            assert found["shopwindow_fetch_silence_seconds"] < 3
            assert await health(process) == (200, "ok")
    assert {key: row.tobytes() for key, row in profiles.items()} == {k: r.tobytes() for k, r in folded(sent).items()}
    for made in (await assert_answered(settings, sent)).values():
        assert all(page["slots"] for page in made), "no item expired because of the clock"


@scenario
async def test_events_of_1970_are_refused_and_those_of_2099_clamped(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    old, late = (record("view_item", "secretly-1", f"e{year}", NOW, item="i1") for year in (1970, 2099))
    sent = [(old[0], old[1].replace(b"2026-01-01", b"1970-01-01")), (late[0], late[1].replace(b"2026", b"2099"))]
    with worker(settings) as process:
        await process.ready()
        await send(settings, "clicks", sent)
        (row,) = (await until_counted(settings, 1)).values()
        found = await metrics_of(process)
        (letter,) = await read_all(settings, "dead-letters")
    clicked = (await read_all(settings, "clicks"))[1].timestamp / 1000
    assert row["last_seen"] == int(clicked + settings.future_tolerance) or abs(row["last_seen"] - clicked - 300) < 1
    assert found["shopwindow_clamped_times_total"] == 1
    assert found['shopwindow_dead_letters_total{error="out_of_range",topic="clicks"}'] == 1
    assert dict(letter.headers)["message"] == b"time is 1970-01-01T00:00:00+00:00, expected one from 2000 to 2038"


@scenario
async def test_a_wrong_number_of_partitions_gives_one_sentence(broker: str, topic_prefix: str) -> None:
    await topics.create(settings_for(broker, topic_prefix, partitions=2))
    refused = command(settings_for(broker, topic_prefix, partitions=3), "worker")
    assert refused.returncode == 1
    lines = refused.stderr.splitlines()
    assert any(
        f"topic '{topic_prefix}clicks' has 2 partitions, the settings say 3; a shopper's events, profile and page must "
        "live in the same partition. Recreate it with 3, or set SHOPWINDOW_PARTITIONS=2" in line
        for line in lines
    ), lines


@scenario
async def test_deleting_a_topic_ends_its_worker_with_one_sentence(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, fetch_timeout=2.0)
    await open_shop(settings)
    with worker(settings) as process:
        await process.ready()
        await send(settings, "clicks", clicks(20, 2))
        await until_counted(settings, 20)
        admin = AIOKafkaAdminClient(**client_options(settings))
        await admin.start()
        await admin.delete_topics([settings.prefix + "clicks"])
        await admin.close()
        assert await process.wait_for_exit() == 1
        errors = [line for line in process.output().splitlines() if line.startswith("shopwindow: the worker stopped")]
    assert len(errors) == 1, errors
    assert f"topic '{settings.prefix}clicks' was deleted" in errors[0] and "topics create" in errors[0]


@scenario
async def test_a_slow_storefront_delays_no_page_and_reads_the_newest_at_last(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=1)
    await open_shop(settings)
    async with AIOKafkaConsumer(
        settings.prefix + "homepages", **client_options(settings), group_id="slow", auto_offset_reset="earliest"
    ) as storefront:
        with worker(settings) as process:
            await process.ready()
            seen: dict[bytes, int] = {}
            for part in range(10):
                await send(settings, "clicks", clicks(500, 10)[50 * part : 50 * (part + 1)])
                await until_counted(settings, 50 * (part + 1))
                page = await storefront.getone()  # one for each fifty events
                seen[page.key] = json.loads(page.value)["version"]
            assert (await metrics_of(process))['shopwindow_consumer_lag_records{topic="clicks"}'] == 0
        newest = {key: made[-1]["version"] for key, made in pages_of(await read_all(settings, "homepages")).items()}
        assert sum(newest.values()) > sum(seen.values())
        while {key.decode(): version for key, version in seen.items()} != newest:
            page = await asyncio.wait_for(storefront.getone(), 10)
            seen[page.key] = json.loads(page.value)["version"]


@lasting(1800)
async def test_a_backlog_is_processed_with_flat_memory_and_one_page_per_shopper_and_run(
    broker: str, topic_prefix: str, size: Callable[[int, int], int], progress: Callable[[str], None]
) -> None:
    events, shoppers = size(50_000, 1_000_000), 200
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    for start in range(0, events, 50_000):
        await send(settings, "clicks", clicks(50_000, shoppers, first=start))
        progress(f"{start + 50_000} of {events} events are sent")
    memory, counted = [], 0.0
    with worker(settings) as process:
        await process.ready()
        while counted < events:
            assert process.poll() is None
            await asyncio.sleep(0.5)
            found = await metrics_of(process)
            counted = sum(value for name, value in found.items() if name.startswith("shopwindow_events_total{"))
            memory.append((counted, resident(process.pid)))
            progress(f"{counted:.0f} of {events} events counted, {memory[-1][1]:.0f} MB")
        await until_counted(settings, events)
        pages = found['shopwindow_pages_total{mode="cached_copy"}']
    assert (await asyncio.to_thread(command, settings, "topics", "check")).returncode == 0
    runs = events / settings.run_records
    assert pages < 1.5 * runs * shoppers / settings.partitions + 4 * shoppers, "one page for each shopper of a run"
    warm = max(mb for count, mb in memory if count < events / 2) if memory[0][0] < events / 2 else memory[0][1]
    assert memory[-1][1] - warm < 80, f"(events, MB): {memory}"
