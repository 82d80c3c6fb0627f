"""Batches are sent to their leaders in shared requests, one per partition in flight, each with its own outcome."""

import asyncio
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, NotLeaderForPartitionError, ProducerClosed

from stream.kafka.client import producer as produce
from stream.kafka.client.producer import BatchSender, SendTimedOut
from stream.kafka.commit import Batch
from tests.harness.kafka_parts import idle_connections

Codes = Mapping[int, int]  # partition -> error code of an answer


class Client:
    """Brokers that record requests and return prepared answers."""

    def __init__(self, leaders: Mapping[int, int], answers: Callable[[int], Codes] = lambda request: {}) -> None:
        self.leaders, self.answers = dict(leaders), answers
        self.asked: list[tuple[int, dict[int, bytes]]] = []  # leader, its partitions' batches
        self.held = asyncio.Event()
        self.held.set()
        self.cluster = SimpleNamespace(leader_for_partition=lambda tp: self.leaders[tp.partition])
        self._conns = idle_connections(0, 1)
        self.hosts = [("kafka-1", 9092, None), ("kafka-2", 9093, None)]

    async def ready(self, leader: int) -> bool:
        return True

    def add_topic(self, topic: str) -> None:
        pass

    async def force_metadata_update(self) -> None:
        self.leaders = {partition: max(0, leader) for partition, leader in self.leaders.items()}

    async def send(self, leader: int, request: Any) -> Any:
        ((topic, batches),) = request._topics
        self.asked.append((leader, {partition: bytes(data) for partition, data in batches}))
        codes = self.answers(len(self.asked) - 1)
        await self.held.wait()
        offset = 100 * len(self.asked)
        return SimpleNamespace(topics=[(topic, [(p, codes.get(p, 0), offset, -1) for p, _ in batches])])


def batch(value: bytes) -> Batch:
    made = Batch(1000)
    made.extend([(b"k", value)])
    return made


def partitions_asked(client: Client) -> list[tuple[int, list[int]]]:
    return [(leader, sorted(batches)) for leader, batches in client.asked]


@pytest.fixture(autouse=True)
def retry_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "RETRY_S", 0.01)


def test_simultaneous_sends_share_one_request_per_leader() -> None:
    async def calls() -> None:
        client = Client({0: 0, 1: 1, 2: 0})
        sender: Any = BatchSender(client, 10.0)
        sent = [sender.send(batch(b"%d" % n), "t", p) for n, p in enumerate((0, 1, 2, 0))]
        assert await asyncio.gather(*sent) == [100, 200, 100, 300]
        assert partitions_asked(client) == [(0, [0, 2]), (1, [1]), (0, [0])]
        assert b"3" in client.asked[2][1][0], "the second batch of the partition, after the first was answered"

    asyncio.run(calls())


def test_a_batch_is_retried_in_order_after_its_leader_moved() -> None:
    async def calls() -> None:
        moved = NotLeaderForPartitionError.errno
        client = Client({0: 0, 1: 0}, lambda request: {0: moved} if request == 0 else {})
        sender: Any = BatchSender(client, 10.0)
        first, behind, other = (sender.send(batch(value), "t", p) for value, p in ((b"a", 0), (b"b", 0), (b"c", 1)))
        assert await other == 100
        next_of_other = sender.send(batch(b"d"), "t", 1)
        assert await next_of_other == 200 and not first.done()
        assert await first == 300 and await behind == 400
        assert [sorted(batches) for _, batches in client.asked] == [[0, 1], [1], [0], [0]]
        assert b"a" in client.asked[2][1][0] and b"b" in client.asked[3][1][0]

    asyncio.run(calls())


def test_a_refused_batch_fails_only_the_batches_behind_it() -> None:
    async def calls() -> None:
        client = Client({0: 0, 1: 0}, lambda request: {0: MessageSizeTooLargeError.errno} if request == 0 else {})
        sender: Any = BatchSender(client, 10.0)
        refused, taken, behind = (sender.send(batch(b"x"), "t", p) for p in (0, 1, 0))
        for lost in (refused, behind):
            with pytest.raises(MessageSizeTooLargeError) as too_large:
                await lost
            assert re.match(
                r"Kafka refuses a batch of \d+ bytes \(1 records\) for 't' 0: .*max.message.bytes", str(too_large.value)
            )
        assert (await taken, await sender.send(batch(b"x"), "t", 0)) == (100, 200)
        assert partitions_asked(client) == [(0, [0, 1]), (0, [0])], "the batch behind it was not sent"

    asyncio.run(calls())


def test_a_batch_waits_for_a_leader_until_its_timeout() -> None:
    async def calls() -> None:
        client = Client({0: -1})
        sender: Any = BatchSender(client, 10.0)
        assert await sender.send(batch(b"x"), "t", 0) == 100
        client = Client({0: 0}, lambda request: {0: NotLeaderForPartitionError.errno})
        sender = BatchSender(client, 0.05)
        with pytest.raises(SendTimedOut) as timed_out:
            await sender.send(batch(b"x"), "t", 0)
        assert str(timed_out.value).startswith("Kafka at kafka-1:9092, kafka-2:9093 has not accepted a batch for 't' 0")
        assert "for 0 s ([Error 6] NotLeaderForPartitionError" in str(timed_out.value)
        assert len(client.asked) > 1

    asyncio.run(calls())


def test_closing_fails_unacknowledged_batches() -> None:
    async def calls() -> None:
        client = Client({0: 0, 1: 0})
        sender: Any = BatchSender(client, 10.0)
        client.held.clear()
        cancelled, waiting = sender.send(batch(b"x"), "t", 1), sender.send(batch(b"y"), "t", 0)
        while not client.asked:
            await asyncio.sleep(0)
        cancelled.cancel()
        await sender.close()
        with pytest.raises(ProducerClosed):
            await waiting
        assert issubclass(ProducerClosed, KafkaError)

    asyncio.run(calls())


def test_requests_have_a_maximum_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce, "REQUEST_BYTES", 300)

    async def calls() -> None:
        client = Client({p: 0 for p in range(4)})
        sender: Any = BatchSender(client, 10.0)
        await asyncio.gather(*(sender.send(batch(bytes(size)), "t", p) for p, size in enumerate((50, 50, 500, 50))))
        assert [sorted(batches) for _, batches in client.asked] == [[0, 1], [2], [3]]

    asyncio.run(calls())
