"""The item agent: fold item activity into the items' signals, and publish them to every worker."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

import numpy as np

from agents.batcher import MicroBatcher, OffLoop
from stream.events.decode import Reject
from stream.items.activity import ActivityBatch, decode_activities
from stream.items.signals import SIGNAL, HalfLives, ItemTable
from stream.kafka.commit import Output, Outputs
from stream.kafka.dead_letters import dead_letters
from stream.kafka.run import Run
from stream.kafka.topics import BATCH_LIMIT
from stream.row_codec import max_packed_bytes
from stream.types import I64

TOPICS = ("item-activity",)
RUN_RECORDS, RUN_BYTES = 512, 400_000
CHANGELOG_ROOM_BYTES = 10_000  # for a changelog's watermark, and tombstones of expired signals
MAX_SIGNAL_BYTES = max_packed_bytes(SIGNAL) + 64  # of the changelog record of an item, with its key
SOURCE_BYTES = 100  # upper bound of the changelog record of a source of activity
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
        activity, rejects = self._take_fitting(run, table)
        letters = dead_letters(run, rejects, self._out.batch_limit("dead-letters"))
        # After a crash, activity is sent again with the same offsets. The table skips what it has already counted.
        changed = table.fold_all(activity)
        return [*table.records(changed), *table.sweep()] if changed else [], letters

    def _take_fitting(self, run: Run, table: ItemTable) -> tuple[ActivityBatch, list[Reject]]:
        """Decode a run, and cut it to the records whose items fit one changelog batch.

        The table cannot undo a fold, so the items are counted before. A record that does not even fit alone is
        rejected: only workers with a larger limit send one, or a purchase of a hundred items if the limit is small.
        """
        activity, problems = decode_activities([record.value for record in run.records])
        limit = self._out.changelog_limit("item-signals")
        sources_bytes = SOURCE_BYTES * len({*table.sources, *activity.sources})
        max_items = max(1, (limit - CHANGELOG_ROOM_BYTES - sources_bytes) // MAX_SIGNAL_BYTES)
        rejects = [Reject(index, "invalid", "value", problem) for index, problem in problems]
        if len(activity.rows) <= max_items:
            return activity, rejects
        items = _distinct_items(activity)
        fitting = int(np.searchsorted(items, max_items, side="right"))
        if fitting == len(items):
            return activity, rejects
        invalid = {index for index, _ in problems}
        count = [index for index in range(len(run.records)) if index not in invalid][fitting]
        if count:
            run.cut(count)
            return self._take_fitting(run, table)
        run.cut(1)
        message = (
            f"the signals of {items[0]} items do not fit one record batch: 'item-signals' takes at most {limit} bytes; "
            f"raise its {BATCH_LIMIT}"
        )
        return decode_activities([])[0], [Reject(0, "too_large", "value", message)]


def _distinct_items(activity: ActivityBatch) -> I64:
    """(records,) number of distinct items in the records up to each one."""
    _, first_rows = np.unique(activity.rows["item"], return_index=True)
    counts: I64 = np.searchsorted(np.sort(first_rows), activity.ends)
    return counts
