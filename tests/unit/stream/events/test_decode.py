"""The event codec: what it accepts, how it explains rejections, and that it raises nothing else."""

import json
import random
from typing import Any

import pytest

from stream.events.decode import (
    BUY,
    CLICK,
    KINDS,
    REJECT_CODES,
    SEARCH,
    decode,
    decode_run,
    encode,
    shopper_key,
    words,
)
from stream.events.errors import EventError
from stream.events.ignored_types import GA4_TYPES, IgnoredTypes
from stream.ids import key32, key64
from tests.harness.events import NOW, record


def run(*records: tuple[bytes | None, bytes | None], topic: str = "clicks", at: float = NOW) -> Any:
    return decode_run([value for _, value in records], [key for key, _ in records], [at] * len(records), topic)


def rejection(value: bytes | None, key: bytes | None = b"u1", topic: str = "clicks") -> EventError:
    with pytest.raises(EventError) as error:
        decode(value, key, topic)
    return error.value


def changed(**changes: Any) -> bytes:
    event = json.loads(record(item="a")[1])
    for path, value in changes.items():
        target = event
        *parents, last = path.split("__")
        for parent in parents:
            target = target[parent]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return json.dumps(event).encode()


def test_a_click_becomes_one_row() -> None:
    decoded = run(record(item="SKU1", locale="zh-CN", channel="app", consent={"personalization": True}, time=NOW - 3))
    row = decoded.rows[0]
    assert (row["kind"], row["item"], row["time"], row["locale"], row["channel"]) == (
        CLICK,
        key64("SKU1"),
        NOW - 3,
        2,
        2,
    )
    assert (row["shopper"], row["id"], row["consent"]) == (key64("u1"), key64("/test\0e1"), 1)
    assert (decoded.keys, decoded.ids, decoded.rejects) == ([b"u1"], ["e1"], [])


def test_purchases_have_a_row_per_item_and_searches_one_per_word() -> None:
    items = [{"item_id": "a", "price": 9.5, "quantity": 2, "item_category": "c"}, {"item_id": "b"}]
    rows = run(record("purchase", items=items, transaction_id="t"), topic="purchases").rows
    assert rows["part"].tolist() == [0, 1]
    assert rows["item"].tolist() == [key64("a"), key64("b")]
    assert (rows["price"][0], rows["quantity"][0], rows["category"][0], rows["kind"][0]) == (9.5, 2, key32("c"), BUY)
    rows = run(record("search", search_term="Red  LAMP, 台灯架")).rows
    assert rows["word"].tolist() == [key32(word) for word in ("red", "lamp", "台灯", "灯架")]
    assert set(rows["kind"]) == {SEARCH}


def test_a_search_without_words_is_one_event() -> None:
    assert len(run(record("search", search_term="!!")).rows) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Brass desk-lamp", ["brass", "desk", "lamp"]),
        ("灯", ["灯"]),
        ("LED台灯", ["led", "台灯"]),
        ("a b c d e f g h i j", list("abcdefgh")),
        ("", []),
    ],
)
def test_english_and_chinese_texts_split_into_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("value", "code", "field", "shown"),
    [
        (None, "empty", "value", "no value"),
        (b"", "not_json", "value", "truncated"),
        (b"{not json", "not_json", "value", "{not json"),
        (b"\xff\xfe{}", "not_json", "value", "malformed"),
        (b"[]", "invalid", "value", "[]"),
        (b"[" * 100_000, "not_json", "value", "nested"),
        (b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "not_json", "value", "nested"),
        (b'"' + b"x" * 300_000 + b'"', "too_large", "value", "300002 bytes"),
        (changed(id=...), "missing", "id", "id is missing"),
        (changed(id=True), "invalid", "id", "True"),
        (changed(id=""), "missing", "id", "id is missing"),
        (changed(id=None), "missing", "id", "id is missing"),
        (changed(time="2026-01-01T10:00:00"), "invalid", "time", "2026-01-01T10:00:00"),
        (changed(time="yesterday"), "invalid", "time", "yesterday"),
        (changed(time=12345), "invalid", "time", "12345: expected an RFC 3339 time"),
        (changed(time="3000-01-01T00:00:00Z"), "out_of_range", "time", "3000"),
        (changed(time="1999-12-31T00:00:00Z"), "out_of_range", "time", "1999"),
        (changed(time="0001-01-01T00:00:00+23:00"), "out_of_range", "time", "0001"),
        (changed(type="teleport"), "unknown_type", "type", "teleport"),
        (changed(type="purchase"), "wrong_topic", "type", "purchases"),
        (changed(data__user_id=...), "missing", "data.user_id", "anonymous_id"),
        (changed(data__user_id="u2"), "bad_key", "key", "u2"),
        (changed(data__items=[]), "missing", "data.items", "item_id"),
        (changed(data__items=[{}]), "missing", "data.items[0].item_id", "item_id"),
        (changed(data__items=[{"item_id": "x"}] * 101), "invalid", "data.items", "100"),
        (changed(data__items=[{"item_id": "x", "price": -1}]), "invalid", "data.items[0].price", "-1"),
        (
            changed(data__items=[{"item_id": 1}, {"item_id": 2, "price": "dear"}]),
            "invalid",
            "data.items[1].price",
            "dear",
        ),
        (changed(data__items=[{"item_id": "x", "price": "-1"}]), "invalid", "data.items[0].price", "-1"),
        (changed(data__items=[{"item_id": "x", "quantity": 1.5}]), "invalid", "data.items[0].quantity", "1.5"),
        (changed(data__items=[{"item_id": ""}]), "missing", "data.items[0].item_id", "item_id"),
        (changed(data__items=[{"item_id": "x", "price": float("nan")}]), "not_json", "value", ""),
        (changed(type="search"), "missing", "data.search_term", "search_term"),
        (changed(data__locale=["en"]), "invalid", "data.locale", "en"),
    ],
)
def test_a_rejection_names_the_field_and_the_value(value: bytes | None, code: str, field: str, shown: str) -> None:
    if code == "out_of_range":
        (reject,) = run((b"u1", value)).rejects
        assert (reject.code, reject.field) == (code, field)
        assert shown in reject.message
        return
    error = rejection(value)
    assert (error.code, error.field) == (code, field)
    assert shown in error.message
    assert len(error.message) < 300


