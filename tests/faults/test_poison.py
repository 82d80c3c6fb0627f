"""Poison with a real broker: records that make page generation fail, and a fault that is not caused by a record."""

import asyncio
from typing import Any

import pytest

from agents.page import path as page_path
from agents.worker import Worker
from stream.page.encode import encode_pages
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.worker_process import (
    assert_versions_rise,
    clicks,
    open_shop,
    pages_of,
    read_all,
    settings_for,
    until_counted,
)

POISON = "poisonous"


@pytest.fixture
def poisonous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the encoder fail for one shopper."""

    def encode(placed: Any, count: Any, heads: Any, *more: Any) -> Any:
        if any(head.user_key == POISON for head in heads):
            raise ArithmeticError(f"no page for {POISON}")
        return encode_pages(placed, count, heads, *more)

    monkeypatch.setattr(page_path, "encode_pages", encode)


def test_2_poison_becomes_dead_letters_and_the_others_are_served(
    broker: str, topic_prefix: str, poisonous: None, caplog: pytest.LogCaptureFixture
) -> None:
    process_poison_among_many(broker, topic_prefix)
    assert len([line for line in caplog.messages if "ArithmeticError in test_poison.py" in line]) == 3
    assert not [line for line in caplog.messages if POISON in line]


@scenario
async def process_poison_among_many(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    good = clicks(1_500, 300)
    bad = [record("view_item", POISON, f"p{k}", NOW + k, item="i1") for k in range(3)]
    await send(settings, "clicks", [*good[:100], bad[0], *good[100:700], *bad[1:], *good[700:]])
    stop = asyncio.Event()
    run = asyncio.create_task(Worker(settings).run(stop, lambda line: None))
    try:
        profiles = await until_counted(settings, len(good))
        async with asyncio.timeout(30):
            while len(refused := await read_all(settings, "dead-letters")) < 3:
                assert not run.done(), "the worker must continue"
                await asyncio.sleep(0.05)
    finally:
        stop.set()
        await run
    assert POISON not in profiles and len(profiles) == 300
    assert [(letter.key, letter.value) for letter in refused] == bad
    for letter in refused:
        headers = {name: value.decode() for name, value in letter.headers}
        assert (headers["topic"], headers["error"]) == ("clicks", "poison")
        assert headers["message"] == "ArithmeticError: no page for ..."
    pages = pages_of(await read_all(settings, "homepages"))
    assert len(pages) == 300
    assert_versions_rise(pages)


@scenario
async def test_a_fault_of_the_program_stops_the_worker_and_loses_no_event(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    await send(settings, "clicks", clicks(200, 20))
    with pytest.MonkeyPatch.context() as patch:

        def broken(*arguments: Any) -> Any:
            raise ArithmeticError("u3")

        faulty = Worker(settings)
        faulty.app.when_ready(lambda: patch.setattr(page_path, "encode_pages", broken))
        with pytest.raises(
            RuntimeError, match=r"page generation fails for every event \(ArithmeticError .*wait in Kafka"
        ):
            await faulty.run(asyncio.Event(), lambda line: None)
    assert await read_all(settings, "dead-letters") == []
    stop = asyncio.Event()
    run = asyncio.create_task(Worker(settings).run(stop, lambda line: None))
    try:
        await until_counted(settings, 200)
    finally:
        stop.set()
        await run
