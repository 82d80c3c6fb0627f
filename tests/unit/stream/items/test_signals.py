"""Signals of items: transitions and co-visits of sessions, redelivery, expiry and the changelog."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events.decode import ADD, CLICK, HOME, VIEW
from stream.ids import key64
from stream.items.activity import (
    ACTIVITY,
    MAX_STEPS,
    decode_activities,
    decode_activity,
    encode_activity,
    fold_with_activity,
    owner_partitions,
    split_activity,
)
from stream.items.signals import HALF_LIVES, MAX_NEIGHBOURS, ItemTable, Signals
from stream.profile.row import blank_profiles
from tests.harness.events import NOW, row, rows
from tests.harness.shop import catalog_of, item, signals_of, view_activity


def activity_of(*events: np.ndarray) -> np.ndarray:
    """ACTIVITY of events of one shopper, in order."""
    run = rows(*events)
    run["record"] = np.arange(len(run))
    return fold_with_activity(blank_profiles(1), np.zeros(len(run), np.int32), run, np.arange(len(run)))[1]


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=9), min_size=1, max_size=6))
@settings(deadline=None)
def test_transitions_and_co_visits_equal_those_of_the_sessions(sessions: list[list[int]]) -> None:
    catalog = catalog_of(7)
    signals = signals_of(catalog, [[f"i{k}" for k in session] for session in sessions], NOW)
    follows: dict[tuple[int, int], float] = defaultdict(float)
    together: dict[tuple[int, int], float] = defaultdict(float)
    seen: dict[int, float] = defaultdict(float)
    for session in sessions:
        for k in set(session):
            seen[k] += 1
            for other in set(session) - {k}:
                together[k, other] += 1
        counted: set[tuple[int, int]] = set()  # a shopper's pair counts once, at its fewest steps
        for y, j in enumerate(session):
            for x in range(y - 1, max(0, y - MAX_STEPS) - 1, -1):
                if session[x] != j and (session[x], j) not in counted:
                    follows[session[x], j] += 1 / (y - x)
                counted.add((session[x], j))
    for k in seen:
        s = signals.rows[catalog.index.get(key64(f"i{k}"))]
        near = {
            int(i): (float(t), float(c))
            for i, t, c in zip(s["near_item"], s["near_next"], s["near_visit"], strict=True)
            if i
        }
        assert s["seen"] == pytest.approx(seen[k], rel=1e-3)
        for other in range(7):
            got = near.get(key64(f"i{other}"), (0.0, 0.0))
            assert got[0] == pytest.approx(follows[k, other], rel=1e-3, abs=1e-6), (k, other)
            assert got[1] == pytest.approx(together[k, other], rel=1e-3, abs=1e-6), (k, other)


def test_half_an_hour_without_activity_ends_a_session() -> None:
    assert len(activity_of(row(CLICK, "a", NOW), row(CLICK, "b", NOW + 1800))) == 4
    assert len(activity_of(row(CLICK, "a", NOW), row(CLICK, "b", NOW + 1801))) == 2


def test_a_click_its_view_and_its_cart_addition_are_one_step() -> None:
    acts = activity_of(row(CLICK, "a", NOW), row(VIEW, "a", NOW + 1), row(ADD, "a", NOW + 5), row(CLICK, "b", NOW + 9))
    pairs = acts[acts["other"] != 0]
    assert {(int(p["item"]), int(p["other"]), int(p["step"])) for p in pairs} == {
        (key64("a"), key64("b"), 1),
        (key64("b"), key64("a"), 1),
    }


def test_searches_and_page_views_cause_no_item_activity() -> None:
    assert len(activity_of(row(HOME, time=NOW), row(4, time=NOW, word="x"))) == 0


def test_a_shopper_without_consent_causes_no_activity() -> None:
    assert len(activity_of(row(10, time=NOW, consent=-1), row(CLICK, "a", NOW + 1))) == 0


def test_redelivered_activity_is_counted_once() -> None:
    events = [row(CLICK, f"i{k % 3}", NOW + k, id=str(k)) for k in range(20)]
    acts = activity_of(*events)
    once, again = ItemTable(), ItemTable()
    once.fold("clicks", 0, acts)
    again.fold("clicks", 0, acts[acts["offset"] < 9])
    again.fold("clicks", 0, acts[acts["offset"] < 14])  # after a crash the run is repeated, and is longer now
    again.fold("clicks", 0, acts)
    assert again.rows[: len(again)].tobytes() == once.rows[: len(once)].tobytes()
    assert again.fold("clicks", 1, acts), "another source has its own offsets"


def test_a_table_is_restored_from_its_changelog() -> None:
    table, copy = ItemTable(), ItemTable()
    acts = activity_of(*(row(CLICK, f"i{k % 5}", NOW + k, id=str(k)) for k in range(30)))
    copy.apply(table.records(table.fold("clicks", 3, acts)))
    assert copy.rows[: len(copy)].tobytes() == table.rows[: len(table)].tobytes()
    assert not copy.fold("clicks", 3, acts)


def test_an_item_with_many_neighbours_keeps_the_strongest() -> None:
    sessions = (
        [["hub", f"n{k}"] for k in range(80)]
        + [["hub", "friend"]] * 5
        + [["hub", f"m{k}"] for k in range(MAX_NEIGHBOURS)]
    )
    catalog = catalog_of(0)
    catalog.apply([item("hub")])
    signals = signals_of(catalog, sessions)
    near = signals.rows[0]["near_item"]
    assert key64("friend") in near
    assert np.count_nonzero(near) == MAX_NEIGHBOURS


def test_values_that_are_not_activity_are_rejected() -> None:
    acts = activity_of(row(CLICK, "a"))
    good = encode_activity("clicks", 5, acts)
    assert decode_activity(good)[:2] == ("clicks", 5)
    bad = acts.copy()
    bad["kind"] = 9
    for value in (None, b"", b"\x01", good[:-1], good + b"x", b"\x07" + good[1:], encode_activity("clicks", 5, bad)):
        with pytest.raises(ValueError):
            decode_activity(value)
    assert len(decode_activity(encode_activity("clicks", 0, np.zeros(0, ACTIVITY)))[2]) == 0


def test_a_batch_of_records_counts_like_single_records() -> None:
    acts = activity_of(*(row(CLICK, f"i{k % 5}", NOW + k, id=str(k)) for k in range(30)))
    unknown, backwards = acts[:1].copy(), acts[:1].copy()
    unknown["kind"], backwards["step"] = 9, -1
    stretches = [("clicks", acts[:40]), ("purchases", acts[10:60]), ("clicks", acts[20:90]), ("clicks", acts[90:])]
    good = [encode_activity(topic, 2, part) for topic, part in stretches]
    # The third valid record is delivered twice, as after a crash.
    bad = {0: b"x", 3: encode_activity("clicks", 2, unknown), 5: encode_activity("clicks", 2, backwards), 7: None}
    values = [bad[0], good[0], good[1], bad[3], good[2], bad[5], good[2], bad[7], good[3]]
    activity, wrong = decode_activities(values)
    assert [at for at, _ in wrong] == sorted(bad)
    for at, problem in wrong:
        with pytest.raises(ValueError, match=problem):
            decode_activity(values[at])
    batch, single = ItemTable(), ItemTable()
    changed = batch.fold_all(activity)
    one_by_one = [single.fold(*decode_activity(value)) for at, value in enumerate(values) if at not in bad]
    assert changed == set().union(*one_by_one) and len(changed) > 3
    assert batch.rows.tobytes() == single.rows.tobytes()
    assert (batch.sources, batch.clock) == (single.sources, single.clock)
    assert batch.fold_all(activity) == set(), "everything is counted already"
    assert batch.fold_all(decode_activities([])[0]) == set()


def test_items_spread_evenly_over_owner_partitions() -> None:
    owners = owner_partitions(np.array([key64(str(k)) for k in range(8000)]), 8)
    assert np.bincount(owners, minlength=8).min() > 800


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=80), st.integers(1, 20))
@settings(deadline=None)
def test_activity_is_split_only_between_source_records(made: list[tuple[int, int]], most: int) -> None:
    acts = np.zeros(len(made), ACTIVITY)
    acts["offset"] = np.sort([offset for offset, _ in made])
    acts["item"] = [key64(f"i{item}") for _, item in made]
    acts["time"], acts["kind"], acts["event"], acts["first"] = NOW, 1, VIEW, 1
    parts = split_activity(acts, most)
    assert np.concatenate(parts).tobytes() == acts.tobytes()
    seen: set[int] = set()
    for part in parts:
        offsets = set(part["offset"].tolist())
        assert not seen & offsets, "rows of one record stay in one part"
        seen |= offsets
    whole, piecewise = ItemTable(), ItemTable()
    whole.fold("clicks", 0, acts)
    for part in parts:
        piecewise.fold("clicks", 0, part)
    assert piecewise.rows.tobytes() == whole.rows.tobytes() and piecewise.sources == whole.sources


def test_expired_items_leave_the_table_the_changelog_and_the_readers() -> None:
    table, restored = ItemTable(), ItemTable()
    catalog = catalog_of(600)
    signals = Signals(catalog)

    def publish(records: list[tuple[bytes, bytes | None]]) -> None:
        signals.apply(records)
        restored.apply(records)

    for k in range(600):
        publish([*table.records(table.fold("clicks", 0, view_activity(f"i{k}", NOW + k, k)))])
    assert (len(table), signals.count) == (600, 600)
    expired = 0
    for k in range(20):
        changed = table.records(
            table.fold("clicks", 0, view_activity("i7", NOW + 1000 + HALF_LIVES.retention_s + k, 1000 + k))
        )
        tombstones = table.sweep()
        assert len(tombstones) <= 64
        expired += len(tombstones)
        publish([*changed, *tombstones])
    assert (expired, len(table), signals.count) == (599, 1, 1)
    assert len(restored) == 1 and restored.clock == table.clock
    assert len(table.rows) <= 256, "the memory of deleted rows is freed"
    other, kept = catalog.index.get(key64("i9")), catalog.index.get(key64("i7"))
    assert not signals.summaries[other]["known"] and signals.seen[other] == 0 and signals.rows[other]["item"] == 0
    assert signals.summaries[kept]["known"] and signals.seen[kept] > 0
    publish([*table.records(table.fold("clicks", 0, view_activity("i9", NOW + 2000 + HALF_LIVES.retention_s, 5000)))])
    assert signals.summaries[other]["known"] and len(restored) == len(table) == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2)), min_size=1, max_size=40), st.integers(1, 8))
@settings(deadline=None)
def test_signals_do_not_depend_on_when_the_sweep_runs(made: list[tuple[int, float]], every: int) -> None:
    never, often = ItemTable(), ItemTable()
    time = NOW
    for k, (item_number, gap) in enumerate(made):
        time += gap * HALF_LIVES.retention_s * 0.7
        for table in (never, often):
            table.fold("clicks", 0, view_activity(f"i{item_number}", time, k))
        if k % every == 0:
            often.sweep(2)
    living = [
        {
            int(r["item"]): r.tobytes()
            for r in table.rows
            if r["item"] and table.clock - r["time"] <= HALF_LIVES.retention_s
        }
        for table in (never, often)
    ]
    assert living[0] == living[1]
