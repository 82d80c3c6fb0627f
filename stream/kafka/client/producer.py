"""Record batches on their way to the leaders of their partitions.

All that is to be sent at one moment goes in one request a leader; several requests may be under way to a broker, but of one
partition only one batch, which keeps its order. aiokafka's producer does the same in four times as many turns of the event
loop, of which each waits for whatever else is at work.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Set
from time import monotonic
from typing import NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, LeaderNotAvailableError, ProducerClosed, UnknownError, for_code
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers.aiokafka import Producer
from faust.types import TP

from stream.kafka.client.brokers import send

ALL_REPLICAS = -1
REQUEST_BYTES = 32 << 20  # about; a broker takes 100 MiB
RETRY = 0.1  # s


class _Sent(NamedTuple):
    batch: BatchBuilder
    acknowledged: asyncio.Future[int]
    deadline: float  # monotonic


class BatchSender:
    """Sends batches through `client` and settles each within `timeout` s."""

    def __init__(self, client: AIOKafkaClient, timeout: float) -> None:
        self._client, self._timeout = client, timeout
        self._waiting: dict[TP, deque[_Sent]] = {}
        self._under_way: set[TP] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._due = False

    def send(self, batch: BatchBuilder, topic: str, partition: int) -> asyncio.Future[int]:
        """-> the offset of the first record, once all replicas in sync have the batch.

        The future has the Kafka error where the broker refuses the batch, or nobody has taken it in time; so have those
        of batches that wait behind it, as none may overtake it.
        """
        sent = _Sent(batch, asyncio.get_running_loop().create_future(), monotonic() + self._timeout)
        self._waiting.setdefault(TP(topic, partition), deque()).append(sent)
        self._flush_soon()
        return sent.acknowledged

    async def close(self) -> None:
        """Give up what is not acknowledged."""
        requests, self._requests = self._requests, set()
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        for queue in self._waiting.values():
            for sent in queue:
                _settle(sent, ProducerClosed())
        self._waiting.clear()

    def _flush_soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Put the first batch of each partition that has none under way into requests."""
        self._due = False
        leader_of: Callable[[TP], int | None] = self._client.cluster.leader_for_partition
        requests: defaultdict[int, list[dict[TP, _Sent]]] = defaultdict(list)
        room: dict[int, int] = {}
        for tp, queue in self._waiting.items():
            if tp in self._under_way:
                continue
            leader, size = leader_of(tp), queue[0].batch.size()
            leader = -1 if leader is None else leader
            if room.get(leader, 0) < size:
                requests[leader].append({})
                room[leader] = REQUEST_BYTES
            room[leader] -= size
            requests[leader][-1][tp] = queue[0]
        for leader, some in requests.items():
            for batches in some:
                self._under_way |= batches.keys()
                request = asyncio.create_task(self._request(leader, batches))
                self._requests.add(request)
                request.add_done_callback(self._requests.discard)

    async def _request(self, leader: int, batches: Mapping[TP, _Sent]) -> None:
        again: set[TP] = set()
        for tp, found in (await self._ask(leader, batches)).items():
            sent = batches[tp]
            if isinstance(found, KafkaError) and found.retriable and monotonic() < sent.deadline:
                again.add(tp)
                continue
            _settle(sent, found)
            self._waiting[tp].popleft()
            while isinstance(found, Exception) and self._waiting[tp]:
                _settle(self._waiting[tp].popleft(), found)
            if not self._waiting[tp]:
                del self._waiting[tp]
        self._release(batches.keys() - again)
        if again:
            await asyncio.sleep(RETRY)
            await self._client.force_metadata_update()
            self._release(again)

    def _release(self, partitions: Set[TP]) -> None:
        """The next batch of each may go."""
        self._under_way -= partitions
        if self._waiting:
            self._flush_soon()

    async def _ask(self, leader: int, batches: Mapping[TP, _Sent]) -> dict[TP, int | Exception]:
        """-> the offset of each batch, or why there is none."""
        if leader < 0:
            for tp in batches:
                self._client.add_topic(tp.topic)
            return {tp: LeaderNotAvailableError() for tp in batches}
        topics: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for tp, sent in batches.items():
            topics[tp.topic].append((tp.partition, sent.batch._build()))
        request = ProduceRequest(None, ALL_REPLICAS, int(self._timeout * 1000), list(topics.items()))
        try:
            response = await send(self._client, leader, request)
        except Exception as error:
            return dict.fromkeys(batches, error)
        found: dict[TP, int | Exception] = dict.fromkeys(batches, UnknownError("the broker did not say"))
        for topic, partitions in response.topics:
            for partition, code, offset, *_ in partitions:
                found[TP(topic, partition)] = offset if not code else for_code(code)()
        return found


def _settle(sent: _Sent, found: int | Exception) -> None:
    if sent.acknowledged.done():  # its sender was cancelled
        return
    if isinstance(found, Exception):
        sent.acknowledged.set_exception(found)
    else:
        sent.acknowledged.set_result(found)


class BatchProducer(Producer):
    """Faust's producer by its client and its place in the app; what is sent goes through `posts`."""

    posts: BatchSender

    async def on_start(self) -> None:
        await super().on_start()
        self.posts = BatchSender(self._ensure_producer().client, self.request_timeout)

    async def on_stop(self) -> None:
        await self.posts.close()
        await super().on_stop()
