"""Follow the pages that workers publish, and print them as text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from stream.ids import key64
from stream.items.catalog import Catalog
from stream.kafka.client.connection import client_options, connecting
from stream.kafka.global_topics import read_table
from stream.settings import Settings

SHOWN_ITEMS = 5  # of each slot


async def follow_pages(settings: Settings, user: str | None) -> AsyncIterator[dict[str, Any]]:
    """Yield pages as they are published, without end.

    With `user`, yield only the pages of this shopper: the current one first, then newer versions.
    """
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="latest")
    with connecting(settings):
        await consumer.start()
    try:
        topic = settings.prefix + "homepages"
        partitions = [TopicPartition(topic, p) for p in range(settings.partitions)]
        consumer.assign(partitions)
        # Fix the offsets before reading the table: a page published in between is then read twice, and never missed.
        for partition, end in (await consumer.end_offsets(partitions)).items():
            consumer.seek(partition, end)
        value = (await read_table(settings, "homepages")).get(user.encode()) if user is not None else None
        newest = 0
        if value is not None:
            page = json.loads(value)
            newest = page["version"]
            yield page
        async for record in consumer:
            if record.value is not None and (user is None or record.key == user.encode()):
                page = json.loads(record.value)
                if user is None or page["version"] > newest:
                    yield page
    finally:
        await consumer.stop()


def page_text(page: dict[str, Any], catalog: Catalog, locale: str) -> str:
    """Return a page as text for a terminal: a line for each slot and its headline, then its items."""
    lines = [
        f"{page['user_key']}  version {page['version']}  {page['serving']['mode']}  {page['generated_at']}  "
        f"for event {page['trigger']['event_id']}"
    ]
    for slot in page["slots"]:
        lines.append(f"  {slot['slot']}: {slot['title']} ({slot['title_source']})")
        for item in slot["items"][:SHOWN_ITEMS]:
            id_ = item["item_id"]
            title = catalog.title(catalog.index.get(key64(id_)), locale) if id_ in catalog else ""
            lines.append(f"    {item['position']:2d} {item['score']:.3f} {id_} {title}  [{item['reason']['code']}]")
        if len(slot["items"]) > SHOWN_ITEMS:
            lines.append(f"       and {len(slot['items']) - SHOWN_ITEMS} more")
    return "\n".join(lines)
