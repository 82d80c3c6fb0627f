"""Micro-batching: calls that wait form one batch, and an error or cancellation stays with its own batch or call."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from agents.batcher import GATHER_ITERATIONS, MicroBatcher, single_thread_offload


class Gate:
    """An `OffLoop` whose calls wait until the test opens it."""

    def __init__(self) -> None:
        self.open, self.reached = asyncio.Event(), asyncio.Event()
        self.open.set()

    async def __call__(self, call: Any, brief: bool = False) -> Any:
        self.reached.set()
        await self.open.wait()
        return call()


def test_calls_that_wait_during_a_batch_form_the_next_one() -> None:
    batches: list[list[int]] = []

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return [2 * item for item in items]

    async def calls() -> list[int]:
        gate = Gate()
        batcher = MicroBatcher(double, gate)
        gate.open.clear()
        first = asyncio.create_task(batcher(1))
        await gate.reached.wait()
        rest = [asyncio.create_task(batcher(n)) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        gate.open.set()
        found = await asyncio.gather(first, *rest)
        return [*found, await batcher(5)]

    assert asyncio.run(calls()) == [2, 4, 6, 8, 10]
    assert batches == [[1], [2, 3, 4], [5]]


def test_calls_of_the_next_loop_iterations_join_the_batch() -> None:
    batches: list[list[int]] = []

    def note(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return list(items)

    async def calls() -> None:
        batcher = MicroBatcher(note, Gate())
        found = []
        for n in range(1 + GATHER_ITERATIONS):
            found.append(asyncio.create_task(batcher(n)))
            await asyncio.sleep(0)
        await asyncio.gather(*found)

    asyncio.run(calls())
    assert batches == [list(range(1 + GATHER_ITERATIONS))]


def test_an_error_reaches_every_call_of_its_batch_and_no_other() -> None:
    def refuse_odd(items: Sequence[int]) -> list[int]:
        if any(item % 2 for item in items):
            raise ValueError(f"{items}")
        return list(items)

    async def calls() -> None:
        batcher = MicroBatcher(refuse_odd, Gate())
        with pytest.raises(ValueError, match=r"\[1\]"):
            await batcher(1)
        assert await batcher(2) == 2
        outcomes = await asyncio.gather(batcher(3), batcher(4), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]

    asyncio.run(calls())


def test_a_cancelled_call_leaves_the_answers_of_its_batch_alone() -> None:
    async def calls() -> None:
        gate = Gate()
        batcher: MicroBatcher[int, int] = MicroBatcher(lambda items: list(items), gate)
        gate.open.clear()
        one, two = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
        await asyncio.sleep(0)
        one.cancel()
        gate.open.set()
        assert await two == 2
        with pytest.raises(asyncio.CancelledError):
            await one

    asyncio.run(calls())


def test_a_brief_call_runs_on_the_loop_unless_the_thread_is_busy() -> None:
    async def calls() -> None:
        off_loop, free, order = single_thread_offload("test"), threading.Event(), []

        def call(name: str) -> str:
            order.append(name)
            return threading.current_thread().name

        def held() -> str:
            free.wait(10)
            return call("long")

        loop_thread = threading.current_thread().name
        assert await off_loop(lambda: call("brief"), True) == loop_thread
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


def test_the_offload_learns_which_batches_are_brief() -> None:
    brief_flags: list[bool] = []

    async def off_loop(call: Any, brief: bool = False) -> Any:
        brief_flags.append(brief)
        return call()

    async def calls() -> None:
        batcher: MicroBatcher[int, int] = MicroBatcher(
            lambda items: list(items), off_loop, lambda items: sum(items) < 4
        )
        await asyncio.gather(batcher(1), batcher(2))
        await asyncio.gather(batcher(2), batcher(3))

    asyncio.run(calls())
    assert brief_flags == [True, False]
