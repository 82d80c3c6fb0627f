"""That the benchmark of the page path makes pages of each batch and compares them with the baseline."""

import pytest

from deploy.bench import page
from deploy.bench.common import Plan
from stream.settings import Settings


def test_a_page_is_timed_in_each_batch_by_stage_and_by_what_it_may_grow_with() -> None:
    figures = page.measure(Settings(), Plan(2.0, rounds=1), 400, 300, (400, 800), (1, 40))
    assert set(figures["batch"]) == set(figures["cost_in_loads"]) == {"1", "32", "256"}
    for batch, per_s in figures["batch"].items():
        in_loads = 1e6 / per_s / figures["loads_us"]
        assert figures["cost_in_loads"][batch] == pytest.approx(in_loads, rel=0.01), batch
        assert sum(figures["stages"][batch].values()) > 0
    assert set(figures["full"]) == {"1", "32", "256"} and figures["full_note"]
    assert "pages/s" in page.table(figures)
