"""The product's guarantees, against a real worker and a real broker."""

import asyncio
import csv
import gzip
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from stream.events.decode import BUY
from stream.kafka import topics
from stream.page.schemas import schemas
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.shop import item
from tests.harness.worker_process import (
    clicks,
    command,
    open_shop,
    pages_of,
    profiles_of,
    read_all,
    settings_for,
    until_counted,
    worker,
)


@scenario
async def test_1_redelivered_and_duplicate_events_change_nothing(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    sent = clicks(400, 8)
    await send(settings, "clicks", [*sent[:300], *sent[100:200], *sent[:50], *sent[300:], *sent[350:]])
    await send(settings, "clicks", [record("view_homepage", "last", "end", NOW + 900)])
    with worker(settings):
        await until_counted(settings, 401)


@scenario
async def test_2_bad_events_become_dead_letters_and_their_neighbours_are_counted(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    bad = [
        ((b"u1", b"{half"), "not_json", "value"),
        ((b"u1", None), "empty", "value"),
        ((None, record("select_item", "u1", "x", item="i1")[1]), "bad_key", "key"),
        ((b"u1", record("select_item", "u1", "x")[1]), "missing", "data.items"),
        ((b"u1", record("warp", "u1", "x")[1]), "unknown_type", "type"),
        ((b"\xff\x00", b"\x00" * 40), "not_json", "value"),
        ((b"u1", b"[" * 90_000), "not_json", "value"),
    ]
    good = clicks(300, 5)
    mixed = [part for at, one in enumerate(good) for part in ([bad[at % len(bad)][0], one] if at < 70 else [one])]
    await send(settings, "clicks", mixed)
    with worker(settings):
        await until_counted(settings, 300)
        refused = await read_all(settings, "dead-letters")
    assert len(refused) == 70
    expected = {value: (code, field) for value, code, field in bad}
    for letter in refused:
        headers = {name: value.decode() for name, value in letter.headers}
        assert (headers["error"], headers["field"]) == expected[letter.key, letter.value]
        assert headers["topic"] == "clicks"
        assert {"partition", "offset"} <= headers.keys()


@scenario
async def test_3_every_page_is_valid_and_shows_no_unavailable_or_hidden_item(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, popular_share=0.3)
    await open_shop(settings)
    await send(
        settings, "catalog", [item("i3", available=False), item("i4", expires_at="2026-01-01T00:00:00Z"), (b"i5", None)]
    )
    hides = [record("hide_item", f"u{k}", f"h{k}", NOW - 60, item=f"i{10 + k}") for k in range(10)]
    await send(settings, "clicks", [*hides, *clicks(600, 10)])
    with worker(settings):
        await until_counted(settings, 610)
        pages = pages_of(await read_all(settings, "homepages"))
        impressions = [json.loads(r.value) for r in await read_all(settings, "impressions")]
    validator = jsonschema.Draft202012Validator(schemas()["homepage/1"])
    unavailable = {"i3", "i4", "i5"}
    ids = set()
    for shopper, made in pages.items():
        assert [page["version"] for page in made] == list(range(1, len(made) + 1))
        for page in made:
            validator.validate(page)
            items = [i["item_id"] for slot in page["slots"] for i in slot["items"]]
            assert items, "the shop is not empty"
            assert len(set(items)) == len(items)
            assert not unavailable & set(items)
            assert f"i{10 + int(shopper[1:])}" not in items
            ids.add((page["page_id"], tuple(items)))
    assert {(i["page_id"], tuple(x["item_id"] for x in i["items"])) for i in impressions} == ids


@scenario
async def test_3_an_empty_catalogue_gives_a_static_page(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings, items=0)
    await send(settings, "clicks", clicks(20, 2))
    with worker(settings):
        await until_counted(settings, 20)
        pages = pages_of(await read_all(settings, "homepages"))
    assert {page["serving"]["mode"] for made in pages.values() for page in made} == {"static"}


@scenario
async def test_a_profile_of_10_000_events_is_exact(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    await send(settings, "clicks", clicks(10_000, 1))
    with worker(settings):
        profiles = await until_counted(settings, 10_000)
    assert profiles["u0"]["kinds"].sum() == 10_000


@scenario
async def test_without_consent_nothing_is_stored_and_the_page_is_popular(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    refused = [
        record("view_item", "u1", f"e{k}", NOW + k, item=f"i{k}", consent={"personalization": False}) for k in range(9)
    ]
    await send(settings, "clicks", [*refused, record("view_item", "u2", "e", NOW, item="i1")])
    with worker(settings):
        profiles = await until_counted(settings, 1)
        while len(pages := pages_of(await read_all(settings, "homepages"))) < 2:
            await asyncio.sleep(0.05)
    row = profiles.get("u1")
    assert row is None or (row["events"] == 0 and not row["recent_item"].any() and not row["activity"].any())
    assert {page["serving"]["mode"] for page in pages["u1"]} == {"popular"}
    assert pages["u2"][-1]["serving"]["mode"] == "cached_copy"


@scenario
async def test_a_purchase_counts_once_however_often_and_late_it_is_sent_again(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, late_events="refuse")
    await open_shop(settings)
    first, retry, second = (
        record("purchase", "u1", id, NOW + at, item="i1", transaction_id=transaction)
        for id, at, transaction in (("p1", 1, "t1"), ("p2", 400, "t1"), ("p3", 401, "t2"))
    )
    views = [record("view_item", "u1", f"v{n}", NOW + 2 + n, item=f"i{n % 50}") for n in range(150)]
    too_late = record("view_item", "u1", "late", NOW, item="i3")
    with worker(settings):
        await send(settings, "purchases", [first])
        await until_counted(settings, 1)
        await send(settings, "clicks", views)
        await until_counted(settings, 151)
        await send(settings, "purchases", [first, retry, second])
        await send(settings, "clicks", [too_late, record("view_homepage", "u1", "end", NOW + 500)])
        profiles = await until_counted(settings, 153)
    assert profiles["u1"]["kinds"][BUY] == 2 and np.count_nonzero(profiles["u1"]["bought_item"]) == 2
    [letter] = await read_all(settings, "dead-letters")
    headers = {name: value.decode() for name, value in letter.headers}
    assert (headers["error"], letter.value) == ("too_late", too_late[1])


@scenario
async def test_consent_goes_by_event_time_over_three_topics(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    no, yes = {"personalization": False}, {"personalization": True}
    privacy, purchases, views = [], [], []
    for n in range(40):
        shopper = f"u{n}"
        refuses = n % 2 == 0
        views.append(record("view_item", shopper, f"v{n}", NOW + 90, item="i1", consent=yes))
        privacy.append(record("consent", shopper, f"p{n}", NOW + 100, consent=no if refuses else yes))
        purchase = {"item": "i2", "transaction_id": f"t{n}", "consent": yes if refuses else no}
        purchases.append(record("purchase", shopper, f"b{n}", NOW + 50, **purchase))
    with worker(settings):
        for topic, sent in (("privacy", privacy), ("purchases", purchases), ("clicks", views)):
            await send(settings, topic, sent)
        await send(settings, "clicks", [record("view_homepage", f"u{n}", f"h{n}", NOW + 110) for n in range(40)])
        while not are_all_folded(profiles := await profiles_of(settings)):
            await asyncio.sleep(0.05)
        pages = pages_of(await read_all(settings, "homepages"))
    for n in range(40):
        assert profiles[f"u{n}"]["consent"] == (-1 if n % 2 == 0 else 1)
        assert n % 2 == 1 or pages[f"u{n}"][-1]["serving"]["mode"] == "popular"


def are_all_folded(profiles: dict[str, Any]) -> bool:
    """True if the event ids of each of the 40 profiles have the times of all four events, whatever their order."""
    times = {int(NOW) + age for age in (50, 90, 100, 110)}
    return len(profiles) == 40 and all(times <= set(row["id_time"].tolist()) for row in profiles.values())


DATA = Path(__file__).parents[3] / "shared" / "data" / "rsc15_100k_test.tsv.gz"


@pytest.mark.skipif(not DATA.exists(), reason=f"{DATA.name} is not on this machine: no real clickstream to replay")
@scenario
async def test_a_replay_gives_one_profile_per_session_despite_a_killed_worker(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    with worker(settings) as process:
        sender = await asyncio.to_thread(command, settings, "replay", str(DATA), "--limit", "6000", "--add-items")
        assert sender.returncode == 0, sender.stderr
        while not await profiles_of(settings):
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    expected = sessions(6000)
    with worker(settings):
        profiles = await until_counted(settings, 6000, 120.0)
    assert len(profiles) == len(expected)
    assert sorted(int(row["events"]) for row in profiles.values()) == sorted(expected.values())


def sessions(limit: int) -> dict[str, int]:
    """Number of rows of each session, among the first `limit` rows by time."""
    with gzip.open(DATA, "rt") as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda r: float(r["Time"]))[:limit]
    return dict(Counter(row["SessionId"] for row in rows))
