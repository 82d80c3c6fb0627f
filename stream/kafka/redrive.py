"""Dead letters sent back to where they came from, each of them once.

What has been sent is kept in the topic `redrives`, a log that every operator appends to and reads. For some hundred
letters at a time:

1. a claim for each letter is appended, with the end that its source partition has now;
2. the log is read to its end: of several claims the first one holds, so two operators never send the same letter;
3. the letters whose claim is ours are sent to their source, and acknowledged;
4. "done" is appended for each.

Who dies between 3 and 4 leaves a claim without an end. After EXPIRES another may take it over, and then reads the source
from the end that the first claim noted: a record that names the letter was sent, and is not sent again. The broker's
clock dates the log (LogAppendTime), so operators' clocks do not matter; an operator who is held up for longer than
PATIENCE gives up.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from stream.kafka.client.connection import client_options, connecting, partition_of
from stream.kafka.dead_letters import REDRIVEN, DeadLetter, RedriveOrigin, redriven
from stream.kafka.global_topics import assign, connected, to_end
from stream.kafka.topics import DEAD_LETTER_BYTES

if TYPE_CHECKING:
    from stream.settings import Settings

EXPIRES = 120.0  # s after which a claim that was never done may be taken over
PATIENCE = EXPIRES / 2  # s in which claimed letters are sent, or given up
AT_ONCE = 200  # letters


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the log; its key is the letter's id."""

    by: str  # of one run of the command
    end: int = -1  # of a claim: the next offset of the letter's source partition; -1: done


class _Entry(NamedTuple):
    """What the log says of a letter."""

    by: str
    at: float  # s since the epoch, by the broker's clock
    since: int  # offset in the source from which the letter may lie there
    taken_over: bool
    done: bool


class Sent(NamedTuple):
    sent: list[DeadLetter]
    found: list[DeadLetter]  # were sent before by an operator who could not note it
    held: list[DeadLetter]  # are another operator's


class Ledger:
    """The log `redrives`, read up to its end by `catch_up`; made by `ledger`."""

    def __init__(self, consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition]) -> None:
        self._consumer, self._partitions = consumer, partitions
        self._entries: dict[str, _Entry] = {}

    async def catch_up(self) -> None:
        ends = dict(await self._consumer.end_offsets(self._partitions))
        async for records in to_end(self._consumer, ends, None):
            for record in records:
                self._note(record.key.decode(), record.timestamp / 1000, msgspec.json.decode(record.value, type=_Line))

    def done(self, letter: str) -> float | None:
        """When (s since the epoch) the letter was sent again; None where it was not."""
        entry = self._entries.get(letter)
        return entry.at if entry is not None and entry.done else None

    def entry(self, letter: str) -> _Entry:
        """Raises KeyError where nobody has claimed it."""
        return self._entries[letter]

    def _note(self, letter: str, at: float, line: _Line) -> None:
        known = self._entries.get(letter)
        if known is None:
            self._entries[letter] = _Entry(line.by, at, line.end, False, line.end < 0)
        elif known.done:
            return
        elif line.end < 0:
            self._entries[letter] = known._replace(at=at, done=True)
        elif at - known.at > EXPIRES:
            self._entries[letter] = _Entry(line.by, at, known.since, True, False)


@asynccontextmanager
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """What has been sent again so far. Raises NoBroker, LookupError where the topic is missing."""
    consumer = await connected(settings)
    try:
        ends = await assign(consumer, [settings.prefix + "redrives"])
        log = Ledger(consumer, list(ends))
        await log.catch_up()
        yield log
    finally:
        await consumer.stop()


def home_of(letter: DeadLetter, partitions: int) -> int:
    """The partition of its source topic that its key has; a record without a key goes back to where it was."""
    return max(0, letter.partition) if letter.key is None else partition_of(letter.key, partitions)


def again(letter: DeadLetter) -> list[tuple[str, bytes]]:
    """The headers with which a letter goes back: its producer's own, and what is to be kept of its history."""
    history = RedriveOrigin(letter.id, letter.topic, letter.partition, letter.offset, letter.attempts)
    return [*letter.headers, (REDRIVEN, msgspec.json.encode(history))]


