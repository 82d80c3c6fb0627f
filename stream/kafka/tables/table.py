"""A table whose changelog carries, in the same append as the rows, how far its sources have been counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

import faust
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from mode import Service

from stream.kafka.tables.changelog_reader import ChangelogReader, Stretch
from stream.profile.store import META_PREFIX

if TYPE_CHECKING:
    from stream.kafka.app import BatchApp

# Changelogs are read over so many connections: while we take in what one has brought, the broker fills the other.
LANES = 2
# How long a disk's rows may have been left alone while the changelog went on: a tombstone is kept for a day (topics.py),
# and one that was missed would leave its row for ever.
STALE = 12 * 3600.0  # s
LOCK_PATIENCE = 10.0  # s
log = logging.getLogger(__name__)


class Store(Protocol):
    """The state itself, kept by whoever knows its form. Agents change it; the table only fills and empties it."""

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Set the rows of a changelog, in order; None deletes. The same record may come again."""

    def drop(self, partition: int) -> None:
        """Forget every row of the partition: it has another owner now, or is about to be read anew."""


class Mark(Protocol):
    """How far the rows on a disk have come."""

    @property
    def offset(self) -> int:
        """Of the last changelog record that is in them."""

    @property
    def watermarks(self) -> dict[tuple[str, int], int]:
        """(topic, partition) -> the next offset to count."""

    @property
    def at(self) -> float:
        """When they were written, s since the epoch."""


class DiskStore(Store, Protocol):
    """A store whose rows also lie on a disk, never ahead of the changelog. `drop` leaves them there."""

    def open(self, partition: int) -> Mark | None:
        """What the disk has of the partition. Raises BlockingIOError while another process has it."""

    def persist(
        self, partition: int, records: Sequence[tuple[bytes, bytes | None]], watermarks: Mapping[tuple[str, int], int],
        offset: int,
    ) -> None:  # fmt: skip
        """The changelog has these rows, up to `offset`: write them all or none."""

    def wipe(self, partition: int) -> None:
        """Remove what the disk has of the partition."""


