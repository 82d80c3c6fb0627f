"""The schema `event/1` and the decoder accept the same events."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.events.decode import KINDS, REQUIRED_FIELDS, TOPIC_KINDS, decode_run, encode, shopper_of
from stream.events.decode import decode as decode_event
from stream.events.schema import TIME_PATTERN
from stream.page.schemas import schemas
from tests.harness.events import NOW
from tests.harness.json_schemas import from_schema
from tests.harness.mutants import mutants

LENIENT, STRICT = schemas()["event/1"], schemas()["event-strict/1"]
TOPIC_OF = {KINDS[kind]: topic for topic, kinds in TOPIC_KINDS.items() for kind in kinds}
generously = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def decoded(document: Any) -> Any:
    """The document as the only record of a run, with the key that it needs."""
    value, key = json.dumps(document).encode(), shopper_of(document["data"]).encode()
    return decode_run([value], [key], [NOW], TOPIC_OF[document["type"]])


@pytest.mark.slow
@given(from_schema(STRICT))
@generously
def test_every_event_of_the_strict_schema_is_accepted_as_it_is(document: Any) -> None:
    result = decoded(document)
    assert (result.rejects, result.lenient, len(result.keys)) == ([], 0, 1)
    jsonschema.validate(document, LENIENT, jsonschema.Draft202012Validator)


@pytest.mark.slow
@given(from_schema(LENIENT))
@generously
def test_every_event_of_the_schema_is_accepted(document: Any) -> None:
    result = decoded(document)
    assert result.rejects == []
    assert result.lenient == (not jsonschema.Draft202012Validator(STRICT).is_valid(document))


@given(st.from_regex(TIME_PATTERN))
@generously
def test_every_time_of_the_schema_can_be_read(time: str) -> None:
    document = {"id": "e", "type": "view_homepage", "time": time, "data": {"user_id": "u"}}
    assert decoded(document).rejects == []


@pytest.mark.slow
def test_every_accepted_mutant_is_valid() -> None:
    """Also: one that is accepted in a lenient form is valid by the strict schema once it is decoded."""
    lenient, strict = jsonschema.Draft202012Validator(LENIENT), jsonschema.Draft202012Validator(STRICT)
    accepted = 0
    for mutant in mutants(random.Random(5), 8_000, huge=1 << 12):
        result = decode_run([mutant.value], [mutant.key], [NOW], mutant.topic)
        if result.rejects:
            continue
        assert mutant.value is not None
        accepted += 1
        document = json.loads(mutant.value.decode("utf-8", "surrogateescape"))
        assert lenient.is_valid(document), mutant
        assert strict.is_valid(document) or result.lenient, mutant
        if len(mutant.value) < 10_000:
            strict.validate(json.loads(encode(decode_event(mutant.value, mutant.key, mutant.topic))))
    assert 1_000 < accepted < 7_000


@pytest.mark.parametrize("kind", range(1, len(KINDS)))
def test_each_required_field_is_required_by_the_schema_and_the_decoder(kind: int) -> None:
    data: dict[str, Any] = {"user_id": "u", "items": [{"item_id": "a"}], "transaction_id": "t", "search_term": "x",
                            "consent": {"personalization": True}}  # fmt: skip
    event = {"id": "e", "type": KINDS[kind], "time": "2026-01-01T00:00:00Z", "data": data}
    validator = jsonschema.Draft202012Validator(STRICT)
    assert validator.is_valid(event) and not decoded(event).rejects
    for field in (*REQUIRED_FIELDS.get(kind, ()), "data.user_id"):
        name = field.split(".")[1]
        without = {**event, "data": {key: held for key, held in data.items() if key != name}}
        assert not validator.is_valid(without) and decoded(without).rejects, field