async def redrive(settings: Settings, letters: Sequence[DeadLetter], log: Ledger) -> Sent:
    """Send the letters back with their original key and bytes, those of them that nobody has sent or claimed.

    Returns when all are acknowledged and noted. Raises NoBroker, LookupError where a source topic is missing,
    TimeoutError where the broker does not take them in time (then nothing is known of the last AT_ONCE letters; they are
    found or sent by the next call after EXPIRES), or the Kafka error of a send.
    """
    result = Sent([], [], [])
    reader = await connected(settings)
    producer = AIOKafkaProducer(
        **client_options(settings), enable_idempotence=True, acks="all", max_request_size=DEAD_LETTER_BYTES,
        request_timeout_ms=int(PATIENCE / 2 * 1000),
    )  # fmt: skip
    try:
        with connecting(settings):
            await producer.start()
        for start in range(0, len(letters), AT_ONCE):
            some = letters[start : start + AT_ONCE]
            try:
                async with asyncio.timeout(PATIENCE):
                    await _redrive_some(settings, some, log, producer, reader, result)
            except TimeoutError:
                raise TimeoutError(
                    f"the broker did not take {len(some)} letters within {PATIENCE:.0f} s, some may have been sent; "
                    f"run the command again in {EXPIRES:.0f} s, it sends what was not"
                ) from None
    finally:
        await asyncio.gather(producer.stop(), reader.stop())
    return result


async def _redrive_some(
    settings: Settings, letters: Sequence[DeadLetter], log: Ledger, producer: AIOKafkaProducer, reader: AIOKafkaConsumer,
    result: Sent,
) -> None:  # fmt: skip
    me = uuid.uuid4().hex
    homes = {
        letter.id: TopicPartition(settings.prefix + letter.topic, home_of(letter, settings.partitions))
        for letter in letters
    }
    await assign(reader, sorted({home.topic for home in homes.values()}))
    ends = await reader.end_offsets(list(set(homes.values())))

    async def note(these: Sequence[DeadLetter], done: bool) -> None:
        lines = [
            (letter.id.encode(), msgspec.json.encode(_Line(me, -1 if done else ends[homes[letter.id]])))
            for letter in these
        ]
        await _all(
            [
                await producer.send(
                    settings.prefix + "redrives", value, key=key, partition=partition_of(key, settings.partitions)
                )
                for key, value in lines
            ]
        )

    await note(letters, done=False)
    await log.catch_up()
    mine = [letter for letter in letters if log.entry(letter.id).by == me and log.done(letter.id) is None]
    held = {letter.id for letter in letters} - {letter.id for letter in mine}
    there: set[str] = set()
    orphans = [letter.id for letter in mine if log.entry(letter.id).taken_over]
    if orphans:
        there = await _sent_before({id: (homes[id], log.entry(id).since) for id in orphans}, reader)
    sends = [letter for letter in mine if letter.id not in there]
    await _all(
        [
            await producer.send(
                homes[letter.id].topic, letter.value, key=letter.key, partition=homes[letter.id].partition,
                headers=again(letter),
            )
            for letter in sends
        ]
    )  # fmt: skip
    await note(mine, done=True)
    result.sent.extend(sends)
    result.found.extend(letter for letter in mine if letter.id in there)
    result.held.extend(letter for letter in letters if letter.id in held)


async def _all(sent: Sequence[Any]) -> None:
    for acknowledged in sent:
        await acknowledged


async def _sent_before(claims: dict[str, tuple[TopicPartition, int]], reader: AIOKafkaConsumer) -> set[str]:
    """Those of the claimed letters (id -> source partition, offset from which to look) that lie in their source."""
    since: dict[TopicPartition, int] = {}
    for home, offset in claims.values():
        since[home] = min(since.get(home, offset), offset)
    reader.assign(list(since))
    for home, offset in since.items():
        reader.seek(home, offset)
    there = set()
    async for records in to_end(reader, dict(await reader.end_offsets(list(since))), None):
        for record in records:
            history = redriven(record.headers)
            if history is not None and history.letter in claims:
                there.add(history.letter)
    return there
