"""What commands send to the topics and read from them: events, items, clickstreams, pages, profiles."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from typing import IO, Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from deploy.io.files import InputError, Outgoing, event_records, item_records, opened
from stream.events import EARLIEST_S, LATEST_S
from stream.ids import key64
from stream.items.catalog import Catalog
from stream.kafka.client.connection import client_options, connecting, partition_of
from stream.kafka.global_topics import read_table
from stream.profile.codec import decode_record
from stream.profile.row import PROFILE
from stream.profile.row import PROFILE_VERSION
from stream.profile.row import describe
from stream.row_codec import unpack
from stream.settings import Settings

LARGEST = 1_000_000  # bytes of a record; the broker refuses 1 MiB with its envelope
IN_FLIGHT = 5_000  # records sent and not yet acknowledged, at most


class Sender:
    """Many sends in flight, all of them acknowledged at the end."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings, self._producer = settings, producer
        self._pending: deque[asyncio.Future[Any]] = deque()

    async def send(self, record: Outgoing) -> None:
        """Raises the Kafka error of an earlier send that failed."""
        partition = partition_of(record.key or b"", self._settings.partitions)
        sent = await self._producer.send(
            self._settings.prefix + record.topic, record.value, key=record.key, partition=partition
        )
        self._pending.append(sent)
        while len(self._pending) > IN_FLIGHT:
            await self._pending.popleft()

    async def acknowledged(self) -> None:
        while self._pending:
            await self._pending.popleft()


@asynccontextmanager
async def sender(settings: Settings) -> AsyncIterator[Sender]:
    """A producer whose records are acknowledged when the block ends."""
    producer = AIOKafkaProducer(**client_options(settings), linger_ms=5, acks="all")
    with connecting(settings):
        await producer.start()
    try:
        await _need_topics(settings, producer)
        client = Sender(settings, producer)
        yield client
        await client.acknowledged()
    finally:
        await producer.stop()


async def _need_topics(settings: Settings, producer: AIOKafkaProducer) -> None:
    metadata = await producer.client.fetch_all_metadata()
    for topic in ("clicks", "catalog"):
        count = len(metadata.partitions_for_topic(settings.prefix + topic) or ())
        if count == 0:
            raise InputError(
                f"topic '{settings.prefix}{topic}' is missing; create the topics: shopwindow topics create"
            )
        if count != settings.partitions:
            raise InputError(
                f"topic '{settings.prefix}{topic}' has {count} partitions, SHOPWINDOW_PARTITIONS is {settings.partitions}; "
                f"set it to {count}"
            )


async def _lines(path: str) -> AsyncIterator[str]:
    """Lines of a file, or of stdin as they come: a live pipe must neither hold back what was written nor Ctrl-C."""
    if path != "-":
        with opened(path) as file:
            for line in file:
                yield line
        return
    lines: asyncio.Queue[bytes | None] = asyncio.Queue(IN_FLIGHT)
    loop = asyncio.get_running_loop()

    def read() -> None:
        for line in sys.stdin.buffer:
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
        asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()

    # A daemon: the interpreter does not wait for a pipe that nobody closes.
    threading.Thread(target=read, daemon=True).start()
    while (raw := await lines.get()) is not None:
        yield raw.decode("utf-8", "surrogateescape")


async def send_events(settings: Settings, path: str) -> tuple[int, list[str]]:
    """Send the events of a file of JSON lines; -> how many, all of them acknowledged, and what could not be sent."""
    count, number, problems = 0, 0, list[str]()
    async with sender(settings) as client:
        async for line in _lines(path):
            number += 1
            for record in event_records([line]):
                if len(record.value) > LARGEST:
                    problems.append(
                        f"line {number} has {len(record.value)} bytes, Kafka takes at most {LARGEST}; left out"
                    )
                    continue
                await client.send(record)
                count += 1
    return count, problems


