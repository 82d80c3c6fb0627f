"""Shipped models match their reference, and `models verify` finds a model that does not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from deploy.cli.main import main
from models import manifest
from models.manifest import KINDS, ManifestError
from models.parity import FILE, verify
from stream.settings import SHIPPED_MODELS
from tests.harness.ranker_model import write_ranker_folder


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_model_matches_its_reference(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    checks = verify(SHIPPED_MODELS / kind)
    assert checks and all(check.passed for check in checks), checks
    assert main(["models", "verify", kind]) == 0
    out = capsys.readouterr().out
    assert "matches its reference" in out and ("fitted with the history model sha256:" in out) == (kind != "copywriter")


def test_verify_and_list_name_the_history_model_that_a_ranker_was_fitted_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ranker_folder(tmp_path)
    monkeypatch.setenv("SHOPWINDOW_MODELS_DIR", str(tmp_path))
    assert main(["models", "list"]) == 0 and main(["models", "show", "ranker"]) == 0
    assert capsys.readouterr().out.count("no history model") == 2
    assert main(["models", "verify", "ranker"]) == 0, "it serves without one"
    shutil.copytree(SHIPPED_MODELS / "history", tmp_path / "history")
    for model in ("ranker", "history", str(tmp_path / "ranker")):
        assert main(["models", "verify", model]) == 1
        assert "was fitted without a history model, but the history model beside it is" in capsys.readouterr().err


def test_verify_finds_a_model_that_differs_from_its_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copywriter"
    shutil.copytree(SHIPPED_MODELS / "copywriter", folder)
    with np.load(folder / FILE) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(folder / FILE, **{**arrays, "logprob": arrays["logprob"] - 2.0})
    shipped = manifest.load(SHIPPED_MODELS / "copywriter", "copywriter")
    manifest.write(
        folder,
        name=shipped.name,
        kind=shipped.kind,
        created="",
        data=shipped.data,
        metrics=shipped.metrics,
        params=shipped.params,
    )
    assert main(["models", "verify", str(folder)]) == 1
    assert "DIFFERS from its reference" in capsys.readouterr().out


def test_model_without_reference_is_reported_with_remedy(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"graph")
    manifest.write(tmp_path, name="x", kind="ranker", created="", data="", metrics={}, params={})
    with pytest.raises(ManifestError, match=r"no reference inputs .*train it again"):
        verify(tmp_path)
