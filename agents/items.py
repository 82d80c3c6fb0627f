"""The item agent: fold item activity into the items' signals, and publish them to every worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from agents.batcher import MicroBatcher, OffLoop
from stream.events.decode import Reject
from stream.items.activity import decode_activities
from stream.items.signals import HalfLives, ItemTable
from stream.kafka.commit import Output, Outputs
from stream.kafka.dead_letters import dead_letters
from stream.kafka.run import Run

TOPICS = ("item-activity",)
# A run's changelog is one batch of at most 16 MB. 400 kB of activity concern fewer than 10,000 items, of 1.1 KB each.
RUN_RECORDS, RUN_BYTES = 512, 400_000
# Every click concerns about a dozen items in all partitions, and each would cost as many small commits. So a partition
# without a backlog is read again after this time, all partitions together; no page waits for signals.
POLL_INTERVAL_S = 0.25
Folded = tuple[list[tuple[bytes, bytes | None]], list[Output]]  # changelog, dead letters


class ItemTables:
    """The stored signals by partition."""

    def __init__(self, half_lives: HalfLives) -> None:
        self.partitions: dict[int, ItemTable] = defaultdict(lambda: ItemTable(half_lives))

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        self.partitions[partition].apply(records)

    def drop(self, partition: int) -> None:
        self.partitions.pop(partition, None)


class ItemAgent:
    """The agent of `item-activity`. Its changelog is `item-signals`, which every worker reads."""

    def __init__(self, tables: ItemTables, out: Outputs, off_loop: OffLoop) -> None:
        self._tables, self._out = tables, out
        self._fold: MicroBatcher[Run, Folded] = MicroBatcher(self._fold_all, off_loop)

    async def handle_runs(self, runs: AsyncIterator[Run]) -> None:
        """Fold each run into the signals and publish those that changed."""
        async for run in runs:
            changelog, rejected = await self._fold(run)
            await self._out.commit_run(run, rejected, changelog)

    def _fold_all(self, runs: Sequence[Run]) -> list[Folded]:
        return [self._fold_run(run) for run in runs]

    def _fold_run(self, run: Run) -> Folded:
        table = self._tables.partitions[run.partition]
        activity, problems = decode_activities([record.value for record in run.records])
        rejects = [Reject(index, "invalid", "value", problem) for index, problem in problems]
        # After a crash, activity is sent again with the same offsets. The table skips what it has already counted.
        changed = table.fold_all(activity)
        if not changed:
            return [], dead_letters(run, rejects)
        return [*table.records(changed), *table.sweep()], dead_letters(run, rejects)
