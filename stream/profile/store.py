"""Stored profiles: packed rows by partition and shopper key, as their changelog has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Any, Generic, TypeVar

from stream.deferred import DeferredPages
from stream.profile.codec import owing_pages, touched_at

# Prefix of changelog keys that are not rows; no shopper key starts with it and every reader skips such keys.
# META_PREFIX + topic:partition holds the watermark of a source partition (`tables/table.py`).
META_PREFIX = b"\x00wm:"
# Keys of the store's own rows have no colon after it. They are changed and recovered like the rows of shoppers.
CLOCK_KEY = META_PREFIX + b"clock"  # holds the partition's newest event time
_FORWARDED_PREFIX = META_PREFIX + b"forwarded-"
SWEEP_ROWS = 32  # rows that each run checks for expiry
_SCAN_ROWS = 4096  # rows read at once when a partition is taken over: they may be on a disk
Rows = TypeVar("Rows", bound=Mapping[bytes, bytes])


def forwarded_key(topic: str) -> bytes:
    """Key of the row with the next offsets to count of forwarded records of `topic` (logical name)."""
    return _FORWARDED_PREFIX + topic.encode()


class Tally:
    """Number and packed bytes of the profiles of one partition."""

    def __init__(self) -> None:
        self.profiles = self.bytes = 0

    def add(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Count rows that are new."""
        for key, row in rows:
            if not key.startswith(META_PREFIX):
                self.profiles += 1
                self.bytes += len(row)

    def change(self, rows: Mapping[bytes, bytes], records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Count what `records` are about to change in `rows`."""
        for key, row in dict(records).items():
            if key.startswith(META_PREFIX):
                continue
            previous = rows.get(key)
            self.profiles += (row is not None) - (previous is not None)
            self.bytes += len(row or b"") - len(previous or b"")


class ProfileStore(ABC, Generic[Rows]):
    """Rows of several partitions. This worker serves the active ones; the others are standby copies."""

    def __init__(self) -> None:
        self.partitions: dict[int, Rows] = {}
        self.active: set[int] = set()
        self._tallies: dict[int, Tally] = {}  # of the active partitions
        self.deferred = DeferredPages(owing_pages)

    def serve(self, partitions: Iterable[int], now: float) -> None:
        """Make exactly these partitions active. Their rows are complete. now: s, monotonic."""
        assigned = set(partitions)
        for partition in self.active - assigned:
            self.deferred.drop(partition)
            self._tallies.pop(partition, None)
        for partition in assigned - self.active:
            tally = self._tallies[partition] = Tally()
            rows = iter(self.partitions[partition].items() if partition in self.partitions else ())
            while batch := list(islice(rows, _SCAN_ROWS)):
                self.deferred.note(partition, batch, now)
                tally.add(batch)
        self.active = assigned

    def forget(self, partition: int) -> Rows | None:
        """Remove a partition that has another owner or will be read again. Return its rows."""
        self.active.discard(partition)
        self.deferred.drop(partition)
        self._tallies.pop(partition, None)
        return self.partitions.pop(partition, None)

    def owned(self, shoppers: Mapping[bytes, Any]) -> list[bytes]:
        """Keys of those `shoppers` whose profile this worker serves."""
        served = self.served()
        return [key for key in shoppers if any(key in rows for rows in served)]

    def count(self) -> int:
        """Number of profiles that this worker serves."""
        return sum(tally.profiles for tally in list(self._tallies.values()))

    def size(self) -> int:
        """Packed bytes of the profiles that this worker serves."""
        return sum(tally.bytes for tally in list(self._tallies.values()))

    def _note(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Note the rows that are about to change, if the partition is active."""
        if partition in self.active:
            self.deferred.note(partition, records, monotonic())
            self._tallies[partition].change(self.rows_of(partition), records)

    @abstractmethod
    def rows_of(self, partition: int) -> Rows:
        """Rows of a partition that this worker holds."""

    def clock(self, partition: int) -> float:
        """Newest event time of the partition, s; 0 before its first event."""
        return float(self.rows_of(partition).get(CLOCK_KEY, b"0"))

    def sweep(self, partition: int, clock: float, ttl: float, spared: Container[bytes]) -> list[bytes]:
        """Check the next SWEEP_ROWS rows for expiry.

        Return the keys of shoppers who were not seen in the `ttl` seconds before `clock`, except the `spared` ones.
        """
        rows = [row for row in self.next_rows(partition, SWEEP_ROWS) if not row[0].startswith(META_PREFIX)]
        seen = touched_at([value for _, value in rows])
        return [key for (key, _), at in zip(rows, seen, strict=True) if 0 < at < clock - ttl and key not in spared]

    @abstractmethod
    def next_rows(self, partition: int, count: int) -> list[tuple[bytes, bytes]]:
        """Up to `count` rows from where the previous call ended. After the last row, the next call starts over."""

    def served(self) -> list[Rows]:
        """Rows of each active partition."""
        return [rows for partition, rows in list(self.partitions.items()) if partition in self.active]


class MemoryProfileStore(ProfileStore[dict[bytes, bytes]]):
    """Profiles in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._unswept: dict[int, Iterator[bytes]] = {}  # keys that the current sweep has yet to check

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Set rows in order; None deletes."""
        self._note(partition, records)
        rows = self.partitions.setdefault(partition, {})
        for key, value in records:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    def rows_of(self, partition: int) -> dict[bytes, bytes]:
        return self.partitions.setdefault(partition, {})

    def next_rows(self, partition: int, count: int) -> list[tuple[bytes, bytes]]:
        rows = self.rows_of(partition)
        if partition not in self._unswept:
            self._unswept[partition] = iter(list(rows))
        keys = list(islice(self._unswept[partition], count))
        if len(keys) < count:
            del self._unswept[partition]
        return [(key, rows[key]) for key in keys if key in rows]

    def drop(self, partition: int) -> None:
        """Remove a partition and the state of its sweep."""
        self.forget(partition)
        self._unswept.pop(partition, None)

    def close(self) -> None:
        """Nothing to close."""
