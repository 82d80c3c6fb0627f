"""That the benchmark of latency gets an answer to every event, from the worker and from the echo."""

import pytest

from deploy.bench import latency
from deploy.bench.common import Plan
from stream.settings import Settings


def test_worker_and_echo_answer_every_event_at_each_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "RATES", (40, 80))
    figures = latency.measure(Settings(), Plan(6.0, rounds=1))
    assert set(figures["rates"]) == {"40", "80"}
    for rate in figures["rates"].values():
        assert 0 < rate["p50_ms"] <= rate["p99_ms"] and 0 < rate["echo_p50_ms"] <= rate["echo_p99_ms"]
        assert rate["ratio_p50"] == pytest.approx(rate["p50_ms"] / rate["echo_p50_ms"], rel=0.01)
    assert "echo p99" in latency.table(figures)
