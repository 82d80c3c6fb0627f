"""Headlines that name an item: above the slot that it leads, under its present name, and never at the cost of others."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page import headline_cache as copybook
from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import (
    NAMING_BURST,
    NAMING_RATE,
    NAMING_UNANSWERED,
    PATIENCE,
    Headline,
    HeadlineCache,
    HeadlineRequest,
    naming_segment_of,
    segment_of,
)
from agents.page.path import _NAMED, PagePath, PageResult
from stream.codes import AGAIN, BECAUSE, CATEGORIES, FOR_YOU, FRESH, TRENDING
from stream.ids import key32
from stream.page.assembly import Placements, leads
from stream.page.json_kernels import PLACED, POSITIONS
from tests.harness.events import NOW, record
from tests.harness.shop import catalog_of, item
from tests.unit.agents.page.test_path import path_of, run_of, views

HOUR = 3600.0


def answered(
    book: HeadlineCache, requests: Iterable[HeadlineRequest], at: float, line: str = "{} it is"
) -> dict[bytes, Any]:
    """Every request answered; a headline that names an item is `line` with its title. -> refreshes."""
    served: dict[bytes, Any] = {}
    for request in requests:
        named: dict[str, Any] = {"item": request.item, "title": request.titles[0]} if request.item else {}
        text = line.format(request.titles[0]) if named else f"Common {request.slot}"
        copy = Headline(segment=request.segment, locale=request.locale, slot=request.slot, category=request.category,
                        text=text, created=at, ttl=HOUR, copywriter="sha256:v", **named)  # fmt: skip
        served |= book.apply([(request.segment.encode(), msgspec.json.encode(copy))])
    return served


def asked(step: PageResult, naming: bool) -> list[HeadlineRequest]:
    return [request for requests in step.requests for request in requests if bool(request.item) == naming]


def titled(pages: Sequence[tuple[bytes, bytes]]) -> list[tuple[str, str, str]]:
    """(title, slot, leading item) of each slot."""
    return [
        (slot["title"], slot["slot"], slot["items"][0]["item_id"])
        for _, value in pages
        for slot in json.loads(value)["slots"]
    ]


def looks(shoppers: int) -> list[tuple[bytes, bytes]]:
    return [record("view_homepage", f"u{s}", "look", NOW + 9) for s in range(shoppers)]


def told(path: PagePath, shoppers: int = 6) -> tuple[dict[bytes, bytes], float]:
    """Some shoppers, whose next `looks` miss no headline any more. -> their rows, and what time it is (s)."""
    first = path.refresh_partition({}, *run_of(*views(shoppers, 2)), NOW)
    stored, now = {key: value for key, value in first.changelog if value is not None}, NOW
    while True:
        now += NAMING_BURST / NAMING_RATE
        step = path.refresh_partition(stored, *run_of(*looks(shoppers)), now)
        path.took_effect([step], now)
        requests = [*asked(step, False), *asked(step, True)]
        if not requests:
            return stored, now
        answered(path.copies, requests, now)


def test_a_headline_names_the_item_that_leads_its_slot_and_no_other() -> None:
    path = path_of()
    stored, now = told(path)
    step = path.refresh_partition(stored, *run_of(*looks(6)), now)
    found = [(title, lead) for title, _, lead in titled(step.pages) if title.endswith(" it is")]
    assert len(found) >= 6, titled(step.pages)
    for title, lead in found:
        assert title in (f"{lead} thing it is", f"{lead}物 it is")


def test_a_name_is_gone_with_the_item_that_bore_it() -> None:
    path = path_of(popular_share=1.0)
    stored, now = told(path, 1)
    [look] = looks(1)
    before = [one for one in titled(path.refresh_partition(stored, *run_of(look), now).pages) if one[0].endswith("it is")]
    slots = {slot: lead for _, slot, lead in before}
    assert "trending" in slots
    lead = slots["trending"]
    for change in (item(lead, available=False), item(lead, title={"en": "Renamed", "zh": "新名"})):
        path.catalog.apply([change])
        after = titled(path.refresh_partition(stored, *run_of(look), now).pages)
        assert not any(title == f"{lead} thing it is" for title, _, _ in after), after
    path.catalog.apply([item(lead)])
    hidden = path.refresh_partition(stored, *run_of(record("hide_item", "u0", "hide", now, item=lead), look), now)
    shown = titled(hidden.pages)
    assert shown and not any(f"{lead} thing" in title for title, _, _ in shown)
    again = path.refresh_partition(stored, *run_of(look), now)
    assert (f"{lead} thing it is", "trending", lead) in titled(again.pages), "under its old name it is as before"


def test_a_slot_about_an_interest_names_only_an_item_of_it() -> None:
    placed = np.zeros((3, POSITIONS), PLACED)
    slots = (FOR_YOU, FOR_YOU, BECAUSE, TRENDING, CATEGORIES, FRESH, AGAIN)
    placed["slot"][:, : len(slots)], placed["row"][:, : len(slots)] = slots, (0, 1, 1, 2, 5, 3, 0)
    catalog = catalog_of(6)  # of category c0 are the rows 0 and 5
    interest = np.array([key32("c0"), key32("c1"), 0], np.int32)
    found = leads(Placements(placed, np.array([7, 3, 6], np.int32)), interest, _NAMED, catalog).tolist()
    assert found == [
        [-1, 0, -1, 2, 5, 3, -1],  # not the second of a slot, nor what is bought again
        [-1, -1, 1, -1, -1, -1, -1],
        [-1, -1, -1, 2, -1, 3, -1],  # where there is no interest
    ]


def test_first_the_headline_of_many_then_one_that_names_an_item_and_no_page_is_made_for_it() -> None:
    path = path_of()
    first = path.refresh_partition({}, *run_of(*views(4, 1)), NOW)
    path.took_effect([first], NOW)
    assert asked(first, False) and not asked(first, True)
    assert answered(path.copies, asked(first, False), NOW), "pages wait for these"
    stored = {key: value for key, value in first.changelog if value is not None}
    look = run_of(*looks(4))
    second = path.refresh_partition(stored, *look, NOW + 1)
    path.took_effect([second], NOW + 1)
    assert not asked(second, False) and asked(second, True)
    assert not any(second.missing), "and nobody waits"
    assert not asked(path.refresh_partition(stored, *look, NOW + 1.1), True), "a second time is not asked at once"
    assert answered(path.copies, asked(second, True), NOW + 1) == {}
    third = path.refresh_partition(stored, *look, NOW + 1.1)
    assert any(title.endswith("it is") for title, _, _ in titled(third.pages))


def test_a_page_alone_and_in_a_batch_has_the_same_headlines() -> None:
    path = path_of(popular_share=0.3)
    stored, now = told(path, 10)
    together = dict(path.refresh_partition(stored, *run_of(*looks(10)), now).pages)
    for look in looks(10):
        assert dict(path.refresh_partition(stored, *run_of(look), now).pages)[look[0]] == together[look[0]]


def test_an_item_that_wants_a_page_of_its_own_waits_until_the_others_have_their_headlines() -> None:
    book = HeadlineCache()
    assert book.naming_room(NOW) == NAMING_BURST
    for k in range(NAMING_UNANSWERED):
        book.asked(f"en|for_you|c{k}", NOW)
    assert book.naming_room(NOW) == 0
    book.forget(NOW + PATIENCE)
    assert book.naming_room(NOW + PATIENCE) == NAMING_BURST


def test_so_many_a_second_and_no_more_also_where_the_clock_is_set_back() -> None:
    book, given_out, now = HeadlineCache(naming_rate=2.0), 0, NOW
    for k in range(600):
        now += 0.1
        if book.naming_room(now):
            given_out += 1
            book.asked(naming_segment_of("en", TRENDING, f"i{k}"), now, naming=True)
            book.apply([(naming_segment_of("en", TRENDING, f"i{k}").encode(), None)])
    assert NAMING_BURST + 118 <= given_out <= NAMING_BURST + 121
    assert book.naming_room(now - HOUR) <= 1
    assert HeadlineCache(naming_rate=0.0).naming_room(NOW) == 0


def naming(book: HeadlineCache, k: int, at: float, text: str | None = "Just in: Lamp") -> None:
    segment = naming_segment_of("en", TRENDING, f"i{k}")
    copy = Headline(segment=segment, locale="en", slot="trending", category="", text=text, created=at, ttl=60.0,
                    copywriter="v", item=f"i{k}", title="Lamp")  # fmt: skip
    book.apply([(segment.encode(), msgspec.json.encode(copy))], at)


def test_when_there_is_no_room_nothing_is_asked_and_common_headlines_keep_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copybook, "TEXTS", 5)
    book = HeadlineCache(naming_rate=1000.0)
    answered(book, [HeadlineRequest(segment_of("en", FOR_YOU, "c"), "en", "for_you", "c", [])], NOW)
    for k in range(9):
        naming(book, k, NOW + k)
    assert book.naming == 5 and len(book) == 1 and book.naming_room(NOW + 9) == 0
    book.forget(NOW + 66)
    assert book.naming == 2 and book.naming_room(NOW + 66) > 0


def test_one_that_was_found_impossible_is_not_asked_for_again_and_old_ones_are_left_out() -> None:
    book = HeadlineCache()
    segment = naming_segment_of("en", TRENDING, "i1")
    naming(book, 1, NOW, None)
    found = book.naming_title(segment, "", "Lamp", NOW + 1)
    assert (found.head, found.missing) == (b"", False)
    assert book.naming_title(segment, "", "Other lamp", NOW + 1).missing, "under another name it may be possible"
    assert book.naming_title(segment, "", "Lamp", NOW + 61).missing
    late = Headline(segment=segment, locale="en", slot="trending", category="", text="Lamp", created=NOW, ttl=60.0,
                    copywriter="v", item="i1", title="Lamp")  # fmt: skip
    book.apply([(segment.encode(), msgspec.json.encode(late))], NOW + 61)
    assert book.naming == 0
    naming(book, 1, NOW)
    book.apply([(segment.encode(), None)])
    assert book.naming == 0, "a tombstone takes it away"


@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_no_category_reads_as_an_item(category: str, item_id: str) -> None:
    assert segment_of("en", FOR_YOU, category) != naming_segment_of("en", FOR_YOU, item_id)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.floats(-50, 200)), max_size=150))
@settings(deadline=None)
def test_what_is_kept_and_what_is_asked_is_bounded_whatever_happens(seen: list[tuple[bool, int, float]]) -> None:
    book, now = HeadlineCache(naming_rate=100.0), NOW
    for answers, k, passed in seen:
        now += passed
        segment = naming_segment_of("en", TRENDING, f"i{k}")
        if answers:
            naming(book, k, now)
        elif book.naming_room(now) and book.wants_naming(segment, now):
            book.asked(segment, now, naming=True)
        book.forget(now)
        assert book.unanswered <= NAMING_UNANSWERED
        assert 0 <= book.naming_room(now) <= NAMING_BURST


def test_a_refresh_for_a_common_headline_keeps_the_one_that_names_an_item() -> None:
    path = path_of()
    stored, now = told(path)
    part = PartitionInput(stored, refreshes={b"u0": copybook.RefreshRequest("en|for_you|c0", "e", NOW)})
    (before,) = path.refresh_pages([part], now)  # made anew it may be led by another item than after a look
    answered(path.copies, [*asked(before, False), *asked(before, True)], now)
    (again,) = path.refresh_pages([part], now)
    assert any(title.endswith("it is") for title, _, _ in titled(again.pages))
