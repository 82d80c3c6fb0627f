"""How often a leader is fetched from: at once after a large or an empty answer, after a pause after a small one."""

import asyncio
from typing import Any

import pytest
from faust.types import TP

from stream.kafka.client import fetcher as fetch
from stream.kafka.client.brokers import FetchedPartition
from stream.kafka.client.fetcher import SMALL_FETCH_BYTES, SMALL_FETCH_PAUSE_S, Fetcher
from stream.settings import Settings

CLICKS = TP("clicks", 0)


@pytest.mark.parametrize(
    ("data", "pauses"),
    [
        ([b"", b"", b""], []),
        ([b"x", b"", b"x"], [SMALL_FETCH_PAUSE_S, SMALL_FETCH_PAUSE_S]),
        ([b"x" * SMALL_FETCH_BYTES] * 2, []),
    ],
)
def test_a_pause_follows_a_small_answer(
    monkeypatch: pytest.MonkeyPatch, data: list[bytes], pauses: list[float]
) -> None:
    answers, slept = iter(data), []

    async def answer(client: Any, leader: int, wanted: Any, wait_ms: int) -> list[FetchedPartition] | None:
        found = next(answers, None)
        return None if found is None else [FetchedPartition(CLICKS, None, 0, found)]

    class Client:
        class cluster:
            @staticmethod
            def leader_for_partition(tp: TP) -> int:
                return 1

        async def force_metadata_update(self) -> None:
            pass

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(fetch, "fetch_partitions", answer)
    monkeypatch.setattr(fetch, "parse_records", lambda data, start: ((), start))
    monkeypatch.setattr(asyncio, "sleep", sleep)
    fetcher: Any = Fetcher(Settings(), lambda: {CLICKS: 0}, lambda tp, asked, answer: None)
    asyncio.run(fetcher._follow(Client(), 1))
    assert slept == [*pauses, fetch.RETRY_S], "the last one because the leader was down"
