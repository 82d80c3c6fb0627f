"""The measure of foresight: what may be known at a position, how ties count, and that better statistics rank better."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.cli.main import main
from models.data import replay
from models.data.clickstream import Clicks, read
from models.data.replay import Shop, walk
from models.evaluation.evaluate import Calibration, Report, evaluate, ranks
from models.train.clicks import gather

ITEMS = [f"i{k}" for k in range(60)]


def rounds(seed: int, sessions: int, stride: int, start: float = 1e9) -> Clicks:
    """Sessions of 1 to 6 clicks that go on from an item by `stride`, now and then anywhere."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, sessions)
    items, times = [], []
    for s, length in enumerate(lengths.tolist()):
        item = int(rng.integers(0, len(ITEMS)))
        for k in range(length):
            items.append(item)
            times.append(start + 100 * s + 10 * k)
            item = int(rng.integers(0, len(ITEMS))) if rng.random() < 0.15 else (item + stride) % len(ITEMS)
    return Clicks(np.cumsum(lengths), np.array(items, np.int32), np.array(times))


def saved(clicks: Clicks, path: Path) -> Path:
    """As a clickstream file."""
    sessions = np.repeat(np.arange(len(clicks.ends)), np.diff(clicks.ends, prepend=0))
    lines = [f"{s}\t{ITEMS[i]}\t{t}" for s, i, t in zip(sessions, clicks.item, clicks.time, strict=True)]
    path.write_text("SessionId\tItemId\tTime\n" + "\n".join(lines) + "\n")
    return path


def test_what_is_foreseen_is_learnt_from_only_afterwards() -> None:
    train, test = rounds(1, 200, 1), rounds(2, 150, 1, 2e9)

    def asked(learn: bool) -> list[tuple[Any, Any]]:
        shop = Shop(ITEMS)
        list(walk(shop, train, ask=False, learn=True))
        found = list(walk(shop, test, ask=True, learn=learn))
        return [(one.click.tolist(), one.phi.tobytes()) for one in found]

    frozen, following = asked(False), asked(True)
    of_first = [clicks[0] < test.ends[replay.BLOCK - 1] for clicks, _ in frozen]
    assert of_first.count(True) > 3 and of_first.count(False) > 3
    for same, (clicks, phi), (clicks_then, phi_then) in zip(of_first, frozen, following, strict=True):
        assert clicks == clicks_then
        assert (phi == phi_then) == same, "the first block knows the training part, the next the first block too"


def test_every_click_but_the_first_of_a_session_is_asked_for_once() -> None:
    clicks = rounds(3, 150, 2)
    found = list(walk(Shop(ITEMS), clicks, ask=True, learn=True))
    firsts = set(clicks.starts.tolist())
    assert sorted(c for one in found for c in one.click.tolist()) == [
        c for c in range(len(clicks.item)) if c not in firsts
    ]
    starts = np.repeat(clicks.starts, np.diff(clicks.ends, prepend=0))
    for one in found:
        assert (one.click - starts[one.click] == one.before).all()
        targets = one.targets(clicks)
        for u, target in enumerate(targets.tolist()):
            row = clicks.item[one.click[u]]
            known = one.candidates.rows[u, : one.candidates.count[u]].tolist()
            assert known[target] == row if target >= 0 else row not in known


def test_ties_count_against_us_and_what_is_no_candidate_has_no_rank() -> None:
    scores = np.array([[0.5, 0.3, 0.3, 0.3, 0.9], [0.2, 0.2, 0.2, 0.2, 0.2], [0.5, 0.3, 0.1, 0, 0]], np.float32)
    count = np.array([4, 5, 3], np.int32)
    assert ranks(scores, count, np.array([1, 0, -1])).tolist() == [4, 5, 0]
    assert ranks(scores, count, np.array([0, 4, 2])).tolist() == [1, 5, 3]


