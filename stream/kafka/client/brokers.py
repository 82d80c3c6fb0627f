"""Talking to the leaders of partitions, on connections whose answers are received in place."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from faust.types import TP

from stream.kafka.client.connection import client_options, connecting

if TYPE_CHECKING:
    from stream.settings import Settings

PARTITION_BYTES = 1 << 20  # of one partition in one fetch; a larger batch comes alone
FETCH_BYTES = 4 << 20
READ_UNCOMMITTED = 0


class Part(NamedTuple):
    """What a leader answers for one partition."""

    tp: TP
    error: type[KafkaError] | None  # OffsetOutOfRangeError, or one that passes when the leader is found anew
    end: int  # the high watermark
    data: bytes  # whole record batches; the offset that was asked for may lie inside the first


async def client_of(settings: Settings) -> AIOKafkaClient:
    """A client outside of any group, connected. Raises NoBroker or a Kafka error, and leaves nothing open then."""
    client = AIOKafkaClient(**client_options(settings))
    try:
        with connecting(settings):
            await client.bootstrap()
    except BaseException:
        await client.close()
        raise
    return client


async def know(client: AIOKafkaClient, topics: set[str]) -> None:
    """Ask who leads the partitions of topics that the client does not know yet."""
    known = set(client.cluster.topics())
    if not topics <= known:
        await client.set_topics(list(topics | known))


async def send(client: AIOKafkaClient, leader: int, request: Any) -> Any:
    """The broker's answer. Raises the Kafka error where there is none."""
    if await client.ready(leader):
        read_in_place(client._conns[leader, ConnectionGroup.DEFAULT])
    return await client.send(leader, request)


async def ask(client: AIOKafkaClient, leader: int, wanted: Mapping[TP, int], wait_ms: int) -> list[Part] | None:
    """Fetch some partitions from their offsets on; the broker holds the question for `wait_ms` where there is nothing.

    None where the broker does not answer. Raises the Kafka error of what does not pass by itself.
    """
    topics: defaultdict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for tp, offset in wanted.items():
        topics[tp.topic].append((tp.partition, offset, PARTITION_BYTES))
    request = FetchRequest(wait_ms, 1, FETCH_BYTES, READ_UNCOMMITTED, list(topics.items()))
    try:
        response = await send(client, leader, request)
    except KafkaError as error:
        if not error.retriable:
            raise
        return None
    parts = []
    for topic, partitions in response.topics:
        for partition, code, end, *rest in partitions:
            kind = for_code(code) if code else None
            if kind is not None and not kind.retriable and kind is not OffsetOutOfRangeError:
                raise kind(f"partition {partition} of '{topic}' cannot be read")
            parts.append(Part(TP(topic, partition), kind, end, rest[-1] or b""))
    return parts


class Frames(asyncio.BufferedProtocol):
    """A broker's answers on a connection of aiokafka, received where they lie until they are whole.

    asyncio's own reader receives, joins and cuts each byte anew, in memory that the system must find again each time.
    """

    def __init__(self, connection: Any) -> None:
        self._connection, self._before = connection, connection._protocol
        self._room = bytearray(1 << 20)
        self._head, self._wanted, self._filled = True, 4, 0  # an answer's length comes first, in four bytes

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._room)[self._filled : self._wanted]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < self._wanted:
            return
        found = bytes(memoryview(self._room)[: self._wanted])
        self._filled, self._head = 0, not self._head
        if self._head:
            self._wanted = 4
            self._connection._handle_frame(found)
        else:
            self._wanted = int.from_bytes(found, "big")
            if self._wanted > len(self._room):
                self._room = bytearray(self._wanted)

    # aiokafka's protocol still closes the connection and holds back its writer.

    def eof_received(self) -> bool | None:
        ended: bool | None = self._before.eof_received()
        return ended

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()


def read_in_place(connection: Any) -> None:
    """From now on, unless an answer is on its way: the next time will do."""
    transport = connection._writer.transport
    if not connection._requests and not isinstance(transport.get_protocol(), Frames):
        transport.set_protocol(Frames(connection))
