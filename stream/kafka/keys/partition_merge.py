"""One table from a compacted topic whose producers do not agree on a key's partition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stream.ids import IdIndex
from stream.times import EARLIEST_S, LATEST_S
from stream.types import I64

MAX_DELETED = 65_536  # deleted keys that are remembered, the newest
PRUNE_KEYS = 1 << 17  # below this number of keys nothing is forgotten
PARTITION_BITS = 12  # topics have at most 4096 partitions
PARTITION_MASK = (1 << PARTITION_BITS) - 1
KeyValue = tuple[bytes, bytes | None]


class PartitionMerge:
    """Finds the records that hold, when the records of one key lie in several partitions.

    Partitions are read in any order, so the last record read need not be the newest. Of two partitions the one with the
    newer timestamp holds, and at equal timestamps the higher partition. Within a partition the later offset holds
    whatever its timestamp, because compaction keeps it and deletes the other. Deleted keys are remembered too, so that
    an older record in another partition does not bring them back.
    """

    def __init__(self, max_present: int | None = None, max_deleted: int = MAX_DELETED) -> None:
        """max_present: number of keys with a value that are remembered, the newest; None for all."""
        self._max_present, self._max_deleted = max_present, max_deleted
        self._index = IdIndex()
        # (capacity,) of each key: timestamp in ms, partition, 1 if it is deleted; packed, so the newer is the greater.
        self._held = np.zeros(1024, np.int64)
        self._prune_at = PRUNE_KEYS

    def __len__(self) -> int:
        """Number of keys that are remembered."""
        return len(self._index)

    def claims(self, records: Sequence[KeyValue], partition: int, timestamps: Sequence[int]) -> Callable[[int], bool]:
        """Return the predicate whether a record, by its index, holds over what was read before.

        records: those of one partition, in order; timestamps: in ms, one for each. Call it once for each valid
        record, in order, because a record that holds is remembered.
        """
        self._prune()
        # Python's hash differs between processes, but it is computed once for each key and is not stored.
        keys = np.fromiter((hash(key) or 1 for key, _ in records), np.int64, len(records))
        is_deleted = np.fromiter((value is None for _, value in records), np.int64, len(records))
        times = np.maximum(_as_milliseconds(np.asarray(timestamps, np.int64)), 0)  # -1: the record has none
        packed = ((times << (PARTITION_BITS + 1)) | (partition << 1) | is_deleted).tolist()
        rows = self._index.add_all(keys).tolist()
        while len(self._held) < len(self._index):
            self._held = np.concatenate([self._held, np.zeros_like(self._held)])
        held_by_row = self._held

        def claim(at: int) -> bool:
            held = int(held_by_row[rows[at]])
            is_elsewhere = (held >> 1) & PARTITION_MASK != partition
            if is_elsewhere and held > packed[at]:
                return False
            held_by_row[rows[at]] = packed[at]
            return True

        return claim

    def _prune(self) -> None:
        """Forget the oldest keys over the limits, each time that the number of keys has doubled."""
        count = len(self._index)
        if count < self._prune_at:
            return
        held = self._held[:count]
        is_deleted = (held & 1) == 1
        kept = np.concatenate(
            [
                _newest(held, np.flatnonzero(is_deleted), self._max_deleted),
                _newest(held, np.flatnonzero(~is_deleted), self._max_present),
            ]
        )
        keys = np.zeros(count, np.int64)
        filled = self._index.keys != 0
        keys[self._index.rows[filled]] = self._index.keys[filled]
        self._index, self._held = IdIndex(len(kept)), np.resize(held[kept], max(1024, len(kept)))
        self._held[len(kept) :] = 0
        self._index.add_all(keys[kept])
        self._prune_at = max(PRUNE_KEYS, 2 * len(kept))


def _newest(held: I64, rows: I64, limit: int | None) -> I64:
    """The `limit` rows with the greatest timestamps."""
    if limit is None or len(rows) <= limit:
        return rows
    return rows[np.argsort(held[rows], kind="stable")[len(rows) - limit :]]


def _as_milliseconds(timestamps: I64) -> I64:
    """Timestamps of Kafka records in ms, also those that a producer wrote in s or us. (n,) -> (n,)."""
    is_s = (timestamps >= EARLIEST_S) & (timestamps <= LATEST_S)
    is_us = (timestamps >= EARLIEST_S * 1_000_000) & (timestamps <= LATEST_S * 1_000_000)
    return np.where(is_s, timestamps * 1_000, np.where(is_us, timestamps // 1_000, timestamps))
