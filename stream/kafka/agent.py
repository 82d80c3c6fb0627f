"""An agent as the consumer sees it, and the part of the Faust app that its consumer, tables and recovery use."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import faust

from stream.kafka.run import BatchMessage, Run, RunTable

if TYPE_CHECKING:
    from stream.settings import Settings

AgentBody = Callable[[AsyncIterator[Run]], Awaitable[None]]


class AgentPartitions(NamedTuple):
    """One agent: its body runs once per partition number, over all topics of the agent."""

    body: AgentBody
    table: RunTable | None
    limit: int  # maximum records of a run
    limit_bytes: int  # approximate maximum bytes of a run's values; 0: no limit; a single larger record still passes
    pace: float  # seconds between two fetches of a partition that keeps up; 0: records are taken as they arrive
    queues: dict[int, asyncio.Queue[BatchMessage]]  # by partition number
    tasks: dict[int, asyncio.Task[None]]  # by partition number

    def run_length(self, backlog: Sequence[Any]) -> int:
        """How many of the waiting records go into the next run."""
        if not self.limit_bytes:
            return self.limit
        size = 0
        for length, record in enumerate(backlog[: self.limit]):
            size += len(record.value or b"")
            if size > self.limit_bytes:
                return max(1, length)
        return self.limit


class AgentApp(faust.App):
    """The app as its consumer, tables and recovery see it. `BatchApp` implements it."""

    settings: Settings
    agent_of: dict[str, AgentPartitions]  # topic (as the cluster names it) -> its agent

    @abstractmethod
    def announce_ready(self) -> None:
        """Call the hooks that wait for a complete assignment."""