class ExactTable(faust.Table[bytes, bytes]):
    """A Faust table by its changelog, its recovery and its place in the assignment; the rows live in `store`.

    `name` is the logical name of the changelog topic; `disk` is the store again, where it has one. `skipped` counts
    records that arrived again and were below the watermark.
    """

    app: BatchApp

    def __init__(self, app: BatchApp, name: str, store: Store, disk: DiskStore | None = None) -> None:
        changelog = app.topic(
            app.settings.prefix + name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
        )
        super().__init__(app, name=name, partitions=app.settings.partitions, changelog_topic=changelog)
        self.store, self.disk = store, disk
        self.watermarks: dict[tuple[int, str, int], int] = {}  # (table partition, topic, partition) -> next offset
        self.applied: dict[int, int] = {}  # table partition -> changelog offset up to which the store has it
        self.skipped = 0
        self._distrusted: set[int] = set()
        app.tables.add(self)

    def watermark(self, topic: str, partition: int) -> int:
        """The first offset of the source that this table has not counted. Source p belongs to table partition p."""
        return self.watermarks.get((partition, topic, partition), 0)

    def watermark_record(self, topic: str, partition: int, next_offset: int) -> tuple[bytes, bytes]:
        return b"%s%s:%d" % (META_PREFIX, topic.encode(), partition), b"%d" % next_offset

    def written(
        self, topic: str, partition: int, next_offset: int, changelog_offset: int,
        changelog: Sequence[tuple[bytes, bytes | None]],
    ) -> None:  # fmt: skip
        """A run's changelog batch is acknowledged; its last record has `changelog_offset`."""
        self.watermarks[partition, topic, partition] = next_offset
        # Recovery after a rebalance that leaves us the partition need not read it again.
        self.applied[partition] = max(self.applied.get(partition, -1), changelog_offset)
        if self.disk is not None:
            self.disk.persist(partition, changelog, self._watermarks_of(partition), self.applied[partition])

    def _watermarks_of(self, partition: int) -> dict[tuple[str, int], int]:
        return {(topic, source): at for (mine, topic, source), at in self.watermarks.items() if mine == partition}

    def apply_records(self, partition: int, records: Sequence[tuple[bytes, bytes | None]], last_offset: int) -> None:
        """Changelog records in order, of which `last_offset` is the last: watermarks to us, rows to the store."""
        rows = []
        for record in records:
            if record[0].startswith(META_PREFIX) and b":" in record[0][len(META_PREFIX) :]:
                topic, source = record[0][len(META_PREFIX) :].decode().rsplit(":", 1)
                self.watermarks[partition, topic, int(source)] = int(record[1] or 0)
            else:
                rows.append(record)
        self.applied[partition] = last_offset
        if self.disk is not None:
            self.disk.persist(partition, rows, self._watermarks_of(partition), last_offset)
        elif rows:
            self.store.apply(partition, rows)

    def invalidate(self, partition: int) -> None:
        """The rows in memory are ahead of the changelog: read them anew should the partition come back."""
        self._distrusted.add(partition)

    # What Faust calls.

    async def on_start(self) -> None:
        """No Faust store to open, and the changelog is created with the other topics."""

    def persisted_offset(self, tp: TP) -> int | None:
        """The last changelog offset that we need not read again; None where we have nothing of the partition."""
        return self.applied.get(tp.partition)

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        changelog = self.changelog_topic.get_topic_name()
        gone = {tp.partition for tp in revoked if tp.topic == changelog}
        for partition in gone | self._distrusted:
            self.store.drop(partition)
            self.forget(partition)
            self.app.recovery.revoke(TP(changelog, partition))
        self._distrusted.clear()
        if self.disk is not None:
            try:
                for partition in sorted(tp.partition for tp in assigned if tp.topic == changelog):
                    if partition not in self.applied:
                        await self._open(self.disk, partition)
            except Exception as error:
                await self.app.crash(error)

    def forget(self, partition: int) -> None:
        """Nothing of the partition counts as read any more."""
        self.watermarks = {key: offset for key, offset in self.watermarks.items() if key[0] != partition}
        self.applied.pop(partition, None)

    async def _open(self, disk: DiskStore, partition: int) -> None:
        patience = monotonic() + LOCK_PATIENCE
        while True:
            try:
                mark = disk.open(partition)
                break
            except BlockingIOError as error:
                # The worker that had the partition until now may not have closed its files yet.
                if monotonic() > patience:
                    raise RuntimeError(str(error)) from None
                await asyncio.sleep(0.05)
        if mark is not None:
            self.applied[partition] = mark.offset
            self.watermarks.update({(partition, *source): offset for source, offset in mark.watermarks.items()})

    def check(self, partition: int, begin: int, end: int) -> None:
        """Wipe rows that do not belong to a changelog with the offsets `begin` to `end`, or that have missed tombstones."""
        offset = self.applied.get(partition)
        if offset is None:
            return
        mark = self.disk.open(partition) if self.disk is not None else None
        if offset >= end:
            reason = f"ends at {end}, but they are of offset {offset}: it was created anew"
        elif offset + 1 < begin:
            reason = f"begins at {begin}, but they are of offset {offset}: it was truncated"
        elif mark is not None and offset + 1 < end and time.time() - mark.at > STALE:
            reason = f"may have lost tombstones since they were written, {(time.time() - mark.at) / 3600:.0f} hours ago"
        else:
            return
        log.warning("the rows of '%s' %d are read anew: the changelog %s", self.name, partition, reason)
        self.forget(partition)
        if self.disk is not None:
            self.disk.wipe(partition)
        else:
            self.store.drop(partition)


class TableProgress(NamedTuple):
    """How far the recovery of one table has come; offsets count, of which compaction leaves some without a record."""

    table: str
    partitions: int
    read: int
    to_read: int  # of this recovery in all
    seconds_left: float | None  # at the rate so far; None where there is none yet
    copies: int  # partitions of which we keep a standby copy
    behind: int  # offsets that these had yet to read when they were assigned, and still have


