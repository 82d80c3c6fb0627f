"""A member of the group without tables commits each partition up to its first record that is not done."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    KafkaConnectionError,
    KafkaError,
    NotCoordinatorForGroupError,
    TopicAuthorizationFailedError,
)

from stream.kafka.commit import Output
from stream.kafka.group import GroupMember
from stream.kafka.health.outage import Outage
from stream.settings import Settings
from tests.harness.events import NOW

TOPIC = "copy-requests"
ONE, TWO = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)


class Kafka:
    """A consumer and a producer that record their calls."""

    def __init__(self) -> None:
        self.waiting: dict[TopicPartition, list[Any]] = {}
        self.commits: list[dict[TopicPartition, int]] = []
        self.sent: list[tuple[str, bytes]] = []
        self.fails: KafkaError | None = None  # the error of the next call

    async def getmany(self, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Any]]:
        found, self.waiting = self.waiting, {}
        return found

    async def commit(self, offsets: dict[TopicPartition, int]) -> None:
        self._fail()
        self.commits.append(offsets)

    async def send(self, topic: str, value: bytes, key: bytes, partition: int | None, headers: Any) -> Any:
        self._fail()
        self.sent.append((topic, value))
        return asyncio.sleep(0)

    def _fail(self) -> None:
        error, self.fails = self.fails, None
        if error is not None:
            raise error

    def assignment(self) -> set[TopicPartition]:
        return {ONE, TWO}

    def highwater(self, partition: TopicPartition) -> int:
        return 10


def records(partition: TopicPartition, *offsets: int) -> list[Any]:
    return [
        SimpleNamespace(topic=partition.topic, partition=partition.partition, offset=at, timestamp=(NOW + at) * 1000)
        for at in offsets
    ]


def member() -> tuple[GroupMember, Kafka]:
    group, kafka = GroupMember(Settings(prefix="p-"), TOPIC, "g"), Kafka()
    group._consumer = group._producer = kafka
    return group, kafka


async def taken(group: GroupMember, kafka: Kafka, **found: list[Any]) -> list[Any]:
    kafka.waiting = {ONE: found.get("one", []), TWO: found.get("two", [])}
    kafka.waiting = {partition: some for partition, some in kafka.waiting.items() if some}
    return await group.take(100, 0.0)


def run(played: Coroutine[Any, Any, None]) -> None:
    asyncio.run(played)


def test_a_partition_is_committed_up_to_its_first_unfinished_record() -> None:
    async def played() -> None:
        group, kafka = member()
        zero, two, four, other = await taken(group, kafka, one=records(ONE, 0, 2, 4), two=records(TWO, 7))
        await group.done([two])
        assert kafka.commits == [{ONE: 0, TWO: 7}], "offsets that compaction removed are no gap"
        assert (group.held(zero), group.held(two)) == (True, False)
        assert group.lag() == {0: 5 + 2, 1: 2 + 1} and group.oldest() == NOW
        await group.done([zero, other], [Output("copy", None, [(b"k", b"v")])])
        assert kafka.commits[1:] == [{ONE: 4, TWO: 8}] and kafka.sent == [("p-copy", b"v")]
        await group.done([four])
        await group.done([])
        assert kafka.commits[2:] == [{ONE: 5}], "committed offsets are not committed again"
        assert group.oldest() is None and group.lag() == {0: 5, 1: 2}

    run(played())


def test_a_failed_send_leaves_its_record_unfinished() -> None:
    async def played() -> None:
        group, kafka = member()
        [record] = await taken(group, kafka, one=records(ONE, 3))
        kafka.fails = TopicAuthorizationFailedError()
        with pytest.raises(TopicAuthorizationFailedError):
            await group.done([record], [Output("copy", None, [(b"k", b"v")])])
        assert group.held(record) and not kafka.commits

    run(played())


@pytest.mark.parametrize("error", [CommitFailedError, NotCoordinatorForGroupError])
def test_a_commit_that_fails_in_a_rebalance_is_covered_by_the_next(error: type[KafkaError]) -> None:
    async def played() -> None:
        group, kafka = member()
        first, second = await taken(group, kafka, one=records(ONE, 0, 1))
        kafka.fails = error()
        await group.done([first])
        assert not kafka.commits
        await group.done([second])
        assert kafka.commits == [{ONE: 2}]

    run(played())


def test_a_forbidden_commit_raises_its_error() -> None:
    async def played() -> None:
        group, kafka = member()
        [record] = await taken(group, kafka, one=records(ONE, 0))
        kafka.fails = TopicAuthorizationFailedError()
        with pytest.raises(TopicAuthorizationFailedError):
            await group.done([record])

    run(played())


def test_a_rebalance_commits_finished_records_and_releases_the_others() -> None:
    async def played() -> None:
        group, kafka = member()
        await group.on_partitions_assigned({ONE})
        assert group.joined
        first, second = await taken(group, kafka, one=records(ONE, 0, 1))
        kafka.fails = NotCoordinatorForGroupError()
        await group.done([first])
        await group.on_partitions_revoked({ONE})
        assert kafka.commits == [{ONE: 1}] and not group.held(second) and not group.joined
        await group.done([second])
        assert len(kafka.commits) == 1, "its new owner commits it"

    run(played())


@pytest.mark.parametrize(("failures", "is_outage"), [(1, False), (2, True)])
def test_one_closed_connection_is_no_outage(failures: int, is_outage: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker closes a connection whose login has ended."""
    monkeypatch.setattr("stream.kafka.group.PING_INTERVAL_S", 0.0)
    settings, asked = Settings(broker="kafka://b:1"), 0
    outage, began = Outage(settings), asyncio.Event()
    monkeypatch.setattr(outage, "begin", lambda *_: began.set())

    async def fetch_all_metadata() -> None:
        nonlocal asked
        asked += 1
        if asked <= failures:
            raise KafkaConnectionError("Connection at b:1 closed")
        if asked > failures + 1:
            await asyncio.Event().wait()

    async def watch() -> None:
        member = GroupMember(settings, TOPIC, "group")
        member._consumer = SimpleNamespace(_client=SimpleNamespace(fetch_all_metadata=fetch_all_metadata))
        watching = asyncio.create_task(member.watch(outage))
        async with asyncio.timeout(10):
            while asked < failures + 2:
                await asyncio.sleep(0)
        watching.cancel()
        assert began.is_set() is is_outage

    asyncio.run(watch())
