"""CloudEvents 1.0 over Kafka: an event's envelope in structured mode (the record's value) or binary mode (its headers).

Frameworks differ: some leave out the content-type, Spring writes it as `ce_datacontenttype`, and some bridges keep the
prefix of HTTP, `ce-`. All of these are read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from stream.events.errors import EventError, shown

Headers = Sequence[tuple[str, bytes | None]]  # of a Kafka record
ATTRIBUTES = frozenset(("id", "source", "specversion", "type", "time"))  # those that we read
PREFIXES = ("ce_", "ce-")
STRUCTURED = "application/cloudevents"  # the content-type of structured mode begins with it


class Envelope(NamedTuple):
    """An event as a JSON document, before its fields are checked."""

    document: Any  # an object with the attributes and `data`, if the producer kept to the format
    prefix: str = ""  # of the attributes' headers in binary mode; empty in structured mode


def unpack(value: bytes, headers: Headers = ()) -> Envelope:
    """Envelope of a record. Raises EventError if neither mode can be read."""
    attributes, prefix, content_type = _attributes(headers)
    data_type = attributes.pop("datacontenttype", content_type)
    parsed = _parse(value, "value", data_type or content_type)
    is_envelope = isinstance(parsed, dict) and "specversion" in parsed and "type" in parsed
    if not attributes.keys() & {"id", "type"} or content_type.startswith(STRUCTURED) or is_envelope:
        return Envelope(_with_data(parsed))
    return Envelope({**attributes, "data": parsed}, prefix)


def _attributes(headers: Headers) -> tuple[dict[str, str], str, str]:
    """The attributes among a record's headers, their prefix, and the content-type; "" if there is none."""
    attributes: dict[str, str] = {}
    prefix, content_type = PREFIXES[0], ""
    for name, content in headers:
        if content is None:
            continue
        start, attribute = name[:3].lower(), name[3:].lower()
        is_attribute = start in PREFIXES and (attribute in ATTRIBUTES or attribute == "datacontenttype")
        if not is_attribute and name.lower() != "content-type":
            continue
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise EventError("invalid", name, f"{name} is {shown(content)}, expected UTF-8") from None
        if is_attribute:
            attributes[attribute], prefix = text, start
        else:
            content_type = text.strip().lower()
    return attributes, prefix, content_type


def _with_data(parsed: Any) -> Any:
    """The envelope of structured mode, with `data` instead of `data_base64`."""
    if not isinstance(parsed, dict) or "data_base64" not in parsed or parsed.get("data") is not None:
        return parsed
    encoded = parsed["data_base64"]
    try:
        data = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise EventError("invalid", "data_base64", f"data_base64 is {shown(encoded)}, expected base64") from None
    return {**parsed, "data": _parse(data, "data_base64", str(parsed.get("datacontenttype") or ""))}


def _parse(value: bytes, field: str, content_type: str) -> Any:
    """JSON of `value`. Raises EventError, which names a content-type that does not announce JSON."""
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if content_type and "json" not in content_type.lower():
            problem += f" (the content-type is {shown(content_type)}; events are JSON)"
        raise EventError("not_json", field, f"{problem}: {shown(value)}") from None
