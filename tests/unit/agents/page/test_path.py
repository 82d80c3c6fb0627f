"""The page path: a page is the same alone and in any batch, and a call changes nothing in place."""

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import Headline, HeadlineCache, RefreshRequest, segment_of
from agents.page.path import PageResult
from models.ranker.columns import FEATURES, F
from models.ranker.features import joint_features
from stream.codes import SLOT_FOR_YOU, SLOT_TRENDING
from stream.page.candidates import retrieve
from stream.page.encode import unpack_phi
from stream.page.schemas import Homepage
from stream.profile.codec import decode_record
from stream.profile.exposure import SERVING
from stream.profile.fold import fold
from stream.profile.row import PROFILE, blank_profiles
from tests.harness.events import NOW, record, row, rows
from tests.harness.page_path import FIRST_VERSION, SESSIONS, decoded, path_of, requests_of, rows_of, views
from tests.harness.shop import catalog_of, signals_of


def slots_of(result: PageResult) -> dict[bytes, Any]:
    return {page.key: json.loads(page.value)["slots"] for page in result.pages}


def test_a_page_is_the_same_alone_and_in_any_batch() -> None:
    path, sent = path_of(popular_share=0.3), views(70, 3)
    together = path.refresh_partition({}, *decoded(*sent), NOW + 5)
    assert len(together.pages) == 70
    for s in (0, 31, 32, 33, 69):
        own = [one for one in sent if one[0] == f"u{s}".encode()]
        alone = path.refresh_partition({}, *decoded(*own), NOW + 5)
        assert slots_of(alone)[own[0][0]] == slots_of(together)[own[0][0]]
        assert dict(alone.changelog)[own[0][0]] == dict(together.changelog)[own[0][0]]


def test_partitions_processed_together_give_the_results_of_each_alone() -> None:
    path, sent = path_of(popular_share=0.3), views(50, 2)
    stored = rows_of(path.refresh_partition({}, *decoded(*sent), NOW + 5))
    refreshes = {f"u{s}".encode(): RefreshRequest("en|for_you|", f"e{s}", NOW) for s in (3, 4, 999)}
    inputs = [
        PartitionInput({}, *decoded(*sent)),
        PartitionInput(stored, refreshes=refreshes),
        PartitionInput(stored, *decoded(*sent)),  # duplicates only
        # The same shoppers in another partition have other rows.
        PartitionInput({}, *decoded(*sent[:7], (b"u1", b"{"))),
    ]
    together = path.refresh_pages(inputs, NOW + 5)
    assert [len(result.pages) for result in together] == [50, 2, 0, 7]
    for one, result in zip(inputs, together, strict=True):
        (alone,) = path.refresh_pages([one], NOW + 5)
        assert result.changelog == alone.changelog and len(result.pages) == len(alone.pages)
        assert result.fresh.tolist() == alone.fresh.tolist()
        assert result.activity.tobytes() == alone.activity.tobytes()
        for page, other in zip(result.pages, alone.pages, strict=True):
            assert (page.key, page.trigger, page.mode) == (other.key, other.trigger, other.mode)
            assert (page.value, page.impression, page.phi.tobytes()) == (
                other.value, other.impression, other.phi.tobytes(),
            )  # fmt: skip


@pytest.mark.slow
def test_features_are_bitwise_equal_alone_and_in_a_batch() -> None:
    catalog = catalog_of(80)
    signals = signals_of(catalog, SESSIONS)
    profiles = blank_profiles(40)
    for s in range(40):
        events = rows(*(row(1, f"i{(s + k) % 60}", NOW + k + s) for k in range(3)))
        fold(profiles[s : s + 1], np.zeros(3, np.int32), events)
    now, leaders = profiles["last_seen"].copy(), signals.trending(NOW)
    serving = np.zeros(40, SERVING)

    def phi(part: slice) -> np.ndarray:
        found = retrieve(profiles[part], now[part], catalog, signals, leaders)
        return joint_features(profiles[part], serving[part], now[part], found, catalog, signals)

    whole = phi(slice(0, 40))
    assert whole.shape == (40, 256, F) and np.isfinite(whole).all()
    assert all(phi(slice(s, s + 1)).tobytes() == whole[s].tobytes() for s in range(40))


def test_a_call_changes_nothing_in_place_and_is_repeatable() -> None:
    path = path_of()
    stored = rows_of(path.refresh_partition({}, *decoded(*views(3, 2)), NOW))
    before = dict(stored)
    more = decoded(record("view_item", "u1", "new", NOW + 60, item="i9"))
    one, two = (path.refresh_partition(stored, *more, NOW + 60) for _ in range(2))
    assert stored == before
    assert (one.changelog, one.page_records(), one.impression_records()) == (
        two.changelog, two.page_records(), two.impression_records(),
    )  # fmt: skip
    assert [json.loads(page.value)["version"] for page in one.pages] == [FIRST_VERSION + 1]


def test_duplicates_make_no_page() -> None:
    path = path_of()
    first = path.refresh_partition({}, *decoded(*views(3, 2)), NOW)
    again = path.refresh_partition(rows_of(first), *decoded(*views(3, 2)), NOW)
    assert not again.fresh.any()
    assert (again.pages, again.changelog, len(again.activity)) == ([], [], 0)


