"""The owner of the items' signals: what shoppers did, by item, folded and told to every worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from agents.batcher import MicroBatcher, OffLoop
from stream.events import Reject
from stream.items.activity import decode_activities
from stream.items.signals import HalfLives, ItemTable
from stream.kafka.commit import Output, Outputs
from stream.kafka.dead_letters import dead_letters
from stream.kafka.run import Run

TOPICS = ("item-activity",)
# The changelog of a run is one batch of at most 16 MB: so many bytes of activity concern less than 10,000 items, of 1.1 KB.
RUN_RECORDS, RUN_BYTES = 512, 400_000
# Every click concerns a dozen items in all partitions, so each would cost as many small commits. A partition that keeps
# up is read again after this time, all of them together; no page waits for signals.
PACE = 0.25  # s
Answer = tuple[list[tuple[bytes, bytes | None]], list[Output]]


class ItemTables:
    """The signals at rest by partition."""

    def __init__(self, half_lives: HalfLives) -> None:
        self.partitions: dict[int, ItemTable] = defaultdict(lambda: ItemTable(half_lives))

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        self.partitions[partition].apply(records)

    def drop(self, partition: int) -> None:
        self.partitions.pop(partition, None)


class Items:
    """The agent of `item-activity`. Its changelog is `item-signals`, which everybody reads."""

    def __init__(self, tables: ItemTables, out: Outputs, off_loop: OffLoop) -> None:
        self._tables, self._out = tables, out
        self._folded: MicroBatcher[Run, Answer] = MicroBatcher(self._fold_all, off_loop)

    async def live(self, runs: AsyncIterator[Run]) -> None:
        async for run in runs:
            changelog, letters = await self._folded(run)
            await self._out.commit_run(run, letters, changelog)

    def _fold_all(self, runs: Sequence[Run]) -> list[Answer]:
        return [self._fold(run) for run in runs]

    def _fold(self, run: Run) -> Answer:
        table = self._tables.partitions[run.partition]
        activity, wrong = decode_activities([record.value for record in run.records])
        rejects = [Reject(at, "invalid", "value", problem) for at, problem in wrong]
        # A crash sends activity again, with the same offsets: the table knows how far it has counted each source.
        changed = table.fold_all(activity)
        if not changed:
            return [], dead_letters(run, rejects)
        return [*table.records(changed), *table.sweep()], dead_letters(run, rejects)
