"""Records in wrong partitions are forwarded exactly once, also by workers that are killed with SIGKILL."""

import asyncio
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from stream.kafka.client.connection import partition_of
from stream.kafka.keys.forwarding import FORWARDED
from stream.settings import Settings
from tests.harness.counting import lasting, scenario, send
from tests.harness.partitioners import assert_same_profiles, partitioners, send_by
from tests.harness.worker_process import (
    Record,
    assert_versions_rise,
    mixed_clicks,
    open_shop,
    pages_of,
    profiles_of,
    read_all,
    settings_for,
    until_counted,
    worker,
)

EVENTS, SHOPPERS = 300, 40


async def send_by_all(settings: Settings, sent: Sequence[Record], chance: random.Random) -> None:
    """Send each event as one of three producers would, so that every run has events of all."""
    by = partitioners(settings.partitions)
    await send_by(settings, "clicks", sent, lambda key: by[chance.choice(("murmur2", "crc32", "round_robin"))](key))


async def calm_profiles(broker: str, prefix: str, sent: Sequence[Record]) -> dict[str, Any]:
    """The profiles if one producer sends everything to the right partitions, and no worker dies."""
    settings = settings_for(broker, prefix)
    await open_shop(settings)
    await send(settings, "clicks", sent)
    with worker(settings):
        return await until_counted(settings, len(sent), 60 + len(sent) / 200)


async def assert_one_page_version_each(settings: Settings) -> None:
    """Assert that each shopper's pages are in their partition, and that their versions never go back."""
    pages = await read_all(settings, "homepages")
    assert all(page.partition == partition_of(page.key, settings.partitions) for page in pages)
    assert_versions_rise(pages_of(pages), may_repeat=True)


@pytest.mark.parametrize("point", ["outputs", "changelog", "ack"])
@scenario
async def test_a_kill_at_any_step_of_a_commit_forwards_nothing_twice_in_effect(
    broker: str, topic_prefix: str, point: str, chance: random.Random
) -> None:
    settings = settings_for(broker, topic_prefix, run_records=20)
    await open_shop(settings)
    sent = mixed_clicks(chance, EVENTS, SHOPPERS)
    await send_by_all(settings, sent, chance)
    for runs in (3, 7):
        with worker(settings, "-m", "tests.harness.dying_worker", point, str(runs)) as process:
            assert await process.wait_for_exit() == -signal.SIGKILL, process.output()
    with worker(settings):
        profiles = await until_counted(settings, len(sent))
    origins = [dict(r.headers).get(FORWARDED) for r in await read_all(settings, "clicks")]
    copies = [origin for origin in origins if origin is not None]
    assert point != "changelog" or len(copies) > len(set(copies)), "a run that was repeated has forwarded again"
    await assert_one_page_version_each(settings)
    assert_same_profiles(profiles, await calm_profiles(broker, topic_prefix + "calm-", sent))


@lasting(3600)
async def test_kills_at_random_moments_leave_one_profile_for_each_shopper(
    broker: str,
    topic_prefix: str,
    chance: random.Random,
    size: Callable[[int, int], int],
    progress: Callable[[str], None],
) -> None:
    kills, workers = size(3, 60), size(1, 2)
    settings = settings_for(broker, topic_prefix, run_records=20)
    await open_shop(settings)
    sent = mixed_clicks(chance, EVENTS * (kills + 1), SHOPPERS)
    for number in range(kills):
        with ExitStack() as stack:
            processes = [stack.enter_context(worker(settings)) for _ in range(workers)]
            await send_by_all(settings, sent[number * EVENTS : (number + 1) * EVENTS], chance)
            await processes[0].ready()
            moment = chance.uniform(0, 2)
            await asyncio.sleep(moment)  # a random moment for the kill
            for victim in processes[: chance.randint(1, workers)]:
                assert victim.poll() is None, victim.output()
                victim.send_signal(signal.SIGKILL)
                victim.wait()
        counted = sum(int(row["events"]) for row in (await profiles_of(settings)).values())
        progress(f"kill {number + 1} of {kills}: {counted} of {(number + 1) * EVENTS} events were counted")
    await send_by_all(settings, sent[kills * EVENTS :], chance)
    with worker(settings):
        profiles = await until_counted(settings, len(sent), 60 + len(sent) / 100)
    await assert_one_page_version_each(settings)
    assert_same_profiles(profiles, await calm_profiles(broker, topic_prefix + "calm-", sent))
