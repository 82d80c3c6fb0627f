"""A run: a stretch of records of one partition, from the agent's hands until it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from faust.types import TP
from faust.types.tuples import ConsumerMessage

if TYPE_CHECKING:
    from stream.kafka.consumer import BatchConsumer
    from stream.kafka.tables.table import ExactTable


class PartitionLost(Exception):
    """The partition of a run has, or may have, another owner: nothing more of the run may be written."""


class Run:
    """A contiguous stretch of records of one partition, none of which the agent's table has counted yet."""

    __slots__ = (
        "_consumer", "_ended", "before", "counted", "counts", "epoch", "generation", "partition", "posted", "records",
        "rows", "skipped", "table", "topic", "tp",
    )  # fmt: skip

    def __init__(
        self,
        consumer: BatchConsumer,
        message: BatchMessage,
        topic: str,
        records: Sequence[Any],
        table: ExactTable | None,
        before: Run | None = None,
    ) -> None:
        self.topic = topic  # logical: without the prefix
        self.partition = message.partition
        self.records = records  # aiokafka's: .key .value .timestamp (ms) .offset .headers
        self.skipped = len(message.records) - len(records)  # came again, below the table's watermark
        self.table = table
        self.tp: TP = message.tp
        self.generation = message.generation_id
        self._consumer = consumer
        self.epoch = message.epoch
        self.before = before  # of the same agent and partition number; may count already
        self.counted = False
        self.counts: asyncio.Task[None] | None = None  # sees to it that it counts, while the agent goes on
        self.rows: frozenset[bytes] = frozenset()  # keys that it changes
        self.posted = False  # its outputs are on their way
        self._ended = asyncio.Event()

    @property
    def first(self) -> int:
        """Offset of the first record."""
        return int(self.records[0].offset)

    @property
    def last(self) -> int:
        """Offset of the last record."""
        return int(self.records[-1].offset)

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def done(self) -> None:
        """Acknowledge: every effect of the run is durable. `Outputs.commit_run` calls it, in the right order."""
        self._consumer.finish(self.tp, self.last + 1, self)
        self.counted, self.before = True, None
        self._ended.set()

    def uncounted(self) -> Iterator[Run]:
        """The runs before it that do not count yet, the last first."""
        run = self.before
        while run is not None and not run.counted:
            yield run
            run = run.before

    def stepped(self) -> None:
        """The agent is done with the run but for its effects, which are on their way: it may have the next."""
        self._consumer.step_on(self)

    def abandon(self) -> None:
        """Give up the run, unacknowledged; its partition's next owner has it again."""
        self._consumer.give_up(self)
        self._ended.set()

    async def ending(self) -> None:
        await self._ended.wait()

    async def still_owned(self) -> None:
        """Return while the group counts the partition as ours. Raises PartitionLost where it does not."""
        await self._consumer.still_owned(self)


class BatchMessage(ConsumerMessage):
    """The one Faust message that stands for a run; `epoch` tells it from one of before the last rebalance."""

    __slots__ = ("epoch", "records")
    epoch: int
    records: list[Any]
