"""Item headlines: above the slot that the item leads, under its present name, and after the segment headlines."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page import headline_cache
from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import (
    ITEM_REQUEST_BURST,
    ITEM_REQUESTS_PER_S,
    MAX_PENDING_FOR_ITEM_REQUEST,
    REQUEST_TIMEOUT_S,
    Headline,
    HeadlineCache,
    HeadlineRequest,
    RefreshRequest,
    item_segment_of,
    segment_of,
)
from agents.page.path import Page, PagePath, PageResult
from agents.page.slot_titles import ITEM_HEADLINE_RULES
from stream.codes import (
    MAX_PAGE_ITEMS,
    SLOT_BECAUSE_VIEWED,
    SLOT_BUY_AGAIN,
    SLOT_CATEGORIES,
    SLOT_FOR_YOU,
    SLOT_FRESH,
    SLOT_TRENDING,
)
from stream.ids import key32
from stream.page.assembly import PLACED, Placements, select_lead_items
from tests.harness.events import NOW, record
from tests.harness.page_path import decoded, path_of, requests_of, rows_of, views
from tests.harness.shop import catalog_of, item

HOUR_S = 3600.0


def answer(
    cache: HeadlineCache, requests: Iterable[HeadlineRequest], at: float, line: str = "{} it is"
) -> dict[bytes, Any]:
    """Answer every request and return the refresh requests. An item headline is `line` with the item's title."""
    refreshes: dict[bytes, Any] = {}
    for request in requests:
        named: dict[str, Any] = {"item": request.item, "title": request.titles[0]} if request.item else {}
        text = line.format(request.titles[0]) if named else f"Common {request.slot}"
        headline = Headline(
            segment=request.segment,
            locale=request.locale,
            slot=request.slot,
            category=request.category,
            text=text,
            created=at,
            ttl=HOUR_S,
            copywriter="sha256:v",
            **named,
        )
        refreshes |= cache.apply([(request.segment.encode(), msgspec.json.encode(headline))])
    return refreshes


def item_requests(result: PageResult) -> list[HeadlineRequest]:
    return [request for request in requests_of(result) if request.item]


def segment_requests(result: PageResult) -> list[HeadlineRequest]:
    return [request for request in requests_of(result) if not request.item]


def titles(pages: Iterable[Page]) -> list[tuple[str, str, str]]:
    """(title, slot, leading item) of each slot."""
    return [
        (slot["title"], slot["slot"], slot["items"][0]["item_id"])
        for page in pages
        for slot in json.loads(page.value)["slots"]
    ]


def looks(shoppers: int) -> list[tuple[bytes, bytes]]:
    return [record("view_homepage", f"u{s}", "look", NOW + 9) for s in range(shoppers)]


def with_all_headlines(path: PagePath, shoppers: int = 6) -> tuple[dict[bytes, bytes], float]:
    """Rows of some shoppers whose next `looks` lack no headline, and the time (s)."""
    stored, now = rows_of(path.refresh_partition({}, *decoded(*views(shoppers, 2)), NOW)), NOW
    while True:
        now += ITEM_REQUEST_BURST / ITEM_REQUESTS_PER_S
        result = path.refresh_partition(stored, *decoded(*looks(shoppers)), now)
        path.record_published([result], now)
        requests = [*segment_requests(result), *item_requests(result)]
        if not requests:
            return stored, now
        answer(path.headlines, requests, now)


def test_an_item_headline_names_the_leading_item_of_its_slot() -> None:
    path = path_of()
    stored, now = with_all_headlines(path)
    result = path.refresh_partition(stored, *decoded(*looks(6)), now)
    found = [(title, lead) for title, _, lead in titles(result.pages) if title.endswith(" it is")]
    assert len(found) >= 6, titles(result.pages)
    for title, lead in found:
        assert title in (f"{lead} thing it is", f"{lead}物 it is")


def test_an_item_headline_is_in_the_language_of_its_page() -> None:
    """The titles of the items name regions, the shoppers' locales do not."""
    path = path_of()
    path.catalog.apply(
        [item(f"i{k}", title={"de-DE": f"i{k} Lampe", "en-US": f"i{k} thing", "zh-CN": f"i{k}物"}) for k in range(80)]
    )
    stored, now = with_all_headlines(path)
    result = path.refresh_partition(stored, *decoded(*looks(6)), now)
    pages = [json.loads(page.value) for page in result.pages]
    assert [page["locale"] for page in pages] == ["en", "zh"] * 3
    for page, of in zip(pages, result.pages, strict=True):
        named = [title for title, _, _ in titles([of]) if title.endswith(" it is")]
        assert named and all(("thing" in title) == (page["locale"] == "en") for title in named), named
        assert not any("Lampe" in title for title in named)


