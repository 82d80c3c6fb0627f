"""Fetches a group member's partitions with a separate client; the group only decides which partitions are ours.

aiokafka's consumer keeps the membership, in its own thread, so that heartbeats continue whatever the event loop does.
It fetches nothing: each of its fetches would switch threads twice, and wait until every partition's records are taken.

Measured gain: see deploy/bench/README.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stream.kafka.client.brokers import connect_client, fetch_partitions, track_topics
from stream.kafka.client.connection import NoBroker
from stream.kafka.client.record_batch import UnreadableBatch, parse_records

if TYPE_CHECKING:
    from stream.settings import Settings

# How long the broker holds a fetch while it has no record. A partition that becomes wanted meanwhile waits as long.
FETCH_WAIT_MS = 20
RETRY_S = 0.1
LEADER_CHECK_S = 0.05  # between two checks of who leads the wanted partitions
IDLE_LEADER_S = 0.005  # until a leader without wanted partitions is checked again
# After a fetch that returned fewer bytes than this, the leader is left alone for a moment. What arrives meanwhile is
# processed together, in one fetch, one step, one request. The fetch of an idle worker already waits at the leader, so
# a single click is still answered at once.
SMALL_FETCH_BYTES = 65_536
SMALL_FETCH_PAUSE_S = 0.008


class FetchedRecords(NamedTuple):
    """A leader's records of one partition, from an offset on."""

    records: Sequence[Any]  # as aiokafka's C parser returns them: .key .value .timestamp (ms) .offset .headers
    next_offset: int  # where the next fetch starts: compaction and control batches leave offsets without a record
    unreadable: UnreadableBatch | None  # follows the records
    end: int  # the last stable offset if it is read committed, else the high watermark


class Fetcher:
    """Fetches what is `wanted` (partition -> offset), from each leader at its own pace, and passes it to `take`.

    `take` gets the partition, the requested offset and the records, or None if the log does not have the offset. The
    fetcher keeps no position: `wanted` is called before each fetch. `pause`: seconds after a small fetch.
    """

    def __init__(
        self,
        settings: Settings,
        wanted: Callable[[], Mapping[TP, int]],
        take: Callable[[TP, int, FetchedRecords | None], None],
        pause: float = SMALL_FETCH_PAUSE_S,
    ) -> None:
        self._settings, self._wanted, self._take, self._pause = settings, wanted, take, pause

    async def run(self) -> None:
        """Fetch forever. Waits for brokers that are down, and finds leaders again after they move.

        Raises CorruptRecordException if not even the length of a batch can be right, and a Kafka error that a retry
        does not solve.
        """
        client = await self._connected()
        followers: dict[int, asyncio.Task[None]] = {}  # by leader
        try:
            while True:
                for leader in await self._leaders(client) - followers.keys():
                    followers[leader] = asyncio.create_task(self._follow(client, leader))
                if followers:
                    await asyncio.wait(followers.values(), timeout=LEADER_CHECK_S, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(LEADER_CHECK_S)
                for leader in [leader for leader, follower in followers.items() if follower.done()]:
                    followers.pop(leader).result()
        finally:
            for follower in followers.values():
                follower.cancel()
            await asyncio.gather(*followers.values(), return_exceptions=True)
            await client.close()

    async def _connected(self) -> AIOKafkaClient:
        while True:
            try:
                return await connect_client(self._settings)
            except (NoBroker, KafkaError):
                await asyncio.sleep(RETRY_S)

    async def _leaders(self, client: AIOKafkaClient) -> set[int]:
        """The leaders of the wanted partitions. Partitions without a known leader are looked up again."""
        wanted = self._wanted()
        await track_topics(client, {tp.topic for tp in wanted})
        leaders = {client.cluster.leader_for_partition(tp) for tp in wanted}
        if None in leaders or -1 in leaders:
            client.force_metadata_update()
        return leaders - {None, -1}

    async def _follow(self, client: AIOKafkaClient, leader: int) -> None:
        """Fetch from one broker until it does not answer, or no longer leads one of the partitions."""
        leads = client.cluster.leader_for_partition
        while True:
            wanted = {tp: offset for tp, offset in self._wanted().items() if leads(tp) == leader}
            if not wanted:
                await asyncio.sleep(IDLE_LEADER_S)
                continue
            fetched_bytes = await self._fetch(client, leader, wanted)
            if fetched_bytes is None:
                await asyncio.sleep(RETRY_S)
                await client.force_metadata_update()
                return  # `run` looks up the leaders again
            if 0 < fetched_bytes < SMALL_FETCH_BYTES:
                await asyncio.sleep(self._pause)

    async def _fetch(self, client: AIOKafkaClient, leader: int, wanted: Mapping[TP, int]) -> int | None:
        """Fetch once. Return the bytes received; None if the leader is down or no longer leads a partition."""
        partitions = await fetch_partitions(client, leader, wanted, FETCH_WAIT_MS, self._settings.isolation)
        if partitions is None:
            return None
        fetched_bytes, leads_all = 0, True
        for tp, error, end, data, aborted in partitions:
            if error is None:
                fetched_bytes += len(data)
                self._take(tp, wanted[tp], FetchedRecords(*parse_records(data, wanted[tp], aborted, end), end))
            elif error is OffsetOutOfRangeError:
                self._take(tp, wanted[tp], None)
            else:
                leads_all = False
        return fetched_bytes if leads_all else None


class BatchConsumerThread(driver.AIOKafkaConsumerThread):
    """aiokafka's consumer in its thread: the group, its offsets and heartbeats, but no fetches."""

    #: When (monotonic) the last heartbeat was sent that the group's coordinator answered.
    heartbeat_at = 0.0

    async def on_start(self) -> None:
        await super().on_start()
        consumer = self._ensure_consumer()
        consumer._fetcher._fetch_task.cancel()
        # Without a fetch under way the member would count as stuck, and leave the group.
        consumer._subscription._fetch_count += 1
        coordinator = consumer._coordinator
        do_heartbeat = coordinator._do_heartbeat

        async def do_timed_heartbeat() -> bool:
            sent = monotonic()
            is_member = bool(await do_heartbeat())
            if is_member:
                self.heartbeat_at = sent
            return is_member

        coordinator._do_heartbeat = do_timed_heartbeat

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.heartbeat_at = monotonic()
        await super().on_partitions_assigned(assigned, generation_id)
