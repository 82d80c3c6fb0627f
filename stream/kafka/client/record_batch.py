"""Kafka's record batches (message format 2) as arrays: where each key and value lies in the bytes of a fetch.

A changelog is read by the million when a worker starts; an object for each record costs more than all the rest.
The format: kafka.apache.org/documentation/#recordbatch.
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

HEAD = 61  # bytes of a batch before its records
CRC_FROM = 21  # the checksum covers a batch from here on
COMPRESSED, CONTROL = 0x07, 0x20  # bits of the attributes

# One row a batch: where it starts and ends, the offset of its first record and the next after its last, attributes,
# number of records, checksum.
START, END, BASE, NEXT, ATTRIBUTES, COUNT, CRC = range(7)
# One row a record: its offset, where its key starts and ends, the same of its value; an end of -1 is null.
OFFSET, KEY, KEY_END, VALUE, VALUE_END = range(5)
Table = npt.NDArray[np.int64]


class Batches(NamedTuple):
    """The whole batches of a fetch; a torn one at its end, which Kafka sends, is left out."""

    data: npt.NDArray[np.uint8]
    rows: Table  # (n, 7)


@njit
def _big_endian(data, at, size):  # type: ignore[no-untyped-def]
    value = np.int64(0)
    for k in range(size):
        value = (value << 8) | np.int64(data[at + k])
    return value


@intrinsic  # type: ignore[untyped-decorator]
def _crc32c_step(typing: Any, crc: Any, word: Any) -> Any:
    """The processor's own instruction (SSE 4.2): eight bytes into a checksum."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(64)
        step = ir.FunctionType(wide, [wide, wide])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, step, "llvm.x86.sse42.crc32.64.64"), arguments
        )

    return types.uint64(types.uint64, types.uint64), generate


#: Whether `_wrong` may be compiled: for this processor, and it has the instruction.
HAS_CRC32C = (
    not numba.config.CPU_NAME
    and not numba.config.CPU_FEATURES
    and binding.get_process_triple().startswith("x86_64")
    and bool(binding.get_host_cpu_features().get("sse4.2"))
)
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected


def _byte_table() -> npt.NDArray[np.uint64]:
    """What a byte does to a checksum, for those that are left over from eights. (256,)"""
    table = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        table = (table >> np.uint64(1)) ^ np.where(table & np.uint64(1), np.uint64(_POLYNOMIAL), np.uint64(0))
    return table


_OF_BYTE = _byte_table()  # (256,)


@njit
def _wrong(data, batches):  # type: ignore[no-untyped-def]
    """-> number of the first batch whose checksum is not that of its bytes, or -1."""
    for b in range(batches.shape[0]):
        at, end = np.uint64(batches[b, START] + CRC_FROM), np.uint64(batches[b, END])
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
            crc = _OF_BYTE[(crc ^ np.uint64(data[at])) & np.uint64(0xFF)] ^ (crc >> np.uint64(8))
            at += np.uint64(1)
        if np.int64(crc ^ np.uint64(0xFFFFFFFF)) != batches[b, CRC]:
            return b
    return -1


@njit
def _walk(data, out):  # type: ignore[no-untyped-def]
    """-> number of whole batches, or -1 - start of one that is not of format 2."""
    at, n = 0, 0
    while at + HEAD <= data.shape[0]:
        end = at + 12 + _big_endian(data, at + 8, 4)
        if data[at + 16] != 2 or end < at + HEAD:
            return -1 - at
        if end > data.shape[0]:
            break
        if n < out.shape[0]:
            base = _big_endian(data, at, 8)
            out[n, START], out[n, END], out[n, BASE] = at, end, base
            out[n, NEXT] = base + _big_endian(data, at + 23, 4) + 1
            out[n, ATTRIBUTES] = _big_endian(data, at + CRC_FROM, 2)
            out[n, COUNT], out[n, CRC] = _big_endian(data, at + 57, 4), _big_endian(data, at + 17, 4)
        n += 1
        at = end
    return n


@njit
def _varint(data, at):  # type: ignore[no-untyped-def]
    """Zigzag. -> value, place behind it; the place is past the data where the bytes end first."""
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
def _records(data, batches, out):  # type: ignore[no-untyped-def]
    """-> number of records, or -1 - number of the batch that is torn."""
    n = 0
    for b in range(batches.shape[0]):
        if batches[b, ATTRIBUTES] & (COMPRESSED | CONTROL):
            continue
        at, end = batches[b, START] + HEAD, batches[b, END]
        for _ in range(batches[b, COUNT]):
            size, at = _varint(data, at)
            after = at + size
            if size < 0 or after > end:
                return -1 - b
            _, at = _varint(data, at + 1)  # behind a byte of attributes: the time
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


def walk(data: bytes) -> Batches:
    """The batches in the bytes of a fetch. Raises ValueError for those of an older format."""
    view = np.frombuffer(data, np.uint8)
    rows = np.empty((max(16, len(data) // 4096), 7), np.int64)
    while True:
        n = _walk(view, rows)
        if n < 0:
            raise ValueError(
                f"a record batch of format {data[15 - n]} at byte {-1 - n}; expected 2, that of Kafka 0.11"
            )
        if n <= len(rows):
            return Batches(view, rows[:n])
        rows = np.empty((n, 7), np.int64)


def wrong_checksum(batches: Batches) -> int:
    """Number of the first batch whose checksum is not that of its bytes, or -1."""
    if HAS_CRC32C:
        found: int = _wrong(batches.data, batches.rows)
        return found
    view = batches.data.data
    told = batches.rows.tolist()
    return next(
        (b for b, row in enumerate(told) if calc_crc32c(view[row[START] + CRC_FROM : row[END]]) != row[CRC]), -1
    )


def locate(batches: Batches) -> Table:
    """Every record of the batches that are neither compressed nor control batches. (n, 5). Raises ValueError if torn."""
    plain = (batches.rows[:, ATTRIBUTES] & (COMPRESSED | CONTROL)) == 0
    out = np.empty((int(batches.rows[plain, COUNT].sum()), 5), np.int64)
    n = _records(batches.data, batches.rows, out)
    if n < 0:
        raise ValueError(f"the record batch at offset {batches.rows[-1 - n, BASE]} is torn")
    return out[:n]


def cut(data: bytes, located: Table) -> list[tuple[bytes, bytes | None]]:
    """Keys and values of located records; a key that is null is empty."""
    columns: Sequence[list[int]] = located.T.tolist()
    return [
        (data[key:key_end], data[value:value_end] if value_end >= 0 else None)
        for key, key_end, value, value_end in zip(*columns[1:], strict=True)
    ]


def warm() -> None:
    """Compile what a recovery would else wait for."""
    empty = walk(b"")
    wrong_checksum(empty)
    locate(empty)
