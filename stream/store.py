"""Profiles at rest: rows by partition and shopper key, as their changelog has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


class Profiles:
    """Profiles at rest by partition and shopper key, as their changelog has them."""

    def __init__(self) -> None:
        self.partitions: dict[int, dict[bytes, bytes]] = defaultdict(dict)

    def apply(self, partition: int, records: Sequence[tuple[bytes, bytes | None]]) -> None:
        rows = self.partitions[partition]
        for key, value in records:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value

    def drop(self, partition: int) -> None:
        self.partitions.pop(partition, None)

    def close(self) -> None:
        """Nothing to close."""

    def owned(self, shoppers: Mapping[bytes, Any]) -> list[bytes]:
        """Those of `shoppers` whose profile is in this worker's partitions."""
        rows_of = list(self.partitions.values())
        return [key for key in shoppers if any(key in rows for rows in rows_of)]

    def count(self) -> int:
        return sum(map(len, list(self.partitions.values())))

    def size(self) -> int:
        """Bytes of all of them at rest."""
        return sum(sum(map(len, list(rows.values()))) for rows in list(self.partitions.values()))
