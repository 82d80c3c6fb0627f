"""Dead letters as records and as an operator sees them."""

from collections import Counter
from types import SimpleNamespace
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
from stream.events import Reject
from stream.kafka.dead_letters import KEPT, REDRIVEN, DeadLetter, dead_letter, read_letter, redriven
from stream.kafka.redrive import again, home_of
from tests.harness.events import NOW, record

REJECT = Reject(0, "invalid", "data.items[0].price", "data.items[0].price is -1: Expected `float` >= 0.0")


def consumed(key: bytes | None, value: bytes | None, headers: Any = (), partition: int = 2, offset: int = 55) -> Any:
    return SimpleNamespace(
        key=key, value=value, headers=tuple(headers), partition=partition, offset=offset, timestamp=NOW * 1000
    )


def letter_of(source: Any, topic: str = "clicks", reject: Reject = REJECT) -> DeadLetter:
    (key, value), headers = dead_letter(topic, source.partition, source, reject)
    return read_letter(consumed(key, value, headers, 3, 17))


def test_a_letter_tells_where_a_record_lay_why_it_was_refused_and_keeps_it_as_it_came() -> None:
    own = [("topic", b"a producer's own"), ("trace", b"\xff\x00")]
    letter = letter_of(consumed(b"u1", b"{half", own))
    assert letter == DeadLetter(
        "3-17", NOW, "clicks", 2, 55, 1, REJECT.code, REJECT.field, REJECT.message, b"u1", b"{half", tuple(own)
    )


def test_a_second_failure_counts_and_keeps_the_first_origin() -> None:
    first = letter_of(consumed(b"u1", b"{half", [("trace", b"x")]))
    second = letter_of(consumed(first.key, first.value, again(first), partition=2, offset=99))
    assert (second.attempts, second.topic, second.partition, second.offset) == (2, "clicks", 2, 55)
    assert second.headers == (("trace", b"x"),)
    third = letter_of(consumed(second.key, second.value, again(second), partition=2, offset=200))
    assert (third.attempts, third.offset) == (3, 55)


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"letter":1}', b"null"])
def test_a_header_of_our_name_that_is_not_ours_changes_nothing(value: bytes) -> None:
    assert redriven([(REDRIVEN, value)]) is None
    assert letter_of(consumed(b"u1", b"x", [(REDRIVEN, value)])).attempts == 1


def test_a_history_of_another_topic_is_not_believed() -> None:
    first = letter_of(consumed(b"u1", b"x"), "purchases")
    moved = letter_of(consumed(b"u1", b"x", again(first), 1, 7), "clicks")
    assert (moved.attempts, moved.topic, moved.partition, moved.offset) == (1, "clicks", 1, 7)


def test_a_record_that_is_no_letter_of_ours_is_read_as_far_as_it_goes() -> None:
    letter = read_letter(consumed(None, None, [("partition", b"many"), ("x", b"1")], 0, 4))
    assert (letter.id, letter.topic, letter.partition, letter.attempts, letter.error) == ("0-4", "", -1, 1, "")


def test_a_letter_goes_back_to_the_partition_of_its_key_or_where_it_was_without_one() -> None:
    assert home_of(letter_of(consumed(b"u1", b"x")), 4) == home_of(letter_of(consumed(b"u1", b"x", partition=1)), 4)
    assert home_of(letter_of(consumed(None, b"x", partition=3)), 4) == 3


def test_what_can_never_pass_is_left_with_a_sentence() -> None:
    good = record("view_item", "u1", item="a")
    assert refusal_reason(letter_of(consumed(*good)), force=False) == ""
    assert "refuses it again" in refusal_reason(letter_of(consumed(b"u1", b"{half")), force=False)
    assert refusal_reason(letter_of(consumed(b"u1", b"{half")), force=True) == ""
    assert "'old-clicks', which no worker" in refusal_reason(letter_of(consumed(*good), "old-clicks"), force=True)
    assert "does not say which topic" in refusal_reason(read_letter(consumed(*good)), force=True)
    assert "counted in order" in refusal_reason(letter_of(consumed(None, b"x"), "item-activity"), force=True)
    assert "refuses it again" in refusal_reason(letter_of(consumed(b"k", None), "copy-requests"), force=False)


def test_the_list_fits_a_terminal_and_nothing_in_it_steers_one() -> None:
    nasty = letter_of(consumed(b"u1", b"x"), reject=Reject(0, "invalid", "data", "value is \x1b[2J\n: wrong"))
    told = format_letter_list(LetterList([nasty], Counter({"empty": 3}), {nasty.id: NOW}))
    head, row, sent, message, count = told.splitlines()
    assert max(map(len, (head, row, sent))) <= 80
    assert row.split() == ["01-01", "00:00:00", "3-17", "clicks/2/55", "1", "invalid", "data"]
    assert sent.strip() == "sent back 2026-01-01 00:00:00" and message.strip() == r"value is \x1b[2J\n: wrong"
    assert count == "1 dead letter; 3 more: 3 empty"
    assert letter_json(nasty, None)["redriven"] is None and letter_json(nasty, NOW)["redriven"].startswith(
        "2026-01-01 00:00"
    )
    assert format_letter_list(LetterList([], Counter(), {})) == "no dead letters"


def test_a_redrive_says_what_went_where_and_what_was_left_for_which_reason() -> None:
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


def test_a_record_too_large_for_the_topic_is_cut_and_cannot_go_back() -> None:
    whole = letter_of(consumed(b"u1", b"x" * (KEPT - 100), [("trace", b"t")]))
    assert whole.cut_from == 0 and whole.headers == (("trace", b"t"),)
    cut = letter_of(consumed(b"u1" * 2000, b"x" * 3_000_000, [("trace", b"t")]))
    assert cut.cut_from == 3_000_000 and cut.value is not None and len(cut.key or b"") + len(cut.value) < KEPT
    assert cut.headers == () and "3000000 bytes were too many" in refusal_reason(cut, force=True)
