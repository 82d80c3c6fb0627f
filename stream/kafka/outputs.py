"""Grouped sends, and the order of writes that makes a run count exactly once."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from aiokafka.producer.message_accumulator import BatchBuilder
from faust.transport.drivers.aiokafka import Producer

from stream.kafka.connect import partition_of
from stream.kafka.topics import CHANGELOG_BYTES

if TYPE_CHECKING:
    from stream.kafka.transport import BatchApp, Run

# Of one record batch of output; below the broker's message.max.bytes (1 MiB) with room for the batch's header.
BATCH_BYTES = 900_000


class Record(NamedTuple):
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


class Output(NamedTuple):
    """Records for one topic (logical name); partition None: each goes where its key hashes to."""

    topic: str
    partition: int | None
    records: Sequence[Record]


class Outputs:
    """What agents publish through. Sends return when the broker has acknowledged; a failed send raises."""

    def __init__(self, app: BatchApp) -> None:
        self._app = app

    async def send(self, topic: str, partition: int | None, records: Iterable[Record]) -> None:
        """Send all as few record batches as fit, and wait for their acknowledgement.

        Raises the Kafka error of the first batch that failed; others of the call may have arrived.
        """
        name = self._app.settings.prefix + topic
        producer = self._producer()
        groups: dict[int, list[Record]] = defaultdict(list)
        if partition is None:
            count = len(await producer.partitions_for(name))
            for record in records:
                groups[partition_of(record.key or b"", count)].append(record)
        else:
            groups[partition].extend(records)
        sent = []
        for target, group in groups.items():
            batch = _batch(BATCH_BYTES)
            for record in group:
                if not _append(batch, record):
                    sent.append(await producer.send_batch(batch, name, partition=target))
                    batch = _batch(BATCH_BYTES)
                    _append(batch, record)  # an empty batch takes a record of any size; the broker has the last word
            if batch.record_count():
                sent.append(await producer.send_batch(batch, name, partition=target))
        await asyncio.gather(*sent)

    async def commit_run(
        self, run: Run, outputs: Iterable[Output] = (), changelog: Sequence[tuple[bytes, bytes | None]] = ()
    ) -> None:
        """Make the effect of `run` durable; when this returns, it is, and the run is acknowledged.

        The order is the guarantee:

        1. the outputs, acknowledged;
        2. the changelog with the run's end as watermark in ONE batch (one append: whole or not at all), acknowledged;
        3. the run's acknowledgement.

        A crash before 2 redoes the whole run upon the old state (outputs may come twice, the state does not);
        after 2 its records are below the watermark and never reach an agent again.

        Raises PartitionLost where the partition has, or may have, another owner: nothing more is written, and the
        transport drops the state of the partition. Raises ValueError where the changelog exceeds one batch, the
        Kafka error where a send failed: both stop the worker, and the run is done again after its restart.
        """
        await asyncio.gather(*(self.send(*output) for output in outputs))
        if run.table is not None:
            await self._write_changelog(run, changelog)
        elif changelog:
            raise ValueError(f"the agent of '{run.topic}' keeps no table, but wrote a changelog of {len(changelog)}")
        run.done()

    async def _write_changelog(self, run: Run, changelog: Sequence[tuple[bytes, bytes | None]]) -> None:
        table = run.table
        assert table is not None
        batch = _batch(CHANGELOG_BYTES)
        mark = table.watermark_record(run.topic, run.partition, run.last + 1)
        for key, value in (*changelog, mark):
            if not _append(batch, Record(key, value)) or batch.size() > CHANGELOG_BYTES:
                raise ValueError(
                    f"the changelog of a run of {len(run.records)} records ({len(changelog)} keys) exceeds one batch "
                    f"of {CHANGELOG_BYTES} bytes; smaller runs fit (SHOPWINDOW_RUN_RECORDS)"
                )
        # The last look before the write. What remains is the time the batch is on its way: a worker cut off from the
        # group right here, for longer than its session, while its batch still reaches the partition's leader, writes
        # after the next owner has recovered. Its successor's state is right, the changelog then holds our older row
        # until the shopper's next event. Only transactions would close that; they cost a p99 of tens of ms.
        await run.still_owned()
        acknowledged = await self._producer().send_batch(
            batch, table.changelog_topic.get_topic_name(), partition=run.partition
        )
        metadata = await acknowledged
        table.written(run.topic, run.partition, run.last + 1, metadata.offset + batch.record_count() - 1)

    def _producer(self) -> Any:
        return cast(Producer, self._app.producer)._ensure_producer()


def _batch(size: int) -> BatchBuilder:
    # producer.create_batch() knows one size for all topics.
    return BatchBuilder(size, 0, is_transactional=0, key_serializer=None, value_serializer=None)


def _append(batch: BatchBuilder, record: Record) -> bool:
    return batch.append(timestamp=None, key=record.key, value=record.value, headers=list(record.headers)) is not None
