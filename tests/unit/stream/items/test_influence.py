"""One shopper's influence on others: at most once per item and day, none of robots and of excluded shoppers."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events.decode import ADD, BUY, CLICK, CONSENT, HOME, VIEW
from stream.ids import key64
from stream.items.activity import (
    EXCLUDED,
    FOLLOWED_BY,
    INTERACTION,
    MAX_STEPS,
    PRECEDED_BY,
    REPEATED,
    ROBOT,
    ROBOT_EVENTS_PER_MINUTE,
    fold_with_activity,
)
from stream.items.signals import ItemTable
from stream.profile.fold import FOLDED, fold
from stream.profile.repeats import SESSION_GAP_S
from stream.profile.row import EVENT_IDS, RECENT_ITEMS, blank_profiles
from stream.settings import Settings
from tests.harness.events import NOW, row, rows

DAY_S = 86_400.0
NO_LIMIT = 0  # of events a minute
Step = tuple[float, int, str]  # time, kind, item


def activity_of(events: list[np.ndarray], profiles: Any = None, robot_events: int = NO_LIMIT, **more: Any) -> Any:
    """Outcomes and ACTIVITY of events of one shopper, in order of arrival."""
    run = rows(*events)
    run["record"] = np.arange(len(run))
    profiles = blank_profiles(1) if profiles is None else profiles
    row_of = np.zeros(len(run), np.int32)
    return fold_with_activity(profiles, row_of, run, np.arange(len(run)), robot_events=robot_events, **more)


def events_of(steps: list[Step]) -> list[np.ndarray]:
    return [row(kind, item, time, id=str(k)) for k, (time, kind, item) in enumerate(steps)]


def contributions(activity: Any) -> Counter[tuple[Any, ...]]:
    """How often each contribution occurs: what is counted, of which day."""
    found: Counter[tuple[Any, ...]] = Counter()
    for a in activity:
        day = int(a["time"] // DAY_S)
        what = int(a["item"]), int(a["other"]), int(a["kind"])
        if a["kind"] == INTERACTION:
            found[what, int(a["event"]), day] += 1
        else:
            found[what, day] += 1
        if a["first"]:
            found["first", what, day] += 1
    return found


def expected_activity(steps: list[Step]) -> set[tuple[Any, ...]]:
    """What `fold_with_activity` must return for at most RECENT_ITEMS steps in order of time, in plain Python.

    Each entry is item, other, kind, event, step, first.
    """
    expected: set[tuple[Any, ...]] = set()
    pairs: set[tuple[str, str, int]] = set()  # earlier item, later item, day: within one session
    for at, (time, kind, item) in enumerate(steps):
        day = int(time // DAY_S)
        session = [at]
        while session[0] and steps[session[0]][0] - steps[session[0] - 1][0] <= SESSION_GAP_S:
            session.insert(0, session[0] - 1)
        earlier = [steps[k] for k in session[:-1]]
        same_day = [other for other in steps[:at] if other[2] == item and other[0] // DAY_S == day]
        first = int(not same_day and all(other[2] != item for other in earlier))
        if all(other[1] != kind for other in same_day):
            expected.add((time, item, "", INTERACTION, kind, 0, first))
        # Steps back: a click, its view and its addition to the cart are one step.
        back: list[str] = []
        later_item, later_kind = item, kind
        for _, other_kind, other in reversed(earlier):
            if other != later_item or other_kind == later_kind:
                back.append(other)
            later_item, later_kind = other, other_kind
        for step, other in enumerate(back[:MAX_STEPS], 1):
            if (other, item, day) in pairs or other in back[: step - 1] or (other == item and step > 1):
                continue
            if other == item:
                expected.add((time, item, item, FOLLOWED_BY, kind, step, 0))
            else:
                expected.add((time, other, item, FOLLOWED_BY, kind, step, first))
                expected.add((time, item, other, PRECEDED_BY, kind, step, first))
        pairs |= {(other[2], item, day) for other in earlier}
    return expected


many_steps = st.lists(
    st.tuples(
        st.sampled_from((1.0, 60.0, 1700.0, 1900.0, 30_000.0)),
        st.sampled_from((VIEW, CLICK, ADD, BUY)),
        st.sampled_from("abcdef"),
    ),
    min_size=1,
    max_size=90,
)


def timed(gaps: list[tuple[float, int, str]]) -> list[Step]:
    times = NOW + np.cumsum([gap for gap, _, _ in gaps])
    return [(float(time), kind, item) for time, (_, kind, item) in zip(times, gaps, strict=True)]


@given(many_steps)
@settings(deadline=None)
def test_activity_of_a_short_history_equals_plain_python(gaps: list[tuple[float, int, str]]) -> None:
    steps = timed(gaps)[: RECENT_ITEMS - 1]
    names = {key64(item): item for item in "abcdef"} | {0: ""}
    _, activity = activity_of(events_of(steps))
    found = [
        (float(a["time"]), names[int(a["item"])], names[int(a["other"])], *(int(a[field]) for field in
         ("kind", "event", "step", "first")))
        for a in activity
    ]  # fmt: skip
    assert len(set(found)) == len(found) and set(found) == expected_activity(steps)


@given(many_steps, st.randoms())
@settings(deadline=None)
def test_a_shopper_counts_at_most_once_per_item_and_day_in_any_order(
    gaps: list[tuple[float, int, str]], random: Any
) -> None:
    steps = timed(gaps)
    if random.random() < 0.5:
        random.shuffle(steps)
    _, activity = activity_of(events_of(steps))
    assert not [what for what, count in contributions(activity).items() if count > 1]


def test_forty_views_move_popularity_as_much_as_one() -> None:
    once, often = ItemTable(), ItemTable()
    steps = [(NOW + k, VIEW, "lamp") for k in range(40)]
    once.fold("clicks", 0, activity_of(events_of(steps[:1]))[1])
    outcomes, activity = activity_of(events_of(steps))
    often.fold("clicks", 0, activity)
    assert (often.rows["count"][0], often.rows["repeat"][0]) == (1, 1), "one view, one transition from lamp to lamp"
    assert (often.rows["popular"] <= once.rows["popular"]).all()
    assert np.count_nonzero(outcomes & REPEATED) == 38, "the second view still makes the transition"


def test_a_monitor_counts_once_a_day_whatever_it_did_before() -> None:
    items = [f"i{k}" for k in range(3)]
    steps = [(NOW + 30.0 * k, VIEW, items[k % 3]) for k in range(3 * 2_880)]
    _, activity = activity_of(events_of(steps))
    views = activity[activity["kind"] == INTERACTION]
    assert len(views) == 3 * 3, "three items on three days"
    assert not [what for what, count in contributions(activity).items() if count > 1]


def test_the_four_kinds_of_interaction_count_once_each() -> None:
    steps = [(NOW + k, (VIEW, CLICK, ADD, BUY)[k % 4], "lamp") for k in range(20)]
    _, activity = activity_of(events_of(steps))
    table = ItemTable()
    table.fold("clicks", 0, activity)
    lamp = table.rows[0]
    assert (lamp["count"], lamp["buys"].round(3), lamp["carts"].round(3), lamp["seen"].round(3)) == (4, 1, 1, 1)


def test_the_next_day_in_utc_counts_again() -> None:
    _, activity = activity_of(events_of([(NOW - 1, VIEW, "a"), (NOW, VIEW, "a"), (NOW + DAY_S - 1, VIEW, "a")]))
    assert (activity["kind"] == INTERACTION).sum() == 2


def test_interactions_that_have_left_the_ring_are_not_counted_again() -> None:
    others = [(NOW + 10 + k, CLICK, f"i{k}") for k in range(40)]
    again = [(NOW + 100, CLICK, "a"), (NOW + 101, VIEW, "a"), (NOW + DAY_S, CLICK, "a")]
    outcomes, activity = activity_of(events_of([(NOW, CLICK, "a"), *others, *again]))
    of_a = activity[(activity["item"] == key64("a")) & (activity["kind"] == INTERACTION)]
    assert of_a["event"].tolist() == [CLICK, VIEW, CLICK]
    assert of_a["first"].tolist() == [1, 0, 1]
    assert outcomes[41] == FOLDED | REPEATED


def test_an_event_older_than_the_ring_does_not_count() -> None:
    steps = [(NOW + k, CLICK, f"i{k}") for k in range(RECENT_ITEMS)]
    outcomes, _ = activity_of(events_of([*steps, (NOW - 5, CLICK, "late")]))
    assert outcomes[-1] == FOLDED | REPEATED


def test_a_new_grant_of_consent_does_not_let_a_day_count_again() -> None:
    def toggle(time: float) -> list[np.ndarray]:
        return [row(CONSENT, time=time, consent=consent) for time, consent in ((time, -1), (time + 1, 1))]

    view = [row(VIEW, "a", NOW + 100 * k, id=f"v{k}") for k in range(5)]
    run = [view[0], *toggle(NOW + 50), view[1], *toggle(NOW + 150), view[2], row(VIEW, "a", NOW + DAY_S, id="next")]
    _, activity = activity_of(run)
    assert activity["time"].tolist() == [NOW, NOW + DAY_S]


def test_a_late_refusal_does_not_let_a_day_count_again() -> None:
    profiles = blank_profiles(1)
    run = [row(VIEW, "a", NOW + 10), row(CONSENT, time=NOW + 300, consent=1), row(CONSENT, time=NOW, consent=-1)]
    _, before = activity_of(run, profiles)
    _, after = activity_of([row(VIEW, "a", NOW + 400), row(VIEW, "b", NOW + DAY_S + 1)], profiles)
    assert len(before) == 1 and after["item"].tolist() == [key64("b")]


def test_a_refusal_leaves_no_trace_of_interactions_outside_of_the_ring() -> None:
    profiles = blank_profiles(1)
    activity_of(events_of([(NOW + k, CLICK, f"i{k}") for k in range(60)]), profiles)
    assert profiles["overflow"].any() and profiles["overflow_day"][0] == NOW // DAY_S
    activity_of([row(CONSENT, time=NOW + 99, consent=-1)], profiles)
    assert not profiles["overflow"].any() and not profiles["overflow_day"][0]


@given(st.permutations(range(50)))
@settings(deadline=None, max_examples=20)
def test_the_bits_of_a_profile_do_not_depend_on_the_order_of_arrival(order: list[int]) -> None:
    made = events_of([(NOW + 3_000 * k, CLICK, f"i{k}") for k in range(50)])
    one, other = blank_profiles(1), blank_profiles(1)
    fold(one, np.zeros(50, np.int32), rows(*made))
    fold(other, np.zeros(50, np.int32), rows(*(made[k] for k in order)))
    for field in ("overflow", "overflow_day", "recent_item"):
        assert one[field].tolist() == other[field].tolist()
    assert one["overflow"].any()


@given(st.lists(st.sampled_from((0, 1, 5, 20, 61)), min_size=1, max_size=200), st.integers(1, 100))
@settings(deadline=None)
def test_likely_robots_are_those_with_too_many_events_in_a_minute(gaps: list[int], per_minute: int) -> None:
    times = (NOW + np.cumsum(gaps)).tolist()
    outcomes, _ = activity_of(events_of([(t, VIEW, f"i{k}") for k, t in enumerate(times)]), robot_events=per_minute)
    for k, outcome in enumerate(outcomes.tolist()):
        known = times[max(0, k + 1 - EVENT_IDS) : k + 1]
        too_many = any(sum(0 <= last - time < 60 for time in known) > per_minute for last in known)
        assert bool(outcome & ROBOT) == too_many


def test_a_robot_that_slows_down_counts_again_a_day_later() -> None:
    burst = [(NOW + k / 4, VIEW, f"i{k}") for k in range(50)]
    later = [(NOW + DAY_S / 2, VIEW, "x"), (NOW + DAY_S + 100, VIEW, "y")]
    outcomes, activity = activity_of(events_of([*burst, *later]), robot_events=30)
    assert (outcomes & ROBOT != 0).tolist() == [False] * 30 + [True] * 21 + [False]
    assert key64("y") in activity["item"] and key64("x") not in activity["item"]


def test_searches_and_page_views_count_towards_the_rate_of_a_robot() -> None:
    opened = [row(HOME, time=NOW + k / 10, id=f"h{k}") for k in range(30)]
    outcomes, activity = activity_of([*opened, row(VIEW, "a", NOW + 4)], robot_events=30)
    assert outcomes[-1] == FOLDED | ROBOT and not len(activity)


def test_robots_and_excluded_shoppers_keep_their_own_profile() -> None:
    made = events_of([(NOW + k, VIEW, f"i{k}") for k in range(10)])
    profiles, excluded, robot = (blank_profiles(1) for _ in range(3))
    activity_of(made, profiles)
    outcomes, activity = activity_of(made, excluded, is_excluded=np.ones(10, np.bool_))
    assert set(outcomes.tolist()) == {FOLDED | EXCLUDED} and not len(activity)
    activity_of(made, robot, robot_events=1)
    assert excluded.tobytes() == robot.tobytes() == profiles.tobytes()


def test_the_default_limit_of_robots_is_that_of_training() -> None:
    assert Settings().robot_events_per_minute == ROBOT_EVENTS_PER_MINUTE


@pytest.mark.parametrize("run_length", [1, 7, 120])
def test_activity_does_not_depend_on_how_events_are_batched(run_length: int) -> None:
    random = np.random.default_rng(5)
    made = events_of([(NOW + 700.0 * k, int(random.choice((VIEW, CLICK, BUY))), f"i{random.integers(9)}")
                      for k in range(120)])  # fmt: skip
    _, whole = activity_of(made)
    profiles, parts = blank_profiles(1), []
    for start in range(0, 120, run_length):
        parts.append(activity_of(made[start : start + run_length], profiles)[1])
    found = np.concatenate(parts)
    found["offset"] = whole["offset"]
    assert found.tobytes() == whole.tobytes()
