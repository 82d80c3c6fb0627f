"""Forwards records that lie in a wrong partition to the owner of their key, each of them once.

A forwarded record keeps its topic, key, value, headers and timestamp, and names its origin in the header FORWARDED. Its
source forwards it before the run's watermark is written, so a crash may forward it again. But the records from one
source partition always arrive in order of their origin's offset, except for repetitions. So the receiving partition
keeps, as a row of its table, the next origin offset that it has not counted, and skips what is below. The row is part
of the run's changelog batch, like all rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stream.events.decode import Reject
from stream.kafka.commit import Headers, Output
from stream.kafka.keys.partitioner import find_misplaced
from stream.kafka.topics import BATCH_LIMIT
from stream.profile.store import forwarded_key
from stream.types import I64

# Header of a forwarded record: "topic/partition/offset" of its origin, with the logical name of the topic.
FORWARDED = "shopwindow-forwarded"
HEADER_ROOM_BYTES = 1024  # of a record batch, for its head and our header
# A row of next offsets starts with these bytes. Workers of earlier versions take it for a row of a shopper that is cut
# short, which they skip.
_ROW_PREFIX = b"\xff\xff"


class Origin(NamedTuple):
    """The place of a forwarded record in the partition that it was sent to."""

    topic: str  # logical name
    partition: int
    offset: int


class Routed(NamedTuple):
    """What becomes of the records of a run. Indices are those of the records, in order."""

    own: Sequence[int] | None = None  # to be processed here; None: all of them
    misplaced: Mapping[int, int] = {}  # to be forwarded: index -> partition that owns the key
    stranded: Mapping[int, int] = {}  # forwarded to a wrong partition: index -> partition that owns the key
    arrived: int = 0  # records that were forwarded to this partition
    duplicates: int = 0  # of these, how many were counted before
    row: tuple[bytes, bytes] | None = None  # for the changelog: the next offsets to count of each origin


_ALL_OWN = Routed()


def origin_of(headers: Sequence[tuple[str, bytes | None]], topic: str) -> Origin | None:
    """The origin that a record of `topic` (logical name) names in its headers; None if it was not forwarded.

    A producer's own header of this name comes before ours, or is not of our form.
    """
    for name, value in reversed(headers):
        if name == FORWARDED:
            parts = (value or b"").split(b"/")
            if len(parts) == 3 and parts[0] == topic.encode() and parts[1].isdigit() and parts[2].isdigit():
                return Origin(topic, int(parts[1]), int(parts[2]))
            return None
    return None


def route(topic: str, partition: int, records: Sequence[Any], partitions: int, stored: Mapping[bytes, bytes]) -> Routed:
    """Decide what becomes of the records of a run. `stored`: the rows of its partition, runs in flight included."""
    misplaced = find_misplaced([record.key for record in records], partition, partitions)
    if not misplaced and not any([record.headers for record in records]):
        return _ALL_OWN
    origins = {
        index: origin
        for index, record in enumerate(records)
        if record.headers and (origin := origin_of(record.headers, topic)) is not None and origin.partition != partition
    }
    if not misplaced and not origins:
        return _ALL_OWN
    row_key = forwarded_key(topic)
    next_offsets = _decode_row(stored.get(row_key)) if origins else {}
    own, duplicates, is_changed = [], 0, False
    for index in range(len(records)):
        if index in misplaced:
            continue
        origin = origins.get(index)
        if origin is None:
            own.append(index)
        elif origin.offset < next_offsets.get(origin.partition, 0):
            duplicates += 1
        else:
            next_offsets[origin.partition], is_changed = origin.offset + 1, True
            own.append(index)
    stranded = {index: owner for index, owner in misplaced.items() if index in origins}
    return Routed(
        own,
        {index: owner for index, owner in misplaced.items() if index not in origins},
        stranded,
        len(origins),
        duplicates,
        (row_key, _encode_row(next_offsets)) if is_changed else None,
    )


def stranded(topic: str, partition: int, records: Sequence[Any], routed: Routed) -> list[Reject]:
    """The rejects of records that were forwarded to a partition which does not own their key either.

    That happens if the topic has got more partitions in between. To forward them again could go on for ever.
    """
    rejects = []
    for index, owner in routed.stranded.items():
        origin = origin_of(records[index].headers, topic)
        assert origin is not None
        message = (
            f"the record was forwarded from partition {origin.partition} to {partition}, but its key belongs to "
            f"{owner}: the number of partitions has changed; `shopwindow dead-letters redrive` sends it there"
        )
        rejects.append(Reject(index, "misplaced", "key", message))
    return rejects


def too_large(records: Sequence[Any], misplaced: Mapping[int, int], batch_limit: int) -> list[Reject]:
    """The rejects of misplaced records that are too large to be forwarded: the refusal would stop the worker.

    batch_limit: max.message.bytes of their topic.
    """
    rejects, most = [], batch_limit - HEADER_ROOM_BYTES
    for index in misplaced:
        size = _size(records[index])
        if size > most:
            message = (
                f"the record has {size} bytes with its headers, and lies in a wrong partition; records of at most "
                f"{most} bytes are forwarded, because the topic's {BATCH_LIMIT} is {batch_limit}"
            )
            rejects.append(Reject(index, "too_large", "headers", message))
    return rejects


def forward(topic: str, partition: int, records: Sequence[Any], misplaced: Mapping[int, int]) -> list[Output]:
    """Return the outputs that forward the `misplaced` records (index -> owner) of `partition`."""
    by_owner: defaultdict[int, list[Any]] = defaultdict(list)
    for index, owner in misplaced.items():
        by_owner[owner].append(records[index])
    outputs = []
    for owner, moved in by_owner.items():
        headers: list[Headers] = [
            [*record.headers, (FORWARDED, b"%s/%d/%d" % (topic.encode(), partition, record.offset))] for record in moved
        ]
        pairs = [(record.key, record.value) for record in moved]
        outputs.append(Output(topic, owner, pairs, headers, [record.timestamp for record in moved]))
    return outputs


def _size(record: Any) -> int:
    """Bytes of a record's key, value and headers, about."""
    headers = sum(len(name) + len(value or b"") + 8 for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def _decode_row(value: bytes | None) -> dict[int, int]:
    """Next offset by origin partition."""
    if value is None:
        return {}
    offsets: I64 = np.frombuffer(value, "<i8", offset=len(_ROW_PREFIX))
    return {partition: offset for partition, offset in enumerate(offsets.tolist()) if offset}


def _encode_row(next_offsets: Mapping[int, int]) -> bytes:
    offsets = np.zeros(max(next_offsets) + 1, "<i8")
    for partition, offset in next_offsets.items():
        offsets[partition] = offset
    return _ROW_PREFIX + offsets.tobytes()
