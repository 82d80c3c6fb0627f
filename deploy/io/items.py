"""Read files of items: what is good, what is bad, and which fields are not of schema item/1."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

import msgspec

from deploy.io.files import InputError, Outgoing, open_text
from deploy.io.formats import FIELD_OF, ITEM_FIELDS, feed_format, normalized
from stream.items.catalog import ItemError, decode_item

HEAD_CHARS = 1 << 16  # of a file, by which its format is recognized
_Fields = dict[str, msgspec.Raw]


class ItemFile(NamedTuple):
    """The items of a file."""

    records: list[Outgoing]  # of the good items, one for each id: the last
    problems: list[str]  # of each bad item: its line, or its number in the array, the field and the value
    unknown_fields: list[str]  # sentences about fields that are not read, with the nearest that is
    duplicates: list[str]  # where the id of an earlier item comes again, such as "'a' on line 4"


def read_items(path: str) -> ItemFile:
    """Read the items of a file, JSON lines or one array.

    Raises InputError if the file cannot be read, or if it is a feed in another format, which the message names.
    """
    with open_text(path) as file:
        text = file.read()
    is_array = text.lstrip().startswith("[")
    place = "item" if is_array else "line"
    values = _array_items(path, text) if is_array else _line_items(text)
    records: dict[str, Outgoing] = {}
    problems: list[str] = []
    duplicates: list[str] = []
    unknown: Counter[str] = Counter()
    for number, value in values:
        try:
            item_id = decode_item(None, value).item_id
            if item_id in records:
                duplicates.append(f"{item_id!r} on {place} {number}")
            records[item_id] = Outgoing("catalog", item_id.encode(), value)
        except ItemError as error:
            if not records and not problems:
                _raise_if_foreign(path, text, value)
            problems.append(f"{place} {number}: {error.message}")
        unknown.update(_field_names(value) - ITEM_FIELDS)
    if not records and not problems:
        raise InputError(f"{path} has no items; expected JSON lines, or one JSON array, of schema item/1")
    return ItemFile([*records.values()], problems, [*_about_unknown_fields(unknown)], duplicates)


def _raise_if_foreign(path: str, text: str, first: bytes) -> None:
    """Raise InputError if a file, whose first item is bad, has a known format. text: all of it."""
    document = _document(first)
    if document is None and text.lstrip().startswith("{"):
        document = _document(text.encode("utf-8", "surrogateescape"))
        if isinstance(document, dict) and "item_id" in document:
            raise InputError(f"{path} is JSON on several lines; write one item a line: jq -c . {path} > items.jsonl")
    if isinstance(document, dict) and "item_id" in document:
        return  # an item of ours with a mistake
    if (found := feed_format(text[:HEAD_CHARS], document)) is not None:
        raise InputError(
            f"{path} looks like {found.name}; items are read from JSON lines, or one JSON array, of schema item/1 "
            f"(`shopwindow schemas` prints it). {found.advice}"
        )


def _document(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _field_names(value: bytes) -> frozenset[str]:
    """Names of the fields of a JSON object; none if it is no object."""
    try:
        return frozenset(msgspec.json.decode(value, type=_Fields))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return frozenset()


def _about_unknown_fields(unknown: Counter[str]) -> Iterator[str]:
    """Yield a sentence for each field that may be meant as one of ours, and one for all others."""
    others = []
    for name, count in sorted(unknown.items(), key=lambda one: (-one[1], one[0])):
        meant = nearest_field(name)
        if meant is None:
            others.append(repr(name))
            continue
        hint = f"'{meant}', true or false" if meant == "available" else f"'{meant}'"
        yield f"{name!r} in {_counted(count, 'item')} is not a field of item/1 and is not read; did you mean {hint}?"
    if others:
        names = ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
        yield f"not fields of item/1, and not read: {names}"


def nearest_field(name: str) -> str | None:
    """The field of item/1 that an unknown field probably means, by the names of other formats or by its spelling."""
    spelling = normalized(name)
    if spelling in FIELD_OF:
        return FIELD_OF[spelling]
    by_spelling = {normalized(field): field for field in ITEM_FIELDS}
    close = get_close_matches(spelling, by_spelling, 1, 0.75)
    return by_spelling[close[0]] if close else None


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def read_ids(path: str) -> list[str]:
    """Read item ids, one a line; blank lines are left out. Raises InputError if the file cannot be read."""
    with open_text(path) as lines:
        return [line.strip() for line in lines if line.strip()]


def _array_items(path: str, text: str) -> Iterator[tuple[int, bytes]]:
    try:
        items: Iterable[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a valid JSON array ({error})") from None
    for number, item in enumerate(items, 1):
        # Anything that JSON can hold is encoded again, so that `decode_item` reports what is wrong with it.
        yield number, json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _line_items(text: str) -> Iterator[tuple[int, bytes]]:
    # Not `splitlines`: a JSON string may contain other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.encode("utf-8", "surrogateescape")
