"""A refused record as it goes to `dead-letters`: the original bytes, and headers that say where and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stream.kafka.outputs import Record

if TYPE_CHECKING:
    from stream.events import Reject


def dead_letter(topic: str, record: Any, reject: Reject) -> Record:
    """`topic` is the logical name, `record` the aiokafka record as it came; its own headers follow ours."""
    reasons = {
        "topic": topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "error": reject.code,
        "field": reject.field,
        "message": reject.message,
    }
    headers = [(name, text.encode("utf-8", "replace")) for name, text in reasons.items()]
    return Record(record.key, record.value, (*headers, *record.headers))
