"""Filling the topics from outside: events line by line, recorded clickstreams, the catalogue."""

from __future__ import annotations

import asyncio
import codecs
import csv
import gzip
import io
import json
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from tqdm import tqdm

from deploy.failure import Failure
from stream.catalog import ItemError, decode_item
from stream.events import EARLIEST, KINDS, LATEST, TOPIC_KINDS, Behaviour, EventData, EventItem, encode
from stream.kafka.broadcast import read_table
from stream.kafka.connect import client_options, connecting, partition_of

if TYPE_CHECKING:
    from stream.settings import Settings

# Of one record; the brokers' own limit is 1 MiB with the record's frame.
RECORD_BYTES = 1_000_000
BATCH_BYTES = 256 * 1024
LINGER_MS = 5
CHUNK = 1 << 18
SHOWN_PROBLEMS = 20
COLUMNS = ("SessionId", "ItemId", "Time")
ID_LENGTH = 200  # of a session, so that with a prefix and a row it is still an id
_TOPIC_OF = {KINDS[kind]: topic for topic, kinds in TOPIC_KINDS.items() for kind in kinds}


class Sender:
    """Many records on their way at once. `put` returns when there is room, `finish` when all are acknowledged."""

    def __init__(self, producer: AIOKafkaProducer, prefix: str, partitions: dict[str, int], bar: tqdm[Any]) -> None:
        self._producer = producer
        self._prefix = prefix
        self._partitions = partitions
        self._bar = bar
        self._pending: set[asyncio.Future[Any]] = set()
        self._failure: BaseException | None = None
        self.sent = 0

    async def put(self, topic: str, key: bytes | None, value: bytes) -> None:
        """Raises the Kafka error of an earlier record that failed."""
        if self._failure is not None:
            raise self._failure
        count = self._partitions[topic]
        # A record without a key is a reject to be; they take turns, so that none of the partitions gets them all.
        partition = partition_of(key, count) if key is not None else self.sent % count
        future = await self._producer.send(self._prefix + topic, value, key=key, partition=partition)
        self._pending.add(future)
        future.add_done_callback(self._done)
        self.sent += 1

    async def finish(self) -> None:
        """Raises the Kafka error of the first record that failed."""
        while self._pending:
            await asyncio.wait(self._pending)
        if self._failure is not None:
            raise self._failure

    def _done(self, future: asyncio.Future[Any]) -> None:
        self._pending.discard(future)
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self._bar.update()
        elif self._failure is None:
            self._failure = error


@asynccontextmanager
async def sending(settings: Settings, topics: Sequence[str], unit: str, total: int | None = None) -> AsyncIterator[Sender]:
    """A sender to `topics`, with its progress on stderr.

    Raises NoBroker, LookupError where a topic is missing.
    """
    producer = AIOKafkaProducer(
        **client_options(settings), acks="all", linger_ms=LINGER_MS, max_batch_size=BATCH_BYTES,
        max_request_size=RECORD_BYTES + 10_000,
    )  # fmt: skip
    try:
        with connecting(settings):
            await producer.start()
        # All topics at once, for to ask for one by name creates it where the cluster creates topics by itself.
        cluster = await producer.client.fetch_all_metadata()
        counts = {}
        for topic in topics:
            numbers = cluster.partitions_for_topic(settings.prefix + topic)
            if not numbers:
                name = settings.prefix + topic
                raise LookupError(f"topic '{name}' is missing; `shopwindow topics create` creates it")
            counts[topic] = len(numbers)
        with _bar(unit, total) as bar:
            sender = Sender(producer, settings.prefix, counts, bar)
            yield sender
            await sender.finish()
    finally:
        await producer.stop()


def _bar(unit: str, total: int | None) -> tqdm[Any]:
    # Where nobody looks, a line now and then is enough.
    return tqdm(total=total, unit=" " + unit, file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 5.0, leave=False)


# An event as it comes: what can be known of it without judging it.


class Seen(NamedTuple):
    topic: str  # logical
    key: bytes | None
    time: float | None  # s since the epoch
    items: list[str]


