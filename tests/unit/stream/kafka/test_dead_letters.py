"""Dead letters as records and as shown to an operator."""

from collections import Counter
from typing import Any

import pytest

from deploy.operate.dead_letters import (
    LetterList,
    RedriveCounts,
    format_letter_list,
    format_redrive,
    letter_json,
    refusal_reason,
)
from stream.events.decode import Reject
from stream.kafka.dead_letters import (
    REDRIVEN,
    DeadLetter,
    decode_dead_letter,
    encode_dead_letter,
    redrive_origin,
)
from stream.kafka.redrive import redrive_headers, source_partition
from stream.kafka.topics import DEFAULT_BATCH_LIMIT
from tests.harness.events import NOW, record
from tests.harness.kafka_parts import consumed

REJECT = Reject(0, "invalid", "data.items[0].price", "data.items[0].price is -1: Expected `float` >= 0.0")


def letter_of(source: Any, topic: str = "clicks", reject: Reject = REJECT) -> DeadLetter:
    (key, value), headers = encode_dead_letter(topic, source.partition, source, reject)
    return decode_dead_letter(consumed(key, value, headers, 3, 17))


def test_a_dead_letter_keeps_the_record_its_origin_and_the_reason() -> None:
    own = [("topic", b"a producer's own"), ("trace", b"\xff\x00")]
    letter = letter_of(consumed(b"u1", b"{half", own))
    assert letter == DeadLetter(
        "3-17", NOW, "clicks", 2, 55, 1, REJECT.code, REJECT.field, REJECT.message, b"u1", b"{half", tuple(own)
    )


def test_a_second_failure_is_counted_and_keeps_the_first_origin() -> None:
    first = letter_of(consumed(b"u1", b"{half", [("trace", b"x")]))
    second = letter_of(consumed(first.key, first.value, redrive_headers(first), partition=2, offset=99))
    assert (second.attempts, second.topic, second.partition, second.offset) == (2, "clicks", 2, 55)
    assert second.headers == (("trace", b"x"),)
    third = letter_of(consumed(second.key, second.value, redrive_headers(second), partition=2, offset=200))
    assert (third.attempts, third.offset) == (3, 55)


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"letter":1}', b"null"])
def test_a_foreign_header_with_our_name_is_ignored(value: bytes) -> None:
    assert redrive_origin([(REDRIVEN, value)]) is None
    assert letter_of(consumed(b"u1", b"x", [(REDRIVEN, value)])).attempts == 1


def test_a_history_of_another_topic_is_ignored() -> None:
    first = letter_of(consumed(b"u1", b"x"), "purchases")
    moved = letter_of(consumed(b"u1", b"x", redrive_headers(first), 1, 7), "clicks")
    assert (moved.attempts, moved.topic, moved.partition, moved.offset) == (1, "clicks", 1, 7)


def test_a_foreign_record_is_decoded_as_far_as_possible() -> None:
    letter = decode_dead_letter(consumed(None, None, [("partition", b"many"), ("x", b"1")], 0, 4))
    assert (letter.id, letter.topic, letter.partition, letter.attempts, letter.error) == ("0-4", "", -1, 1, "")


def test_a_letter_returns_to_the_partition_of_its_key_or_its_origin() -> None:
    assert source_partition(letter_of(consumed(b"u1", b"x")), 4) == source_partition(
        letter_of(consumed(b"u1", b"x", partition=1)), 4
    )
    assert source_partition(letter_of(consumed(None, b"x", partition=3)), 4) == 3


def test_a_letter_that_cannot_pass_is_left_with_a_reason() -> None:
    good = record("view_item", "u1", item="a")
    assert refusal_reason(letter_of(consumed(*good)), force=False) == ""
    assert "refuses it again" in refusal_reason(letter_of(consumed(b"u1", b"{half")), force=False)
    assert refusal_reason(letter_of(consumed(b"u1", b"{half")), force=True) == ""
    assert "'old-clicks', which no worker" in refusal_reason(letter_of(consumed(*good), "old-clicks"), force=True)
    assert "does not say which topic" in refusal_reason(decode_dead_letter(consumed(*good)), force=True)
    assert "counted in order" in refusal_reason(letter_of(consumed(None, b"x"), "item-activity"), force=True)
    assert "refuses it again" in refusal_reason(letter_of(consumed(b"k", None), "copy-requests"), force=False)


def test_the_list_fits_a_terminal_and_escapes_control_characters() -> None:
    nasty = letter_of(consumed(b"u1", b"x"), reject=Reject(0, "invalid", "data", "value is \x1b[2J\n: wrong"))
    listed = format_letter_list(LetterList([nasty], Counter({"empty": 3}), {nasty.id: NOW}))
    head, row, sent, message, count = listed.splitlines()
    assert max(map(len, (head, row, sent))) <= 80
    assert row.split() == ["01-01", "00:00:00", "3-17", "clicks/2/55", "1", "invalid", "data"]
    assert sent.strip() == "sent back 2026-01-01 00:00:00" and message.strip() == r"value is \x1b[2J\n: wrong"
    assert count == "1 dead letter; 3 more: 3 empty"
    assert letter_json(nasty, None)["redriven"] is None and letter_json(nasty, NOW)["redriven"].startswith(
        "2026-01-01 00:00"
    )
    assert format_letter_list(LetterList([], Counter(), {})) == "no dead letters"


def test_a_redrive_reports_what_was_sent_and_what_was_left() -> None:
    done = RedriveCounts(
        Counter({("clicks", "invalid"): 12}), Counter({("not_json", "this version refuses it again"): 3})
    )
    assert format_redrive(done, dry_run=True).splitlines() == [
        "12 dead letters would be sent back:",
        "       12  invalid        to clicks",
        "3 left:",
        "        3  not_json       this version refuses it again",
    ]
    assert format_redrive(RedriveCounts(Counter(), Counter()), dry_run=False) == "0 dead letters sent back"


def test_a_record_too_large_for_the_topic_cannot_be_redriven() -> None:
    whole = letter_of(consumed(b"u1", b"x" * (DEFAULT_BATCH_LIMIT - 1000), [("trace", b"t")]))
    assert whole.cut_from == 0 and whole.headers == (("trace", b"t"),)
    cut = letter_of(consumed(b"u1" * 2000, b"x" * 3_000_000, [("trace", b"t")]))
    assert (
        cut.cut_from == 3_000_000
        and cut.value is not None
        and len(cut.key or b"") + len(cut.value) < DEFAULT_BATCH_LIMIT
    )
    assert cut.headers == () and "3000000 bytes were too many" in refusal_reason(cut, force=True)
