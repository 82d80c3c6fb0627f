"""Evaluation: what is known at a position, how ties count, and that better statistics rank better."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.cli.main import main
from models.data import replay
from models.data.clickstream import Clicks, read
from models.data.replay import OfflineShop, replay_sessions
from models.evaluation.evaluate import Calibration, Report, evaluate, ranks
from models.train.clicks import gather_choices
from tests.harness.training import ITEMS, stride_clicks, write_clickstream


def test_signals_learn_from_a_block_only_after_it_was_ranked() -> None:
    train, test = stride_clicks(1, 200, 1), stride_clicks(2, 150, 1, 2e9)

    def queries(learn: bool) -> list[tuple[Any, Any]]:
        shop = OfflineShop(ITEMS)
        list(replay_sessions(shop, train, query=False, learn=True))
        found = list(replay_sessions(shop, test, query=True, learn=learn))
        return [(query.target_event.tolist(), query.phi.tobytes()) for query in found]

    frozen, learning = queries(False), queries(True)
    in_first_block = [targets[0] < test.ends[replay.RANKED_SESSIONS - 1] for targets, _ in frozen]
    assert in_first_block.count(True) > 3 and in_first_block.count(False) > 3
    for is_first, (targets, phi), (same_targets, other_phi) in zip(in_first_block, frozen, learning, strict=True):
        assert targets == same_targets
        assert (phi == other_phi) == is_first, "only the second block's signals know the first block"


def test_every_click_but_the_first_of_a_session_is_a_target_once() -> None:
    clicks = stride_clicks(3, 150, 2)
    queries = list(replay_sessions(OfflineShop(ITEMS), clicks, query=True, learn=True))
    first_clicks = set(clicks.starts.tolist())
    targets = sorted(click for query in queries for click in query.target_event.tolist())
    assert targets == [click for click in range(len(clicks.item)) if click not in first_clicks]
    starts = np.repeat(clicks.starts, np.diff(clicks.ends, prepend=0))
    for query in queries:
        assert (query.target_event - starts[query.target_event] == query.steps_before).all()
        for u, column in enumerate(query.target_columns(clicks).tolist()):
            row = clicks.item[query.target_event[u]]
            candidates = query.candidates.rows[u, : query.candidates.count[u]].tolist()
            assert candidates[column] == row if column >= 0 else row not in candidates


def test_ties_count_against_us_and_missing_targets_have_no_rank() -> None:
    scores = np.array([[0.5, 0.3, 0.3, 0.3, 0.9], [0.2, 0.2, 0.2, 0.2, 0.2], [0.5, 0.3, 0.1, 0, 0]], np.float32)
    count = np.array([4, 5, 3], np.int32)
    assert ranks(scores, count, np.array([1, 0, -1])).tolist() == [4, 5, 0]
    assert ranks(scores, count, np.array([0, 4, 2])).tolist() == [1, 5, 3]


def test_figures_are_computed_from_the_ranks() -> None:
    report = Report(
        np.array([1, 2, 0, 21, 20]),
        np.array([1, 1, 2, 5, 40]),
        np.array([0, 3, 3, 500, 7]),
        np.full(5, 0.5, np.float32),
        1.5,
        200.0,
        "logit",
        {},
    )
    assert report.figures(20) == {
        "HR@20": 60.0,
        "MRR@20": round(100 * (1 + 0.5 + 0.05) / 5, 3),
        "positions": 5,
        "recall_candidates": 80.0,
        "calibration_error": 30.0,
        "calibration_error_among_candidates": 25.0,
        "train_minutes": 1.5,
        "us_per_page": 200.0,
    }
    lines = report.table(20).splitlines()
    assert [line.split()[-3:] for line in lines if "clicks before, 1 " in line] == [["2", "100.00", "75.00"]]
    assert [line.split()[-3:] for line in lines if "training, 100 and more" in line] == [["1", "0.00", "0.00"]]


@pytest.mark.slow
def test_prequential_signals_learn_new_habits_and_frozen_ones_do_not() -> None:
    train, same, other = stride_clicks(1, 500, 1), stride_clicks(2, 150, 1, 2e9), stride_clicks(3, 500, 7, 2e9)
    known = evaluate(ITEMS, train, same, queries=400).figures(3)
    assert known["HR@3"] > 70 and known == known | {"positions": len(same.item) - len(same.ends)}
    frozen = evaluate(ITEMS, train, other, queries=400).figures(3)
    prequential = evaluate(ITEMS, train, other, queries=400, prequential=True).figures(3)
    assert prequential["HR@3"] > frozen["HR@3"] + 20
    few = evaluate(ITEMS, train, same, queries=400, limit=50)
    assert few.figures(3)["positions"] == 50
    again = evaluate(ITEMS, train, same, queries=400, limit=50)
    assert again.rank.tolist() == few.rank.tolist(), "the same seed gives the same ranks"


@pytest.mark.slow
def test_a_clock_of_days_keeps_clicks_in_the_order_of_the_file(tmp_path: Path) -> None:
    def read_with(tick: float) -> list[Clicks]:
        exact = {"train": stride_clicks(1, 500, 1), "test": stride_clicks(2, 150, 1, 1e9 + 5e4)}
        paths = [
            write_clickstream(clicks._replace(time=clicks.time // tick * tick), tmp_path / f"{name}-{tick:g}")
            for name, clicks in exact.items()
        ]
        return read(paths).files

    exact, coarse = (evaluate(ITEMS, *read_with(tick), queries=400).figures(1)["HR@1"] for tick in (1.0, 86_400.0))
    assert coarse > exact - 5 > 50


def test_the_ranker_is_fitted_on_the_newest_sessions() -> None:
    train = stride_clicks(1, 900, 1)
    lines: list[str] = []
    choices = gather_choices(OfflineShop(ITEMS), train, lines.append, queries=100)
    assert 60 < len(choices.chosen) <= 110 and "sessions learnt" in lines[0]
    choices = gather_choices(OfflineShop(ITEMS), train, lines.append)
    assert 500 < len(choices.chosen) < 700, "at most three tenths of all sessions"


def test_unusable_training_and_test_parts_are_refused() -> None:
    alone = Clicks(np.arange(1, 6), np.arange(5, dtype=np.int32), np.arange(5.0))
    with pytest.raises(ValueError, match="sessions of one click teach nothing"):
        evaluate(ITEMS, alone, alone)
    with pytest.raises(ValueError, match="nothing to predict"):
        evaluate(ITEMS, stride_clicks(1, 300, 1), alone)


@pytest.mark.slow
def test_the_command_prints_a_table_and_then_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, clicks in (("train", stride_clicks(1, 300, 1)), ("test", stride_clicks(2, 40, 1, 2e9))):
        write_clickstream(clicks, tmp_path / name)
    given = ["evaluate", "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--k", "5"]
    assert main(given) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["HR@5"] > 50 and any("clicks before" in line for line in table)
    assert main([*given, "--json", "--limit", "7", "--protocol", "prequential"]) == 0
    assert json.loads(capsys.readouterr().out)["positions"] == 7


def test_calibration_error_measures_the_distance_from_outcomes() -> None:
    rng = np.random.default_rng(1)
    sure = rng.random(40_000).astype(np.float32)
    assert Calibration.of(sure, rng.random(40_000) < sure).error < 0.01
    half = Calibration.of(np.full(100, 0.9, np.float32), np.arange(100) < 50)
    assert half.error == pytest.approx(0.4, abs=1e-3)
    assert (
        half.positions.tolist() == [0] * 13 + [100, 0]
        and half.successes[13] == 50
        and half.probability_sum[13] == pytest.approx(90)
    )
    assert Calibration.of(np.ones(3, np.float32), np.ones(3, np.bool_)).error == 0.0