def test_an_item_headline_ends_when_its_item_is_renamed_or_hidden() -> None:
    path = path_of(popular_share=1.0)
    stored, now = with_all_headlines(path, 1)
    [look] = looks(1)

    def shown(*records: tuple[bytes, bytes]) -> list[tuple[str, str, str]]:
        return titles(path.refresh_partition(stored, *decoded(*records), now).pages)

    slots = {slot: lead for title, slot, lead in shown(look) if title.endswith("it is")}
    assert "trending" in slots
    lead = slots["trending"]
    for change in (item(lead, available=False), item(lead, title={"en": "Renamed", "zh": "新名"})):
        path.catalog.apply([change])
        after = shown(look)
        assert not any(title == f"{lead} thing it is" for title, _, _ in after), after
    path.catalog.apply([item(lead)])
    hidden = shown(record("hide_item", "u0", "hide", now, item=lead), look)
    assert hidden and not any(f"{lead} thing" in title for title, _, _ in hidden)
    assert (f"{lead} thing it is", "trending", lead) in shown(look), "the old name brings the old headline back"


def test_a_slot_about_an_interest_names_only_an_item_of_it() -> None:
    placed = np.zeros((3, MAX_PAGE_ITEMS), PLACED)
    slots = (
        SLOT_FOR_YOU,
        SLOT_FOR_YOU,
        SLOT_BECAUSE_VIEWED,
        SLOT_TRENDING,
        SLOT_CATEGORIES,
        SLOT_FRESH,
        SLOT_BUY_AGAIN,
    )
    placed["slot"][:, : len(slots)], placed["row"][:, : len(slots)] = slots, (0, 1, 1, 2, 5, 3, 0)
    catalog = catalog_of(6)  # the rows 0 and 5 are of category c0
    interest = np.array([key32("c0"), key32("c1"), 0], np.int32)
    placements = Placements(placed, np.array([7, 3, 6], np.int32))
    assert select_lead_items(placements, interest, ITEM_HEADLINE_RULES, catalog).tolist() == [
        [-1, 0, -1, 2, 5, 3, -1],  # not the second of a slot, nor an item to buy again
        [-1, -1, 1, -1, -1, -1, -1],
        [-1, -1, -1, 2, -1, 3, -1],  # without an interest
    ]


def test_segment_headlines_come_first_and_item_headlines_refresh_no_page() -> None:
    path = path_of()
    first = path.refresh_partition({}, *decoded(*views(4, 1)), NOW)
    path.record_published([first], NOW)
    assert segment_requests(first) and not item_requests(first)
    assert answer(path.headlines, segment_requests(first), NOW), "pages wait for these"
    stored, look = rows_of(first), decoded(*looks(4))
    second = path.refresh_partition(stored, *look, NOW + 1)
    path.record_published([second], NOW + 1)
    assert not segment_requests(second) and item_requests(second)
    assert not any(page.missing_segments for page in second.pages), "no page waits"
    assert not item_requests(path.refresh_partition(stored, *look, NOW + 1.1)), "a request is not repeated at once"
    assert answer(path.headlines, item_requests(second), NOW + 1) == {}
    third = path.refresh_partition(stored, *look, NOW + 1.1)
    assert any(title.endswith("it is") for title, _, _ in titles(third.pages))


def test_a_page_has_the_same_headlines_alone_and_in_a_batch() -> None:
    path = path_of(popular_share=0.3)
    stored, now = with_all_headlines(path, 10)
    together = dict(path.refresh_partition(stored, *decoded(*looks(10)), now).page_records())
    for look in looks(10):
        assert dict(path.refresh_partition(stored, *decoded(look), now).page_records())[look[0]] == together[look[0]]


def test_item_headlines_are_not_requested_while_many_requests_are_pending() -> None:
    cache = HeadlineCache()
    assert cache.item_request_quota(NOW) == ITEM_REQUEST_BURST
    for k in range(MAX_PENDING_FOR_ITEM_REQUEST):
        cache.record_request(f"en|for_you|c{k}", NOW)
    assert cache.item_request_quota(NOW) == 0
    cache.evict(NOW + REQUEST_TIMEOUT_S)
    assert cache.item_request_quota(NOW + REQUEST_TIMEOUT_S) == ITEM_REQUEST_BURST


