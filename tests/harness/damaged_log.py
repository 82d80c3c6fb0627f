"""Damages record batches in the files of a running broker, which delivers them without a check."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.harness.kafka_parts import ATTRIBUTES, with_checksum

HEADER_BYTES = 61


class StoredBatch(NamedTuple):
    """A record batch in a file of a broker."""

    file: Path
    at: int  # of its first byte
    base_offset: int
    last_offset: int
    data: bytes


def stored_batches(broker_data: Path, topic: str, partition: int) -> Iterator[StoredBatch]:
    """Yield the batches of a partition, in order. broker_data: the broker's data folder; topic: as Kafka names it."""
    for file in sorted((broker_data / "log" / f"{topic}-{partition}").glob("*.log")):
        data, at = file.read_bytes(), 0
        while at + HEADER_BYTES <= len(data) and (length := int.from_bytes(data[at + 8 : at + 12], "big")):
            base, end = int.from_bytes(data[at : at + 8], "big"), at + 12 + length
            yield StoredBatch(file, at, base, base + int.from_bytes(data[at + 23 : at + 27], "big"), data[at:end])
            at = end


def flip_bit(batch: StoredBatch) -> bytes:
    """Flip a bit of the batch's last byte on disk, so that its checksum is wrong. Return the batch as it is now."""
    return _overwrite(batch, batch.data[:-1] + bytes([batch.data[-1] ^ 1]))


def set_unknown_codec(batch: StoredBatch) -> bytes:
    """Give the batch a codec that does not exist, and the checksum for it. Return the batch as it is now."""
    changed = bytearray(batch.data)
    changed[ATTRIBUTES] |= 7
    return _overwrite(batch, with_checksum(changed))


def _overwrite(batch: StoredBatch, data: bytes) -> bytes:
    assert len(data) == len(batch.data)
    with batch.file.open("r+b") as file:
        file.seek(batch.at)
        file.write(data)
    return data
