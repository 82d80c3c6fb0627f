"""The demo's parts: the invented shop, the simulated shoppers, the audit, and the screen."""

import io
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from agents.page.headline_cache import HeadlineCache
from agents.page.path import PagePath, Policy, is_in_popular_group
from deploy.demo.audit import Readback, audit, click_rates
from deploy.demo.screen import View, draw, summary
from deploy.demo.shop import TAXONOMY, generate_shop
from deploy.demo.shoppers import Shelves, Shopper, malformed_record, topic_of
from deploy.rate import Rate, wilson
from models.ranker.model import Ranker
from stream.events.decode import decode, decode_run
from stream.events.errors import EventError
from stream.items.catalog import Catalog, decode_item
from stream.items.signals import Signals
from stream.profile.codec import decode_record
from stream.profile.row import PROFILE, PROFILE_VERSION
from stream.row_codec import unpack
from stream.settings import SHIPPED_MODELS
from tests.harness.events import NOW

SHOP = generate_shop(5, 900, now=NOW)
SHELVES = Shelves(SHOP)


def test_shop_depends_on_its_seed_alone_and_fits_the_schema() -> None:
    assert generate_shop(5, 900, now=NOW) == SHOP
    assert generate_shop(6, 900, now=NOW) != SHOP
    for item in SHOP:
        decoded = decode_item(item["item_id"].encode(), json.dumps(item).encode())
        assert isinstance(decoded.title, dict) and set(decoded.title) == {"en", "zh"}
    assert len({item["title"]["en"] for item in SHOP}) == len(SHOP)
    assert {item["category"] for item in SHOP} == {category.id for category in TAXONOMY}
    assert 0 < sum(not item["available"] for item in SHOP) < 60


def page_of_best_items(person: Shopper, n: int = 36) -> dict[str, Any]:
    rows = np.argsort(-person.utility(np.arange(len(SHOP))))[:n]
    return page_of([SHOP[row]["item_id"] for row in rows])


def page_of(ids: list[str]) -> dict[str, Any]:
    return {
        "page_id": "p",
        "slots": [{"slot": "for_you", "items": [{"item_id": i, "position": k + 1} for k, i in enumerate(ids)]}],
    }


def test_shoppers_click_more_on_pages_of_items_they_like() -> None:
    rng = np.random.default_rng(1)
    clicked = {"best": 0, "any": 0}
    for number in range(150):
        person = Shopper(5, number, SHELVES)
        anything = page_of([SHOP[row]["item_id"] for row in rng.choice(len(SHOP), 36, replace=False)])
        for name, page in (("best", page_of_best_items(person)), ("any", anything)):
            clicked[name] += any(event["type"] == "select_item" for event in person.visit(page, NOW))
    assert clicked["best"] > 2.5 * clicked["any"]
    assert clicked["any"] > 2


def test_shopper_events_are_valid_ordered_and_distinct() -> None:
    ids = set()
    for number in range(30):
        person, time = Shopper(5, number, SHELVES), NOW
        for turn in range(6):
            times = []
            for event in person.visit(page_of_best_items(person) if turn else None, time):
                decoded = decode(json.dumps(event).encode(), person.key.encode(), topic_of(event))
                assert decoded.time is not None
                times.append(decoded.time.timestamp())
                ids.add(event["id"])
                assert "style" not in json.dumps(event), "events do not reveal the style taste"
            assert times == sorted(times) and times[0] == pytest.approx(time, abs=1e-3)
            time = times[-1] + 3
    assert len(ids) > 300


def test_malformed_records_fail_with_their_error_code() -> None:
    rng, person = np.random.default_rng(2), Shopper(5, 1, SHELVES)
    found = set()
    for number in range(200):
        bad = malformed_record(rng, person, NOW, number)
        with pytest.raises(EventError) as error:
            decode(bad.value, bad.key, bad.topic)
        assert error.value.code == bad.error
        found.add(bad.error)
    assert len(found) >= 6


def record(key: bytes | None, value: bytes | None, offset: int = 0, **more: Any) -> Any:
    return SimpleNamespace(key=key, value=value, offset=offset, partition=0, headers=(), **more)


@pytest.fixture
def run() -> tuple[Readback, dict[tuple[str, bytes], str]]:
    """Records of a small run that the real page path made, and the malformed records in it."""
    catalog = Catalog()
    items = [(item["item_id"].encode(), json.dumps(item).encode()) for item in SHOP]
    catalog.apply(items)
    path = PagePath(catalog, Signals(catalog), Ranker(SHIPPED_MODELS / "ranker"), HeadlineCache(), Policy(copy=False))
    stored: dict[bytes, bytes] = {}
    sent: dict[str, list[Any]] = {"clicks": [], "purchases": []}
    pages: list[Any] = []
    impressions: list[Any] = []
    shown: dict[bytes, Any] = {}
    people = [Shopper(5, number, SHELVES) for number in range(6)]
    for turn in range(8):
        for person in people:
            key = person.key.encode()
            for event in person.visit(shown.get(key), NOW + 20 * turn):
                value, topic = json.dumps(event).encode(), topic_of(event)
                step = path.refresh_partition(
                    stored, decode_run([value], [key], [NOW + 1000], topic), np.zeros(1, np.int64), NOW + 20 * turn
                )
                stored.update((k, v) for k, v in step.changelog if v is not None)
                sent[topic].append(record(key, value, len(sent[topic])))
                pages += [record(k, v, len(pages) + n) for n, (k, v) in enumerate(step.page_records())]
                impressions += [record(k, v) for k, v in step.impression_records()]
                shown[key] = json.loads(step.pages[0].value)
    bad = malformed_record(np.random.default_rng(3), people[0], NOW, 1)
    sent[bad.topic].append(record(bad.key, bad.value))
    letter = record(bad.key, bad.value)
    letter.headers = (("topic", bad.topic.encode()), ("error", bad.error.encode()))
    rows = unpack([decode_record(value)[0] for value in stored.values()], PROFILE, PROFILE_VERSION)
    catalogue = [record(key, value) for key, value in items]
    read = Readback(sent, pages, impressions, [letter], catalogue, dict(zip(stored, rows, strict=True)), [])
    return read, {(bad.topic, bad.value): bad.error}


