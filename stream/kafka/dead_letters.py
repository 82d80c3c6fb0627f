"""Rejected records in the topic `dead-letters`: the original bytes, and headers that say where, why and how often.

A record batch that cannot be read is one dead letter with the error `unreadable`: its value is the whole batch, as
Kafka stores it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from stream import metrics
from stream.events.decode import Reject
from stream.kafka.commit import BATCH_OVERHEAD, RECORD_OVERHEAD, Headers, Output, Pair
from stream.kafka.keys.forwarding import FORWARDED, origin_of
from stream.kafka.topics import DEFAULT_BATCH_LIMIT

if TYPE_CHECKING:
    from stream.kafka.client.record_batch import UnreadableBatch
    from stream.kafka.run import Run

# Header of a record that was sent again from `dead-letters`: a `RedriveOrigin` as JSON. If the record is rejected
# again, its next dead letter continues the history.
REDRIVEN = "shopwindow-redriven"
# Header of a dead letter whose value was cut: the bytes that the value had.
CUT = "cut_from"
# Header of the dead letter of a record batch: the offset of its last record. The header "offset" has that of its first.
LAST_OFFSET = "last_offset"
LAST_OFFSET_BYTES = 64  # upper bound of this header
UNREADABLE = "unreadable"  # error of such a dead letter
CUT_KEY_BYTES = 1024  # of a cut dead letter
HEADER_BYTES = 12  # upper bound of the bytes that a header needs beside its name and value
log = logging.getLogger(__name__)
_HEADER_NAMES = ("topic", "partition", "offset", "attempts", "error", "field", "message")


class RedriveOrigin(msgspec.Struct, frozen=True):
    """The dead letter that a record was, and where the record was rejected for the first time."""

    letter: str  # id of the dead letter
    topic: str
    partition: int
    offset: int
    attempts: int  # failed ones


class DeadLetter(NamedTuple):
    """A record of `dead-letters`. In one that another program wrote, missing fields are "" or -1."""

    id: str  # "partition-offset" of the dead letter itself
    time: float  # of the rejection, seconds since the epoch
    topic: str  # logical name; topic, partition and offset are those of the first rejection
    partition: int
    offset: int
    attempts: int
    error: str
    field: str
    message: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # the producer's own
    cut_from: int = 0  # bytes of the original value if it was cut, else 0
    last_offset: int = -1  # of a record batch that could not be read, else -1


def dead_letters(run: Run, rejects: Sequence[Reject], batch_limit: int = DEFAULT_BATCH_LIMIT) -> list[Output]:
    """Return the dead letters of a run's rejects, and count them. Empty if there are no rejects."""
    outputs = to_dead_letters(run, run.records, rejects, batch_limit)
    count_dead_letters(outputs)
    return outputs


def to_dead_letters(
    run: Run, records: Sequence[Any], rejects: Sequence[Reject], batch_limit: int = DEFAULT_BATCH_LIMIT
) -> list[Output]:
    """Return the dead letters of some records of a run. `rejects` refer to indices of `records`.

    They are not counted, because this may be a trial.
    """
    encoded = [
        encode_dead_letter(run.topic, run.partition, records[reject.record], reject, batch_limit) for reject in rejects
    ]
    if not encoded:
        return []
    return [Output("dead-letters", None, [pair for pair, _ in encoded], [headers for _, headers in encoded])]


def unreadable_letter(
    topic: str, partition: int, batch: UnreadableBatch, batch_limit: int = DEFAULT_BATCH_LIMIT
) -> Output:
    """Return the dead letter of a batch that cannot be read; `topic` is the logical name. It is not counted."""
    reject = Reject(0, UNREADABLE, "batch", batch.describe())
    record = batch._replace(offset=batch.base_offset)
    pair, headers = encode_dead_letter(topic, partition, record, reject, batch_limit - LAST_OFFSET_BYTES)
    return Output("dead-letters", None, [pair], [[*headers, (LAST_OFFSET, b"%d" % batch.offset)]])


