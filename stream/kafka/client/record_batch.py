"""Kafka's record batches (message format 2) as arrays: the position of each key and value in the bytes of a fetch.

A starting worker reads millions of changelog records; an object per record would cost more than everything else.
The format: kafka.apache.org/documentation/#recordbatch.

Measured gain: see deploy/bench/README.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from aiokafka.record.util import calc_crc32c
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from stream.jit import njit
from stream.types import I64, U8

HEADER_BYTES = 61  # of a batch, before its records
CRC_START = 21  # the checksum covers a batch from this byte on
COMPRESSED, CONTROL = 0x07, 0x20  # bits of the attributes

# Columns of a batch's row: the bytes where it starts and ends, the offset of its first record, the offset after its
# last, attributes, number of records, checksum.
START, END, BASE, NEXT, ATTRIBUTES, COUNT, CRC = range(7)
# Columns of a record's row: its offset, the bytes where its key starts and ends, the same of its value. An end of -1
# means null.
OFFSET, KEY, KEY_END, VALUE, VALUE_END = range(5)


class Batches(NamedTuple):
    """The complete batches of a fetch. Kafka may cut off the last one, which is then left out."""

    data: U8  # (n,) the bytes of the fetch
    rows: I64  # (n, 7)


@njit
def _big_endian(data: U8, at: int, size: int) -> Any:
    """The unsigned number in `size` bytes of `data` from index `at`."""
    value = np.int64(0)
    for k in range(size):
        value = (value << 8) | np.int64(data[at + k])
    return value


@intrinsic  # type: ignore[untyped-decorator]
def _crc32c_step(typing: Any, crc: Any, word: Any) -> Any:
    """Add eight bytes to a checksum with the processor's own instruction (SSE 4.2)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(64)
        step = ir.FunctionType(wide, [wide, wide])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, step, "llvm.x86.sse42.crc32.64.64"), arguments
        )

    return types.uint64(types.uint64, types.uint64), generate


#: True if `_first_wrong_checksum` may be compiled: this processor is the target, and it has the instruction.
HAS_CRC32C = (
    not numba.config.CPU_NAME
    and not numba.config.CPU_FEATURES
    and binding.get_process_triple().startswith("x86_64")
    and bool(binding.get_host_cpu_features().get("sse4.2"))
)
_CRC_POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected


def _byte_table() -> npt.NDArray[np.uint64]:
    """The effect of each byte value on a checksum, for the bytes after the last complete group of eight. (256,)"""
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = (table >> np.uint64(1)) ^ np.where(table & np.uint64(1), np.uint64(_CRC_POLYNOMIAL), np.uint64(0))
    return table


_BYTE_TABLE = _byte_table()  # (256,)


@njit
def _first_wrong_checksum(data: U8, batches: I64) -> int:
    """Index of the first batch whose checksum does not match its bytes, or -1. `batches`: (n, 7).

    Oracle: `MemoryRecords.validate_crc` of aiokafka, by way of `parse_with_aiokafka` in test_record_batch.py.
    """
    for b in range(batches.shape[0]):
        at, end = np.uint64(batches[b, START] + CRC_START), np.uint64(batches[b, END])
        crc = np.uint64(0xFFFFFFFF)
        while at + np.uint64(8) <= end:
            word = (
                np.uint64(data[at])
                | np.uint64(data[at + np.uint64(1)]) << np.uint64(8)
                | np.uint64(data[at + np.uint64(2)]) << np.uint64(16)
                | np.uint64(data[at + np.uint64(3)]) << np.uint64(24)
                | np.uint64(data[at + np.uint64(4)]) << np.uint64(32)
                | np.uint64(data[at + np.uint64(5)]) << np.uint64(40)
                | np.uint64(data[at + np.uint64(6)]) << np.uint64(48)
                | np.uint64(data[at + np.uint64(7)]) << np.uint64(56)
            )
            crc = _crc32c_step(crc, word)
            at += np.uint64(8)
        while at < end:
            crc = _BYTE_TABLE[(crc ^ np.uint64(data[at])) & np.uint64(0xFF)] ^ (crc >> np.uint64(8))
            at += np.uint64(1)
        if np.int64(crc ^ np.uint64(0xFFFFFFFF)) != batches[b, CRC]:
            return b
    return -1


