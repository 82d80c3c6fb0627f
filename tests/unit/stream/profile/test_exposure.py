"""Serving state: fatigue of shown items, the next page, and when a shopper was last seen."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from stream.events.decode import ADD, BUY, CLICK, CONSENT, HOME, VIEW
from stream.ids import key32
from stream.profile.exposure import FATIGUE_HALF_LIFE_S, SERVING, apply_feedback, next_page, touch
from stream.profile.row import blank_profiles
from tests.harness.events import NOW, folded, row, rows, shopper_events

SHOWN = ("i0", "i1", "i2")


def serving_with_page() -> np.ndarray:
    serving = np.zeros(1, SERVING)
    serving["shown_item"][0, : len(SHOWN)] = [key32(item) for item in SHOWN]
    return serving


def with_feedback(events: np.ndarray) -> dict[int, tuple[float, int]]:
    """Oracle of `apply_feedback`: decayed count and time of each item of SHOWN that has fatigue."""
    fatigue: dict[int, tuple[float, int]] = {}
    for event in events:
        if event["kind"] == HOME:
            for item in map(key32, SHOWN):
                count, at = fatigue.get(item, (0.0, int(event["time"])))
                age = max(0.0, event["time"] - at)
                decayed = float(np.float32(count * 2.0 ** -(age / FATIGUE_HALF_LIFE_S) + 1.0))
                fatigue[item] = decayed, max(at, int(event["time"]))
        elif event["kind"] in (VIEW, CLICK, ADD, BUY):
            fatigue.pop(int(event["item"].astype(np.int32)), None)
    return fatigue


@pytest.mark.slow
@given(shopper_events())
@settings(deadline=None)
def test_homepage_views_add_fatigue_and_interactions_clear_it(events: np.ndarray) -> None:
    serving = serving_with_page()
    apply_feedback(serving, blank_profiles(1), np.zeros(len(events), np.int32), events, np.ones(len(events), np.bool_))
    found = zip(serving["fatigue_item"][0], serving["fatigue_count"][0], serving["fatigue_time"][0], strict=True)
    assert {int(item): (float(count), int(at)) for item, count, at in found if item} == with_feedback(events)


def test_duplicates_do_not_add_fatigue() -> None:
    serving = serving_with_page()
    apply_feedback(serving, blank_profiles(1), np.zeros(1, np.int32), row(HOME), np.zeros(1, np.bool_))
    assert not serving["fatigue_item"].any()


def test_a_refusal_clears_exposure_and_uncovered_events_add_none() -> None:
    serving = serving_with_page()
    events = rows(
        row(HOME, time=NOW), row(CONSENT, time=NOW + 5, consent=1), row(CONSENT, time=NOW + 3, consent=-1),
        row(HOME, time=NOW + 6),
    )  # fmt: skip
    profiles = np.array([folded(events)])
    apply_feedback(serving, profiles, np.zeros(4, np.int32), events, np.ones(4, np.bool_))
    assert not serving["fatigue_item"].any() and not serving["shown_item"].any()
    serving = serving_with_page()
    gap = row(HOME, time=NOW + 4)
    apply_feedback(serving, profiles, np.zeros(1, np.int32), gap, np.ones(1, np.bool_))
    assert not serving["fatigue_item"].any() and serving["shown_item"].any()


def test_the_next_page_settles_an_owed_page_and_counts_a_version() -> None:
    serving, profiles = serving_with_page(), blank_profiles(1)
    serving["version"], serving["owed_time"], serving["owed_id"] = 4, NOW, 1
    shopper = np.array([77], np.int64)
    now, personal, locales, _ = next_page(serving, profiles, shopper, [NOW + 5], [0.0], NOW + 6, 0.0, 2)
    assert (now.tolist(), personal.tolist(), locales.tolist()) == ([NOW + 5], [False], [2])
    assert (serving["version"][0], serving["owed_time"][0], serving["paged_at"][0]) == (5, 0.0, NOW + 6)
    assert not serving["owed_id"].any()


def touched(consent: int) -> tuple[Any, ...]:
    """Clock, time last seen and newest event after three events of one shopper."""
    serving, profiles, newest = np.zeros(1, SERVING), blank_profiles(1), np.zeros(1, np.int64)
    profiles["consent"] = consent
    events = rows(row(CLICK, "a", NOW), row(CLICK, "b", NOW + 9), row(CLICK, "c", NOW + 4))
    clock = touch(serving, profiles, np.zeros(3, np.int32), events, np.ones(3, np.bool_), NOW - 1, newest)
    return clock, int(serving["touched"][0]), int(newest[0])


def test_a_shopper_is_last_seen_at_the_clock_of_their_partition() -> None:
    assert touched(consent=0) == (NOW + 9, NOW + 9, 1)


def test_a_shopper_who_refuses_consent_leaves_no_time() -> None:
    assert touched(consent=-1) == (NOW + 9, 0, 1)
