"""Micro-batching: calls that wait while another is processed are processed together.

Batches form by draining what waits, never by a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

# Event loop iterations that a call waits for others. One fetch brings records of several partitions, which pass through
# Faust within one or two iterations. Without the wait they would be several batches, each at most of the cost of one.
GATHER_ITERATIONS = 2
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class OffLoop(Protocol):
    """Makes calls without blocking the event loop for long. Calls never overlap, and run in order."""

    async def __call__(self, call: Callable[[], Any], brief: bool = False) -> Any:
        """Return or raise what `call` does. `brief`: it takes no more than a few ms."""


def single_thread_offload(name: str) -> OffLoop:
    """Run calls in one thread; a brief call runs at once on the loop if the thread is idle.

    Changing threads and back costs a brief call more than it saves the loop: the interpreter's lock changes hands too.
    """
    executor = ThreadPoolExecutor(1, name)
    last: Future[Any] | None = None

    async def off_loop(call: Callable[[], Any], brief: bool = False) -> Any:
        nonlocal last
        if brief and (last is None or last.done()):
            return call()
        last = executor.submit(call)
        return await asyncio.wrap_future(last)

    return off_loop


class MicroBatcher(Generic[Item, Answer]):
    """Makes `work` over batches an awaitable call for each item. `work` returns an answer for each item, in order.

    An error of `work` is raised in every call of its batch. `is_brief` says if a batch takes no more than a few ms.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Answer]],
        off_loop: OffLoop,
        is_brief: Callable[[Sequence[Item]], bool] = lambda items: False,
    ) -> None:
        self._work, self._off_loop, self._is_brief = work, off_loop, is_brief
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._drainer: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            while self._waiting:
                for _ in range(GATHER_ITERATIONS):
                    await asyncio.sleep(0)
                batch, self._waiting = self._waiting, []
                items = [item for item, _ in batch]
                try:
                    answers = await self._off_loop(partial(self._work, items), self._is_brief(items))
                except Exception as error:
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():  # its caller may have been cancelled
                        future.set_result(answer)
        finally:
            self._drainer = None
