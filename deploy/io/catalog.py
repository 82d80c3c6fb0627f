"""Load items into the catalogue, and delete them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from deploy.io.items import ItemFile
from deploy.io.send import sender
from stream.kafka.global_topics import read_topic
from stream.settings import Settings


async def load_items(settings: Settings, items: ItemFile) -> None:
    """Publish the good items of a file, and return when all are acknowledged. Raises NoBroker."""
    async with sender(settings) as client:
        for record in items.records:
            await client.send(record)


class Deleted(NamedTuple):
    """What `delete_items` did."""

    items: int
    unknown: list[str]  # ids that the catalogue does not have


async def delete_items(settings: Settings, ids: Sequence[str]) -> Deleted:
    """Delete items from the catalogue, and return when that is acknowledged. Raises NoBroker.

    A producer with another partitioner may have written an item to a partition that does not own its key. A tombstone
    in the owner's partition alone would be compacted away after a day, and that record would come back. So each
    partition that holds the item gets a tombstone.
    """
    partitions: dict[bytes, set[int]] = defaultdict(set)
    async for record in read_topic(settings, "catalog"):
        if record.value is None:
            partitions[record.key].discard(record.partition)
        else:
            partitions[record.key].add(record.partition)
    unknown, count = [], 0
    async with sender(settings) as client:
        for item_id in dict.fromkeys(ids):
            key = item_id.encode("utf-8", "surrogateescape")
            places = partitions.get(key)
            if not places:
                unknown.append(item_id)
                continue
            for partition in sorted(places):
                await client.delete("catalog", key, partition)
            count += 1
    return Deleted(count, unknown)
