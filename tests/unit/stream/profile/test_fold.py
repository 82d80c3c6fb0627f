"""The profile of a shopper: its contents do not depend on the order in which events arrive."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events.decode import ADD, BUY, CLICK, HIDE, HOME, REFUND, REMOVE, SEARCH, VIEW
from stream.ids import key32, key64
from stream.profile.fold import fold, is_hidden
from stream.profile.row import ACTIVITIES, EVENT_IDS, HALF_LIVES, HIDDEN_ITEMS, blank_profiles, describe
from tests.harness.events import NOW, folded, golden_events, row, rows, shopper_events
from tests.harness.profiles import assert_equal_profiles

INTEREST = {VIEW: 1.0, CLICK: 1.0, ADD: 2.0, BUY: 3.0}
COUNTED = {VIEW: 0, CLICK: 1, SEARCH: 2, ADD: 3, BUY: 4}


def decayed_sum(events: np.ndarray, half_life: float, weight: Any) -> float:
    """Oracle of every counter: each event is weighted by its own age at the time of the newest event."""
    if not len(events):
        return 0.0
    now = events["time"].max()
    return float(sum(weight(e) * 2.0 ** -((now - e["time"]) / half_life) for e in events))


@pytest.mark.slow
@given(shopper_events())
@settings(deadline=None)
def test_counters_are_sums_of_decayed_events(events: np.ndarray) -> None:
    profile = folded(events)
    counted = events[np.isin(events["kind"], list(COUNTED))]
    for kind, at in COUNTED.items():
        for life, half_life in enumerate(HALF_LIVES):
            expected = decayed_sum(counted, half_life, lambda e, kind=kind: float(e["kind"] == kind))
            assert profile["activity"][at, life] == pytest.approx(expected, rel=1e-9), (ACTIVITIES[at], half_life)
    items = events[np.isin(events["kind"], list(INTEREST))]
    for field in ("category", "brand"):
        for key in np.unique(items[field][items[field] != 0]):
            at = int(np.flatnonzero(profile[field] == key)[0])
            expected = decayed_sum(
                items, HALF_LIVES[1], lambda e, f=field, k=key: INTEREST[int(e["kind"])] * (e[f] == k)
            )
            assert profile[f"{field}_weight"][at, 1] == pytest.approx(expected, rel=1e-9)
    searches = events[events["kind"] == SEARCH]
    for word in np.unique(searches["word"]):
        at = int(np.flatnonzero(profile["word"] == word)[0])
        expected = decayed_sum(searches, HALF_LIVES[1], lambda e, w=word: float(e["word"] == w))
        assert profile["word_weight"][at] == pytest.approx(expected, rel=1e-9)
    priced = items[items["price"] > 0]
    assert profile["price_weight"] == pytest.approx(decayed_sum(priced, HALF_LIVES[2], lambda e: 1.0), rel=1e-9)
    assert profile["price_sum"] == pytest.approx(
        decayed_sum(priced, HALF_LIVES[2], lambda e: np.log(float(e["price"]))), rel=1e-9
    )
    assert profile["events"] == len(events)
    assert profile["first_seen"] == events["time"].min()
    assert profile["last_seen"] == events["time"].max()


@pytest.mark.slow
@given(shopper_events(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_arrival_does_not_change_a_profile(events: np.ndarray, random: Any) -> None:
    order = list(range(len(events)))
    random.shuffle(order)
    assert_equal_profiles(folded(events), folded(events[order]))


@pytest.mark.slow
@given(shopper_events(max_size=30), st.lists(st.integers(0, 30), max_size=4), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_redelivery_in_any_batches_does_not_change_a_byte(events: np.ndarray, splits: list[int], random: Any) -> None:
    again = [events[: random.randint(0, len(events))] for _ in range(2)]
    once = folded(events)
    twice = folded(np.concatenate([events, *again]), tuple(sorted(splits)))
    assert once.tobytes() == twice.tobytes()


def test_rings_contain_the_newest_interactions_by_event_time() -> None:
    events = rows(*(row(CLICK, f"i{n}", NOW + n) for n in range(50)))
    for order in (slice(None), slice(None, None, -1)):
        profile = folded(events[order])
        assert profile["recent_item"].tolist() == [key64(f"i{n}") for n in range(18, 50)]
        assert profile["recent_time"].tolist() == [NOW + n for n in range(18, 50)]


def test_an_event_older_than_the_full_id_ring_is_folded_but_not_stored() -> None:
    newer = rows(*(row(HOME, time=NOW + n, id=f"e{n}") for n in range(EVENT_IDS)))
    profile = folded(rows(newer, row(HOME, time=NOW - 5, id="old")))
    assert profile["events"] == EVENT_IDS + 1
    assert profile["id_time"].min() == NOW


def test_a_purchase_empties_the_cart_and_a_refund_removes_the_purchase() -> None:
    bought = rows(row(ADD, "a", NOW, quantity=2), row(ADD, "b", NOW + 1), row(BUY, "a", NOW + 2))
    profile = folded(bought)
    in_cart = {int(i) for i, q in zip(profile["cart_item"], profile["cart_quantity"], strict=True) if i and q}
    assert in_cart == {key64("b")}
    assert key64("a") in profile["bought_item"]
    assert key64("a") not in folded(rows(bought, row(REFUND, "a", NOW + 3)))["bought_item"]


def test_a_late_addition_does_not_undo_a_later_removal() -> None:
    profile = folded(rows(row(REMOVE, "a", NOW + 9), row(ADD, "a", NOW)))
    assert not profile["cart_quantity"].any()


def test_the_last_twenty_hidden_items_stay_hidden() -> None:
    profile = folded(rows(*(row(HIDE, f"i{n}", NOW + n) for n in range(HIDDEN_ITEMS + 1))))
    assert not is_hidden(profile, key64("i0"))
    assert all(is_hidden(profile, key64(f"i{n}")) for n in range(1, HIDDEN_ITEMS + 1))


def test_all_parts_of_a_duplicate_are_ignored_and_an_event_counts_once() -> None:
    parts = rows(*(row(BUY, f"i{n}", NOW, id="e", part=n) for n in range(3)))
    profile, fresh = blank_profiles(1), []
    for _ in range(2):
        fresh.append(fold(profile, np.zeros(3, np.int32), parts).tolist())
    assert fresh == [[True] * 3, [False] * 3]
    assert profile[0]["events"] == 1
    assert np.count_nonzero(profile[0]["bought_item"]) == 3


def test_a_full_table_evicts_its_weakest_key() -> None:
    strong = [row(CLICK, "x", NOW + n, id=f"{n}", category=f"c{n % 16}") for n in range(48)]
    profile = folded(rows(row(CLICK, "x", NOW - 1, category="weak"), *strong))
    assert key32("weak") not in profile["category"]
    assert set(profile["category"].tolist()) == {key32(f"c{n}") for n in range(16)}


def test_a_description_is_json_with_names_for_known_hashes() -> None:
    description = describe(folded(golden_events()), {key64("lamp"): "lamp", key32("lighting"): "lighting"})
    assert description["recent"][0][:2] == ["lamp", "view_item"]
    assert description["cart"] == [["lamp", 2, int(NOW + 120)]]
    assert description["categories"]["lighting"][0] > 0
    assert any(name.startswith("#") for name, _ in description["bought"])
    assert json.loads(json.dumps(description, sort_keys=True)) == description
