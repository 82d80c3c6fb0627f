"""Send records to the topics, and events that were checked first."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from deploy.io.event_check import BadEvents, EventCheck, NumberedRecord
from deploy.io.files import InputError, Outgoing, event_records, open_text
from stream.kafka.client.connection import (
    NoBroker,
    bootstrap,
    client_options,
    connecting,
    partition_of,
    stop_client,
)
from stream.kafka.commit import changelog_bytes
from stream.kafka.topics import BATCH_LIMIT, DEFAULT_BATCH_LIMIT, inspect
from stream.settings import Settings

MAX_IN_FLIGHT = 5_000  # records sent and not yet acknowledged
LINGER_MS = 5
MAX_REQUEST_BYTES = 64 << 20  # the topics' limits decide, not the client's
ACKNOWLEDGE_TIMEOUT_S = 30.0  # without any acknowledgement while records wait for one; a broker restarts in 5 to 15 s
CHECK_INTERVAL_S = 0.5
CHECKED_TOGETHER = 1_000  # events of a file


class Sender:
    """A producer with many sends in flight; `acknowledged` waits for all of them."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer, batch_limits: Mapping[str, int]) -> None:
        self._settings, self._producer, self._batch_limits = settings, producer, batch_limits
        self._pending: deque[asyncio.Future[Any]] = deque()
        self.sent = 0

    def refusal(self, record: Outgoing) -> str | None:
        """Why Kafka would refuse the record for its size; None if it takes it."""
        size = changelog_bytes([(record.key or b"", record.value)])
        limit = self._batch_limits.get(record.topic, DEFAULT_BATCH_LIMIT)
        if size <= limit:
            return None
        name = self._settings.prefix + record.topic
        return f"has {size} bytes as a record, and topic '{name}' takes at most {limit} ({BATCH_LIMIT})"

    async def send(self, record: Outgoing) -> None:
        """Send a record to the partition of its key.

        Raises InputError if it is too large, and the Kafka error of an earlier send that failed.
        """
        if refusal := self.refusal(record):
            raise InputError(f"the record with the key {(record.key or b'')[:80]!r} {refusal}")
        partition = partition_of(record.key or b"", self._settings.partitions)
        await self._send(record.topic, record.key, record.value, partition)

    async def delete(self, topic: str, key: bytes, partition: int) -> None:
        """Send a tombstone, which deletes a key from a partition of a compacted topic. Raises as `send` does."""
        await self._send(topic, key, None, partition)

    async def _send(self, topic: str, key: bytes | None, value: bytes | None, partition: int) -> None:
        sent = await self._producer.send(self._settings.prefix + topic, value, key=key, partition=partition)
        self.sent += 1
        self._pending.append(sent)
        while len(self._pending) > MAX_IN_FLIGHT:
            await self._settle_oldest()

    async def acknowledged(self) -> None:
        while self._pending:
            await self._settle_oldest()

    async def _settle_oldest(self) -> None:
        # It stays in the queue while it waits, so that `unacknowledged` counts it.
        if not self._pending[0].done():
            await asyncio.wait([self._pending[0]])
        self._pending[0].result()
        self._pending.popleft()

    @property
    def unacknowledged(self) -> int:
        """How many records have been sent and not acknowledged."""
        return sum(not sent.done() or sent.exception() is not None for sent in self._pending)

    def abandon(self) -> None:
        """Expect no acknowledgement any more: errors of earlier sends are not reported."""
        for sent in self._pending:
            sent.cancel()
            sent.add_done_callback(lambda sent: sent.cancelled() or sent.exception())

    async def stalled(self) -> None:
        """Return once no record has been acknowledged for ACKNOWLEDGE_TIMEOUT_S although some wait."""
        last, since = -1, monotonic()
        while monotonic() - since < ACKNOWLEDGE_TIMEOUT_S:
            await asyncio.sleep(CHECK_INTERVAL_S)
            waiting = self.unacknowledged
            done = self.sent - waiting
            if done != last or not waiting:
                last, since = done, monotonic()


@asynccontextmanager
async def sender(settings: Settings) -> AsyncIterator[Sender]:
    """Open a producer. All its records are acknowledged when the block ends.

    Raises NoBroker, also if Kafka is lost in the block, and InputError if the topics do not fit the settings.
    """
    producer = AIOKafkaProducer(
        **client_options(settings), linger_ms=LINGER_MS, acks="all", max_request_size=MAX_REQUEST_BYTES,
        request_timeout_ms=int(2 * ACKNOWLEDGE_TIMEOUT_S * 1000),  # so that ours comes first
    )  # fmt: skip
    client: Sender | None = None
    try:
        with connecting(settings):
            await producer.start()
        found = await inspect(settings)
        _check_partitions(settings, found.partitions)
        client = Sender(settings, producer, found.batch_limits)
        async with _ending_when_stalled(client, settings):
            yield client
            await client.acknowledged()
    except BaseException:
        # What is not acknowledged would be retried for as long as the brokers are down.
        if client is not None:
            client.abandon()
        raise
    finally:
        await stop_client(producer)


