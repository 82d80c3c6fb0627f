"""The stream benchmark runs end to end; it checks by itself that every event has its output."""

import json

from deploy.bench import stream
from deploy.bench.common import Plan
from stream.settings import Settings


def test_every_engine_processes_its_events_and_is_compared_with_naive() -> None:
    figures = stream.measure(Settings(), Plan(4.0, rounds=1))
    assert figures.keys() == {"engines", "count_ratio", "ratio", "rounds"}
    assert figures["engines"].keys() == {"naive", "count", "fold"}
    for name, engine in figures["engines"].items():
        assert engine.keys() == {"per_s", "cpu_us", "rss_mb", "records"}, name
        assert engine["records"] >= stream.MIN_EVENTS, name
    assert json.loads(json.dumps(figures)) == figures
    assert "naive Faust agent" in stream.table(figures)
