"""Stable ids for the strings of the shop, and an index from id to row that kernels can read.

Python's `hash` differs between processes, and dense numbers depend on the order of reading. A blake2b hash is always
the same and may therefore be stored in profiles and changelogs. Zero means absent.
"""

from functools import lru_cache
from hashlib import blake2b

import numpy as np

from stream.jit import njit
from stream.types import I32, I64


def key64(text: str) -> int:
    """Id of `text`: 8 bytes of blake2b as a signed integer; never zero."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


@lru_cache(4096)  # events repeat the same few categories and brands
def key32(text: str) -> int:
    """Short id for small vocabularies (categories, brands, words): the low 32 bits of `key64`, signed; never zero."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little", signed=True) or 1


@njit
def find(keys: I64, rows: I32, key: int) -> int:
    """Row of `key` in an open-addressing table, or -1. keys (size,), size a power of two, 0 for empty; rows (size,)."""
    mask = keys.shape[0] - 1
    at = (key ^ (key >> 29)) & mask
    while keys[at] != 0:
        if keys[at] == key:
            return rows[at]  # type: ignore[no-any-return]
        at = (at + 1) & mask
    return np.int32(-1)  # type: ignore[return-value]


@njit
def insert(keys: I64, rows: I32, key: int, row: int) -> None:
    """Insert a `key` that the table does not contain, in place. The table must have an empty slot."""
    mask = keys.shape[0] - 1
    at = (key ^ (key >> 29)) & mask
    while keys[at] != 0:
        at = (at + 1) & mask
    keys[at] = key
    rows[at] = row


@njit
def rehash(keys: I64, rows: I32, new_keys: I64, new_rows: I32) -> None:
    """Insert all entries of a table into a larger, empty one, in place."""
    for at in range(keys.shape[0]):
        if keys[at] != 0:
            insert(new_keys, new_rows, keys[at], rows[at])


@njit
def _add_all(keys: I64, rows: I32, wanted: I64, count: int, out: I32) -> int:
    """Write the row of each wanted id (n,) to out (n,); insert missing ids. Return the new number of ids.

    The table, mutated, must have an empty slot for each.
    """
    for i in range(wanted.shape[0]):
        out[i] = find(keys, rows, wanted[i])
        if out[i] < 0:
            out[i] = count
            insert(keys, rows, wanted[i], count)
            count += 1
    return count


@njit
def _find_all(keys: I64, rows: I32, wanted: I64, out: I32) -> None:
    """Write the row of each wanted id (n,) to out (n,); -1 for missing ids and for 0."""
    for i in range(wanted.shape[0]):
        out[i] = find(keys, rows, wanted[i]) if wanted[i] != 0 else -1


class IdIndex:
    """Map from ids to row numbers, dense from 0 in order of arrival. Kernels read `keys` and `rows` with `find`."""

    def __init__(self, capacity: int = 1024) -> None:
        size = 1 << max(4, (2 * capacity - 1).bit_length())
        self.keys = np.zeros(size, np.int64)  # (size,), 0 for empty
        self.rows = np.zeros(size, np.int32)  # (size,)
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def get(self, key: int) -> int:
        """Row of `key`, or -1."""
        return int(find(self.keys, self.rows, np.int64(key)))

    def get_all(self, keys: I64) -> I32:
        """Row of each key, or -1. (n,) -> (n,)."""
        out = np.empty(len(keys), np.int32)
        _find_all(self.keys, self.rows, keys, out)
        return out

    def add(self, key: int) -> int:
        """Row of `key`; a new row if it has none."""
        row = self.get(key)
        if row >= 0:
            return row
        self._reserve(1)
        insert(self.keys, self.rows, np.int64(key), np.int32(self.count))
        self.count += 1
        return self.count - 1

    def add_all(self, keys: I64) -> I32:
        """`add` of each key in order; none may be 0. (n,) -> (n,)."""
        self._reserve(len(keys))
        out = np.empty(len(keys), np.int32)
        self.count = int(_add_all(self.keys, self.rows, keys, self.count, out))
        return out

    def _reserve(self, more: int) -> None:
        """Grow the table so that `more` new ids leave half of it empty."""
        size = self.keys.shape[0]
        while 2 * (self.count + more) > size:
            size *= 2
        if size > self.keys.shape[0]:
            keys, rows = np.zeros(size, np.int64), np.zeros(size, np.int32)
            rehash(self.keys, self.rows, keys, rows)
            self.keys, self.rows = keys, rows
