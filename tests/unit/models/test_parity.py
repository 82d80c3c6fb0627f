"""What ships gives what its reference gave, and a model that does not is found."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from deploy.cli.main import main
from models import manifest
from models.manifest import KINDS, ManifestError
from models.parity import FILE, verify
from stream.settings import SHIPPED_MODELS


@pytest.mark.parametrize("kind", KINDS)
def test_what_ships_gives_what_its_reference_gave(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    checks = verify(SHIPPED_MODELS / kind)
    assert checks and all(check.good for check in checks), checks
    assert main(["models", "verify", kind]) == 0
    assert "matches its reference" in capsys.readouterr().out


def test_a_model_that_gives_something_else_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "copywriter"
    shutil.copytree(SHIPPED_MODELS / "copywriter", folder)
    with np.load(folder / FILE) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez(folder / FILE, **{**arrays, "logprob": arrays["logprob"] - 2.0})
    told = manifest.load(SHIPPED_MODELS / "copywriter", "copywriter")
    manifest.write(
        folder, name=told.name, kind=told.kind, created="", data=told.data, metrics=told.metrics, params=told.params
    )
    assert main(["models", "verify", str(folder)]) == 1
    assert "DIFFERS from its reference" in capsys.readouterr().out


def test_a_model_without_a_reference_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"graph")
    manifest.write(tmp_path, name="x", kind="ranker", created="", data="", metrics={}, params={})
    with pytest.raises(ManifestError, match=r"no inputs to be verified on .*train it again"):
        verify(tmp_path)
