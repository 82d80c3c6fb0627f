"""Training from events: sessions and steps as in serving, consent and erasure, and refused lines."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.io.files import InputError
from deploy.train.command import _load_inputs
from deploy.train.inputs import data_kind, read_catalog, read_events
from models.data.event_log import EventLog, collect_items, without_duplicates, without_erased
from models.data.replay import OfflineShop, _candidates_and_phi, replay_sessions
from models.train.history.sequences import InteractionSequences
from models.train.progress import progress_logger
from stream.events.decode import ADD, BUY, CLICK, CONSENT, ERASE, HOME, SEARCH, VIEW
from stream.ids import key32, key64
from stream.items.catalog import AVAILABLE, Catalog
from stream.name_patterns import NamePatterns
from stream.profile.fold import fold
from stream.profile.repeats import SESSION_GAP_S
from stream.profile.row import blank_profiles
from stream.row_codec import rows_at
from tests.harness.events import NOW, record, row, rows
from tests.harness.training import ITEMS, ignore_line, stride_clicks


def log_of(*events: np.ndarray) -> EventLog:
    distinct = without_duplicates(rows(*events))
    return EventLog.of_rows(distinct, collect_items(distinct, None))


def test_steps_start_at_the_next_item_and_sessions_after_a_pause() -> None:
    log = log_of(
        row(HOME, time=NOW), row(CLICK, "a", NOW + 1), row(VIEW, "a", NOW + 2), row(ADD, "a", NOW + 3),
        row(VIEW, "b", NOW + 10), row(ADD, "c", NOW + 20), row(SEARCH, time=NOW + 25, word="x"),
        row(BUY, "d", NOW + 30), row(VIEW, "d", NOW + 31 + SESSION_GAP_S),
    )  # fmt: skip
    assert log.ends.tolist() == [8, 9]
    # At the first interaction nothing was known. Views after clicks, and additions to the cart, are no targets.
    assert log.is_target.tolist() == [False, False, False, False, True, False, False, True, True]
    assert log.steps_before[log.is_target].tolist() == [1, 3, 0]


def test_events_without_consent_are_not_learnt_from() -> None:
    log = log_of(
        row(CLICK, "a", NOW), row(CLICK, "b", NOW + 1), row(CLICK, "c", NOW + 2, consent=-1), row(CLICK, "d", NOW + 3),
        row(CLICK, "e", NOW + 4, consent=1), row(CLICK, "f", NOW + 5),
    )  # fmt: skip
    assert log.is_target.tolist() == [False, True, False, False, False, True]
    assert log.item[log.interactions(0, 1)].tolist() == log.item[[0, 1, 4, 5]].tolist()
    shop = OfflineShop(["?"] * 6, collect_items(log.events, None))
    queries = replay_sessions(shop, log, query=True, learn=True)
    assert [event for query in queries for event in query.target_event.tolist()] == [1, 5]


def test_events_before_an_erasure_request_are_not_learnt_from() -> None:
    events = rows(
        row(CLICK, "late", NOW + 4, shopper="u1"), row(CLICK, "old", NOW - 9e6, shopper="u1"), row(ERASE, time=NOW + 5),
        row(BUY, "x", NOW + 5, id="b"), row(BUY, "y", NOW + 5, id="b", part=1), row(ERASE, time=NOW - 8e6),
        row(CLICK, "a", NOW + 6), row(CLICK, "b", NOW + 7), row(CLICK, "late", NOW + 4, shopper="u2"),
        row(ERASE, time=NOW, shopper="u3"),
    )  # fmt: skip
    kept = without_erased(events)
    assert (kept.events, kept.shoppers) == (3, 1), (
        "the purchase of two items is one event, and a request does not count"
    )
    assert kept.rows["item"].tolist() == [key64("a"), key64("b"), key64("late")]
    log = EventLog.of_rows(kept.rows, collect_items(kept.rows, None))
    assert log.is_target.tolist() == [False, False, True], "nothing is known of the time before the request"
    assert without_erased(kept.rows).rows is kept.rows


@pytest.mark.parametrize(("consents", "learnt"), [((0, 0), True), ((-1, 0), False), ((-1, 1), True), ((1, -1), False)])
def test_a_refusal_of_consent_outlives_the_erasure(consents: tuple[int, int], learnt: bool) -> None:
    before = [row(VIEW, "old", NOW + k, consent=consent) for k, consent in enumerate(consents)]
    kept = without_erased(
        rows(*before[::-1], row(ERASE, time=NOW + 5), row(CLICK, "a", NOW + 6), row(CLICK, "b", NOW + 7))
    )
    assert kept.events == 2 and key64("old") not in kept.rows["item"]
    assert (kept.rows["kind"] == CONSENT).sum() == (not learnt)
    log = EventLog.of_rows(kept.rows, collect_items(kept.rows, None))
    assert bool(log.is_target.any()) == bool(len(log.interactions(0, len(log.ends)))) == learnt


def test_a_clickstream_sent_as_events_trains_the_same() -> None:
    clicks = stride_clicks(1, 200, 1)
    sessions = np.repeat(np.arange(200), np.diff(clicks.ends, prepend=0))
    events = rows(
        *(
            row(CLICK, ITEMS[i], t, id=str(n), shopper=f"s{s}")
            for n, (s, i, t) in enumerate(
                zip(sessions.tolist(), clicks.item.tolist(), clicks.time.tolist(), strict=True)
            )
        )
    )
    rng = np.random.default_rng(1)
    log = EventLog.of_rows(
        rows_at(events, rng.permutation(len(events))), OfflineShop(ITEMS).catalog.items[: len(ITEMS)]
    )
    assert log.ends.tolist() == clicks.ends.tolist() and log.item.tolist() == clicks.item.tolist()
    found: list[dict[int, Any]] = []
    for source in (clicks, log):
        shop = OfflineShop(ITEMS)
        found.append({})
        for query in replay_sessions(shop, source, query=True, learn=True):
            columns = query.target_columns(source).tolist()
            for u, event in enumerate(query.target_event.tolist()):
                count = query.candidates.count[u]
                found[-1][event] = columns[u], int(query.steps_before[u]), query.phi[u, :count].tobytes()
    assert found[0] == found[1] and len(found[0]) > 300
    first, same = InteractionSequences.of_clicks(clicks), InteractionSequences.of_events(log, 0, len(log.ends))
    assert {a.tobytes() for a in np.split(first.item, first.ends[:-1])} == {
        a.tobytes() for a in np.split(same.item, same.ends[:-1])
    }


def test_a_long_replay_logs_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.train.progress.QUIET_S", 0.0)
    monkeypatch.setattr("models.data.replay.LEARNT_SESSIONS", 64)
    lines: list[str] = []
    progress = progress_logger("sessions learnt", lines.append)
    clicks = stride_clicks(1, 200, 1)
    assert not list(replay_sessions(OfflineShop(ITEMS), clicks, query=False, learn=True, progress=progress))
    assert [line.split(",")[0] for line in lines] == [f"sessions learnt: {done} of 200" for done in (64, 128, 192)]
    assert all(line.endswith("s left") for line in lines)


def test_a_returning_shopper_keeps_their_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.data.replay.RANKED_SESSIONS", 2)
    events = [
        row((VIEW, ADD, BUY, CLICK)[k % 4], f"i{(k + day) % 5}", NOW + 86_400 * day + 60 * k + n, shopper=f"u{n}")
        for day in range(4) for k in range(6) for n in range(3)
    ]  # fmt: skip
    log = log_of(*events)
    assert len(log.ends) == 12 and log.is_last.sum() == 3
    shop = OfflineShop(["?"] * 5, collect_items(log.events, None))
    phi_at: dict[int, bytes] = {}
    for query in replay_sessions(shop, log, query=True, learn=False):
        for u, event in enumerate(query.target_event.tolist()):
            phi_at[event] = query.phi[u, : query.candidates.count[u]].tobytes()
    assert not shop.shoppers, "profiles of shoppers who never return are dropped"
    mine = np.flatnonzero(log.events["shopper"] == key64("u1"))
    last = max(event for event in phi_at if event in mine)
    past = log.events[mine[mine < last]]
    profile = blank_profiles(1)
    fold(profile, np.zeros(len(past), np.int32), past.copy())
    candidates, phi = _candidates_and_phi(shop, profile)
    assert phi_at[last] == phi[0, : candidates.count[0]].tobytes(), "the profile holds all four days"


def test_a_repeated_event_counts_once_with_all_its_parts() -> None:
    bought = rows(row(BUY, "a", id="x"), row(BUY, "b", id="x", part=1))
    other = row(CLICK, "c", id="x", shopper="u2")
    distinct = without_duplicates(rows(bought, other, bought))
    assert distinct["item"].tolist() == [key64("a"), key64("b"), key64("c")]


def test_items_come_from_the_catalogue_and_the_events() -> None:
    catalog = Catalog()
    catalog.apply([(b"a", b'{"item_id":"a","title":"A","available":false,"category":"lamps"}')])
    events = rows(
        row(CLICK, "a", NOW), row(CLICK, "b", NOW, category="old", brand="x", price=2.0),
        row(CLICK, "b", NOW + 9, category="new"),
    )  # fmt: skip
    items = collect_items(events, catalog)
    assert items["id"].tolist() == [key64("a"), key64("b")]
    assert items["flags"][0] & AVAILABLE, "it was clicked, so it was for sale then"
    assert items["category"].tolist() == [key32("lamps"), key32("new")]
    assert items["brand"][1] == key32("x") and items["log_price"][1] == pytest.approx(np.log(2.0))


def test_refused_lines_are_logged_with_line_field_and_value(tmp_path: Path) -> None:
    lines = [
        record(item="a", id="1")[1], b"", b"{half", record("view_thing", id="2")[1], record(item="b", id="3")[1],
        record("purchase", id="4", item="a", transaction_id="t")[1], record(item="b", id="3")[1],
        json.dumps({**json.loads(record(item="a", id="5")[1]), "time": "yesterday"}).encode(),
    ]  # fmt: skip
    path = tmp_path / "events.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    log: list[str] = []
    events = read_events([path], log.append)
    assert (len(events.rows), events.lines, events.refused, events.repeated) == (3, 7, 3, 1)
    assert events.rows["kind"].tolist() == [CLICK, CLICK, BUY]
    text = "\n".join(log)
    assert f"{path} line 3: " in text and "{half" in text
    assert f"{path} line 4: type is 'view_thing'" in text
    assert f"{path} line 8: time is 'yesterday'" in text
    assert "3 of 7 lines were refused" in text and "1 events came more than once" in text
    path.write_bytes(b"{}\n{}\n")
    with pytest.raises(InputError, match="none of 2 lines is an event to learn from"):
        read_events([path], log.append)


def test_the_number_of_erased_events_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    erased = [record(item="a", id="1")[1], record("erase", id="2", time=NOW + 5)[1], record(item="b", id="3")[1]]
    path.write_bytes(b"\n".join([*erased, record(item="c", id="4", user="u2")[1]]))
    monkeypatch.setattr("deploy.train.inputs.PROGRESS_LINES", 3)
    log: list[str] = []
    events = read_events([path], log.append)
    assert events.rows["item"].tolist() == [key64("c")] and events.erased == 2
    assert log == [f"{path}: 3 lines read", "2 events of 1 shoppers who asked to be erased are left out"]
    path.write_bytes(b"\n".join(erased))
    with pytest.raises(InputError, match="all shoppers asked to be erased"):
        read_events([path], log.append)


def test_events_of_excluded_shoppers_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    users = ("u1", "monitor-1", "u2", "monitor-2")
    path.write_bytes(b"\n".join(record(item=f"{user}'s", id=user, user=user)[1] for user in users))
    log: list[str] = []
    events = read_events([path], log.append, NamePatterns(["monitor-*"]))
    assert events.rows["item"].tolist() == [key64("u1's"), key64("u2's")] and events.lines == 4
    assert log == ["2 events of shoppers in SHOPWINDOW_EXCLUDE_SHOPPERS are left out"]
    with pytest.raises(InputError, match="none of 4 lines is an event to learn from"):
        read_events([path], log.append, NamePatterns(["*"]))


def test_byte_order_marks_and_ids_in_any_script_are_read(tmp_path: Path) -> None:
    path, items = tmp_path / "events.jsonl", tmp_path / "items.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + record(user="张三", item="灯🏮", id="é")[1] + b"\r\n" + record(item="b\u2028")[1]
    )
    assert data_kind([path]) == "events"
    rows = read_events([path], lambda line: pytest.fail(line)).rows
    assert rows["item"].tolist() == [key64("灯🏮"), key64("b\u2028")] and rows["shopper"][0] == key64("张三")
    items.write_text('\ufeff{"item_id":"灯🏮","title":"a\u2028b\x85c"}\r\n{"item_id":"b\u2028","title":"B"}\n')
    assert read_catalog(items, ignore_line).rows_of(rows["item"]).tolist() == [0, 1]


def test_events_without_items_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record("search", search_term="lamp")[1] + b"\n" + record("view_homepage", id="e2")[1])
    with pytest.raises(InputError, match="no event names an item"):
        _load_inputs([path], None)


def test_bad_items_of_a_catalogue_are_logged(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id":"a","title":"A"}\n{"item_id":"b"}\n')
    log: list[str] = []
    assert len(read_catalog(path, log.append)) == 1
    assert "line 2" in log[0] and "title" in log[0] and "1 refused" in log[1]
    path.write_text(f'[{{"item_id":"a","title":"A"}}, {{"item_id":"b","title":"B","price":{10**30}}}, 7]')
    assert len(read_catalog(path, log.append)) == 1
    path.write_bytes(record(item="a")[1])
    with pytest.raises(InputError, match="none of 1 lines is an item"):
        read_catalog(path, log.append)


def test_the_first_line_decides_the_format_of_a_file(tmp_path: Path) -> None:
    table, events, pages = (tmp_path / name for name in ("a.tsv", "b.jsonl", "c.jsonl"))
    table.write_text("SessionId\tItemId\tTime\n")
    events.write_bytes(b"\n" + record(item="a")[1] + b"\n")
    pages.write_text('{"schema":"impression/1"}\n')
    assert data_kind([table]) == "clickstream" and data_kind([events]) == "events"
    assert data_kind([events, pages]) == "impressions"
    with pytest.raises(InputError, match="one kind"):
        data_kind([events, table])
    pages.write_text('{"features_hash":"x", "schema" : "impression/1", torn')
    assert data_kind([pages]) == "impressions", "the schema may stand anywhere in the line"


def test_unusable_files_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    path, pipe = tmp_path / "some", tmp_path / "pipe"
    for content, message in (
        (b"", "is empty; expected a clickstream"),
        (b"\n [{}]", "jq -c"),
        (gzip.compress(b""), "empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            data_kind([path])
    os.mkfifo(pipe)
    for once in (pipe, Path("-")):
        with pytest.raises(InputError, match="read only once"):
            data_kind([once])
