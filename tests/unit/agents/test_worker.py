"""A worker starts only with models that fit each other."""

import shutil
from pathlib import Path

import pytest

from agents.worker import Worker
from models.manifest import ManifestError
from stream.settings import SHIPPED_MODELS, Settings
from tests.harness.ranker_model import write_ranker_folder


def test_a_worker_refuses_a_history_model_that_its_ranker_was_not_fitted_with(tmp_path: Path) -> None:
    write_ranker_folder(tmp_path)
    shutil.copytree(SHIPPED_MODELS / "history", tmp_path / "history")
    settings = Settings(broker="kafka://127.0.0.1:9", models_dir=tmp_path, head="logit", copy=False)
    with pytest.raises(ManifestError, match=r"fitted without a history model, .*set SHOPWINDOW_HISTORY=false"):
        Worker(settings)


def test_replay_diff_refuses_the_same_pair_of_models(tmp_path: Path) -> None:
    from deploy.replay.pages import Replay
    from stream.items.catalog import Catalog

    write_ranker_folder(tmp_path)
    shutil.copytree(SHIPPED_MODELS / "history", tmp_path / "history")
    with pytest.raises(ManifestError, match="fitted without a history model"):
        Replay(tmp_path, Catalog(), headlines=False)
