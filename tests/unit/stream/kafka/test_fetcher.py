"""How often a leader is fetched from: at once after a large or an empty answer, after a pause after a small one."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import NodeNotReadyError
from faust.types import TP

from stream.kafka.client.fetcher import RETRY_S, SMALL_FETCH_BYTES, SMALL_FETCH_PAUSE_S, FetchedRecords, Fetcher
from stream.settings import Settings
from tests.harness.kafka_parts import VirtualTimeLoop, encode_batch, idle_connections

CLICKS, LEADER = TP("clicks", 0), 1
SMALL = encode_batch([(b"k", b"x")], 0)
LARGE = encode_batch([(b"k", bytes(SMALL_FETCH_BYTES))], 0)


def response(data: bytes, version: int = 11, aborted: Any = None) -> Any:
    """A fetch response with one partition: its high watermark is 9, its last stable offset 7."""
    log_start, preferred_replica = [0] * (version >= 5), [-1] * (version >= 11)
    partition = (CLICKS.partition, 0, 9, 7, *log_start, aborted, *preferred_replica, data)
    return SimpleNamespace(API_VERSION=version, topics=[(CLICKS.topic, [partition])])


class Client:
    """A client whose broker gives prepared answers, and then is down. It records the times of the requests."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = list(answers)
        self.requested_at: list[float] = []
        self.metadata_updated_at = -1.0
        self.cluster = SimpleNamespace(leader_for_partition=lambda tp: LEADER)
        self._conns = idle_connections(LEADER)

    async def ready(self, leader: int) -> bool:
        return True

    async def send(self, leader: int, request: Any) -> Any:
        self.requested_at.append(asyncio.get_running_loop().time())
        if not self.answers:
            raise NodeNotReadyError
        return response(self.answers.pop(0))

    async def force_metadata_update(self) -> None:
        self.metadata_updated_at = asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("answers", "pauses"),
    [
        ([b"", b"", b""], [0.0, 0.0, 0.0]),
        ([SMALL, b"", SMALL], [SMALL_FETCH_PAUSE_S, 0.0, SMALL_FETCH_PAUSE_S]),
        ([LARGE, LARGE], [0.0, 0.0]),
    ],
    ids=["empty", "small", "large"],
)
def test_a_pause_follows_a_small_answer(answers: list[bytes], pauses: list[float]) -> None:
    client = Client(answers)
    taken: list[int] = []
    fetcher = Fetcher(Settings(), lambda: {CLICKS: 0}, lambda tp, offset, fetched: taken.append(offset))
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(fetcher._follow(client, LEADER))
    requested = client.requested_at
    assert [after - before for before, after in pairwise(requested)] == pytest.approx(pauses)
    assert client.metadata_updated_at == pytest.approx(requested[-1] + RETRY_S), "the leader is looked up after a retry"
    assert len(taken) == len(answers)


@pytest.mark.parametrize("version", [4, 10, 11])
@pytest.mark.parametrize("isolation", ["read_committed", "read_uncommitted"])
def test_aborted_records_and_the_end_depend_on_the_isolation(version: int, isolation: str) -> None:
    data = encode_batch([(b"aborted", b"x")], 5, producer=1) + encode_batch([(b"good", b"x")], 6)
    is_committed = isolation == "read_committed"

    class Broker(Client):
        async def send(self, leader: int, request: Any) -> Any:
            assert request._isolation_level == is_committed
            return response(data, version, [(1, 5)] if is_committed else None)

    taken: list[FetchedRecords] = []
    take: Any = lambda tp, offset, fetched: taken.append(fetched)  # noqa: E731
    fetcher, client = Fetcher(Settings(isolation=isolation), dict, take), Broker([])
    asyncio.run(fetcher._fetch(client, LEADER, {CLICKS: 5}))
    [fetched] = taken
    assert [record.key for record in fetched.records] == [b"good"] if is_committed else [b"aborted", b"good"]
    assert (fetched.next_offset, fetched.end) == (7, 7 if is_committed else 9)