@asynccontextmanager
async def _ending_when_stalled(client: Sender, settings: Settings) -> AsyncIterator[None]:
    """Raise NoBroker in the block once the client stalls, or if Kafka refuses a record."""
    stall = asyncio.create_task(client.stalled())
    try:
        async with asyncio.timeout(None) as deadline:
            stall.add_done_callback(lambda task: None if task.cancelled() else deadline.reschedule(0.0))
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise NoBroker(_lost(client, settings, f"has acknowledged nothing for {ACKNOWLEDGE_TIMEOUT_S:.0f} s")) from None
    except KafkaError as error:
        raise NoBroker(_lost(client, settings, f"did not acknowledge a record ({error})")) from error
    finally:
        stall.cancel()


def _lost(client: Sender, settings: Settings, problem: str) -> str:
    waiting = client.unacknowledged
    return (
        f"Kafka at {', '.join(bootstrap(settings))} {problem}; {client.sent - waiting} of {client.sent} records were "
        "acknowledged, the others may have arrived. Check that Kafka runs, and send again: events with the same id "
        "count once"
    )


def _check_partitions(settings: Settings, partitions: Mapping[str, int]) -> None:
    """Raise InputError if the topics do not fit the settings. partitions: their number, by logical topic."""
    for topic in ("clicks", "catalog", "profiles"):
        name, count = settings.prefix + topic, partitions.get(topic, 0)
        if count == 0:
            raise InputError(f"topic '{name}' is missing; create the topics: shopwindow topics create")
        # The topics of events may have grown; workers read the first partitions, as many as `profiles` has.
        if count < settings.partitions or (topic == "profiles" and count > settings.partitions):
            raise InputError(
                f"topic '{name}' has {count} partitions, SHOPWINDOW_PARTITIONS is {settings.partitions}; "
                f"set it to {count}"
            )


class Sent(NamedTuple):
    """What `send_events` did."""

    events: int  # that were sent and acknowledged
    check: EventCheck
    too_large: list[str]  # a message for each event that Kafka does not take


async def send_events(settings: Settings, path: str, bad: BadEvents) -> Sent:
    """Send the events of a file of JSON lines. `bad`: what becomes of those that workers would refuse.

    With REFUSE a file is checked as a whole before anything is sent. A pipe can be read only once: there each good line
    is sent as it arrives, whatever else the pipe brings. Raises InputError if the file is empty or cannot be read.
    """
    check, sent, too_large = EventCheck(settings), 0, list[str]()
    is_file = path != "-" and Path(path).is_file()
    is_checked = is_file and bad is BadEvents.REFUSE
    if is_checked:
        async for records in _numbered_records(path, CHECKED_TOGETHER):
            check.good(records)
        if not check.checked:
            raise InputError(f"{path} is empty; expected JSON lines of events")
        if check.refused:
            return Sent(0, check, [])
    async with sender(settings) as client:
        async for records in _numbered_records(path, CHECKED_TOGETHER if is_file else 1):
            good = records if is_checked else check.good(records)
            for line, record in records if bad is BadEvents.SEND else good:
                if refusal := client.refusal(record):
                    too_large.append(f"{path}, line {line} {refusal}; left out")
                    continue
                await client.send(record)
                sent += 1
    return Sent(sent, check, too_large)


async def _numbered_records(path: str, size: int) -> AsyncIterator[list[NumberedRecord]]:
    """Yield the events of a file in lists of at most `size`, with their lines."""
    number, waiting = 0, list[NumberedRecord]()
    async for line in _lines(path):
        number += 1
        waiting += (NumberedRecord(number, record) for record in event_records([line]))
        if len(waiting) >= size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


async def _lines(path: str) -> AsyncIterator[str]:
    """Yield the lines of a file, or of stdin as they arrive.

    A live pipe must not delay lines that are already written, and must not block Ctrl-C.
    """
    if path != "-":
        with open_text(path) as file:
            for line in file:
                yield line
        return
    lines: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_IN_FLIGHT)
    loop = asyncio.get_running_loop()

    def read() -> None:
        # Not sys.stdin: the interpreter closes it at its end, and aborts if this thread waits in it.
        for line in open(0, "rb", closefd=False):  # noqa: SIM115
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
        asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()

    # A daemon thread: the interpreter does not wait for a pipe that nobody closes.
    threading.Thread(target=read, daemon=True).start()
    while (raw := await lines.get()) is not None:
        yield raw.decode("utf-8", "surrogateescape")
