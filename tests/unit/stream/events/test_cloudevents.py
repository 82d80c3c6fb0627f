"""CloudEvents over Kafka in both modes, as SDKs and frameworks write them."""

import base64
import json
from typing import Any

import pytest

from stream.events.decode import Decoded, decode_run
from stream.ids import key64
from tests.harness.events import NOW, record

DATA = {"user_id": "u1", "items": [{"item_id": "a"}]}
TIME = b"2026-01-01T00:00:00Z"
ATTRIBUTES = {"id": b"e1", "source": b"/shop", "type": b"view_item", "specversion": b"1.0", "time": TIME}
Headers = list[tuple[str, bytes | None]]


def binary(prefix: str = "ce_", **changes: bytes | None) -> Headers:
    """Headers of binary mode; an attribute that is None is left out."""
    return [(prefix + name, value) for name, value in {**ATTRIBUTES, **changes}.items() if value is not None]


def decoded(value: Any, headers: Headers, topic: str = "clicks") -> Decoded:
    encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode_run([encoded], [b"u1"], [NOW + 5], topic, headers=lambda _: headers)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([*binary(), ("content-type", b"application/json; charset=UTF-8")], id="the specification's"),
        pytest.param([*binary(), ("ce_datacontenttype", b"application/json")], id="Spring's"),
        pytest.param(binary(), id="Knative's, without a content-type"),
        pytest.param(binary("ce-"), id="with the prefix of HTTP"),
        pytest.param([*binary(), ("ce_traceparent", b"\xff"), ("other", None)], id="with extensions"),
    ],
)
def test_binary_mode_is_read_from_the_headers(headers: Headers) -> None:
    result = decoded(DATA, headers)
    assert (result.rejects, result.lenient, result.ids) == ([], 0, ["e1"])
    assert result.rows[0]["id"] == key64("/shop\0e1") and result.rows[0]["time"] == NOW


def test_an_event_in_binary_mode_without_a_time_has_that_of_its_record() -> None:
    assert decoded(DATA, binary(time=None)).rows["time"].tolist() == [NOW + 5]


def test_binary_mode_takes_lenient_forms_too() -> None:
    result = decoded({"user_id": "u1", "items": [{"item_id": 5, "price": "1.5"}]}, binary(time=b"1767225600000"))
    assert (result.rejects, result.lenient, result.rows["time"].tolist()) == ([], 1, [NOW])


@pytest.mark.parametrize(
    ("value", "headers", "code", "field", "shown"),
    [
        (DATA, binary(id=None), "missing", "ce_id", "ce_id is missing"),
        (DATA, binary(time=b"noon"), "invalid", "ce_time", "noon"),
        (DATA, binary(source=b"\xff"), "invalid", "ce_source", "UTF-8"),
        (DATA, binary(type=b"teleport"), "unknown_type", "type", "teleport"),
        ({"user_id": "u1"}, binary(), "missing", "data.items", "item_id"),
        ({"user_id": "u1", "items": [{}]}, binary(), "missing", "data.items[0].item_id", "missing"),
        (b"\x00\x01", [*binary(), ("content-type", b"application/avro")], "not_json", "value", "application/avro"),
        (b"Obj\x01", [("content-type", b"avro/binary")], "not_json", "value", "avro/binary"),
        (DATA, [("content-type", b"application/cloudevents+json"), *binary()], "missing", "id", "id is missing"),
    ],
)
def test_a_refused_event_names_its_header_or_field(
    value: Any, headers: Headers, code: str, field: str, shown: str
) -> None:
    (reject,) = decoded(value, headers).rejects
    assert (reject.code, reject.field) == (code, field)
    assert shown in reject.message


def test_structured_mode_wins_over_headers() -> None:
    result = decoded(record(item="a", id="inside")[1], [*binary(), ("content-type", b"application/cloudevents+json")])
    assert result.ids == ["inside"]
    document = json.loads(record(item="a", id="inside")[1])
    document["data"]["items"][0]["price"] = "2"  # so that the strict decoder refuses it
    assert decoded(document, binary()).ids == ["inside"]


def test_data_in_base64_is_read() -> None:
    document = json.loads(record(item="a")[1])
    document["data_base64"] = base64.b64encode(json.dumps(document.pop("data")).encode()).decode()
    result = decoded(document, [("content-type", b"application/cloudevents+json; charset=UTF-8")])
    assert (result.rejects, result.lenient, len(result.rows)) == ([], 0, 1)


@pytest.mark.parametrize(
    ("encoded", "code"), [("?", "invalid"), (7, "invalid"), ("e30", "invalid"), ("YQ==", "not_json")]
)
def test_bad_base64_is_named(encoded: Any, code: str) -> None:
    document = json.loads(record(item="a")[1])
    del document["data"]
    (reject,) = decoded({**document, "data_base64": encoded}, []).rejects
    assert (reject.code, reject.field) == (code, "data_base64")


def test_headers_are_not_read_for_events_that_need_none() -> None:
    def headers(_: int) -> Any:
        raise AssertionError("the headers were read")

    key, value = record(item="a")
    assert len(decode_run([value] * 3, [key] * 3, [NOW] * 3, "clicks", headers=headers).rows) == 3
