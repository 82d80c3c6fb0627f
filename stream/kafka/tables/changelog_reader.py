"""Reads changelogs, outside of the consumer group, as whole record batches.

Kafka Streams has a restore consumer for the same reasons. A table's changelog has millions of records and is read while
no other work is done. Standby copies are kept current without delaying the clicks.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from faust.types import TP

from stream.kafka.client.brokers import connect_client, fetch_partitions, track_topics
from stream.kafka.client.connection import NoBroker
from stream.kafka.client.record_batch import AbortedTransaction, parse_records

if TYPE_CHECKING:
    from stream.settings import Settings

FETCH_WAIT_MS = 250  # how long the broker holds a fetch while it has no record
RETRY_S = 0.1


class UnreadableChangelog(RuntimeError):
    """A record batch of a changelog cannot be read; the message says which, and what to do."""


class ChangelogRecords(NamedTuple):
    """Records of one changelog partition, in order."""

    records: Sequence[tuple[bytes, bytes | None]]
    next_offset: int  # where the next fetch starts: compaction and control batches leave offsets without a record


class ChangelogReader:
    """Fetches from given offsets; keeps no position. Connects at the first fetch, and reconnects as needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: AIOKafkaClient | None = None

    async def fetch(self, wanted: Mapping[TP, int], wait_ms: int = FETCH_WAIT_MS) -> dict[TP, ChangelogRecords]:
        """Fetch some megabytes of each partition, from the wanted offsets. Empty if nothing arrives within `wait_ms`.

        Finds leaders again after they move, and waits for brokers that are down. Raises OffsetOutOfRangeError if a log
        neither has an offset nor ends there, and UnreadableChangelog if a batch cannot be read.
        """
        try:
            client = await self._connected({tp.topic for tp in wanted})
        except (NoBroker, KafkaError):
            await asyncio.sleep(RETRY_S)
            return {}
        by_leader: defaultdict[int, dict[TP, int]] = defaultdict(dict)
        for tp, offset in wanted.items():
            leader = client.cluster.leader_for_partition(TopicPartition(*tp))
            if leader is not None and leader >= 0:
                by_leader[leader][tp] = offset
        fetched: dict[TP, ChangelogRecords] = {}
        answers = await asyncio.gather(
            *(self._fetch_from(client, leader, offsets, wait_ms) for leader, offsets in by_leader.items())
        )
        for answer in answers:
            fetched |= answer
        if len(by_leader) == 0 or any(answer is _LEADER_MOVED for answer in answers):
            await asyncio.sleep(RETRY_S)
            await client.force_metadata_update()
        return fetched

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _connected(self, topics: set[str]) -> AIOKafkaClient:
        if self._client is None:
            self._client = await connect_client(self._settings)
        await track_topics(self._client, topics)
        return self._client

    async def _fetch_from(
        self, client: AIOKafkaClient, leader: int, wanted: Mapping[TP, int], wait_ms: int
    ) -> dict[TP, ChangelogRecords]:
        """Fetch from one broker. Return `_LEADER_MOVED` if it does not answer, or no longer leads a partition."""
        partitions = await fetch_partitions(client, leader, wanted, wait_ms, self._settings.isolation)
        fetched: dict[TP, ChangelogRecords] = {}
        for tp, error, end, data, aborted in partitions or ():
            if error is not None and error is OffsetOutOfRangeError:
                raise error(f"partition {tp.partition} of '{tp.topic}' has nothing at offset {wanted[tp]} any more")
            if error is not None:
                return _LEADER_MOVED
            if data:
                fetched[tp] = parse_changelog(tp, data, wanted[tp], aborted, end)
        return _LEADER_MOVED if partitions is None else fetched


_LEADER_MOVED: dict[TP, ChangelogRecords] = {}  # compared by identity: the leaders must be looked up again


def parse_changelog(
    tp: TP, data: bytes, start: int, aborted: Sequence[AbortedTransaction] = (), end: int | None = None
) -> ChangelogRecords:
    """Parse keys and values of a fetch, from offset `start`. Raises UnreadableChangelog if a batch cannot be read.

    The other parameters are those of `parse_records`.
    """
    records, next_offset, unreadable = parse_records(data, start, aborted, end)
    if unreadable is not None:
        raise UnreadableChangelog(
            f"partition {tp.partition} of '{tp.topic}': {unreadable.describe()}, and without its rows the table would "
            "be wrong; let a replica with an intact copy lead the partition (kafka-leader-election), or restore the "
            "topic from a backup"
        )
    return ChangelogRecords([(record.key or b"", record.value) for record in records], next_offset)
