"""Lets aiokafka's consumers parse fetches with our parser, so that a batch that cannot be read does not stop them.

aiokafka raises at such a batch, fetches it again and raises again, for ever. Here it is skipped and logged. A consumer
with `value_deserializer=keep_unreadable` gets an `UnreadableRecord` in its place.

aiokafka has no hook for this, so two names of its fetcher are replaced. Importing this module does it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher

from stream import metrics
from stream.kafka.client.connection import client_options
from stream.kafka.client.record_batch import LENGTH_END, LENGTH_START, UnreadableBatch, parse_records

if TYPE_CHECKING:
    from stream.settings import Settings

log = logging.getLogger(__name__)


class UnreadableRecord(NamedTuple):
    """A batch that cannot be read, among the records that a consumer returns; always the last of its list."""

    topic: str  # as the cluster names it
    partition: int
    offset: int  # of the batch's last record
    timestamp: int  # ms
    batch: UnreadableBatch


def keep_unreadable(value: bytes | None) -> bytes | None:
    """The `value_deserializer` of a consumer that wants an UnreadableRecord for each batch that cannot be read."""
    return value


def reader_options(settings: Settings) -> dict[str, Any]:
    """Arguments of every aiokafka consumer that reads records: address, TLS, SASL, isolation, unreadable batches."""
    return client_options(settings) | {
        "isolation_level": settings.isolation,
        "value_deserializer": keep_unreadable,
    }


def report_unreadable(topic: str, partition: int, batch: UnreadableBatch, outcome: str) -> None:
    """Count and log a batch that cannot be read; `topic` is the logical name."""
    metrics.UNREADABLE.labels(topic).inc()
    where = {"topic": topic, "partition": partition, "offset": batch.base_offset}
    log.error("partition %d of '%s': %s; %s", partition, topic, batch.describe(), outcome, extra=where)


class _FetchedBatches:
    """The bytes of a partition in a fetch, instead of aiokafka's MemoryRecords."""

    def __init__(self, data: bytes | None) -> None:
        self.data = data or b""

    def has_next(self) -> bool:
        """True if the first batch is complete."""
        length = int.from_bytes(self.data[LENGTH_START:LENGTH_END], "big")
        return len(self.data) >= LENGTH_END and len(self.data) >= LENGTH_END + length

    def size_in_bytes(self) -> int:
        return len(self.data)


class ParsedPartition(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """The records of a partition in a fetch, read with our parser."""

    _value_deserializer: Any
    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[Any]:
        tp: TopicPartition = self._tp
        keeps_unreadable = self._value_deserializer is keep_unreadable
        if keeps_unreadable:
            self._value_deserializer = None  # one call less for each record
        parsed = parse_records(self._records.data, self.next_fetch_offset, self._aborted_transactions)
        for record in parsed.records:
            self.next_fetch_offset = record.offset + 1
            yield self._consumer_record(tp, record)
        self.next_fetch_offset = parsed.next_offset
        if parsed.unreadable is None:
            return
        if keeps_unreadable:
            unreadable = parsed.unreadable
            yield UnreadableRecord(tp.topic, tp.partition, unreadable.offset, unreadable.timestamp, unreadable)
        else:
            report_unreadable(tp.topic, tp.partition, parsed.unreadable, "it is skipped")


fetcher.MemoryRecords = _FetchedBatches
fetcher.PartitionRecords = ParsedPartition
