"""Kernels that write pages and impressions as JSON bytes, with base64 and float16.

Each writer takes the output buffer and the position to write at, and returns the position after what it wrote. The
caller has sized the buffer (`encode_pages`, `encode_impressions`). Oracle: the payload types of `stream.page.schemas`,
with msgspec and orjson, in tests/unit/stream/page/test_encode.py.
"""

import string
from collections.abc import Sequence

import numpy as np

from stream.codes import MAX_PAGE_ITEMS, REASONS, SLOTS
from stream.jit import njit
from stream.row_codec import join_blobs, pack_plain
from stream.types import I32, I64, U8, Row, Rows

PHI_VERSION = 1  # version byte of a packed row of phi


def _table(texts: Sequence[str]) -> tuple[U8, I64]:
    return join_blobs([text.encode() for text in texts])


_TOKENS, _TOKEN_AT = _table(
    (',"position":', ',"score":', ',"propensity":', ',"explored":true', ',"explored":false', ',"reason":{"code":"',
     '","weight":', "}}", "]}", ',"slot":"', '","items":[', '"')
)  # fmt: skip
_POSITION, _SCORE, _PROPENSITY, _TRUE, _FALSE, _REASON, _WEIGHT, _END_ITEM, _END_LIST, _SLOT, _ITEMS, _QUOTE = range(12)
_REASON_NAMES, _REASON_AT = _table(REASONS)
_SLOT_NAMES, _SLOT_AT = _table(SLOTS)
_COMMA, _MINUS, _POINT, _ZERO, _EQUALS, _CLOSING_BRACE = 44, 45, 46, 48, 61, 125  # ASCII
_DIGIT_PAIRS = np.frombuffer(b"".join(b"%02d" % pair for pair in range(100)), np.uint8)
_E8, _E4, _E2, _TEN = np.uint64(100_000_000), np.uint32(10_000), np.uint32(100), np.uint64(10)
_BASE64 = np.frombuffer(string.ascii_uppercase.encode() + string.ascii_lowercase.encode() + b"0123456789+/", np.uint8)
_KIND_BYTES = len(',"kind":"product"')  # the end of an item's fragment


@njit
def _copy(out: U8, at: int, source: U8, start: int, end: int) -> int:
    """Copy source[start:end] into out."""
    for j in range(end - start):
        out[at + j] = source[start + j]
    return at + end - start


@njit
def _write_token(out: U8, at: int, token: int) -> int:
    at = _copy(out, at, _TOKENS, _TOKEN_AT[token], _TOKEN_AT[token + 1])
    return at


@njit
def _write_int(out: U8, at: int, value: int) -> int:
    """Write a non-negative integer."""
    digits = 1
    power = 10
    while value >= power:
        power *= 10
        digits += 1
    for j in range(digits - 1, -1, -1):
        out[at + j] = _ZERO + value % 10
        value //= 10
    return at + digits


