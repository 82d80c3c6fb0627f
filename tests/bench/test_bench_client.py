"""The benchmark of custom code against libraries runs end to end; it checks by itself that both sides agree."""

import json

import pytest

from deploy.bench import client
from deploy.bench.common import Plan
from stream.settings import Settings


def test_every_part_is_compared_with_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"BACKLOG_EVENTS": 2000, "ITEMS": 6000, "QUERIES": 64}.items():
        monkeypatch.setattr(client, name, value)
    figures = client.measure(Settings(), Plan(1.0, rounds=1))
    assert figures.keys() == {*client.PARTS, "rounds", "pinned"}
    for name in client.PARTS:
        expected = {"per_s", "baseline_per_s", "ratio", "cpu_us", "baseline_cpu_us"}
        assert figures[name].keys() == expected | ({"recall"} if name == "ivf" else set()), name
    assert 0.3 < figures["ivf"]["recall"] <= 1
    assert json.loads(json.dumps(figures)) == figures
    text = client.table(figures)
    assert all(name in text for name in client.PARTS) and "recall of ivf" in text