async def load_catalog(settings: Settings, path: str, skip_bad: bool) -> tuple[int, list[str]]:
    """Publish the items of a file: JSON lines or one array. -> how many, and what is wrong with the others.

    Raises InputError where an item is bad and `skip_bad` is False: then nothing is published.
    """
    good, problems = item_records(path)
    if problems and not skip_bad:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{path}: {problems[0]}{more}; nothing was loaded, --skip-bad loads the good ones")
    async with sender(settings) as client:
        for record in good:
            await client.send(record)
    return len(good), problems


class Click(NamedTuple):
    time: float  # s since the epoch
    session: str
    item: str
    id: str


def clickstream(header: str, lines: IO[str], path: str) -> list[Click]:
    """A table with columns SessionId, ItemId, Time (epoch seconds or ISO 8601) in order of time; header is its first line.

    Ids of events come from the content alone, so that the same file sent twice is sent once. Raises InputError for
    another header or a row that does not fit it.
    """
    header = header.strip().lstrip("\ufeff")
    if not header:
        raise InputError(f"{path} is empty")
    delimiter = "\t" if "\t" in header else ","
    columns = [name.strip().strip('"') for name in header.split(delimiter)]
    wanted = ("SessionId", "ItemId", "Time")
    if not set(wanted) <= set(columns):
        raise InputError(
            f"{path} has columns {', '.join(columns)}; expected {', '.join(wanted)}, or JSON lines of events"
        )
    places = [columns.index(name) for name in wanted]
    clicks, number_in = [], dict[str, int]()
    for number, row in enumerate(csv.reader(lines, delimiter=delimiter), 2):
        if not row:
            continue
        try:
            session, item, moment = (row[place].strip() for place in places)
            when = float(moment) if moment.replace(".", "", 1).isdigit() else _iso(moment)
            if not EARLIEST_S <= when <= LATEST_S:
                raise ValueError
        except (IndexError, ValueError, OverflowError):
            raise InputError(f"{path}, line {number}: {row!r} is no row of {', '.join(columns)}") from None
        at = number_in[session] = number_in.get(session, -1) + 1
        clicks.append(
            Click(
                when, session, item, blake2b(f"{session}\0{at}\0{item}\0{moment}".encode(), digest_size=10).hexdigest()
            )
        )
    clicks.sort(key=lambda click: click.time)  # stable: of one moment, the order of the file
    return clicks


def _iso(moment: str) -> float:
    time = datetime.fromisoformat(moment)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def click_record(click: Click) -> Outgoing:
    event = {
        "specversion": "1.0", "id": click.id, "source": "/replay", "type": "view_item",
        "time": datetime.fromtimestamp(click.time, UTC).isoformat(timespec="microseconds"),
        "data": {"user_id": click.session, "session_id": click.session, "items": [{"item_id": click.item}]},
    }  # fmt: skip
    return Outgoing("clicks", click.session.encode(), msgspec.json.encode(event))


class Replayed(NamedTuple):
    events: int
    shoppers: int
    items: int  # that were added to the catalogue
    seconds: float


class Log(NamedTuple):
    """Events in the order in which they are sent, in parallel with their times (s since the epoch); the items they name."""

    records: list[Outgoing]
    times: list[float]
    items: list[str]


def read_log(path: str, limit: int) -> Log:
    """A clickstream, or JSON lines of events; limit 0: all of it. Raises InputError."""
    with opened(path) as lines:
        first = lines.readline()
        if first.lstrip().startswith("{"):
            records = list(event_records([first, *lines]))[: limit or None]
            return Log(records, _times(records), [item for record in records for item in _items_of(record.value)])
        clicks = clickstream(first, lines, path)[: limit or None]
    return Log(
        [click_record(click) for click in clicks], [click.time for click in clicks], [click.item for click in clicks]
    )


