"""Versions of pages: they start from the record's timestamp, and never go back."""

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page.fold_step import FoldRules, PartitionInput
from agents.page.headline_cache import RefreshRequest
from agents.page.path import PagePath
from stream.events.decode import decode_run
from stream.profile.codec import decode_records, encode_records
from stream.profile.store import CLOCK_KEY, MemoryProfileStore
from stream.settings import Settings
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of, rows_of
from tests.harness.shopper_agent import agent_of, process, run_of

DAY_S = 86_400.0
TTL_S = 90 * DAY_S
REFRESH = {b"u1": RefreshRequest("en|for_you|", "e0", NOW)}
Sent = tuple[str, float, float]  # event id, event time and record timestamp, s after NOW


def fold(path: PagePath, stored: dict[bytes, bytes], sent: Sequence[Sent], first: int = 0) -> list[int]:
    """Fold a run of one shopper's views, store the rows, and return the versions of the pages."""
    made = [record("view_item", "u1", id, NOW + time, item="i7")[1] for id, time, _ in sent]
    decoded = decode_run(made, [b"u1"] * len(made), [NOW + arrived for _, _, arrived in sent], "clicks")
    result = path.refresh_partition(stored, decoded, np.arange(first, first + len(made)), NOW)
    stored.update(rows_of(result))
    return [json.loads(page.value)["version"] for page in result.pages]


def ms(seconds: float) -> int:
    """Version of a page whose record has the timestamp NOW + seconds."""
    return round((NOW + seconds) * 1000)


def test_a_version_is_the_timestamp_of_the_first_new_record_or_one_more_than_the_last() -> None:
    path = path_of()
    stored: dict[bytes, bytes] = {}
    assert fold(path, stored, [("a", 1, 1.5), ("b", 3, 3)]) == [ms(1.5)]
    assert fold(path, stored, [("c", 2, 1.25)]) == [ms(1.5) + 1], "this producer's clock is slow"
    assert fold(path, stored, [("a", 1, 1.5), ("d", 0, 7.123)]) == [ms(7.123)], (
        "the first is a duplicate, the event late"
    )
    (refreshed,) = path.refresh_pages([PartitionInput(stored, refreshes=REFRESH)], NOW + 60)
    assert [json.loads(page.value)["version"] for page in refreshed.pages] == [ms(7.123) + 1]


@pytest.mark.parametrize("timestamp", [NOW + 5, (NOW + 5) * 1000, (NOW + 5) / 1000, 1e15])
def test_records_with_timestamps_in_other_units_have_versions_in_ms(timestamp: float) -> None:
    [version] = fold(path_of(), {}, [("a", 5, timestamp - NOW)])
    assert version == ms(5) < 2**53, "JSON numbers are exact up to 2**53"


def test_rows_of_an_earlier_release_continue_upward() -> None:
    path = path_of()
    stored: dict[bytes, bytes] = {}
    fold(path, stored, [("a", 1, 1)])
    profiles, serving = decode_records([stored[b"u1"]])
    serving["version"] = 3
    stored[b"u1"] = encode_records(profiles, serving)[0]
    assert fold(path, stored, [("b", 2, 2)]) == [ms(2)]


EVENTS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=8)


@given(EVENTS, EVENTS, st.sets(st.integers(1, 7)))
@settings(deadline=None, max_examples=30)
def test_a_run_that_is_repeated_after_a_crash_goes_back_in_no_version(
    before: list[Sent], run: list[Sent], cuts: set[int]
) -> None:
    path = path_of()
    stored: dict[bytes, bytes] = {}
    published = fold(path, stored, before)
    published += fold(path, dict(stored), run)  # the worker is killed before it stores the rows
    ends = [*sorted(cut for cut in cuts if cut < len(run)), len(run)]
    for start, end in pairwise([0, *ends]):
        published += fold(path, stored, run[start:end], start)
    assert all(a <= b for a, b in pairwise(published)), published


class Shop:
    """The shopper agent with one partition, profiles that expire, and each shopper's published versions."""

    def __init__(self) -> None:
        self.profiles = MemoryProfileStore()
        self.profiles.serve([0], 0.0)
        self.agent = agent_of(path_of(fold=FoldRules(profile_ttl=TTL_S)), self.profiles, Settings(profile_ttl=TTL_S))
        self.versions: dict[str, list[int]] = {}
        self.offset = 0

    def process(self, *events: tuple[str, float, float]) -> None:
        """Process a run of views: (shopper, day of the event, day of the record)."""
        first, self.offset = self.offset, self.offset + len(events)
        records = [
            record("view_item", shopper, f"e{first + at}", NOW + day * DAY_S, item="i7")
            for at, (shopper, day, _) in enumerate(events)
        ]
        run = run_of(records, first=first, times=[NOW + arrived * DAY_S for _, _, arrived in events])
        [(result, _)] = process(self.agent, run)
        for page in result.pages:
            self.versions.setdefault(page.key.decode(), []).append(json.loads(page.value)["version"])


@pytest.mark.parametrize("is_swept", [True, False])
@pytest.mark.parametrize("day_of_return", [100.0, -50.0])
def test_versions_rise_across_the_deletion_of_a_profile(is_swept: bool, day_of_return: float) -> None:
    shop = Shop()
    for _ in range(3):
        shop.process(("ada", 0, 0))
    if is_swept:
        shop.process(("bob", 95, 95))
        shop.process(("bob", 95, 95.1))
        assert set(shop.profiles.rows_of(0)) == {b"bob", CLOCK_KEY}, "the profile of ada is deleted"
    shop.process(("bob", 100, 100), ("ada", day_of_return, 100))
    shop.process(("ada", day_of_return, 100))
    assert all(a < b for a, b in pairwise(shop.versions["ada"])) and len(shop.versions["ada"]) == 5
