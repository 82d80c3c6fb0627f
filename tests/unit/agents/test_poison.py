"""Poison records: found and rejected while their neighbours are served, and never blamed for another fault."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page import fold_step
from agents.page import path as page_path
from agents.page.headline_cache import RefreshRequest
from agents.page.path import PagePath
from agents.page_refresher import DEFERRED_PAGE
from agents.poison import MAX_POISON_IN_A_ROW, error_location, redacted, without_poison
from models.featurize import featurize
from stream import metrics
from stream.ids import key64
from stream.items.activity import fold_with_activity
from stream.kafka.client.connection import partition_of
from stream.kafka.commit import Output
from stream.page.candidates import MAX_CANDIDATES
from stream.page.encode import encode_pages
from stream.profile.codec import owing_pages
from tests.harness.events import NOW, record
from tests.harness.page_path import FIRST_VERSION, PACED, path_of, requests_of
from tests.harness.shopper_agent import agent_of, one_view_each, process, profile_store, run_of

# The bisection.


class Bad(Exception):
    pass


def failing_for(
    bad: set[int], together: Sequence[set[int]] = ()
) -> tuple[Callable[[Sequence[int]], list[int]], list[int]]:
    """Work that fails for a record in `bad`, or for all of a set in `together`; and the sizes of its attempts."""
    sizes: list[int] = []

    def work(records: Sequence[int]) -> list[int]:
        sizes.append(len(records))
        if found := bad & set(records):
            raise Bad(min(found))
        for some in together:
            if some <= set(records):
                raise Bad(sorted(some))
        return list(records)

    return work, sizes


@given(st.integers(1, 200), st.data())
@settings(deadline=None)
def test_exactly_the_failing_records_are_left_out(n: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, n - 1)))
    answer, poison = without_poison(range(n), failing_for(bad)[0])
    assert answer == [k for k in range(n) if k not in bad]
    assert {at: error.args for at, error in poison.items()} == {k: (k,) for k in bad}


@given(st.integers(2, 60), st.data())
@settings(deadline=None)
def test_of_records_that_fail_only_together_the_last_is_left_out(n: int, data: st.DataObject) -> None:
    together = data.draw(st.lists(st.sets(st.integers(0, n - 1), min_size=2, max_size=3), min_size=1, max_size=3))
    answer, poison = without_poison(range(n), failing_for(set(), together)[0])
    assert answer == [k for k in range(n) if k not in poison]
    assert set(poison) <= {max(some) for some in together}
    assert not any(some <= set(answer) for some in together)


def test_one_failing_record_among_hundreds_costs_a_few_attempts() -> None:
    work, sizes = failing_for({317})
    without_poison(range(512), work)
    assert len(sizes) <= 2 * 9 + 3 and sum(sizes) <= 4 * 512


def test_work_that_fails_without_records_blames_no_record() -> None:
    def broken(records: Sequence[int]) -> None:
        raise Bad("always")

    with pytest.raises(Bad, match="always"):
        without_poison(range(5), broken)


def test_a_lack_of_memory_is_not_poison() -> None:
    def hungry(records: Sequence[int]) -> None:
        if len(records) == 1:
            raise MemoryError
        if records:
            raise Bad

    with pytest.raises(MemoryError):
        without_poison(range(5), hungry)


def test_a_redacted_error_contains_no_shopper_data() -> None:
    key, value = record("view_item", "ada@example.org", "e-77", NOW, item="SKU-9", session_id="s-123")
    error = KeyError(f"ada@example.org saw SKU-9 in s-123 at {1.5}")
    assert redacted(error, key, value) == "KeyError: '... saw ... in ... at 1.5'"
    assert redacted(ValueError("x" * 999), None, b"\xff{") == "ValueError: " + "x" * 188
    try:
        raise error
    except KeyError as raised:
        assert error_location(raised).startswith("KeyError in test_poison.py:")


# The shopper agent.


def rejections(outputs: Sequence[Output]) -> list[tuple[bytes | None, str, str]]:
    """(key, error, message) of each dead letter."""
    found = []
    for output in outputs:
        if output.topic == "dead-letters":
            for (key, _), pairs in zip(output.records, output.headers or (), strict=True):
                headers = {name: value.decode() for name, value in pairs}
                found.append((key, headers["error"], headers["message"]))
    return found


POISON = 217


def poison_fold(monkeypatch: pytest.MonkeyPatch, path: PagePath, shoppers: Sequence[str]) -> None:
    real, bad = fold_with_activity, [key64(name) for name in shoppers]

    def fold(profiles: Any, shopper_of: Any, rows: Any, *more: Any) -> Any:
        if np.isin(rows["shopper"], bad).any():
            raise ZeroDivisionError("in the fold")
        return real(profiles, shopper_of, rows, *more)

    monkeypatch.setattr(fold_step, "fold_with_activity", fold)


def poison_ranker(monkeypatch: pytest.MonkeyPatch, path: PagePath, shoppers: Sequence[str]) -> None:
    real, bad = path.ranker.score, {float(NOW + int(name[1:])) for name in shoppers}
    seen: list[float] = []

    def remember_times(profiles: Any, serving: Any, now: Any, *more: Any) -> Any:
        seen[:] = now.tolist()
        return featurize(profiles, serving, now, *more)

    def score(phi: Any, count: Any) -> Any:
        if phi.shape[1] == MAX_CANDIDATES and bad & set(seen):
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL")
        return real(phi, count)

    monkeypatch.setattr(page_path, "featurize", remember_times)
    monkeypatch.setattr(path.ranker, "score", score)


def poison_encoder(monkeypatch: pytest.MonkeyPatch, path: PagePath, shoppers: Sequence[str]) -> None:
    real = encode_pages

    def encode(placed: Any, count: Any, heads: Any, *more: Any) -> Any:
        for head in heads:
            if head.user_key in shoppers:
                raise UnicodeEncodeError("utf-8", head.user_key, 0, 1, f"{head.user_key} must not be logged")
        return real(placed, count, heads, *more)

    monkeypatch.setattr(page_path, "encode_pages", encode)


STAGES = [(poison_fold, "ZeroDivisionError"), (poison_ranker, "RuntimeError"), (poison_encoder, "UnicodeEncodeError")]


@pytest.mark.slow
@pytest.mark.parametrize(("inject", "name"), STAGES)
@pytest.mark.parametrize("n", [1, 300])
def test_poison_at_any_stage_is_rejected_and_its_neighbours_are_served(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, inject: Any, name: str, n: int
) -> None:
    sent = one_view_each(n, first=POISON - n // 2)
    good = [one for one in sent if one[0] != b"u%d" % POISON]
    monkeypatch.setattr("agents.shopper.time.time", lambda: NOW + 9999)
    expected, _ = process(agent_of(path_of()), run_of(good))[0] if good else (None, [])
    path, profiles = path_of(), profile_store()
    inject(monkeypatch, path, [f"u{POISON}"])
    labels = {"topic": "clicks", "error": "poison"}
    before = metrics.REGISTRY.get_sample_value("shopwindow_dead_letters_total", labels)
    [(result, outputs)] = process(agent_of(path, profiles), run_of(sent, first=40))
    [(key, error, message)] = rejections(outputs)
    assert (key, error) == (b"u%d" % POISON, "poison")
    assert message.startswith(name) and f"u{POISON}" not in message
    assert metrics.REGISTRY.get_sample_value("shopwindow_dead_letters_total", labels) == (before or 0) + 1
    assert profiles.count() == len(result.pages) == n - 1
    assert [line for line in caplog.messages if f"offset {40 + n // 2})" in line and name in line]
    assert not [line for line in caplog.messages if f"u{POISON}" in line]
    if expected is not None:
        assert (result.page_records(), result.changelog) == (expected.page_records(), expected.changelog)
        assert requests_of(result) == requests_of(expected), "the failed attempts requested no headline"


def test_poison_in_one_partition_does_not_affect_other_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    path, views = path_of(), one_view_each(60)
    views_of = [[view for view in views if partition_of(view[0], 3) == partition][:8] for partition in range(3)]
    first, second = views_of[0][3][0], views_of[1][5][0]
    poison_fold(monkeypatch, path, [first.decode(), second.decode()])
    runs = [run_of(views_of[partition], partition=partition) for partition in range(3)]
    results = process(agent_of(path, partitions=3), *runs)
    assert [len(result.pages) for result, _ in results] == [7, 7, 8]
    assert [[key for key, _, _ in rejections(outputs)] for _, outputs in results] == [[first], [second], []]


def test_invalid_events_and_poison_have_different_error_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of()
    poison_encoder(monkeypatch, path, ["u1"])
    [(result, outputs)] = process(agent_of(path), run_of([(b"u9", b"{"), *one_view_each(3), (b"u9", b"")]))
    assert sorted((key, error) for key, error, _ in rejections(outputs)) == [
        (b"u1", "poison"), (b"u9", "not_json"), (b"u9", "not_json"),
    ]  # fmt: skip
    assert len(result.pages) == 2


def test_a_deferred_page_that_fails_is_not_requested_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    path, profiles = path_of(), profile_store()
    path.degradation = PACED._replace(page_interval_s=3600.0)  # the agent's clock is the real one
    agent = agent_of(path, profiles)
    process(agent, run_of(one_view_each(1)))
    process(agent, run_of([record("view_item", "u0", "more", NOW + 1, item="i1")], first=1))
    assert owing_pages(profiles.partitions[0]) == {b"u0"} and len(profiles.deferred) == 1
    poison_encoder(monkeypatch, path, ["u0"])
    [(_, outputs)] = process(agent, run_of([(b"u0", DEFERRED_PAGE)], topic="refreshes"))
    assert [(key, error) for key, error, _ in rejections(outputs)] == [(b"u0", "poison")]
    assert len(profiles.deferred) == 0


@pytest.mark.parametrize("order", [1, -1])
def test_a_deferred_page_is_made_although_its_headline_refresh_is_skipped(order: int) -> None:
    path, profiles = path_of(), profile_store()
    path.degradation = PACED._replace(page_interval_s=3600.0)  # the agent's clock is the real one
    agent = agent_of(path, profiles)
    process(agent, run_of(one_view_each(1)))
    process(agent, run_of([record("view_item", "u0", "more", NOW + 1, item="i1")], first=1))
    for_headline = msgspec.json.encode(RefreshRequest("en|for_you|", "e0", NOW))
    requests = [(b"u0", DEFERRED_PAGE), (b"u0", for_headline)][::order]
    [(result, _)] = process(agent, run_of(requests, topic="refreshes"))
    [page] = result.pages
    assert (json.loads(page.value)["version"], page.trigger.event_id) == (FIRST_VERSION + 1, "more")
    assert page.was_deferred and len(profiles.deferred) == 0


def test_a_fault_of_the_program_stops_the_worker_and_blames_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise TypeError("u3")

    stages = [(page_path, name) for name in ("retrieve_candidates", "encode_pages", "encode_impressions")]
    for module, stage in [(fold_step, "fold_with_activity"), *stages]:
        with monkeypatch.context() as patch:
            path, profiles = path_of(), profile_store()
            patch.setattr(module, stage, broken)
            with pytest.raises(
                RuntimeError, match=r"fails for every event \(TypeError in test_poison.py.*wait in Kafka"
            ):
                process(agent_of(path, profiles), run_of(one_view_each(5)))
            assert profiles.count() == 0


@pytest.mark.slow
def test_many_failures_in_a_row_stop_the_worker_although_the_self_test_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of()
    limit = MAX_POISON_IN_A_ROW
    poison_fold(monkeypatch, path, [f"u{k}" for k in range(2 * limit)])
    agent = agent_of(path)
    for k in range(limit - 1):
        [(_, outputs)] = process(agent, run_of(one_view_each(1, first=k), first=k))
        assert len(rejections(outputs)) == 1
    with pytest.raises(RuntimeError, match=f"the last {limit} records"):
        process(agent, run_of(one_view_each(1, first=limit), first=limit))
    with pytest.raises(RuntimeError, match=f"the last {limit + 5} records"):
        process(agent_of(path), run_of(one_view_each(limit + 5)))


def test_a_lack_of_memory_stops_the_worker_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*arguments: Any) -> Any:
        raise MemoryError

    path = path_of()
    monkeypatch.setattr(page_path, "featurize", hungry)
    with pytest.raises(RuntimeError, match=r"memory is used up.*SHOPWINDOW_RUN_RECORDS"):
        process(agent_of(path), run_of(one_view_each(5)))


def test_the_self_test_makes_pages_and_requests_no_headline() -> None:
    path = path_of()
    pages = [json.loads(page.value) for page in path.self_test(NOW).pages]
    assert {page["serving"]["mode"] for page in pages} == {"popular", "full"}
    assert len(path.headlines) == 0 and path.headlines.may_request("en|trending|", NOW)
