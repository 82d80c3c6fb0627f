"""The way from events to pages: the same page alone and in any batch, and a step that changes nothing in place."""

import base64
import json
from typing import Any

import msgspec
import numpy as np

from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import Headline, HeadlineCache, RefreshRequest, segment_of
from agents.page.path import PagePath, PageResult, Policy
from models.ranker.features import F, joint_features
from models.ranker.model import Ranker
from stream.codes import FOR_YOU, TRENDING
from stream.events import Decoded, decode_run
from stream.page.candidates import retrieve
from stream.page.json_kernels import Homepage, unpacked_phi
from stream.profile.exposure import SERVING
from stream.profile.fold import PROFILE, blank, fold
from stream.settings import SHIPPED_MODELS
from tests.harness.events import NOW, record, row, rows
from tests.harness.shop import catalog_of, signals_of

SESSIONS = [[f"i{(7 * s + k) % 60}" for k in range(4)] for s in range(80)]


def path_of(**policy: Any) -> PagePath:
    catalog = catalog_of(80)
    return PagePath(
        catalog, signals_of(catalog, SESSIONS), Ranker(SHIPPED_MODELS / "ranker"), HeadlineCache(), Policy(**policy)
    )


def run_of(*records: tuple[bytes, bytes]) -> tuple[Decoded, np.ndarray]:
    decoded = decode_run([v for _, v in records], [k for k, _ in records], [NOW + 9999] * len(records), "clicks")
    return decoded, np.arange(len(records))


def views(shoppers: int, each: int) -> list[tuple[bytes, bytes]]:
    return [
        record("view_item", f"u{s}", f"e{s}-{k}", NOW + k, item=f"i{(s * 3 + k) % 60}", locale=("en", "zh")[s % 2])
        for k in range(each)
        for s in range(shoppers)
    ]


def content(step: PageResult) -> dict[bytes, Any]:
    return {key: json.loads(value)["slots"] for key, value in step.pages}


def test_a_page_is_the_same_alone_and_in_any_batch() -> None:
    path, sent = path_of(popular_share=0.3), views(70, 3)
    together = path.refresh_partition({}, *run_of(*sent), NOW + 5)
    assert len(together.pages) == 70
    for s in (0, 31, 32, 33, 69):
        mine = [one for one in sent if one[0] == f"u{s}".encode()]
        alone = path.refresh_partition({}, *run_of(*mine), NOW + 5)
        assert content(alone)[mine[0][0]] == content(together)[mine[0][0]]
        assert dict(alone.changelog)[mine[0][0]] == dict(together.changelog)[mine[0][0]]


def test_parts_that_go_together_come_to_what_each_comes_to_alone() -> None:
    path, sent = path_of(popular_share=0.3), views(50, 2)
    before = path.refresh_partition({}, *run_of(*sent), NOW + 5)
    stored = {key: value for key, value in before.changelog if value is not None}
    refreshes = {f"u{s}".encode(): RefreshRequest("en|for_you|", f"e{s}", NOW) for s in (3, 4, 999)}
    parts = [
        PartitionInput({}, *run_of(*sent)),
        PartitionInput(stored, refreshes=refreshes),
        PartitionInput(stored, *run_of(*sent)),  # nothing but duplicates
        PartitionInput({}, *run_of(*sent[:7], (b"u1", b"{"))),  # the same shoppers in another partition are other rows
    ]
    together = path.refresh_pages(parts, NOW + 5)
    assert [len(step.pages) for step in together] == [50, 2, 0, 7]
    for part, step in zip(parts, together, strict=True):
        (alone,) = path.refresh_pages([part], NOW + 5)
        assert (step.changelog, step.pages, step.impressions) == (alone.changelog, alone.pages, alone.impressions)
        assert (step.triggers, step.modes, step.fresh.tolist()) == (alone.triggers, alone.modes, alone.fresh.tolist())
        assert step.activity.tobytes() == alone.activity.tobytes()
        assert all(one.tobytes() == other.tobytes() for one, other in zip(step.phi, alone.phi, strict=True))


