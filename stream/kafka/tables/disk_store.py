"""Profiles in RocksDB: rows are written to the disk only together with their changelog offset.

Rows that an agent has folded stay in memory until their changelog batch is acknowledged. Then rows, watermarks and
offset are one write. The disk is therefore never ahead of the changelog and never torn, however the process ends.
A worker that restarts only reads the changelog records that were written since.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
)

from stream.kafka.tables.stores import DiskState
from stream.profile.store import META_PREFIX, ProfileStore

log = logging.getLogger(__name__)

STATE_KEY = META_PREFIX + b"state"
CACHE_BYTES = 64 << 20  # blocks in memory, of all partitions together
BUFFER_BYTES = 64 << 20  # rows that are in no file yet, of all partitions together
T = TypeVar("T")
_ABSENT: Any = object()


class DiskError(RuntimeError):
    """The files cannot be read or written; the message says which and what to do. The changelog has all rows."""


class DamagedFiles(DiskError):
    """The files do not contain what RocksDB has written."""


class DiskPartition(Mapping[bytes, bytes]):
    """Rows of one partition by key: staged rows of runs in flight override those on the disk."""

    def __init__(self, path: Path, db: Rdict) -> None:
        self.path, self.db = path, db
        self.staged: dict[bytes, bytes | None] = {}
        self._cursor = b""
        stored = db.get(STATE_KEY)
        self.state: DiskState | None = None
        if stored is not None:
            state = json.loads(stored)
            watermarks = {(topic, source): next_offset for topic, source, next_offset in state["watermarks"]}
            self.state = DiskState(state["offset"], watermarks, state["at"])

    def get(self, key: bytes, default: Any = None) -> Any:
        row = self.staged.get(key, _ABSENT)
        if row is _ABSENT:  # never staged, or on the disk by now
            row = self.db.get(key)
        return default if row is None else row

    def __getitem__(self, key: bytes) -> bytes:
        row: bytes | None = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: object) -> bool:
        return self.get(key) is not None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[bytes]:
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

    def next_rows(self, count: int) -> list[tuple[bytes, bytes]]:
        """Up to `count` rows from where the previous call ended, without those that are staged."""
        found: Any = self.db.items(from_key=self._cursor)
        rows = list(islice(found, count + 1))
        self._cursor = rows[count][0] if len(rows) > count else b""
        return [(key, row) for key, row in rows[:count] if not key.startswith(META_PREFIX) and key not in self.staged]

    def __len__(self) -> int:
        """The approximate number of rows, as RocksDB estimates it."""
        return max(0, (self.db.property_int_value("rocksdb.estimate-num-keys") or 0) - (self.state is not None))


class DiskProfileStore(ProfileStore[DiskPartition]):
    """Profiles at rest by partition, each partition in its own files under `folder`.

    A partition must be opened before it is used. `folder` belongs to one worker: RocksDB locks open files.
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

    # Called by the agent.

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Stage rows that a run has folded. Reads see them from now on; `persist` writes them to the disk."""
        self._note(partition, records)
        self.partitions[partition].staged.update(records)

    def rows_of(self, partition: int) -> DiskPartition:
        return self.partitions[partition]

    def next_rows(self, partition: int, count: int) -> list[tuple[bytes, bytes]]:
        return self.partitions[partition].next_rows(count)

    # Called by the table.

    def open(self, partition: int) -> DiskState | None:
        """Open the partition's files and return how current they are; None if they are empty.

        Raises DiskError, or BlockingIOError if another process has the files open. Damaged files are removed.
        """
        if partition not in self.partitions:
            path = self.folder / str(partition)
            try:
                self.partitions[partition] = self._open_files(path)
            except DamagedFiles as error:
                log.warning("%s; they are removed, and the changelog is read from its beginning", error)
                shutil.rmtree(path)
                self.partitions[partition] = self._open_files(path)
        return self.partitions[partition].state

    def _open_files(self, path: Path) -> DiskPartition:
        def open_files() -> DiskPartition:
            path.mkdir(parents=True, exist_ok=True)
            return DiskPartition(path, Rdict(str(path), self._options))

        return self._with_clear_errors(path, open_files)

    def persist(
        self, partition: int, records: Sequence[tuple[bytes, bytes | None]], watermarks: Mapping[tuple[str, int], int],
        offset: int,
    ) -> None:  # fmt: skip
        """Write rows that the changelog has up to `offset`, in a single write. Raises DiskError."""
        rows = self.partitions[partition]
        state = DiskState(offset, dict(watermarks), time.time())
        batch = WriteBatch(raw_mode=True)
        for key, row in records:
            if row is None:
                batch.delete(key)
            else:
                batch.put(key, row)
        sources = [[topic, source, next_offset] for (topic, source), next_offset in state.watermarks.items()]
        batch.put(STATE_KEY, json.dumps({"offset": offset, "watermarks": sources, "at": state.written_at}).encode())
        self._with_clear_errors(rows.path, lambda: self._write(rows.db, batch))
        rows.state = state
        for key, row in records:
            if key in rows.staged and rows.staged[key] is row:
                del rows.staged[key]

    @staticmethod
    def _write(db: Rdict, batch: WriteBatch) -> None:
        db.write(batch)

    def drop(self, partition: int) -> None:
        """Close the files and forget staged rows. The files stay."""
        rows = self.forget(partition)
        if rows is not None:
            self._with_clear_errors(rows.path, rows.db.close)

    def wipe(self, partition: int) -> None:
        """Remove the partition's files and open empty ones."""
        self.drop(partition)
        path = self.folder / str(partition)
        self._with_clear_errors(path, lambda: shutil.rmtree(path, ignore_errors=False) if path.exists() else None)
        self.open(partition)

    def close(self) -> None:
        for partition in list(self.partitions):
            self.drop(partition)

    def _with_clear_errors(self, path: Path, call: Callable[[], T]) -> T:
        """Return what `call` returns. Its exceptions become ones that say what to do.

        RocksDB raises plain exceptions whose message starts with the kind of error.
        """
        try:
            return call()
        except DiskError:
            raise
        except Exception as error:
            message = str(error).strip()
            if "lock" in message.lower() and ("unavailable" in message or "LOCK" in message or "held" in message):
                raise BlockingIOError(
                    f"the profiles in '{path}' are in use by another worker; give each worker of a machine its own "
                    "SHOPWINDOW_DATA_DIR"
                ) from None
            if "No space left" in message:
                raise DiskError(
                    f"the disk of '{path}' is full; free some of it, or name another by SHOPWINDOW_DATA_DIR. Nothing "
                    "is lost: what the files lack is read from the changelog at the next start"
                ) from None
            if message.startswith("Corruption"):
                raise DamagedFiles(f"the files in '{path}' are damaged ({message[:200]})") from None
            raise DiskError(
                f"the profiles in '{path}' cannot be read or written ({message[:200] or type(error).__name__}); check "
                "the disk and its permissions, or name another by SHOPWINDOW_DATA_DIR"
            ) from None
