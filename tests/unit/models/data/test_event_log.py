"""Training from events: the fold, the sessions and the steps of serving; lines that are refused are told of."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.io.files import InputError
from deploy.train.command import _shop_and_log
from deploy.train.inputs import data_kind, read_catalog, read_events
from models.data.event_log import EventLog, distinct, items_of, without_erased
from models.data.replay import Shop, walk
from models.train.history.sequences import InteractionSequences
from models.train.progress import of_stretch
from stream.events import ADD, BUY, CLICK, CONSENT, ERASE, HOME, SEARCH, VIEW
from stream.ids import key32, key64
from stream.items.activity import SESSION_GAP
from stream.items.catalog import AVAILABLE, Catalog
from stream.profile.fold import blank, fold
from stream.row_codec import rows_at
from tests.harness.events import NOW, record, row, rows
from tests.unit.models.evaluation.test_evaluate import ITEMS, rounds


def log_of(*events: np.ndarray) -> EventLog:
    told = distinct(rows(*events))
    return EventLog.of_rows(told, items_of(told, None))


def test_a_step_begins_with_what_is_touched_next_and_a_session_after_a_pause() -> None:
    log = log_of(
        row(HOME, time=NOW), row(CLICK, "a", NOW + 1), row(VIEW, "a", NOW + 2), row(ADD, "a", NOW + 3),
        row(VIEW, "b", NOW + 10), row(ADD, "c", NOW + 20), row(SEARCH, time=NOW + 25, word="x"), row(BUY, "d", NOW + 30),
        row(VIEW, "d", NOW + 31 + SESSION_GAP),
    )  # fmt: skip
    assert log.ends.tolist() == [8, 9]
    # The first touch of all teaches nothing: nothing was known. Views after clicks, and additions, are no choices.
    assert log.choice.tolist() == [False, False, False, False, True, False, False, True, True]
    assert log.before[log.choice].tolist() == [1, 3, 0]


def test_whoever_refuses_consent_is_not_learnt_from() -> None:
    log = log_of(
        row(CLICK, "a", NOW), row(CLICK, "b", NOW + 1), row(CLICK, "c", NOW + 2, consent=-1), row(CLICK, "d", NOW + 3),
        row(CLICK, "e", NOW + 4, consent=1), row(CLICK, "f", NOW + 5),
    )  # fmt: skip
    assert log.choice.tolist() == [False, True, False, False, False, True]
    assert log.item[log.touched(0, 1)].tolist() == log.item[[0, 1, 4, 5]].tolist()
    shop = Shop(["?"] * 6, items_of(log.events, None))
    asked = [one.click.tolist() for one in walk(shop, log, ask=True, learn=True)]
    assert [click for clicks in asked for click in clicks] == [1, 5]


def test_what_a_shopper_did_until_she_asked_to_be_erased_is_not_learnt_from() -> None:
    told = rows(
        row(CLICK, "late", NOW + 4, shopper="u1"), row(CLICK, "old", NOW - 9e6, shopper="u1"), row(ERASE, time=NOW + 5),
        row(BUY, "x", NOW + 5, id="b"), row(BUY, "y", NOW + 5, id="b", part=1), row(ERASE, time=NOW - 8e6),
        row(CLICK, "a", NOW + 6), row(CLICK, "b", NOW + 7), row(CLICK, "late", NOW + 4, shopper="u2"),
        row(ERASE, time=NOW, shopper="u3"),
    )  # fmt: skip
    kept = without_erased(told)
    assert (kept.events, kept.shoppers) == (3, 1), "the purchase of two items is one event, and a request is none"
    assert kept.rows["item"].tolist() == [key64("a"), key64("b"), key64("late")]
    log = EventLog.of_rows(kept.rows, items_of(kept.rows, None))
    assert log.choice.tolist() == [False, False, True], "of what she did before nothing is known"
    assert without_erased(kept.rows).rows is kept.rows


@pytest.mark.parametrize(("consents", "learnt"), [((0, 0), True), ((-1, 0), False), ((-1, 1), True), ((1, -1), False)])
def test_a_refusal_of_consent_outlives_the_erasure(consents: tuple[int, int], learnt: bool) -> None:
    before = [row(VIEW, "old", NOW + k, consent=said) for k, said in enumerate(consents)]
    kept = without_erased(
        rows(*before[::-1], row(ERASE, time=NOW + 5), row(CLICK, "a", NOW + 6), row(CLICK, "b", NOW + 7))
    )
    assert kept.events == 2 and key64("old") not in kept.rows["item"]
    assert (kept.rows["kind"] == CONSENT).sum() == (not learnt)
    log = EventLog.of_rows(kept.rows, items_of(kept.rows, None))
    assert bool(log.choice.any()) == bool(len(log.touched(0, len(log.ends)))) == learnt


def test_a_clickstream_that_is_told_as_events_teaches_the_same() -> None:
    clicks = rounds(1, 200, 1)
    sessions = np.repeat(np.arange(200), np.diff(clicks.ends, prepend=0))
    told = rows(
        *(
            row(CLICK, ITEMS[i], t, id=str(n), shopper=f"s{s}")
            for n, (s, i, t) in enumerate(
                zip(sessions.tolist(), clicks.item.tolist(), clicks.time.tolist(), strict=True)
            )
        )
    )
    rng = np.random.default_rng(1)
    log = EventLog.of_rows(rows_at(told, rng.permutation(len(told))), Shop(ITEMS).catalog.items[: len(ITEMS)])
    assert log.ends.tolist() == clicks.ends.tolist() and log.item.tolist() == clicks.item.tolist()
    found: list[dict[int, Any]] = []
    for one in (clicks, log):
        shop = Shop(ITEMS)
        found.append({})
        for asked in walk(shop, one, ask=True, learn=True):
            targets = asked.targets(one).tolist()
            for u, click in enumerate(asked.click.tolist()):
                offered = asked.candidates.count[u]
                found[-1][click] = targets[u], int(asked.before[u]), asked.phi[u, :offered].tobytes()
    assert found[0] == found[1] and len(found[0]) > 300
    first, same = InteractionSequences.of_clicks(clicks), InteractionSequences.of_events(log, 0, len(log.ends))
    assert {a.tobytes() for a in np.split(first.item, first.ends[:-1])} == {
        a.tobytes() for a in np.split(same.item, same.ends[:-1])
    }


def test_a_long_walk_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.train.progress.PATIENCE", 0.0)
    monkeypatch.setattr("models.data.replay.AT_ONCE", 64)
    said: list[str] = []
    progress = of_stretch("sessions learnt", said.append)
    assert not list(walk(Shop(ITEMS), rounds(1, 200, 1), ask=False, learn=True, progress=progress))
    assert [line.split(",")[0] for line in said] == [f"sessions learnt: {done} of 200" for done in (64, 128, 192)]
    assert all(line.endswith("s left") for line in said)


def test_a_shopper_who_comes_back_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.replay.BLOCK", 2)
    events = [
        row((VIEW, ADD, BUY, CLICK)[k % 4], f"i{(k + day) % 5}", NOW + 86_400 * day + 60 * k + n, shopper=f"u{n}")
        for day in range(4) for k in range(6) for n in range(3)
    ]  # fmt: skip
    log = log_of(*events)
    assert len(log.ends) == 12 and log.final.sum() == 3
    shop = Shop(["?"] * 5, items_of(log.events, None))
    asked: dict[int, bytes] = {}
    for one in walk(shop, log, ask=True, learn=False):
        for u, click in enumerate(one.click.tolist()):
            asked[click] = one.phi[u, : one.candidates.count[u]].tobytes()
    assert not shop.shoppers, "nobody is kept who never comes again"
    mine = np.flatnonzero(log.events["shopper"] == key64("u1"))
    last = max(click for click in asked if click in mine)
    past = log.events[mine[mine < last]]
    profile = blank(1)
    fold(profile, np.zeros(len(past), np.int32), past.copy())
    (alone,) = walk_one(shop, profile)
    assert asked[last] == alone, "her profile holds all four days"


def walk_one(shop: Shop, profile: np.ndarray) -> list[bytes]:
    from models.data.replay import _ask

    one = _ask(shop, profile, np.zeros(1, np.int64), np.zeros(1, np.int64))
    return [one.phi[0, : one.candidates.count[0]].tobytes()]


def test_an_event_that_comes_twice_counts_once_with_all_its_parts() -> None:
    bought = rows(row(BUY, "a", id="x"), row(BUY, "b", id="x", part=1))
    other = row(CLICK, "c", id="x", shopper="u2")
    once = distinct(rows(bought, other, bought))
    assert once["item"].tolist() == [key64("a"), key64("b"), key64("c")]


def test_items_are_those_of_the_catalogue_and_of_the_events() -> None:
    catalog = Catalog()
    catalog.apply([(b"a", b'{"item_id":"a","title":"A","available":false,"category":"lamps"}')])
    told = rows(
        row(CLICK, "a", NOW), row(CLICK, "b", NOW, category="old", brand="x", price=2.0),
        row(CLICK, "b", NOW + 9, category="new"),
    )  # fmt: skip
    items = items_of(told, catalog)
    assert items["id"].tolist() == [key64("a"), key64("b")]
    assert items["flags"][0] & AVAILABLE, "somebody clicked on it: it was for sale then"
    assert items["category"].tolist() == [key32("lamps"), key32("new")]
    assert items["brand"][1] == key32("x") and items["log_price"][1] == pytest.approx(np.log(2.0))


def test_lines_that_are_no_events_are_told_of_with_line_field_and_value(tmp_path: Path) -> None:
    lines = [
        record(item="a", id="1")[1], b"", b"{half", record("view_thing", id="2")[1], record(item="b", id="3")[1],
        record("purchase", id="4", item="a", transaction_id="t")[1], record(item="b", id="3")[1],
        json.dumps({**json.loads(record(item="a", id="5")[1]), "time": "yesterday"}).encode(),
    ]  # fmt: skip
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    said: list[str] = []
    events = read_events([path], said.append)
    assert (len(events.rows), events.lines, events.refused, events.twice) == (3, 7, 3, 1)
    assert events.rows["kind"].tolist() == [CLICK, CLICK, BUY]
    text = "\n".join(said)
    assert f"{path} line 3: " in text and "{half" in text
    assert f"{path} line 4: type is 'view_thing'" in text
    assert f"{path} line 8: time is 'yesterday'" in text
    assert "3 of 7 lines were refused" in text and "1 events came more than once" in text
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(InputError, match="none of 2 lines is an event"):
        read_events([path], said.append)


def test_it_says_how_much_is_left_out_for_those_who_asked_to_be_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.jsonl"
    hers = [record(item="a", id="1")[1], record("erase", id="2", time=NOW + 5)[1], record(item="b", id="3")[1]]
    path.write_bytes(b"\n".join([*hers, record(item="c", id="4", user="u2")[1]]))
    monkeypatch.setattr("deploy.train.inputs.TOLD_EVERY", 3)
    said: list[str] = []
    events = read_events([path], said.append)
    assert events.rows["item"].tolist() == [key64("c")] and events.erased == 2
    assert said == [f"{path}: 3 lines read", "2 events of 1 shoppers who asked to be erased are left out"]
    path.write_bytes(b"\n".join(hers))
    with pytest.raises(InputError, match="all shoppers asked to be erased"):
        read_events([path], said.append)


def test_a_mark_at_the_beginning_and_ids_in_any_script_are_read(tmp_path: Path) -> None:
    path, items = tmp_path / "events.jsonl", tmp_path / "items.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + record(user="张三", item="灯🏮", id="é")[1] + b"\r\n" + record(item="b\u2028")[1]
    )
    assert data_kind([path]) == "events"
    rows = read_events([path], lambda line: pytest.fail(line)).rows
    assert rows["item"].tolist() == [key64("灯🏮"), key64("b\u2028")] and rows["shopper"][0] == key64("张三")
    items.write_text('\ufeff{"item_id":"灯🏮","title":"a\u2028b\x85c"}\r\n{"item_id":"b\u2028","title":"B"}\n')
    assert read_catalog(items, lambda line: None).rows_of(rows["item"]).tolist() == [0, 1]


def test_events_that_name_no_item_teach_nothing(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record("search", search_term="lamp")[1] + b"\n" + record("view_homepage", id="e2")[1])
    with pytest.raises(InputError, match="no event names an item"):
        _shop_and_log([path], None)


def test_bad_items_of_a_catalogue_are_told_of(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id":"a","title":"A"}\n{"item_id":"b"}\n')
    said: list[str] = []
    assert len(read_catalog(path, said.append)) == 1
    assert "line 2" in said[0] and "title" in said[0] and "1 refused" in said[1]
    path.write_text(f'[{{"item_id":"a","title":"A"}}, {{"item_id":"b","title":"B","price":{10**30}}}, 7]')
    assert len(read_catalog(path, said.append)) == 1
    path.write_bytes(record(item="a")[1])
    with pytest.raises(InputError, match="none of 1 lines is an item"):
        read_catalog(path, said.append)


def test_what_a_file_holds_is_seen_from_its_first_line(tmp_path: Path) -> None:
    table, events, pages = (tmp_path / name for name in ("a.tsv", "b.jsonl", "c.jsonl"))
    table.write_text("SessionId\tItemId\tTime\n")
    events.write_bytes(b"\n" + record(item="a")[1] + b"\n")
    pages.write_text('{"schema":"impression/1"}\n')
    assert data_kind([table]) == "clickstream" and data_kind([events]) == "events"
    assert data_kind([events, pages]) == "impressions"
    with pytest.raises(InputError, match="one kind"):
        data_kind([events, table])
    pages.write_text('{"features_hash":"x", "schema" : "impression/1", torn')
    assert data_kind([pages]) == "impressions", "wherever it says so"


def test_files_that_teach_nothing_say_what_is_expected(tmp_path: Path) -> None:
    path, pipe = tmp_path / "some", tmp_path / "pipe"
    for content, told in (
        (b"", "is empty; expected a clickstream"),
        (b"\n [{}]", "jq -c"),
        (gzip.compress(b""), "empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=told):
            data_kind([path])
    os.mkfifo(pipe)
    for once in (pipe, Path("-")):
        with pytest.raises(InputError, match="read but once"):
            data_kind([once])
