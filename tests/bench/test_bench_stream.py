"""That the benchmark of events/s runs, checks its own outputs, and says what it should."""

from deploy.bench import stream
from deploy.bench.common import Plan
from stream.settings import Settings


def test_every_engine_works_off_its_events_and_is_compared_with_the_naive_one() -> None:
    figures = stream.measure(Settings(), Plan(4.0, rounds=1))
    assert set(figures["engines"]) == {"naive", "count", "fold"}
    for name, engine in figures["engines"].items():
        assert engine["per_s"] > 0 and engine["records"] >= 2_000, name
    assert figures["count_ratio"] > 1 and figures["ratio"] > 1
    assert "naive Faust agent" in stream.table(figures)
