"""Mutated events: valid ones, with changes to their structure or to their bytes."""

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.harness.events import NOW, record

KINDS = {
    "clicks": ("view_item", "select_item", "view_homepage", "search", "add_to_cart", "remove_from_cart", "hide_item"),
    "purchases": ("purchase", "refund"),
    "privacy": ("consent", "identify"),
}
TIMES = (
    "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z",
    "2038-01-19T03:14:08Z", "2000-01-01T00:00:00Z", "1999-12-31T23:59:59.999Z", "2026-01-01T23:59:60Z",
    "2026-01-01T00:00:00", "2026-01-01T00:00:00+23:59", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
    "2026-13-01T00:00:00Z", "2026-01-01T24:00:00Z", "2026-01-01", "now", "", "2026-01-01T00:00:00.123456789123Z",
)  # fmt: skip
# Replacements for a value, written as they are; many are not JSON.
RAW = (
    "null", "true", "false", "0", "-0", "-1", "1e308", "1e309", "1e999", "-1e999", "5e-324", "1e-999",
    "1.7976931348623157e308",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616",
    "2147483648", "30000", "30001", "1" * 400, "0." + "3" * 400, "NaN", "Infinity", "-Infinity", "01",
    "1.", ".5", "+1", "0x10",
    '""', '" "', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\uFFFF"', '"\u202e"',
    '"\\u"', '"\\x41"',
    '"' + "a" * 257 + '"', '"' + "\\n" * 200 + '"', "[]", "{}", "[null]", "[[]]", "[{}]", '{"item_id":"i1"}', '{"":""}',
    "undefined",
    '"1"', '"NaN"', "'single'", '"2026-01-01T00:00:00Z"', '["i1"]', '[{"item_id":"i1"},null]',
    '{"personalization":"yes"}',
)  # fmt: skip
MAX_DEPTH = 10_000


class Mutant(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None


class Raw(str):
    """Text that is written as it is, in place of JSON."""


def mutants(chance: random.Random, n: int, shoppers: int = 20, huge: int = 200_000) -> Iterator[Mutant]:
    """n mutants. huge: characters of the longest strings; about one mutant in a thousand has one."""
    for number in range(n):
        topic = chance.choice(("clicks", "clicks", "clicks", "purchases", "privacy"))
        kind = chance.choice(KINDS[topic])
        data: dict[str, Any] = {"locale": chance.choice(("en", "zh-CN", "fr")), "channel": "web", "session_id": "s"}
        if topic == "purchases":
            data |= {"transaction_id": f"t{number}", "value": 9.9, "currency": "EUR"}
        if kind == "search":
            data["search_term"] = "tweed 外套"
        elif kind == "consent":
            data["consent"] = {"personalization": chance.random() < 0.9}
        elif kind not in ("view_homepage", "identify"):
            data["items"] = [
                {"item_id": f"i{chance.randrange(60)}", "price": 9.5, "quantity": 2, "item_brand": "b1",
                 "item_category": "c1"}
                for _ in range(chance.choice((1, 1, 1, 3)))
            ]  # fmt: skip
        data["attribution"] = {"page_id": "p", "slot": "for_you", "position": 3}
        key, value = record(kind, f"secretly-{chance.randrange(shoppers)}", f"m{number}", NOW + number, **data)
        yield Mutant(topic, *mutate(chance, key, json.loads(value), huge))


def mutate(chance: random.Random, key: bytes | None, event: Any, huge: int) -> tuple[bytes | None, bytes | None]:
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        _change(chance, event, huge)
    value: bytes | None = written(event).encode("utf-8", "surrogatepass")
    assert value is not None
    match chance.randrange(40):
        case 0:
            value = value[: chance.randrange(len(value))]
        case 1:
            at = chance.randrange(len(value))
            value = value[:at] + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 6))) + value[at + 1 :]
        case 2:
            at = chance.randrange(len(value))
            value = (
                value[:at]
                + chance.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x00"))
                + value[at:]
            )
        case 3:
            value = chance.choice(
                (b"\xef\xbb\xbf" + value, value + value, value + b" x", b" \n\t" + value + b"\n", b"[" + value + b"]")
            )
        case 4:
            value = chance.choice(
                (None, b"", b"null", b"[]", b"{}", b'""', b"0", b"{" * 50, value.decode("latin-1").encode("utf-16"))
            )
        case 5:
            key = chance.choice((None, b"", b"somebody-else", b"\xff\xfe", (key or b"") + b" ", b"\x00", b"k" * 300))
    return key, value  # fmt: skip


def _change(chance: random.Random, event: Any, huge: int) -> None:
    """Change one random place of the event."""
    holder, at = chance.choice(list(_places(event)))
    match chance.randrange(9):
        case 0:
            del holder[at]
        case 1:
            holder[at] = Raw(chance.choice(RAW))
        case 2:
            holder[at] = Raw(chance.choice(RAW))
        case 3:
            event["time"] = chance.choice(TIMES)
        case 4 if isinstance(holder, dict):
            # A duplicate key: `Raw` writes the name as it is, so the quote in it ends the first key.
            again = f'{at}":{chance.choice(RAW)},"{at}' if chance.random() < 0.5 else f"{at}x"
            holder[Raw(again)] = holder.pop(at)
        case 5:
            many = chance.choice((101, 1_000, 30_000)) if chance.random() < 0.05 else 3
            text = written(holder[at])
            holder[at] = Raw("[" + ",".join([text] * min(many, 1 + huge // len(text))) + "]")
        case 6 if chance.random() < 0.05:
            opening, closing = chance.choice((("[", "]"), ('{"a":', "}")))
            depth = chance.choice((100, 1_000, MAX_DEPTH))
            holder[at] = Raw(opening * depth + "1" + closing * (depth if chance.random() < 0.7 else 0))
        case 7 if chance.random() < 0.05:
            holder[at] = chance.choice(("x", "外", "\u0000", "\\", "a b ")) * chance.choice((256, 1025, 20_000, huge))
        case _:
            holder[at] = chance.choice(
                ("", " ", "i1", -1, 0, 1.5, True, None, [], {}, "warp", "view_item", "purchase", 1e9, 1e300)
            )


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, held in list(inside):
        yield value, at
        yield from _places(held)


def written(value: Any) -> str:
    """The value as JSON, except that `Raw` is written as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f'"{at}":{written(held)}' for at, held in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)
