"""The ladder of degradation with a held clock: its order, its patience, and the pages that it owes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.health.load_shedder import LoadShedder
from stream import metrics
from stream.degradation import (
    FEW,
    FULL,
    NO_COPY,
    NO_EXPLORATION,
    PACED,
    DeferredPages,
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


def held(ladder: DegradationController, load: Load, start: float, seconds: float, beat: float = 0.25) -> list[int]:
    """The rungs that a load takes the ladder to while it lasts, each once, the first before it began."""
    rungs = [ladder.rung]
    for tick in range(round(seconds / beat) + 1):
        rung = ladder.observe(load, start + tick * beat)
        if rung != rungs[-1]:
            rungs.append(rung)
    return rungs


def test_it_climbs_rung_by_rung_as_events_wait_longer_and_comes_back_the_same_way() -> None:
    ladder = DegradationController(LIMITS)
    assert held(ladder, Load(1.9, 100), 0, 100) == [FULL]
    assert held(ladder, Load(2.1, 100), 200, 100) == [FULL, NO_COPY]
    assert held(ladder, Load(4.1, 100), 400, 100) == [NO_COPY, NO_EXPLORATION]
    assert held(ladder, Load(8.1, 100), 600, 100) == [NO_EXPLORATION, PACED]
    assert held(ladder, Load(4.1, 100), 800, 100) == [PACED], "half of what the rung begins at is still too much"
    assert held(ladder, Load(3.9, 100), 1000, 100) == [PACED, NO_EXPLORATION]
    assert held(ladder, Load(1.9, 100), 1200, 100) == [NO_EXPLORATION, NO_COPY]
    assert held(ladder, Load(0.9, 100), 1400, 100) == [NO_COPY, FULL]


def test_many_events_that_wait_are_overload_however_young() -> None:
    assert held(DegradationController(LIMITS), Load(0.1, 16 * 512 - 1), 0, 100) == [FULL]
    assert held(DegradationController(LIMITS), Load(0.1, 16 * 512), 0, 100) == [FULL, NO_COPY]
    assert held(DegradationController(LIMITS), Load(0.1, 1_000_000), 0, 100) == [FULL, NO_COPY, NO_EXPLORATION, PACED]


def test_few_events_of_a_slow_clock_are_no_overload() -> None:
    assert held(DegradationController(LIMITS), Load(3600.0, FEW - 1), 0, 100) == [FULL]


def test_a_short_burst_is_no_overload_and_a_short_pause_no_recovery() -> None:
    ladder = DegradationController(LIMITS)
    assert held(ladder, Load(60.0, 5000), 0, LIMITS.patience - 0.25) == [FULL]
    assert held(ladder, QUIET, 10, 1) == [FULL]
    assert held(ladder, Load(60.0, 5000), 20, 3 * LIMITS.patience + 1) == [FULL, NO_COPY, NO_EXPLORATION, PACED]
    assert held(ladder, QUIET, 30, LIMITS.calm - 0.25) == [PACED]
    assert held(ladder, Load(60.0, 5000), 40, 1) == [PACED]
    assert held(ladder, QUIET, 50, 3 * LIMITS.calm + 1) == [PACED, NO_EXPLORATION, NO_COPY, FULL]


def test_each_rung_sheds_what_those_below_it_shed_and_one_thing_more() -> None:
    assert degradation_of(FULL, LIMITS) == Degradation()
    assert degradation_of(NO_COPY, LIMITS) == Degradation(copy=True)
    assert degradation_of(NO_EXPLORATION, LIMITS) == Degradation(copy=True, exploration=True)
    assert degradation_of(PACED, LIMITS) == Degradation(copy=True, exploration=True, page_every=8.0)


loads = st.builds(Load, st.floats(0, 1e6), st.integers(0, 10_000_000))


@given(st.lists(st.tuples(loads, st.floats(0, 30)), max_size=80))
@settings(deadline=None)
def test_no_load_makes_it_skip_a_rung_and_it_is_always_full_again_when_the_load_is_gone(
    seen: list[tuple[Load, float]],
) -> None:
    ladder, now = DegradationController(LIMITS), 0.0
    for load, passed in seen:
        now += passed
        before = ladder.rung
        assert abs(ladder.observe(load, now) - before) <= 1
        assert FULL <= ladder.rung <= PACED
    rungs = held(ladder, QUIET, now, PACED * LIMITS.calm + 1)
    assert rungs == sorted(rungs, reverse=True) and rungs[-1] == FULL


@given(st.lists(st.tuples(loads, st.floats(0, 30)), max_size=20), loads, st.floats(0.1, 100), st.integers(1, 4096))
@settings(deadline=None)
def test_a_load_that_does_not_change_moves_it_one_way_and_then_leaves_it(
    seen: list[tuple[Load, float]], load: Load, lag: float, run_records: int
) -> None:
    ladder, now = DegradationController(limits_of(lag, run_records)), 0.0
    for earlier, passed in seen:
        now += passed
        ladder.observe(earlier, now)
    rungs = held(ladder, load, now, 16 * lag, lag / 8)
    assert rungs in (sorted(rungs), sorted(rungs, reverse=True))
    assert held(ladder, load, now + 17 * lag, 40 * lag, lag / 8) == [rungs[-1]]


def test_a_move_shows_in_what_pages_go_without_in_the_metrics_and_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    class Path:
        degradation = Degradation()

    def moves(direction: str) -> float:
        return metrics.REGISTRY.get_sample_value("shopwindow_ladder_moves_total", {"direction": direction}) or 0.0

    path: Any = Path()
    nothing: Any = None
    overload, before = LoadShedder(Settings(), nothing, path, nothing), (moves("up"), moves("down"))
    for tick in range(30):
        overload.observe(Load(4.5, 700), tick / 4)
    assert path.degradation == Degradation(copy=True, exploration=True)
    assert metrics.REGISTRY.get_sample_value("shopwindow_ladder_rung") == NO_EXPLORATION
    for tick in range(100):
        overload.observe(QUIET, 10 + tick / 4)
    assert path.degradation == Degradation()
    assert (moves("up"), moves("down")) == (before[0] + 2, before[1] + 2)
    assert [line for line in caplog.messages if "rung 2 (no_exploration)" in line and "700 events wait" in line]
    assert len(caplog.messages) == 4


def owed(*keys: bytes) -> DeferredPages:
    """What is owed to `keys` of partition 3 since 100, 101, ..."""
    book = DeferredPages(lambda rows: {key for key, value in rows.items() if value == b"owed"})
    for at, key in enumerate(keys):
        book.note(3, [(key, b"owed")], 100.0 + at)
    return book


def test_a_page_is_due_when_it_has_waited_and_is_asked_for_once() -> None:
    book = owed(b"a", b"b", b"c")
    book.note(3, [(b"a", b"owed"), (b"d", b"settled")], 105.0)  # more events: she waits since the first
    assert book.due(107.9, 8.0) == []
    book.note(3, [(b"e", b"owed"), (b"e", b"settled")], 90.0)
    assert book.due(109.0, 8.0) == [(3, [b"a", b"b"])]
    assert book.due(109.0, 8.0) == []
    book.note(3, [(b"b", b"owed")], 109.5)
    assert book.due(120.0, 8.0) == [(3, [b"c"])], "b is asked for already"
    assert len(book) == 3
    book.note(3, [(b"a", b"settled"), (b"b", b"settled"), (b"c", None)], 121.0)
    assert (len(book), book.due(999.0, 0.0)) == (0, [])


def test_what_is_settled_by_another_page_is_not_due_and_a_lost_partition_owes_nothing() -> None:
    book = owed(b"a", b"b")
    book.note(3, [(b"a", b"settled")], 103.0)
    assert book.due(200.0, 0.0) == [(3, [b"b"])]
    book.note(4, [(b"x", b"owed")], 103.0)
    book.drop(3)
    assert book.due(200.0, 0.0) == [(4, [b"x"])]
    book.drop(4)
    assert len(book) == 0


def test_debts_are_paid_a_few_at_a_time() -> None:
    keys = [b"%d" % k for k in range(150)]
    book = owed(*keys)
    paid: list[bytes] = []
    for _ in range(3):
        [(_, due)] = book.due(1e6, 0.0)
        assert len(due) <= DeferredPages.AT_ONCE and book.due(1e6, 0.0) == []
        book.note(3, [(key, b"settled") for key in due], 1e6)
        paid += due
    assert paid == keys


def test_limits_follow_from_two_settings() -> None:
    assert limits_of(2.0, 512) == Limits(2.0, 8192)
    assert (LIMITS.patience, LIMITS.calm, LIMITS.page_every) == (1.0, 4.0, 8.0)