async def replay(settings: Settings, path: str, speed: float, limit: int, add_items: bool) -> Replayed:
    """Send a clickstream in order of time, at `speed` times its own pace (inf: as fast as it goes); limit 0: all of it.

    Returns when the broker has acknowledged all. Raises InputError.
    """
    from tqdm import tqdm

    records, times, items = read_log(path, limit)
    added = await _unknown_items(settings, items) if add_items else []
    start = time.monotonic()
    async with sender(settings) as client:
        for item in added:
            await client.send(item)
        await client.acknowledged()
        with tqdm(total=len(records), unit=" events", file=sys.stderr, mininterval=0.2) as bar:
            for record, moment in zip(records, times, strict=True):
                if speed != float("inf"):
                    due = start + (moment - times[0]) / speed
                    while (wait := due - time.monotonic()) > 0:
                        await asyncio.sleep(min(wait, 1.0))
                await client.send(record)
                bar.update()
            await client.acknowledged()
    shoppers = len({record.key for record in records if record.key is not None})
    return Replayed(len(records), shoppers, len(added), time.monotonic() - start)


def _times(records: Sequence[Outgoing]) -> list[float]:
    """Event times; a record that says none goes with the one before it, those at the start with the first that does."""
    found: list[float | None] = []
    for record in records:
        try:
            found.append(_iso(json.loads(record.value)["time"].replace("Z", "+00:00")))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            found.append(None)
    last = next((time for time in found if time is not None), 0.0)
    times = []
    for time_ in found:
        last = last if time_ is None else time_
        times.append(last)
    return times


def _items_of(value: bytes) -> list[str]:
    try:
        return [str(item["item_id"]) for item in json.loads(value)["data"].get("items") or ()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


async def _unknown_items(settings: Settings, wanted: Iterable[str]) -> list[Outgoing]:
    known = {key.decode("utf-8", "replace") for key in await read_table(settings, "catalog")}
    items = dict.fromkeys(item for item in wanted if item not in known)
    return [
        Outgoing(
            "catalog", item.encode(), msgspec.json.encode({"item_id": item, "title": item, "category": "replayed"})
        )
        for item in items
    ]


async def profiles(settings: Settings) -> list[dict[str, Any]]:
    """Every profile, from the changelog, sorted by shopper; nothing in it depends on a clock or on batches."""
    table = await read_table(settings, "profiles")
    catalog = Catalog()
    catalog.apply(sorted((await read_table(settings, "catalog")).items()))
    keys = sorted(table)
    rows = unpack([decode_record(table[key])[0] for key in keys], PROFILE, PROFILE_VERSION)
    return [
        {"shopper": key.decode("utf-8", "replace"), **describe(row, catalog.names)}
        for key, row in zip(keys, rows, strict=True)
    ]


async def pages(settings: Settings, user: str | None) -> AsyncIterator[dict[str, Any]]:
    """Pages as they are published, for ever; with `user` only hers, the newest that there is first."""
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="latest")
    with connecting(settings):
        await consumer.start()
    try:
        topic = settings.prefix + "homepages"
        partitions = [TopicPartition(topic, p) for p in range(settings.partitions)]
        consumer.assign(partitions)
        # Where to go on is fixed before the past is read: a page published meanwhile comes twice, never not at all.
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
    """A page to read in a terminal: a line for each slot, its headline and items."""
    lines = [
        f"{page['user_key']}  version {page['version']}  {page['serving']['mode']}  {page['generated_at']}  "
        f"for event {page['trigger']['event_id']}"
    ]
    for slot in page["slots"]:
        lines.append(f"  {slot['slot']}: {slot['title']} ({slot['title_source']})")
        for item in slot["items"][:5]:
            name = (
                catalog.title(catalog.index.get(key64(item["item_id"])), locale) if item["item_id"] in catalog else ""
            )
            lines.append(
                f"    {item['position']:2d} {item['score']:.3f} {item['item_id']} {name}  [{item['reason']['code']}]"
            )
        if len(slot["items"]) > 5:
            lines.append(f"       and {len(slot['items']) - 5} more")
    return "\n".join(lines)
