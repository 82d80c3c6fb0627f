"""The size of dead letters: records are kept whole, or cut if they would not fit into the topic."""

from types import SimpleNamespace
from typing import Any

from stream.events.decode import Reject
from stream.kafka.commit import Batch, Headers, Pair
from stream.kafka.dead_letters import KEPT_BYTES, encode_dead_letter
from stream.kafka.topics import DEAD_LETTER_BYTES

REJECT = Reject(0, "too_large", "value", "the event has too many bytes")


def letter_of(key: bytes, value: bytes, headers: Any = ()) -> tuple[Pair, Headers]:
    return encode_dead_letter("clicks", 1, SimpleNamespace(key=key, value=value, headers=headers, offset=7), REJECT)


def test_a_record_at_kafkas_limit_is_kept_whole_with_its_headers() -> None:
    value = b"x" * (1 << 20)
    pair, headers = letter_of(b"u1", value, (("trace", b"t"),))
    assert pair == (b"u1", value)
    assert dict(headers)["trace"] == b"t" and "cut_from" not in dict(headers)


def test_a_larger_record_is_cut_and_its_original_size_is_noted() -> None:
    for key, value, headers in (
        (b"u1", b"x" * (10 << 20), ()),
        (b"k" * (3 << 20), b"x", ()),
        (b"u1", b"x", (("trace", b"t" * (3 << 20)),)),
    ):
        pair, kept_headers = letter_of(key, value, headers)
        assert dict(kept_headers)["cut_from"] == b"%d" % len(value)
        assert key.startswith(pair[0] or b"") and value.startswith(pair[1] or b"")
        batch = Batch(1 << 30)
        assert batch.extend([pair], [kept_headers]) == 1 and batch.size() < DEAD_LETTER_BYTES
    assert KEPT_BYTES > 1 << 20
