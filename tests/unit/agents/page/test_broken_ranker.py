"""A ranker with invalid scores: pages fall back to popularity, and it is reported, until the ranker works again."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page.path import PagePath, Policy, warm_up
from models.ranker.columns import F
from models.ranker.model import SUM_TOLERANCE, Ranker, is_distribution
from models.train.ranker.fit import Fit, export
from stream import metrics
from stream.page.schemas import schemas
from tests.harness.events import NOW
from tests.harness.page_path import decoded, path_of, views
from tests.harness.shopper_agent import agent_of, one_view_each, process, run_of

probabilities = st.sampled_from((0.0, 0.25, 0.5, 1.0, -0.1, float("nan"), float("inf"), 1.0 - SUM_TOLERANCE / 2))


@pytest.mark.slow
@given(st.lists(st.tuples(st.lists(probabilities, min_size=4, max_size=4), st.integers(0, 4)), min_size=1, max_size=8))
@settings(deadline=None)
def test_only_probability_distributions_are_accepted(rows: list[tuple[list[float], int]]) -> None:
    scores, count = np.array([row for row, _ in rows], np.float32), np.array([n for _, n in rows], np.int32)
    expected = [n == 0 or (all(p >= 0 for p in row[:n]) and abs(sum(row[:n]) - 1) < SUM_TOLERANCE) for row, n in rows]
    assert is_distribution(scores, count).tolist() == expected


def test_scores_of_another_shape_are_rejected() -> None:
    count = np.array([2, 1], np.int32)
    assert not is_distribution(np.full((2, 1), 1.0, np.float32), count).any()
    assert not is_distribution(np.full(2, 1.0, np.float32), count).any()


def fails(phi: Any, count: Any) -> Any:
    raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION")


BROKEN_RANKERS = {
    "NaN": lambda phi, count: np.full(phi.shape[:2], np.nan, np.float32),
    "inf": lambda phi, count: np.full(phi.shape[:2], np.inf, np.float32),
    "no distribution": lambda phi, count: np.ones(phi.shape[:2], np.float32),
    "negative": lambda phi, count: np.tile(np.array([2, -1, *[0] * 254], np.float32)[: phi.shape[1]], (len(phi), 1)),
    "another shape": lambda phi, count: np.ones((len(phi), 1), np.float32),
    "it fails": fails,
}


@pytest.mark.parametrize("name", BROKEN_RANKERS)
@pytest.mark.parametrize("shoppers", [1, pytest.param(70, marks=pytest.mark.slow)])
def test_a_broken_ranker_gives_the_pages_of_the_popular_group(
    monkeypatch: pytest.MonkeyPatch, name: str, shoppers: int
) -> None:
    path = path_of()
    monkeypatch.setattr(path.ranker, "score", BROKEN_RANKERS[name])
    result = path.refresh_partition({}, *decoded(*views(shoppers, 2)), NOW)
    expected = path_of(popular_share=1.0).refresh_partition({}, *decoded(*views(shoppers, 2)), NOW)
    assert result.page_records() == expected.page_records() and result.changelog == expected.changelog
    assert {page.mode for page in result.pages} == {"popular"}
    assert [page.is_fallback for page in result.pages] == [True] * shoppers
    assert not any(page.is_fallback for page in expected.pages)
    validator = jsonschema.Draft202012Validator(schemas()["homepage/1"])
    for page in result.pages:
        validator.validate(json.loads(page.value))


def test_invalid_scores_of_one_shopper_leave_other_pages_personal(monkeypatch: pytest.MonkeyPatch) -> None:
    path, sent = path_of(), views(70, 2)
    expected = path.refresh_partition({}, *decoded(*sent), NOW).page_records()
    popular = path_of(popular_share=1.0).refresh_partition({}, *decoded(*sent), NOW).page_records()
    score = path.ranker.score
    calls: list[int] = []

    def one_is_nan(phi: Any, count: Any) -> Any:
        scores = score(phi, count).copy()
        if len(calls) == 0:
            scores[5] = np.nan
        calls.append(len(phi))
        return scores

    monkeypatch.setattr(path.ranker, "score", one_is_nan)
    result = path.refresh_partition({}, *decoded(*sent), NOW)
    assert [page.is_fallback for page in result.pages] == [at == 5 for at in range(70)]
    assert result.page_records() == [*expected[:5], popular[5], *expected[6:]]


@pytest.mark.slow
def test_a_broken_ranker_and_its_recovery_are_each_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, now = path_of(), NOW
    agent, score = agent_of(path), path.ranker.score
    monkeypatch.setattr("agents.shopper.time.time", lambda: now)

    def is_broken() -> float | None:
        return metrics.REGISTRY.get_sample_value("shopwindow_ranker_broken")

    def modes(first: int) -> list[str]:
        [(result, _)] = process(agent, run_of(one_view_each(4, first=first), first=first))
        return [page.mode for page in result.pages]

    count = metrics.REGISTRY.get_sample_value("shopwindow_unsound_pages_total") or 0.0
    for k in range(3):
        monkeypatch.setattr(path.ranker, "score", fails if k % 2 else BROKEN_RANKERS["NaN"])
        assert modes(4 * k) == ["popular"] * 4
    assert is_broken() == 1
    assert metrics.REGISTRY.get_sample_value("shopwindow_unsound_pages_total") == count + 12
    assert len(caplog.messages) == 1 and "shopwindow train ranker" in caplog.messages[0]
    monkeypatch.setattr(path.ranker, "score", score)
    now += 5
    assert modes(20) == ["full"] * 4, "pages are personal at once"
    assert is_broken() == 1
    now += 6
    modes(30)
    assert is_broken() == 0
    assert len(caplog.messages) == 2 and "personal" in caplog.messages[1]


def test_a_model_file_with_nan_gives_popular_pages(tmp_path: Path) -> None:
    fit = Fit(np.full((F, 1), np.nan, np.float32), 1.0, 2.0, 0.5)
    export(tmp_path / "ranker", fit, "a test", "2026-01-01T00:00:00Z", {})
    good = path_of()
    path = PagePath(good.catalog, good.signals, Ranker(tmp_path / "ranker"), good.headlines, Policy())
    warm_up(path)
    assert not path.ranker.works() and good.ranker.works()
    result = path.refresh_partition({}, *decoded(*views(3, 2)), NOW)
    assert {page.mode for page in result.pages} == {"popular"}
    for page in result.pages:
        assert b"nan" not in page.value.lower()