def look_at(line: bytes) -> Seen:
    """Where an event belongs, as far as its line says so. Whatever is wrong with it is for the worker to say."""
    try:
        event = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        event = None
    if not isinstance(event, dict):
        return Seen("clicks", None, None, [])
    data = event.get("data")
    if not isinstance(data, dict):
        data = {}
    shopper = data.get("user_id") or data.get("anonymous_id")
    key = shopper.encode("utf-8", "surrogatepass") if isinstance(shopper, str) else None
    kind, items = event.get("type"), data.get("items")
    ids = [item.get("item_id") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    try:
        at = _seconds(event.get("time"))
    except ValueError:
        at = None
    topic = _TOPIC_OF.get(kind, "clicks") if isinstance(kind, str) else "clicks"
    return Seen(topic, key, at, [item for item in ids if isinstance(item, str) and item])


def _seconds(text: object) -> float:
    """Epoch seconds or ISO 8601 (without a zone: UTC) as seconds since the epoch. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError
    try:
        found = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
            found = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except OverflowError:
            raise ValueError from None
    if not EARLIEST <= found <= LATEST:
        raise ValueError
    return found


# shopwindow send


async def send(settings: Settings, path: str) -> int:
    """Every line of the file, or of stdin for "-", to the topic of its type. -> exit status."""
    file = 0 if path == "-" else os.open(path, os.O_RDONLY)
    started = time.monotonic()
    too_long: list[int] = []
    number = 0
    try:
        async with sending(settings, list(TOPIC_KINDS), "events") as sender:
            async for line in _lines(file):
                number += 1
                if len(line) > RECORD_BYTES:
                    too_long.append(number)
                    continue
                seen = look_at(line)
                await sender.put(seen.topic, seen.key, line)
    finally:
        if file:
            os.close(file)
    print(f"{sender.sent} events acknowledged in {time.monotonic() - started:.1f} s")
    if too_long:
        raise Failure(
            f"{len(too_long)} lines were left out ({_listed(too_long)}): longer than {RECORD_BYTES} bytes, which no "
            "event is; check the file"
        )
    return 0


async def _lines(file: int) -> AsyncIterator[bytes]:
    """Lines of a file descriptor as they come, without their ends.

    A thread reads, for a pipe may be silent for hours; a daemon on the bare descriptor, for nobody can wake it when
    we are told to stop.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue(4)

    def pump() -> None:
        chunk: bytes | OSError = b"-"
        while chunk and isinstance(chunk, bytes):
            try:
                chunk = os.read(file, CHUNK)
            except OSError as error:
                chunk = error
            try:
                asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()
            except RuntimeError:
                return  # the loop has ended before us

    threading.Thread(target=pump, daemon=True).start()
    rest = b""
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise chunk
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    return f"{'line' if len(numbers) == 1 else 'lines'} {shown}{', ...' if len(numbers) > 5 else ''}"


def _content(path: str) -> bytes:
    """The whole file, unpacked where it is gzip. Raises OSError, Failure where the gzip is torn."""
    content = Path(path).read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise Failure(f"{path} is a torn gzip file ({error}); copy it again") from None


# shopwindow catalog load


async def load_catalog(settings: Settings, path: str, skip_bad: bool) -> int:
    """Check every item of the file, then send them all. -> exit status.

    Raises Failure where an item is bad and `skip_bad` is not asked for: then nothing is sent.
    """
    good: list[tuple[bytes, bytes]] = []
    problems = []
    count = 0
    for count, (place, value) in enumerate(_items(path), 1):
        try:
            item = decode_item(None, value)
            if len(value) > RECORD_BYTES:
                raise ItemError("value", f"the item has {len(value)} bytes, at most {RECORD_BYTES} are allowed")
            good.append((item.item_id.encode("utf-8", "surrogatepass"), value))
        except ItemError as error:
            problems.append(f"{place}: {error.message}")
    for problem in problems[:SHOWN_PROBLEMS]:
        print(problem, file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"and {len(problems) - SHOWN_PROBLEMS} more", file=sys.stderr)
    if problems and not skip_bad:
        raise Failure(
            f"{len(problems)} of {count} items in {path} are bad, nothing was loaded; mend them, or leave them out: --skip-bad"
        )
    async with sending(settings, ["catalog"], "items", len(good)) as sender:
        for key, value in good:
            await sender.put("catalog", key, value)
    print(f"{sender.sent} items loaded" + (f", {len(problems)} left out" if problems else ""))
    return 0


def _items(path: str) -> Iterator[tuple[str, bytes]]:
    """(place in the file, JSON) of each item: elements of an array, or lines that are not blank."""
    content = _content(path).removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"["):
        try:
            elements = msgspec.json.decode(content, type=list[msgspec.Raw])
        except (msgspec.DecodeError, RecursionError) as error:
            raise Failure(f"{path} is no JSON array ({error}); write one item a line, or mend it") from None
        yield from ((f"item {number}", bytes(element)) for number, element in enumerate(elements, 1))
    else:
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield f"line {number}", line


# shopwindow replay


class Replayed(NamedTuple):
    seen: Seen
    value: bytes


