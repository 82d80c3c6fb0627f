"""A refused record as it goes to `dead-letters`: the original bytes, and headers that say where and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stream.kafka.outputs import Record
from stream.kafka.topics import DEAD_LETTER_BYTES

if TYPE_CHECKING:
    from stream.events import Reject

# More than the largest record of a cluster with Kafka's own limit. What is beyond would be refused, and stop the worker.
KEPT = DEAD_LETTER_BYTES // 2 + (256 << 10)


def dead_letter(topic: str, record: Any, reject: Reject) -> Record:
    """`topic` is the logical name, `record` the aiokafka record as it came; its own headers follow ours.

    A record beyond KEPT bytes, as only a cluster with a raised message.max.bytes has them, is cut there and loses its own
    headers; the header `cut_from` then gives its bytes.
    """
    reasons = {
        "topic": topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "error": reject.code,
        "field": reject.field,
        "message": reject.message,
    }
    headers = [(name, text.encode("utf-8", "replace")) for name, text in reasons.items()]
    value, own = record.value, tuple(record.headers)
    size = len(record.key or b"") + len(value or b"") + sum(len(name) + len(held or b"") for name, held in own)
    if size > KEPT:
        headers.append(("cut_from", b"%d" % len(value or b"")))
        return Record((record.key or b"")[:1024], (value or b"")[: KEPT - 2048], headers)
    return Record(record.key, value, (*headers, *own))