class BatchRecovery(Recovery):
    """Faust's recovery, but changelogs come from a reader of their own, whole fetches at a time."""

    app: BatchApp

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._begins: dict[TP, int] = {}  # offset before the first that this recovery reads
        self._since = 0.0  # monotonic, of the same
        self._bounded = False  # this assignment's ends and beginnings are known
        self._followed: set[TP] = set()  # standby copies that are kept current
        self.records_read = 0  # of all recoveries and standby copies, since the start
        self._wakened = asyncio.Event()

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """In place of Faust's reader, which takes one event at a time from a queue that we never fill."""
        lanes = [asyncio.ensure_future(self._read(lane)) for lane in range(LANES)]
        try:
            await asyncio.gather(*lanes)
        except Exception as error:
            await self.app.crash(error)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)

    async def _read(self, lane: int) -> None:
        reader = ChangelogReader(self.app.settings)
        try:
            while not self.should_stop:
                wanted = self._wanted(lane)
                if not wanted:
                    await self.wait_first(self._wakened.wait())
                    self._wakened.clear()
                    continue
                for tp, stretch in (await reader.fetch(wanted)).items():
                    self._apply(tp, wanted[tp], stretch)
                self._end_if_read()
                await asyncio.sleep(0)
        finally:
            await reader.close()

    def _wanted(self, lane: int) -> dict[TP, int]:
        """The next offset of each changelog partition that the lane is to read now: ours first, then standby copies."""
        if self.in_recovery:
            tps = {tp for tp, left in self.active_remaining().items() if left > 0} if self._bounded else set()
            offsets = self.active_offsets
        else:
            tps, offsets = self._followed, self.standby_offsets
        return {tp: offsets[tp] + 1 for tp in tps if tp.partition % LANES == lane}

    def _apply(self, tp: TP, wanted: int, stretch: Stretch) -> None:
        offsets = self.active_offsets if tp in self.active_tps else self.standby_offsets
        if offsets.get(tp) != wanted - 1:
            return  # while it was fetched, a rebalance has given the partition away or set it back
        table = cast(ExactTable, self.tp_to_table[tp])
        table.apply_records(tp.partition, stretch.records, stretch.next_offset - 1)
        offsets[tp] = stretch.next_offset - 1
        self.records_read += len(stretch.records)

    def _end_if_read(self) -> None:
        if self.in_recovery and self._bounded and not self.need_recovery():
            self._set_recovery_ended()
            self.signal_recovery_end.set()

    def progress(self) -> list[TableProgress]:
        """Of each table that is or was recovered since the last assignment."""
        taken = monotonic() - self._since
        found = []
        for table, tps in self.actives_for_table.items():
            known = [tp for tp in tps if tp in self._begins and self.active_highwaters.get(tp) is not None]
            total = sum(max(0, self.active_highwaters[tp] - self._begins[tp]) for tp in known)
            left = sum(max(0, self.active_highwaters[tp] - (self.active_offsets[tp] or 0)) for tp in known)
            left = min(left, total)
            seconds = None if total == left else left * taken / (total - left)
            copies = {tp for tp in self._followed if self.tp_to_table[tp] is table}
            late = sum(self._behind(tp) for tp in copies)
            found.append(
                TableProgress(
                    str(table.name), len(tps), total - left, total, 0.0 if not left else seconds, len(copies), late
                )
            )
        return sorted(found)

    def _behind(self, copy: TP) -> int:
        end = self.standby_highwaters.get(copy)  # -1 where the changelog was empty; Faust's own count leaves those out
        return 1 if end is None else max(0, end - (self.standby_offsets[copy] or 0))

    # What Faust calls.

    async def on_rebalance(self, *args: Any, **options: Any) -> None:
        self._bounded, self._followed = False, set()
        await super().on_rebalance(*args, **options)

    def _set_recovery_started(self) -> None:
        # Only Faust's reader used to clear it: left set, the next recovery would end before it began.
        self.signal_recovery_end.clear()
        super()._set_recovery_started()

    def _set_recovery_ended(self) -> None:
        super()._set_recovery_ended()
        self._wakened.set()  # the turn of the standby copies

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
            self._since = monotonic()
            self._bounded = True
        else:
            self._followed = set(tps)
        self._wakened.set()

    async def _seek_offsets(self, consumer: Any, tps: set[TP], offsets: Any, title: str) -> None:
        """The consumer of the group does not read changelogs: our reader is told where to start."""


class BatchTableManager(TableManager):
    app: BatchApp
    _recovery: BatchRecovery | None

    @property
    def recovery(self) -> BatchRecovery:
        if self._recovery is None:
            self._recovery = BatchRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        # As Faust's, less a sleep of one second that waits for tables which are all declared by now.
        await self._update_channels()
        await self.recovery.start()

    def on_actives_ready(self) -> None:
        super().on_actives_ready()
        self.app.announce_ready()
