"""The size of dead letters: records are kept whole, or cut if they would not fit into the topic."""

from types import SimpleNamespace
from typing import Any

import pytest

from stream.events.decode import Reject
from stream.kafka.commit import Batch, Headers, Pair
from stream.kafka.dead_letters import encode_dead_letter
from stream.kafka.topics import DEFAULT_BATCH_LIMIT, MIN_BATCH_LIMIT

REJECT = Reject(0, "too_large", "value", "the event has too many bytes")


def letter_of(
    key: bytes, value: bytes, headers: Any = (), batch_limit: int = DEFAULT_BATCH_LIMIT
) -> tuple[Pair, Headers]:
    record = SimpleNamespace(key=key, value=value, headers=headers, offset=7)
    return encode_dead_letter("clicks", 1, record, REJECT, batch_limit)


def test_a_record_just_below_kafkas_limit_is_kept_whole_with_its_headers() -> None:
    value = b"x" * ((1 << 20) - 1000)
    pair, headers = letter_of(b"u1", value, (("trace", b"t"),))
    assert pair == (b"u1", value)
    assert dict(headers)["trace"] == b"t" and "cut_from" not in dict(headers)


def test_a_larger_record_is_cut_and_its_original_size_is_noted() -> None:
    for key, value, headers in (
        (b"u1", b"x" * (1 << 20), ()),
        (b"u1", b"x" * (10 << 20), ()),
        (b"k" * (3 << 20), b"x", ()),
        (b"u1", b"x", (("trace", b"t" * (3 << 20)),)),
        (b"u1", b"x", tuple((f"h{k}", b"") for k in range(100_000))),
    ):
        for limit in (MIN_BATCH_LIMIT, DEFAULT_BATCH_LIMIT):
            pair, kept_headers = letter_of(key, value, headers, limit)
            assert dict(kept_headers)["cut_from"] == b"%d" % len(value)
            assert key.startswith(pair[0] or b"") and value.startswith(pair[1] or b"")
            assert size_of(pair, kept_headers) <= limit


@pytest.mark.parametrize("limit", [MIN_BATCH_LIMIT, DEFAULT_BATCH_LIMIT])
def test_every_record_gives_a_dead_letter_that_its_topic_takes(limit: int) -> None:
    for size in range(limit - 1200, limit):
        pair, headers = letter_of(b"k" * 50, b"x" * size, (("a", b"b"),), limit)
        assert size_of(pair, headers) <= limit
        is_cut = "cut_from" in dict(headers)
        assert is_cut == (len(pair[1] or b"") < size) and (is_cut or size < limit - 200)


def size_of(pair: Pair, headers: Headers) -> int:
    """Bytes of the record's batch."""
    batch = Batch(1 << 30)
    assert batch.extend([pair], [headers]) == 1
    return int(batch.size())