def changed_page(read: Readback, change: Any) -> Readback:
    page = json.loads(read.homepages[9].value)
    change(page)
    pages = list(read.homepages)
    pages[9] = record(pages[9].key, json.dumps(page).encode(), 9)
    return read._replace(homepages=pages)


@pytest.mark.slow
def test_audit_accepts_a_correct_run(run: tuple[Readback, dict[tuple[str, bytes], str]]) -> None:
    found = audit(*run)
    assert found.problems == []
    assert len(found.invariants) == 8 and all(found.invariants.values())
    assert found.events == found.accepted + 1


@pytest.mark.slow
def test_audit_reports_each_violated_invariant(run: tuple[Readback, dict[tuple[str, bytes], str]]) -> None:
    read, bad = run

    def first(page: Any) -> Any:
        return page["slots"][0]["items"]

    def named(page: Any) -> None:
        page["slots"][0].update(title="Just in: Lamp", title_source="gpt2")

    copy = record(b"en|trending:nobody", json.dumps({"item": "nobody", "text": "Just in: Lamp"}).encode())
    sold_out = next(item["item_id"] for item in SHOP if not item["available"])
    profiles = dict(read.profiles)
    profiles.pop(next(iter(profiles)))
    broken = {
        "every_event_in_one_profile": read._replace(profiles=profiles),
        "pages_valid": changed_page(read, lambda page: first(page)[0].update(position=0)),
        "no_item_twice_sold_out_or_hidden": changed_page(read, lambda page: first(page)[0].update(item_id=sold_out)),
        "versions_rise": changed_page(read, lambda page: page.update(version=1)),
        "impressions_match_pages": read._replace(impressions=read.impressions[1:]),
        "malformed_in_dead_letters": read._replace(dead_letters=[]),
        "headlines_name_what_leads_their_slot": changed_page(read, named)._replace(copy=[copy]),
        "slot_probabilities_sum_to_one": changed_page(read, lambda page: first(page)[0].update(score=0.9999)),
    }
    assert set(broken) == set(audit(read, bad).invariants)
    for name, tampered in broken.items():
        found = audit(tampered, bad)
        assert not found.invariants[name], f"the audit missed a violation of {name}"
        assert any(problem.startswith(name) for problem in found.problems)
    twice = changed_page(read, lambda page: first(page)[1].update(item_id=first(page)[0]["item_id"]))
    assert not audit(twice, bad).invariants["no_item_twice_sold_out_or_hidden"]


def test_click_rates_count_views_that_led_to_a_click() -> None:
    def event(kind: str, page: str | None, n: int) -> Any:
        attribution = SimpleNamespace(page_id=page) if page else None
        return SimpleNamespace(type=kind, data=SimpleNamespace(attribution=attribution), id=str(n))

    acts = [
        ("view_homepage", "p1"),
        ("select_item", "p1"),
        ("select_item", "p1"),
        ("view_homepage", "p2"),
        ("view_homepage", None),
        ("select_item", "p9"),
    ]
    rates = click_rates([(b"k", event(kind, page, n)) for n, (kind, page) in enumerate(acts)], lambda key: "personal")
    assert rates == {"personal": Rate(1, 2), "popular": Rate(0, 0)}


def test_interval_is_the_wilson_score_interval() -> None:
    assert wilson(Rate(0, 0)) == (0.0, 1.0)
    assert wilson(Rate(10, 100)) == pytest.approx((0.0552, 0.1744), abs=1e-4)


def test_shoppers_split_into_groups_by_their_key() -> None:
    keys = [b"u%d" % n for n in range(4000)]
    assert 0.47 < np.mean([is_in_popular_group(key, 0.5) for key in keys]) < 0.53
    assert not any(is_in_popular_group(key, 0.0) for key in keys)


def test_screen_fits_80_columns_and_shows_the_figures() -> None:
    view = View(
        elapsed=12, seconds=30, events=1234, pages=1200, events_per_second=99, pages_per_second=98, freshness=(4, 17),
        dead_letters=7, headlines=3, rates={"personal": Rate(40, 100), "popular": Rate(10, 100)}, shopper="Anna 0000",
        last_action="select item: " + "Brass Desk Lamp " * 9, page_changes=["+ 复古黄铜台灯 " * 9],
        headline="为你精选的灯具 " * 20,
    )  # fmt: skip
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(draw(view))
    text = console.export_text()
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= 80
    for part in ("p50 4 ms", "p99 17 ms", "Anna 0000", "40.0%", "10.0%", "dead letters 7", "12 s of 30"):
        assert part in text


def test_summary_names_the_violated_invariant() -> None:
    result = {
        "events": 1, "accepted": 1, "dead_letters": 0, "pages": 1, "shoppers": 1, "freshness_p50_ms": 1.0,
        "freshness_p99_ms": 2.0, "copies_generated": 0, "ctr_personal": 0.4, "ctr_popular": 0.1,
        "ctr_personal_ci": [0.3, 0.5], "ctr_popular_ci": [0.0, 0.2], "invariants": {"pages_valid": False}, "ok": False,
    }  # fmt: skip
    text = summary(result, ["pages_valid: x (1 in all)"])
    assert "NOT  pages valid" in text and "pages_valid: x" in text and "THE DEMO FAILED" in text
