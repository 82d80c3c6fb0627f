"""Rows at rest and on changelogs: a version byte, a bitmap of the 4-byte words that are not zero, those words.

Nothing here knows the fields of a row.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.jit import njit

Rows = npt.NDArray[np.void]


@njit
def _packed_ends(words, ends):  # type: ignore[no-untyped-def]
    for i in range(words.shape[0]):
        count = 0
        for j in range(words.shape[1]):
            if words[i, j] != 0:
                count += 1
        ends[i + 1] = ends[i] + 1 + (words.shape[1] + 7) // 8 + 4 * count


@njit
def _pack(words, raw, version, ends, out):  # type: ignore[no-untyped-def]
    bitmap = (words.shape[1] + 7) // 8
    for i in range(words.shape[0]):
        at = ends[i]
        out[at] = version
        put = at + 1 + bitmap
        for j in range(words.shape[1]):
            if words[i, j] != 0:
                out[at + 1 + (j >> 3)] |= 1 << (j & 7)
                for b in range(4):
                    out[put + b] = raw[i, 4 * j + b]
                put += 4


@njit
def _unpack(data, ends, raw):  # type: ignore[no-untyped-def]
    """-> the first blob whose length does not fit its bitmap, or -1."""
    n_words = raw.shape[1] // 4
    bitmap = (n_words + 7) // 8
    for i in range(raw.shape[0]):
        at, end = ends[i] + 1, ends[i + 1]
        get = at + bitmap
        if get > end:
            return i
        for j in range(n_words):
            if data[at + (j >> 3)] & (1 << (j & 7)):
                if get + 4 > end:
                    return i
                for b in range(4):
                    raw[i, 4 * j + b] = data[get + b]
                get += 4
        if get != end:
            return i
    return -1


def pack_all(rows: Rows, version: int) -> tuple[bytes, list[int]]:
    """What `pack` makes of each row, one after the other, and where each starts and the last ends (n + 1)."""
    words = rows.view(np.int32).reshape(len(rows), rows.itemsize // 4)  # (n, W) int32
    ends = np.zeros(len(rows) + 1, np.int64)
    _packed_ends(words, ends)
    out = np.zeros(int(ends[-1]), np.uint8)
    _pack(words, rows.view(np.uint8).reshape(len(rows), rows.itemsize), version, ends, out)
    return out.tobytes(), ends.tolist()


def pack(rows: Rows, version: int) -> list[bytes]:
    """Rows of any dtype of whole 4-byte words to bytes, zeros left out; `version` 1..255 names the dtype."""
    return cut(*pack_all(rows, version))


def cut(data: bytes, ends: Sequence[int]) -> list[bytes]:
    """The n pieces of `data`; ends (n + 1) says where each starts and the last ends."""
    return [data[start:end] for start, end in pairwise(ends)]


def unpack(
    blobs: Sequence[bytes], dtype: np.dtype[Any], version: int, before: Mapping[int, np.dtype[Any]] | None = None
) -> Rows:
    """What `pack` made of rows of `dtype`. (n,) dtype. Raises ValueError for another version or torn bytes.

    `before` has the dtypes of older versions: fields are copied by name, the first entries of those that were longer;
    those that are new are zero.
    """
    old = [at for at, blob in enumerate(blobs) if blob and blob[0] != version] if before else []
    if old and before:
        rows = np.zeros(len(blobs), dtype)
        for kind in {blobs[at][0] for at in old}:
            mine = [at for at in old if blobs[at][0] == kind]
            found = unpack([blobs[at] for at in mine], before.get(kind, dtype), kind if kind in before else version)
            for name in found.dtype.names or ():
                rows[name][mine] = found[name][:, : dtype[name].shape[0]] if dtype[name].shape else found[name]
        new = sorted(set(range(len(blobs))) - set(old))
        rows[new] = unpack([blobs[at] for at in new], dtype, version)
        return rows
    for blob in blobs:
        if not blob or blob[0] != version:
            raise ValueError(
                f"a row at rest has version {blob[0] if blob else 'none'}, this program reads {version}; "
                "run the version of Shopwindow that wrote it, or a newer one"
            )
    rows = np.zeros(len(blobs), dtype)
    if not len(blobs):
        return rows
    ends = np.array([0, *accumulate(map(len, blobs))])
    torn = _unpack(np.frombuffer(b"".join(blobs), np.uint8), ends, rows.view(np.uint8).reshape(len(rows), -1))
    if torn >= 0:
        raise ValueError(f"a row at rest is torn: {len(blobs[torn])} bytes do not fit its bitmap")
    return rows
