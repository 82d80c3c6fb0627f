"""What a table needs of the store that keeps its rows, in memory or on a disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class Store(Protocol):
    """The rows of a table, by partition. Agents change them; the table only fills and empties the store."""

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Set the rows of changelog records, in order; None deletes. The same record may come again."""

    def drop(self, partition: int) -> None:
        """Forget every row of the partition: it has another owner now, or is about to be read again."""


class DiskState(NamedTuple):
    """How current the rows on a disk are."""

    offset: int  # of the last changelog record that they contain
    watermarks: dict[tuple[str, int], int]  # (topic, partition) -> next offset to count
    written_at: float  # seconds since the epoch


class DiskStore(Store, Protocol):
    """A store whose rows are also on a disk, never ahead of the changelog. `drop` keeps the rows on the disk."""

    def open(self, partition: int) -> DiskState | None:
        """Open the partition's files and return how current they are; None if they are empty.

        Raises BlockingIOError while another process has them open.
        """

    def persist(
        self, partition: int, records: Sequence[tuple[bytes, bytes | None]], watermarks: Mapping[tuple[str, int], int],
        offset: int,
    ) -> None:  # fmt: skip
        """Write rows that the changelog has up to `offset`: all of them or none."""

    def wipe(self, partition: int) -> None:
        """Remove the partition's rows from the disk."""