def test_item_requests_keep_their_rate_even_if_the_clock_goes_back() -> None:
    cache, requested, now = HeadlineCache(item_requests_per_s=2.0), 0, NOW
    for k in range(600):
        now += 0.1
        if cache.item_request_quota(now):
            requested += 1
            cache.record_request(item_segment_of("en", SLOT_TRENDING, f"i{k}"), now, for_item=True)
            cache.apply([(item_segment_of("en", SLOT_TRENDING, f"i{k}").encode(), None)])
    assert ITEM_REQUEST_BURST + 118 <= requested <= ITEM_REQUEST_BURST + 121
    assert cache.item_request_quota(now - HOUR_S) <= 1
    assert HeadlineCache(item_requests_per_s=0.0).item_request_quota(NOW) == 0


def add_item_headline(cache: HeadlineCache, k: int, at: float, text: str | None = "Just in: Lamp") -> None:
    segment = item_segment_of("en", SLOT_TRENDING, f"i{k}")
    headline = Headline(segment=segment, locale="en", slot="trending", category="", text=text, created=at, ttl=60.0,
                        copywriter="v", item=f"i{k}", title="Lamp")  # fmt: skip
    cache.apply([(segment.encode(), msgspec.json.encode(headline))], at)


def test_item_headlines_are_bounded_apart_from_segment_headlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headline_cache, "MAX_HEADLINES", 5)
    cache = HeadlineCache(item_requests_per_s=1000.0)
    answer(cache, [HeadlineRequest(segment_of("en", SLOT_FOR_YOU, "c"), "en", "for_you", "c", [])], NOW)
    for k in range(9):
        add_item_headline(cache, k, NOW + k)
    assert cache.item_headlines == 5 and len(cache) == 1 and cache.item_request_quota(NOW + 9) == 0
    cache.evict(NOW + 66)
    assert cache.item_headlines == 2 and cache.item_request_quota(NOW + 66) > 0


def test_a_refused_item_headline_is_not_requested_and_an_expired_one_skipped() -> None:
    cache = HeadlineCache()
    segment = item_segment_of("en", SLOT_TRENDING, "i1")
    add_item_headline(cache, 1, NOW, None)
    found = cache.item_title(segment, "", "Lamp", NOW + 1)
    assert (found.head, found.is_missing) == (b"", False)
    assert cache.item_title(segment, "", "Other lamp", NOW + 1).is_missing, "under another name it may be possible"
    assert cache.item_title(segment, "", "Lamp", NOW + 61).is_missing
    late = Headline(segment=segment, locale="en", slot="trending", category="", text="Lamp", created=NOW, ttl=60.0,
                    copywriter="v", item="i1", title="Lamp")  # fmt: skip
    cache.apply([(segment.encode(), msgspec.json.encode(late))], NOW + 61)
    assert cache.item_headlines == 0
    add_item_headline(cache, 1, NOW)
    cache.apply([(segment.encode(), None)])
    assert cache.item_headlines == 0, "a tombstone removes it"


@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_segment_keys_and_item_keys_never_collide(category: str, item_id: str) -> None:
    assert segment_of("en", SLOT_FOR_YOU, category) != item_segment_of("en", SLOT_FOR_YOU, item_id)


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.floats(-50, 200)), max_size=150))
@settings(deadline=None)
def test_item_requests_are_bounded_whatever_happens(seen: list[tuple[bool, int, float]]) -> None:
    cache, now = HeadlineCache(item_requests_per_s=100.0), NOW
    for is_answer, k, passed in seen:
        now += passed
        segment = item_segment_of("en", SLOT_TRENDING, f"i{k}")
        if is_answer:
            add_item_headline(cache, k, now)
        elif cache.item_request_quota(now) and cache.may_request_item(segment, now):
            cache.record_request(segment, now, for_item=True)
        cache.evict(now)
        assert cache.pending_requests <= MAX_PENDING_FOR_ITEM_REQUEST
        assert 0 <= cache.item_request_quota(now) <= ITEM_REQUEST_BURST


def test_a_refresh_for_a_segment_headline_keeps_the_item_headline() -> None:
    path = path_of()
    stored, now = with_all_headlines(path)
    refresh = PartitionInput(stored, refreshes={b"u0": RefreshRequest("en|for_you|c0", "e", NOW)})
    (before,) = path.refresh_pages([refresh], now)  # another item may lead it than after a look
    answer(path.headlines, [*segment_requests(before), *item_requests(before)], now)
    (again,) = path.refresh_pages([refresh], now)
    assert any(title.endswith("it is") for title, _, _ in titles(again.pages))