def test_features_are_the_same_to_the_bit_alone_and_in_a_batch() -> None:
    catalog = catalog_of(80)
    signals = signals_of(catalog, SESSIONS)
    profiles = blank(40)
    for s in range(40):
        fold(
            profiles[s : s + 1],
            np.zeros(3, np.int32),
            rows(*(row(1, f"i{(s + k) % 60}", NOW + k + s) for k in range(3))),
        )
    now, leaders = profiles["last_seen"].copy(), signals.leaders(NOW)
    serving = np.zeros(40, SERVING)

    def phi(part: slice) -> np.ndarray:
        found = retrieve(profiles[part], now[part], catalog, signals, leaders)
        return joint_features(profiles[part], serving[part], now[part], found, catalog, signals)

    whole = phi(slice(0, 40))
    assert whole.shape == (40, 256, F) and np.isfinite(whole).all()
    assert all(phi(slice(s, s + 1)).tobytes() == whole[s].tobytes() for s in range(40))


def test_a_step_changes_nothing_that_it_was_given_and_repeats_itself() -> None:
    path = path_of()
    first = path.refresh_partition({}, *run_of(*views(3, 2)), NOW)
    stored = {key: value for key, value in first.changelog if value is not None}
    before = dict(stored)
    more = run_of(record("view_item", "u1", "new", NOW + 60, item="i9"))
    one, two = path.refresh_partition(stored, *more, NOW + 60), path.refresh_partition(stored, *more, NOW + 60)
    assert stored == before
    assert (one.changelog, one.pages, one.impressions) == (two.changelog, two.pages, two.impressions)
    assert [json.loads(value)["version"] for _, value in one.pages] == [2]


def test_duplicates_make_no_page() -> None:
    path = path_of()
    first = path.refresh_partition({}, *run_of(*views(3, 2)), NOW)
    again = path.refresh_partition({k: v for k, v in first.changelog if v is not None}, *run_of(*views(3, 2)), NOW)
    assert not again.fresh.any()
    assert (again.pages, again.changelog, len(again.activity)) == ([], [], 0)


def test_a_newcomer_gets_the_popular_page_and_her_first_click_changes_it() -> None:
    path = path_of()
    hello = path.refresh_partition({}, *run_of(record("view_homepage", "u1", "e0", NOW)), NOW)
    page = msgspec.json.decode(hello.pages[0][1], type=Homepage)
    assert page.serving.mode == "popular"
    assert page.slots[0].slot == "trending"
    stored = {k: v for k, v in hello.changelog if v is not None}
    after = path.refresh_partition(stored, *run_of(record("view_item", "u1", "e1", NOW + 1, item="i7")), NOW + 1)
    page = msgspec.json.decode(after.pages[0][1], type=Homepage)
    assert page.serving.mode == "full"
    assert {slot.slot for slot in page.slots} >= {"for_you", "because_you_viewed", "trending"}
    assert {i.item_id for i in page.slots[1].items} & {"i8", "i9", "i10"}, "what followed i7 in others' sessions"


def test_the_trigger_is_the_newest_event_of_the_shopper_in_the_run() -> None:
    sent = [record("view_item", "u1", id, NOW + t, item="i1") for id, t in (("a", 0), ("late", 50), ("b", 20))]
    step = path_of().step({}, *run_of(*sent), NOW + 60)
    assert [(t.event_id, t.event_time) for t in step.triggers] == [("late", NOW + 50)]


def test_impressions_carry_the_phi_that_was_scored() -> None:
    step = path_of().step({}, *run_of(*views(4, 3)), NOW)
    for (_, value), phi, shown in zip(step.impressions, step.phi, step.shown, strict=True):
        logged = unpacked_phi(base64.b64decode(json.loads(value)["phi"]), F)
        np.testing.assert_allclose(logged, phi, rtol=2e-3, atol=2e-3)
        assert len(shown) == len(phi) == len(json.loads(value)["items"])


