"""Follow the pages that workers publish, and print them as text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stream.ids import key64
from stream.items.catalog import Catalog
from stream.kafka.client.connection import NoBroker, bootstrap, client_options, connecting, stop_client
from stream.kafka.global_topics import SILENCE_TIMEOUT_S, read_table
from stream.settings import Settings

SHOWN_ITEMS = 5  # of each slot
POLL_MS = 5_000  # without a record for so long, Kafka is asked whether it is there


async def follow_pages(settings: Settings, user: str | None) -> AsyncIterator[dict[str, Any]]:
    """Yield pages as they are published, without end.

    With `user`, yield only the pages of this shopper: the current one first, then newer versions. Raises NoBroker, also
    if Kafka does not answer for SILENCE_TIMEOUT_S.
    """
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="latest")
    try:
        with connecting(settings):
            await consumer.start()
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
        async for record in _records(settings, consumer):
            if record.value is not None and (user is None or record.key == user.encode()):
                page = json.loads(record.value)
                if user is None or page["version"] > newest:
                    yield page
    finally:
        await stop_client(consumer)


async def _records(settings: Settings, consumer: AIOKafkaConsumer) -> AsyncIterator[Any]:
    answered_at = monotonic()
    while True:
        fetched = await consumer.getmany(timeout_ms=POLL_MS)
        try:
            if not fetched:
                await asyncio.wait_for(consumer._client.fetch_all_metadata(), POLL_MS / 1000)
        except (KafkaError, TimeoutError) as error:
            if monotonic() - answered_at > SILENCE_TIMEOUT_S:
                hosts = ", ".join(bootstrap(settings))
                raise NoBroker(f"Kafka at {hosts} has not answered for {SILENCE_TIMEOUT_S:.0f} s") from error
        else:
            answered_at = monotonic()
        for records in fetched.values():
            for record in records:
                yield record


def page_text(page: dict[str, Any], catalog: Catalog) -> str:
    """Return a page as text for a terminal: a line for each slot and its headline, then its items in its language."""
    locale = page.get("locale", catalog.default_locale)  # pages of earlier workers have none
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