async def replay(
    settings: Settings, path: str, speed: float | None, limit: int | None, add_items: bool, prefix: str
) -> int:
    """Send what the file recorded, in its order of time; `speed` None: as fast as it goes. -> exit status."""
    started = time.monotonic()
    content = _content(path).removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"{"):
        if prefix:
            raise Failure(f"{path} holds events, which name their shoppers themselves; --prefix-user is for clickstreams")
        lines = [line.removesuffix(b"\r") for line in content.removesuffix(b"\n").split(b"\n")][:limit]
        long = [number for number, line in enumerate(lines, 1) if len(line) > RECORD_BYTES]
        if long:
            raise Failure(f"{path}, {_listed(long)}: longer than {RECORD_BYTES} bytes, which no event is; nothing was sent")
        total = len(lines)
        events = (Replayed(look_at(line), line) for line in lines)
    else:
        clicks = read_clickstream(content, path)[:limit]
        total = len(clicks)
        events = (click.event(prefix) for click in clicks)
    if not total:
        raise Failure(f"{path} holds no events")
    if add_items:
        kept = list(events)
        await _add_items(settings, [item for event in kept for item in event.seen.items])
        events = iter(kept)
    shoppers = set()
    async with sending(settings, list(TOPIC_KINDS), "events", total) as sender:
        pace = _Pace(speed)
        for event in events:
            if speed is not None:
                await pace.wait(event.seen.time)
            await sender.put(event.seen.topic, event.seen.key, event.value)
            shoppers.add(event.seen.key)
    print(f"{sender.sent} events of {len(shoppers - {None})} shoppers acknowledged in {time.monotonic() - started:.1f} s")
    return 0


class _Pace:
    """Waits until an event is due: its distance from the first, divided by the speed."""

    def __init__(self, speed: float | None) -> None:
        self._speed = speed or 1.0
        self._first: float | None = None
        self._began = time.monotonic()

    async def wait(self, at: float | None) -> None:
        if at is None:
            return
        if self._first is None:
            self._first = at
        ahead = self._began + (at - self._first) / self._speed - time.monotonic()
        if ahead > 0:
            await asyncio.sleep(ahead)


class Click(NamedTuple):
    time: float  # s since the epoch
    session: str
    item: str
    row: int  # of the file, from 1, the header left out

    def event(self, prefix: str) -> Replayed:
        """The same bytes for the same row, so that a replay done twice counts once."""
        shopper = prefix + self.session
        value = encode(
            Behaviour(
                id=f"{self.session}-{self.row}",
                type="view_item",
                time=datetime.fromtimestamp(self.time, UTC),
                source="replay",
                data=EventData(anonymous_id=shopper, session_id=self.session, items=[EventItem(self.item)]),
            )
        )
        return Replayed(Seen("clicks", shopper.encode(), self.time, [self.item]), value)


def read_clickstream(content: bytes, name: str) -> list[Click]:
    """Rows of a TSV or CSV with SessionId, ItemId and Time, in order of time; rows of one time in the file's order.

    Raises Failure for the first row that cannot be read.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{name} is not UTF-8 text (byte {error.start}); expected a clickstream or JSON lines") from None
    header = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max("\t,;", key=header.count))
    clicks = []
    row = 0
    try:
        names = [column.strip().lower() for column in next(rows, [])]
        missing = [column for column in COLUMNS if column.lower() not in names]
        if missing:
            raise Failure(
                f"{name} has no column {' and '.join(missing)} in its header {header.strip()[:80]!r}; "
                "expected SessionId, ItemId and Time, or events as JSON lines"
            )
        at_session, at_item, at_time = (names.index(column.lower()) for column in COLUMNS)
        for row, values in enumerate(rows, 1):
            if values:
                session, item, moment = values[at_session].strip(), values[at_item].strip(), values[at_time]
                if not (0 < len(session) <= ID_LENGTH and 0 < len(item) <= ID_LENGTH):
                    raise Failure(f"{name}, row {row}: SessionId and ItemId need 1 to {ID_LENGTH} characters, nothing was sent")
                clicks.append(Click(_seconds(moment), session, item, row))
    except IndexError:
        raise Failure(f"{name}, row {row}: expected {len(names)} columns, nothing was sent") from None
    except csv.Error as error:
        raise Failure(f"{name}, row {row + 1}: {error}; nothing was sent") from None
    except ValueError:
        raise Failure(
            f"{name}, row {row}: Time is {moment[:40]!r}, expected seconds since 1970 or ISO 8601, from 2000 to 2038; "
            "nothing was sent"
        ) from None
    return sorted(clicks, key=lambda click: click.time)


async def _add_items(settings: Settings, items: Iterable[str]) -> None:
    """Put the items that the catalogue does not know into it, and wait until it has them."""
    known = await read_table(settings, "catalog")
    new = [item for item in dict.fromkeys(items) if item.encode("utf-8", "surrogatepass") not in known]
    async with sending(settings, ["catalog"], "items", len(new)) as sender:
        for item in new:
            value = json.dumps({"item_id": item, "title": re.sub(r"\s+", " ", item)[:ID_LENGTH]}).encode()
            await sender.put("catalog", item.encode("utf-8", "surrogatepass"), value)
    print(f"{sender.sent} items added to the catalogue")
