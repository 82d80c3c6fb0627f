"""Calls made together: what waits is one batch, and one call's fate is not another's."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from agents.batcher import TURNS, MicroBatcher, single_thread_offload


class Gate:
    """Work off the loop that ends when the test says so."""

    def __init__(self) -> None:
        self.open, self.reached = asyncio.Event(), asyncio.Event()
        self.open.set()

    async def __call__(self, call: Any, brief: bool = False) -> Any:
        self.reached.set()
        await self.open.wait()
        return call()


def test_what_waits_while_one_call_is_at_work_is_one_batch() -> None:
    batches: list[list[int]] = []

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return [2 * item for item in items]

    async def calls() -> list[int]:
        gate = Gate()
        together = MicroBatcher(double, gate)
        gate.open.clear()
        first = asyncio.create_task(together(1))
        await gate.reached.wait()
        rest = [asyncio.create_task(together(n)) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        gate.open.set()
        found = await asyncio.gather(first, *rest)
        return [*found, await together(5)]

    assert asyncio.run(calls()) == [2, 4, 6, 8, 10]
    assert batches == [[1], [2, 3, 4], [5]]


def test_calls_that_come_in_the_next_turns_of_the_loop_are_one_batch() -> None:
    batches: list[list[int]] = []

    def note(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return list(items)

    async def calls() -> None:
        together = MicroBatcher(note, Gate())
        found = []
        for n in range(1 + TURNS):
            found.append(asyncio.create_task(together(n)))
            await asyncio.sleep(0)
        await asyncio.gather(*found)

    asyncio.run(calls())
    assert batches == [list(range(1 + TURNS))]


def test_an_error_reaches_every_call_of_its_batch_and_no_other() -> None:
    def refuse_odd(items: Sequence[int]) -> list[int]:
        if any(item % 2 for item in items):
            raise ValueError(f"{items}")
        return list(items)

    async def calls() -> None:
        together = MicroBatcher(refuse_odd, Gate())
        with pytest.raises(ValueError, match=r"\[1\]"):
            await together(1)
        assert await together(2) == 2
        outcomes = await asyncio.gather(together(3), together(4), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]

    asyncio.run(calls())


def test_a_caller_that_is_cancelled_leaves_its_neighbours_their_answers() -> None:
    async def calls() -> None:
        gate = Gate()
        together: MicroBatcher[int, int] = MicroBatcher(lambda items: list(items), gate)
        gate.open.clear()
        one, two = asyncio.create_task(together(1)), asyncio.create_task(together(2))
        await asyncio.sleep(0)
        one.cancel()
        gate.open.set()
        assert await two == 2
        with pytest.raises(asyncio.CancelledError):
            await one

    asyncio.run(calls())


def test_a_brief_call_is_made_at_once_unless_one_of_the_thread_is_unfinished() -> None:
    async def calls() -> None:
        off_loop, free, order = single_thread_offload("test"), threading.Event(), []

        def call(name: str) -> str:
            order.append(name)
            return threading.current_thread().name

        def held() -> str:
            free.wait(10)
            return call("long")

        here = threading.current_thread().name
        assert await off_loop(lambda: call("brief"), True) == here
        assert (await off_loop(lambda: call("other"))).startswith("test")
        long = asyncio.create_task(off_loop(held))
        await asyncio.sleep(0)
        behind = asyncio.create_task(off_loop(lambda: call("behind"), True))
        await asyncio.sleep(0)
        free.set()
        assert [(await task).startswith("test") for task in (long, behind)] == [True, True], "calls never overlap"
        assert order == ["brief", "other", "long", "behind"]
        with pytest.raises(ZeroDivisionError):
            await off_loop(lambda: 1 / 0, True)

    asyncio.run(calls())


def test_who_works_is_told_which_items_are_brief() -> None:
    told: list[bool] = []

    async def off_loop(call: Any, brief: bool = False) -> Any:
        told.append(brief)
        return call()

    async def calls() -> None:
        together: MicroBatcher[int, int] = MicroBatcher(
            lambda items: list(items), off_loop, lambda items: sum(items) < 4
        )
        await asyncio.gather(together(1), together(2))
        await asyncio.gather(together(2), together(3))

    asyncio.run(calls())
    assert told == [True, False]
