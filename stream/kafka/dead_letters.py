"""A refused record as it goes to `dead-letters`: the original bytes, and headers that say where and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stream import metrics
from stream.kafka.outputs import Output

if TYPE_CHECKING:
    from stream.events import Reject
    from stream.kafka.transport import Run


def dead_letters(run: Run, rejects: Sequence[Reject]) -> list[Output]:
    """What goes to `dead-letters` for the rejects of a run, nothing where there are none; own headers follow ours."""
    records, headers = [], []
    for reject in rejects:
        record = run.records[reject.record]
        reasons = {
            "topic": run.topic,
            "partition": str(run.partition),
            "offset": str(record.offset),
            "error": reject.code,
            "field": reject.field,
            "message": reject.message,
        }
        ours = [(name, text.encode("utf-8", "replace")) for name, text in reasons.items()]
        records.append((record.key, record.value))
        headers.append([*ours, *record.headers])
        metrics.DEAD_LETTERS.labels(run.topic, reject.code).inc()
    return [Output("dead-letters", None, records, headers)] if records else []