def test_purchases_need_a_transaction_and_consent_a_decision() -> None:
    assert rejection(record("purchase", item="a")[1], topic="purchases").field == "data.transaction_id"
    assert rejection(record("consent")[1], topic="privacy").field == "data.consent"
    assert rejection(record(item="a")[1], key=None).code == "bad_key"


def test_unknown_fields_are_ignored_and_anonymous_ids_identify_shoppers() -> None:
    _key, value = record(item="a", user="x", anonymous_id="a9", colour="red", user_id=None)
    event = decode(value, b"a9", "clicks")
    assert shopper_key(event) == "a9"
    assert decode(encode(event), b"a9", "clicks") == event


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 7},
        {"source": None},
        {"time": NOW},
        {"time": int(NOW * 1000)},
        {"time": int(NOW * 1_000_000)},
        {"time": str(int(NOW * 1000))},
        {"data__user_id": "", "data__anonymous_id": "u1"},
        {"data__items": [{"item_id": "a", "price": "16.0"}]},
        {"data__items": [{"item_id": "a", "price": ""}]},
        {"data__items": [{"item_id": "a", "quantity": None}]},
        {"data__items": [{"item_id": "a", "quantity": "2"}]},
        {"data__items": [{"item_id": 5}]},
        {"data__attribution": {"page_id": "p", "position": "3"}},
        {"data__session_id": 99},
    ],
)
def test_forms_that_many_producers_write_are_accepted_and_counted(changes: dict[str, Any]) -> None:
    decoded = run((b"u1", changed(**changes)), record(item="a", id="strict"))
    assert (decoded.rejects, decoded.lenient, len(decoded.rows)) == ([], 1, 2)
    assert decoded.rows["time"].tolist() == [NOW, NOW]


def test_lenient_values_equal_the_strict_ones() -> None:
    items = [{"item_id": 5, "price": "16.50", "quantity": "2", "item_category": 7}]
    lenient = run((b"42", changed(data__user_id=42, data__items=items))).rows[0]
    items = [{"item_id": "5", "price": 16.5, "quantity": 2, "item_category": "7"}]
    assert lenient == run((b"42", changed(data__user_id="42", data__items=items))).rows[0]


def test_a_whole_number_written_as_a_float_is_not_lenient() -> None:
    decoded = run((b"u1", changed(data__items=[{"item_id": "a", "quantity": 3.0}])))
    assert (decoded.rows["quantity"].tolist(), decoded.lenient) == ([3], 0)


def test_a_refused_record_does_not_count_as_lenient() -> None:
    decoded = run((b"u2", changed(id=7)), (b"u1", changed(id=7, type="purchase")))
    assert (len(decoded.rejects), decoded.lenient) == (2, 0)


def test_an_event_without_a_time_has_that_of_its_record() -> None:
    decoded = run((b"u1", changed(time=...)), (b"u1", changed(time=None)), at=NOW - 7)
    assert (decoded.rows["time"].tolist(), decoded.lenient) == ([NOW - 7, NOW - 7], 0)


@pytest.mark.parametrize("written", [NOW / 1000, NOW * 1000])
def test_a_record_timestamp_in_seconds_or_microseconds_is_understood(written: float) -> None:
    """The decoder gets timestamps in s, computed from what should be ms."""
    decoded = run(record(item="a", time=NOW + 4000), (b"u1", changed(time=...)), at=written)
    times = decoded.rows["time"].tolist()
    assert times == [NOW + 300 if written < NOW else NOW + 4000, NOW]
    assert (decoded.rejects, decoded.lenient) == ([], 2 if written < NOW else 1)


