"""Check events with the decoder of the workers before they are sent, and report by reason what they would refuse."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from deploy.io.files import Outgoing
from deploy.io.formats import event_format, table_format
from deploy.io.misspelt_fields import MisspeltFields
from stream.events import cloudevents
from stream.events.decode import Reject, decode_run
from stream.events.errors import EventError, shown
from stream.events.ignored_types import IgnoredTypes
from stream.settings import Settings

MAX_REASONS = 20  # that are counted apart; a file may have any number of unknown types


class BadEvents(Enum):
    """What becomes of events that workers would refuse."""

    REFUSE = "if there are any, nothing is sent"
    SKIP = "only the others are sent"
    SEND = "they are sent, and become dead letters"


class NumberedRecord(NamedTuple):
    line: int
    record: Outgoing


@dataclass
class _Reason:
    """Refused lines with one reason."""

    count: int
    line: int  # the first
    message: str  # about that line


class EventCheck:
    """Counts of the events of one file: checked, refused by reason, and ignored by type."""

    def __init__(self, settings: Settings) -> None:
        self._future_tolerance = settings.future_tolerance
        self._ignored_types = IgnoredTypes(settings.ignored_types.split(","))
        self._reasons: dict[str, _Reason] = {}
        self._first = ""  # the first event, if it is refused
        self._misspelt = MisspeltFields()
        self.checked = self.refused = 0
        self.ignored: Counter[str] = Counter()

    def good(self, records: Sequence[NumberedRecord]) -> list[NumberedRecord]:
        """Check records of the file, in order, and return those that a worker would accept or ignore now."""
        by_topic = defaultdict(list)
        for at, (_, record) in enumerate(records):
            by_topic[record.topic].append(at)
            self._misspelt.add(record.value)
        refused: list[tuple[int, Reject]] = []
        for topic, places in by_topic.items():
            values, keys = [records[at].record.value for at in places], [records[at].record.key for at in places]
            decoded = decode_run(
                values, keys, [time.time()] * len(places), topic, self._future_tolerance,
                ignored_types=self._ignored_types,
            )  # fmt: skip
            refused += [(places[reject.record], reject) for reject in decoded.rejects]
            self.ignored.update(decoded.ignored)
        refused.sort(key=lambda one: one[0])
        for at, reject in refused:
            self._count(records[at], reject, is_first=self.checked + at == 0)
        self.checked += len(records)
        if not refused:
            return list(records)
        bad = {at for at, _ in refused}
        return [one for at, one in enumerate(records) if at not in bad]

    def _count(self, numbered: NumberedRecord, reject: Reject, is_first: bool) -> None:
        self.refused += 1
        if is_first:
            self._first = numbered.record.value.decode("utf-8", "surrogateescape")
        label = _label(numbered.record.value, reject)
        if label not in self._reasons and len(self._reasons) >= MAX_REASONS:
            label = "for other reasons"
        reason = self._reasons.setdefault(label, _Reason(0, numbered.line, reject.message))
        reason.count += 1

    def report(self) -> Iterator[str]:
        """Yield sentences: one for each reason, the most frequent first, then those on the format of the file.

        These name a known format of another system, or else fields that are probably misspelt.
        """
        for label, reason in sorted(self._reasons.items(), key=lambda one: -one[1].count):
            yield f"{reason.count:,} {label}, first line {reason.line}: {reason.message}"
        if (found := event_format(self._first) or table_format(self._first)) is not None:
            yield f"this looks like {found.name}. {found.advice}"
        else:
            yield from self._misspelt.report()


def _label(value: bytes, reject: Reject) -> str:
    """Code and field of a refusal, such as "missing data.items"; of an unknown type, its name."""
    if reject.code != "unknown_type":
        return reject.code if reject.field == "value" else f"{reject.code} {reject.field}"
    try:
        return f"unknown_type {shown(cloudevents.unpack(value).document['type'])}"
    except (EventError, LookupError, TypeError):
        return reject.code
