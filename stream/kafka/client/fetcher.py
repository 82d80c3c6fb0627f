"""What is read of a member's partitions: a client of its own asks their leaders; the group only says which are ours.

aiokafka's consumer keeps the membership, in its thread, so that heartbeats go on whatever the loop does. It fetches nothing
itself: each of its fetches would change threads twice and wait for whatever lies untaken in any partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CorruptRecordException, KafkaError, OffsetOutOfRangeError
from aiokafka.record.memory_records import MemoryRecords
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.kafka.client.brokers import ask, client_of, know
from stream.kafka.client.connection import NoBroker

if TYPE_CHECKING:
    from stream.settings import Settings

# How long the broker holds a fetch that finds nothing: so long a partition that is wanted again may wait to be asked for.
FETCH_WAIT_MS = 20
RETRY = 0.1  # s
LOOK = 0.05  # s between two looks at who leads the partitions
REST = 0.005  # s until a leader of whose partitions none is wanted is looked at again
# A leader that has brought only so little is left alone for so long: what comes meanwhile goes together, in one fetch, one
# step, one request. An idle worker's question waits at the leader, so a click that comes alone is answered at once.
LITTLE, PAUSE = 65_536, 0.008  # bytes, s


class Answer(NamedTuple):
    """What a leader has of one partition from an offset on."""

    records: Sequence[Any]  # as aiokafka's C parser makes them: .key .value .timestamp (ms) .offset .headers
    next_offset: int  # where the next fetch starts: compaction and control batches leave offsets without a record
    end: int  # the high watermark


class Fetcher:
    """Fetches what is `wanted` (partition -> offset), each leader at its own pace, and gives each answer to `take`.

    `take` gets the partition, the offset that was asked for and the answer, None where the log does not have the offset.
    Keeps no position: whoever takes says what is wanted next.
    """

    def __init__(
        self,
        settings: Settings,
        wanted: Callable[[], Mapping[TP, int]],
        take: Callable[[TP, int, Answer | None], None],
        pause: float = PAUSE,
    ) -> None:
        self._settings, self._wanted, self._take, self._pause = settings, wanted, take, pause

    async def run(self) -> None:
        """For ever. Brokers that are gone are waited for, leaders that move are found again.

        Raises CorruptRecordException where a checksum is wrong, and the Kafka error of what does not pass by itself.
        """
        client = await self._connected()
        lanes: dict[int, asyncio.Task[None]] = {}
        try:
            while True:
                for leader in await self._leaders(client) - lanes.keys():
                    lanes[leader] = asyncio.create_task(self._follow(client, leader))
                if lanes:
                    await asyncio.wait(lanes.values(), timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(LOOK)
                for leader in [leader for leader, lane in lanes.items() if lane.done()]:
                    lanes.pop(leader).result()
        finally:
            for lane in lanes.values():
                lane.cancel()
            await asyncio.gather(*lanes.values(), return_exceptions=True)
            await client.close()

    async def _connected(self) -> AIOKafkaClient:
        while True:
            try:
                return await client_of(self._settings)
            except (NoBroker, KafkaError):
                await asyncio.sleep(RETRY)

    async def _leaders(self, client: AIOKafkaClient) -> set[int]:
        wanted = self._wanted()
        await know(client, {tp.topic for tp in wanted})
        leaders = {client.cluster.leader_for_partition(tp) for tp in wanted}
        if None in leaders or -1 in leaders:
            client.force_metadata_update()
        return leaders - {None, -1}

    async def _follow(self, client: AIOKafkaClient, leader: int) -> None:
        """Fetch from one broker, until it does not answer or leads some of the partitions no more."""
        leads = client.cluster.leader_for_partition
        while True:
            wanted = {tp: offset for tp, offset in self._wanted().items() if leads(tp) == leader}
            if not wanted:
                await asyncio.sleep(REST)
                continue
            brought = await self._fetch(client, leader, wanted)
            if brought is None:
                await asyncio.sleep(RETRY)
                await client.force_metadata_update()
                return  # who leads is to be found out anew
            if 0 < brought < LITTLE:
                await asyncio.sleep(self._pause)

    async def _fetch(self, client: AIOKafkaClient, leader: int, wanted: Mapping[TP, int]) -> int | None:
        """One fetch. -> the bytes that it brought; None where the leader is gone, or leads some of them no more."""
        answers = await ask(client, leader, wanted, FETCH_WAIT_MS)
        if answers is None:
            return None
        brought, led = 0, True
        for tp, error, end, data in answers:
            if error is None:
                brought += len(data)
                self._take(tp, wanted[tp], Answer(*parse(data, wanted[tp]), end))
            elif error is OffsetOutOfRangeError:
                self._take(tp, wanted[tp], None)
            else:
                led = False
        return brought if led else None


def parse(data: bytes, start: int) -> tuple[Sequence[Any], int]:
    """The records of a fetch from offset `start` on, and the offset after them. Raises CorruptRecordException."""
    if not data:
        return (), start
    parsed, found, following = MemoryRecords(data), [], start
    while parsed.has_next():
        batch = parsed.next_batch()
        if not batch.validate_crc():
            raise CorruptRecordException(f"the batch before offset {batch.next_offset} has a wrong checksum")
        if not batch.is_control_batch:
            found.extend(batch)
        following = max(start, batch.next_offset)
    # A batch comes whole, though `start` may lie inside it.
    if found and found[0].offset < start:
        found = [record for record in found if record.offset >= start]
    return found, following


class BatchConsumerThread(driver.AIOKafkaConsumerThread):
    """aiokafka's consumer in its thread: the group, its offsets, its heartbeats; no fetches."""

    #: When (monotonic) the last heartbeat was sent that the group's coordinator answered.
    heartbeat_at = 0.0

    async def on_start(self) -> None:
        await super().on_start()
        consumer = self._ensure_consumer()
        consumer._fetcher._fetch_task.cancel()
        # A member that fetches nothing would be taken to be stuck, and leave.
        consumer._subscription._fetch_count += 1
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
