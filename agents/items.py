"""The owner of the items' signals: what shoppers did, by item, folded and told to every worker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from agents.shopper import dead_letters
from stream.events import Reject
from stream.kafka.outputs import Output, Outputs
from stream.kafka.transport import Run
from stream.signals import ItemTable, decode_activity

TOPICS = ("item-activity",)
# Of one run. Each record is the activity of a whole run of behaviour, and the changelog of them all is one batch.
RUN_RECORDS = 12
# Every click concerns a dozen items, so each would cost as many small commits. Between two runs of a partition that
# keeps up we wait: signals reach the pages a quarter of a second later, and no page waits for them.
PACE = 0.25  # s
Answer = tuple[list[tuple[bytes, bytes]], list[Output]]
OffLoop = Callable[[Callable[[], Answer]], Awaitable[Answer]]


class ItemTables:
    """The signals at rest by partition."""

    def __init__(self) -> None:
        self.partitions: dict[int, ItemTable] = defaultdict(ItemTable)

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        self.partitions[partition].apply(records)

    def drop(self, partition: int) -> None:
        self.partitions.pop(partition, None)


class Items:
    """The agent of `item-activity`. Its changelog is `item-signals`, which everybody reads."""

    def __init__(self, tables: ItemTables, out: Outputs, off_loop: OffLoop) -> None:
        self._tables, self._out, self._off_loop = tables, out, off_loop

    async def live(self, runs: AsyncIterator[Run]) -> None:
        async for run in runs:
            changelog, letters = await self._off_loop(lambda run=run: self._fold(run))  # type: ignore[misc]
            await self._out.commit_run(run, letters, changelog)
            if len(run.records) < RUN_RECORDS:
                await asyncio.sleep(PACE)

    def _fold(self, run: Run) -> Answer:
        table = self._tables.partitions[run.partition]
        changed: set[int] = set()
        rejects = []
        for at, record in enumerate(run.records):
            try:
                source, partition, rows = decode_activity(record.value)
            except ValueError as error:
                rejects.append(Reject(at, "invalid", "value", str(error)))
                continue
            # A crash sends activity again, with the same offsets: the table knows how far it has counted each source.
            changed |= table.fold(source, partition, rows)
        return table.records(changed) if changed else [], dead_letters(run.topic, run.records, rejects)
