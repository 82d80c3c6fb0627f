"""What pages go without under overload, and what is owed to a shopper whose page was put off."""

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
from stream.page.json_kernels import schemas
from stream.profile.codec import decode_record, owing_pages
from stream.profile.exposure import OWED_ID, SERVING, SERVING_BEFORE, SERVING_VERSION
from stream.row_codec import pack, unpack
from tests.harness.events import NOW, plain, record
from tests.unit.agents.page.test_path import path_of, run_of, views

PACED = Degradation(copy=True, exploration=True, page_every=8.0)
OWED = {b"u1": RefreshRequest("", "", 0.0)}


class Shopper:
    """The row of one shopper through steps."""

    def __init__(self, path: PagePath) -> None:
        self.path = path
        self.stored: dict[bytes, bytes] = {}

    def step(self, part: PartitionInput, at: float) -> PageResult:
        (step,) = self.path.refresh_pages([part], NOW + at)
        self.stored.update((key, value) for key, value in step.changelog if value is not None)
        return step

    def acts(self, id: str, at: float, **more: Any) -> list[dict[str, Any]]:
        """She views an item. -> her pages, those that come of it."""
        sent = record("view_item", "u1", id, NOW + at, item=f"i{int(at) % 60}", **more)
        return pages(self.step(PartitionInput(self.stored, *run_of(sent)), at))

    def is_paid(self, at: float, refreshes: dict[bytes, RefreshRequest] = OWED) -> list[dict[str, Any]]:
        return pages(self.step(PartitionInput(self.stored, refreshes=refreshes), at))

    @property
    def owed(self) -> bool:
        return b"u1" in owing_pages(self.stored)


def pages(step: PageResult) -> list[dict[str, Any]]:
    return [json.loads(value) for _, value in step.pages]


