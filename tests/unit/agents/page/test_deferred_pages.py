"""What pages go without under overload, and how a deferred page is made later."""

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest

from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import RefreshRequest
from agents.page.path import PagePath, PageResult
from stream.degradation import Degradation
from stream.page.assembly import PageRules
from stream.page.schemas import schemas
from stream.profile.codec import decode_record, owing_pages
from stream.profile.exposure import OLD_SERVING_DTYPES, OWED_ID_BYTES, SERVING, SERVING_VERSION
from stream.row_codec import pack, unpack
from tests.harness.events import NOW, plain, record
from tests.harness.page_path import FIRST_VERSION, PACED, decoded, path_of, requests_of, rows_of, views

REQUEST = {b"u1": RefreshRequest("", "", 0.0)}


class Shopper:
    """One shopper, whose row is kept from call to call."""

    def __init__(self, path: PagePath) -> None:
        self.path = path
        self.stored: dict[bytes, bytes] = {}

    def process(self, one: PartitionInput, at: float) -> PageResult:
        (result,) = self.path.refresh_pages([one], NOW + at)
        self.stored.update(rows_of(result))
        return result

    def views(self, id: str, at: float, **more: Any) -> list[dict[str, Any]]:
        """View an item; return the pages made."""
        sent = record("view_item", "u1", id, NOW + at, item=f"i{int(at) % 60}", **more)
        return pages(self.process(PartitionInput(self.stored, *decoded(sent)), at))

    def refresh(self, at: float, refreshes: dict[bytes, RefreshRequest] = REQUEST) -> list[dict[str, Any]]:
        """Request the shopper's page; return the pages made."""
        return pages(self.process(PartitionInput(self.stored, refreshes=refreshes), at))

    @property
    def has_deferred_page(self) -> bool:
        return b"u1" in owing_pages(self.stored)

    def serving(self) -> Any:
        return unpack([decode_record(self.stored[b"u1"])[1]], SERVING, SERVING_VERSION)


def pages(result: PageResult) -> list[dict[str, Any]]:
    return [json.loads(page.value) for page in result.pages]


