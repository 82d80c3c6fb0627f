"""Sends record batches to the leaders of their partitions.

Everything that is ready at one moment goes into one request per leader. Several requests to a broker may be in flight,
but only one batch of a partition, which keeps its order. aiokafka's producer does the same in four times as many turns
of the event loop, and each turn waits for whatever else is running.

Measured gain: see deploy/bench/README.md.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Set
from time import monotonic
from typing import NamedTuple

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    MessageSizeTooLargeError,
    ProducerClosed,
    UnknownError,
    for_code,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers.aiokafka import Producer
from faust.types import TP

from stream.addresses import Address
from stream.kafka.client.brokers import send_request

ALL_REPLICAS = -1  # acks: all replicas in sync
REQUEST_BYTES = 32 << 20  # approximate maximum; a broker accepts 100 MiB
RETRY_S = 0.1


class SendTimedOut(KafkaTimeoutError):  # type: ignore[misc]  # aiokafka has no types
    """Kafka did not accept a batch in time; the message names its brokers, the partition and the time."""

    def __str__(self) -> str:
        return str(self.args[0])


class BatchTooLarge(MessageSizeTooLargeError):  # type: ignore[misc]  # aiokafka has no types
    """Kafka refuses a batch for its size; the message names the topic, the size and the setting."""

    def __str__(self) -> str:
        return str(self.args[0])


class _QueuedBatch(NamedTuple):
    batch: BatchBuilder
    acknowledged: asyncio.Future[int]
    deadline: float  # monotonic


class BatchSender:
    """Sends batches through `client`. Each is acknowledged or fails within `timeout` seconds."""

    def __init__(self, client: AIOKafkaClient, timeout: float) -> None:
        self._client, self._timeout = client, timeout
        self._queues: dict[TP, deque[_QueuedBatch]] = {}
        self._in_flight: set[TP] = set()
        self._requests: set[asyncio.Task[None]] = set()
        self._flush_is_scheduled = False

    def send(self, batch: BatchBuilder, topic: str, partition: int) -> asyncio.Future[int]:
        """Queue a batch. The future returns the offset of its first record once all replicas in sync have it.

        The future raises the Kafka error if the broker refuses the batch, or SendTimedOut. Batches that wait behind it
        then fail as well, because none may overtake it.
        """
        queued = _QueuedBatch(batch, asyncio.get_running_loop().create_future(), monotonic() + self._timeout)
        self._queues.setdefault(TP(topic, partition), deque()).append(queued)
        self._schedule_flush()
        return queued.acknowledged

    async def close(self) -> None:
        """Cancel the requests. Batches that are not acknowledged fail with ProducerClosed."""
        requests, self._requests = self._requests, set()
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        for queue in self._queues.values():
            for queued in queue:
                _settle(queued, ProducerClosed())
        self._queues.clear()

    def _schedule_flush(self) -> None:
        if not self._flush_is_scheduled:
            self._flush_is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Put the first batch of each partition that has none in flight into requests, and send them."""
        self._flush_is_scheduled = False
        leader_of: Callable[[TP], int | None] = self._client.cluster.leader_for_partition
        requests: defaultdict[int, list[dict[TP, _QueuedBatch]]] = defaultdict(list)
        free_bytes: dict[int, int] = {}  # of each leader's last request
        for tp, queue in self._queues.items():
            if tp in self._in_flight:
                continue
            leader, size = leader_of(tp), queue[0].batch.size()
            leader = -1 if leader is None else leader
            if free_bytes.get(leader, 0) < size:
                requests[leader].append({})
                free_bytes[leader] = REQUEST_BYTES
            free_bytes[leader] -= size
            requests[leader][-1][tp] = queue[0]
        for leader, requests_of_leader in requests.items():
            for batches in requests_of_leader:
                self._in_flight |= batches.keys()
                request = asyncio.create_task(self._send_batches(leader, batches))
                self._requests.add(request)
                request.add_done_callback(self._requests.discard)

    async def _send_batches(self, leader: int, batches: Mapping[TP, _QueuedBatch]) -> None:
        """Send a request and settle its batches. Those that a retry may deliver stay first in their queues."""
        retries: set[TP] = set()
        for tp, outcome in (await self._request(leader, batches)).items():
            queued = batches[tp]
            if isinstance(outcome, KafkaError) and outcome.retriable:
                if monotonic() < queued.deadline:
                    retries.add(tp)
                    continue
                outcome = self._timed_out(tp, queued, outcome)
            elif isinstance(outcome, MessageSizeTooLargeError):
                outcome = _too_large(tp, queued.batch)
            _settle(queued, outcome)
            self._queues[tp].popleft()
            while isinstance(outcome, Exception) and self._queues[tp]:
                _settle(self._queues[tp].popleft(), outcome)
            if not self._queues[tp]:
                del self._queues[tp]
        self._release(batches.keys() - retries)
        if retries:
            await asyncio.sleep(RETRY_S)
            await self._client.force_metadata_update()
            self._release(retries)

    def _timed_out(self, tp: TP, queued: _QueuedBatch, last_error: KafkaError) -> SendTimedOut:
        hosts = ", ".join(str(Address(host, port)) for host, port, _ in self._client.hosts)
        seconds = self._timeout + monotonic() - queued.deadline
        return SendTimedOut(
            f"Kafka at {hosts} has not accepted a batch for '{tp.topic}' {tp.partition} for {seconds:.0f} s "
            f"({last_error}); what it did not accept is repeated after a restart"
        )

    def _release(self, partitions: Set[TP]) -> None:
        """Let the next batch of each partition be sent."""
        self._in_flight -= partitions
        if self._queues:
            self._schedule_flush()

    async def _request(self, leader: int, batches: Mapping[TP, _QueuedBatch]) -> dict[TP, int | Exception]:
        """Return the offset of each batch, or the error why it has none."""
        if leader < 0:
            for tp in batches:
                self._client.add_topic(tp.topic)
            return {tp: LeaderNotAvailableError() for tp in batches}
        topics: defaultdict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for tp, queued in batches.items():
            topics[tp.topic].append((tp.partition, queued.batch._build()))
        request = ProduceRequest(None, ALL_REPLICAS, int(self._timeout * 1000), list(topics.items()))
        try:
            response = await send_request(self._client, leader, request)
        except Exception as error:
            return dict.fromkeys(batches, error)
        outcomes: dict[TP, int | Exception] = dict.fromkeys(
            batches, UnknownError("the broker's answer does not contain the partition")
        )
        for topic, partitions in response.topics:
            for partition, code, offset, *_ in partitions:
                outcomes[TP(topic, partition)] = offset if not code else for_code(code)()
        return outcomes


def _too_large(tp: TP, batch: BatchBuilder) -> BatchTooLarge:
    return BatchTooLarge(
        f"Kafka refuses a batch of {batch.size()} bytes ({batch.record_count()} records) for '{tp.topic}' "
        f"{tp.partition}: it exceeds the topic's max.message.bytes; if that was lowered, restart the worker, which "
        "reads it at its start; otherwise raise it"
    )


def _settle(queued: _QueuedBatch, outcome: int | Exception) -> None:
    if queued.acknowledged.done():  # the caller was cancelled
        return
    if isinstance(outcome, Exception):
        queued.acknowledged.set_exception(outcome)
    else:
        queued.acknowledged.set_result(outcome)


class BatchProducer(Producer):
    """Faust's producer, for its client and its place in the app. Batches are sent through `sender`."""

    sender: BatchSender
    client: AIOKafkaClient

    async def on_start(self) -> None:
        await super().on_start()
        self.client = self._ensure_producer().client
        self.sender = BatchSender(self.client, self.request_timeout)

    async def on_stop(self) -> None:
        await self.sender.close()
        await super().on_stop()
