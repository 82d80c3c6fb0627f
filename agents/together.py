"""Calls that wait while one is at work are made as one, off the event loop: batches form by draining, never by a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
OffLoop = Callable[[Callable[[], Any]], Awaitable[Any]]


class Together(Generic[Item, Answer]):
    """`work` over single items as an awaitable call for each; it gets all that wait, and answers each in order.

    What `work` raises is raised in every call that it was made for.
    """

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Answer]], off_loop: OffLoop) -> None:
        self._work, self._off_loop = work, off_loop
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
                taken, self._waiting = self._waiting, []
                items = [item for item, _ in taken]
                try:
                    answers = await self._off_loop(lambda items=items: self._work(items))  # type: ignore[misc]
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
