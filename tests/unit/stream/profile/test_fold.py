"""phi(U): what a profile keeps of behaviour, whatever the order that it arrives in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events import ADD, BUY, CLICK, CONSENT, HIDE, HOME, REFUND, REMOVE, SEARCH, VIEW
from stream.ids import key32, key64
from stream.profile.codec import decode_record, decode_records, encode_records, owing_pages, touched_at
from stream.profile.exposure import SERVING, OLD_SERVING_DTYPES, SERVING_VERSION
from stream.profile.fold import ACTIVITIES, HIDDEN, SEEN_IDS, fold, is_hidden
from stream.profile.row import HALF_LIVES
from stream.profile.row import describe
from stream.profile.row import blank_profiles
from stream.profile.row import PROFILE_VERSION
from stream.profile.row import PROFILE
from stream.row_codec import COMPACT, pack, unpack
from tests.harness.events import NOW, behaviour, row, rows

GOLDEN = Path(__file__).parents[2] / "golden"
INTEREST = {VIEW: 1.0, CLICK: 1.0, ADD: 2.0, BUY: 3.0}
COUNTED = {VIEW: 0, CLICK: 1, SEARCH: 2, ADD: 3, BUY: 4}


def folded(events: np.ndarray, splits: tuple[int, ...] = ()) -> Any:
    """The profile of one shopper, its events folded in as many runs as `splits` make."""
    profile = blank_profiles(1)
    for part in np.split(events, splits):
        fold(profile, np.zeros(len(part), np.int32), part)
    return profile[0]


def decayed(events: np.ndarray, half_life: float, weight: Any) -> float:
    """The oracle of every counter: each event by its own age at the newest event."""
    if not len(events):
        return 0.0
    now = events["time"].max()
    return float(sum(weight(e) * 2.0 ** -((now - e["time"]) / half_life) for e in events))


@given(behaviour())
@settings(max_examples=90, deadline=None)
def test_counters_are_sums_of_decayed_events(events: np.ndarray) -> None:
    profile = folded(events)
    counted = events[np.isin(events["kind"], list(COUNTED))]
    for kind, at in COUNTED.items():
        for life, half_life in enumerate(HALF_LIVES):
            expected = decayed(counted, half_life, lambda e, kind=kind: float(e["kind"] == kind))
            assert profile["activity"][at, life] == pytest.approx(expected, rel=1e-9), (ACTIVITIES[at], half_life)
    items = events[np.isin(events["kind"], list(INTEREST))]
    for field in ("category", "brand"):
        for key in np.unique(items[field][items[field] != 0]):
            at = int(np.flatnonzero(profile[field] == key)[0])
            expected = decayed(items, HALF_LIVES[1], lambda e, f=field, k=key: INTEREST[int(e["kind"])] * (e[f] == k))
            assert profile[f"{field}_weight"][at, 1] == pytest.approx(expected, rel=1e-9)
    searches = events[events["kind"] == SEARCH]
    for word in np.unique(searches["word"]):
        at = int(np.flatnonzero(profile["word"] == word)[0])
        expected = decayed(searches, HALF_LIVES[1], lambda e, w=word: float(e["word"] == w))
        assert profile["word_weight"][at] == pytest.approx(expected, rel=1e-9)
    priced = items[items["price"] > 0]
    assert profile["price_weight"] == pytest.approx(decayed(priced, HALF_LIVES[2], lambda e: 1.0), rel=1e-9)
    assert profile["price_sum"] == pytest.approx(
        decayed(priced, HALF_LIVES[2], lambda e: np.log(float(e["price"]))), rel=1e-9
    )
    assert profile["events"] == len(events)
    assert profile["first_seen"] == events["time"].min()
    assert profile["last_seen"] == events["time"].max()


@given(behaviour(), st.randoms(use_true_random=False))
@settings(max_examples=90, deadline=None)
def test_a_profile_forgets_the_order_of_arrival(events: np.ndarray, random: Any) -> None:
    order = list(range(len(events)))
    random.shuffle(order)
    one, other = folded(events), folded(events[order])
    for field in PROFILE.names or ():
        if field in ("category", "brand", "word") or field.endswith("_weight") or field.startswith(("cart", "hidden")):
            continue  # unordered tables: compared below
        if PROFILE.fields is not None and PROFILE.fields[field][0].base.kind == "f" and not field.endswith("_time"):
            np.testing.assert_allclose(other[field], one[field], rtol=1e-9, atol=1e-30, err_msg=field)
        else:
            np.testing.assert_array_equal(other[field], one[field], err_msg=field)
    for field in ("category", "brand", "word"):
        pairs = [{int(k): w for k, w in zip(p[field], p[f"{field}_weight"], strict=True) if k} for p in (one, other)]
        assert pairs[0].keys() == pairs[1].keys()
        for key in pairs[0]:
            np.testing.assert_allclose(pairs[1][key], pairs[0][key], rtol=1e-9, atol=1e-30)
    for fields in (("cart_item", "cart_time", "cart_quantity"), ("hidden_item", "hidden_time")):
        sets = [sorted(zip(*(p[f].tolist() for f in fields), strict=True)) for p in (one, other)]
        assert sets[0] == sets[1]


@given(behaviour(max_size=30), st.lists(st.integers(0, 30), max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_redelivery_in_any_batches_changes_not_one_byte(events: np.ndarray, splits: list[int], random: Any) -> None:
    again = [events[: random.randint(0, len(events))] for _ in range(2)]
    once = folded(events)
    twice = folded(np.concatenate([events, *again]), tuple(sorted(splits)))
    assert once.tobytes() == twice.tobytes()


def test_rings_hold_the_newest_by_event_time() -> None:
    events = rows(*(row(CLICK, f"i{n}", NOW + n) for n in range(50)))
    for order in (slice(None), slice(None, None, -1)):
        profile = folded(events[order])
        assert profile["recent_item"].tolist() == [key64(f"i{n}") for n in range(18, 50)]
        assert profile["recent_time"].tolist() == [NOW + n for n in range(18, 50)]


def test_an_event_older_than_a_full_id_ring_is_folded_and_not_remembered() -> None:
    newer = rows(*(row(HOME, time=NOW + n, id=f"e{n}") for n in range(SEEN_IDS)))
    profile = folded(rows(newer, row(HOME, time=NOW - 5, id="old")))
    assert profile["events"] == SEEN_IDS + 1
    assert profile["id_time"].min() == NOW


def test_a_purchase_leaves_the_cart_and_enters_the_purchases_and_a_refund_takes_it_back() -> None:
    bought = rows(row(ADD, "a", NOW, quantity=2), row(ADD, "b", NOW + 1), row(BUY, "a", NOW + 2))
    profile = folded(bought)
    held = {int(i) for i, q in zip(profile["cart_item"], profile["cart_quantity"], strict=True) if i and q}
    assert held == {key64("b")}
    assert key64("a") in profile["bought_item"]
    assert key64("a") not in folded(rows(bought, row(REFUND, "a", NOW + 3)))["bought_item"]


def test_a_late_addition_does_not_undo_the_removal_that_followed_it() -> None:
    profile = folded(rows(row(REMOVE, "a", NOW + 9), row(ADD, "a", NOW)))
    assert not profile["cart_quantity"].any()


def test_a_hidden_item_stays_hidden_among_twenty() -> None:
    profile = folded(rows(*(row(HIDE, f"i{n}", NOW + n) for n in range(HIDDEN + 1))))
    assert not is_hidden(profile, key64("i0"))
    assert all(is_hidden(profile, key64(f"i{n}")) for n in range(1, HIDDEN + 1))


def test_every_part_of_a_duplicate_is_ignored_and_a_purchase_of_three_counts_once() -> None:
    parts = rows(*(row(BUY, f"i{n}", NOW, id="e", part=n) for n in range(3)))
    profile, fresh = blank_profiles(1), []
    for _ in range(2):
        fresh.append(fold(profile, np.zeros(3, np.int32), parts).tolist())
    assert fresh == [[True] * 3, [False] * 3]
    assert profile[0]["events"] == 1
    assert np.count_nonzero(profile[0]["bought_item"]) == 3


def test_a_refusal_erases_behaviour_and_keeps_none_until_consent_returns() -> None:
    profile = folded(
        rows(row(CLICK, "a", NOW, locale=2), row(CONSENT, time=NOW + 1, consent=-1), row(CLICK, "b", NOW + 2))
    )
    kept = {name for name in PROFILE.names or () if np.any(profile[name])}
    assert kept == {"consent", "locale", "locale_time", "id_time", "id_low", "id_high"}
    back = folded(
        rows(row(CONSENT, time=NOW, consent=-1), row(CONSENT, time=NOW + 1, consent=1), row(CLICK, "b", NOW + 2))
    )
    assert back["consent"] == 1
    assert back["recent_item"][-1] == key64("b")


def test_a_full_table_gives_up_its_weakest() -> None:
    strong = [row(CLICK, "x", NOW + n, id=f"{n}", category=f"c{n % 16}") for n in range(48)]
    profile = folded(rows(row(CLICK, "x", NOW - 1, category="weak"), *strong))
    assert key32("weak") not in profile["category"]
    assert set(profile["category"].tolist()) == {key32(f"c{n}") for n in range(16)}


@given(behaviour())
@settings(max_examples=100, deadline=None)
def test_a_packed_row_comes_back_bit_for_bit_in_at_most_4_kb(events: np.ndarray) -> None:
    profiles = np.array([folded(events), blank_profiles(1)[0], folded(events[:1])])
    blobs = pack(profiles, PROFILE_VERSION)
    assert unpack(blobs, PROFILE, PROFILE_VERSION).tobytes() == profiles.tobytes()
    assert max(map(len, blobs)) <= 4096


def test_the_fullest_row_fits_4_kb() -> None:
    full = np.random.default_rng(1).integers(1, 256, PROFILE.itemsize, np.uint8).view(PROFILE)
    assert len(pack(full, 1)[0]) <= 4096


def test_no_rows_are_no_bytes() -> None:
    assert pack(blank_profiles(0), PROFILE_VERSION) == []
    assert len(unpack([], PROFILE, PROFILE_VERSION)) == 0


def test_rows_of_another_version_and_torn_rows_are_refused_by_name() -> None:
    blob = pack(blank_profiles(1), PROFILE_VERSION)[0]
    with pytest.raises(ValueError, match="version 9"):
        unpack([b"\x09" + blob[1:]], PROFILE, PROFILE_VERSION)
    for torn in (blob[:-1], blob + b"\0", blob[:1]):
        with pytest.raises(ValueError, match="torn"):
            unpack([torn], PROFILE, PROFILE_VERSION)
    with pytest.raises(ValueError, match="none"):
        unpack([b""], PROFILE, PROFILE_VERSION)
    with pytest.raises(ValueError, match="says that its profile ends"):
        decode_record(b"\xff\xff12")


@given(st.lists(behaviour(), max_size=3), st.integers(1, 2**40))
@settings(max_examples=50, deadline=None)
def test_a_record_is_the_length_of_its_profile_the_profile_and_what_was_served(
    histories: list[np.ndarray], version: int
) -> None:
    profiles, serving = np.array([*map(folded, histories)], PROFILE), np.zeros(len(histories), SERVING)
    serving["version"], serving["fatigue_time"] = version, 3
    values = encode_records(profiles, serving)
    for value, one, other in zip(values, pack(profiles, PROFILE_VERSION), pack(serving, SERVING_VERSION), strict=True):
        assert value == len(one).to_bytes(2, "little") + one + other
        assert decode_record(value) == (one, other)
    read = decode_records([None, *values])
    assert read[0].tobytes() == blank_profiles(1).tobytes() + profiles.tobytes()
    assert read[1].tobytes() == bytes(SERVING.itemsize) + serving.tobytes()


def test_a_record_of_before_is_read_among_those_of_today_and_a_torn_one_is_refused_by_name() -> None:
    serving = np.zeros(1, SERVING)
    serving["version"] = 9
    [value] = encode_records(blank_profiles(1), serving)
    profile_blob, serving_blob = decode_record(value)
    before = np.zeros(1, OLD_SERVING_DTYPES[1])
    before["version"] = 8
    old = value[: -len(serving_blob)] + pack(before, 1)[0]
    assert decode_records([value, None, old])[1]["version"].tolist() == [9, 0, 8]
    for torn, why in (
        (value[:-1], "torn"),
        (value[:2] + b"\x09" + value[3:], "version 9"),
        (value[:1], "says that its profile ends"),
        (b"", "says that its profile ends"),
        (value[: 2 + len(profile_blob)], "version none"),
    ):
        with pytest.raises(ValueError, match=why):
            decode_records([value, torn])


def golden_events() -> np.ndarray:
    return rows(
        row(VIEW, "lamp", NOW, category="lighting", brand="Lumora", price=49.9, locale=2, channel=1),
        row(SEARCH, time=NOW + 60, word="brass"),
        row(ADD, "lamp", NOW + 120, quantity=2, price=49.9),
        row(BUY, "mug", NOW + 300, category="tableware", price=12.0),
        row(HIDE, "rug", NOW + 400),
    )


def test_todays_code_reads_the_rows_of_version_1() -> None:
    path = GOLDEN / "profile-1.bin"
    profile_blob, serving_blob = decode_record(path.read_bytes())
    profile = unpack([profile_blob], PROFILE, PROFILE_VERSION)[0]
    assert profile.tobytes() == folded(golden_events()).tobytes()
    served = unpack([serving_blob], SERVING, SERVING_VERSION, OLD_SERVING_DTYPES)
    serving = served[0]
    assert (serving["version"], serving["shown_item"][0]) == (7, key32("lamp"))


@pytest.mark.parametrize("form", ["plain", "compact"])
def test_rows_of_profiles_1_and_serving_3_are_read_in_both_forms(form: str) -> None:
    profile_blob, serving_blob = decode_record((GOLDEN / f"profile-1-serving-3-{form}.bin").read_bytes())
    assert (profile_blob[0], serving_blob[0]) == ((1, 3) if form == "plain" else (COMPACT | 1, COMPACT | 3))
    profile = unpack([profile_blob], PROFILE, PROFILE_VERSION)[0]
    assert profile.tobytes() == folded(golden_events()).tobytes()
    serving = unpack([serving_blob], SERVING, SERVING_VERSION, OLD_SERVING_DTYPES)[0]
    assert (serving["version"], serving["touched"], serving["owed_time"]) == (7, NOW + 400, NOW + 400)
    assert serving["shown_item"][:3].tolist() == [key32("lamp"), key32("mug"), 0]
    assert (serving["fatigue_item"][0], serving["fatigue_count"][0]) == (key32("mug"), 1.5)
    value = (GOLDEN / f"profile-1-serving-3-{form}.bin").read_bytes()
    assert owing_pages({b"her": value}) == {b"her"} and touched_at([value]) == [NOW + 400]


def test_a_description_is_json_sorted_and_names_what_it_can() -> None:
    told = describe(folded(golden_events()), {key64("lamp"): "lamp", key32("lighting"): "lighting"})
    assert told["recent"][0][:2] == ["lamp", "view_item"]
    assert told["cart"] == [["lamp", 2, int(NOW + 120)]]
    assert told["categories"]["lighting"][0] > 0
    assert any(name.startswith("#") for name, _ in told["bought"])
    assert json.loads(json.dumps(told, sort_keys=True)) == told