def triggers(made: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    """(number, event id) of each page; a shopper's first page has the number 1."""
    return [(page["version"] - FIRST_VERSION + 1, page["trigger"]["event_id"]) for page in made]


@pytest.mark.parametrize(
    ("degradation", "mode", "rules"),
    [
        (Degradation(), "full", ["brand_cap:2", "explore:1"]),
        (Degradation(sheds_headlines=True), "cached_copy", ["brand_cap:2", "explore:1"]),
        (Degradation(sheds_headlines=True, sheds_exploration=True), "cached_copy", ["brand_cap:2", "explore:0"]),
        (PACED, "cached_copy", ["brand_cap:2", "explore:0", "page_every:8"]),
    ],
)
def test_a_page_names_what_it_goes_without(degradation: Degradation, mode: str, rules: list[str]) -> None:
    path = path_of()
    path.degradation = degradation
    result = path.refresh_partition({}, *decoded(*views(3, 2)), NOW)
    validator = jsonschema.Draft202012Validator(schemas()["homepage/1"])
    for page in pages(result):
        validator.validate(page)
        assert (page["serving"]["mode"], page["rules_applied"]) == (mode, rules)
        explored = [item for slot in page["slots"] for item in slot["items"] if item["explored"]]
        assert len(explored) == (0 if degradation.sheds_exploration else 1)
    assert bool(requests_of(result)) is not degradation.sheds_headlines


def test_no_page_is_refreshed_for_a_headline_while_headlines_are_degraded() -> None:
    shopper = Shopper(path_of())
    shopper.views("e0", 0)
    shopper.path.degradation = Degradation(sheds_headlines=True)
    assert shopper.refresh(1, {b"u1": RefreshRequest("en|for_you|", "e0", NOW)}) == []
    shopper.path.degradation = Degradation()
    assert triggers(shopper.refresh(2, {b"u1": RefreshRequest("en|for_you|", "e0", NOW)})) == [(2, "e0")]


def test_a_page_too_soon_is_deferred_but_its_event_is_folded() -> None:
    paced, plain = (Shopper(path_of(rules=PageRules(explore=False))) for _ in range(2))
    paced.path.degradation = PACED
    assert triggers(paced.views("e0", 0)) == [(1, "e0")]
    assert not paced.has_deferred_page
    assert paced.views("e1", 3) == [] and paced.views("e2", 5) == []
    assert paced.has_deferred_page
    for at, id in ((0, "e0"), (3, "e1"), (5, "e2")):
        plain.views(id, at)
    assert decode_record(paced.stored[b"u1"])[0] == decode_record(plain.stored[b"u1"])[0]
    made = paced.refresh(8)
    assert triggers(made) == [(2, "e2")], "the newest event, the next version"
    assert not paced.has_deferred_page
    newest = plain.refresh(8, {b"u1": RefreshRequest("en|for_you|", "e2", NOW + 5)})
    assert made[0]["slots"] == newest[0]["slots"]
    assert paced.refresh(9) == [], "requested twice, it is made once"


def test_the_pace_is_kept_and_any_later_page_replaces_the_deferred_one() -> None:
    shopper = Shopper(path_of())
    shopper.path.degradation = PACED
    made = {at: triggers(shopper.views(f"e{at}", at)) for at in range(0, 21)}
    assert {at: pages for at, pages in made.items() if pages} == {0: [(1, "e0")], 8: [(2, "e8")], 16: [(3, "e16")]}
    assert shopper.has_deferred_page
    shopper.path.degradation = Degradation(sheds_headlines=True, sheds_exploration=True)
    assert triggers(shopper.views("e21", 21)) == [(4, "e21")], "pages are no longer paced"
    assert not shopper.has_deferred_page and shopper.refresh(22) == []


def test_a_deferred_page_answers_the_newest_event_not_the_last_to_arrive() -> None:
    shopper = Shopper(path_of())
    shopper.path.degradation = PACED
    shopper.views("e0", 0)
    shopper.views("new", 5)
    late = record("view_item", "u1", "late", NOW + 2, item="i4")
    shopper.process(PartitionInput(shopper.stored, *decoded(late)), 6)
    assert triggers(shopper.refresh(9)) == [(2, "new")]


def test_deferring_some_pages_does_not_change_the_others() -> None:
    path = path_of()
    path.degradation = PACED
    first = path.refresh_partition({}, *decoded(*views(40, 1)), NOW)
    stored = {key: value for key, value in rows_of(first).items() if int(key[1:]) % 3}
    more = [record("view_item", f"u{s}", f"x{s}", NOW + 4, item=f"i{s}") for s in range(40)]
    events = PartitionInput(stored, *decoded(*more))
    requests = PartitionInput(stored, refreshes=dict.fromkeys(stored, RefreshRequest("", "", 0.0)))
    result, nothing, again = path.refresh_pages([events, requests, events], NOW + 4)
    assert {page.key for page in result.pages} == {key for key, _ in first.changelog} - stored.keys()
    assert len(result.changelog) == 40
    assert (nothing.pages, nothing.changelog) == ([], [])
    assert (again.page_records(), again.changelog) == (result.page_records(), result.changelog)
    by_key = dict(result.changelog)
    for key in ("u0", "u3", "u1"):
        one = record("view_item", key, f"x{key[1:]}", NOW + 4, item=f"i{key[1:]}")
        alone = path.refresh_partition(stored, *decoded(one), NOW + 4)
        assert alone.changelog == [(key.encode(), by_key[key.encode()])]
        assert alone.page_records() == [page for page in result.page_records() if page[0] == key.encode()]


@pytest.mark.parametrize("id", ["e" * OWED_ID_BYTES, "é" * (OWED_ID_BYTES // 2), "中e"])
def test_a_deferred_pages_event_id_is_stored_whole(id: str) -> None:
    shopper = Shopper(path_of())
    shopper.path.degradation = PACED
    shopper.views("e0", 0)
    assert shopper.views(id, 1) == []
    assert triggers(shopper.refresh(9)) == [(2, id)]


@pytest.mark.parametrize("id", ["e" * (OWED_ID_BYTES + 1), "中" * 22, "e\0"])
def test_an_event_id_that_cannot_be_stored_gets_its_page_at_once(id: str) -> None:
    shopper = Shopper(path_of())
    shopper.path.degradation = PACED
    shopper.views("e0", 0)
    assert triggers(shopper.views(id, 1)) == [(2, id)]


def test_pages_of_shoppers_who_refuse_consent_are_never_deferred() -> None:
    shopper = Shopper(path_of())
    shopper.path.degradation = PACED
    shopper.views("e0", 0)
    shopper.views("e1", 1)
    assert shopper.has_deferred_page
    for at in (2, 3):
        assert len(shopper.views(f"e{at}", at, consent={"personalization": False})) == 1
    serving = shopper.serving()[0]
    assert (serving["paged_at"], serving["owed_time"], serving["owed_id"].any()) == (0.0, 0.0, False)


def test_a_clock_that_goes_back_defers_no_page() -> None:
    shopper = Shopper(path_of())
    shopper.path.degradation = PACED
    shopper.views("e0", 3600)
    assert triggers(shopper.views("e1", 1)) == [(2, "e1")]


def test_rows_are_no_larger_while_pages_are_not_paced() -> None:
    shopper = Shopper(path_of())
    shopper.views("e0", 0)
    serving = shopper.serving()
    assert (serving["paged_at"][0], serving["owed_time"][0]) == (0.0, 0.0)
    with_deferred = serving.copy()
    with_deferred["paged_at"], with_deferred["owed_time"] = NOW, NOW + 1
    stored = len(decode_record(shopper.stored[b"u1"])[1])
    assert stored == len(pack(serving, SERVING_VERSION)[0]) <= len(pack(with_deferred, SERVING_VERSION)[0]) - 11


def test_rows_of_older_versions_have_no_deferred_page() -> None:
    old = np.zeros(2, OLD_SERVING_DTYPES[1])
    old["version"], old["fatigue_count"][:, 3] = (4, 5), 0.5
    new = np.zeros(1, SERVING)
    new["version"], new["owed_time"] = 6, NOW
    blobs = [*pack(old[:1], 1), *pack(new, SERVING_VERSION), *plain(old[1:], 1)]
    rows = unpack(blobs, SERVING, SERVING_VERSION, OLD_SERVING_DTYPES)
    assert rows["version"].tolist() == [4, 6, 5]
    assert rows["fatigue_count"][:, 3].tolist() == [0.5, 0.0, 0.5]
    assert rows["owed_time"].tolist() == [0.0, NOW, 0.0]
    profile = b"\1\2\3"
    values = [len(profile).to_bytes(2, "little") + profile + blob for blob in blobs]
    stored = dict(zip((b"a", b"b", b"c"), values, strict=True))
    assert owing_pages(stored) == {b"b"}
    for cut in range(len(values[1])):
        assert owing_pages({b"torn": values[1][:cut], b"deleted": None}) <= {b"torn"}
    with pytest.raises(ValueError, match="version 9, this program reads 3"):
        unpack([*blobs, b"\x09"], SERVING, SERVING_VERSION, OLD_SERVING_DTYPES)
