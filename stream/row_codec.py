"""Packed rows, as they are stored and written to changelogs: a version byte, a bitmap of non-zero values, the values.

There are two forms. Plain: a bitmap of the 4-byte words that are not zero, then those words. Compact, marked by the top
bit of the version byte: presence bits of the bitmap's bytes, the bitmap bytes that are not zero, a two-bit tag per
value, the values. A value is an 8-byte number, or one 4-byte word of any narrower fields. Its tag selects how it is
written: as a reference to one of the last 256 values of its row, as a difference from the last value of its kind (for
times in ms or us), or in full:

    tag             0          1                    2                    3
    word            reference  difference, 1 byte   difference, 2 bytes  4 bytes
    8-byte integer  reference  difference, 1 byte   difference, 4 bytes  8 bytes
    8-byte float    reference  ms, 3 bytes          us, 5 bytes          8 bytes

The codec does not know the fields of a row, only their widths.
Oracle of the kernels: `as_documented` in tests/unit/stream/profile/test_row_codec.py.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

from stream.jit import njit
from stream.types import F64, I16, I32, I64, U8, Rows

COMPACT = 0x80  # bit of the version byte
REACH = 256  # values that a one-byte reference can go back
_WORD, _INTEGER, _FLOAT = range(3)  # kinds of values
_SIZES = np.array([[1, 1, 2, 4], [1, 1, 4, 8], [1, 3, 5, 8]])  # (3, 4) bytes of a value, by kind and tag
_ONES = np.array([byte.bit_count() for byte in range(256)])  # (256,) bits that are set in a byte
_SLOT_BITS = 10
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - _SLOT_BITS)
Scratch = tuple[I64, U8, I64, I16, I64, F64]  # see `scratch_for`


@cache
def value_kinds(dtype: np.dtype[Any]) -> U8:
    """Kind of each value of a row, in order, (U,): 8-byte numbers for fields that have them, words elsewhere."""
    wide: dict[int, int] = {}
    for field, offset, *_ in (dtype.fields or {}).values():
        if field.base.itemsize == 8:
            kind = _FLOAT if field.base.kind == "f" else _INTEGER
            wide |= {offset // 4 + 2 * k: kind for k in range(prod(field.shape))}
    kinds, word = [], 0
    while word < dtype.itemsize // 4:
        kinds.append(wide.get(word, _WORD))
        word += 2 if word in wide else 1
    return np.array(kinds, np.uint8)


def presence_bytes(dtype: np.dtype[Any]) -> int:
    """Bytes of presence bits, between the version byte of a compact row and its bitmap."""
    return (len(value_kinds(dtype)) + 63) // 64


def field_position(dtype: np.dtype[Any], name: str) -> tuple[int, int]:
    """Indices of a field's first word and first value: its bits in the bitmap of a plain and of a compact row."""
    fields: Mapping[str, Any] = dtype.fields or {}
    word: int = fields[name][1] // 4
    starts = np.cumsum([0, *np.where(value_kinds(dtype) == _WORD, 1, 2)])  # (U + 1,) first word of each value
    return word, int(np.searchsorted(starts, word))


@njit
def _put(out: U8, at: int, value: int) -> None:
    """Write all 8 bytes, little-endian. The next value overwrites the excess bytes of a shorter one."""
    # Unsigned and unrolled, so that LLVM makes one store of it.
    first = np.uint64(at)
    out[first] = value & 255
    out[first + np.uint64(1)] = (value >> 8) & 255
    out[first + np.uint64(2)] = (value >> 16) & 255
    out[first + np.uint64(3)] = (value >> 24) & 255
    out[first + np.uint64(4)] = (value >> 32) & 255
    out[first + np.uint64(5)] = (value >> 40) & 255
    out[first + np.uint64(6)] = (value >> 48) & 255
    out[first + np.uint64(7)] = (value >> 56) & 255


@njit
def _get(data: U8, at: int, size: int) -> np.int64:
    """Signed number of `size` bytes, little-endian. Reads 8 bytes of data."""
    first = np.uint64(at)
    value = (
        np.int64(data[first])
        | np.int64(data[first + np.uint64(1)]) << 8
        | np.int64(data[first + np.uint64(2)]) << 16
        | np.int64(data[first + np.uint64(3)]) << 24
        | np.int64(data[first + np.uint64(4)]) << 32
        | np.int64(data[first + np.uint64(5)]) << 40
        | np.int64(data[first + np.uint64(6)]) << 48
        | np.int64(data[first + np.uint64(7)]) << 56
    )
    unused = 64 - 8 * size
    return (value << unused) >> unused


