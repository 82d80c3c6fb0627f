"""How long each partition has waited for an answer, from what the answers leave behind."""

from faust.types import TP

from stream.kafka.watchdog import StallDetector

A, B = TP("clicks", 0), TP("clicks", 1)


def test_a_partition_waits_since_its_last_answer() -> None:
    silence = StallDetector()
    assert silence.waits({A: 1, B: 1}, 10.0) == {A: 0.0, B: 0.0}
    assert silence.waits({A: 2, B: 1}, 12.0) == {A: 0.0, B: 2.0}
    assert silence.waits({A: 2, B: 1}, 15.0) == {A: 3.0, B: 5.0}


def test_a_clock_that_jumps_back_in_an_answer_is_an_answer_all_the_same() -> None:
    silence = StallDetector()
    silence.waits({A: 3600.0}, 0.0)
    assert silence.waits({A: 10.0}, 9.0) == {A: 0.0}


def test_who_is_not_asked_for_anything_does_not_wait() -> None:
    silence = StallDetector()
    silence.waits({A: 1, B: 1}, 0.0)
    assert silence.waits({B: 1}, 100.0) == {B: 100.0}
    assert silence.waits({}, 200.0) == {}
    assert silence.waits({A: 1, B: 1}, 300.0) == {A: 0.0, B: 0.0}


def test_after_forgiveness_every_wait_begins_anew() -> None:
    silence = StallDetector()
    silence.waits({A: 1}, 0.0)
    silence.reset()
    assert silence.waits({A: 1}, 50.0) == {A: 0.0}
