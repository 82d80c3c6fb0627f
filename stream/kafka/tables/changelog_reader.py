"""Reading changelogs: a client of its own, outside of the group, that takes whole record batches.

Kafka Streams has a restore consumer for the same reasons: tables are read while nothing else is, by the million, and
standby copies are kept current without holding up the clicks.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    OffsetOutOfRangeError,
)
from aiokafka.record.default_records import DefaultRecordBatch
from faust.types import TP

from stream.kafka.client.brokers import ask, client_of, know
from stream.kafka.client.connection import NoBroker
from stream.kafka.client.record_batch import (
    ATTRIBUTES,
    COMPRESSED,
    CONTROL,
    END,
    NEXT,
    OFFSET,
    START,
    cut,
    locate,
    walk,
    wrong_checksum,
)

if TYPE_CHECKING:
    from stream.settings import Settings

WAIT_MS = 250  # how long the broker holds a fetch that finds nothing
RETRY = 0.1  # s


class Stretch(NamedTuple):
    """Records of one changelog partition, in order."""

    records: Sequence[tuple[bytes, bytes | None]]
    next_offset: int  # where the next fetch starts: compaction and control batches leave offsets without a record


class ChangelogReader:
    """Fetches from where it is told; keeps no position. Connects at the first fetch, reconnects by itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AIOKafkaClient | None = None

    async def fetch(self, wanted: Mapping[TP, int], wait_ms: int = WAIT_MS) -> dict[TP, Stretch]:
        """What there is from the wanted offsets on, of some partitions, some megabytes each; nothing after `wait_ms`.

        Leaders that move are found again, brokers that are gone waited for. Raises OffsetOutOfRangeError where a log
        neither has an offset nor ends there, CorruptRecordException where a checksum is wrong.
        """
        try:
            client = await self._connected({tp.topic for tp in wanted})
        except (NoBroker, KafkaError):
            await asyncio.sleep(RETRY)
            return {}
        by_node: defaultdict[int, dict[TP, int]] = defaultdict(dict)
        for tp, offset in wanted.items():
            leader = client.cluster.leader_for_partition(TopicPartition(*tp))
            if leader is not None and leader >= 0:
                by_node[leader][tp] = offset
        found: dict[TP, Stretch] = {}
        answers = await asyncio.gather(*(self._ask(client, node, some, wait_ms) for node, some in by_node.items()))
        for answer in answers:
            found |= answer
        if len(by_node) == 0 or any(answer is _LOST for answer in answers):
            await asyncio.sleep(RETRY)
            await client.force_metadata_update()
        return found

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _connected(self, topics: set[str]) -> AIOKafkaClient:
        if self._client is None:
            self._client = await client_of(self._settings)
        await know(self._client, topics)
        return self._client

    async def _ask(
        self, client: AIOKafkaClient, node: int, wanted: Mapping[TP, int], wait_ms: int
    ) -> dict[TP, Stretch]:
        answers = await ask(client, node, wanted, wait_ms)
        found: dict[TP, Stretch] = {}
        for tp, error, _, data in answers or ():
            if error is not None and error is OffsetOutOfRangeError:
                raise error(f"partition {tp.partition} of '{tp.topic}' has nothing at offset {wanted[tp]} any more")
            if error is not None:
                return _LOST
            if data:
                found[tp] = read(data, wanted[tp])
        return _LOST if answers is None else found


_LOST: dict[TP, Stretch] = {}  # an answer that asks to look for the leaders again


def read(data: bytes, start: int) -> Stretch:
    """The records of a fetch from offset `start` on. Raises CorruptRecordException, ValueError for torn batches."""
    batches = walk(data)
    if not len(batches.rows):
        return Stretch((), start)
    wrong = wrong_checksum(batches)
    if wrong >= 0:
        raise CorruptRecordException(f"the batch before offset {batches.rows[wrong, NEXT]} has a wrong checksum")
    following = max(start, int(batches.rows[-1, NEXT]))
    if (batches.rows[:, ATTRIBUTES] & COMPRESSED).any():
        return Stretch(_unpacked(memoryview(data), batches.rows.tolist(), start), following)
    located = locate(batches)
    if len(located) and located[0, OFFSET] < start:
        located = located[np.searchsorted(located[:, OFFSET], start) :]
    return Stretch(cut(data, located), following)


def _unpacked(view: memoryview, batches: list[list[int]], start: int) -> list[tuple[bytes, bytes | None]]:
    """The slow way, for a changelog that its topic has compressed."""
    found: list[tuple[bytes, bytes | None]] = []
    for batch in batches:
        if not batch[ATTRIBUTES] & CONTROL:
            records: Any = DefaultRecordBatch(bytes(view[batch[START] : batch[END]]))
            found.extend((record.key or b"", record.value) for record in records if record.offset >= start)
    return found
