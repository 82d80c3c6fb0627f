"""What the loss of a broker may do to a replay: nothing that anybody can see afterwards."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient

from deploy.broker.embedded import Broker, Cluster
from stream.kafka.app import make_app
from stream.kafka.client.connection import client_options
from stream.settings import Settings
from tests.harness.counting import lasting
from tests.harness.worker_process import (
    Record,
    WorkerProcess,
    assert_answered,
    behaviour,
    open_shop,
    profiles_of,
    replay,
    settings_for,
    until_counted,
    worker,
)

SHOPPERS, RATE = 30, 150.0  # events/s


@asynccontextmanager
async def replaying(
    settings: Settings, chance: random.Random, process: WorkerProcess
) -> AsyncIterator[tuple[list[Record], Callable[[], Awaitable[None]]]]:
    """Events at RATE until the block ends. -> those sent so far, and a wait for the worker to get on by 100 events."""
    plan = behaviour(chance, 50_000, SHOPPERS, late=0.0)  # whatever is the last that is sent must be the newest
    sent: list[Record] = []
    stop = asyncio.Event()

    async def paced() -> AsyncIterator[Record]:
        for at in range(0, len(plan), 15):
            for one in plan[at : at + 15]:
                yield one
            if stop.is_set():
                return
            await asyncio.sleep(15 / RATE)

    async def counted() -> int:
        return sum(int(row["events"]) for row in (await profiles_of(settings)).values())

    async def gets_on() -> None:
        async with asyncio.timeout(90):
            before = await counted()
            while await counted() < before + 100:
                assert process.poll() is None, f"the worker has ended: {process.said()}"
                await asyncio.sleep(0.1)

    sender = asyncio.create_task(replay(settings, paced(), sent))
    try:
        yield sent, gets_on
        stop.set()
        await asyncio.wait_for(sender, 120)
    finally:
        sender.cancel()


async def assert_nothing_lost_or_doubled(settings: Settings, sent: Sequence[Record]) -> None:
    await until_counted(settings, len(sent), 90)
    await assert_answered(settings, sent)


@lasting(3600)
async def test_a_broker_stopped_and_killed_during_a_replay_loses_and_doubles_nothing(
    chance: random.Random, size: Callable[[int, int], int], progress: Callable[[str], None]
) -> None:
    times = size(2, 10)
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "restarts-", partitions=2)
        await open_shop(settings)
        with worker(settings) as process:
            await process.ready()
            async with replaying(settings, chance, process) as (sent, gets_on):
                await gets_on()
                for fault in range(times):
                    await asyncio.sleep(chance.uniform(0, 1))  # the fault's moment
                    how = (kafka.terminate, kafka.kill)[fault % 2]
                    await asyncio.to_thread(how)
                    await asyncio.sleep(chance.uniform(0, 1))
                    await asyncio.to_thread(kafka.restart)
                    await gets_on()
                    progress(f"{how.__name__} {fault + 1} of {times}: the worker goes on, {len(sent)} events sent")
            await assert_nothing_lost_or_doubled(settings, sent)


@lasting(3600)
async def test_of_three_brokers_any_may_be_lost_and_come_back_and_nothing_is_lost_or_doubled(
    chance: random.Random, size: Callable[[int, int], int], progress: Callable[[str], None]
) -> None:
    with Cluster() as cluster:
        settings = settings_for(cluster.bootstrap, "three-", partitions=2, replication=3)
        await open_shop(settings)
        with worker(settings) as process:
            await process.ready()
            async with replaying(settings, chance, process) as (sent, gets_on):
                await gets_on()
                for loss in range(size(2, 6)):
                    broker = cluster.brokers[(loss + 1) % 3]
                    how = (broker.kill, broker.terminate)[loss % 2]
                    await asyncio.to_thread(how)
                    await gets_on()
                    progress(f"{how.__name__} of broker {(loss + 1) % 3 + 1}: the worker goes on without it")
                    await asyncio.to_thread(broker.restart)
                    await in_sync(settings)
                    progress(f"it is back and in sync, {len(sent)} events sent")
                await gets_on()
            await assert_nothing_lost_or_doubled(settings, sent)


async def in_sync(settings: Settings) -> None:
    """Wait until every partition has three replicas in sync: only then may the next broker be lost."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        async with asyncio.timeout(60):
            while True:
                rows = await admin.describe_topics()
                parts = [part for row in rows for part in row["partitions"]]
                if parts and all(len(part["isr"]) == 3 for part in parts):
                    return
                await asyncio.sleep(0.1)
    finally:
        await admin.close()


def test_the_worker_waits_for_all_replicas() -> None:
    assert make_app(settings_for("127.0.0.1:1", "acks-")).conf.producer_acks == -1
