"""Find fields of events that are probably meant as a field of schema event/1 and are not read.

Events carry many fields that Shopwindow does not need, such as GA4's `item_name`. So a field is reported only if its
name is close to one of the schema's that the same object lacks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import inspect

from deploy.io.formats import normalized
from stream.events import cloudevents
from stream.events.decode import Event
from stream.events.errors import EventError
from stream.events.lenient import without_null

MAX_EVENTS = 1_000  # of a file: producers misspell a field in every event
CLOSE = 0.85  # ratio of difflib: "chanel" and "channel" have 0.92, "item_name" and "item_id" 0.67
_EVENT = inspect.type_info(Event)
# Names that GA4 gives to other things.
_OTHER_MEANING = frozenset(("item_category2", "item_category3", "item_category4", "item_category5"))


class MisspeltFields:
    """Counts of fields by path, such as "data.chanel", with the path that is probably meant."""

    def __init__(self) -> None:
        self.events = 0
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, value: bytes) -> None:
        """Look at one event, unless MAX_EVENTS have been seen or it is not JSON."""
        if self.events >= MAX_EVENTS:
            return
        try:
            document = cloudevents.unpack(value).document
        except EventError:
            return
        self.events += 1
        self._counts.update(set(_find(document, _EVENT, "")))

    def report(self) -> Iterator[str]:
        """Yield a sentence for each field, the most frequent first."""
        for (path, meant), count in sorted(self._counts.items(), key=lambda one: (-one[1], one[0])):
            yield (
                f"{path!r} in {count:,} of {self.events:,} events is not a field of event/1 and is not read; did you "
                f"mean '{meant}'?"
            )


def _find(value: Any, type: inspect.Type, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each misspelt field in a value of the type, with the path that is meant."""
    type = without_null(type)
    if isinstance(type, inspect.ListType) and isinstance(value, list):
        for item in value:
            yield from _find(item, type.item_type, path)
    elif isinstance(type, inspect.StructType) and isinstance(value, dict):
        fields = _fields(type.cls)
        for name, held in value.items():
            if name in fields:
                yield from _find(held, fields[name], f"{path}{name}.")
            elif (meant := _nearest(type.cls, name)) is not None and meant not in value:
                yield path + name, path + meant


@lru_cache(None)
def _fields(struct: type[msgspec.Struct]) -> Mapping[str, inspect.Type]:
    """Types of the fields of a struct, by name."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: field.type for field in info.fields}


@lru_cache(4096)
def _nearest(struct: type[msgspec.Struct], name: str) -> str | None:
    if name in _OTHER_MEANING:
        return None
    by_spelling = {normalized(field): field for field in _fields(struct)}
    close = get_close_matches(normalized(name), by_spelling, 1, CLOSE)
    return by_spelling[close[0]] if close else None
