"""A run: a contiguous stretch of records of one partition, from its delivery to its acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from faust.types import TP
from faust.types.tuples import ConsumerMessage


class PartitionLost(Exception):
    """The partition of a run has, or may have, another owner: nothing more of the run may be written."""


class RunOwner(Protocol):
    """What a run needs of the consumer that delivered it."""

    def acknowledge(self, tp: TP, next_offset: int, run: Run | None) -> None:
        """Record that every record below `next_offset` is done."""

    def release_next(self, run: Run) -> None:
        """Allow the next run of the partition to be delivered, which gets the records that `run` has left over."""

    def remove_run(self, run: Run) -> None:
        """Remove the run from those in flight, without an acknowledgement."""

    async def ensure_owned(self, run: Run) -> None:
        """Return while the partition is ours; raise PartitionLost if it is not."""


class RunTable(Protocol):
    """What a run, its consumer and its commit need of the table that the agent keeps."""

    name: str
    skipped: int

    def watermark(self, topic: str, partition: int) -> int:
        """The first offset of the source that the table has not counted."""

    def watermark_record(self, topic: str, partition: int, next_offset: int) -> tuple[bytes, bytes]:
        """The changelog record that sets the watermark of a source."""

    def changelog_name(self) -> str:
        """The changelog topic, as the cluster names it."""

    def mark_written(
        self, topic: str, partition: int, next_offset: int, changelog_offset: int,
        changelog: Sequence[tuple[bytes, bytes | None]],
    ) -> None:  # fmt: skip
        """Record that a run's changelog batch is acknowledged."""

    def invalidate(self, partition: int) -> None:
        """Drop the rows of the partition at the next rebalance."""


class BatchMessage(ConsumerMessage):
    """The single Faust message that carries the records of a run; `epoch` increases at each rebalance."""

    __slots__ = ("epoch", "records")
    epoch: int
    records: list[Any]


class Run:
    """A contiguous stretch of records of one partition; the agent's table has counted none of them yet."""

    __slots__ = (
        "_ended", "_owner", "changed_keys", "commit_task", "epoch", "generation", "is_committed", "left_over",
        "partition", "previous", "records", "sent", "skipped", "table", "topic", "tp",
    )  # fmt: skip

    def __init__(
        self,
        owner: RunOwner,
        message: BatchMessage,
        topic: str,
        records: Sequence[Any],
        table: RunTable | None,
        previous: Run | None = None,
    ) -> None:
        self.topic = topic  # logical: without the prefix
        self.partition = message.partition
        self.records = records  # aiokafka's: .key .value .timestamp (ms) .offset .headers
        self.left_over: Sequence[Any] = ()  # records after `records`, which the next run gets
        self.skipped = len(message.records) - len(records)  # delivered again, below the table's watermark
        self.table = table
        self.tp: TP = message.tp
        self.generation = message.generation_id
        self.epoch = message.epoch
        self.previous = previous  # of the same agent and partition number; it may be committed already
        self.is_committed = False
        self.commit_task: asyncio.Task[None] | None = None  # set if the run is committed in the background
        self.changed_keys: frozenset[bytes] = frozenset()  # keys of the table's rows that the run changes
        self.sent: asyncio.Future[None] | None = None  # the acknowledgement of the outputs, once they are sent
        self._owner = owner
        self._ended = asyncio.Event()

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def last(self) -> int:
        """Offset of the last record."""
        return int(self.records[-1].offset)

    def cut(self, count: int) -> None:
        """Keep the first `count` records, and leave the others to the partition's next run.

        May be called in a thread, before the run is committed.
        """
        self.records, self.left_over = self.records[:count], [*self.records[count:], *self.left_over]

    @property
    def outputs_sent(self) -> bool:
        """True once the outputs are sent, not necessarily acknowledged, unless one of them has failed."""
        sent = self.sent
        return sent is not None and not (sent.done() and (sent.cancelled() or sent.exception() is not None))

    @property
    def has_ended(self) -> bool:
        """True once the run is acknowledged or abandoned."""
        return self._ended.is_set()

    def acknowledge(self) -> None:
        """Acknowledge the run: all its effects are durable. `Outputs.commit_run` calls this, in the right order."""
        self._owner.acknowledge(self.tp, self.last + 1, self)
        self.is_committed, self.previous = True, None
        self._ended.set()

    def uncommitted_predecessors(self) -> Iterator[Run]:
        """Yield the earlier runs of the partition that are not committed yet, the latest first."""
        run = self.previous
        while run is not None and not run.is_committed:
            yield run
            run = run.previous

    def release_next(self) -> None:
        """Let the agent take the next run of the partition while this one is being committed."""
        self._owner.release_next(self)

    def abandon(self) -> None:
        """End the run without an acknowledgement; the partition's next owner processes it again."""
        self._owner.remove_run(self)
        self._ended.set()

    async def wait_ended(self) -> None:
        """Return once `has_ended`."""
        await self._ended.wait()

    async def ensure_owned(self) -> None:
        """Return while the group counts the partition as ours. Raise PartitionLost if it does not."""
        await self._owner.ensure_owned(self)
