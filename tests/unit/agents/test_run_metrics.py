"""Latency, freshness and late events: how old a page's event is by its record's timestamp and by its own time."""

import asyncio
import time
from typing import Any

from agents.run_metrics import LATE_S, count_published
from stream import metrics
from tests.harness.events import record
from tests.harness.page_path import path_of
from tests.harness.shopper_agent import agent_of, process, run_of


def total(metric: Any) -> float:
    """Sum of the observed seconds."""
    return float(metric._sum.get())


def late_events() -> float:
    return float(metrics.LATE_EVENTS.labels("clicks")._value.get())


def publish(*events: tuple[float, float]) -> tuple[float, float, float]:
    """Process and publish a run with an event for each shopper: seconds since the event, and since its record.

    Returns the growth of latency (s), of freshness (s), and of the number of late events.
    """
    now = time.time()
    run = run_of([record("view_item", f"u{k}", f"e{k}", now - age, item="i1") for k, (age, _) in enumerate(events)])
    for one, (_, record_age) in zip(run.records, events, strict=True):
        one.timestamp = int((now - record_age) * 1000)
    before = total(metrics.LATENCY), total(metrics.FRESHNESS), late_events()
    [(result, _)] = process(agent_of(path_of()), run)

    async def commit() -> None:
        committed = asyncio.create_task(asyncio.sleep(0))
        await committed
        count_published("clicks", result, time.perf_counter(), committed)

    asyncio.run(commit())
    after = total(metrics.LATENCY), total(metrics.FRESHNESS), late_events()
    latency, freshness, late = (new - old for new, old in zip(after, before, strict=True))
    return latency, freshness, late


def test_a_backdated_event_is_stale_but_answered_fast() -> None:
    latency, freshness, late = publish((3600.0, 0.0))
    assert latency < 600 and 3600 <= freshness < 4200 and late == 1


def test_an_event_that_waited_in_kafka_is_slow_but_not_late() -> None:
    latency, freshness, late = publish((3600.0, 3599.0), (3000.0, 3000.0 - LATE_S + 1))
    assert 6500 <= latency < 7200 and 6600 <= freshness < 7800 and late == 0


def test_timestamps_that_are_no_times_count_by_the_event_time() -> None:
    latency, freshness, late = publish((100.0, -1e14))
    assert 100 <= latency < 700 and 100 <= freshness < 700 and late == 0
