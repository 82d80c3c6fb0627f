"""Calls made together: what waits is one batch, and one call's fate is not another's."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from agents.together import Together


class Gate:
    """Work off the loop that ends when the test says so."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, call: Any) -> Any:
        await self.open.wait()
        return call()


def test_what_waits_while_one_call_is_at_work_is_one_batch() -> None:
    batches: list[list[int]] = []

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        return [2 * item for item in items]

    async def calls() -> list[int]:
        gate = Gate()
        together = Together(double, gate)
        gate.open.clear()
        first = asyncio.create_task(together(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the first is at work
        rest = [asyncio.create_task(together(n)) for n in (2, 3, 4)]
        await asyncio.sleep(0)
        gate.open.set()
        found = await asyncio.gather(first, *rest)
        return [*found, await together(5)]

    assert asyncio.run(calls()) == [2, 4, 6, 8, 10]
    assert batches == [[1], [2, 3, 4], [5]]


def test_an_error_reaches_every_call_of_its_batch_and_no_other() -> None:
    def refuse_odd(items: Sequence[int]) -> list[int]:
        if any(item % 2 for item in items):
            raise ValueError(f"{items}")
        return list(items)

    async def calls() -> None:
        together = Together(refuse_odd, Gate())
        with pytest.raises(ValueError, match=r"\[1\]"):
            await together(1)
        assert await together(2) == 2
        outcomes = await asyncio.gather(together(3), together(4), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ValueError, ValueError]

    asyncio.run(calls())


def test_a_caller_that_is_cancelled_leaves_its_neighbours_their_answers() -> None:
    async def calls() -> None:
        gate = Gate()
        together: Together[int, int] = Together(lambda items: list(items), gate)
        gate.open.clear()
        one, two = asyncio.create_task(together(1)), asyncio.create_task(together(2))
        await asyncio.sleep(0)
        one.cancel()
        gate.open.set()
        assert await two == 2
        with pytest.raises(asyncio.CancelledError):
            await one

    asyncio.run(calls())
