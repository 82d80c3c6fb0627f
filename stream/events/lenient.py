"""Forms of an event that the strict decoder refuses and many producers write.

These are numbers and times in strings, numbers as ids, times as numbers, null or an empty string for what is absent,
and whole numbers written as 1.0. Which form a field may have follows from its type, so that the JSON Schema `event/1`
and the reader agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from msgspec import inspect

from stream.times import from_epoch

# Range of numeric ids: integers of 64 bits, with or without a sign.
MIN_ID, MAX_ID = -(2**63), 2**64 - 1
FRACTION_DIGITS = 20  # at most, of a number in a string
# s, ms or us since the epoch in a string, from 2001 to 2033: the digits alone show the unit.
EPOCH_PATTERN = r"^1[0-9]{9}([0-9]{3}){0,2}(\.[0-9]{1,6})?$(?!\n)"
_EPOCH_TEXT = re.compile(EPOCH_PATTERN)
_ABSENT: Any = object()
# Reads a value of one type: returns it in the strict form, or as it is if no form fits. Notes each lenient form.
Reader = Callable[[Any, list[str]], Any]


def without_null(type: inspect.Type) -> inspect.Type:
    """The type of an optional field, or the type itself."""
    if isinstance(type, inspect.UnionType):
        (type,) = (one for one in type.types if not isinstance(one, inspect.NoneType))
    return type


def allows_null(type: inspect.Type) -> bool:
    return isinstance(type, inspect.UnionType)


def number_pattern(type: inspect.IntType | inspect.FloatType) -> str:
    """Pattern of a number in a string: fewer digits than its maximum, so that every match is within the limits."""
    assert type.le is not None and type.le >= 10, "a number needs a maximum"
    digits, sign = len(str(int(type.le))) - 1, "" if type.ge == 0 else "-?"
    fraction = "0" if isinstance(type, inspect.IntType) else "[0-9]"
    return rf"^{sign}[0-9]{{1,{digits}}}(\.{fraction}{{1,{FRACTION_DIGITS}}})?$(?!\n)"


def id_text(value: Any) -> str:
    """Text of an id that may be a number; "" if it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and _is_whole(value):
        return str(int(value)) if MIN_ID <= value <= MAX_ID else ""
    return ""


def read_time(value: Any) -> datetime | None:
    """Time of a number of s, ms or us since the epoch, which may be in a string; None if it is no such number."""
    if isinstance(value, str) and _EPOCH_TEXT.search(value) is not None:
        value = float(value) if "." in value else int(value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return from_epoch(value) if is_number else None


def reader_of(type: inspect.Type) -> Reader:
    """Reader of the values of a type; its result is for `msgspec.convert`, which checks it."""
    match without_null(type):
        case inspect.StructType(fields=fields):
            return _struct_reader({field.encode_name: field for field in fields})
        case inspect.ListType(item_type=item_type):
            read_item = reader_of(item_type)
            return lambda value, lenient: (
                [read_item(item, lenient) for item in value] if isinstance(value, list) else value
            )
        case inspect.StrType(min_length=min_length):
            return _read_id if min_length else _read_text
        case inspect.IntType() | inspect.FloatType() as number:
            return _number_reader(number)
        case inspect.DateTimeType():
            return _read_time
        case _:
            return lambda value, lenient: value


def _struct_reader(fields: dict[str, inspect.Field]) -> Reader:
    readers = {name: reader_of(field.type) for name, field in fields.items()}
    drops_null = {name for name, field in fields.items() if not allows_null(field.type)}

    def read(value: Any, lenient: list[str]) -> Any:
        if not isinstance(value, dict):
            return value
        out = {}
        for name, held in value.items():
            reader = readers.get(name)
            if reader is None:
                continue
            if held is not None:
                held = reader(held, lenient)
            elif name in drops_null:
                lenient.append(name)
                continue
            if held is not _ABSENT:
                out[name] = held
        return out

    return read


def _read_text(value: Any, lenient: list[str]) -> Any:
    if isinstance(value, str):
        return value
    text = id_text(value)
    if text:
        lenient.append(text)
    return text or value


def _read_id(value: Any, lenient: list[str]) -> Any:
    if value == "":
        lenient.append("")
        return _ABSENT
    return _read_text(value, lenient)


def _number_reader(type: inspect.IntType | inspect.FloatType) -> Reader:
    pattern, is_int = re.compile(number_pattern(type)), isinstance(type, inspect.IntType)

    def read(value: Any, lenient: list[str]) -> Any:
        if isinstance(value, str):
            if value == "":
                lenient.append(value)
                return _ABSENT
            if pattern.search(value) is None:
                return value
            lenient.append(value)
            value = float(value)
        # JSON does not distinguish 1.0 from 1, so this form is not lenient.
        return int(value) if is_int and isinstance(value, float) and _is_whole(value) else value

    return read


def _read_time(value: Any, lenient: list[str]) -> Any:
    time = read_time(value)
    if time is None:
        return value
    lenient.append("time")
    return time


def _is_whole(value: float) -> bool:
    return isinstance(value, int) or value.is_integer()


class LenientDecoder:
    """Converts JSON documents to a struct, also those with lenient forms."""

    def __init__(self, struct: type[msgspec.Struct]) -> None:
        self._struct = struct
        self._read = reader_of(inspect.type_info(struct))

    def convert(self, document: Any, is_refused: bool = False) -> tuple[Any, bool]:
        """The struct of a document, and whether the document had a lenient form.

        is_refused: the document is known to have a form that is not strict. Raises msgspec.ValidationError, whose path
        also fits the document.
        """
        if not is_refused:
            with suppress(msgspec.ValidationError):
                return msgspec.convert(document, self._struct), False
        lenient: list[str] = []
        return msgspec.convert(self._read(document, lenient), self._struct), bool(lenient)