def triggers(made: Sequence[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(page["version"], page["trigger"]["event_id"]) for page in made]


@pytest.mark.parametrize(
    ("shed", "mode", "rules"),
    [
        (Degradation(), "full", ["brand_cap:2", "explore:1"]),
        (Degradation(copy=True), "cached_copy", ["brand_cap:2", "explore:1"]),
        (Degradation(copy=True, exploration=True), "cached_copy", ["brand_cap:2", "explore:0"]),
        (PACED, "cached_copy", ["brand_cap:2", "explore:0", "page_every:8"]),
    ],
)
def test_a_page_says_what_it_goes_without(shed: Degradation, mode: str, rules: list[str]) -> None:
    path = path_of()
    path.shed = shed
    step = path.refresh_partition({}, *run_of(*views(3, 2)), NOW)
    validator = jsonschema.Draft202012Validator(schemas()["homepage/1"])
    for page in pages(step):
        validator.validate(page)
        assert (page["serving"]["mode"], page["rules_applied"]) == (mode, rules)
        explored = [item for slot in page["slots"] for item in slot["items"] if item["explored"]]
        assert len(explored) == (0 if shed.exploration else 1)
    assert any(step.requests) is not shed.copy


def test_while_copy_is_shed_no_page_goes_out_again_for_a_headline() -> None:
    her = Shopper(path_of())
    her.acts("e0", 0)
    her.path.shed = Degradation(copy=True)
    assert her.is_paid(1, {b"u1": RefreshRequest("en|for_you|", "e0", NOW)}) == []
    her.path.shed = Degradation()
    assert triggers(her.is_paid(2, {b"u1": RefreshRequest("en|for_you|", "e0", NOW)})) == [(2, "e0")]


def test_a_page_too_soon_is_put_off_but_the_event_is_folded() -> None:
    her, plain = (Shopper(path_of(rules=PageRules(explore=False))) for _ in range(2))
    her.path.shed = PACED
    assert triggers(her.acts("e0", 0)) == [(1, "e0")]
    assert not her.owed
    assert her.acts("e1", 3) == [] and her.acts("e2", 5) == []
    assert her.owed
    for at, id in ((0, "e0"), (3, "e1"), (5, "e2")):
        plain.acts(id, at)
    assert decode_record(her.stored[b"u1"])[0] == decode_record(plain.stored[b"u1"])[0]
    made = her.is_paid(8)
    assert triggers(made) == [(2, "e2")], "the newest event, the next version"
    assert not her.owed
    newest = plain.is_paid(8, {b"u1": RefreshRequest("en|for_you|", "e2", NOW + 5)})
    assert made[0]["slots"] == newest[0]["slots"]
    assert her.is_paid(9) == [], "asked for twice, it is made once"


def test_the_pace_is_kept_from_page_to_page_and_a_later_page_settles_what_is_owed() -> None:
    her = Shopper(path_of())
    her.path.shed = PACED
    made = {at: triggers(her.acts(f"e{at}", at)) for at in range(0, 21)}
    assert {at: pages for at, pages in made.items() if pages} == {0: [(1, "e0")], 8: [(2, "e8")], 16: [(3, "e16")]}
    assert her.owed
    her.path.shed = Degradation(copy=True, exploration=True)
    assert triggers(her.acts("e21", 21)) == [(4, "e21")], "no pace any more"
    assert not her.owed and her.is_paid(22) == []


def test_the_page_that_is_owed_answers_the_newest_event_not_the_last_to_come() -> None:
    her = Shopper(path_of())
    her.path.shed = PACED
    her.acts("e0", 0)
    her.acts("new", 5)
    late = record("view_item", "u1", "late", NOW + 2, item="i4")
    her.step(PartitionInput(her.stored, *run_of(late)), 6)
    assert triggers(her.is_paid(9)) == [(2, "new")]


def test_a_run_that_puts_some_off_pages_the_others_as_if_alone() -> None:
    path = path_of()
    path.shed = PACED
    first = path.refresh_partition({}, *run_of(*views(40, 1)), NOW)
    stored = {key: value for key, value in first.changelog if value is not None and int(key[1:]) % 3}
    more = [record("view_item", f"u{s}", f"x{s}", NOW + 4, item=f"i{s}") for s in range(40)]
    part, due = (
        PartitionInput(stored, *run_of(*more)),
        PartitionInput(stored, refreshes=dict.fromkeys(stored, RefreshRequest("", "", 0.0))),
    )
    step, nothing, again = path.refresh_pages([part, due, part], NOW + 4)
    assert {key for key, _ in step.pages} == {key for key, _ in first.changelog} - stored.keys()
    assert (len(step.changelog), len(step.triggers), len(step.modes)) == (40, len(step.pages), len(step.pages))
    assert (nothing.pages, nothing.changelog) == ([], [])
    assert (again.pages, again.changelog) == (step.pages, step.changelog)
    by_key = dict(step.changelog)
    for key in ("u0", "u3", "u1"):
        one = [record("view_item", key, f"x{key[1:]}", NOW + 4, item=f"i{key[1:]}")]
        alone = path.refresh_partition(stored, *run_of(*one), NOW + 4)
        assert alone.changelog == [(key.encode(), by_key[key.encode()])]
        assert alone.pages == [page for page in step.pages if page[0] == key.encode()]


@pytest.mark.parametrize("id", ["e" * OWED_ID, "é" * (OWED_ID // 2), "中e"])
def test_the_id_of_the_event_comes_back_whole(id: str) -> None:
    her = Shopper(path_of())
    her.path.shed = PACED
    her.acts("e0", 0)
    assert her.acts(id, 1) == []
    assert triggers(her.is_paid(9)) == [(2, id)]


@pytest.mark.parametrize("id", ["e" * (OWED_ID + 1), "中" * 22, "e\0"])
def test_an_event_whose_id_cannot_be_kept_has_its_page_at_once(id: str) -> None:
    her = Shopper(path_of())
    her.path.shed = PACED
    her.acts("e0", 0)
    assert triggers(her.acts(id, 1)) == [(2, id)]


def test_of_who_refused_nothing_is_kept_so_that_nothing_can_be_owed() -> None:
    her = Shopper(path_of())
    her.path.shed = PACED
    her.acts("e0", 0)
    her.acts("e1", 1)
    assert her.owed
    for at in (2, 3):
        assert len(her.acts(f"e{at}", at, consent={"personalization": False})) == 1
    served = unpack([decode_record(her.stored[b"u1"])[1]], SERVING, SERVING_VERSION)[0]
    assert (served["paged_at"], served["owed_time"], served["owed_id"].any()) == (0.0, 0.0, False)


def test_a_clock_that_is_set_back_puts_no_page_off() -> None:
    her = Shopper(path_of())
    her.path.shed = PACED
    her.acts("e0", 3600)
    assert triggers(her.acts("e1", 1)) == [(2, "e1")]


def test_rows_cost_nothing_more_while_pages_are_not_paced() -> None:
    her = Shopper(path_of())
    her.acts("e0", 0)
    served = unpack([decode_record(her.stored[b"u1"])[1]], SERVING, SERVING_VERSION)
    assert (served["paged_at"][0], served["owed_time"][0]) == (0.0, 0.0)
    owing = served.copy()
    owing["paged_at"], owing["owed_time"] = NOW, NOW + 1
    stored = len(decode_record(her.stored[b"u1"])[1])
    assert stored == len(pack(served, SERVING_VERSION)[0]) <= len(pack(owing, SERVING_VERSION)[0]) - 11


def test_rows_of_before_are_read_together_with_todays_and_owe_nothing() -> None:
    old = np.zeros(2, SERVING_BEFORE[1])
    old["version"], old["fatigue_count"][:, 3] = (4, 5), 0.5
    new = np.zeros(1, SERVING)
    new["version"], new["owed_time"] = 6, NOW
    blobs = [*pack(old[:1], 1), *pack(new, SERVING_VERSION), *plain(old[1:], 1)]
    rows = unpack(blobs, SERVING, SERVING_VERSION, SERVING_BEFORE)
    assert rows["version"].tolist() == [4, 6, 5]
    assert rows["fatigue_count"][:, 3].tolist() == [0.5, 0.0, 0.5]
    assert rows["owed_time"].tolist() == [0.0, NOW, 0.0]
    profile = b"\1\2\3"
    values = [len(profile).to_bytes(2, "little") + profile + blob for blob in blobs]
    rows_at_rest = dict(zip((b"a", b"b", b"c"), values, strict=True))
    assert owing_pages(rows_at_rest) == {b"b"}
    for cut in range(len(values[1])):
        assert owing_pages({b"torn": values[1][:cut], b"deleted": None}) <= {b"torn"}
    with pytest.raises(ValueError, match="version 9, this program reads 3"):
        unpack([*blobs, b"\x09"], SERVING, SERVING_VERSION, SERVING_BEFORE)
