"""Sends dead letters back to their source topics, each of them once.

The topic `redrives` is a log of what has been sent; every operator appends to it and reads it. For REDRIVE_BATCH
letters at a time:

1. append a claim for each letter, with the current end of its source partition;
2. read the log to its end: of several claims the first is valid, so two operators never send the same letter;
3. send the letters with a valid claim of ours to their source, and wait for the acknowledgements;
4. append "done" for each.

An operator that dies between steps 3 and 4 leaves an open claim. After CLAIM_EXPIRY_S another may take it over. It
then reads the source from the end that the first claim noted: a record that names the letter was sent, and is not
sent again. The broker's clock dates the log (LogAppendTime), so the operators' clocks do not matter. An operator that
is delayed for longer than SEND_TIMEOUT_S gives up.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from stream.kafka.client.connection import client_options, connecting, partition_of, stop_client
from stream.kafka.dead_letters import REDRIVEN, DeadLetter, RedriveOrigin, redrive_origin
from stream.kafka.global_topics import assign, connect_reader, read_to_end
from stream.kafka.topics import MAX_CHANGELOG_BYTES

if TYPE_CHECKING:
    from stream.settings import Settings

TOPIC = "redrives"
CLAIM_EXPIRY_S = 120.0  # after which a claim that is not done may be taken over
SEND_TIMEOUT_S = CLAIM_EXPIRY_S / 2  # in which claimed letters must be sent
REDRIVE_BATCH = 200  # letters
# Letters are sent without transactions. A transaction of another producer that is still open must not hide one.
ISOLATION = "read_uncommitted"
DONE = -1  # in a log line, instead of an end


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the log; its key is the letter's id."""

    by: str  # id of one run of the command
    end: int = DONE  # in a claim: the next offset of the letter's source partition


class _Entry(NamedTuple):
    """The state of a letter according to the log."""

    by: str
    at: float  # seconds since the epoch, by the broker's clock
    since: int  # offset in the source from which the letter may be found there
    is_taken_over: bool
    is_done: bool


class RedriveResult(NamedTuple):
    sent: list[DeadLetter]
    found: list[DeadLetter]  # already sent by an operator that could not note it
    held: list[DeadLetter]  # claimed by another operator


