"""Load shedding with a controlled clock: the order of its rungs and the delay between them."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.health.load_shedder import LoadShedder
from stream import metrics
from stream.degradation import (
    FULL,
    MIN_WAITING_EVENTS,
    NO_COPY,
    NO_EXPLORATION,
    PACED,
    Degradation,
    DegradationController,
    Limits,
    Load,
    degradation_of,
    limits_of,
)
from stream.settings import Settings

LIMITS = limits_of(2.0, 512)  # the default settings
QUIET = Load(0.0, 0)


def rungs_under(
    controller: DegradationController, load: Load, start: float, seconds: float, interval: float = 0.25
) -> list[int]:
    """Rungs that the controller reaches under a constant load, starting with its current one."""
    rungs = [controller.rung]
    for tick in range(round(seconds / interval) + 1):
        rung = controller.observe(load, start + tick * interval)
        if rung != rungs[-1]:
            rungs.append(rung)
    return rungs


def test_the_rung_follows_the_lag_one_step_at_a_time() -> None:
    controller = DegradationController(LIMITS)
    assert rungs_under(controller, Load(1.9, 100), 0, 100) == [FULL]
    assert rungs_under(controller, Load(2.1, 100), 200, 100) == [FULL, NO_COPY]
    assert rungs_under(controller, Load(4.1, 100), 400, 100) == [NO_COPY, NO_EXPLORATION]
    assert rungs_under(controller, Load(8.1, 100), 600, 100) == [NO_EXPLORATION, PACED]
    assert rungs_under(controller, Load(4.1, 100), 800, 100) == [PACED], "half of the limit of a rung does not end it"
    assert rungs_under(controller, Load(3.9, 100), 1000, 100) == [PACED, NO_EXPLORATION]
    assert rungs_under(controller, Load(1.9, 100), 1200, 100) == [NO_EXPLORATION, NO_COPY]
    assert rungs_under(controller, Load(0.9, 100), 1400, 100) == [NO_COPY, FULL]


def test_many_waiting_events_are_overload_at_any_age() -> None:
    assert rungs_under(DegradationController(LIMITS), Load(0.1, 16 * 512 - 1), 0, 100) == [FULL]
    assert rungs_under(DegradationController(LIMITS), Load(0.1, 16 * 512), 0, 100) == [FULL, NO_COPY]
    assert rungs_under(DegradationController(LIMITS), Load(0.1, 1_000_000), 0, 100) == [
        FULL,
        NO_COPY,
        NO_EXPLORATION,
        PACED,
    ]


def test_a_few_old_events_are_not_overload() -> None:
    assert rungs_under(DegradationController(LIMITS), Load(3600.0, MIN_WAITING_EVENTS - 1), 0, 100) == [FULL]


def test_short_bursts_and_short_pauses_do_not_change_the_rung() -> None:
    controller = DegradationController(LIMITS)
    assert rungs_under(controller, Load(60.0, 5000), 0, LIMITS.climb_after_s - 0.25) == [FULL]
    assert rungs_under(controller, QUIET, 10, 1) == [FULL]
    assert rungs_under(controller, Load(60.0, 5000), 20, 3 * LIMITS.climb_after_s + 1) == [
        FULL,
        NO_COPY,
        NO_EXPLORATION,
        PACED,
    ]
    assert rungs_under(controller, QUIET, 30, LIMITS.descend_after_s - 0.25) == [PACED]
    assert rungs_under(controller, Load(60.0, 5000), 40, 1) == [PACED]
    assert rungs_under(controller, QUIET, 50, 3 * LIMITS.descend_after_s + 1) == [PACED, NO_EXPLORATION, NO_COPY, FULL]


def test_each_rung_adds_one_kind_of_work_to_shed() -> None:
    assert degradation_of(FULL, LIMITS) == Degradation()
    assert degradation_of(NO_COPY, LIMITS) == Degradation(sheds_headlines=True)
    assert degradation_of(NO_EXPLORATION, LIMITS) == Degradation(sheds_headlines=True, sheds_exploration=True)
    assert degradation_of(PACED, LIMITS) == Degradation(
        sheds_headlines=True, sheds_exploration=True, page_interval_s=8.0
    )


loads = st.builds(Load, st.floats(0, 1e6), st.integers(0, 10_000_000))


@given(st.lists(st.tuples(loads, st.floats(0, 30)), max_size=80))
@settings(deadline=None)
def test_no_load_skips_a_rung_and_every_load_is_recovered_from(
    seen: list[tuple[Load, float]],
) -> None:
    controller, now = DegradationController(LIMITS), 0.0
    for load, passed in seen:
        now += passed
        before = controller.rung
        assert abs(controller.observe(load, now) - before) <= 1
        assert FULL <= controller.rung <= PACED
    rungs = rungs_under(controller, QUIET, now, PACED * LIMITS.descend_after_s + 1)
    assert rungs == sorted(rungs, reverse=True) and rungs[-1] == FULL


@given(st.lists(st.tuples(loads, st.floats(0, 30)), max_size=20), loads, st.floats(0.1, 100), st.integers(1, 4096))
@settings(deadline=None)
def test_a_constant_load_moves_the_rung_in_one_direction_only(
    seen: list[tuple[Load, float]], load: Load, lag: float, run_records: int
) -> None:
    controller, now = DegradationController(limits_of(lag, run_records)), 0.0
    for earlier, passed in seen:
        now += passed
        controller.observe(earlier, now)
    rungs = rungs_under(controller, load, now, 16 * lag, lag / 8)
    assert rungs in (sorted(rungs), sorted(rungs, reverse=True))
    assert rungs_under(controller, load, now + 17 * lag, 40 * lag, lag / 8) == [rungs[-1]]


def test_a_rung_change_degrades_pages_and_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Path:
        degradation = Degradation()

    def moves(direction: str) -> float:
        return metrics.REGISTRY.get_sample_value("shopwindow_ladder_moves_total", {"direction": direction}) or 0.0

    path: Any = Path()
    unused: Any = None
    shedder, before = LoadShedder(Settings(), unused, path, unused), (moves("up"), moves("down"))
    for tick in range(30):
        shedder.observe(Load(4.5, 700), tick / 4)
    assert path.degradation == Degradation(sheds_headlines=True, sheds_exploration=True)
    assert metrics.REGISTRY.get_sample_value("shopwindow_ladder_rung") == NO_EXPLORATION
    for tick in range(100):
        shedder.observe(QUIET, 10 + tick / 4)
    assert path.degradation == Degradation()
    assert (moves("up"), moves("down")) == (before[0] + 2, before[1] + 2)
    assert [line for line in caplog.messages if "rung 2 (no_exploration)" in line and "700 events wait" in line]
    assert len(caplog.messages) == 4


def test_limits_derive_from_two_settings() -> None:
    assert limits_of(2.0, 512) == Limits(2.0, 8192)
    assert (LIMITS.climb_after_s, LIMITS.descend_after_s, LIMITS.page_interval_s) == (1.0, 4.0, 8.0)
