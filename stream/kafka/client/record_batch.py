"""Parses the record batches of a fetch (message format 2, kafka.apache.org/documentation/#recordbatch).

aiokafka's C parser finds the records. The checksums are ours, as one kernel with the processor's own instruction.

Measured gain: see deploy/bench/README.md.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from aiokafka.errors import CorruptRecordException
from aiokafka.record.memory_records import MemoryRecords
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from stream.jit import njit
from stream.types import U8

HEADER_BYTES = 61  # of a batch, before its records
LENGTH_START, LENGTH_END = 8, 12  # the number of bytes after it
FORMAT = 16  # index of the byte with the number of the message format
CRC_START, CRC_END = 17, 21  # the checksum; it covers the bytes after it


class ParsedRecords(NamedTuple):
    """The records of one partition from an offset on, in order, without control records."""

    records: Sequence[Any]  # as aiokafka's C parser returns them: .key .value .timestamp (ms) .offset .headers
    next_offset: int  # where the next fetch starts: compaction and control batches leave offsets without a record


@njit
def _big_endian(data: U8, start: int, end: int) -> Any:
    """The unsigned number in data[start:end]."""
    value = np.int64(0)
    for k in range(start, end):
        value = (value << 8) | np.int64(data[k])
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


#: True if `_first_wrong_batch` may be compiled: this processor is the target, and it has the instruction.
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
def _first_wrong_batch(data: U8) -> int:
    """Start of the first complete batch that is not of format 2 or whose checksum does not match its bytes, or -1.

    Oracle: `MemoryRecords` and `validate_crc` of aiokafka.
    """
    batch = 0
    while batch + HEADER_BYTES <= data.shape[0]:
        end = batch + LENGTH_END + _big_endian(data, batch + LENGTH_START, batch + LENGTH_END)
        if data[batch + FORMAT] != 2 or end < batch + HEADER_BYTES:
            return batch
        if end > data.shape[0]:
            break
        crc = np.uint64(0xFFFFFFFF)
        at, stop = np.uint64(batch + CRC_END), np.uint64(end)
        while at + np.uint64(8) <= stop:
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
        while at < stop:
            crc = _BYTE_TABLE[(crc ^ np.uint64(data[at])) & np.uint64(0xFF)] ^ (crc >> np.uint64(8))
            at += np.uint64(1)
        if np.int64(crc ^ np.uint64(0xFFFFFFFF)) != _big_endian(data, batch + CRC_START, batch + CRC_END):
            return batch
        batch = end
    return -1


def checksums_match(data: bytes) -> bool:
    """Whether every complete batch is of format 2 and its checksum matches its bytes."""
    return HAS_CRC32C and bool(_first_wrong_batch(np.frombuffer(data, np.uint8)) < 0)


def parse_records(data: bytes, start: int) -> ParsedRecords:
    """Parse the records of a fetch from offset `start`. Kafka may cut off the last batch, which is then left out.

    Raises CorruptRecordException if a checksum is wrong.
    """
    if not data:
        return ParsedRecords((), start)
    batches, records, next_offset = MemoryRecords(data), [], start
    verified = checksums_match(data)  # otherwise aiokafka says which batch is wrong, and reads earlier formats
    while batches.has_next():
        batch: Any = batches.next_batch()
        if not verified and not batch.validate_crc():
            raise CorruptRecordException(f"the batch before offset {batch.next_offset} has a wrong checksum")
        if not batch.is_control_batch:
            records.extend(batch)
        next_offset = max(start, batch.next_offset)
    # Batches are returned whole, so `start` may be inside the first.
    if records and records[0].offset < start:
        records = [record for record in records if record.offset >= start]
    return ParsedRecords(records, next_offset)


def warm() -> None:
    """Compile the kernel before a recovery needs it."""
    checksums_match(b"")
