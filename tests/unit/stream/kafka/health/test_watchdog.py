"""How long each partition has waited for an answer, measured by the change of its last answer."""

from faust.types import TP

from stream.kafka.health.watchdog import StallDetector

A, B = TP("clicks", 0), TP("clicks", 1)


def test_a_partition_waits_since_its_last_answer() -> None:
    detector = StallDetector()
    assert detector.waits({A: 1, B: 1}, 10.0) == {A: 0.0, B: 0.0}
    assert detector.waits({A: 2, B: 1}, 12.0) == {A: 0.0, B: 2.0}
    assert detector.waits({A: 2, B: 1}, 15.0) == {A: 3.0, B: 5.0}


def test_an_answer_with_an_earlier_timestamp_is_an_answer() -> None:
    detector = StallDetector()
    detector.waits({A: 3600.0}, 0.0)
    assert detector.waits({A: 10.0}, 9.0) == {A: 0.0}


def test_a_partition_that_is_not_requested_does_not_wait() -> None:
    detector = StallDetector()
    detector.waits({A: 1, B: 1}, 0.0)
    assert detector.waits({B: 1}, 100.0) == {B: 100.0}
    assert detector.waits({}, 200.0) == {}
    assert detector.waits({A: 1, B: 1}, 300.0) == {A: 0.0, B: 0.0}


def test_a_reset_restarts_every_wait() -> None:
    detector = StallDetector()
    detector.waits({A: 1}, 0.0)
    detector.reset()
    assert detector.waits({A: 1}, 50.0) == {A: 0.0}