@njit
def _write_decimal(out: U8, at: int, value: float) -> int:
    """Write `value` with eight decimals; absolute values above 1e9 are written as 1e9."""
    if value < 0.0:
        out[at] = _MINUS
        at += 1
        value = -value
    scaled = np.uint64(min(value, 1e9) * 1e8 + 0.5)
    whole = scaled // _E8
    if whole < _TEN:
        out[at] = _ZERO + np.uint8(whole)
        at += 1
    else:
        at = _write_int(out, at, np.int64(whole))
    out[at] = _POINT
    # Two digits at a time, from two halves that do not depend on each other: the processor computes them in parallel.
    part = np.uint32(scaled - whole * _E8)
    high, low = part // _E4, part % _E4
    for j, pair in ((1, high // _E2), (3, high % _E2), (5, low // _E2), (7, low % _E2)):
        out[at + j] = _DIGIT_PAIRS[2 * pair]
        out[at + j + 1] = _DIGIT_PAIRS[2 * pair + 1]
    return at + 9


@njit
def _write_figures(out: U8, at: int, item: Row) -> int:
    """Write position, score, propensity and the explored flag of a PLACED row."""
    at = _write_int(out, _write_token(out, at, _POSITION), np.int64(item.position))
    at = _write_decimal(out, _write_token(out, at, _SCORE), np.float64(item.score))
    at = _write_decimal(out, _write_token(out, at, _PROPENSITY), np.float64(item.propensity))
    at = _write_token(out, at, _TRUE if item.explored else _FALSE)
    return at


@njit
def _write_page_item(out: U8, at: int, item: Row, fragments: U8, fragment_at: I64) -> int:
    """Write one item of a page, with its reason. item: PLACED row."""
    at = _copy(out, at, fragments, fragment_at[item.row, 0], fragment_at[item.row, 1])
    at = _write_token(out, _write_figures(out, at, item), _REASON)
    at = _copy(out, at, _REASON_NAMES, _REASON_AT[item.reason], _REASON_AT[item.reason + 1])
    at = _write_decimal(out, _write_token(out, at, _WEIGHT), np.float64(item.weight))
    # An item that is known to the signals but not to the catalogue has no fragment; the reason then names no item.
    if item.reason_row >= 0 and fragment_at[item.reason_row, 1] > 0:
        # The fragment `{"item_id":"SKU1","kind":"product"` contains the id in the form that a reason needs.
        out[at] = _COMMA
        start, end = fragment_at[item.reason_row, 0] + 1, fragment_at[item.reason_row, 1] - _KIND_BYTES
        at = _copy(out, at + 1, fragments, start, end)
    at = _write_token(out, at, _END_ITEM)
    return at


@njit
def write_pages(
    placed: Rows,
    count: I32,
    texts: U8,
    text_at: I64,
    slot_head_of: I32,
    fragments: U8,
    fragment_at: I64,
    out: U8,
    ends: I64,
) -> None:
    """Write U pages into `out`, one after the other, and their boundaries into `ends` (U + 1,).

    placed (U, MAX_PAGE_ITEMS) PLACED; count (U,); slot_head_of (U, slots); texts: the heads of the U pages, then the
    heads of the slots, with their boundaries text_at.
    """
    at = ends[0] = 0
    for u in range(placed.shape[0]):
        at = _copy(out, at, texts, text_at[u], text_at[u + 1])
        slot = -1
        for j in range(count[u]):
            item = placed[u, j]
            if item.slot != slot:
                if slot >= 0:
                    at = _write_token(out, at, _END_LIST)
                    out[at] = _COMMA
                    at += 1
                slot = item.slot
                head = placed.shape[0] + slot_head_of[u, slot]
                at = _copy(out, at, texts, text_at[head], text_at[head + 1])
            else:
                out[at] = _COMMA
                at += 1
            at = _write_page_item(out, at, item, fragments, fragment_at)
        if slot >= 0:
            at = _write_token(out, at, _END_LIST)
        at = _write_token(out, at, _END_LIST)
        ends[u + 1] = at


@njit
def float16_bits(bits: int) -> int:
    """Bits of the float16 nearest to the float32 with these `bits`; ties go to even. Oracle: numpy's `astype`."""
    sign, magnitude = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if magnitude >= 0x38800000:
        if magnitude > 0x7F800000:  # NaN stays NaN
            return sign | max(0x7C00 + ((magnitude & 0x7FFFFF) >> 13), 0x7C01)
        if magnitude >= 0x47800000:
            return sign | 0x7C00  # too large: infinity
        return sign | ((magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1)) >> 13)
    shift = 126 - (magnitude >> 23)
    if shift > 24:
        return sign
    # Below 2**-14 a float16 is subnormal: a fraction in units of 2**-24.
    fraction = (magnitude & 0x7FFFFF) | 0x800000
    return sign | ((fraction + (1 << (shift - 1)) - 1 + ((fraction >> shift) & 1)) >> shift)


@njit
def _write_base64(out: U8, at: int, data: U8, size: int) -> int:
    """Write data[:size] as base64 with padding."""
    for i in range(0, size - size % 3, 3):
        bits = (np.int64(data[i]) << 16) | (np.int64(data[i + 1]) << 8) | np.int64(data[i + 2])
        for j in range(4):
            out[at + j] = _BASE64[(bits >> (18 - 6 * j)) & 63]
        at += 4
    left = size % 3
    if left > 0:
        bits = np.int64(data[size - left]) << 16
        if left == 2:
            bits |= np.int64(data[size - 1]) << 8
        for j in range(4):
            out[at + j] = _BASE64[(bits >> (18 - 6 * j)) & 63] if j <= left else _EQUALS
        at += 4
    return at


@njit
def write_impressions(
    placed: Rows,
    count: I32,
    texts: U8,
    text_at: I64,
    phi: I32,
    fragments: U8,
    fragment_at: I64,
    out: U8,
    ends: I64,
) -> None:
    """Write U impressions into `out`, one after the other, and their boundaries into `ends` (U + 1,).

    placed (U, MAX_PAGE_ITEMS) PLACED; count (U,); texts: the heads of the impressions, with their boundaries text_at;
    phi (count.sum(), F): the bits of float32, as int32. Each row of phi is packed as float16 by `pack_plain`.
    """
    words = np.zeros((phi.shape[1] + 1) // 2, np.int32)
    packed = np.empty(MAX_PAGE_ITEMS * (5 + 5 * words.shape[0]), np.uint8)
    at, n = 0, 0
    ends[0] = 0
    for u in range(placed.shape[0]):
        at = _copy(out, at, texts, text_at[u], text_at[u + 1])
        size = 0
        for _ in range(count[u]):
            for k in range(phi.shape[1]):
                if k % 2 == 0:
                    words[k // 2] = float16_bits(np.int64(phi[n, k]))
                else:
                    words[k // 2] |= np.int32(float16_bits(np.int64(phi[n, k])) << 16)
            size = pack_plain(words, PHI_VERSION, packed, size)
            n += 1
        at = _write_token(out, _write_base64(out, at, packed, size), _ITEMS)
        for j in range(count[u]):
            item = placed[u, j]
            if j > 0:
                out[at] = _COMMA
                at += 1
            at = _copy(out, at, fragments, fragment_at[item.row, 0], fragment_at[item.row, 1])
            at = _copy(out, _write_token(out, at, _SLOT), _SLOT_NAMES, _SLOT_AT[item.slot], _SLOT_AT[item.slot + 1])
            at = _write_figures(out, _write_token(out, at, _QUOTE), item)
            out[at] = _CLOSING_BRACE
            at += 1
        at = _write_token(out, at, _END_LIST)
        ends[u + 1] = at
