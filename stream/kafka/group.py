"""A consumer group beside the workers' group, for work that keeps no table.

Records are taken as they come. A partition is committed up to its first record that is not done.

Faust allows an app one group. Members of a group of their own can start, stop, lag and crash without a rebalance of the
workers. What a member had taken and not committed is processed again by the partition's next owner, so the effects must
be idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from stream.kafka.client.connection import client_options, connecting, stop_client
from stream.kafka.client.consumer_records import UnreadableRecord, reader_options, report_unreadable
from stream.kafka.commit import Output, Pair
from stream.kafka.dead_letters import count_dead_letters, unreadable_letter
from stream.kafka.health.outage import Outage
from stream.kafka.topics import DEFAULT_BATCH_LIMIT, MAX_CHANGELOG_BYTES, inspect

if TYPE_CHECKING:
    from stream.settings import Settings

PING_TIMEOUT_S = 10.0
PING_INTERVAL_S = 5.0


class GroupMember(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """A member of the group `name` that reads `topic` (logical name); use it as an async context.

    Entering the context raises NoBroker. Records of partitions that a rebalance has revoked are no longer `held`.
    """

    def __init__(self, settings: Settings, topic: str, name: str) -> None:
        self._settings, self._topic, self._name = settings, topic, name
        self._consumer: AIOKafkaConsumer | None = None
        self._producer: AIOKafkaProducer | None = None
        self.dead_letter_limit = DEFAULT_BATCH_LIMIT  # bytes of a record batch of `dead-letters`
        self._joined = asyncio.Event()
        # By partition: offset -> timestamp (s) of the records that are taken and not done, in order.
        self._taken: dict[TopicPartition, dict[int, float]] = {}
        self._next: dict[TopicPartition, int] = {}  # offset after the last record that was taken
        self._committed: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> Self:
        options = client_options(self._settings)
        self._producer = AIOKafkaProducer(**options, acks="all", max_request_size=MAX_CHANGELOG_BYTES)
        self._consumer = AIOKafkaConsumer(
            **reader_options(self._settings), group_id=self._name, enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=int(self._settings.session_timeout * 1000),
            heartbeat_interval_ms=int(self._settings.heartbeat * 1000),
        )  # fmt: skip
        try:
            with connecting(self._settings):
                await self._producer.start()
                limits = (await inspect(self._settings)).batch_limits
                self.dead_letter_limit = limits.get("dead-letters", DEFAULT_BATCH_LIMIT)
                self._consumer.subscribe([self._settings.prefix + self._topic], listener=self)
                await self._consumer.start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        consumer, producer, self._consumer, self._producer = self._consumer, self._producer, None, None
        for client in (consumer, producer):
            if client is not None:
                await stop_client(client)
        self._forget()

    @property
    def joined(self) -> bool:
        """True while the group has given us an assignment, which may be empty."""
        return self._joined.is_set()

    async def wait_joined(self) -> None:
        """Return once `joined`."""
        await self._joined.wait()

    def partitions(self) -> set[int]:
        """Numbers of the partitions that are assigned to this member."""
        return {tp.partition for tp in self._consumer.assignment()} if self._consumer is not None else set()

    async def take(self, limit: int, seconds: float) -> list[Any]:
        """Return at most `limit` waiting records, as aiokafka returns them. Waits up to `seconds` if there are none."""
        assert self._consumer is not None, "enter first"
        found = await self._consumer.getmany(timeout_ms=int(seconds * 1000), max_records=limit)
        for tp, records in found.items():
            self._taken.setdefault(tp, {}).update((record.offset, record.timestamp / 1000) for record in records)
            self._next[tp] = records[-1].offset + 1
        taken = []
        for records in found.values():
            if isinstance(records[-1], UnreadableRecord):
                await self._reject_batch(records.pop())
            taken += records
        return taken

    async def _reject_batch(self, record: UnreadableRecord) -> None:
        """Send a batch that cannot be read to `dead-letters` as raw bytes, and mark it as done."""
        letters = [unreadable_letter(self._topic, record.partition, record.batch, self.dead_letter_limit)]
        await self.done([record], letters)
        count_dead_letters(letters)
        report_unreadable(self._topic, record.partition, record.batch, "its bytes were sent to dead-letters")

    def held(self, record: Any) -> bool:
        """True if the record's partition is still ours and the record is not done."""
        return record.offset in self._taken.get(TopicPartition(record.topic, record.partition), ())

    async def done(self, records: Iterable[Any], outputs: Sequence[Output] = ()) -> None:
        """Send `outputs`; once they are acknowledged, mark `records` as done and commit.

        Raises the Kafka error of an output that is refused. A commit that comes after a rebalance is skipped.
        """
        await self._send(outputs)
        for record in records:
            self._taken.get(TopicPartition(record.topic, record.partition), {}).pop(record.offset, None)
        await self._commit()

    async def send(self, topic: str, record: Pair) -> None:
        """Send a record and wait for its acknowledgement. Raises the Kafka error if there is none."""
        await self._send([Output(topic, None, [record])])

    async def _send(self, outputs: Sequence[Output]) -> None:
        assert self._producer is not None, "enter first"
        prefix, sent = self._settings.prefix, []
        for output in outputs:
            for index, (key, value) in enumerate(output.records):
                headers = output.headers[index] if output.headers else None
                sent.append(
                    await self._producer.send(prefix + output.topic, value, key, output.partition, headers=headers)
                )
        await asyncio.gather(*sent)

    async def _commit(self) -> None:
        offsets = {tp: next(iter(self._taken.get(tp, ())), following) for tp, following in self._next.items()}
        changed = {tp: offset for tp, offset in offsets.items() if self._committed.get(tp) != offset}
        if not changed or self._consumer is None:
            return
        try:
            await self._consumer.commit(changed)
        except (CommitFailedError, IllegalStateError):
            return  # the partitions are no longer ours
        except KafkaError as error:
            if not error.retriable:
                raise
            return  # the next commit covers this one
        self._committed.update(changed)

    async def watch(self, outage: Outage) -> None:
        """Ask Kafka for its topics every 5 s, for ever; `outage` lasts while it does not answer."""
        answered_at = monotonic()
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            if self._consumer is None:
                continue
            try:
                await asyncio.wait_for(_ping(self._consumer), PING_TIMEOUT_S)
            except (KafkaError, TimeoutError) as error:
                if outage.since is None:
                    outage.begin(answered_at, error)
            else:
                answered_at = monotonic()
                if outage.since is not None:
                    outage.end()

    def lag(self) -> dict[int, int]:
        """Records that are not done, by partition; only partitions that have been fetched from."""
        if self._consumer is None:
            return {}
        ends = {tp: self._consumer.highwater(tp) for tp in self._consumer.assignment()}
        return {
            tp.partition: max(0, end - self._next[tp]) + len(self._taken.get(tp, ()))
            for tp, end in ends.items()
            if end is not None and tp in self._next
        }

    def oldest(self) -> float | None:
        """Timestamp (s) of the oldest record that is taken and not done; None if there is none."""
        return min((next(iter(taken.values())) for taken in self._taken.values() if taken), default=None)

    def _forget(self) -> None:
        self._joined.clear()
        self._taken.clear()
        self._next.clear()
        self._committed.clear()

    async def on_partitions_revoked(self, revoked: object) -> None:
        try:
            await self._commit()
        finally:
            self._forget()

    async def on_partitions_assigned(self, assigned: object) -> None:
        self._joined.set()


async def _ping(consumer: AIOKafkaConsumer) -> None:
    """Return once Kafka has answered. Raises KafkaError if it does not."""
    with suppress(KafkaError):
        await consumer._client.fetch_all_metadata()
        return
    # A broker closes a connection at the first request after its login has ended. The second opens another.
    await consumer._client.fetch_all_metadata()
