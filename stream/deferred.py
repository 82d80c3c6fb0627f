"""Index of the shoppers whose page was deferred, by partition. Their stored rows are the source of truth."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice


class DeferredPages:
    """Shoppers who are owed a page, by partition, those who have waited longest first."""

    #: Pages per partition that are requested at once, so that working off the backlog does not cause overload.
    MAX_REQUESTED = 64

    def __init__(self, owing: Callable[[Mapping[bytes, bytes | None]], AbstractSet[bytes]]) -> None:
        self._owing = owing  # returns the keys of those stored rows that owe a page
        self._waiting_since: dict[int, dict[bytes, float]] = defaultdict(dict)
        self._requested: dict[int, set[bytes]] = defaultdict(set)

    def __len__(self) -> int:
        waiting, requested = list(self._waiting_since.values()), list(self._requested.values())
        return sum(map(len, waiting)) + sum(map(len, requested))

    def note(self, partition: int, records: Iterable[tuple[bytes, bytes | None]], now: float) -> None:
        """Update the index with changed or restored rows of a partition; None deletes a row. now: s, as in `due`."""
        waiting_since, requested = self._waiting_since[partition], self._requested[partition]
        rows = dict(records)  # of several records with one key the last one applies
        owing = self._owing(rows)
        if waiting_since or requested:
            for key in rows.keys() - owing:
                self.forget(partition, key)
        for key in rows if owing else ():
            if key in owing and key not in requested:
                waiting_since.setdefault(key, now)

    def forget(self, partition: int, key: bytes) -> None:
        """Remove a shopper."""
        self._waiting_since[partition].pop(key, None)
        self._requested[partition].discard(key)

    def drop(self, partition: int) -> None:
        """Remove a partition that has another owner or will be read again."""
        self._waiting_since.pop(partition, None)
        self._requested.pop(partition, None)

    def due(self, now: float, after: float) -> list[tuple[int, list[bytes]]]:
        """Shoppers who have waited for `after` seconds, by partition, and mark their pages as requested.

        Each shopper is returned once. At most MAX_REQUESTED pages of a partition are requested at a time.
        """
        found = []
        for partition, waiting_since in list(self._waiting_since.items()):
            requested = self._requested[partition]
            oldest = list(islice(waiting_since.items(), max(0, self.MAX_REQUESTED - len(requested))))
            keys = [key for key, since in oldest if now - since >= after]
            for key in keys:
                del waiting_since[key]
                requested.add(key)
            if keys:
                found.append((partition, keys))
        return found
