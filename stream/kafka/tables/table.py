"""A table whose changelog carries, in the same append as the rows, how far its source topics have been counted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from time import monotonic
from typing import cast

import faust
from faust.tables.manager import TableManager
from faust.types import TP

from stream.kafka.agent import AgentApp
from stream.kafka.tables.stores import DiskStore, Store
from stream.profile.store import META_PREFIX

# Rows on a disk that are older than this are read again if the changelog has gone on. A tombstone is kept for a day
# (topics.py), and a row whose tombstone was missed would stay forever.
MAX_DISK_AGE_S = 12 * 3600.0
# How long to wait for the previous owner of a partition to close its files.
LOCK_TIMEOUT_S = 10.0
LOCK_RETRY_S = 0.05
log = logging.getLogger(__name__)


class ExactTable(faust.Table[bytes, bytes]):
    """A Faust table that keeps watermarks of its sources. Its rows are in `store`.

    Faust supplies the changelog, the recovery and the co-partitioned assignment. `name` is the logical name of the
    changelog topic; `disk` is the store again if it is on a disk. `skipped` counts records that were delivered again
    and lay below the watermark.
    """

    app: AgentApp

    def __init__(self, app: AgentApp, name: str, store: Store, disk: DiskStore | None = None) -> None:
        changelog = app.topic(
            app.settings.prefix + name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
        )
        super().__init__(app, name=name, partitions=app.settings.partitions, changelog_topic=changelog)
        self.store, self.disk = store, disk
        self.watermarks: dict[tuple[int, str, int], int] = {}  # (table partition, topic, partition) -> next offset
        self.applied: dict[int, int] = {}  # table partition -> offset of the last changelog record in the store
        self.skipped = 0
        self._invalid: set[int] = set()
        app.tables.add(self)

    def changelog_name(self) -> str:
        """The changelog topic, as the cluster names it."""
        return str(self.changelog_topic.get_topic_name())

    def watermark(self, topic: str, partition: int) -> int:
        """The first offset of the source that this table has not counted. Table and source partition are the same."""
        return self.watermarks.get((partition, topic, partition), 0)

    def watermark_record(self, topic: str, partition: int, next_offset: int) -> tuple[bytes, bytes]:
        """The changelog record that sets the watermark of a source."""
        return b"%s%s:%d" % (META_PREFIX, topic.encode(), partition), b"%d" % next_offset

    def mark_written(
        self, topic: str, partition: int, next_offset: int, changelog_offset: int,
        changelog: Sequence[tuple[bytes, bytes | None]],
    ) -> None:  # fmt: skip
        """Record that a run's changelog batch is acknowledged; its last record has `changelog_offset`."""
        self.watermarks[partition, topic, partition] = next_offset
        # A rebalance that leaves us the partition need not read these records again.
        self.applied[partition] = max(self.applied.get(partition, -1), changelog_offset)
        if self.disk is not None:
            self.disk.persist(partition, changelog, self._watermarks_of(partition), self.applied[partition])

    def _watermarks_of(self, partition: int) -> dict[tuple[str, int], int]:
        return {(topic, source): at for (mine, topic, source), at in self.watermarks.items() if mine == partition}

    def apply_records(self, partition: int, records: Sequence[tuple[bytes, bytes | None]], last_offset: int) -> None:
        """Apply changelog records in order: watermarks to the table, rows to the store.

        `last_offset` is the offset of the last record.
        """
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
        """Note that the rows in memory are ahead of the changelog: the next rebalance drops them."""
        self._invalid.add(partition)

    # Called by Faust.

    async def on_start(self) -> None:
        """Do nothing: there is no Faust store to open, and the changelog is created with the other topics."""

    def persisted_offset(self, tp: TP) -> int | None:
        """The last changelog offset that need not be read again; None if nothing of the partition is held."""
        return self.applied.get(tp.partition)

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        changelog = self.changelog_name()
        lost = {tp.partition for tp in revoked if tp.topic == changelog}
        for partition in lost | self._invalid:
            self.store.drop(partition)
            self.forget(partition)
            cast(TableManager, self.app.tables).recovery.revoke(TP(changelog, partition))
        self._invalid.clear()
        if self.disk is not None:
            try:
                for partition in sorted(tp.partition for tp in assigned if tp.topic == changelog):
                    if partition not in self.applied:
                        await self._open(self.disk, partition)
            except Exception as error:
                await self.app.crash(error)

    def forget(self, partition: int) -> None:
        """Forget the watermarks of the partition and how far its changelog was read."""
        self.watermarks = {key: offset for key, offset in self.watermarks.items() if key[0] != partition}
        self.applied.pop(partition, None)

    async def _open(self, disk: DiskStore, partition: int) -> None:
        deadline = monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                state = disk.open(partition)
                break
            except BlockingIOError as error:
                # The worker that had the partition until now may not have closed its files yet.
                if monotonic() > deadline:
                    raise RuntimeError(str(error)) from None
                await asyncio.sleep(LOCK_RETRY_S)
        if state is not None:
            self.applied[partition] = state.offset
            self.watermarks.update({(partition, *source): offset for source, offset in state.watermarks.items()})

    def check(self, partition: int, begin: int, end: int) -> None:
        """Wipe rows that do not match a changelog with the offsets `begin` to `end`, or that may miss tombstones."""
        offset = self.applied.get(partition)
        if offset is None:
            return
        state = self.disk.open(partition) if self.disk is not None else None
        if offset >= end:
            reason = f"ends at {end}, but the rows are of offset {offset}: it was recreated"
        elif offset + 1 < begin:
            reason = f"begins at {begin}, but the rows are of offset {offset}: it was truncated"
        elif state is not None and offset + 1 < end and time.time() - state.written_at > MAX_DISK_AGE_S:
            hours = (time.time() - state.written_at) / 3600
            reason = f"may have lost tombstones since the rows were written, {hours:.0f} hours ago"
        else:
            return
        log.warning("the rows of '%s' %d are read again: the changelog %s", self.name, partition, reason)
        self.forget(partition)
        if self.disk is not None:
            self.disk.wipe(partition)
        else:
            self.store.drop(partition)
