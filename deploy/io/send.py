"""Send events and items to the topics."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer

from deploy.io.files import InputError, Outgoing, event_records, item_records, open_text
from stream.kafka.client.connection import client_options, connecting, partition_of
from stream.settings import Settings

MAX_RECORD_BYTES = 1_000_000  # The broker refuses 1 MiB, envelope included.
MAX_IN_FLIGHT = 5_000  # records sent and not yet acknowledged
LINGER_MS = 5


class Sender:
    """A producer with many sends in flight; `acknowledged` waits for all of them."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer) -> None:
        self._settings, self._producer = settings, producer
        self._pending: deque[asyncio.Future[Any]] = deque()

    async def send(self, record: Outgoing) -> None:
        """Send a record to the partition of its key. Raises the Kafka error of an earlier send that failed."""
        partition = partition_of(record.key or b"", self._settings.partitions)
        topic = self._settings.prefix + record.topic
        sent = await self._producer.send(topic, record.value, key=record.key, partition=partition)
        self._pending.append(sent)
        while len(self._pending) > MAX_IN_FLIGHT:
            await self._pending.popleft()

    async def acknowledged(self) -> None:
        while self._pending:
            await self._pending.popleft()


@asynccontextmanager
async def sender(settings: Settings) -> AsyncIterator[Sender]:
    """Open a producer. All its records are acknowledged when the block ends.

    Raises NoBroker, and InputError if the topics do not fit the settings.
    """
    producer = AIOKafkaProducer(**client_options(settings), linger_ms=LINGER_MS, acks="all")
    with connecting(settings):
        await producer.start()
    try:
        await _check_topics(settings, producer)
        client = Sender(settings, producer)
        yield client
        await client.acknowledged()
    finally:
        await producer.stop()


async def _check_topics(settings: Settings, producer: AIOKafkaProducer) -> None:
    metadata = await producer.client.fetch_all_metadata()
    for topic in ("clicks", "catalog"):
        name = settings.prefix + topic
        count = len(metadata.partitions_for_topic(name) or ())
        if count == 0:
            raise InputError(f"topic '{name}' is missing; create the topics: shopwindow topics create")
        if count != settings.partitions:
            raise InputError(
                f"topic '{name}' has {count} partitions, SHOPWINDOW_PARTITIONS is {settings.partitions}; "
                f"set it to {count}"
            )


async def send_events(settings: Settings, path: str) -> tuple[int, list[str]]:
    """Send the events of a file of JSON lines.

    Return how many were sent and acknowledged, and a message for each line that is too large to send.
    """
    count, number, problems = 0, 0, list[str]()
    async with sender(settings) as client:
        async for line in _lines(path):
            number += 1
            for record in event_records([line]):
                if len(record.value) > MAX_RECORD_BYTES:
                    problems.append(
                        f"{path}, line {number} has {len(record.value)} bytes, "
                        f"Kafka takes at most {MAX_RECORD_BYTES}; left out"
                    )
                    continue
                await client.send(record)
                count += 1
    return count, problems


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
        for line in sys.stdin.buffer:
            asyncio.run_coroutine_threadsafe(lines.put(line), loop).result()
        asyncio.run_coroutine_threadsafe(lines.put(None), loop).result()

    # A daemon thread: the interpreter does not wait for a pipe that nobody closes.
    threading.Thread(target=read, daemon=True).start()
    while (raw := await lines.get()) is not None:
        yield raw.decode("utf-8", "surrogateescape")


async def load_catalog(settings: Settings, path: str, skip_bad: bool) -> tuple[int, list[str]]:
    """Publish the items of a file: JSON lines or one array.

    Return how many were published, and a message for each bad item. Raises InputError if an item is bad and `skip_bad`
    is False: then nothing is published.
    """
    good, problems = item_records(path)
    if problems and not skip_bad:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{path}, {problems[0]}{more}; nothing was loaded, --skip-bad loads the good ones")
    async with sender(settings) as client:
        for record in good:
            await client.send(record)
    return len(good), [f"{path}, {problem}" for problem in problems]
