"""A refused record as it goes to `dead-letters`: the original bytes, and headers that say where, why and how often."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from stream import metrics
from stream.kafka.commit import Headers, Output, Pair
from stream.kafka.topics import DEAD_LETTER_BYTES

if TYPE_CHECKING:
    from stream.events import Reject
    from stream.kafka.run import Run

# On a record that was sent again from `dead-letters`: a `RedriveOrigin` as JSON. Should it fail again, its letter says so.
REDRIVEN = "shopwindow-redriven"
CUT = "cut_from"
# More than the largest record of a cluster with Kafka's own limit. What is beyond would be refused, and stop the worker.
KEPT = DEAD_LETTER_BYTES // 2 + (256 << 10)
log = logging.getLogger(__name__)
_OURS = ("topic", "partition", "offset", "attempts", "error", "field", "message")


class RedriveOrigin(msgspec.Struct, frozen=True):
    """Which letter a record was, and where it came from when it was refused for the first time."""

    letter: str
    topic: str
    partition: int
    offset: int
    attempts: int  # that had failed


class DeadLetter(NamedTuple):
    """A record of `dead-letters`. Of one that somebody else wrote there, what it does not say is "" or -1."""

    id: str  # "partition-offset" of the letter itself
    time: float  # when it was refused, s since the epoch
    topic: str  # logical, as are partition and offset where it was refused for the first time
    partition: int
    offset: int
    attempts: int
    error: str
    field: str
    message: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]  # the producer's own
    cut_from: int = 0  # bytes that the value had, where it was too large to be kept whole


def dead_letters(run: Run, rejects: Sequence[Reject]) -> list[Output]:
    """What goes to `dead-letters` for the rejects of a run, counted; nothing where there are none."""
    made = letters(run, run.records, rejects)
    count_letters(made)
    return made


def letters(run: Run, records: Sequence[Any], rejects: Sequence[Reject]) -> list[Output]:
    """The same for some records of a run, which `rejects` number; not counted, as it may be a trial."""
    made = [dead_letter(run.topic, run.partition, records[reject.record], reject) for reject in rejects]
    return [Output("dead-letters", None, [pair for pair, _ in made], [own for _, own in made])] if made else []


def count_letters(outputs: Sequence[Output]) -> None:
    """Count those of `outputs` that are letters, and log where each record lay and which field was at fault.

    What was found there is in the letter's message, and stays out of the log.
    """
    for output in outputs:
        if output.topic != "dead-letters":
            continue
        for headers in output.headers or ():
            of = {name: value.decode() for name, value in headers[: len(_OURS)] if value is not None}
            metrics.DEAD_LETTERS.labels(of["topic"], of["error"]).inc()
            if of["error"] != "poison":  # its finder has told more
                place = {"topic": of["topic"], "partition": int(of["partition"]), "offset": int(of["offset"])}
                log.warning("a record is refused, %s in %s", of["error"], of["field"], extra=place)


def dead_letter(topic: str, partition: int, record: Any, reject: Reject) -> tuple[Pair, Headers]:
    """`topic` is the logical name, `record` as it came from Kafka; its own headers follow ours.

    A record beyond KEPT bytes, as only a cluster with a raised message.max.bytes has them, is cut there and loses its own
    headers; the header `cut_from` then gives its bytes.
    """
    offset, attempts = record.offset, 1
    before = redriven(record.headers)
    if before is not None and before.topic == topic:
        partition, offset, attempts = before.partition, before.offset, before.attempts + 1
    values = (topic, partition, offset, attempts, reject.code, reject.field, reject.message)
    headers = [(name, str(value).encode("utf-8", "replace")) for name, value in zip(_OURS, values, strict=True)]
    own = [pair for pair in record.headers if pair[0] != REDRIVEN]
    key, value = record.key or b"", record.value or b""
    if len(key) + len(value) + sum(len(name) + len(held or b"") for name, held in own) > KEPT:
        return (key[:1024], value[: KEPT - 2048]), [*headers, (CUT, b"%d" % len(value))]
    return (record.key, record.value), [*headers, *own]


def redriven(headers: Any) -> RedriveOrigin | None:
    """What the headers of a record tell of its time in `dead-letters`; None for one that was not there."""
    for name, value in headers:
        if name == REDRIVEN:
            try:
                return msgspec.json.decode(value, type=RedriveOrigin)
            except msgspec.MsgspecError:
                return None  # a producer's own, by chance
    return None


def read_letter(record: Any) -> DeadLetter:
    """The letter in an aiokafka record of `dead-letters`."""
    told: dict[str, str] = {}
    for name, value in record.headers:
        if name not in (*_OURS, CUT) or name in told:
            break  # the producer's own begin
        told[name] = (value or b"").decode("utf-8", "replace")
    return DeadLetter(
        f"{record.partition}-{record.offset}", record.timestamp / 1000, told.get("topic", ""),
        _number(told, "partition", -1), _number(told, "offset", -1), _number(told, "attempts", 1),
        told.get("error", ""), told.get("field", ""), told.get("message", ""), record.key, record.value,
        tuple(record.headers[len(told) :]), _number(told, CUT, 0),
    )  # fmt: skip


def _number(told: dict[str, str], name: str, otherwise: int) -> int:
    text = told.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else otherwise