def count_dead_letters(outputs: Sequence[Output]) -> None:
    """Count those of `outputs` that are dead letters, and log where each record was and which field is at fault.

    The dead letter's message contains the field's value and therefore stays out of the log.
    """
    for output in outputs:
        if output.topic != "dead-letters":
            continue
        for headers in output.headers or ():
            found = {name: value.decode() for name, value in headers[: len(_HEADER_NAMES)] if value is not None}
            metrics.DEAD_LETTERS.labels(found["topic"], found["error"]).inc()
            if found["error"] not in ("poison", UNREADABLE):  # logged with more detail where they are found
                place = {"topic": found["topic"], "partition": int(found["partition"]), "offset": int(found["offset"])}
                log.warning("a record is refused, %s in %s", found["error"], found["field"], extra=place)


def encode_dead_letter(
    topic: str, partition: int, record: Any, reject: Reject, batch_limit: int = DEFAULT_BATCH_LIMIT
) -> tuple[Pair, Headers]:
    """Return the key, value and headers of the dead letter of an aiokafka record; `topic` is the logical name.

    The record's own headers follow ours. A forwarded record is named by its origin. If the dead letter is larger than
    `batch_limit` (max.message.bytes of `dead-letters`), the broker would refuse it, and that would stop the worker. So
    the record is cut and loses its own headers; the header `cut_from` then gives the size of its value.
    """
    offset, attempts = record.offset, 1
    forwarded_from = origin_of(record.headers, topic) if record.headers else None
    if forwarded_from is not None:
        partition, offset = forwarded_from.partition, forwarded_from.offset
    origin = redrive_origin(record.headers)
    if origin is not None and origin.topic == topic:
        partition, offset, attempts = origin.partition, origin.offset, origin.attempts + 1
    values = (topic, partition, offset, attempts, reject.code, reject.field, reject.message)
    headers = [(name, str(value).encode("utf-8", "replace")) for name, value in zip(_HEADER_NAMES, values, strict=True)]
    # Without FORWARDED: a redriven record is a new one, and must not be skipped as a repetition of this one.
    own_headers = [header for header in record.headers if header[0] not in (REDRIVEN, FORWARDED)]
    key, value = record.key or b"", record.value or b""  # for their sizes
    room = batch_limit - BATCH_OVERHEAD - RECORD_OVERHEAD - _headers_bytes(headers)
    if len(key) + len(value) + _headers_bytes(own_headers) <= room:
        return (record.key, record.value), [*headers, *own_headers]
    cut = (CUT, b"%d" % len(value))
    room -= CUT_KEY_BYTES + _headers_bytes([cut])
    return (record.key and key[:CUT_KEY_BYTES], value[: max(0, room)]), [*headers, cut]


def _headers_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Upper bound of the bytes of headers in a record batch."""
    return sum(HEADER_BYTES + len(name.encode()) + len(content or b"") for name, content in headers)


def redrive_origin(headers: Any) -> RedriveOrigin | None:
    """The history that a record's headers give of its time in `dead-letters`; None if it was never there."""
    for name, value in headers:
        if name == REDRIVEN:
            try:
                return msgspec.json.decode(value, type=RedriveOrigin)
            except msgspec.MsgspecError:
                return None  # a producer's own header that happens to have this name
    return None


def decode_dead_letter(record: Any) -> DeadLetter:
    """The dead letter in an aiokafka record of `dead-letters`."""
    ours: dict[str, str] = {}
    for name, value in record.headers:
        if name not in (*_HEADER_NAMES, CUT, LAST_OFFSET) or name in ours:
            break  # the producer's own headers start here
        ours[name] = (value or b"").decode("utf-8", "replace")
    return DeadLetter(
        f"{record.partition}-{record.offset}", record.timestamp / 1000, ours.get("topic", ""),
        _number(ours, "partition", -1), _number(ours, "offset", -1), _number(ours, "attempts", 1),
        ours.get("error", ""), ours.get("field", ""), ours.get("message", ""), record.key, record.value,
        tuple(record.headers[len(ours) :]), _number(ours, CUT, 0), _number(ours, LAST_OFFSET, -1),
    )  # fmt: skip


def _number(headers: dict[str, str], name: str, default: int) -> int:
    text = headers.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
