"""A worker killed with SIGKILL at any moment leaves the same tables, pages and impressions as one that is not."""

import asyncio
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stream.kafka import topics
from stream.kafka.client.connection import partition_of
from stream.kafka.global_topics import read_table, read_topic
from stream.profile.row import describe
from tests.harness import worker_process as shopwindow
from tests.harness.counting import lasting, scenario, send, settings_for, until
from tests.harness.worker_process import open_shop

ROOT = Path(__file__).parents[2]
EVENTS_PER_WORKER, SHOPPERS = 200, 40


@lasting(3600)
async def test_kills_at_random_moments_leave_the_profiles_of_a_calm_run(
    broker: str,
    topic_prefix: str,
    chance: random.Random,
    size: Callable[[int, int], int],
    progress: Callable[[str], None],
) -> None:
    kills = size(5, 100)
    settings = shopwindow.settings_for(broker, topic_prefix, run_records=20)
    await open_shop(settings)
    sent = shopwindow.mixed_clicks(chance, EVENTS_PER_WORKER * (kills + 1), SHOPPERS)
    for number in range(kills):
        with shopwindow.worker(settings) as process:
            await send(settings, "clicks", sent[number * EVENTS_PER_WORKER : (number + 1) * EVENTS_PER_WORKER])
            wait_until_ready = chance.random() < 0.8
            if wait_until_ready:
                await process.ready()
            moment = chance.uniform(0, 0.8 if wait_until_ready else 3.0)
            await asyncio.sleep(moment)  # a random moment for the kill
            assert process.poll() is None, process.output()
            process.send_signal(signal.SIGKILL)
            process.wait()
        counted = sum(int(row["events"]) for row in (await shopwindow.profiles_of(settings)).values())
        progress(
            f"kill {number + 1} of {kills}, {moment:.2f} s after {'ready' if wait_until_ready else 'start'}: "
            f"{counted} of {(number + 1) * EVENTS_PER_WORKER} events were counted"
        )
    await send(settings, "clicks", sent[kills * EVENTS_PER_WORKER :])
    with shopwindow.worker(settings):
        profiles = await shopwindow.until_counted(settings, len(sent), 60 + len(sent) / 200)
    await shopwindow.assert_answered(settings, sent)

    calm_settings = shopwindow.settings_for(broker, topic_prefix + "calm-")
    await open_shop(calm_settings)
    await send(calm_settings, "clicks", sent)
    with shopwindow.worker(calm_settings):
        calm = await shopwindow.until_counted(calm_settings, len(sent), 60 + len(sent) / 200)
    assert profiles.keys() == calm.keys()
    for key in calm:
        assert profiles[key].tobytes() == calm[key].tobytes(), (describe(profiles[key], {}), describe(calm[key], {}))


@contextmanager
def worker(settings: Any, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    address = settings.broker.removeprefix("kafka://")
    command = [sys.executable, "-m", "tests.harness.counting", address, settings.prefix, *more]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def clicks(n: int, seed: int) -> list[tuple[bytes, bytes]]:
    chance = random.Random(seed)
    return [(b"shopper-%d" % chance.randrange(300), b"x") for _ in range(n)]


async def fill(settings: Any, n: int, batch_limit: int | None = None) -> tuple[Counter[bytes], set[bytes]]:
    """Create the topics, send n clicks and n / 2 purchases. Return the events by key, and the inputs' outputs."""
    await topics.create(settings, batch_limit)
    counted: Counter[bytes] = Counter()
    inputs = set()
    for topic, size, seed in (("clicks", n, 1), ("purchases", n // 2, 2)):
        records = clicks(size, seed)
        await send(settings, topic, records)
        offsets: Counter[int] = Counter()
        for key, _ in records:
            partition = partition_of(key, settings.partitions)
            inputs.add(b"%s %d %d" % (topic.encode(), partition, offsets[partition]))
            offsets[partition] += 1
            counted[key] += 1
    return counted, inputs


async def assert_exact(settings: Any, counted: Counter[bytes], inputs: set[bytes]) -> None:
    table = {key: int(value) for key, value in (await read_table(settings, "profiles")).items()}
    wrong = {key: (table.get(key), counted[key]) for key in counted if table.get(key) != counted[key]}
    assert not wrong and len(table) == len(counted), f"{len(wrong)} keys are (counted, sent): {list(wrong.items())[:5]}"
    outputs = {record.value async for record in read_topic(settings, "impressions")}
    assert outputs == inputs, f"{len(inputs - outputs)} of {len(inputs)} inputs have no output"


async def assert_all_counted(settings: Any, counted: Counter[bytes]) -> None:
    """Wait until the changelog counts as many events as were sent. A surplus would stay, and fail `assert_exact`."""
    sent = sum(counted.values())
    while sum(int(value) for value in (await read_table(settings, "profiles")).values()) < sent:
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("how", ["before", "behind", "split"])
@pytest.mark.parametrize("point", ["outputs", "changelog", "ack"])
@scenario
async def test_a_kill_at_any_step_of_a_commit_loses_and_doubles_nothing(
    broker: str, topic_prefix: str, point: str, how: str, size: Callable[[int, int], int]
) -> None:
    if how == "split" and not size(0, 1):
        pytest.skip("runs that are split are killed by --faults=long")
    settings = settings_for(broker, topic_prefix)
    counted, inputs = await fill(settings, 4_000, topics.MIN_BATCH_LIMIT if how == "split" else None)
    with worker(settings, "0", how, point) as process:
        await until(lambda: process.poll() is not None, "dead")
        assert process.returncode == -signal.SIGKILL
    with worker(settings, "0", how):
        await assert_all_counted(settings, counted)
    await assert_exact(settings, counted, inputs)
