"""The agent that has headlines written: what is too late is passed over, what is written is remembered for its time only."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agents import copy
from agents.copy import Copies
from agents.scribe import ScribeRests
from models.copybook import PATIENCE, CopyRequest, CopyText
from models.copywriter import Copy
from stream import metrics
from stream.settings import Settings
from tests.unit.behaviour import NOW


class Desk:
    """A copywriter and an outbox that note what they get."""

    version = "sha256:desk"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.sent: list[CopyText] = []
        self.rests = False

    async def write(self, facts: Any, seed: int) -> list[Copy | None]:
        self.asked.append([one.category for one in facts])
        if self.rests:
            raise ScribeRests
        return [Copy("Lamps for you", -1.0) for _ in facts]

    async def commit_run(self, run: Any, outputs: Any, changelog: Any = ()) -> None:
        for output in outputs:
            if output.topic == "copy":
                self.sent += [msgspec.json.decode(value, type=CopyText) for _, value in output.records]


def request(category: str, at: float) -> Any:
    value = CopyRequest(f"en|for_you|{category}", "en", "for_you", category, [])
    return SimpleNamespace(key=value.segment.encode(), value=msgspec.json.encode(value), timestamp=at * 1000, offset=0,
                           headers=())  # fmt: skip


def serve(copies: Copies, *records: Any) -> None:
    async def runs() -> Any:
        yield SimpleNamespace(topic="copy-requests", partition=0, records=records)

    asyncio.run(copies.live(runs()))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [NOW]
    monkeypatch.setattr("agents.copy.time.time", lambda: now[0])
    return now


def agent(desk: Any) -> Copies:
    return Copies(Settings(copy_ttl=100.0), desk, desk)


def test_requests_that_were_asked_again_since_are_passed_over(clock: list[float]) -> None:
    desk = Desk()
    serve(agent(desk), request("old", NOW - PATIENCE - 1), request("new", NOW - PATIENCE + 1), request("new", NOW))
    assert desk.asked == [["new"]]
    assert [text.category for text in desk.sent] == ["new"]


def test_what_a_resting_copywriter_does_not_write_is_neither_called_impossible_nor_remembered(
    clock: list[float],
) -> None:
    desk = Desk()
    copies, desk.rests = agent(desk), True
    labels = {"locale": "en", "result": "dropped"}
    before = metrics.REGISTRY.get_sample_value("shopwindow_copies_total", labels) or 0.0
    serve(copies, request("c", NOW))
    assert desk.sent == []
    assert metrics.REGISTRY.get_sample_value("shopwindow_copies_total", labels) == before + 1
    desk.rests = False
    serve(copies, request("c", NOW))
    assert [text.text for text in desk.sent] == ["Lamps for you"]


def test_what_is_written_is_written_again_when_its_time_is_over_and_forgotten_then(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "TEXTS", 3)
    desk = Desk()
    copies = agent(desk)
    for k in range(5):
        serve(copies, request(f"c{k}", NOW))
    assert list(copies._written) == [f"en|for_you|c{k}" for k in (2, 3, 4)]
    serve(copies, request("c4", NOW))
    assert len(desk.asked) == 5, "it is there"
    clock[0] += 101.0
    serve(copies, request("c4", NOW + 101))
    assert len(desk.asked) == 6 and list(copies._written) == ["en|for_you|c4"]
