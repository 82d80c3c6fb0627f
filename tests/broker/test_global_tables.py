"""The catalogue of a worker when producers with different partitioners write it."""

import asyncio

from aiokafka import AIOKafkaProducer

from agents.global_tables import GlobalTables
from agents.page.headline_cache import RefreshRequest
from stream.ids import key64
from stream.items.catalog import AVAILABLE
from stream.items.signals import HALF_LIVES
from stream.kafka import topics
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.global_topics import read_table
from stream.settings import Settings
from tests.harness.counting import scenario, until
from tests.harness.shop import item
from tests.harness.shopper_agent import on_loop
from tests.harness.worker_process import settings_for

T0 = 1_767_225_600_000  # ms
ITEMS = ("lamp", "rug", "mug", "chair", "bowl", "vase")


def available(tables: GlobalTables) -> dict[str, bool | None]:
    """Of each item: whether it can be bought, or None if the catalogue lacks it."""
    found: dict[str, bool | None] = {}
    for name in ITEMS:
        row = tables.catalog.index.get(key64(name))
        flags = int(tables.catalog.items[row]["flags"])
        found[name] = bool(flags & AVAILABLE) if name in tables.catalog else None
    return found


async def write(settings: Settings, moment: int, is_home: bool, name: str, value: bytes | None) -> None:
    """Write a catalogue record dated `moment`, in the partition of its key or in the next one."""
    partition = (partition_of(name.encode(), settings.partitions) + (not is_home)) % settings.partitions
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        await producer.send_and_wait(
            settings.prefix + "catalog", value, key=name.encode(), partition=partition, timestamp_ms=moment
        )


async def no_refreshes(_: dict[bytes, RefreshRequest]) -> None:
    """Headlines are not part of this test."""


@scenario
async def test_the_newest_record_of_an_item_holds_also_after_a_restart(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    on_sale = {name: item(name)[1] for name in ITEMS}
    sold_out = {name: item(name, available=False)[1] for name in ITEMS}
    following = GlobalTables(settings, HALF_LIVES)
    await following.start()
    task = asyncio.create_task(following.follow(on_loop, no_refreshes))
    try:
        for is_home, name in ((True, "lamp"), (False, "rug")):
            await write(settings, T0, is_home, name, on_sale[name])
            await write(settings, T0 + 1, not is_home, name, sold_out[name])
        for is_home, name in ((True, "mug"), (False, "chair")):
            await write(settings, T0, is_home, name, on_sale[name])
            await write(settings, T0 + 1, not is_home, name, None)
        await write(settings, T0 + 1, True, "bowl", on_sale["bowl"])
        await write(settings, T0, False, "bowl", None)  # late: it was sent before the other
        await write(settings, T0, True, "vase", on_sale["vase"])
        expected = {"lamp": False, "rug": False, "mug": None, "chair": None, "bowl": True, "vase": True}
        await until(lambda: following.catalog.index.get(key64("vase")) >= 0, "the last item")
        assert available(following) == expected
    finally:
        task.cancel()
        await following.stop()

    restarted = GlobalTables(settings, HALF_LIVES)
    await restarted.start()
    try:
        assert available(restarted) == expected
    finally:
        await restarted.stop()
    assert sorted(await read_table(settings, "catalog")) == [b"bowl", b"lamp", b"rug", b"vase"]
