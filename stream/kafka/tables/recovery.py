"""Recovery of tables: changelogs are read whole fetches at a time, and standby copies are kept current."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any, NamedTuple, cast

from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from mode import Service

from stream.kafka.agent import AgentApp
from stream.kafka.tables.changelog_reader import ChangelogReader, ChangelogRecords
from stream.kafka.tables.table import ExactTable

# Number of changelog readers, each with its own connection: the broker fills one while the other's records are applied.
READERS = 2


class TableProgress(NamedTuple):
    """Progress of one table's recovery, counted in offsets. After compaction some offsets have no record."""

    table: str
    partitions: int
    read: int
    to_read: int  # total of this recovery
    seconds_left: float | None  # at the rate so far; None before there is a rate
    copies: int  # partitions with a standby copy on this worker
    behind: int  # offsets that the standby copies have still to read, of those at their assignment


class BatchRecovery(Recovery):
    """Faust's recovery, but changelogs are read by `ChangelogReader`, whole fetches at a time."""

    app: AgentApp

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begins: dict[TP, int] = {}  # offset before the first that this recovery reads
        self._started_at = 0.0  # monotonic; start of this recovery
        self._offsets_are_known = False  # of this assignment: where its changelogs begin and end
        self._standbys: set[TP] = set()  # changelog partitions whose standby copies are kept current
        self.records_read = 0  # by all recoveries and standby copies since the start
        self._wakened = asyncio.Event()

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Replace Faust's reader, which takes one event at a time from a queue that is never filled here."""
        readers = [asyncio.ensure_future(self._read(number)) for number in range(READERS)]
        try:
            await asyncio.gather(*readers)
        except Exception as error:
            await self.app.crash(error)
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _read(self, number: int) -> None:
        reader = ChangelogReader(self.app.settings)
        try:
            while not self.should_stop:
                wanted = self._wanted(number)
                if not wanted:
                    await self.wait_first(self._wakened.wait())
                    self._wakened.clear()
                    continue
                for tp, fetched in (await reader.fetch(wanted)).items():
                    self._apply(tp, wanted[tp], fetched)
                self._end_if_complete()
                await asyncio.sleep(0)
        finally:
            await reader.close()

    def _wanted(self, number: int) -> dict[TP, int]:
        """The next offset of each changelog partition that a reader reads now: tables first, then standby copies."""
        if self.in_recovery:
            tps = {tp for tp, left in self.active_remaining().items() if left > 0} if self._offsets_are_known else set()
            offsets = self.active_offsets
        else:
            tps, offsets = self._standbys, self.standby_offsets
        return {tp: offsets[tp] + 1 for tp in tps if tp.partition % READERS == number}

    def _apply(self, tp: TP, wanted: int, fetched: ChangelogRecords) -> None:
        offsets = self.active_offsets if tp in self.active_tps else self.standby_offsets
        if offsets.get(tp) != wanted - 1:
            return  # a rebalance during the fetch has revoked the partition or rewound it
        table = cast(ExactTable, self.tp_to_table[tp])
        table.apply_records(tp.partition, fetched.records, fetched.next_offset - 1)
        offsets[tp] = fetched.next_offset - 1
        self.records_read += len(fetched.records)

    def _end_if_complete(self) -> None:
        if self.in_recovery and self._offsets_are_known and not self.need_recovery():
            self._set_recovery_ended()
            self.signal_recovery_end.set()

    def progress(self) -> list[TableProgress]:
        """Progress of each table that is or was recovered since the last assignment."""
        elapsed = monotonic() - self._started_at
        progress = []
        for table, tps in self.actives_for_table.items():
            known = [tp for tp in tps if tp in self._begins and self.active_highwaters.get(tp) is not None]
            total = sum(max(0, self.active_highwaters[tp] - self._begins[tp]) for tp in known)
            left = sum(max(0, self.active_highwaters[tp] - (self.active_offsets[tp] or 0)) for tp in known)
            left = min(left, total)
            seconds = None if total == left else left * elapsed / (total - left)
            copies = {tp for tp in self._standbys if self.tp_to_table[tp] is table}
            behind = sum(self._standby_lag(tp) for tp in copies)
            progress.append(
                TableProgress(
                    str(table.name), len(tps), total - left, total, 0.0 if not left else seconds, len(copies), behind
                )
            )
        return sorted(progress)

    def _standby_lag(self, tp: TP) -> int:
        # The high watermark is -1 if the changelog was empty; Faust's own count leaves such partitions out.
        end = self.standby_highwaters.get(tp)
        return 1 if end is None else max(0, end - (self.standby_offsets[tp] or 0))

    # Called by Faust.

    async def on_rebalance(self, *args: Any, **options: Any) -> None:
        self._offsets_are_known, self._standbys = False, set()
        await super().on_rebalance(*args, **options)

    def _set_recovery_started(self) -> None:
        # Only Faust's reader used to clear this event. If it stayed set, the next recovery would end before it began.
        self.signal_recovery_end.clear()
        super()._set_recovery_started()

    def _set_recovery_ended(self) -> None:
        super()._set_recovery_ended()
        self._wakened.set()  # from now on the readers serve the standby copies

    async def _build_offsets(self, consumer: Any, tps: set[TP], destination: Any, title: str) -> None:
        if tps:
            begins, ends = await consumer.earliest_offsets(*tps), await consumer.highwaters(*tps)
            for tp in tps:
                table = cast(ExactTable, self.tp_to_table[tp])
                table.check(tp.partition, begins.get(tp) or 0, ends.get(tp) or 0)
                destination[tp] = table.persisted_offset(tp)
        await super()._build_offsets(consumer, tps, destination, title)
        if title == "active":
            self._begins = dict(destination)
            self._started_at = monotonic()
            self._offsets_are_known = True
        else:
            self._standbys = set(tps)
        self._wakened.set()

    async def _seek_offsets(self, consumer: Any, tps: set[TP], offsets: Any, title: str) -> None:
        """Do nothing: the group's consumer does not read changelogs, and our reader gets its offsets per fetch."""


class BatchTableManager(TableManager):
    """Faust's table manager, with our recovery."""

    app: AgentApp
    _recovery: BatchRecovery | None

    @property
    def recovery(self) -> BatchRecovery:
        if self._recovery is None:
            self._recovery = BatchRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        # Faust's, without a sleep of one second that waits for tables to be declared: they all are by now.
        await self._update_channels()
        await self.recovery.start()

    def on_actives_ready(self) -> None:
        super().on_actives_ready()
        self.app.announce_ready()
