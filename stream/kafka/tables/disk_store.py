"""Profiles in RocksDB: rows go to the disk only together with the changelog offset that they are of.

What an agent has folded lies in memory until its changelog batch is acknowledged; then rows, watermarks and offset are
one write. So the disk is never ahead of the changelog nor torn from it, however the process ends, and a worker that
comes back reads what has come since.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
)

from stream.profile.store import META_PREFIX, ProfileStore

log = logging.getLogger(__name__)

STATE = META_PREFIX + b"state"
CACHE_BYTES = 64 << 20  # blocks in memory, of all partitions together
BUFFER_BYTES = 64 << 20  # rows not yet in a file, of all partitions together
Key = bytes
Row = bytes
T = TypeVar("T")
_ABSENT: Any = object()


class DiskError(RuntimeError):
    """The files cannot be read or written; the message says which and what to do. The changelog has everything."""


class Mark(NamedTuple):
    """How far the rows on the disk have come."""

    offset: int  # of the last changelog record that is in them
    watermarks: dict[tuple[str, int], int]  # (topic, partition) -> next offset
    at: float  # s since the epoch, when that was written


class Partition(Mapping[Key, Row]):
    """Rows of one partition: those of runs under way over those on the disk."""

    def __init__(self, path: Path, db: Rdict) -> None:
        self.path, self.db = path, db
        self.staged: dict[Key, Row | None] = {}
        self._cursor = b""
        stored = db.get(STATE)
        self.mark: Mark | None = None
        if stored is not None:
            told = json.loads(stored)
            marks = {(topic, source): following for topic, source, following in told["watermarks"]}
            self.mark = Mark(told["offset"], marks, told["at"])

    def get(self, key: Key, default: Any = None) -> Any:
        row = self.staged.get(key, _ABSENT)
        if row is _ABSENT:  # never, or on the disk by now
            row = self.db.get(key)
        return default if row is None else row

    def __getitem__(self, key: Key) -> Row:
        row: Row | None = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Key]:
        staged = dict(self.staged)
        key: Any
        for key in self.db.keys():  # noqa: SIM118  # an iterator; the object itself has none
            if not key.startswith(META_PREFIX) and key not in staged:
                yield key
        yield from (key for key, row in staged.items() if row is not None and not key.startswith(META_PREFIX))

    def items(self) -> Any:
        staged = dict(self.staged)
        found: Any = self.db.items()
        yield from ((key, row) for key, row in found if not key.startswith(META_PREFIX) and key not in staged)
        yield from ((key, row) for key, row in staged.items() if row is not None and not key.startswith(META_PREFIX))

    def next_rows(self, count: int) -> list[tuple[Key, Row]]:
        """From where the last call has ended; those of runs under way are left out."""
        found: Any = self.db.items(from_key=self._cursor)
        rows = list(islice(found, count + 1))
        self._cursor = rows[count][0] if len(rows) > count else b""
        return [(key, row) for key, row in rows[:count] if not key.startswith(META_PREFIX) and key not in self.staged]

    def __len__(self) -> int:
        """About: RocksDB estimates."""
        return max(0, (self.db.property_int_value("rocksdb.estimate-num-keys") or 0) - (self.mark is not None))

    def size(self) -> int:
        """Bytes on the disk and in its buffer, about."""
        live = self.db.property_int_value("rocksdb.estimate-live-data-size") or 0
        return live + (self.db.property_int_value("rocksdb.cur-size-all-mem-tables") or 0)


class DiskProfileStore(ProfileStore[Partition]):
    """Profiles at rest by partition, each partition in files of its own under `folder`.

    A partition is to be opened before it is used. `folder` belongs to one worker: RocksDB locks what it opens.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        blocks = BlockBasedOptions()
        self._cache = Cache(CACHE_BYTES)
        blocks.set_block_cache(self._cache)
        blocks.set_bloom_filter(10, False)
        blocks.set_cache_index_and_filter_blocks(True)
        self._options = Options(raw_mode=True)
        self._options.create_if_missing(True)
        self._options.set_block_based_table_factory(blocks)
        self._options.set_write_buffer_manager(WriteBufferManager(BUFFER_BYTES, False))
        self._options.set_write_buffer_size(BUFFER_BYTES // 4)
        self._options.set_compression_type(DBCompressionType.lz4())
        self._options.set_bottommost_compression_type(DBCompressionType.zstd())
        self._options.set_max_open_files(256)
        self._options.set_keep_log_file_num(2)

    # What the agent does.

    def apply(self, partition: int, records: Sequence[tuple[Key, Row | None]]) -> None:
        """Rows that a run has folded: read from now on, on the disk once `persist` is called with them."""
        if partition in self.active:
            self.deferred.note(partition, records, time.monotonic())
        self.partitions[partition].staged.update(records)

    def size(self) -> int:
        """Bytes of the profiles that this worker serves, about."""
        return sum(rows.size() for rows in self.served())

    def rows_of(self, partition: int) -> Partition:
        return self.partitions[partition]

    def next_rows(self, partition: int, count: int) -> list[tuple[bytes, bytes]]:
        return self.partitions[partition].next_rows(count)

    # What the table does.

    def open(self, partition: int) -> Mark | None:
        """-> how far the rows are that the disk has of the partition; None where there are none.

        Raises DiskError, of files that another process has open BlockingIOError. Damaged files are removed.
        """
        if partition not in self.partitions:
            path = self.folder / str(partition)
            try:
                self.partitions[partition] = self._opened(path)
            except DamagedFiles as error:
                log.warning("%s; they are removed, and the changelog is read from its beginning", error)
                shutil.rmtree(path)
                self.partitions[partition] = self._opened(path)
        return self.partitions[partition].mark

    def _opened(self, path: Path) -> Partition:
        def opened() -> Partition:
            path.mkdir(parents=True, exist_ok=True)
            return Partition(path, Rdict(str(path), self._options))

        return self._explained(path, opened)

    def persist(
        self, partition: int, records: Sequence[tuple[Key, Row | None]], watermarks: Mapping[tuple[str, int], int],
        offset: int,
    ) -> None:  # fmt: skip
        """Rows that the changelog has up to `offset`, as one write. Raises DiskError."""
        rows = self.partitions[partition]
        mark = Mark(offset, dict(watermarks), time.time())
        batch = WriteBatch(raw_mode=True)
        for key, row in records:
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        told = [[topic, source, following] for (topic, source), following in mark.watermarks.items()]
        batch.put(STATE, json.dumps({"offset": offset, "watermarks": told, "at": mark.at}).encode())
        self._explained(rows.path, lambda: self._write(rows.db, batch))
        rows.mark = mark
        for key, row in records:
            if key in rows.staged and rows.staged[key] is row:
                del rows.staged[key]

    @staticmethod
    def _write(db: Rdict, batch: WriteBatch) -> None:
        db.write(batch)

    def drop(self, partition: int) -> None:
        """Another worker has the partition, or memory is ahead of the changelog: keep the files, forget the rest."""
        rows = self.forget(partition)
        if rows is not None:
            self._explained(rows.path, rows.db.close)

    def wipe(self, partition: int) -> None:
        """Begin anew with nothing."""
        self.drop(partition)
        path = self.folder / str(partition)
        self._explained(path, lambda: shutil.rmtree(path, ignore_errors=False) if path.exists() else None)
        self.open(partition)

    def close(self) -> None:
        for partition in list(self.partitions):
            self.drop(partition)

    def _explained(self, path: Path, call: Callable[[], T]) -> T:
        """RocksDB raises plain exceptions that start with a kind."""
        try:
            return call()
        except DiskError:
            raise
        except Exception as error:
            told = str(error).strip()
            if "lock" in told.lower() and ("unavailable" in told or "LOCK" in told or "held" in told):
                raise BlockingIOError(
                    f"the profiles in '{path}' are in use by another worker; give each worker of a machine a "
                    "SHOPWINDOW_DATA_DIR of its own"
                ) from None
            if "No space left" in told:
                raise DiskError(
                    f"the disk of '{path}' is full; free some of it, or name another by SHOPWINDOW_DATA_DIR. Nothing is "
                    "lost: what the files lack is read from the changelog at the next start"
                ) from None
            if told.startswith("Corruption"):
                raise DamagedFiles(f"the files in '{path}' are damaged ({told[:200]})") from None
            raise DiskError(
                f"the profiles in '{path}' cannot be read or written ({told[:200] or type(error).__name__}); check the "
                "disk and its permissions, or name another by SHOPWINDOW_DATA_DIR"
            ) from None


class DamagedFiles(DiskError):
    """They do not hold what RocksDB has written."""
