"""A record that makes a step raise is found among its neighbours, who are served; where no record is to blame, none is blamed."""

import asyncio
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page import fold_step
from agents.page import path as page_path
from agents.page.headline_cache import RefreshRequest
from agents.page.path import PagePath, PageResult
from agents.poison import place, told, without_poison
from agents.shopper import ALL_POISON, Shoppers
from models.ranker.features import joint_features
from stream import metrics
from stream.ids import key64
from stream.items.activity import fold_with_activity
from stream.kafka.commit import Output
from stream.page.candidates import CANDIDATES
from stream.page.json_kernels import encode_pages
from stream.profile.codec import owing_pages
from stream.profile.store import MemoryProfileStore
from stream.settings import Settings
from tests.harness.events import NOW, record
from tests.unit.agents.page.test_path import path_of

# The bisecting.


class Bad(Exception):
    pass


def refusing(
    bad: set[int], together: Sequence[set[int]] = ()
) -> tuple[Callable[[Sequence[int]], list[int]], list[int]]:
    """Work that raises over any of `bad`, and over all of a set in `together` at once; and the size of each try."""
    tries: list[int] = []

    def work(records: Sequence[int]) -> list[int]:
        tries.append(len(records))
        if found := bad & set(records):
            raise Bad(min(found))
        for some in together:
            if some <= set(records):
                raise Bad(sorted(some))
        return list(records)

    return work, tries


@given(st.integers(1, 200), st.data())
@settings(deadline=None)
def test_exactly_the_records_that_raise_are_left_out(n: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, n - 1)))
    answer, poison = without_poison(range(n), refusing(bad)[0])
    assert answer == [k for k in range(n) if k not in bad]
    assert {at: error.args for at, error in poison.items()} == {k: (k,) for k in bad}


@given(st.integers(2, 60), st.data())
@settings(deadline=None)
def test_of_records_that_only_raise_together_the_one_that_tips_the_others_over_is_left_out(
    n: int, data: st.DataObject
) -> None:
    together = data.draw(st.lists(st.sets(st.integers(0, n - 1), min_size=2, max_size=3), min_size=1, max_size=3))
    answer, poison = without_poison(range(n), refusing(set(), together)[0])
    assert answer == [k for k in range(n) if k not in poison]
    assert set(poison) <= {max(some) for some in together}
    assert not any(some <= set(answer) for some in together)


def test_one_among_hundreds_costs_a_few_tries() -> None:
    work, tries = refusing({317})
    without_poison(range(512), work)
    assert len(tries) <= 2 * 9 + 3 and sum(tries) <= 4 * 512


def test_work_that_fails_over_nothing_blames_nobody() -> None:
    def broken(records: Sequence[int]) -> None:
        raise Bad("always")

    with pytest.raises(Bad, match="always"):
        without_poison(range(5), broken)


def test_want_of_memory_is_no_poison() -> None:
    def hungry(records: Sequence[int]) -> None:
        if len(records) == 1:
            raise MemoryError
        if records:
            raise Bad

    with pytest.raises(MemoryError):
        without_poison(range(5), hungry)


def test_what_is_told_of_an_error_holds_nothing_of_the_shopper() -> None:
    key, value = record("view_item", "ada@example.org", "e-77", NOW, item="SKU-9", session_id="s-123")
    error = KeyError(f"ada@example.org saw SKU-9 in s-123 at {1.5}")
    assert told(error, key, value) == "KeyError: '... saw ... in ... at 1.5'"
    assert told(ValueError("x" * 999), None, b"\xff{") == "ValueError: " + "x" * 188
    try:
        raise error
    except KeyError as raised:
        assert place(raised).startswith("KeyError in test_poison.py:")


# The agent of the shoppers.


def run_of(records: Sequence[tuple[bytes, bytes]], topic: str = "clicks", partition: int = 0, first: int = 0) -> Any:
    made = [
        SimpleNamespace(key=key, value=value, timestamp=(NOW + 9999) * 1000, offset=first + at, partition=partition,
                        headers=())
        for at, (key, value) in enumerate(records)
    ]  # fmt: skip
    return SimpleNamespace(topic=topic, partition=partition, records=made, skipped=0)


def served() -> MemoryProfileStore:
    """A store that serves the partitions of the tests."""
    profiles = MemoryProfileStore()
    profiles.serve(range(3), 0.0)
    return profiles


def agent(path: PagePath, profiles: MemoryProfileStore | None = None) -> Shoppers:
    async def off_loop(call: Any, brief: bool = False) -> Any:
        return call()

    nothing: Any = None
    return Shoppers(Settings(), path, profiles or served(), nothing, off_loop)