@njit
def _ticks(time: float) -> np.int64:
    """Microseconds of a time that is a whole number of them, as event times are; 0 for any other number."""
    ticks = np.rint(time * 1e6)
    if 2.0**32 < ticks < 2.0**53 and ticks / 1e6 == time:
        return np.int64(ticks)
    return np.int64(0)


@njit
def pack_plain(words: I32, version: int, out: U8, at: int) -> int:
    """Pack one row, words (W,), in the plain form into out from `at` on. Return its end."""
    n_words = words.shape[0]
    bitmap = (n_words + 7) // 8
    out[at] = version
    cursor: int = at + 1 + bitmap
    for k in range(bitmap):
        bits = 0
        for j in range(8 * k, min(8 * k + 8, n_words)):
            word = words[j]
            if word != 0:
                bits |= 1 << (j & 7)
                for b in range(4):
                    out[cursor + b] = (word >> (8 * b)) & 255
                cursor += 4
        out[at + 1 + k] = bits
    return cursor


@njit
def scratch_for(kinds: U8) -> Scratch:
    """Reusable arrays for packing and unpacking rows whose values have these kinds (U,)."""
    bits_of = np.empty(1, np.int64)
    return (
        np.empty(kinds.shape[0], np.int64),  # values that are not zero
        np.empty(kinds.shape[0], np.uint8),  # kind of each of these
        np.empty(kinds.shape[0], np.int64),  # values that a reference can point to
        np.empty(1 << _SLOT_BITS, np.int16),  # hash table of positions among them
        bits_of,
        bits_of.view(np.float64),
    )


@njit
def pack_row(words: I32, kinds: U8, scratch: Scratch, version: int, out: U8, at: int) -> int:
    """Pack one row, words (W,) of values with kinds (U,), into out from `at` on in its shorter form. Return its end."""
    values, present_kinds, known, slots, bits_of, float_of = scratch
    n_kinds = kinds.shape[0]
    n_bitmap = (n_kinds + 7) // 8
    n_presence = (n_bitmap + 7) // 8
    out[at] = COMPACT | version
    out[at + 1 : at + 1 + n_presence] = 0
    cursor: int = at + 1 + n_presence
    n, n_words, word = 0, 0, 0
    for m in range(n_bitmap):
        bits = 0
        for u in range(8 * m, min(8 * m + 8, n_kinds)):
            value = np.int64(words[word])
            n_words += value != 0
            word += 1
            if kinds[u] != _WORD:
                n_words += words[word] != 0
                value = (value & 0xFFFFFFFF) | (np.int64(words[word]) << 32)
                word += 1
            if value != 0:
                bits |= 1 << (u & 7)
                values[n], present_kinds[n] = value, kinds[u]
                n += 1
        if bits != 0:
            out[cursor] = bits
            cursor += 1
            out[at + 1 + (m >> 3)] |= 1 << (m & 7)
    tags = cursor
    cursor += (n + 3) // 4
    out[tags:cursor] = 0
    slots[:] = -1
    n_known = 0
    last_word, last_integer, last_ticks = np.int64(0), np.int64(0), np.int64(0)
    for k in range(n):
        value, kind = values[k], present_kinds[k]
        tag, payload, ticks = 3, value, np.int64(0)
        if kind == _WORD:
            difference = value - last_word
            last_word = value
            if -128 <= difference < 128:
                tag, payload = 1, difference
            elif -32768 <= difference < 32768:
                tag, payload = 2, difference
        elif kind == _INTEGER:
            difference = value - last_integer
            last_integer = value
            if -128 <= difference < 128:
                tag, payload = 1, difference
            elif -(1 << 31) <= difference < 1 << 31:
                tag, payload = 2, difference
        else:
            bits_of[0] = value
            ticks = _ticks(float_of[0])
            if ticks != 0:
                difference = ticks - last_ticks
                last_ticks = ticks
                if difference % 1000 == 0 and -(1 << 23) <= difference // 1000 < 1 << 23:
                    tag, payload = 1, difference // 1000
                elif -(1 << 39) <= difference < 1 << 39:
                    tag, payload = 2, difference
        if _SIZES[kind, tag] > 1:
            slot = np.int64((np.uint64(value) * _MIX) >> _SHIFT)
            earlier = slots[slot]
            if earlier >= 0 and known[earlier] == value and n_known - earlier <= REACH:
                tag, payload = 0, np.int64(n_known - 1 - earlier)
            else:
                slots[slot] = n_known
                known[n_known] = value
                n_known += 1
        out[tags + (k >> 2)] |= tag << (2 * (k & 3))
        _put(out, cursor, payload)
        cursor += _SIZES[kind, tag]
    if cursor - at > 1 + (words.shape[0] + 7) // 8 + 4 * n_words:
        cursor = pack_plain(words, version, out, at)
    return cursor


