"""What is kept of headlines is bounded, however slow the copywriter and however many the segments."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page import headline_cache as copybook
from agents.page.headline_cache import PATIENCE, WORTH_WAITING, Headline, HeadlineCache, segment_of
from agents.page.path import PagePath
from stream.codes import FOR_YOU, TRENDING
from tests.harness.events import NOW, record
from tests.unit.agents.page.test_path import path_of, run_of, views


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"UNANSWERED": 5, "TEXTS": 8, "WAITERS_OF_ONE": 4, "WAITERS": 10}.items():
        monkeypatch.setattr(copybook, name, size)


def text(category: str, created: float = NOW, ttl: float = 60.0) -> tuple[bytes, bytes]:
    copy = Headline(segment=segment_of("en", FOR_YOU, category), locale="en", slot="for_you", category=category,
                    text="Lamps for you", created=created, ttl=ttl, copywriter="v")  # fmt: skip
    return copy.segment.encode(), msgspec.json.encode(copy)


def there(book: HeadlineCache, category: str, now: float = NOW) -> bool:
    return not book.title("en", FOR_YOU, category, now).missing


def test_no_more_is_asked_for_than_a_copywriter_can_answer() -> None:
    book = HeadlineCache()
    for k in range(5):
        assert book.wants(f"s{k}", NOW)
        book.asked(f"s{k}", NOW + k)
    assert not book.wants("s9", NOW + 5)
    assert not HeadlineCache().wants("s9", NOW, more=5)
    book.apply([text("x")])
    assert not book.wants("s9", NOW + 5), "that was another's"
    book.forget(NOW + PATIENCE)
    assert book.unanswered == 4 and book.wants("s9", NOW + PATIENCE)


def test_a_request_is_made_again_when_nobody_answered_also_where_the_clock_was_set_back() -> None:
    book = HeadlineCache()
    book.asked("s", NOW)
    assert not book.wants("s", NOW + PATIENCE - 1)
    assert book.wants("s", NOW + PATIENCE) and book.wants("s", NOW - 1)
    book.forget(NOW - 3600)
    assert book.unanswered == 0


def test_of_the_pages_that_wait_the_latest_are_kept() -> None:
    book = HeadlineCache()
    segment = segment_of("en", FOR_YOU, "c")
    for k in range(9):
        book.waits(segment, b"u%d" % (k % 7), (f"e{k}", NOW), NOW)
    assert book.waiters == 4
    served = book.apply([text("c")])
    assert {key: refresh.event_id for key, refresh in served.items()} == {
        b"u5": "e5", b"u6": "e6", b"u0": "e7", b"u1": "e8",
    }  # fmt: skip
    assert book.waiters == 0


def test_pages_that_wait_in_vain_are_forgotten() -> None:
    book = HeadlineCache()
    for k in range(4):
        for shopper in (b"a", b"b", b"c"):
            book.waits(f"s{k}", shopper, ("e", NOW), NOW + k)
    book.forget(NOW + 3)
    assert book.waiters == 9, "the oldest segment makes room"
    book.forget(NOW + WORTH_WAITING + 2)
    assert book.waiters == 3
    book.forget(NOW + WORTH_WAITING + 3)
    assert book.waiters == 0


def test_headlines_leave_when_their_time_is_over_and_the_newest_stay() -> None:
    book = HeadlineCache()
    book.apply([text(f"c{k}", NOW + k) for k in range(12)])
    assert len(book) == 8 and not there(book, "c3") and there(book, "c4") and there(book, "c11")
    book.apply([text("c4", NOW + 20)])
    book.forget(NOW + 64)
    assert len(book) == 8
    book.forget(NOW + 66)
    assert [there(book, f"c{k}", NOW + 66) for k in (5, 6, 7, 4)] == [False, False, True, True] and len(book) == 6
    book.apply([(text("c4")[0], None)])
    assert not there(book, "c4")


actions = st.lists(
    st.tuples(st.sampled_from(("ask", "wait", "text", "none")), st.integers(0, 30), st.floats(-100, 700)), max_size=120
)


@given(actions)
@settings(deadline=None)
def test_it_never_holds_more_than_its_bounds(seen: list[tuple[str, int, float]]) -> None:
    book, now = HeadlineCache(), NOW
    for what, k, passed in seen:
        now += passed
        segment = segment_of("en", FOR_YOU, f"c{k}")
        if what == "ask" and book.wants(segment, now):
            book.asked(segment, now)
        elif what == "wait":
            book.waits(segment, b"u%d" % (k * k % 17), ("e", now), now)
        elif what == "text":
            book.apply([text(f"c{k}", now)])
        elif what == "none":
            book.apply([(segment.encode(), None)])
        book.forget(now)
        assert (book.unanswered <= 5, len(book) <= 8, book.waiters <= 10) == (True, True, True)
        assert book.waiters == sum(len(waiting.shoppers) for waiting in book._waiting.values())


def test_a_shop_whose_copywriter_is_dead_keeps_paging_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copybook, "UNANSWERED", 3)
    path: PagePath = path_of()
    stored: dict[bytes, bytes] = {}
    asked: list[list[Any]] = []
    for k in range(40):
        sent = [record("view_item", f"u{s}", f"e{s}-{k}", NOW + 10 * k, item=f"i{(s + k) % 60}") for s in range(20)]
        step = path.refresh_partition(stored, *run_of(*sent), NOW + 10 * k)
        path.took_effect([step], NOW + 10 * k)
        assert len(step.pages) == 20
        asked.append([request for requests in step.requests for request in requests])
        assert path.copies.unanswered <= 3 and path.copies.waiters <= 10
    assert [len(requests) for requests in asked[:7]] == [3, 0, 0, 0, 0, 0, 0]
    assert sum(map(len, asked)) <= 3 * 7, "so many a minute"
    assert any(asked[7:]), "it is asked again"


def test_a_headline_that_is_late_still_comes_with_the_next_version() -> None:
    path = path_of()
    step = path.refresh_partition({}, *run_of(*views(1, 1)), NOW)
    path.took_effect([step], NOW)
    path.took_effect([], NOW + PATIENCE + 5)
    assert path.copies.unanswered == 0 and path.copies.waiters > 0
    segment = next(s for s in step.missing[0] if "|trending|" in s)
    late = Headline(segment=segment, locale="en", slot="trending", category="", text="Loved by many", created=NOW + 90,
                    ttl=60, copywriter="v")  # fmt: skip
    served = path.copies.apply([(segment.encode(), msgspec.json.encode(late))])
    assert list(served) == [b"u0"]
    assert not path.copies.title("en", TRENDING, "", NOW + 91).missing
