"""Parses the record batches of a fetch (message format 2, kafka.apache.org/documentation/#recordbatch).

aiokafka's C parser finds the records. The checksums are ours, as one kernel with the processor's own instruction.
Every fetch is parsed here: events, changelogs, and through `consumer_records.py` what aiokafka's consumers read.

Measured gain: see deploy/bench/README.md.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
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
OFFSET_DELTA_START, OFFSET_DELTA_END = 23, 27  # the last offset of the batch, relative to its first
MIN_BATCH_BYTES = 26  # of the smallest batch of any format
NEWEST_FORMAT = 2

AbortedTransaction = tuple[int, int]  # producer id, first offset


class UnreadableBatch(NamedTuple):
    """A record batch that cannot be read. It has the fields of a record, and passes through a run in its place."""

    offset: int  # of its last record
    base_offset: int  # of its first record
    value: bytes  # the whole batch
    reason: str
    timestamp: int  # ms, when it was fetched: its own may be wrong
    key: None = None
    timestamp_type: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()

    def describe(self) -> str:
        """Its offsets and the reason, without any of its data."""
        return f"the record batch at offsets {self.base_offset} to {self.offset} cannot be read: {self.reason}"


class ParsedRecords(NamedTuple):
    """The records of one partition from an offset on, in order, without control records and aborted records."""

    records: Sequence[Any]  # as aiokafka's C parser returns them: .key .value .timestamp (ms) .offset .headers
    next_offset: int  # where the next fetch starts: compaction and control batches leave offsets without a record
    unreadable: UnreadableBatch | None = None  # follows the records; whatever comes after it is left to the next fetch


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
        if data[batch + FORMAT] != NEWEST_FORMAT or end < batch + HEADER_BYTES:
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


def parse_records(
    data: bytes, start: int, aborted: Sequence[AbortedTransaction] | None = None, end: int | None = None
) -> ParsedRecords:
    """Parse the records of a fetch from offset `start`. Kafka may cut off the last batch, which is then left out.

    `aborted`: the aborted transactions of the fetch, if it was read committed. `end`: where the partition ends, if
    known. Raises CorruptRecordException if not even the length of a batch can be right.
    """
    if not data:
        return ParsedRecords((), start)
    if aborted or not checksums_match(data):
        return _parse_each(data, start, aborted or (), end)
    batches, records, next_offset = MemoryRecords(data), [], start
    try:
        while batches.has_next():
            batch: Any = batches.next_batch()
            if not batch.is_control_batch:
                records.extend(batch)
            next_offset = max(start, batch.next_offset)
    except MemoryError:
        raise
    except Exception:  # of a codec, whose errors have no common class
        return _parse_each(data, start, (), end)
    return ParsedRecords(_from_offset(records, start), next_offset)


class _WrongBatch(Exception):
    """A batch cannot be read; the message has the reason, without any of its data."""


def _from_offset(records: Sequence[Any], start: int) -> Sequence[Any]:
    """Batches are returned whole, so `start` may be inside the first."""
    if records and records[0].offset < start:
        return [record for record in records if record.offset >= start]
    return records


def _parse_each(data: bytes, start: int, aborted: Sequence[AbortedTransaction], end: int | None) -> ParsedRecords:
    """Do what `parse_records` does, one batch at a time, up to the first that cannot be read."""
    transactions = _AbortedTransactions(aborted)
    records: list[Any] = []
    batch_start, next_offset = 0, start
    while (batch_end := _end_of_batch(data, batch_start)) is not None:
        encoded = data[batch_start:batch_end]
        try:
            if encoded[FORMAT] > NEWEST_FORMAT:
                raise _WrongBatch(f"message format {encoded[FORMAT]} is unknown")
            if encoded[FORMAT] == NEWEST_FORMAT and len(encoded) < HEADER_BYTES:
                raise _WrongBatch("the header is incomplete")
            batch: Any = MemoryRecords(encoded).next_batch()
            if not batch.validate_crc():
                raise _WrongBatch("the checksum is wrong")
            if not (encoded[FORMAT] == NEWEST_FORMAT and transactions.drop(batch)) and not batch.is_control_batch:
                records += list(batch)
        except MemoryError:
            raise
        except Exception as error:  # of a codec, whose errors have no common class
            following = data[batch_end : batch_end + LENGTH_START]
            limit = int.from_bytes(following, "big") if len(following) == LENGTH_START else end
            unreadable = _unreadable_batch(encoded, start, limit, error)
            return ParsedRecords(_from_offset(records, start), unreadable.offset + 1, unreadable)
        next_offset = max(start, batch.next_offset)
        batch_start = batch_end
    return ParsedRecords(_from_offset(records, start), next_offset)


def _end_of_batch(data: bytes, start: int) -> int | None:
    """Where the batch that begins at `start` ends; None if it is cut off.

    Raises CorruptRecordException if the first batch of a fetch has an impossible length. A later one is left to the
    next fetch, which begins with it.
    """
    if start + LENGTH_END > len(data):
        return None
    batch_end = start + LENGTH_END + int.from_bytes(data[start + LENGTH_START : start + LENGTH_END], "big", signed=True)
    if batch_end < start + MIN_BATCH_BYTES:
        if start:
            return None
        offset = int.from_bytes(data[start : start + LENGTH_START], "big")
        raise CorruptRecordException(f"the batch at offset {offset} has an impossible length")
    return batch_end if batch_end <= len(data) else None


def _unreadable_batch(encoded: bytes, start: int, limit: int | None, error: Exception) -> UnreadableBatch:
    """Describe a batch that cannot be read. Its offsets may be wrong too, so they stay within `start` and `limit`."""
    base = last = int.from_bytes(encoded[:LENGTH_START], "big", signed=True)
    if encoded[FORMAT] >= NEWEST_FORMAT and len(encoded) >= OFFSET_DELTA_END:
        last += int.from_bytes(encoded[OFFSET_DELTA_START:OFFSET_DELTA_END], "big", signed=True)
    last = max(start, last if limit is None else min(last, limit - 1))
    if not 0 <= base <= last:
        base = start
    # The messages of other errors may contain data of a record.
    is_safe = isinstance(error, (_WrongBatch, UnsupportedCodecError))
    reason = error.args[0] if is_safe else f"the records cannot be decoded ({type(error).__name__})"
    return UnreadableBatch(last, base, encoded, reason, int(time.time() * 1000))


class _AbortedTransactions:
    """Finds the batches of a fetch that belong to aborted transactions. Call `drop` with each batch, in order.

    From the first offset of an aborted transaction on, its producer's transactional batches are dropped, until the
    producer's next control batch. That batch is the abort marker, because a producer's transactions never overlap.
    """

    def __init__(self, transactions: Sequence[AbortedTransaction]) -> None:
        self._next = deque(sorted(transactions, key=lambda transaction: transaction[1]))
        self._producers: set[int] = set()  # with an aborted transaction that has not ended

    def drop(self, batch: Any) -> bool:
        while self._next and self._next[0][1] < batch.next_offset:
            self._producers.add(self._next.popleft()[0])
        if not batch.is_transactional or batch.producer_id not in self._producers:
            return False
        if batch.is_control_batch:
            self._producers.discard(batch.producer_id)
        return True


def warm() -> None:
    """Compile the kernel before a recovery needs it."""
    checksums_match(b"")