@njit
def _pack(words: I32, kinds: U8, version: int, ends: I64, out: U8) -> None:
    """Pack rows, words (n, W), into out one after the other. ends (n + 1,) gets the start of each and the last end."""
    scratch = scratch_for(kinds)
    at = 0
    for i in range(words.shape[0]):
        ends[i] = at
        at = pack_row(words[i], kinds, scratch, version, out, at)
    ends[words.shape[0]] = at


@njit
def _unpack_plain(data: U8, at: int, end: int, words: I32) -> bool:
    """Unpack the plain row data[at:end] into words (W,), which must be zero. Return False if it is torn."""
    n_words = words.shape[0]
    bitmap = (n_words + 7) // 8
    at += 1
    cursor: int = at + bitmap
    if cursor > end:
        return False
    for k in range(bitmap):
        bits = data[at + k]
        if bits == 0:
            continue
        for j in range(8 * k, min(8 * k + 8, n_words)):
            if bits & (1 << (j & 7)):
                if cursor + 4 > end:
                    return False
                word = np.int64(0)
                for b in range(4):
                    word |= np.int64(data[cursor + b]) << (8 * b)
                words[j] = np.int32(word)
                cursor += 4
    return cursor == end


@njit
def _unpack_compact(data: U8, at: int, end: int, kinds: U8, scratch: Scratch, words: I32) -> bool:
    """Unpack the compact row data[at:end] into words (W,), which must be zero. Return False if it is torn."""
    _, _, known, _, bits_of, float_of = scratch
    n_kinds = kinds.shape[0]
    n_bitmap = (n_kinds + 7) // 8
    presence = at + 1
    bitmap = presence + (n_bitmap + 7) // 8
    if bitmap > end:
        return False
    tags = bitmap
    for k in range(presence, bitmap):
        tags += _ONES[data[k]]
    if tags > end:
        return False
    n = 0
    for k in range(bitmap, tags):
        n += _ONES[data[k]]
    cursor: int = tags + (n + 3) // 4
    if cursor > end:
        return False
    last_word, last_integer, last_ticks = np.int64(0), np.int64(0), np.int64(0)
    k, n_known, word = 0, 0, 0
    for m in range(n_bitmap):
        bits = np.int64(0)
        if data[presence + (m >> 3)] & (1 << (m & 7)):
            bits = np.int64(data[bitmap])
            bitmap += 1
        for u in range(8 * m, min(8 * m + 8, n_kinds)):
            kind = kinds[u]
            if bits & (1 << (u & 7)):
                tag = (data[tags + (k >> 2)] >> (2 * (k & 3))) & 3
                k += 1
                size = _SIZES[kind, tag]
                if cursor + size > end:
                    return False
                value = _get(data, cursor, size)
                cursor += size
                if tag == 0:
                    earlier = n_known - 1 - (value & 255)
                    if earlier < 0:
                        return False
                    value = known[earlier]
                if kind == _WORD:
                    if tag == 1 or tag == 2:
                        value += last_word
                    last_word = value
                elif kind == _INTEGER:
                    if tag == 1 or tag == 2:
                        value += last_integer
                    last_integer = value
                elif tag == 1 or tag == 2:
                    last_ticks += value * 1000 if tag == 1 else value
                    float_of[0] = last_ticks / 1e6
                    value = bits_of[0]
                else:
                    bits_of[0] = value
                    ticks = _ticks(float_of[0])
                    if ticks != 0:
                        last_ticks = ticks
                if size > 1:
                    known[n_known] = value
                    n_known += 1
                words[word] = np.int32(value & 0xFFFFFFFF)
                if kind != _WORD:
                    words[word + 1] = np.int32(value >> 32)
            word += 1 if kind == _WORD else 2
    return cursor == end


@njit
def unpack_row(data: U8, at: int, end: int, kinds: U8, scratch: Scratch, words: I32) -> bool:
    """Unpack the row data[at:end] of either form into words (W,), which must be zero. Return False if it is torn.

    data must have 8 readable bytes after `end`.
    """
    if data[at] & COMPACT:
        return _unpack_compact(data, at, end, kinds, scratch, words)  # type: ignore[no-any-return]
    return _unpack_plain(data, at, end, words)  # type: ignore[no-any-return]


@njit
def _unpack(data: U8, ends: I64, kinds: U8, words: I32) -> int:
    """Unpack concatenated rows with ends (n + 1,) into words (n, W). Return the index of the first torn row, or -1."""
    scratch = scratch_for(kinds)
    for i in range(words.shape[0]):
        if not unpack_row(data, ends[i], ends[i + 1], kinds, scratch, words[i]):
            return i
    return -1


