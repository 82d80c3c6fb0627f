"""Training: it learns what follows what, comes to the same again, and to the same after a kill."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from deploy.train.simulation import Uniform, simulate
from models.data.clickstream import Clicks, Clickstreams
from models.data.replay import Shop, walk
from models.manifest import load
from models.parity import verify
from models.ranker.features import FORESEEN
from models.train.clicks import EPOCHS, train
from models.train.history.sequences import InteractionSequences
from models.train.step_cache import FOLDER, StepCache
from stream.events import CLICK, VIEW
from stream.ids import key64
from stream.items.catalog import ITEM
from tests.unit.models.evaluation.test_evaluate import ITEMS, rounds, saved
from tests.unit.models.train.test_half_lives import quiet

needs_torch = pytest.mark.skipif(
    not any((Path(folder) / "torch").is_dir() for folder in sys.path), reason="torch is not installed: make setup-train"
)


def test_files_of_clicks_are_joined_in_the_order_of_their_sessions() -> None:
    early, late = rounds(1, 20, 1), rounds(2, 30, 1, 2e9)
    joined = Clickstreams(ITEMS, [late, early]).joined()
    assert (np.diff(joined.time[joined.ends - 1]) >= 0).all()
    first = joined.part(0, 20)
    assert first.item.tolist() == early.item.tolist() and first.ends.tolist() == early.ends.tolist()
    assert joined.part(20, 50).time.tolist() == late.time.tolist()


def test_what_was_finished_is_found_again_and_that_of_other_inputs_or_features_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    finished = StepCache(tmp_path, "one", said.append)
    made = finished.once("a", lambda: {"x": np.arange(3)})
    again = StepCache(tmp_path, "one", said.append)
    assert again.once("a", lambda: {})["x"].tolist() == made["x"].tolist() == [0, 1, 2]
    assert said == ["a was finished before"]
    assert "a" in again and "b" not in again
    monkeypatch.setattr("models.train.step_cache.features_hash", lambda: "sha256:other")
    assert "a" not in StepCache(tmp_path, "one", said.append) and "other inputs" in said[-1]
    again.put("a", made)
    assert StepCache(tmp_path, "another", said.append).get("a") is None and said[-1] == said[-2]


@pytest.mark.parametrize(
    ("ends", "kept"), [(None, False), (ValueError, False), (KeyboardInterrupt, True), (OSError, True)]
)
def test_what_was_finished_is_kept_for_a_training_that_may_go_on(
    tmp_path: Path, ends: type[BaseException] | None, kept: bool
) -> None:
    with suppress(ValueError, KeyboardInterrupt, OSError), StepCache(tmp_path, "one", quiet) as finished:
        finished.once("a", lambda: {"x": np.arange(3)})
        if ends is not None:
            raise ends
    assert (tmp_path / FOLDER).exists() is kept
    assert ("a" in StepCache(tmp_path, "one", quiet)) is kept


@needs_torch
def test_a_history_model_foresees_what_follows(tmp_path: Path) -> None:
    from models.history.model import History
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    shop, clicks = Shop(ITEMS), rounds(1, 1500, 1)
    trainer = Trainer(shop.catalog.items[: len(ITEMS)], Shape(width=32), seed=1)
    behaviour = InteractionSequences.of_clicks(clicks)
    trainer.start(behaviour)
    first = trainer.learn(behaviour, 1, lambda line: None)
    last = trainer.learn(behaviour, 12, lambda line: None)
    assert last < first - 0.5
    trainer.export(tmp_path, data="a test", created="", metrics={"loss": last})
    assert all(check.good for check in verify(tmp_path))
    shop.history = History(tmp_path, shop.catalog)
    test = rounds(2, 80, 1, 2e9)
    hits: list[bool] = []
    for asked in walk(shop, test, ask=True, learn=False):
        favourite = asked.phi[:, :, FORESEEN].argmax(axis=1)
        found = asked.candidates.rows[np.arange(len(favourite)), favourite]
        hits.extend((found == test.item[asked.click]).tolist())
    assert np.mean(hits) > 0.6, "85% go on by one, a guess would find 2%"


@needs_torch
def test_a_click_and_the_look_that_follows_it_are_one_choice() -> None:
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    items = np.zeros(4, ITEM)
    items["id"] = [key64(str(k)) for k in range(4)]
    # Every item is clicked, then looked at: with nothing else to foresee there is nothing to learn.
    pairs = InteractionSequences(
        np.array([2, 4, 6, 8]), np.repeat(np.arange(4, dtype=np.int32), 2), np.arange(8.0),
        np.tile(np.array([CLICK, VIEW], np.int8), 4),
    )  # fmt: skip
    assert np.isnan(Trainer(items, Shape(width=8, heads=1, attributes=16)).learn(pairs, 1, lambda line: None))


def shopwindow(*arguments: str) -> subprocess.Popen[str]:
    code = "import sys; from deploy.cli.main import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)


def kill_at(training: subprocess.Popen[str], piece: Path) -> None:
    """Kill it once this piece is finished, before its end."""
    deadline = time.monotonic() + 240
    while not piece.is_file():
        assert training.poll() is None and time.monotonic() < deadline, f"it comes to {piece.name}"
        time.sleep(0.01)
    training.kill()
    training.communicate()
    assert piece.is_file(), "it was killed before its end"


@needs_torch
def test_the_ranker_learns_from_impressions_and_comes_to_the_same_after_a_kill(tmp_path: Path) -> None:
    one = simulate(Uniform(), 60, 20, seed=5)
    data = tmp_path / "dump.jsonl"
    data.write_bytes(b"\n".join([*one.impressions, *one.events]))

    def start(out: str) -> subprocess.Popen[str]:
        return shopwindow("train", "ranker", "--impressions", "--data", str(data), "--out", str(tmp_path / out))

    whole = start("whole")
    _, progress = whole.communicate()
    assert whole.returncode == 0, progress
    for told in (
        "s left",
        "that serves  loss",
        "new MLP      loss",
        "expected calibration error",
        "judged by the newest",
    ):
        assert told in progress, progress
    kept = tmp_path / "cut" / "ranker" / FOLDER
    kill_at(start("cut"), kept / "heads-logit.npz")
    again = start("cut")
    _, progress = again.communicate()
    assert again.returncode == 0 and "heads-logit was finished before" in progress, progress
    found = load(tmp_path / "cut" / "ranker", "ranker")
    assert found.version == load(tmp_path / "whole" / "ranker", "ranker").version and not kept.exists()
    assert {"served_loss", "loss", "mlp_loss", "calibration_error", "place by score/shown_MRR"} <= set(found.metrics)
    assert found.data_hash and found.data_range and found.data_range[0].startswith("2026-01-01")
    assert all(check.good for check in verify(tmp_path / "cut" / "ranker"))


@needs_torch
def test_ranker_and_history_learn_from_events_and_their_cards_tell_of_groups(tmp_path: Path) -> None:
    one = simulate(Uniform(), 60, 12, seed=6)
    data = tmp_path / "events.jsonl"
    data.write_bytes(b"\n".join([*one.events, b"no event"]))
    made = []
    for out in ("one", "two"):
        run = shopwindow("train", "all", "--data", str(data), "--out", str(tmp_path / out))
        _, progress = run.communicate()
        assert run.returncode == 0, progress
        assert f"line {len(one.events) + 1}" in progress and "1 of" in progress and "s left" in progress
        made.append([load(tmp_path / out / kind, kind) for kind in ("ranker", "history")])
    assert [found.version for found in made[0]] == [found.version for found in made[1]]
    for found in made[0]:
        assert {"HR@20", "MRR@20"} <= set(found.metrics), found.metrics
        assert any(name.startswith("steps before") and name.endswith("/HR@20") for name in found.metrics)
        assert "1 lines refused" in found.data and found.limits and found.data_hash
    assert "calibration_error" in made[0][0].metrics and "mlp_HR@20" in made[0][0].metrics


@needs_torch
def test_what_is_held_out_is_judged_after_each_epoch_and_changes_nothing() -> None:
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    def trained(held_out: InteractionSequences | None) -> Trainer:
        trainer = Trainer(Shop(ITEMS).catalog.items[: len(ITEMS)], Shape(width=16), rate=1e-2, batch=8)
        trainer.learn(InteractionSequences.of_clicks(rounds(1, 400, 1)), 5, lambda line: None, held_out=held_out)
        return trainer

    judged, alone = trained(InteractionSequences.of_clicks(rounds(2, 200, 1))), trained(None)
    assert (judged.vectors == alone.vectors).all() and judged.loss == alone.loss
    assert [point.epoch for point in judged.curve] == [1, 2, 3, 4, 5]
    assert [point.learnt for point in judged.curve] == [point.learnt for point in alone.curve]
    assert np.isnan([point.held_out for point in alone.curve]).all()
    assert judged.curve[-1].held_out < judged.curve[0].held_out - 0.1, "sessions of the same habits are foreseen better"
    of_other_habits = trained(InteractionSequences.of_clicks(rounds(3, 200, 7)))
    assert of_other_habits.curve[-1].held_out > judged.curve[-1].held_out + 0.5
    strangers = InteractionSequences.of_clicks(Clicks(np.array([2]), np.array([0, 1], np.int32), np.arange(2.0)))
    few = Trainer(Shop(ITEMS).catalog.items[: len(ITEMS)], Shape(width=16), seed=1)
    few.learn(InteractionSequences.of_clicks(Clicks(np.array([3]), np.array([5, 6, 7], np.int32), np.arange(3.0))), 1, lambda line: None,
              held_out=strangers)  # fmt: skip
    assert np.isnan(few.curve[0].held_out), "of items that it was not trained on nothing is asked"


@needs_torch
def test_the_history_model_that_serves_has_learnt_the_newest_sessions_as_well_as_the_others() -> None:
    from models.train.history.trainer import windows

    old, new = rounds(1, 700, 1), rounds(2, 120, 3, 2e9)  # of late shoppers go on by three
    clicks = Clickstreams(ITEMS, [old, new]).joined()
    shop = Shop(ITEMS)
    fitted = train(shop, clicks, quiet)
    assert fitted.trainer is not None and fitted.trainer.epochs == EPOCHS
    assert fitted.trainer.steps == EPOCHS * -(-len(windows(InteractionSequences.of_clicks(clicks))) // 64)
    assert shop.history is not None and not shop.history.unknown[: len(ITEMS)].any()
    assert fitted.curves["history model"][-1].epoch > EPOCHS, "drawn is that which was judged, through all its parts"


@needs_torch
def test_a_training_that_was_killed_comes_to_the_same_models(tmp_path: Path) -> None:
    data = saved(rounds(1, 700, 1), tmp_path / "clicks.tsv")

    def start(out: str) -> subprocess.Popen[str]:
        return shopwindow("train", "all", "--data", str(data), "--out", str(tmp_path / out))

    whole = start("whole")
    _, progress = whole.communicate()
    assert whole.returncode == 0, progress
    assert "s left" in progress and "finished before" not in progress
    kept = tmp_path / "cut" / FOLDER
    for piece in ("choices-1.npz", "history of all.npz"):
        kill_at(start("cut"), kept / piece)
    again = start("cut")
    _, progress = again.communicate()
    assert again.returncode == 0 and "finished before" in progress, progress
    for kind in ("ranker", "history"):
        assert load(tmp_path / "cut" / kind, kind).version == load(tmp_path / "whole" / kind, kind).version
        assert all(check.good for check in verify(tmp_path / "cut" / kind))
    assert not kept.exists()