@njit
def _find_batches(data: U8, out: I64) -> int:
    """Fill `out` (m, 7) with the complete batches of `data`, as far as they fit, and return how many there are.

    Returns -1 - start if the batch at byte `start` is not of format 2. Oracle: `parse_with_aiokafka`.
    """
    at, n = 0, 0
    while at + HEADER_BYTES <= data.shape[0]:
        end = at + 12 + _big_endian(data, at + 8, 4)
        if data[at + 16] != 2 or end < at + HEADER_BYTES:
            return -1 - at
        if end > data.shape[0]:
            break
        if n < out.shape[0]:
            base = _big_endian(data, at, 8)
            out[n, START], out[n, END], out[n, BASE] = at, end, base
            out[n, NEXT] = base + _big_endian(data, at + 23, 4) + 1
            out[n, ATTRIBUTES] = _big_endian(data, at + CRC_START, 2)
            out[n, COUNT], out[n, CRC] = _big_endian(data, at + 57, 4), _big_endian(data, at + 17, 4)
        n += 1
        at = end
    return n


@njit
def _varint(data: U8, at: int) -> Any:
    """Decode a zigzag number at index `at`. Return it and the index after it.

    The index is past the end of `data` if the bytes end within the number. Oracle: `parse_with_aiokafka`.
    """
    value, shift = np.int64(0), 0
    while at < data.shape[0] and shift < 64:
        byte = np.int64(data[at])
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
    return np.int64(0), data.shape[0] + 1


@njit
def _locate_records(data: U8, batches: I64, out: I64) -> int:
    """Fill `out` (m, 5) with the records of `batches` (n, 7), and return how many there are.

    Compressed batches and control batches are skipped. Returns -1 - b if batch `b` is torn.
    Oracle: `parse_with_aiokafka`.
    """
    n = 0
    for b in range(batches.shape[0]):
        if batches[b, ATTRIBUTES] & (COMPRESSED | CONTROL):
            continue
        at, end = batches[b, START] + HEADER_BYTES, batches[b, END]
        for _ in range(batches[b, COUNT]):
            size, at = _varint(data, at)
            after = at + size
            if size < 0 or after > end:
                return -1 - b
            _, at = _varint(data, at + 1)  # the timestamp, after a byte of attributes
            delta, at = _varint(data, at)
            out[n, OFFSET] = batches[b, BASE] + delta
            for field in (KEY, VALUE):
                length, at = _varint(data, at)
                out[n, field] = at
                out[n, field + 1] = at + length if length >= 0 else -1
                at += max(0, length)
                if at > after:
                    return -1 - b
            at = after
            n += 1
        if at > end:
            return -1 - b
    return n


def find_batches(data: bytes) -> Batches:
    """The complete batches in the bytes of a fetch. Raises ValueError for a batch of an older format."""
    view = np.frombuffer(data, np.uint8)
    rows = np.empty((max(16, len(data) // 4096), 7), np.int64)
    while True:
        n = _find_batches(view, rows)
        if n < 0:
            raise ValueError(
                f"a record batch of format {data[15 - n]} at byte {-1 - n}; expected format 2, of Kafka 0.11 or later"
            )
        if n <= len(rows):
            return Batches(view, rows[:n])
        rows = np.empty((n, 7), np.int64)


def first_wrong_checksum(batches: Batches) -> int:
    """Index of the first batch whose checksum does not match its bytes, or -1."""
    if HAS_CRC32C:
        found: int = _first_wrong_checksum(batches.data, batches.rows)
        return found
    view = batches.data.data
    rows = batches.rows.tolist()
    return next(
        (b for b, row in enumerate(rows) if calc_crc32c(view[row[START] + CRC_START : row[END]]) != row[CRC]), -1
    )


def locate_records(batches: Batches) -> I64:
    """Every record of the uncompressed batches, without control batches. (n, 5). Raises ValueError if one is torn."""
    plain = (batches.rows[:, ATTRIBUTES] & (COMPRESSED | CONTROL)) == 0
    out = np.empty((int(batches.rows[plain, COUNT].sum()), 5), np.int64)
    n = _locate_records(batches.data, batches.rows, out)
    if n < 0:
        raise ValueError(f"the record batch at offset {batches.rows[-1 - n, BASE]} is torn")
    return out[:n]


def slice_records(data: bytes, located: I64) -> list[tuple[bytes, bytes | None]]:
    """Keys and values of located records (n, 5). A null key becomes empty."""
    columns: Sequence[list[int]] = located.T.tolist()
    return [
        (data[key:key_end], data[value:value_end] if value_end >= 0 else None)
        for key, key_end, value, value_end in zip(*columns[1:], strict=True)
    ]


def warm() -> None:
    """Compile the kernels before a recovery needs them."""
    empty = find_batches(b"")
    first_wrong_checksum(empty)
    locate_records(empty)