def words_of(rows: Rows) -> I32:
    """View rows (n,) of whole 4-byte words as words (n, W): the same memory."""
    return rows.view(np.int32).reshape(len(rows), rows.itemsize // 4)


@cache
def _opaque(dtype: np.dtype[Any]) -> np.dtype[np.void]:
    return np.dtype((np.void, dtype.itemsize))


def rows_at(rows: Rows, at: Any) -> Rows:
    """Return a copy of `rows[at]`.

    Rows are copied whole. NumPy copies records field by field, which takes 36 us per profile instead of 2.
    """
    found: Rows = rows.view(_opaque(rows.dtype))[at].view(rows.dtype)
    return found


def blank_rows(n: int, dtype: np.dtype[Any]) -> Rows:
    """Rows (n,) of zeros, in a tenth of the time of `np.zeros` for a dtype with many fields."""
    return np.ndarray(n, dtype, bytearray(n * dtype.itemsize))


def max_packed_bytes(dtype: np.dtype[Any]) -> int:
    """Maximum length of a packed row."""
    return 1 + (dtype.itemsize // 4 + 7) // 8 + dtype.itemsize


def pack_slack(dtype: np.dtype[Any]) -> int:
    """Bytes that packing may touch beyond `max_packed_bytes`: the compact form is written before it proves too long."""
    return dtype.itemsize // 4 + 16


def pack(rows: Rows, version: int) -> list[bytes]:
    """Pack rows of a dtype of whole 4-byte words. `version`, 1 to 127, identifies the dtype."""
    ends = np.empty(len(rows) + 1, np.int64)
    out = np.empty(len(rows) * max_packed_bytes(rows.dtype) + pack_slack(rows.dtype), np.uint8)
    _pack(words_of(rows), value_kinds(rows.dtype), version, ends, out)
    return split_blobs(out, ends)


def split_blobs(data: U8, ends: I64) -> list[bytes]:
    """The n byte strings in `data`; ends (n + 1,) has the start of each and the end of the last."""
    view = data.data
    return [bytes(view[start:end]) for start, end in pairwise(ends.tolist())]


def join_blobs(blobs: Sequence[bytes]) -> tuple[U8, I64]:
    """Concatenate byte strings, with 8 zero bytes behind. Also return the start of each and the last end, (n + 1,)."""
    data = np.frombuffer(b"".join((*blobs, bytes(8))), np.uint8)
    return data, np.array([0, *accumulate(map(len, blobs))], np.int64)


def _version_of(blob: bytes) -> int:
    return blob[0] & ~COMPACT


def unpack(
    blobs: Sequence[bytes], dtype: np.dtype[Any], version: int, before: Mapping[int, np.dtype[Any]] | None = None
) -> Rows:
    """Rows (n,) dtype that `pack` wrote. Raises ValueError for another version or torn bytes.

    `before` maps older versions to their dtypes. Their fields are copied by name, and of a field that was longer only
    the first entries. Fields that they lack are zero.
    """
    old = [at for at, blob in enumerate(blobs) if blob and _version_of(blob) != version] if before else []
    if old and before:
        return _unpack_old(blobs, dtype, version, before, old)
    for blob in blobs:
        if not blob or _version_of(blob) != version:
            raise ValueError(
                f"a packed row has version {_version_of(blob) if blob else 'none'}, this program reads {version}; "
                "run the version of Shopwindow that wrote it, or a newer one"
            )
    rows = blank_rows(len(blobs), dtype)
    if not len(blobs):
        return rows
    torn = _unpack(*join_blobs(blobs), value_kinds(dtype), words_of(rows))
    if torn >= 0:
        raise ValueError(f"a packed row is torn: {len(blobs[torn])} bytes do not match its bitmap")
    return rows


def _unpack_old(
    blobs: Sequence[bytes],
    dtype: np.dtype[Any],
    version: int,
    before: Mapping[int, np.dtype[Any]],
    old: Sequence[int],
) -> Rows:
    """See `unpack`; `old` are the indices of the blobs of other versions."""
    rows = np.zeros(len(blobs), dtype)
    for older in {_version_of(blobs[at]) for at in old}:
        selected = [at for at in old if _version_of(blobs[at]) == older]
        known = older in before
        found = unpack([blobs[at] for at in selected], before.get(older, dtype), older if known else version)
        for name in found.dtype.names or ():
            rows[name][selected] = found[name][:, : dtype[name].shape[0]] if dtype[name].shape else found[name]
    current = sorted(set(range(len(blobs))) - set(old))
    words_of(rows)[current] = words_of(unpack([blobs[at] for at in current], dtype, version))
    return rows