class RedriveLog:
    """The topic `redrives`, read to its end by `catch_up`; open it with `open_redrive_log`."""

    def __init__(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        self._consumer, self._partitions = consumer, partitions
        self._entries: dict[str, _Entry] = {}

    async def catch_up(self) -> None:
        """Read what was appended since the last call."""
        ends = dict(await self._consumer.end_offsets(self._partitions))
        async for records in read_to_end(self._consumer, ends, None):
            for record in records:
                self._note(record.key.decode(), record.timestamp / 1000, msgspec.json.decode(record.value, type=_Line))

    def done(self, letter: str) -> float | None:
        """When (s since the epoch) the letter was sent back; None if it was not."""
        entry = self._entries.get(letter)
        return entry.at if entry is not None and entry.is_done else None

    def entry(self, letter: str) -> _Entry:
        """The letter's state. Raises KeyError if nobody has claimed it."""
        return self._entries[letter]

    def _note(self, letter: str, at: float, line: _Line) -> None:
        known = self._entries.get(letter)
        if known is None:
            self._entries[letter] = _Entry(line.by, at, line.end, False, line.end < 0)
        elif known.is_done:
            return
        elif line.end < 0:
            self._entries[letter] = known._replace(at=at, is_done=True)
        elif at - known.at > CLAIM_EXPIRY_S:
            self._entries[letter] = _Entry(line.by, at, known.since, True, False)


@asynccontextmanager
async def open_redrive_log(settings: Settings) -> AsyncIterator[RedriveLog]:
    """Open the log, read to its end. Raises NoBroker, and LookupError if the topic is missing."""
    consumer = await connect_reader(settings, ISOLATION)
    try:
        ends = await assign(consumer, [settings.prefix + TOPIC])
        log = RedriveLog(consumer, list(ends))
        await log.catch_up()
        yield log
    finally:
        await stop_client(consumer)


def source_partition(letter: DeadLetter, partitions: int) -> int:
    """The partition of its source topic that a letter goes to: that of its key, or without a key its original one."""
    return max(0, letter.partition) if letter.key is None else partition_of(letter.key, partitions)


def redrive_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The headers of a letter that is sent back: its producer's own, and its history."""
    origin = RedriveOrigin(letter.id, letter.topic, letter.partition, letter.offset, letter.attempts)
    return [*letter.headers, (REDRIVEN, msgspec.json.encode(origin))]


async def redrive(settings: Settings, letters: Sequence[DeadLetter], log: RedriveLog) -> RedriveResult:
    """Send back those letters that nobody has sent or claimed, with their original key and bytes.

    Returns when all are acknowledged and noted. Raises NoBroker, LookupError if a source topic is missing, and the
    Kafka error of a send. Raises TimeoutError if the broker does not accept them in time. The outcome of the last
    REDRIVE_BATCH letters is then unknown; the next call after CLAIM_EXPIRY_S finds or sends them.
    """
    result = RedriveResult([], [], [])
    reader = await connect_reader(settings, ISOLATION)
    producer = AIOKafkaProducer(
        **client_options(settings), enable_idempotence=True, acks="all", max_request_size=MAX_CHANGELOG_BYTES,
        request_timeout_ms=int(SEND_TIMEOUT_S / 2 * 1000),
    )  # fmt: skip
    try:
        with connecting(settings):
            await producer.start()
        for start in range(0, len(letters), REDRIVE_BATCH):
            batch = letters[start : start + REDRIVE_BATCH]
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await _redrive_batch(settings, batch, log, producer, reader, result)
            except TimeoutError:
                raise TimeoutError(
                    f"the broker did not take {len(batch)} letters within {SEND_TIMEOUT_S:.0f} s, some may have been "
                    f"sent; run the command again in {CLAIM_EXPIRY_S:.0f} s, it sends what was not"
                ) from None
    finally:
        await asyncio.gather(stop_client(producer), stop_client(reader))
    return result


async def _redrive_batch(
    settings: Settings, letters: Sequence[DeadLetter], log: RedriveLog, producer: AIOKafkaProducer,
    reader: AIOKafkaConsumer, result: RedriveResult,
) -> None:  # fmt: skip
    """Take the four steps of the module docstring, and add their outcome to `result`."""
    operator = uuid.uuid4().hex
    sources = {
        letter.id: TopicPartition(settings.prefix + letter.topic, source_partition(letter, settings.partitions))
        for letter in letters
    }
    await assign(reader, sorted({source.topic for source in sources.values()}))
    ends = await reader.end_offsets(list(set(sources.values())))

    async def note(noted: Sequence[DeadLetter], is_done: bool) -> None:
        lines = [
            (letter.id.encode(), msgspec.json.encode(_Line(operator, DONE if is_done else ends[sources[letter.id]])))
            for letter in noted
        ]
        await _wait_acknowledged(
            [
                await producer.send(
                    settings.prefix + TOPIC, value, key=key, partition=partition_of(key, settings.partitions)
                )
                for key, value in lines
            ]
        )

    await note(letters, is_done=False)
    await log.catch_up()
    mine = [letter for letter in letters if log.entry(letter.id).by == operator and log.done(letter.id) is None]
    held = {letter.id for letter in letters} - {letter.id for letter in mine}
    found: set[str] = set()
    orphans = [letter.id for letter in mine if log.entry(letter.id).is_taken_over]
    if orphans:
        found = await _find_sent({id: (sources[id], log.entry(id).since) for id in orphans}, reader)
    unsent = [letter for letter in mine if letter.id not in found]
    await _wait_acknowledged(
        [
            await producer.send(
                sources[letter.id].topic, letter.value, key=letter.key, partition=sources[letter.id].partition,
                headers=redrive_headers(letter),
            )
            for letter in unsent
        ]
    )  # fmt: skip
    await note(mine, is_done=True)
    result.sent.extend(unsent)
    result.found.extend(letter for letter in mine if letter.id in found)
    result.held.extend(letter for letter in letters if letter.id in held)


async def _wait_acknowledged(sent: Sequence[Any]) -> None:
    for acknowledged in sent:
        await acknowledged


async def _find_sent(claims: dict[str, tuple[TopicPartition, int]], reader: AIOKafkaConsumer) -> set[str]:
    """Return those of the claimed letters that are in their source. `claims`: id -> source, offset to read from."""
    starts: dict[TopicPartition, int] = {}
    for source, offset in claims.values():
        starts[source] = min(starts.get(source, offset), offset)
    reader.assign(list(starts))
    for source, offset in starts.items():
        reader.seek(source, offset)
    found = set()
    async for records in read_to_end(reader, dict(await reader.end_offsets(list(starts))), None):
        for record in records:
            origin = redrive_origin(record.headers)
            if origin is not None and origin.letter in claims:
                found.add(origin.letter)
    return found