def answers(shoppers: Shoppers, *runs: Any) -> list[tuple[PageResult, list[Output]]]:
    """What the agent makes of runs that are taken in one step."""

    async def ask() -> list[Any]:
        return list(await asyncio.gather(*(shoppers._answer(run) for run in runs)))

    return asyncio.run(ask())


def letters(outputs: Sequence[Output]) -> list[tuple[bytes | None, str, str]]:
    found = []
    for output in outputs:
        if output.topic == "dead-letters":
            for (key, _), own in zip(output.records, output.headers or (), strict=True):
                headers = {name: value.decode() for name, value in own}
                found.append((key, headers["error"], headers["message"]))
    return found


def views(n: int, first: int = 0) -> list[tuple[bytes, bytes]]:
    return [record("view_item", f"u{k}", f"e{k}", NOW + k, item=f"i{k % 60}") for k in range(first, first + n)]


POISON = 217


def poison_fold(monkeypatch: pytest.MonkeyPatch, path: PagePath, shoppers: Sequence[str]) -> None:
    real, bad = fold_with_activity, [key64(name) for name in shoppers]

    def fold(profiles: Any, who: Any, rows: Any, offsets: Any) -> Any:
        if np.isin(rows["shopper"], bad).any():
            raise ZeroDivisionError("in the fold")
        return real(profiles, who, rows, offsets)

    monkeypatch.setattr(fold_step, "fold_with_activity", fold)


def poison_ranker(monkeypatch: pytest.MonkeyPatch, path: PagePath, shoppers: Sequence[str]) -> None:
    real, bad = path.ranker.score, {float(NOW + int(name[1:])) for name in shoppers}
    seen: list[float] = []

    def remembered(profiles: Any, serving: Any, now: Any, *more: Any) -> Any:
        seen[:] = now.tolist()
        return joint_features(profiles, serving, now, *more)

    def score(phi: Any, count: Any) -> Any:
        if phi.shape[1] == CANDIDATES and bad & set(seen):
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL")
        return real(phi, count)

    monkeypatch.setattr(page_path, "joint_features", remembered)
    monkeypatch.setattr(path.ranker, "score", score)


def poison_encoder(monkeypatch: pytest.MonkeyPatch, path: PagePath, shoppers: Sequence[str]) -> None:
    real = encode_pages

    def encode(placed: Any, count: Any, heads: Any, *more: Any) -> Any:
        for head in heads:
            if head.user_key in shoppers:
                raise UnicodeEncodeError("utf-8", head.user_key, 0, 1, f"{head.user_key} is not to be said")
        return real(placed, count, heads, *more)

    monkeypatch.setattr(page_path, "encode_pages", encode)


STAGES = [(poison_fold, "ZeroDivisionError"), (poison_ranker, "RuntimeError"), (poison_encoder, "UnicodeEncodeError")]


