"""Calls that wait while one is at work are made as one: batches form by draining, never by a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

# Turns of the loop for which a call waits for others: what one fetch brings of several partitions passes through Faust in one
# or two, and would else be several steps, of which each costs most of what a common one does.
TURNS = 2
Item = TypeVar("Item")
Answer = TypeVar("Answer")


class OffLoop(Protocol):
    """Makes a call without holding up the event loop for long. Calls never overlap, and come one after the other."""

    async def __call__(self, call: Callable[[], Any], brief: bool = False) -> Any:
        """What `call` returns or raises; `brief` says that it takes no more than a few ms."""


def single_thread_offload(name: str) -> OffLoop:
    """Calls run in a thread of their own; a brief one at once, on the loop, where nothing of the thread's is unfinished.

    To change threads and back costs a brief call more than it spares the loop: the interpreter's lock goes with it.
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
    """`work` over single items as an awaitable call for each; it gets all that wait, and answers each in order.

    What `work` raises is raised in every call that it was made for. `brief` says of items whether they are quickly done.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Answer]],
        off_loop: OffLoop,
        brief: Callable[[Sequence[Item]], bool] = lambda items: False,
    ) -> None:
        self._work, self._off_loop, self._brief = work, off_loop, brief
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._drainer: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())
        return await answer

    async def _drain(self) -> None:
        try:
            while self._waiting:
                for _ in range(TURNS):
                    await asyncio.sleep(0)
                taken, self._waiting = self._waiting, []
                items = [item for item, _ in taken]
                try:
                    answers = await self._off_loop(lambda items=items: self._work(items), self._brief(items))  # type: ignore[misc]
                except Exception as error:
                    for _, answer in taken:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for (_, answer), found in zip(taken, answers, strict=True):
                    if not answer.done():  # a caller may have been cancelled
                        answer.set_result(found)
        finally:
            self._drainer = None
