"""The product's guarantees, against a real worker and a real broker."""

import asyncio
import csv
import gzip
import itertools
import json
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from stream.events.decode import BUY
from stream.ids import key64
from stream.kafka import topics
from stream.page.schemas import schemas
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.shop import item
from tests.harness.worker_process import (
    Record,
    assert_versions_rise,
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
    assert_versions_rise(pages)
    for shopper, made in pages.items():
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


NO, YES = {"personalization": False}, {"personalization": True}
# What a shopper does, by seconds after NOW: topic, kind of event, data. Their newest statement is a grant or a refusal.
GRANTED: dict[int, tuple[str, str, dict[str, Any]]] = {
    10: ("clicks", "view_item", {"item": "i1"}),
    20: ("privacy", "consent", {"consent": NO}),
    30: ("clicks", "view_item", {"item": "i2"}),
    40: ("purchases", "purchase", {"item": "i3", "transaction_id": "t", "consent": YES}),
    50: ("clicks", "view_item", {"item": "i4"}),
}
REFUSED: dict[int, tuple[str, str, dict[str, Any]]] = {
    10: ("clicks", "view_item", {"item": "i1", "consent": YES}),
    20: ("purchases", "purchase", {"item": "i2", "transaction_id": "t"}),
    30: ("privacy", "consent", {"consent": YES}),
    40: ("clicks", "view_item", {"item": "i3"}),
    50: ("clicks", "view_item", {"item": "i4", "consent": NO}),
}
ORDERS = list(itertools.permutations(GRANTED))  # of arrival, by event time


@scenario
async def test_consent_has_one_outcome_in_every_order_of_arrival(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    people = {f"{name}{n}": (acts, order) for name, acts in (("yes", GRANTED), ("no", REFUSED))
              for n, order in enumerate(ORDERS)}  # fmt: skip
    with worker(settings):
        # In round k each shopper's event number k arrives. The topics are read in any order, so a round waits for all.
        for k in range(len(GRANTED)):
            sent: dict[str, list[Record]] = {"clicks": [], "purchases": [], "privacy": []}
            for shopper, (acts, order) in people.items():
                for time in {order[k], order[k - 1]} if k else {order[0]}:  # the previous one is delivered again
                    topic, kind, data = acts[time]
                    sent[topic].append(record(kind, shopper, f"e{time}", NOW + time, **data))
            for topic, records in sent.items():
                await send(settings, topic, records)
            times = {shopper: {int(NOW) + time for time in order[: k + 1]} for shopper, (_, order) in people.items()}
            while not are_folded(profiles := await profiles_of(settings), times):
                await asyncio.sleep(0.02)
        await send(settings, "clicks", [record("view_homepage", shopper, "end", NOW + 60) for shopper in people])
        while not are_folded(profiles := await profiles_of(settings), {key: {int(NOW) + 60} for key in people}):
            await asyncio.sleep(0.02)
        pages = pages_of(await read_all(settings, "homepages"))
    for shopper, (acts, order) in people.items():
        row, mode = profiles[shopper], pages[shopper][-1]["serving"]["mode"]
        seen = set(row["recent_item"].tolist()) - {0}
        if acts is REFUSED:
            assert (row["consent"], row["consent_time"], mode) == (-1, NOW + 50, "popular"), order
            assert not seen and not row["activity"].any() and not row["bought_item"].any(), order
            assert row.tobytes() == profiles["no0"].tobytes(), order
            continue
        assert (row["consent"], mode) == (1, "cached_copy"), order
        assert [row[f"{name}_time"] - NOW for name in ("consent", "refused", "granted")] == [40, 20, 40], order
        # What is kept of the covered events depends on the order: see the decision in stream/README.md.
        counters = {"events", "kinds", "activity", "activity_at", "recent_item", "recent_time", "recent_kind"}
        for name in set(row.dtype.names) - counters:
            assert (row[name] == profiles["yes0"][name]).all(), (name, order)
        # An event is lost if the refusal has arrived when it does, or afterwards, and the grant has not.
        refusal, grant, view = (order.index(time) for time in (20, 40, 50))
        is_lost = max(refusal, view) < grant
        assert seen == {key64(item) for item in (("i3",) if is_lost else ("i3", "i4"))}, order


def are_folded(profiles: dict[str, Any], times: Mapping[str, set[int]]) -> bool:
    """True if the event ids of each profile have these times, in whole seconds."""
    return profiles.keys() >= times.keys() and all(
        expected <= set(profiles[shopper]["id_time"].tolist()) for shopper, expected in times.items()
    )


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
