"""Stable 64-bit ids for the strings of the shop, and an index from id to row that kernels can read.

Python's `hash` differs from process to process; dense numbers differ with the order of reading. A blake2b hash is the
same everywhere and for ever, so it may stand in profiles and on the changelog. Zero means absent.
"""

from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from stream.jit import njit

EMPTY = 0


def key64(text: str) -> int:
    """The id of `text`: blake2b, 8 bytes, signed; never zero."""
    return (
        int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)
        or 1
    )


@lru_cache(4096)  # every event names the same few categories and brands
def key32(text: str) -> int:
    """A short id for small vocabularies (categories, brands, words): the low half of `key64`; never zero."""
    return (
        int.from_bytes(
            blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()[:4], "little", signed=True
        )
        or 1
    )


@njit
def find(keys, rows, key):  # type: ignore[no-untyped-def]
    """Row of `key` in an open-addressing table of `keys` (power of two, int64) and `rows` (int32), or -1."""
    mask = keys.shape[0] - 1
    at = (key ^ (key >> 29)) & mask
    while keys[at] != 0:
        if keys[at] == key:
            return rows[at]
        at = (at + 1) & mask
    return np.int32(-1)


@njit
def insert(keys, rows, key, row):  # type: ignore[no-untyped-def]
    """Put a `key` that is not there in a table that has room, for `find`."""
    mask = keys.shape[0] - 1
    at = (key ^ (key >> 29)) & mask
    while keys[at] != 0:
        at = (at + 1) & mask
    keys[at] = key
    rows[at] = row


@njit
def rehash(keys, rows, new_keys, new_rows):  # type: ignore[no-untyped-def]
    """Put what a table holds into a larger one that is empty."""
    for at in range(keys.shape[0]):
        if keys[at] != 0:
            insert(new_keys, new_rows, keys[at], rows[at])


@njit
def _add_all(keys, rows, wanted, count, out):  # type: ignore[no-untyped-def]
    """`keys` has room for all. -> how many there are then."""
    for i in range(wanted.shape[0]):
        out[i] = find(keys, rows, wanted[i])
        if out[i] < 0:
            out[i] = count
            insert(keys, rows, wanted[i], count)
            count += 1
    return count


@njit
def _find_all(keys, rows, wanted, out):  # type: ignore[no-untyped-def]
    for i in range(wanted.shape[0]):
        out[i] = find(keys, rows, wanted[i]) if wanted[i] != 0 else -1


class IdIndex:
    """Ids to row numbers, dense from 0 in order of arrival. Kernels read `keys` and `rows` through `find`."""

    def __init__(self, capacity: int = 1024) -> None:
        size = 1 << max(4, (2 * capacity - 1).bit_length())
        self.keys = np.zeros(size, np.int64)  # (size,) int64, 0 where empty
        self.rows = np.zeros(size, np.int32)  # (size,) int32
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def get(self, key: int) -> int:
        """Row of `key`, or -1."""
        return int(find(self.keys, self.rows, np.int64(key)))

    def get_all(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Row of each key, -1 where it has none. (n,) -> (n,)."""
        out = np.empty(len(keys), np.int32)
        _find_all(self.keys, self.rows, keys, out)
        return out

    def add(self, key: int) -> int:
        """Row of `key`, a new one where it has none yet."""
        row = self.get(key)
        if row >= 0:
            return row
        self._make_room(1)
        insert(self.keys, self.rows, np.int64(key), np.int32(self.count))
        self.count += 1
        return self.count - 1

    def add_all(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """`add` of each key, none of which is EMPTY, in order. (n,) -> (n,)."""
        self._make_room(len(keys))
        out = np.empty(len(keys), np.int32)
        self.count = int(_add_all(self.keys, self.rows, keys, self.count, out))
        return out

    def _make_room(self, more: int) -> None:
        size = self.keys.shape[0]
        while 2 * (self.count + more) > size:
            size *= 2
        if size > self.keys.shape[0]:
            keys, rows = np.zeros(size, np.int64), np.zeros(size, np.int32)
            rehash(self.keys, self.rows, keys, rows)
            self.keys, self.rows = keys, rows
