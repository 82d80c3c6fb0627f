"""What aiokafka's consumer fetches, when, and in which form its records come: Faust's consumer thread, tuned."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from aiokafka import conn
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CorruptRecordException
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

if TYPE_CHECKING:
    from stream.kafka.transport import BatchConsumer

# How long the broker holds a fetch that finds nothing. Faust fixes it at 1500 ms: while all busy partitions are
# buffered, the consumer then waits that long upon the idle ones and fetches nothing else.
FETCH_WAIT_MS = 20
# What a connection buffers before it stops reading, for a megabyte from each partition: aiokafka's 64 KiB make a fetch stop
# and start dozens of times.
conn.READER_LIMIT = 4 << 20


class _Fetched(dict[Any, Any]):
    """What aiokafka's fetcher holds for us, by partition: the records as its C parser makes them.

    aiokafka would wrap each in an object of its own, which takes four times as long as the parsing.
    """

    def __setitem__(self, tp: Any, result: Any) -> None:
        if type(result) is FetchResult:
            result.getall = partial(_take_all, result)
        super().__setitem__(tp, result)


def _take_all(result: FetchResult, limit: None = None) -> list[Any]:
    """`FetchResult.getall`, for the whole of it.

    It and the parsed answer refer to themselves: left so, each would keep the bytes of its fetch until the collector of
    garbage comes, which is seldom.
    """
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    parsed = result._partition_records
    start, found = parsed.next_fetch_offset, []
    while parsed._records.has_next():
        batch = parsed._records.next_batch()
        if parsed._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"a batch of {result._topic_partition} has a wrong checksum")
        if not batch.is_control_batch:
            found.extend(batch)
        parsed.next_fetch_offset = batch.next_offset
    # A batch comes whole, though the position may lie inside it.
    if found and found[0].offset < start:
        found = [record for record in found if record.offset >= start]
    result._update_position()
    result._partition_records = parsed._records_iterator = None
    del result.getall
    return found


class BatchConsumerThread(driver.AIOKafkaConsumerThread):
    """aiokafka's consumer in its thread, with the fetch wait that Faust does not let one set."""

    #: When (monotonic) the last heartbeat was sent that the group's coordinator answered.
    heartbeat_at = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._wanted: set[TP] = set()
        self._resting: set[TP] = set()
        self._assigned: Any = None  # the assignment that is chosen from

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _fetch_records(
        self, consumer: Any, active_partitions: set[TP], timeout: float | None = None, max_records: int | None = None
    ) -> Any:
        """As Faust's, but a fetch that a rebalance overtook gives back what it took.

        It may return after the seek to the committed offsets, with records read from there. Nobody takes them any
        more, and the position would stand behind them: they were never processed. No await lies between the taking
        and the seek, so nothing else moves the position in between.
        """
        self._choose(consumer, active_partitions)
        fetched = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        feed = cast("BatchConsumer", self.consumer)
        if feed.fetch_epoch != feed.epoch:
            for tp in fetched.keys() & consumer.assignment():
                consumer.seek(tp, fetched[tp][0].offset)
            return {}
        self._rest(consumer, fetched)
        return fetched

    # While records of any partition lie untaken, aiokafka fetches nothing for 100 ms. So it must itself pause what we do
    # not want now: changelogs, which have a reader of their own, partitions that have enough waiting, those of paced topics that rest.

    def _choose(self, consumer: Any, wanted: set[TP]) -> None:
        ours = consumer.assignment()
        if wanted == self._wanted and ours is self._assigned:
            return
        self._wanted, self._assigned = set(wanted), ours
        self._pause_others(consumer)

    def _pause_others(self, consumer: Any) -> None:
        states = consumer._subscription.subscription.assignment
        for tp in consumer.assignment():
            state = states.state_value(tp)
            if tp in self._wanted and tp not in self._resting:
                state.resume()
            else:
                state.pause()

    def _rest(self, consumer: Any, fetched: Mapping[TP, Sequence[Any]]) -> None:
        """Let partitions of paced topics that keep up be, till the next beat of their pace, the same for all of them.

        Each answer of the broker would else wake us for a record or two.
        """
        loop, resting = asyncio.get_running_loop(), len(self._resting)
        for tp, records in fetched.items():
            lanes = cast("BatchConsumer", self.consumer).app.lanes_of.get(tp.topic)
            if lanes is not None and lanes.pace and len(records) < lanes.limit:
                beat = (loop.time() // lanes.pace + 1) * lanes.pace
                if not self._resting:
                    loop.call_at(beat, self._wake, consumer)
                self._resting.add(tp)
        if len(self._resting) > resting:
            self._pause_others(consumer)

    def _wake(self, consumer: Any) -> None:
        self._resting.clear()
        if consumer._subscription.subscription is not None and consumer.assignment():
            self._pause_others(consumer)

    async def on_start(self) -> None:
        await super().on_start()
        consumer = self._ensure_consumer()
        # aiokafka's fetcher sleeps so long (by default 200 ms) where a fetch ends in the very moment in which something
        # else wakes it: it then takes the fetch to be still under way.
        consumer._fetcher._fetcher_timeout = FETCH_WAIT_MS / 1000
        consumer._fetcher._records = _Fetched()
        coordinator = consumer._coordinator
        beat = coordinator._do_heartbeat

        async def noted_beat() -> bool:
            sent = monotonic()
            alive = bool(await beat())
            if alive:
                self.heartbeat_at = sent
            return alive

        coordinator._do_heartbeat = noted_beat

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.heartbeat_at = monotonic()
        await super().on_partitions_assigned(assigned, generation_id)
