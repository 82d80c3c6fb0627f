"""The loss of a broker during a replay neither loses nor doubles an event."""

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
    mixed_clicks,
    open_shop,
    profiles_of,
    replay,
    settings_for,
    until_counted,
    worker,
)

SHOPPERS, EVENTS_PER_S = 30, 150.0


@asynccontextmanager
async def replaying(
    settings: Settings, chance: random.Random, process: WorkerProcess
) -> AsyncIterator[tuple[list[Record], Callable[[], Awaitable[None]]]]:
    """Send events until the block ends. Yield those sent so far, and a wait for the worker to process 100 more."""
    plan = mixed_clicks(chance, 50_000, SHOPPERS, late=0.0)  # the last event sent must be the newest
    sent: list[Record] = []
    stop = asyncio.Event()

    async def paced() -> AsyncIterator[Record]:
        for at in range(0, len(plan), 15):
            for one in plan[at : at + 15]:
                yield one
            if stop.is_set():
                return
            await asyncio.sleep(15 / EVENTS_PER_S)

    async def counted() -> int:
        return sum(int(row["events"]) for row in (await profiles_of(settings)).values())

    async def progresses() -> None:
        async with asyncio.timeout(90):
            before = await counted()
            while await counted() < before + 100:
                assert process.poll() is None, f"the worker has ended: {process.output()}"
                await asyncio.sleep(0.1)

    sender = asyncio.create_task(replay(settings, paced(), sent))
    try:
        yield sent, progresses
        stop.set()
        await asyncio.wait_for(sender, 120)
    finally:
        sender.cancel()


async def assert_exactly_once(settings: Settings, sent: Sequence[Record]) -> None:
    await until_counted(settings, len(sent), 90)
    await assert_answered(settings, sent)


@lasting(3600)
async def test_a_broker_stopped_or_killed_during_a_replay_loses_no_event(
    chance: random.Random, size: Callable[[int, int], int], progress: Callable[[str], None]
) -> None:
    times = size(2, 10)
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "restarts-", partitions=2)
        await open_shop(settings)
        with worker(settings) as process:
            await process.ready()
            async with replaying(settings, chance, process) as (sent, progresses):
                await progresses()
                for fault in range(times):
                    await asyncio.sleep(chance.uniform(0, 1))  # a random moment for the fault
                    how = (kafka.terminate, kafka.kill)[fault % 2]
                    await asyncio.to_thread(how)
                    await asyncio.sleep(chance.uniform(0, 1))
                    await asyncio.to_thread(kafka.restart)
                    await progresses()
                    progress(f"{how.__name__} {fault + 1} of {times}: the worker continues, {len(sent)} events sent")
            await assert_exactly_once(settings, sent)


@lasting(3600)
async def test_losing_any_of_three_brokers_loses_no_event(
    chance: random.Random, size: Callable[[int, int], int], progress: Callable[[str], None]
) -> None:
    with Cluster() as cluster:
        settings = settings_for(cluster.bootstrap, "three-", partitions=2, replication=3)
        await open_shop(settings)
        with worker(settings) as process:
            await process.ready()
            async with replaying(settings, chance, process) as (sent, progresses):
                await progresses()
                for loss in range(size(2, 6)):
                    broker = cluster.brokers[(loss + 1) % 3]
                    how = (broker.kill, broker.terminate)[loss % 2]
                    await asyncio.to_thread(how)
                    await progresses()
                    progress(f"{how.__name__} of broker {(loss + 1) % 3 + 1}: the worker continues without it")
                    await asyncio.to_thread(broker.restart)
                    await in_sync(settings)
                    progress(f"it is back and in sync, {len(sent)} events sent")
                await progresses()
            await assert_exactly_once(settings, sent)


async def in_sync(settings: Settings) -> None:
    """Wait until every partition has three replicas in sync; before that, the next broker must not be lost."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        async with asyncio.timeout(60):
            while True:
                rows = await admin.describe_topics()
                partitions = [partition for row in rows for partition in row["partitions"]]
                if partitions and all(len(partition["isr"]) == 3 for partition in partitions):
                    return
                await asyncio.sleep(0.1)
    finally:
        await admin.close()


def test_the_producer_waits_for_all_replicas() -> None:
    assert make_app(settings_for("127.0.0.1:1", "acks-")).conf.producer_acks == -1
