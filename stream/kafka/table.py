"""A table whose changelog carries, in the same append as the rows, how far its sources have been counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import faust
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP
from mode import Service

if TYPE_CHECKING:
    from stream.kafka.app import BatchApp

# A changelog key that starts so is no row: it says up to where a source is counted. Every reader skips it.
WATERMARK = b"\x00wm:"


class Store(Protocol):
    """The state itself, kept by whoever knows its form. Agents change it; the table only fills and empties it."""

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Set the rows of a changelog, in order; None deletes. The same record may come again."""

    def drop(self, partition: int) -> None:
        """Forget every row of the partition: it has another owner now, or is about to be read anew."""


class ExactTable(faust.Table[bytes, bytes]):
    """A Faust table by its changelog, its recovery and its place in the assignment; the rows live in `store`.

    `name` is the logical name of the changelog topic. `skipped` counts records that arrived again and were below
    the watermark.
    """

    app: BatchApp

    def __init__(self, app: BatchApp, name: str, store: Store) -> None:
        changelog = app.topic(
            app.settings.prefix + name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
        )
        super().__init__(app, name=name, partitions=app.settings.partitions, changelog_topic=changelog)
        self.store = store
        self.watermarks: dict[tuple[int, str, int], int] = {}  # (table partition, topic, partition) -> next offset
        self.skipped = 0
        self._distrusted: set[int] = set()
        app.tables.add(self)

    def watermark(self, topic: str, partition: int) -> int:
        """The first offset of the source that this table has not counted. Source p belongs to table partition p."""
        return self.watermarks.get((partition, topic, partition), 0)

    def watermark_record(self, topic: str, partition: int, next_offset: int) -> tuple[bytes, bytes]:
        return b"%s%s:%d" % (WATERMARK, topic.encode(), partition), b"%d" % next_offset

    def written(self, topic: str, partition: int, next_offset: int, changelog_offset: int) -> None:
        """A run's changelog batch is acknowledged; its last record has `changelog_offset`."""
        self.watermarks[partition, topic, partition] = next_offset
        # Told what it need not read again, recovery after a rebalance that leaves us the partition is instant.
        tp = TP(self.changelog_topic.get_topic_name(), partition)
        offsets = self.app.recovery.active_offsets
        if tp in offsets:
            offsets[tp] = max(offsets[tp] or 0, changelog_offset)

    def apply_records(self, partition: int, records: Sequence[Any]) -> None:
        """Fetched changelog records, as many as came: watermarks to us, rows to the store in one call."""
        rows = []
        for record in records:
            if record.key.startswith(WATERMARK):
                topic, source = record.key[len(WATERMARK) :].decode().rsplit(":", 1)
                self.watermarks[partition, topic, int(source)] = int(record.value)
            else:
                rows.append((record.key, record.value))
        if rows:
            self.store.apply(partition, rows)

    def distrust(self, partition: int) -> None:
        """The rows in memory are ahead of the changelog: read them anew should the partition come back."""
        self._distrusted.add(partition)

    # What Faust calls.

    async def on_start(self) -> None:
        """No Faust store to open, and the changelog is created with the other topics."""

    def persisted_offset(self, tp: TP) -> int | None:
        return None

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        changelog = self.changelog_topic.get_topic_name()
        gone = {tp.partition for tp in revoked if tp.topic == changelog}
        for partition in gone | self._distrusted:
            self.store.drop(partition)
            self.watermarks = {key: offset for key, offset in self.watermarks.items() if key[0] != partition}
            self.app.recovery.revoke(TP(changelog, partition))
        self._distrusted.clear()


class BatchRecovery(Recovery):
    """Faust's recovery, but whole fetched runs at a time, and it ends when the position does."""

    app: BatchApp

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Faust's reader takes one event at a time from a queue that we never fill."""

    def _set_recovery_started(self) -> None:
        # Only the reader above used to clear it: left set, the next recovery would end before it began.
        self.signal_recovery_end.clear()
        super()._set_recovery_started()

    def apply_records(self, tp: TP, records: Sequence[Any]) -> None:
        if tp not in self.active_tps:
            return  # a stale fetch: the partition is another's by now
        seen = self.active_offsets.get(tp)
        if seen is not None and records[0].offset <= seen:
            records = [record for record in records if record.offset > seen]
        if records:
            cast(ExactTable, self.tp_to_table[tp]).apply_records(tp.partition, records)
            self.active_offsets[tp] = records[-1].offset

    def end_if_read(self) -> None:
        """Wake the recovery where every changelog is read up to the end it had.

        The reader's position counts, not the last record: compaction and aborted transactions leave ends without one.
        """
        if not self.in_recovery:
            return
        for tp, remaining in self.active_remaining().items():
            if remaining > 0:
                position = self.app.feed.position_now(tp)
                if position is not None and position > self.active_highwaters[tp]:
                    self.active_offsets[tp] = self.active_highwaters[tp]
        if not self.need_recovery():
            self._set_recovery_ended()
            self.signal_recovery_end.set()


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