def test_the_figures_are_those_of_the_ranks() -> None:
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
        "HR@20": 60.0, "MRR@20": round(100 * (1 + 0.5 + 0.05) / 5, 3), "positions": 5, "recall_candidates": 80.0, "calibration_error": 30.0,
        "calibration_error_among_candidates": 25.0, "train_minutes": 1.5, "us_per_page": 200.0,
    }  # fmt: skip
    lines = report.table(20).splitlines()
    assert [line.split()[-3:] for line in lines if "clicks before, 1 " in line] == [["2", "100.00", "75.00"]]
    assert [line.split()[-3:] for line in lines if "training, 100 and more" in line] == [["1", "0.00", "0.00"]]


def test_habits_are_found_and_new_ones_where_the_signals_follow() -> None:
    train, same, other = rounds(1, 500, 1), rounds(2, 150, 1, 2e9), rounds(3, 500, 7, 2e9)
    known = evaluate(ITEMS, train, same, queries=400).figures(3)
    assert known["HR@3"] > 70 and known == known | {"positions": len(same.item) - len(same.ends)}
    frozen = evaluate(ITEMS, train, other, queries=400).figures(3)
    following = evaluate(ITEMS, train, other, queries=400, prequential=True).figures(3)
    assert following["HR@3"] > frozen["HR@3"] + 20
    few = evaluate(ITEMS, train, same, queries=400, limit=50)
    assert few.figures(3)["positions"] == 50
    again = evaluate(ITEMS, train, same, queries=400, limit=50)
    assert again.rank.tolist() == few.rank.tolist(), "the same seed, the same ranks"


def test_a_clock_that_knows_but_the_day_leaves_sessions_in_the_order_of_the_file(tmp_path: Path) -> None:
    def read_with(tick: float) -> list[Clicks]:
        exact = {"train": rounds(1, 500, 1), "test": rounds(2, 150, 1, 1e9 + 5e4)}
        paths = [
            saved(clicks._replace(time=clicks.time // tick * tick), tmp_path / f"{name}-{tick:g}")
            for name, clicks in exact.items()
        ]
        return read(paths).files

    exact, coarse = (evaluate(ITEMS, *read_with(tick), queries=400).figures(1)["HR@1"] for tick in (1.0, 86_400.0))
    assert coarse > exact - 5 > 50


def test_the_newest_sessions_are_those_that_the_ranker_is_fitted_on() -> None:
    train = rounds(1, 900, 1)
    told: list[str] = []
    choices = gather(Shop(ITEMS), train, told.append, queries=100)
    assert 60 < len(choices.chosen) <= 110 and "sessions learnt" in told[0]
    assert 500 < len(gather(Shop(ITEMS), train, told.append).chosen) < 700, "of all sessions three tenths at most"


def test_too_little_to_learn_from_and_nothing_to_foresee_are_said() -> None:
    alone = Clicks(np.arange(1, 6), np.arange(5, dtype=np.int32), np.arange(5.0))
    with pytest.raises(ValueError, match="sessions of one click teach nothing"):
        evaluate(ITEMS, alone, alone)
    with pytest.raises(ValueError, match="nothing to foresee"):
        evaluate(ITEMS, rounds(1, 300, 1), alone)


def test_the_command_prints_a_table_and_last_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, clicks in (("train", rounds(1, 300, 1)), ("test", rounds(2, 40, 1, 2e9))):
        saved(clicks, tmp_path / name)
    given = ["evaluate", "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--k", "5"]
    assert main(given) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["HR@5"] > 50 and any("clicks before" in line for line in table)
    assert main([*given, "--json", "--limit", "7", "--protocol", "prequential"]) == 0
    assert json.loads(capsys.readouterr().out)["positions"] == 7


def test_probabilities_that_come_true_as_often_as_they_say_are_calibrated() -> None:
    rng = np.random.default_rng(1)
    sure = rng.random(40_000).astype(np.float32)
    assert Calibration.of(sure, rng.random(40_000) < sure).error < 0.01
    half = Calibration.of(np.full(100, 0.9, np.float32), np.arange(100) < 50)
    assert half.error == pytest.approx(0.4, abs=1e-3)
    assert half.positions.tolist() == [0] * 13 + [100, 0] and half.came[13] == 50 and half.said[13] == pytest.approx(90)
    assert Calibration.of(np.ones(3, np.float32), np.ones(3, np.bool_)).error == 0.0
