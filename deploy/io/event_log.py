"""Read logs of events: clickstreams, and JSON lines of events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import chain, islice
from typing import NamedTuple

import msgspec

from deploy.io.files import InputError, Outgoing, event_records, open_text
from deploy.io.formats import event_format
from models.data.clickstream import Click, ClickstreamError, parse_clicks
from stream.events.cloudevents import unpack
from stream.events.errors import EventError
from stream.events.lenient import id_text, read_time
from stream.times import EARLIEST_S, LATEST_S


class ReplayLog(NamedTuple):
    """Events in the order in which they are sent, with their times, and the items that they name."""

    records: list[Outgoing]
    lines: list[int]  # of the file, one for each record
    times: list[float]  # seconds since the epoch, one for each record
    items: list[str]


def read_log(path: str, limit: int) -> ReplayLog:
    """Read a clickstream or JSON lines of events; limit: number of events, 0 for all. Raises InputError."""
    with open_text(path) as lines:
        first = lines.readline()
        if not first.strip():
            raise InputError(
                f"{path} is empty; expected a clickstream (SessionId, ItemId, Time) or JSON lines of events"
            )
        if first.lstrip().startswith("{"):
            return _log_of_events(chain([first], lines), limit)
        if (found := event_format(first)) is not None:
            raise InputError(f"{path} looks like {found.name}. {found.advice}")
        try:
            clicks = parse_clicks(chain([first], lines), path)
        except ClickstreamError as error:
            raise InputError(f"{error}; JSON lines of events are accepted too") from None
    for click in clicks:
        if not EARLIEST_S <= click.time <= LATEST_S:
            raise InputError(
                f"{path} line {click.line}: Time is {click.written_time!r}, which is outside the times of events, "
                f"{_rfc3339(EARLIEST_S)} to {_rfc3339(LATEST_S)}; workers would refuse it"
            )
    clicks = clicks[: limit or None]
    records = []
    for click in clicks:
        try:
            records.append(click_record(click))
        except UnicodeEncodeError:
            raise InputError(
                f"{path} line {click.line} is not UTF-8: SessionId {click.session[:40]!r}, ItemId {click.item[:40]!r}. "
                f"Convert the file, for instance from Latin-1: iconv -f LATIN1 -t UTF-8 {path}"
            ) from None
    return ReplayLog(records, [c.line for c in clicks], [c.time for c in clicks], [c.item for c in clicks])


def _log_of_events(lines: Iterable[str], limit: int) -> ReplayLog:
    """The first events of JSON lines; limit: their number, 0 for all."""
    numbered = ((number, record) for number, line in enumerate(lines, 1) for record in event_records([line]))
    found = list(islice(numbered, limit or None))
    records = [record for _, record in found]
    items = [item for record in records for item in _items_of(record.value)]
    return ReplayLog(records, [number for number, _ in found], _times(records), items)


def click_record(click: Click) -> Outgoing:
    """Return a click as an event: a view of the item, with the session as shopper.

    The id comes from the content alone, so that a file that is sent twice counts once. Raises UnicodeEncodeError if
    the click was not UTF-8.
    """
    content = f"{click.session}\0{click.number}\0{click.item}\0{click.written_time}"
    event = {
        "specversion": "1.0", "id": blake2b(content.encode(), digest_size=10).hexdigest(), "source": "/replay",
        "type": "view_item", "time": _rfc3339(click.time),
        "data": {"user_id": click.session, "session_id": click.session, "items": [{"item_id": click.item}]},
    }  # fmt: skip
    return Outgoing("clicks", click.session.encode(), msgspec.json.encode(event))


def invented_item(item: str) -> bytes:
    """Return an item of schema item/1 of which only the id is known."""
    return msgspec.json.encode({"item_id": item, "title": item, "category": "replayed"})


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")


def _times(records: Sequence[Outgoing]) -> list[float]:
    """Return the event times. A record without a time has that of the record before it.

    Records at the start without a time have the first time that is found, or 0 if there is none.
    """
    found = [_time_of(record.value) for record in records]
    last = next((seconds for seconds in found if seconds is not None), 0.0)
    times = []
    for seconds in found:
        last = last if seconds is None else seconds
        times.append(last)
    return times


def _time_of(value: bytes) -> float | None:
    """Return the time of an event in seconds since the epoch, or None if the record has none that can be read."""
    try:
        written = json.loads(value)["time"]
        if (moment := read_time(written)) is not None:
            return moment.timestamp()
        time = datetime.fromisoformat(written.replace("Z", "+00:00"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _items_of(value: bytes) -> list[str]:
    """Return the ids of the items that an event names; none if the record is not an event."""
    try:
        named = unpack(value).document["data"].get("items") or ()
        return [item_id for item in named if (item_id := id_text(item["item_id"]))]
    except (EventError, LookupError, TypeError, AttributeError):
        return []
