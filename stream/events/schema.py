"""JSON Schema of events, from the same types and tables as the decoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import inspect

from stream.events.decode import KINDS, REQUIRED_FIELDS, SHOPPER_FIELDS, Event
from stream.events.lenient import EPOCH_PATTERN, MAX_ID, MIN_ID, allows_null, number_pattern, without_null
from stream.times import EARLIEST_S, EPOCH_UNITS, LATEST_S

Schema = dict[str, Any]
# An RFC 3339 time with a zone, of the years 2000 to 2999, on a day that exists.
_DAY = (
    "2[0-9]{3}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
    "|2([0-9](0[48]|[2468][048]|[13579][26])|[048]00)-02-29"
)
TIME_PATTERN = (
    rf"^({_DAY})[Tt ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
    r"([Zz]|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])$(?!\n)"
)


def event_schema(strict: bool = False) -> Schema:
    """Schema of an event as JSON: exactly what workers accept, or if `strict`, without the lenient forms.

    A field has one subschema with a list of types, instead of alternatives, so that generators can merge it with what
    its kind requires. What a schema cannot say: the record's key is the shopper's id, and each type has its topic.
    """
    info = inspect.type_info(Event)
    assert isinstance(info, inspect.StructType)
    event = _schema(info, strict)
    event["properties"]["type"] = {"enum": [kind for kind in KINDS if kind]}
    event["properties"]["data"]["anyOf"] = [_with_required([name], strict) for name in SHOPPER_FIELDS]
    event["anyOf"] = [_kind_schema(fields, strict) for fields in dict.fromkeys(map(_required, range(1, len(KINDS))))]
    return {"title": "Event", **event}


def _required(kind: int) -> tuple[str, ...]:
    return REQUIRED_FIELDS.get(kind, ())


def _kind_schema(fields: tuple[str, ...], strict: bool) -> Schema:
    """What the kinds that need these fields of `data` have in common."""
    names = [KINDS[kind] for kind in range(1, len(KINDS)) if _required(kind) == fields]
    data = _with_required([field.removeprefix("data.") for field in fields], strict)
    return {"properties": {"type": {"enum": names}, "data": data}}


def _with_required(paths: Iterable[str], strict: bool) -> Schema:
    """Schema of an object that has these fields, which are not null and not empty."""
    properties: dict[str, Schema] = {}
    for path in paths:
        name, _, rest = path.partition(".")
        if rest:
            properties[name] = {"type": "object", **_with_required([rest], strict)}
        elif name == "items":
            properties[name] = {"type": "array", "minItems": 1}
        elif name == "personalization":
            properties[name] = {"type": "boolean"}
        else:
            properties[name] = {"type": "string" if strict else ["string", "integer"], "minLength": 1}
    return {"properties": properties, "required": list(properties)} if properties else {}


def _field_schema(field: inspect.Field, strict: bool) -> Schema:
    """Schema of a field: its type, its lenient forms, and what counts as absent if it is optional."""
    schema = _schema(without_null(field.type), strict)
    accepts_null = allows_null(field.type) or (not field.required and not strict)
    if "anyOf" in schema:
        return {"anyOf": [*schema["anyOf"], {"type": "null"}]} if accepts_null else schema
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if accepts_null:
        schema["type"] = [*types, "null"]
    if not field.required and not strict:
        # An empty string is absent where it cannot be a value.
        if schema.get("minLength"):
            schema["minLength"] = 0
        if "pattern" in schema:
            schema["pattern"] += "|^$(?!\n)"
    return schema


def _schema(type: inspect.Type, strict: bool) -> Schema:
    """Schema of a type. The keywords of a list of types each apply to one of them."""
    match type:
        case inspect.StructType(fields=fields):
            properties = {field.encode_name: _field_schema(field, strict) for field in fields}
            required = [field.encode_name for field in fields if field.required]
            return {"type": "object", "properties": properties, "required": required}
        case inspect.ListType(item_type=item_type, max_length=max_length):
            return {"type": "array", "items": _schema(item_type, strict), "maxItems": max_length}
        case inspect.StrType(min_length=min_length, max_length=max_length):
            text = {"type": "string", "minLength": min_length or 0, "maxLength": max_length}
            return text if strict else {**text, "type": ["string", "integer"], "minimum": MIN_ID, "maximum": MAX_ID}
        case inspect.IntType(ge=ge, le=le) | inspect.FloatType(ge=ge, le=le):
            name = "integer" if isinstance(type, inspect.IntType) else "number"
            number = {"type": name, "minimum": ge, "maximum": le}
            return number if strict else {**number, "type": [name, "string"], "pattern": number_pattern(type)}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.DateTimeType():
            written = {"type": "string", "pattern": TIME_PATTERN, "description": "RFC 3339, with a zone"}
            epochs = [
                {"type": "number", "minimum": EARLIEST_S * unit, "maximum": LATEST_S * unit} for unit in EPOCH_UNITS
            ]
            text = {"type": "string", "pattern": EPOCH_PATTERN, "description": "s, ms or us since the epoch"}
            return written if strict else {"anyOf": [written, *epochs, text]}
    raise TypeError(f"no schema for {type}")
