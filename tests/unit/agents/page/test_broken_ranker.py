"""A ranker that gives no probabilities: pages are the popular ones, loudly, until it works again."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page.path import PagePath, Policy, warm
from models.ranker.features import F
from models.ranker.model import TOLERANCE, Ranker, sound
from models.train.ranker.fit import Fit, export
from stream import metrics
from stream.page.json_kernels import schemas
from tests.harness.events import NOW
from tests.unit.agents.page.test_path import path_of, run_of
from tests.unit.agents.page.test_path import views as views_of
from tests.unit.agents.test_poison import agent, answers, views
from tests.unit.agents.test_poison import run_of as run

odd = st.sampled_from((0.0, 0.25, 0.5, 1.0, -0.1, float("nan"), float("inf"), 1.0 - TOLERANCE / 2))


@given(st.lists(st.tuples(st.lists(odd, min_size=4, max_size=4), st.integers(0, 4)), min_size=1, max_size=8))
@settings(deadline=None)
def test_a_distribution_is_told_from_anything_else(rows: list[tuple[list[float], int]]) -> None:
    scores, count = np.array([row for row, _ in rows], np.float32), np.array([n for _, n in rows], np.int32)
    expected = [
        n == 0 or (all(p >= 0 for p in row[:n]) and abs(sum(row[:n]) - 1) < TOLERANCE) for row, n in rows
    ]  # fmt: skip
    assert sound(scores, count).tolist() == expected


def test_scores_of_another_shape_are_no_distribution() -> None:
    count = np.array([2, 1], np.int32)
    assert not sound(np.full((2, 1), 1.0, np.float32), count).any()
    assert not sound(np.full(2, 1.0, np.float32), count).any()


def fails(phi: Any, count: Any) -> Any:
    raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION")


ANSWERS = {
    "NaN": lambda phi, count: np.full(phi.shape[:2], np.nan, np.float32),
    "inf": lambda phi, count: np.full(phi.shape[:2], np.inf, np.float32),
    "no distribution": lambda phi, count: np.ones(phi.shape[:2], np.float32),
    "negative": lambda phi, count: np.tile(np.array([2, -1, *[0] * 254], np.float32)[: phi.shape[1]], (len(phi), 1)),
    "another shape": lambda phi, count: np.ones((len(phi), 1), np.float32),
    "it fails": fails,
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("shoppers", [1, 70])
def test_pages_of_a_broken_ranker_are_those_of_the_popular_group(
    monkeypatch: pytest.MonkeyPatch, name: str, shoppers: int
) -> None:
    path = path_of()
    monkeypatch.setattr(path.ranker, "score", ANSWERS[name])
    step = path.refresh_partition({}, *run_of(*views_of(shoppers, 2)), NOW)
    expected = path_of(popular_share=1.0).step({}, *run_of(*views_of(shoppers, 2)), NOW)
    assert step.pages == expected.pages and step.changelog == expected.changelog
    assert set(step.modes) == {"popular"} and step.unsound == [True] * shoppers
    assert not any(expected.unsound)
    validator = jsonschema.Draft202012Validator(schemas()["homepage/1"])
    for _, value in step.pages:
        validator.validate(json.loads(value))


def test_one_shopper_without_probabilities_leaves_the_others_their_personal_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, sent = path_of(), views_of(70, 2)
    expected = path.refresh_partition({}, *run_of(*sent), NOW)
    score, popular = path.ranker.score, path_of(popular_share=1.0).step({}, *run_of(*sent), NOW)
    calls: list[int] = []

    def one_is_nan(phi: Any, count: Any) -> Any:
        scores = score(phi, count).copy()
        if len(calls) == 0:
            scores[5] = np.nan
        calls.append(len(phi))
        return scores

    monkeypatch.setattr(path.ranker, "score", one_is_nan)
    step = path.refresh_partition({}, *run_of(*sent), NOW)
    assert step.unsound == [at == 5 for at in range(70)]
    assert step.pages == [*expected.pages[:5], popular.pages[5], *expected.pages[6:]]


def test_it_is_said_once_and_once_more_when_it_works_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = path_of(), NOW
    shoppers, score = agent(path), path.ranker.score
    monkeypatch.setattr("agents.shopper.time.time", lambda: now)

    def broken() -> float | None:
        return metrics.REGISTRY.get_sample_value("shopwindow_ranker_broken")

    count = metrics.REGISTRY.get_sample_value("shopwindow_unsound_pages_total") or 0.0
    for k in range(3):
        monkeypatch.setattr(path.ranker, "score", fails if k % 2 else ANSWERS["NaN"])
        [(step, _)] = answers(shoppers, run(views(4, first=4 * k), first=4 * k))
        assert step.modes == ["popular"] * 4
    assert broken() == 1
    assert metrics.REGISTRY.get_sample_value("shopwindow_unsound_pages_total") == count + 12
    assert len(caplog.messages) == 1 and "shopwindow train ranker" in caplog.messages[0]
    monkeypatch.setattr(path.ranker, "score", score)
    now += 5
    [(step, _)] = answers(shoppers, run(views(4, first=20), first=20))
    assert step.modes == ["full"] * 4, "pages are personal at once"
    assert broken() == 1
    now += 6
    answers(shoppers, run(views(4, first=30), first=30))
    assert broken() == 0
    assert len(caplog.messages) == 2 and "personal" in caplog.messages[1]


def test_a_model_of_nan_on_the_disk_gives_popular_pages(tmp_path: Path) -> None:
    export(
        tmp_path / "ranker",
        Fit(np.full((F, 1), np.nan, np.float32), 1.0, 2.0, 0.5),
        "a test",
        "2026-01-01T00:00:00Z",
        {},
    )
    good = path_of()
    path = PagePath(good.catalog, good.signals, Ranker(tmp_path / "ranker"), good.copies, Policy())
    warm(path)
    assert not path.ranker.works() and good.ranker.works()
    step = path.refresh_partition({}, *run_of(*views_of(3, 2)), NOW)
    assert set(step.modes) == {"popular"}
    for _, value in step.pages:
        assert b"nan" not in value.lower()
