"""What a profile recognizes as a redelivery: event ids, transactions, and events older than its memory."""

from typing import Any

import numpy as np
import pytest

from stream.events.decode import BUY, CLICK, CONSENT, HOME, REFUND, decode_run
from stream.ids import key64
from stream.items.activity import REPEATED, fold_with_activity
from stream.profile.fold import (
    DUPLICATE,
    FOLDED,
    TOO_LATE,
    TRANSACTION_FORGOTTEN,
    shortest_id_window,
)
from stream.profile.row import EVENT_IDS, TRANSACTIONS, blank_profiles
from tests.harness.events import NOW, folded, record, row, rows


def decoded(*records: tuple[bytes, bytes]) -> np.ndarray:
    """EVENT rows of purchases and refunds."""
    run = decode_run([v for _, v in records], [k for k, _ in records], [NOW + 9999] * len(records), "purchases")
    assert not run.rejects
    return run.rows


def purchase(id: str, transaction: str, *items: str, time: float = NOW, type: str = "purchase") -> Any:
    return record(type, "u1", id, time, transaction_id=transaction, items=[{"item_id": item} for item in items])


def outcomes_of(profiles: np.ndarray, *events: np.ndarray, refuses_late: bool = True) -> list[int]:
    run = rows(*events)
    run["record"] = np.arange(len(run))
    offsets = np.arange(len(run))
    outcomes, _ = fold_with_activity(profiles, np.zeros(len(run), np.int32), run, offsets, refuses_late)
    found: list[int] = (outcomes & ~np.uint8(REPEATED)).tolist()
    return found


def views(n: int, start: float = NOW + 1) -> np.ndarray:
    return rows(*(row(HOME, time=start + k, id=f"view{start}-{k}") for k in range(n)))


def test_a_purchase_redelivered_after_150_events_counts_once() -> None:
    bought = decoded(purchase("e1", "t1", "lamp", "mug"))
    profile = folded(rows(bought, views(150), bought))
    assert profile["kinds"][BUY] == 1 and np.count_nonzero(profile["bought_item"]) == 2


def test_a_retry_with_a_new_id_and_the_same_transaction_counts_once() -> None:
    profile = folded(decoded(purchase("e1", "t1", "lamp", "mug"), purchase("e2", "t1", "lamp", "mug", time=NOW + 5)))
    assert profile["kinds"][BUY] == 1 and np.count_nonzero(profile["bought_item"]) == 2
    both = folded(decoded(purchase("e1", "t1", "lamp"), purchase("e2", "t2", "lamp", time=NOW + 5)))
    assert both["kinds"][BUY] == 2


def test_all_parts_of_a_purchase_share_its_transaction() -> None:
    parts = decoded(purchase("e1", "t1", "a", "b", "c"))
    assert len(set(parts["transaction"].tolist())) == 1 and parts["transaction"].all()
    profiles = blank_profiles(1)
    assert outcomes_of(profiles, parts) == [FOLDED] * 3
    assert outcomes_of(profiles, decoded(purchase("e2", "t1", "a", "b", "c"))) == [DUPLICATE] * 3


def test_refunds_are_not_their_purchase_and_parts_of_a_purchase_are_refunded_apart() -> None:
    events = decoded(
        purchase("e1", "t1", "lamp", "mug"), purchase("r1", "t1", "lamp", time=NOW + 5, type="refund"),
        purchase("r2", "t1", "lamp", time=NOW + 6, type="refund"),
        purchase("r3", "t1", "mug", time=NOW + 7, type="refund"),
    )  # fmt: skip
    profiles = blank_profiles(1)
    assert outcomes_of(profiles, events) == [FOLDED, FOLDED, FOLDED, DUPLICATE, FOLDED]
    assert profiles["kinds"][0, REFUND] == 2 and not profiles["bought_item"].any()
    unnamed = decoded(record("refund", "u1", "r4", items=[{"item_id": "a"}]))
    assert not unnamed["transaction"].any()


def test_transactions_are_remembered_by_event_time_and_a_full_ring_forgets_the_oldest() -> None:
    sold = rows(*(row(BUY, "a", NOW + n, id=f"b{n}", transaction=n + 1) for n in range(TRANSACTIONS + 2)))
    forward, backward = folded(sold), folded(sold[::-1])
    for profile in (forward, backward):
        assert profile["transaction"].tolist() == list(range(3, TRANSACTIONS + 3))
        assert profile["transaction_time"].tolist() == [NOW + n for n in range(2, TRANSACTIONS + 2)]
    assert outcomes_of(blank_profiles(1), sold) == [FOLDED] * TRANSACTIONS + [FOLDED | TRANSACTION_FORGOTTEN] * 2


@pytest.mark.parametrize(("refuses_late", "outcome"), [(True, TOO_LATE), (False, FOLDED)])
def test_an_event_older_than_all_ids_of_a_full_window_is_refused_or_folded(refuses_late: bool, outcome: int) -> None:
    profiles = blank_profiles(1)
    outcomes_of(profiles, views(EVENT_IDS - 1))
    assert shortest_id_window(profiles) == np.inf
    assert outcomes_of(profiles, row(CLICK, "a", NOW)) == [FOLDED], "the window is not full yet"
    before = profiles.copy()
    assert shortest_id_window(profiles) == EVENT_IDS - 1
    assert outcomes_of(profiles, row(CLICK, "b", NOW - 1), refuses_late=refuses_late) == [outcome]
    assert (profiles == before).all() == refuses_late
    assert outcomes_of(profiles, row(CLICK, "a", NOW)) == [DUPLICATE], "the oldest id of the window is still known"


def test_late_purchases_and_statements_on_consent_are_accepted() -> None:
    profiles = blank_profiles(1)
    outcomes_of(profiles, views(EVENT_IDS))
    assert outcomes_of(profiles, row(BUY, "a", NOW - 9, transaction=7)) == [FOLDED], "its transaction is new"
    assert outcomes_of(profiles, row(BUY, "a", NOW - 9, transaction=7)) == [DUPLICATE]
    assert outcomes_of(profiles, row(CONSENT, time=NOW - 8, consent=1)) == [FOLDED]
    assert outcomes_of(profiles, row(CLICK, "a", NOW - 7, consent=1)) == [TOO_LATE], "it states what is known"
    assert outcomes_of(profiles, row(CLICK, "a", NOW - 6, consent=-1)) == [FOLDED]
    assert profiles["consent"] == -1
    many = rows(*(row(BUY, "a", NOW + n, transaction=100 + n) for n in range(TRANSACTIONS)))
    outcomes_of(profiles, many)
    assert outcomes_of(profiles, row(BUY, "a", NOW - 10, transaction=8)) == [TOO_LATE], (
        "its transaction may be forgotten"
    )


def test_a_transaction_is_the_hash_of_its_kind_and_id() -> None:
    [sold] = decoded(purchase("e1", "t1", "a"))["transaction"].tolist()
    assert sold == key64("purchase\0t1")