@pytest.mark.parametrize("written", [0.0, -0.001, 12_345.0])
def test_an_unusable_record_timestamp_is_named_instead_of_the_time(written: float) -> None:
    (reject,) = run(record(item="a"), at=written).rejects
    assert (reject.code, reject.field) == ("out_of_range", "timestamp")
    assert f"{written * 1000:.0f} ms" in reject.message and "2026-01-01T00:00:00+00:00" in reject.message
    (reject,) = run((b"u1", changed(time=...)), at=written).rejects
    assert (reject.code, reject.field) == ("missing", "time") and "timestamp is" in reject.message


def test_ignored_types_are_counted_and_other_unknown_types_refused() -> None:
    records = [
        (b"u1", changed(type="page_view", data={})),
        (None, changed(type="scroll", data=7, time="never")),
        (b"u1", changed(type="page_view", id=8)),
        (b"u1", changed(type="app_opened")),
        (b"u1", changed(type="teleport")),
        (b"u1", changed(type="purchase")),
        record(item="a"),
    ]
    decoded = decode_run(
        [value for _, value in records], [key for key, _ in records], [NOW] * len(records), "clicks",
        ignored_types=IgnoredTypes(("ga4", "app_*", "purchase", "select_item")),
    )  # fmt: skip
    assert decoded.ignored == {"page_view": 2, "scroll": 1, "app_*": 1}
    assert [(reject.record, reject.code) for reject in decoded.rejects] == [(4, "unknown_type"), (5, "wrong_topic")]
    assert "SHOPWINDOW_IGNORED_TYPES" in decoded.rejects[0].message
    assert (decoded.rows["record"].tolist(), decoded.lenient) == ([6], 0), "a known type cannot be ignored"


def test_no_type_of_ga4_that_has_a_meaning_is_ignored() -> None:
    assert not GA4_TYPES & set(KINDS)
    assert IgnoredTypes(("ga4",)).match("session_start") and IgnoredTypes(("",)).match("session_start") is None


def test_times_from_the_future_are_clamped_and_counted() -> None:
    decoded = run(record(item="a", time=NOW + 4000), record(item="a", time=NOW + 200))
    assert decoded.rows["time"].tolist() == [NOW + 300, NOW + 200]
    assert decoded.clamped == 1


def test_a_bad_record_does_not_affect_the_others() -> None:
    decoded = run(record(item="a"), (b"u1", b"{"), record(item="b"), (None, None), record(item="c"))
    assert decoded.rows["record"].tolist() == [0, 2, 4]
    assert [(reject.record, reject.code) for reject in decoded.rejects] == [(1, "not_json"), (3, "empty")]


@pytest.mark.slow
def test_100_000_hostile_records_are_decoded_or_rejected() -> None:
    rng = random.Random(20)
    seeds = [
        record("purchase", items=[{"item_id": "a", "price": 9.5}, {"item_id": "b"}], transaction_id="t")[1],
        record("search", search_term="red 台灯")[1],
        record(item="a", locale="en", consent={"personalization": True}, attribution={"page_id": "p", "position": 3})[
            1
        ],
    ]
    splices = [
        b"null", b"1e999", b"-1", b"\xff", b"\\ud800", b'"', b"{", b"[" * 2000, b"]", b"\x00", b"1" * 400, b"true",
        b"9" * 20, b'"2026-13-45T99:99:99Z"', b'"0001-01-01T00:00:00+23:59"', b'"9999-12-31T23:59:59-23:59"', b"NaN",
        b"\xed\xa0\x80",
    ]  # fmt: skip
    accepted = 0
    for start in range(0, 100_000, 500):
        values: list[bytes | None] = []
        for _ in range(500):
            value = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(value) + 1)
                match rng.randrange(4):
                    case 0:
                        value[at : at + 1] = bytes([rng.randrange(256)])
                    case 1:
                        del value[at : at + rng.randint(1, 30)]
                    case 2:
                        value[at : at + rng.randint(0, 8)] = rng.choice(splices)
                    case _:
                        value[at:at] = value[rng.randrange(len(value)) :][:40]
            values.append(bytes(value))
        decoded = decode_run(values, [b"u1"] * 500, [NOW] * 500, rng.choice(("clicks", "purchases", "privacy")))
        heads = decoded.rows[decoded.rows["part"] == 0]
        assert len(heads) + len(decoded.rejects) == 500, f"records {start} to {start + 500}: each is a row or a reject"
        assert {reject.code for reject in decoded.rejects} <= set(REJECT_CODES)
        accepted += len(heads)
    assert 1_000 < accepted < 99_000, "the mutations are neither harmless nor hopeless"