def test_a_look_tires_what_it_showed_and_a_click_refreshes_it() -> None:
    path = path_of()
    stored: dict[bytes, bytes] = {}
    for k, kind in enumerate(("view_item", "view_homepage", "view_homepage")):
        step = path.refresh_partition(
            stored, *run_of(record(kind, "u1", f"e{k}", NOW + k, **({"item": "i7"} if k == 0 else {}))), NOW + k
        )
        stored.update((key, value) for key, value in step.changelog if value is not None)
    from models.ranker.features import FEATURES

    tired = step.phi[0][:, FEATURES.index("shown_in_vain")]
    assert tired.max() > 0.5


def test_headlines_are_asked_for_once_and_come_with_the_next_version() -> None:
    path = path_of()
    step = path.refresh_partition({}, *run_of(*views(4, 1)), NOW)
    assert path.refresh_partition({}, *run_of(*views(4, 1)), NOW).requests == step.requests, "a step that was only tried asks nobody"
    path.took_effect([step], NOW)
    assert not any(path.refresh_partition({}, *run_of(*views(4, 1)), NOW + 1).requests)
    asked = [request for requests in step.requests for request in requests]
    segments = [request.segment for request in asked]
    assert len(segments) == len(set(segments))
    assert segment_of("zh", TRENDING, "c1") == "zh|trending|" in segments
    request = next(r for r in asked if r.locale == "en" and r.slot == "for_you")
    text = Headline(segment=request.segment, locale="en", slot="for_you", category=request.category, text="Lamps for you",
                    created=NOW, ttl=60, copywriter="sha256:x")  # fmt: skip
    served = path.copies.apply([(request.segment.encode(), msgspec.json.encode(text))])
    assert served and all(isinstance(refresh, RefreshRequest) for refresh in served.values())
    stored = {k: v for k, v in step.changelog if v is not None}
    (again,) = path.refresh_pages([PartitionInput(stored, refreshes=served)], NOW + 1)
    for key, value in again.pages:
        page = json.loads(value)
        assert (page["version"], page["slots"][0]["title"], page["slots"][0]["title_source"]) == (
            2,
            "Lamps for you",
            "gpt2",
        )
        assert page["trigger"]["event_id"] == next(
            t.event_id for (k, _), t in zip(step.pages, step.triggers, strict=True) if k == key
        )
    assert path.copies.title("en", FOR_YOU, request.category, NOW + 61).missing, "its time is over"


def test_copy_that_is_none_is_left_out_and_a_refused_headline_is_not_asked_for_again() -> None:
    book = HeadlineCache()
    assert book.apply([(b"x", b"{"), (b"y", None), (b"\xff", b"[]")]) == {}
    refused = Headline(
        segment="en|for_you|c",
        locale="en",
        slot="for_you",
        category="c",
        text=None,
        created=NOW,
        ttl=60,
        copywriter="v",
    )
    book.waits("en|for_you|c", b"u", ("e", NOW), NOW)
    assert book.wants("en|for_you|c", NOW)
    book.asked("en|for_you|c", NOW)
    assert not book.wants("en|for_you|c", NOW + 1)
    assert book.apply([(b"en|for_you|c", msgspec.json.encode(refused))]) == {}
    assert not book.title("en", FOR_YOU, "c", NOW + 1).missing


def test_profiles_hold_nothing_of_how_events_were_batched() -> None:
    path, sent = path_of(), views(5, 6)
    one = dict(path.refresh_partition({}, *run_of(*sent), NOW).changelog)
    stored: dict[bytes, bytes] = {}
    for k in range(0, len(sent), 4):
        step = path.refresh_partition(stored, *run_of(*sent[k : k + 4]), NOW)
        stored.update((key, value) for key, value in step.changelog if value is not None)
    from stream.profile.codec import decode_record

    for key, value in one.items():
        assert value is not None
        assert decode_record(stored[key])[0] == decode_record(value)[0]
    assert PROFILE.itemsize == 3968
