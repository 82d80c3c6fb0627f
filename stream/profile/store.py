"""Profiles at rest: rows by partition and shopper key, as their changelog has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Any, Generic, TypeVar

from stream.degradation import DeferredPages
from stream.profile.codec import owing_pages, touched_at

# A changelog key that starts so is no row, and no shopper's key does; every reader skips it. Followed by topic:partition, it
# says up to where that source is counted (table.py).
META_PREFIX = b"\x00wm:"
CLOCK = META_PREFIX + b"clock"  # the partition's event time
SWEPT = 32  # rows that a run looks at for whether they have expired
Rows = TypeVar("Rows", bound=Mapping[bytes, bytes])


class ProfileStore(ABC, Generic[Rows]):
    """Partitions of rows, of which some are this worker's to serve; the others are warm copies of another's."""

    def __init__(self) -> None:
        self.partitions: dict[int, Rows] = {}
        self.active: set[int] = set()
        self.owed = DeferredPages(owing_pages)

    def serve(self, partitions: Iterable[int], now: float) -> None:
        """These are ours from now on, whole as their changelog is. now: s, monotonic."""
        ours = set(partitions)
        for partition in self.active - ours:
            self.owed.drop(partition)
        for partition in ours - self.active:
            rows = iter(self.partitions[partition].items() if partition in self.partitions else ())
            while some := list(islice(rows, 4096)):  # not all at once: they may lie on a disk
                self.owed.note(partition, some, now)
        self.active = ours

    def forget(self, partition: int) -> Rows | None:
        """The partition has another owner, or is about to be read anew. -> its rows."""
        self.active.discard(partition)
        self.owed.drop(partition)
        return self.partitions.pop(partition, None)

    def owned(self, shoppers: Mapping[bytes, Any]) -> list[bytes]:
        """Those of `shoppers` whose profile this worker serves."""
        rows_of = self.served()
        return [key for key in shoppers if any(key in rows for rows in rows_of)]

    def count(self) -> int:
        """Profiles that this worker serves."""
        return sum(len(rows) - (CLOCK in rows) for rows in self.served())

    @abstractmethod
    def of(self, partition: int) -> Rows:
        """The rows of a partition that is at hand."""

    def clock(self, partition: int) -> float:
        """The newest event time (s) that the partition has seen; 0 before the first."""
        return float(self.of(partition).get(CLOCK, b"0"))

    def sweep(self, partition: int, clock: float, ttl: float, spared: Container[bytes]) -> list[bytes]:
        """Look at the next few rows, in turn. -> those whose shopper was not seen for `ttl` s, but for the spared."""
        rows = [row for row in self.next_rows(partition, SWEPT) if row[0] != CLOCK]
        seen = touched_at([value for _, value in rows])
        return [key for (key, _), at in zip(rows, seen, strict=True) if 0 < at < clock - ttl and key not in spared]

    @abstractmethod
    def next_rows(self, partition: int, count: int) -> list[tuple[bytes, bytes]]:
        """So many rows from where the last call has ended, or fewer: then the next begins anew."""

    def served(self) -> list[Rows]:
        return [rows for partition, rows in list(self.partitions.items()) if partition in self.active]


class MemoryProfileStore(ProfileStore[dict[bytes, bytes]]):
    """Profiles in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._round: dict[int, Iterator[bytes]] = {}  # keys that the sweep has yet to look at

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Set rows, in order; None deletes."""
        if partition in self.active:
            self.owed.note(partition, records, monotonic())
        rows = self.partitions.setdefault(partition, {})
        for key, value in records:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    def of(self, partition: int) -> dict[bytes, bytes]:
        return self.partitions.setdefault(partition, {})

    def next_rows(self, partition: int, count: int) -> list[tuple[bytes, bytes]]:
        rows = self.of(partition)
        if partition not in self._round:
            self._round[partition] = iter(list(rows))
        keys = list(islice(self._round[partition], count))
        if len(keys) < count:
            del self._round[partition]
        return [(key, rows[key]) for key in keys if key in rows]

    def drop(self, partition: int) -> None:
        self.forget(partition)
        self._round.pop(partition, None)

    def close(self) -> None:
        """Nothing to close."""

    def size(self) -> int:
        """Bytes of the profiles that this worker serves, at rest."""
        return sum(sum(map(len, list(rows.values()))) for rows in self.served())
