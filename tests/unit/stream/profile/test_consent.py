"""Consent, locale and channel go by event time, whatever the topics, the order of arrival and the runs."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events.decode import ADD, BUY, CLICK, CONSENT, HIDE, HOME, SEARCH, VIEW
from stream.ids import key64
from stream.items.activity import fold_with_activity
from stream.profile.fold import FOLDED, is_covered
from stream.profile.row import PROFILE, blank_profiles
from tests.harness.events import NOW, folded, row, rows
from tests.harness.profiles import ITEM_RINGS, assert_equal_profiles, item_tables

IDS = ("id_time", "id_low", "id_high", "transaction", "transaction_time")
REMAINS = ("consent", "consent_time", "refused_time", "locale", "locale_time", *IDS)


@st.composite
def consent_events(draw: st.DrawFn, seconds: int = 14) -> np.ndarray:
    """EVENT rows (n,) of one shopper as of three topics, with few distinct times, so that many of them are equal."""
    made = []
    for i in range(draw(st.integers(1, 24))):
        kind = draw(st.sampled_from((CONSENT, CONSENT, VIEW, CLICK, ADD, HIDE, HOME, SEARCH, BUY)))
        stated = draw(st.sampled_from((-1, 1) if kind == CONSENT else (0, 0, 0, 0, 1, -1)))
        more: dict[str, Any] = {
            "consent": stated, "locale": draw(st.integers(0, 2)), "channel": draw(st.integers(0, 3))
        }  # fmt: skip
        if kind == SEARCH:
            more["word"] = draw(st.sampled_from(("red", "blue")))
        has_item = kind not in (CONSENT, HOME, SEARCH)
        if kind == BUY:
            more["transaction"] = 1000 + i
        if has_item:
            more |= {"category": draw(st.sampled_from(("c0", "c1"))), "brand": "b", "price": 9.5}
        item = f"i{draw(st.integers(0, 5))}" if has_item else ""
        made.append(row(kind, item, NOW + draw(st.integers(0, seconds)), id=f"id{i}", **more))
    return np.concatenate(made)


def covered_since(events: np.ndarray) -> float:
    """Oracle: the time in seconds from which consent covers behaviour; infinity while it is refused."""
    refused = events["time"][events["consent"] < 0].max(initial=0.0)
    granted = events["time"][(events["consent"] > 0) & (events["time"] > refused)]
    return 0.0 if refused == 0.0 else float(granted.min(initial=np.inf))


def expected_profile(events: np.ndarray) -> Any:
    """Oracle: the profile of the covered events alone, with the newest statements of all events."""
    unstated = events.copy()
    unstated["consent"] = 0
    expected = folded(unstated[unstated["time"] >= covered_since(events)])
    for field in IDS:
        expected[field] = folded(unstated)[field]
    expected["locale"], expected["locale_time"] = 0, 0.0
    for event in sorted(events[events["locale"] != 0].tolist(), key=lambda e: (e[3], e[12])):
        expected["locale_time"], expected["locale"] = event[3], event[12]
    refused = events["time"][events["consent"] < 0].max(initial=0.0)
    granted = events["time"][events["consent"] > 0]
    newest_grant = granted.max(initial=0.0)
    expected["refused_time"], expected["consent_time"] = refused, max(refused, newest_grant)
    if refused or len(granted):
        expected["consent"] = 1 if newest_grant > refused else -1
    expected["granted_time"] = granted[granted > refused].min(initial=np.inf) if newest_grant > refused else 0.0
    return expected


def redelivered(events: np.ndarray, random: Any) -> np.ndarray:
    """The events, some of them once or twice more at any later place."""
    arriving = list(range(len(events)))
    for again in random.choices(range(len(events)), k=random.randint(0, len(events))):
        arriving.insert(random.randint(arriving.index(again) + 1, len(arriving)), again)
    return events[arriving]


def cuts(events: np.ndarray, random: Any) -> tuple[int, ...]:
    return tuple(sorted(random.choices(range(len(events) + 1), k=random.randint(0, 5))))


@pytest.mark.slow
@given(consent_events(), st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_statements_have_one_outcome_in_any_order(events: np.ndarray, random: Any) -> None:
    expected, since = expected_profile(events), covered_since(events)
    order = random.sample(range(len(events)), len(events))
    arriving = redelivered(events[order], random)
    profile = folded(arriving, cuts(arriving, random))
    for field in REMAINS:
        np.testing.assert_array_equal(profile[field], expected[field], err_msg=field)
    if expected["consent"] < 0:
        assert profile.tobytes() == expected.tobytes(), "nothing but the refusal, the locale and the ids is kept"
    elif not expected["refused_time"]:
        assert_equal_profiles(profile, expected)
    else:
        assert profile["granted_time"] >= expected["granted_time"]
    for field in ("first_seen", "last_seen", "channel_time", "recent_time", "bought_time", "cart_time", "hidden_time"):
        times = np.atleast_1d(profile[field])
        assert (times[times != 0] >= since).all(), f"{field}: behaviour that consent does not cover is never kept"


@pytest.mark.slow
@given(consent_events(), st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_events_before_between_and_after_have_one_outcome(events: np.ndarray, random: Any) -> None:
    """What is covered arrives after the grant that covers it; everything else arrives in any order."""
    is_covered_event = events["time"] >= covered_since(events)
    uncovered, covered = np.flatnonzero(~is_covered_event).tolist(), np.flatnonzero(is_covered_event).tolist()
    random.shuffle(uncovered)
    random.shuffle(covered)
    if uncovered:
        covered.sort(key=lambda at: events["consent"][at] <= 0 or events["time"][at] > covered_since(events))
    arriving = redelivered(events[uncovered + covered], random)
    assert_equal_profiles(folded(arriving, cuts(arriving, random)), expected_profile(events))


@pytest.mark.slow
@given(consent_events(), st.randoms(use_true_random=False))
@settings(max_examples=400, deadline=None)
def test_a_late_refusal_keeps_the_items_after_the_grant(events: np.ndarray, random: Any) -> None:
    """Refusals arrive at any time. There is one grant after the newest of them, and what it covers arrives later."""
    since = covered_since(events)
    is_later_grant = (events["consent"] > 0) & (events["time"] > since)
    events["consent"][is_later_grant & (since > 0)] = 0
    order = random.sample(range(len(events)), len(events))
    is_grant = (events["consent"] > 0) & (events["time"] == since)
    grants = [at for at in order if is_grant[at]]
    if grants:
        first = min(order.index(at) for at in grants)
        waiting = [at for at in order[:first] if events["time"][at] >= since]
        order = (
            [at for at in order[:first] if at not in waiting] + order[first : first + 1] + waiting + order[first + 1 :]
        )
    arriving = redelivered(events[order], random)
    profile, expected = folded(arriving, cuts(arriving, random)), expected_profile(events)
    for field in (*REMAINS, *ITEM_RINGS, "channel", "channel_time", "last_seen"):
        np.testing.assert_array_equal(profile[field], expected[field], err_msg=field)
    assert item_tables(profile) == item_tables(expected)


def test_refusing_consent_erases_behaviour_and_stops_collecting_it() -> None:
    profile = folded(
        rows(row(CLICK, "a", NOW, locale=2), row(CONSENT, time=NOW + 1, consent=-1), row(CLICK, "b", NOW + 2))
    )
    assert {name for name in PROFILE.names or () if np.any(profile[name])} == {
        name for name in REMAINS if not name.startswith("transaction")
    }
    back = folded(
        rows(row(CONSENT, time=NOW, consent=-1), row(CONSENT, time=NOW + 1, consent=1), row(CLICK, "b", NOW + 2))
    )
    assert back["consent"] == 1
    assert back["recent_item"][-1] == key64("b")


@pytest.mark.parametrize(("refused", "granted", "consent"), [(5.5, 5.25, -1), (5.25, 5.5, 1), (5.5, 5.5, -1)])
def test_the_newest_statement_holds_within_a_second_and_a_refusal_wins_ties(
    refused: float, granted: float, consent: int
) -> None:
    statements = [row(CONSENT, time=NOW + refused, consent=-1), row(CLICK, "a", NOW + granted, consent=1)]
    for arriving in (statements, statements[::-1]):
        assert folded(rows(*arriving))["consent"] == consent


def test_the_newest_locale_and_channel_hold_within_a_second_and_ties_have_one_winner() -> None:
    newest = [row(HOME, time=NOW + 0.25, locale=2, channel=3), row(HOME, time=NOW + 0.5, locale=1, channel=1)]
    ties = [row(HOME, time=NOW, locale=1, channel=2), row(HOME, time=NOW, locale=2, channel=1)]
    for events, locale, channel in ((newest, 1, 1), (ties, 2, 2)):
        for arriving in (events, events[::-1]):
            profile = folded(rows(*arriving))
            assert (profile["locale"], profile["channel"]) == (locale, channel)


def test_an_event_in_a_refused_period_is_not_kept_however_late_it_arrives() -> None:
    statements = rows(row(CONSENT, time=NOW + 3, consent=-1), row(CONSENT, time=NOW + 7, consent=1))
    late = rows(row(CLICK, "before", NOW + 1), row(CLICK, "between", NOW + 5), row(CLICK, "after", NOW + 9))
    profile = folded(rows(statements, late))
    assert [int(item) for item in profile["recent_item"] if item] == [key64("after")]
    assert [bool(is_covered(profile, NOW + second)) for second in (3, 6.5, 7, 9)] == [False, False, True, True]
    run = rows(statements, late)
    run["record"] = np.arange(len(run))
    outcomes, activity = fold_with_activity(blank_profiles(1), np.zeros(5, np.int32), run, np.arange(5))
    assert (outcomes & FOLDED).all()
    assert not len(activity), "on the day of a grant after a refusal it is not known what was counted before"


def test_a_refusal_between_known_grants_keeps_what_the_newest_covers() -> None:
    granted = rows(*(row(CLICK, f"i{n}", NOW + n, consent=1) for n in (1, 5, 9)))
    profile = folded(rows(granted, row(CONSENT, time=NOW + 3, consent=-1)))
    assert (profile["consent"], profile["consent_time"], profile["refused_time"]) == (1, NOW + 9, NOW + 3)
    assert [int(item) for item in profile["recent_item"] if item] == [key64("i9")]
    assert profile["first_seen"] == profile["last_seen"] == NOW + 9
    assert profile["events"] == 0 and not profile["activity"].any()
