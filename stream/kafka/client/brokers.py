"""Requests to the leaders of partitions, and connections that receive the answers without copying them twice."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from faust.types import TP

from stream.kafka.client.connection import client_options, connecting
from stream.kafka.client.record_batch import AbortedTransaction

if TYPE_CHECKING:
    from stream.settings import Settings

PARTITION_BYTES = 1 << 20  # maximum of one partition in one fetch; a larger batch is returned alone
FETCH_BYTES = 4 << 20  # maximum of one fetch
MIN_FETCH_BYTES = 1  # a fetch is answered as soon as there is any record
ISOLATION_LEVELS = {"read_uncommitted": 0, "read_committed": 1}
BUFFER_BYTES = 1 << 20  # initial size of a connection's receive buffer
LENGTH_BYTES = 4  # an answer is preceded by its length


class FetchedPartition(NamedTuple):
    """A leader's answer for one partition."""

    tp: TP
    error: type[KafkaError] | None  # OffsetOutOfRangeError, or an error that passes once the leader is found again
    end: int  # the last stable offset if it is read committed, else the high watermark
    data: bytes  # whole record batches; the requested offset may be inside the first
    aborted: Sequence[AbortedTransaction]  # those with records in `data`, if it is read committed


async def connect_client(settings: Settings) -> AIOKafkaClient:
    """Return a connected client without a group. Raises NoBroker or a Kafka error, and leaves nothing open then."""
    client = AIOKafkaClient(**client_options(settings))
    try:
        with connecting(settings):
            await client.bootstrap()
    except BaseException:
        await client.close()
        raise
    return client


async def track_topics(client: AIOKafkaClient, topics: set[str]) -> None:
    """Look up the leaders of topics that the client does not know yet, and keep them current."""
    known = set(client.cluster.topics())
    if not topics <= known:
        await client.set_topics(list(topics | known))


async def send_request(client: AIOKafkaClient, leader: int, request: Any) -> Any:
    """Return the broker's answer. Raises the Kafka error if there is none."""
    if await client.ready(leader):
        install_frame_reader(client._conns[leader, ConnectionGroup.DEFAULT])
    return await client.send(leader, request)


async def fetch_partitions(
    client: AIOKafkaClient, leader: int, wanted: Mapping[TP, int], wait_ms: int, isolation: str
) -> list[FetchedPartition] | None:
    """Fetch partitions from the wanted offsets. While there is no record, the broker holds the request for `wait_ms`.

    `isolation`: read_committed or read_uncommitted. Returns None if the broker does not answer. Raises a Kafka error
    that a retry does not solve.
    """
    topics: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for tp, offset in wanted.items():
        topics[tp.topic].append((tp.partition, offset, PARTITION_BYTES))
    request = FetchRequest(wait_ms, MIN_FETCH_BYTES, FETCH_BYTES, ISOLATION_LEVELS[isolation], list(topics.items()))
    try:
        response = await send_request(client, leader, request)
    except KafkaError as error:
        if not error.retriable:
            raise
        return None
    fetched = []
    aborted_at = -3 if response.API_VERSION >= 11 else -2  # version 11 has the preferred replica before the data
    for topic, partitions in response.topics:
        for partition, code, high_watermark, last_stable_offset, *rest in partitions:
            kind = for_code(code) if code else None
            if kind is not None and not kind.retriable and kind is not OffsetOutOfRangeError:
                raise kind(f"partition {partition} of '{topic}' cannot be read")
            data = rest[-1] or b""
            if isolation == "read_committed":
                aborted = rest[aborted_at] or ()
                fetched.append(FetchedPartition(TP(topic, partition), kind, last_stable_offset, data, aborted))
            else:
                fetched.append(FetchedPartition(TP(topic, partition), kind, high_watermark, data, ()))
    return fetched


class FrameReader(asyncio.BufferedProtocol):
    """Receives a broker's answers on a connection of aiokafka, each in one buffer until it is complete.

    asyncio's StreamReader copies each byte when it receives, joins and cuts data, in newly allocated memory.
    """

    def __init__(self, connection: Any) -> None:
        self._connection, self._replaced = connection, connection._protocol
        self._buffer = bytearray(BUFFER_BYTES)
        self._is_length, self._wanted, self._filled = True, LENGTH_BYTES, 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._filled : self._wanted]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < self._wanted:
            return
        frame = bytes(memoryview(self._buffer)[: self._wanted])
        self._filled, self._is_length = 0, not self._is_length
        if self._is_length:
            self._wanted = LENGTH_BYTES
            self._connection._handle_frame(frame)
        else:
            self._wanted = int.from_bytes(frame, "big")
            if self._wanted > len(self._buffer):
                self._buffer = bytearray(self._wanted)

    # aiokafka's protocol still closes the connection and applies back pressure to its writer.

    def eof_received(self) -> bool | None:
        keep_open: bool | None = self._replaced.eof_received()
        return keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._replaced.connection_lost(exc)

    def pause_writing(self) -> None:
        self._replaced.pause_writing()

    def resume_writing(self) -> None:
        self._replaced.resume_writing()


def install_frame_reader(connection: Any) -> None:
    """Let a FrameReader receive the connection's answers. Skipped while an answer is pending; the next call does it."""
    transport = connection._writer.transport
    if not connection._requests and not isinstance(transport.get_protocol(), FrameReader):
        transport.set_protocol(FrameReader(connection))