def test_a_newcomer_gets_the_popular_page_until_their_first_click() -> None:
    path = path_of()
    hello = path.refresh_partition({}, *decoded(record("view_homepage", "u1", "e0", NOW)), NOW)
    page = msgspec.json.decode(hello.pages[0].value, type=Homepage)
    assert page.serving.mode == "popular"
    assert page.slots[0].slot == "trending"
    click = decoded(record("view_item", "u1", "e1", NOW + 1, item="i7"))
    after = path.refresh_partition(rows_of(hello), *click, NOW + 1)
    page = msgspec.json.decode(after.pages[0].value, type=Homepage)
    assert page.serving.mode == "full"
    assert {slot.slot for slot in page.slots} >= {"for_you", "because_you_viewed", "trending"}
    assert {i.item_id for i in page.slots[1].items} & {"i8", "i9", "i10"}, "items that followed i7 in other sessions"


def test_the_trigger_is_the_shoppers_newest_event_of_the_run() -> None:
    sent = [record("view_item", "u1", id, NOW + t, item="i1") for id, t in (("a", 0), ("late", 50), ("b", 20))]
    result = path_of().refresh_partition({}, *decoded(*sent), NOW + 60)
    assert [page.trigger[:2] for page in result.pages] == [("late", NOW + 50)]


def test_impressions_carry_the_phi_that_was_scored() -> None:
    result = path_of().refresh_partition({}, *decoded(*views(4, 3)), NOW)
    for page in result.pages:
        impression = json.loads(page.impression)
        logged = unpack_phi(base64.b64decode(impression["phi"]), F)
        np.testing.assert_allclose(logged, page.phi, rtol=2e-3, atol=2e-3)
        assert len(page.shown) == len(page.phi) == len(impression["items"])


def test_items_shown_without_a_click_are_fatigued() -> None:
    path = path_of()
    stored: dict[bytes, bytes] = {}
    for k, kind in enumerate(("view_item", "view_homepage", "view_homepage")):
        data = {"item": "i7"} if k == 0 else {}
        result = path.refresh_partition(stored, *decoded(record(kind, "u1", f"e{k}", NOW + k, **data)), NOW + k)
        stored.update(rows_of(result))
    fatigue = result.pages[0].phi[:, FEATURES.index("shown_in_vain")]
    assert fatigue.max() > 0.5


def test_a_headline_is_requested_once_and_titles_the_next_version() -> None:
    path = path_of()
    first = path.refresh_partition({}, *decoded(*views(4, 1)), NOW)
    requests = requests_of(first)
    tried = path.refresh_partition({}, *decoded(*views(4, 1)), NOW)
    assert requests_of(tried) == requests, "a result that was discarded requests nothing"
    path.record_published([first], NOW)
    assert not requests_of(path.refresh_partition({}, *decoded(*views(4, 1)), NOW + 1))
    segments = [request.segment for request in requests]
    assert len(segments) == len(set(segments))
    assert segment_of("zh", SLOT_TRENDING, "c1") == "zh|trending|" in segments
    request = next(r for r in requests if r.locale == "en" and r.slot == "for_you")
    headline = Headline(segment=request.segment, locale="en", slot="for_you", category=request.category,
                        text="Lamps for you", created=NOW, ttl=60, copywriter="sha256:x")  # fmt: skip
    refreshes = path.headlines.apply([(request.segment.encode(), msgspec.json.encode(headline))])
    assert refreshes and all(isinstance(refresh, RefreshRequest) for refresh in refreshes.values())
    (again,) = path.refresh_pages([PartitionInput(rows_of(first), refreshes=refreshes)], NOW + 1)
    triggers = {page.key: page.trigger.event_id for page in first.pages}
    for made in again.pages:
        page = json.loads(made.value)
        slot = page["slots"][0]
        assert page["version"] == FIRST_VERSION + 1
        assert (slot["title"], slot["title_source"]) == ("Lamps for you", "gpt2")
        assert page["trigger"]["event_id"] == triggers[made.key]
    assert path.headlines.segment_title("en", SLOT_FOR_YOU, request.category, NOW + 61).is_missing, "it has expired"


def test_invalid_headlines_are_skipped_and_refused_ones_not_requested_again() -> None:
    cache = HeadlineCache()
    assert cache.apply([(b"x", b"{"), (b"y", None), (b"\xff", b"[]")]) == {}
    refused = Headline(segment="en|for_you|c", locale="en", slot="for_you", category="c", text=None, created=NOW,
                       ttl=60, copywriter="v")  # fmt: skip
    cache.add_waiter("en|for_you|c", b"u", ("e", NOW), NOW)
    assert cache.may_request("en|for_you|c", NOW)
    cache.record_request("en|for_you|c", NOW)
    assert not cache.may_request("en|for_you|c", NOW + 1)
    assert cache.apply([(b"en|for_you|c", msgspec.json.encode(refused))]) == {}
    assert not cache.segment_title("en", SLOT_FOR_YOU, "c", NOW + 1).is_missing


def test_profiles_do_not_depend_on_how_events_were_batched() -> None:
    path, sent = path_of(), views(5, 6)
    expected = rows_of(path.refresh_partition({}, *decoded(*sent), NOW))
    stored: dict[bytes, bytes] = {}
    for k in range(0, len(sent), 4):
        stored.update(rows_of(path.refresh_partition(stored, *decoded(*sent[k : k + 4]), NOW)))
    for key, value in expected.items():
        assert decode_record(stored[key])[0] == decode_record(value)[0]
    assert PROFILE.itemsize == 4832
