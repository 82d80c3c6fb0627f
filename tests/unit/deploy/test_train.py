"""Training: it learns which items follow which, is reproducible, and resumes after a kill with the same result."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deploy.train.simulation import UniformScorer, simulate
from models.data.clickstream import Clicks, Clickstreams
from models.data.replay import OfflineShop, replay_sessions
from models.manifest import FittedWith, load
from models.parity import verify
from models.ranker.columns import FORESEEN, signals_hash
from models.ranker.model import Ranker
from models.train.clicks import EPOCHS, train
from models.train.history.sequences import InteractionSequences
from models.train.step_cache import FOLDER, StepCache
from stream.events.decode import CLICK, VIEW
from stream.ids import key64
from stream.items.catalog import ITEM
from stream.items.signals import HALF_LIVES
from tests.harness.training import ITEMS, ignore_line, needs_torch, stride_clicks, write_clickstream


def test_joined_clickstreams_are_ordered_by_their_sessions() -> None:
    early, late = stride_clicks(1, 20, 1), stride_clicks(2, 30, 1, 2e9)
    joined = Clickstreams(ITEMS, [late, early]).joined()
    assert (np.diff(joined.time[joined.ends - 1]) >= 0).all()
    first = joined.part(0, 20)
    assert first.item.tolist() == early.item.tolist() and first.ends.tolist() == early.ends.tolist()
    assert joined.part(20, 50).time.tolist() == late.time.tolist()


def test_the_step_cache_holds_only_steps_of_the_same_inputs_and_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    cache = StepCache(tmp_path, "one", log.append)
    computed = cache.load_or_compute("a", lambda: {"x": np.arange(3)})
    again = StepCache(tmp_path, "one", log.append)
    assert again.load_or_compute("a", lambda: {})["x"].tolist() == computed["x"].tolist() == [0, 1, 2]
    assert log == ["a was finished before"]
    assert "a" in again and "b" not in again
    monkeypatch.setattr("models.train.step_cache.features_hash", lambda: "sha256:other")
    assert "a" not in StepCache(tmp_path, "one", log.append) and "other inputs" in log[-1]
    again.save("a", computed)
    assert StepCache(tmp_path, "another", log.append).load("a") is None and log[-1] == log[-2]


@pytest.mark.parametrize(
    ("error", "is_kept"), [(None, False), (ValueError, False), (KeyboardInterrupt, True), (OSError, True)]
)
def test_the_step_cache_survives_interrupts_and_other_errors(
    tmp_path: Path, error: type[BaseException] | None, is_kept: bool
) -> None:
    with suppress(ValueError, KeyboardInterrupt, OSError), StepCache(tmp_path, "one", ignore_line) as cache:
        cache.load_or_compute("a", lambda: {"x": np.arange(3)})
        if error is not None:
            raise error
    assert (tmp_path / FOLDER).exists() is is_kept
    assert ("a" in StepCache(tmp_path, "one", ignore_line)) is is_kept


@needs_torch
def test_a_history_model_predicts_the_next_item(tmp_path: Path) -> None:
    from models.history.model import History
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    shop, clicks = OfflineShop(ITEMS), stride_clicks(1, 1500, 1)
    trainer = Trainer(shop.catalog.items[: len(ITEMS)], Shape(width=32), seed=1)
    sequences = InteractionSequences.of_clicks(clicks)
    trainer.init_vectors(sequences)
    first = trainer.learn(sequences, 1, ignore_line)
    last = trainer.learn(sequences, 12, ignore_line)
    assert last < first - 0.5
    trainer.export(tmp_path, data="a test", created="", metrics={"loss": last})
    assert all(check.passed for check in verify(tmp_path))
    shop.history = History(tmp_path, shop.catalog)
    test = stride_clicks(2, 80, 1, 2e9)
    hits: list[bool] = []
    for query in replay_sessions(shop, test, query=True, learn=False):
        column = query.phi[:, :, FORESEEN].argmax(axis=1)
        top = query.candidates.rows[np.arange(len(column)), column]
        hits.extend((top == test.item[query.target_event]).tolist())
    assert np.mean(hits) > 0.6, "85% of the clicks follow the stride; a guess would be right in 2%"


@needs_torch
def test_a_click_and_the_view_after_it_are_one_choice() -> None:
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    items = np.zeros(4, ITEM)
    items["id"] = [key64(str(k)) for k in range(4)]
    # Every item is clicked, then viewed: there is nothing else to predict, so nothing is learnt.
    pairs = InteractionSequences(
        np.array([2, 4, 6, 8]), np.repeat(np.arange(4, dtype=np.int32), 2), np.arange(8.0),
        np.tile(np.array([CLICK, VIEW], np.int8), 4),
    )  # fmt: skip
    assert np.isnan(Trainer(items, Shape(width=8, heads=1, attributes=16)).learn(pairs, 1, ignore_line))


def shopwindow(*arguments: str) -> subprocess.Popen[str]:
    code = "import sys; from deploy.cli.main import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)


def kill_at(training: subprocess.Popen[str], step: Path) -> None:
    """Kill the training after this step is finished and before its end."""
    deadline = time.monotonic() + 240
    while not step.is_file():
        assert training.poll() is None and time.monotonic() < deadline, f"the training never finished {step.name}"
        time.sleep(0.01)
    training.kill()
    training.communicate()
    assert step.is_file(), "the training ended before it was killed"


@needs_torch
def test_a_ranker_on_impressions_resumes_after_a_kill_with_the_same_result(tmp_path: Path) -> None:
    simulation = simulate(UniformScorer(), 60, 20, seed=5)
    data = tmp_path / "dump.jsonl"
    data.write_bytes(b"\n".join([*simulation.impressions, *simulation.events]))

    def start(out: str) -> subprocess.Popen[str]:
        return shopwindow("train", "ranker", "--impressions", "--data", str(data), "--out", str(tmp_path / out))

    whole = start("whole")
    _, progress = whole.communicate()
    assert whole.returncode == 0, progress
    for message in (
        "s left",
        "serving      loss",
        "new MLP      loss",
        "expected calibration error",
        "evaluated on the newest",
    ):
        assert message in progress, progress
    cache = tmp_path / "cut" / "ranker" / FOLDER
    kill_at(start("cut"), cache / "heads-logit.npz")
    again = start("cut")
    _, progress = again.communicate()
    assert again.returncode == 0 and "heads-logit was finished before" in progress, progress
    found = load(tmp_path / "cut" / "ranker", "ranker")
    assert found.version == load(tmp_path / "whole" / "ranker", "ranker").version and not cache.exists()
    assert {"served_loss", "loss", "mlp_loss", "calibration_error", "place by score/shown_MRR"} <= set(found.metrics)
    assert found.data_hash and found.data_range and found.data_range[0].startswith("2026-01-01")
    assert found.fitted_with == FittedWith(history=None, signals=signals_hash(HALF_LIVES))
    assert all(check.passed for check in verify(tmp_path / "cut" / "ranker"))


@needs_torch
def test_models_trained_on_events_have_cards_with_figures_by_group(tmp_path: Path) -> None:
    simulation = simulate(UniformScorer(), 60, 12, seed=6)
    data = tmp_path / "events.jsonl"
    data.write_bytes(b"\n".join([*simulation.events, b"not an event"]))
    made = []
    for out in ("one", "two"):
        run = shopwindow("train", "all", "--data", str(data), "--out", str(tmp_path / out))
        _, progress = run.communicate()
        assert run.returncode == 0, progress
        assert f"line {len(simulation.events) + 1}" in progress and "1 of" in progress and "s left" in progress
        made.append([load(tmp_path / out / kind, kind) for kind in ("ranker", "history")])
    assert [found.version for found in made[0]] == [found.version for found in made[1]]
    for found in made[0]:
        assert {"HR@20", "MRR@20"} <= set(found.metrics), found.metrics
        assert any(name.startswith("steps before") and name.endswith("/HR@20") for name in found.metrics)
        assert "1 lines refused" in found.data and found.limits and found.data_hash
    assert "calibration_error" in made[0][0].metrics and "mlp_HR@20" in made[0][0].metrics
    ranker, history = made[0]
    assert ranker.fitted_with == FittedWith(
        history=history.version, signals=signals_hash(Ranker(tmp_path / "one" / "ranker").half_lives)
    )


@needs_torch
def test_held_out_sequences_are_evaluated_and_do_not_change_training() -> None:
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    def trained(held_out: InteractionSequences | None) -> Trainer:
        trainer = Trainer(OfflineShop(ITEMS).catalog.items[: len(ITEMS)], Shape(width=16), rate=1e-2, batch=8)
        trainer.learn(InteractionSequences.of_clicks(stride_clicks(1, 400, 1)), 5, ignore_line, held_out=held_out)
        return trainer

    evaluated, alone = trained(InteractionSequences.of_clicks(stride_clicks(2, 200, 1))), trained(None)
    assert (evaluated.vectors == alone.vectors).all() and evaluated.loss == alone.loss
    assert [point.epoch for point in evaluated.curve] == [1, 2, 3, 4, 5]
    assert [point.training for point in evaluated.curve] == [point.training for point in alone.curve]
    assert np.isnan([point.held_out for point in alone.curve]).all()
    assert evaluated.curve[-1].held_out < evaluated.curve[0].held_out - 0.1, (
        "sessions with the same habits are predicted better"
    )
    of_other_habits = trained(InteractionSequences.of_clicks(stride_clicks(3, 200, 7)))
    assert of_other_habits.curve[-1].held_out > evaluated.curve[-1].held_out + 0.5
    known = InteractionSequences.of_clicks(Clicks(np.array([3]), np.array([5, 6, 7], np.int32), np.arange(3.0)))
    unknown = InteractionSequences.of_clicks(Clicks(np.array([2]), np.array([0, 1], np.int32), np.arange(2.0)))
    few = Trainer(OfflineShop(ITEMS).catalog.items[: len(ITEMS)], Shape(width=16), seed=1)
    few.learn(known, 1, ignore_line, held_out=unknown)
    assert np.isnan(few.curve[0].held_out), "items without training interactions are no targets"


@needs_torch
def test_the_serving_history_model_learns_all_sessions_alike() -> None:
    from models.train.history.trainer import windows

    old, new = stride_clicks(1, 700, 1), stride_clicks(2, 120, 3, 2e9)
    clicks = Clickstreams(ITEMS, [old, new]).joined()
    shop = OfflineShop(ITEMS)
    trained = train(shop, clicks, ignore_line)
    assert trained.trainer is not None and trained.trainer.epochs == EPOCHS
    assert trained.trainer.steps == EPOCHS * -(-len(windows(InteractionSequences.of_clicks(clicks))) // 64)
    assert shop.history is not None and not shop.history.unknown[: len(ITEMS)].any()
    assert trained.curves["history model"][-1].epoch > EPOCHS, (
        "the curve is that of the evaluated model, through all its stages"
    )


@needs_torch
def test_a_killed_training_resumes_with_the_same_models(tmp_path: Path) -> None:
    data = write_clickstream(stride_clicks(1, 700, 1), tmp_path / "clicks.tsv")

    def start(out: str) -> subprocess.Popen[str]:
        return shopwindow("train", "all", "--data", str(data), "--out", str(tmp_path / out))

    whole = start("whole")
    _, progress = whole.communicate()
    assert whole.returncode == 0, progress
    assert "s left" in progress and "finished before" not in progress
    cache = tmp_path / "cut" / FOLDER
    for step in ("choices-1.npz", "history of all.npz"):
        kill_at(start("cut"), cache / step)
    again = start("cut")
    _, progress = again.communicate()
    assert again.returncode == 0 and "finished before" in progress, progress
    for kind in ("ranker", "history"):
        assert load(tmp_path / "cut" / kind, kind).version == load(tmp_path / "whole" / kind, kind).version
        assert all(check.passed for check in verify(tmp_path / "cut" / kind))
    assert not cache.exists()
