"""Profiles at rest: rows by partition and shopper key, as their changelog has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Generic, TypeVar

from stream.ladder import Owed
from stream.profile import owes_page

Rows = TypeVar("Rows", bound=Mapping[bytes, bytes])


class Served(Generic[Rows]):
    """Partitions of rows, of which some are this worker's to serve; the others are warm copies of another's."""

    def __init__(self) -> None:
        self.partitions: dict[int, Rows] = {}
        self.active: set[int] = set()
        self.owed = Owed(owes_page)

    def serve(self, partitions: Iterable[int], now: float) -> None:
        """These are ours from now on, whole as their changelog is. now: s, monotonic."""
        ours = set(partitions)
        for partition in self.active - ours:
            self.owed.drop(partition)
        for partition in ours - self.active:
            self.owed.note(partition, self.partitions[partition].items() if partition in self.partitions else (), now)
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
        return sum(map(len, self.served()))

    def served(self) -> list[Rows]:
        return [rows for partition, rows in list(self.partitions.items()) if partition in self.active]


class Profiles(Served[dict[bytes, bytes]]):
    """Profiles in memory."""

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
        """The rows of a partition; none yet where it is new."""
        return self.partitions.setdefault(partition, {})

    def drop(self, partition: int) -> None:
        self.forget(partition)

    def close(self) -> None:
        """Nothing to close."""

    def size(self) -> int:
        """Bytes of the profiles that this worker serves, at rest."""
        return sum(sum(map(len, list(rows.values()))) for rows in self.served())
