"""The headline cache stays bounded, however slow the copywriter and however many the segments."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page import headline_cache
from agents.page.headline_cache import (
    MAX_WAIT_S,
    REQUEST_TIMEOUT_S,
    Headline,
    HeadlineCache,
    segment_of,
    template_of,
)
from stream.codes import SLOT_FOR_YOU, SLOT_TRENDING
from tests.harness.events import NOW, record
from tests.harness.page_path import decoded, path_of, requests_of, views


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = {"MAX_PENDING_REQUESTS": 5, "MAX_HEADLINES": 8, "MAX_WAITERS_PER_HEADLINE": 4, "MAX_WAITERS": 10}
    for name, size in bounds.items():
        monkeypatch.setattr(headline_cache, name, size)


def headline(category: str, created: float = NOW, ttl: float = 60.0) -> tuple[bytes, bytes]:
    """A record of `copy`."""
    made = Headline(segment=segment_of("en", SLOT_FOR_YOU, category), locale="en", slot="for_you", category=category,
                    text="Lamps for you", created=created, ttl=ttl, copywriter="v")  # fmt: skip
    return made.segment.encode(), msgspec.json.encode(made)


def has(cache: HeadlineCache, category: str, now: float = NOW) -> bool:
    return not cache.segment_title("en", SLOT_FOR_YOU, category, now).is_missing


@pytest.mark.parametrize(
    ("locale", "title"), [("en-GB", "Popular right now"), ("zh_TW", "大家都在看"), ("fr", "Popular right now")]
)
def test_a_template_is_in_the_language_of_the_locale(locale: str, title: str) -> None:
    assert template_of(locale, SLOT_TRENDING) == title


def test_no_more_is_requested_than_a_copywriter_can_answer() -> None:
    cache = HeadlineCache()
    for k in range(5):
        assert cache.may_request(f"s{k}", NOW)
        cache.record_request(f"s{k}", NOW + k)
    assert not cache.may_request("s9", NOW + 5)
    assert not HeadlineCache().may_request("s9", NOW, about_to_request=5)
    cache.apply([headline("x")])
    assert not cache.may_request("s9", NOW + 5), "that answered another worker's request"
    cache.evict(NOW + REQUEST_TIMEOUT_S)
    assert cache.pending_requests == 4 and cache.may_request("s9", NOW + REQUEST_TIMEOUT_S)


def test_an_unanswered_request_is_repeated_even_if_the_clock_went_back() -> None:
    cache = HeadlineCache()
    cache.record_request("s", NOW)
    assert not cache.may_request("s", NOW + REQUEST_TIMEOUT_S - 1)
    assert cache.may_request("s", NOW + REQUEST_TIMEOUT_S) and cache.may_request("s", NOW - 1)
    cache.evict(NOW - 3600)
    assert cache.pending_requests == 0


def test_the_latest_waiters_of_a_headline_are_kept() -> None:
    cache = HeadlineCache()
    segment = segment_of("en", SLOT_FOR_YOU, "c")
    for k in range(9):
        cache.add_waiter(segment, b"u%d" % (k % 7), (f"e{k}", NOW), NOW)
    assert cache.waiters == 4
    refreshes = cache.apply([headline("c")])
    assert {key: refresh.event_id for key, refresh in refreshes.items()} == {
        b"u5": "e5", b"u6": "e6", b"u0": "e7", b"u1": "e8",
    }  # fmt: skip
    assert cache.waiters == 0


def test_old_waiters_are_evicted() -> None:
    cache = HeadlineCache()
    for k in range(4):
        for shopper in (b"a", b"b", b"c"):
            cache.add_waiter(f"s{k}", shopper, ("e", NOW), NOW + k)
    cache.evict(NOW + 3)
    assert cache.waiters == 9, "the oldest segment makes room"
    cache.evict(NOW + MAX_WAIT_S + 2)
    assert cache.waiters == 3
    cache.evict(NOW + MAX_WAIT_S + 3)
    assert cache.waiters == 0


def test_expired_headlines_are_evicted_and_the_newest_are_kept() -> None:
    cache = HeadlineCache()
    cache.apply([headline(f"c{k}", NOW + k) for k in range(12)])
    assert len(cache) == 8 and not has(cache, "c3") and has(cache, "c4") and has(cache, "c11")
    cache.apply([headline("c4", NOW + 20)])
    cache.evict(NOW + 64)
    assert len(cache) == 8
    cache.evict(NOW + 66)
    assert [has(cache, f"c{k}", NOW + 66) for k in (5, 6, 7, 4)] == [False, False, True, True] and len(cache) == 6
    cache.apply([(headline("c4")[0], None)])
    assert not has(cache, "c4")


actions = st.lists(
    st.tuples(st.sampled_from(("request", "wait", "headline", "tombstone")), st.integers(0, 30), st.floats(-100, 700)),
    max_size=120,
)


@given(actions)
@settings(deadline=None)
def test_the_cache_never_exceeds_its_bounds(seen: list[tuple[str, int, float]]) -> None:
    cache, now = HeadlineCache(), NOW
    for action, k, passed in seen:
        now += passed
        segment = segment_of("en", SLOT_FOR_YOU, f"c{k}")
        if action == "request" and cache.may_request(segment, now):
            cache.record_request(segment, now)
        elif action == "wait":
            cache.add_waiter(segment, b"u%d" % (k * k % 17), ("e", now), now)
        elif action == "headline":
            cache.apply([headline(f"c{k}", now)])
        elif action == "tombstone":
            cache.apply([(segment.encode(), None)])
        cache.evict(now)
        assert (cache.pending_requests <= 5, len(cache) <= 8, cache.waiters <= 10) == (True, True, True)
        assert cache.waiters == sum(len(waiting.triggers) for waiting in cache._waiting.values())


def test_pages_continue_within_bounds_while_the_copywriter_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headline_cache, "MAX_PENDING_REQUESTS", 3)
    path = path_of()
    stored: dict[bytes, bytes] = {}
    requests: list[Any] = []
    for k in range(40):
        sent = [record("view_item", f"u{s}", f"e{s}-{k}", NOW + 10 * k, item=f"i{(s + k) % 60}") for s in range(20)]
        result = path.refresh_partition(stored, *decoded(*sent), NOW + 10 * k)
        path.record_published([result], NOW + 10 * k)
        assert len(result.pages) == 20
        requests.append(requests_of(result))
        assert path.headlines.pending_requests <= 3 and path.headlines.waiters <= 10
    assert [len(of_run) for of_run in requests[:7]] == [3, 0, 0, 0, 0, 0, 0]
    assert sum(map(len, requests)) <= 3 * 7, "three a minute"
    assert any(requests[7:]), "requests are repeated"


def test_a_late_headline_titles_the_next_version() -> None:
    path = path_of()
    result = path.refresh_partition({}, *decoded(*views(1, 1)), NOW)
    path.record_published([result], NOW)
    path.record_published([], NOW + REQUEST_TIMEOUT_S + 5)
    assert path.headlines.pending_requests == 0 and path.headlines.waiters > 0
    segment = next(s for s in result.pages[0].missing_segments if "|trending|" in s)
    late = Headline(segment=segment, locale="en", slot="trending", category="", text="Loved by many", created=NOW + 90,
                    ttl=60, copywriter="v")  # fmt: skip
    refreshes = path.headlines.apply([(segment.encode(), msgspec.json.encode(late))])
    assert list(refreshes) == [b"u0"]
    assert not path.headlines.segment_title("en", SLOT_TRENDING, "", NOW + 91).is_missing