@pytest.mark.parametrize(("inject", "name"), STAGES)
@pytest.mark.parametrize("n", [1, 300])
def test_poison_at_any_stage_is_dead_lettered_and_its_neighbours_get_the_pages_of_a_run_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, inject: Any, name: str, n: int
) -> None:
    sent = views(n, first=POISON - n // 2)
    sane = [one for one in sent if one[0] != b"u%d" % POISON]
    monkeypatch.setattr("agents.shopper.time.time", lambda: NOW + 9999)
    expected, _ = answers(agent(path_of()), run_of(sane))[0] if sane else (None, [])
    path, profiles = path_of(), served()
    inject(monkeypatch, path, [f"u{POISON}"])
    before = metrics.REGISTRY.get_sample_value("shopwindow_dead_letters_total", {"topic": "clicks", "error": "poison"})
    [(step, outputs)] = answers(agent(path, profiles), run_of(sent, first=40))
    [(key, error, message)] = letters(outputs)
    assert (key, error) == (b"u%d" % POISON, "poison")
    assert message.startswith(name) and f"u{POISON}" not in message
    after = metrics.REGISTRY.get_sample_value("shopwindow_dead_letters_total", {"topic": "clicks", "error": "poison"})
    assert after == (before or 0) + 1
    assert profiles.count() == len(step.pages) == n - 1
    assert [line for line in caplog.messages if f"offset {40 + n // 2})" in line and name in line]
    assert not [line for line in caplog.messages if f"u{POISON}" in line]
    if expected is not None:
        assert (step.pages, step.changelog) == (expected.pages, expected.changelog)
        assert step.requests == expected.requests, "what was tried has asked for no headline"


def test_poison_in_one_partition_leaves_the_runs_beside_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of()
    poison_fold(monkeypatch, path, ["u3", "u11"])
    runs = [
        run_of(views(8), partition=0),
        run_of(views(8, first=8), partition=1),
        run_of(views(8, first=16), partition=2),
    ]
    made = answers(agent(path), *runs)
    assert [len(step.pages) for step, _ in made] == [7, 7, 8]
    assert [[key for key, _, _ in letters(outputs)] for _, outputs in made] == [[b"u3"], [b"u11"], []]


def test_bad_events_and_poison_each_have_their_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    path = path_of()
    poison_encoder(monkeypatch, path, ["u1"])
    [(step, outputs)] = answers(agent(path), run_of([(b"u9", b"{"), *views(3), (b"u9", b"")]))
    assert sorted((key, error) for key, error, _ in letters(outputs)) == [
        (b"u1", "poison"), (b"u9", "not_json"), (b"u9", "not_json"),
    ]  # fmt: skip
    assert len(step.pages) == 2


def test_a_page_that_is_owed_and_cannot_be_made_is_not_asked_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.shopper import PAGE_OWED
    from tests.unit.agents.page.test_shedding import PACED

    path, profiles = path_of(), served()
    path.shed = PACED
    shoppers = agent(path, profiles)
    answers(shoppers, run_of(views(1)))
    answers(shoppers, run_of([record("view_item", "u0", "more", NOW + 1, item="i1")], first=1))
    assert owing_pages(profiles.partitions[0]) == {b"u0"} and len(profiles.owed) == 1
    poison_encoder(monkeypatch, path, ["u0"])
    [(_, outputs)] = answers(shoppers, run_of([(b"u0", PAGE_OWED)], topic="refreshes"))
    assert [(key, error) for key, error, _ in letters(outputs)] == [(b"u0", "poison")]
    assert len(profiles.owed) == 0


@pytest.mark.parametrize("order", [1, -1])
def test_a_page_that_is_owed_is_made_beside_one_for_a_headline_that_is_shed(order: int) -> None:
    from agents.shopper import PAGE_OWED
    from tests.unit.agents.page.test_shedding import PACED

    path, profiles = path_of(), served()
    path.shed = PACED
    shoppers = agent(path, profiles)
    answers(shoppers, run_of(views(1)))
    answers(shoppers, run_of([record("view_item", "u0", "more", NOW + 1, item="i1")], first=1))
    headline = msgspec.json.encode(RefreshRequest("en|for_you|", "e0", NOW))
    asked = [(b"u0", PAGE_OWED), (b"u0", headline)][::order]
    [(step, _)] = answers(shoppers, run_of(asked, topic="refreshes"))
    assert [(json.loads(value)["version"], trigger.event_id) for (_, value), trigger in zip(step.pages, step.triggers, strict=True)] == [(2, "more")]  # fmt: skip
    assert step.owed == [True] and len(profiles.owed) == 0


def test_a_fault_of_the_program_stops_the_worker_with_a_sentence_and_blames_no_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise TypeError("u3")

    stages = [(page_path, name) for name in ("retrieve", "encode_pages", "encode_impressions")]
    for module, stage in [(fold_step, "fold_with_activity"), *stages]:
        with monkeypatch.context() as patch:
            path, profiles = path_of(), served()
            patch.setattr(module, stage, broken)
            with pytest.raises(RuntimeError, match=r"whatever the event \(TypeError in test_poison.py.*wait in Kafka"):
                answers(agent(path, profiles), run_of(views(5)))
            assert profiles.count() == 0


def test_a_fault_that_the_probe_does_not_meet_stops_the_worker_before_everything_is_a_dead_letter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = path_of()
    poison_fold(monkeypatch, path, [f"u{k}" for k in range(2 * ALL_POISON)])
    shoppers = agent(path)
    for k in range(ALL_POISON - 1):
        [(_, outputs)] = answers(shoppers, run_of(views(1, first=k), first=k))
        assert len(letters(outputs)) == 1
    with pytest.raises(RuntimeError, match=f"the last {ALL_POISON} records"):
        answers(shoppers, run_of(views(1, first=ALL_POISON), first=ALL_POISON))
    with pytest.raises(RuntimeError, match=f"the last {ALL_POISON + 5} records"):
        answers(agent(path), run_of(views(ALL_POISON + 5)))


def test_want_of_memory_stops_the_worker_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*arguments: Any) -> Any:
        raise MemoryError

    path = path_of()
    monkeypatch.setattr(page_path, "joint_features", hungry)
    with pytest.raises(RuntimeError, match=r"memory is used up.*SHOPWINDOW_RUN_RECORDS"):
        answers(agent(path), run_of(views(5)))


def test_the_probe_is_a_page_like_any_other() -> None:
    path = path_of()
    pages = [json.loads(value) for _, value in path.probe(NOW).pages]
    assert {page["serving"]["mode"] for page in pages} == {"popular", "full"}
    assert len(path.copies) == 0 and path.copies.wants("en|trending|", NOW)
