"""The latency benchmark runs end to end and gets an answer to every event."""

import json

import pytest

from deploy.bench import latency
from deploy.bench.common import Plan
from stream.settings import Settings


def test_worker_and_echo_answer_every_event_at_each_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "RATES", (40, 80))
    figures = latency.measure(Settings(), Plan(6.0, rounds=1))
    assert figures.keys() == {"rates", "rounds", "seconds_a_round"}
    assert figures["rates"].keys() == {"40", "80"}
    for rate in figures["rates"].values():
        assert rate.keys() == {"p50_ms", "p99_ms", "echo_p50_ms", "echo_p99_ms", "ratio_p50", "ratio_p99"}
        assert rate["p50_ms"] <= rate["p99_ms"] and rate["echo_p50_ms"] <= rate["echo_p99_ms"]
        assert rate["ratio_p50"] == pytest.approx(rate["p50_ms"] / rate["echo_p50_ms"], rel=0.01)
    assert json.loads(json.dumps(figures)) == figures
    assert "echo p99" in latency.table(figures)
