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
def pack_row(words, version, out, at):  # type: ignore[no-untyped-def]
    """words (W,) int32 into out from `at` on. -> where it ends."""
    n_words = words.shape[0]
    bitmap = (n_words + 7) // 8
    out[at] = version
    put = at + 1 + bitmap
    for k in range(bitmap):
        bits = 0
        for j in range(8 * k, min(8 * k + 8, n_words)):
            word = words[j]
            if word != 0:
                bits |= 1 << (j & 7)
                for b in range(4):
                    out[put + b] = (word >> (8 * b)) & 255
                put += 4
        out[at + 1 + k] = bits
    return put


@njit
def unpack_row(data, at, end, words):  # type: ignore[no-untyped-def]
    """What `pack_row` wrote from `at` to `end` into words (W,) int32, which are 0. -> False where it is torn."""
    n_words = words.shape[0]
    bitmap = (n_words + 7) // 8
    get = at + 1 + bitmap
    if get > end:
        return False
    for k in range(bitmap):
        bits = data[at + 1 + k]
        if bits == 0:
            continue
        for j in range(8 * k, min(8 * k + 8, n_words)):
            if bits & (1 << (j & 7)):
                if get + 4 > end:
                    return False
                word = np.int64(0)
                for b in range(4):
                    word |= np.int64(data[get + b]) << (8 * b)
                words[j] = np.int32(word)
                get += 4
    return get == end


@njit
def _pack(words, version, ends, out):  # type: ignore[no-untyped-def]
    """words (n, W) int32 into out, one after the other; ends (n + 1) where each starts and the last ends."""
    at = 0
    for i in range(words.shape[0]):
        ends[i] = at
        at = pack_row(words[i], version, out, at)
    ends[words.shape[0]] = at


@njit
def _unpack(data, ends, words):  # type: ignore[no-untyped-def]
    """data and ends as `_pack` made them into words (n, W) int32, which are 0. -> the first blob that is torn, or -1."""
    for i in range(words.shape[0]):
        if not unpack_row(data, ends[i], ends[i + 1], words[i]):
            return i
    return -1


def words_of(rows: Rows) -> npt.NDArray[np.int32]:
    """Rows (n,) of whole 4-byte words as those words (n, W), the same memory."""
    return rows.view(np.int32).reshape(len(rows), rows.itemsize // 4)


def longest(dtype: np.dtype[Any]) -> int:
    """Bytes that a row of `dtype` takes at most."""
    return 1 + (dtype.itemsize // 4 + 7) // 8 + dtype.itemsize


def pack(rows: Rows, version: int) -> list[bytes]:
    """Rows of any dtype of whole 4-byte words to bytes, zeros left out; `version` 1..255 names the dtype."""
    ends = np.empty(len(rows) + 1, np.int64)
    out = np.empty(len(rows) * longest(rows.dtype), np.uint8)
    _pack(words_of(rows), version, ends, out)
    return cut(out, ends)


def cut(data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> list[bytes]:
    """The n pieces of `data`; ends (n + 1) says where each starts and the last ends."""
    view = data.data
    return [bytes(view[start:end]) for start, end in pairwise(ends.tolist())]


def joined(blobs: Sequence[bytes]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Byte strings as one array and where each starts and the last ends. (bytes,), (n + 1,)."""
    return np.frombuffer(b"".join(blobs) or b"\0", np.uint8), np.array([0, *accumulate(map(len, blobs))], np.int64)


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
    torn = _unpack(*joined(blobs), words_of(rows))
    if torn >= 0:
        raise ValueError(f"a row at rest is torn: {len(blobs[torn])} bytes do not fit its bitmap")
    return rows
