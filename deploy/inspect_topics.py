"""Looking at what the product wrote: pages as they come, profiles as they are."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.failure import Failure
from stream.catalog import Catalog
from stream.ids import key64
from stream.kafka.broadcast import Broadcast, read_table
from stream.kafka.connect import client_options, connecting, partition_of
from stream.page import Homepage
from stream.profile import PROFILE, PROFILE_VERSION, decode_record, describe, unpack

if TYPE_CHECKING:
    from stream.settings import Settings

Write = Callable[[str], None]
_page = msgspec.json.Decoder(Homepage)


async def watch(settings: Settings, user: str | None, as_json: bool, write: Write) -> None:
    """Write each homepage as it is published, for ever; of a `user` the newest that there is first.

    Raises NoBroker, LookupError where a topic is missing.
    """
    catalog = Catalog()
    titles = Broadcast(settings, ["catalog"])
    key = user.encode("utf-8", "surrogatepass") if user is not None else None

    def show(value: bytes) -> None:
        for _, records in titles.drain():
            catalog.apply(records)
        write(value.decode("utf-8", "replace") if as_json else page_text(value, catalog, settings.default_locale))

    try:
        if not as_json:
            await titles.start()
        async with _homepages(settings, key) as (consumer, ends):
            newest = await _newest(consumer, key, ends) if key is not None else None
            if newest is not None:
                show(newest)
            else:
                print("waiting for pages (Ctrl-C ends)", file=sys.stderr, flush=True)
            async for record in consumer:
                if record.value is not None and key in (None, record.key):
                    show(record.value)
    finally:
        await titles.stop()


@asynccontextmanager
async def _homepages(
    settings: Settings, key: bytes | None
) -> AsyncIterator[tuple[AIOKafkaConsumer, dict[TopicPartition, int]]]:
    """A consumer at the ends of all partitions and these ends; with `key`, at the start of the one that owns it."""
    consumer = AIOKafkaConsumer(**client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        with connecting(settings):
            await consumer.start()
        name = settings.prefix + "homepages"
        # As in stream.kafka.broadcast: the consumer itself knows only topics that it already reads.
        numbers = (await consumer._client.fetch_all_metadata()).partitions_for_topic(name)
        if not numbers:
            raise LookupError(f"topic '{name}' is missing; `shopwindow topics create` creates it")
        wanted = numbers if key is None else {partition_of(key, len(numbers))}
        partitions = [TopicPartition(name, number) for number in sorted(wanted)]
        consumer.assign(partitions)
        ends = dict(await consumer.end_offsets(partitions))
        for partition, end in ends.items():
            consumer.seek(partition, end)
        if key is not None:
            await consumer.seek_to_beginning(*partitions)
        yield consumer, ends
    finally:
        await consumer.stop()


async def _newest(consumer: AIOKafkaConsumer, key: bytes, ends: dict[TopicPartition, int]) -> bytes | None:
    """The last page of `key` before the ends; what comes after them is left to be read."""
    [(partition, end)] = ends.items()
    newest: bytes | None = None
    while await consumer.position(partition) < end:
        for records in (await consumer.getmany(partition, timeout_ms=200)).values():
            for record in records:
                if record.offset < end and record.key == key:
                    newest = record.value
            if records[-1].offset >= end:
                consumer.seek(partition, end)
    return newest


def page_text(value: bytes, catalog: Catalog, locale: str) -> str:
    """A page for readers at a terminal."""
    try:
        page = _page.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"a page that this program cannot read: {error}"

    def title(item_id: str) -> str:
        return f"{catalog.title(catalog.row(key64(item_id)), locale)} ({item_id})" if item_id in catalog else item_id

    lines = [
        f"{page.user_key}  version {page.version}  {page.serving.mode}  {page.generated_at}",
        f"  after event {page.trigger.event_id} of {page.trigger.event_time}",
    ]
    for slot in page.slots:
        lines.append(f"  {slot.slot}: {slot.title}" + (" [GPT-2]" if slot.title_source == "gpt2" else ""))
        for item in slot.items:
            of = f" {title(item.reason.item_id)}" if item.reason.item_id else ""
            why = item.reason.code.lower().replace("_", " ") + of
            lines.append(f"    {item.position:2d}. {title(item.item_id)}  {item.score:.3f}  {why}")
    return "\n".join(lines) + "\n"


async def profiles(settings: Settings, as_json: bool, write: Write) -> None:
    """Write the live table, sorted by key: read from its changelog, so by anyone at any time.

    Raises NoBroker, LookupError where a topic is missing, Failure where another version wrote it.
    """
    table = sorted((await read_table(settings, "profiles")).items())
    catalog = Catalog()
    catalog.apply(list((await read_table(settings, "catalog")).items()))
    try:
        rows = unpack([decode_record(value)[0] for _, value in table], PROFILE, PROFILE_VERSION)
    except ValueError as error:
        raise Failure(f"topic '{settings.prefix}profiles': {error}") from None
    if not as_json:
        write(f"{'shopper':<20} {'events':>6} {'last seen':<19} recent")
    for (key, _), row in zip(table, rows, strict=True):
        shopper, described = key.decode("utf-8", "surrogatepass"), describe(row, catalog.names)
        if as_json:
            write(json.dumps({"shopper": shopper, **described}, sort_keys=True, ensure_ascii=False))
        else:
            write(_profile_line(shopper, described))


def _profile_line(shopper: str, profile: dict[str, Any]) -> str:
    seen = profile["last_seen"]
    when = f"{datetime.fromtimestamp(seen, UTC):%Y-%m-%d %H:%M:%S}" if seen else ""
    recent = " ".join(str(entry[0]) for entry in profile["recent"])
    return f"{shopper[:20]:<20} {profile['events']:>6} {when:<19} {recent}"[:80].rstrip()
