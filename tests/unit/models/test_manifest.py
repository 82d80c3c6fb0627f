"""A model's folder is believed only where every hash agrees."""

import json
from pathlib import Path

import pytest

from models import manifest
from models.manifest import ManifestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "softmax"
    path.mkdir()
    (path / "theta.npy").write_bytes(b"theta")
    (path / "graph.onnx").write_bytes(b"graph" * 1000)
    _write(path)
    return path


def _write(path: Path, **changes: object) -> manifest.Manifest:
    said: dict[str, object] = {
        "name": "softmax",
        "kind": "ranker",
        "created": "2026-01-01T00:00:00Z",
        "features_hash": "f" * 64,
        "data": "simulated choices",
        "metrics": {"loss": 1.5},
        "params": {"theta": [0.25, -1.0]},
    }
    return manifest.write(path, **{**said, **changes})  # type: ignore[arg-type]


def test_what_was_written_is_read_back(folder: Path) -> None:
    read = manifest.load(folder, "ranker")
    assert read == _write(folder)
    assert read.version.startswith("sha256:") and len(read.version) == 71
    assert list(read.files) == ["graph.onnx", "theta.npy"]


def test_a_metric_may_be_a_whole_number(folder: Path) -> None:
    written = _write(folder, metrics={"segments": 500})
    assert manifest.load(folder, "ranker") == written and written.metrics == {"segments": 500.0}


def test_the_version_is_the_content_and_not_the_day_or_the_metrics(folder: Path) -> None:
    first = manifest.load(folder, "ranker").version
    assert _write(folder, created="2027-01-01T00:00:00Z", metrics={"loss": 9.0}).version == first
    assert _write(folder, params={"theta": [0.5]}).version != first
    (folder / "theta.npy").write_bytes(b"other")
    assert _write(folder).version != first


def test_a_changed_file_is_refused_with_its_name_and_what_to_do(folder: Path) -> None:
    (folder / "theta.npy").write_bytes(b"thetA")
    with pytest.raises(ManifestError, match=r"theta\.npy has changed .* train it again or restore"):
        manifest.load(folder, "ranker")


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "graph.onnx").unlink()
    with pytest.raises(ManifestError, match=r"graph\.onnx is missing"):
        manifest.load(folder, "ranker")


def test_an_edited_manifest_is_refused(folder: Path) -> None:
    said = json.loads((folder / manifest.FILE).read_text())
    said["params"]["theta"] = [1.0]
    (folder / manifest.FILE).write_text(json.dumps(said))
    with pytest.raises(ManifestError, match="was edited"):
        manifest.load(folder, "ranker")


@pytest.mark.parametrize("changes", [{}, {"metrics": "in a file of their own"}])
def test_one_of_a_newer_schema_is_refused_as_such_whatever_it_holds(folder: Path, changes: dict[str, str]) -> None:
    said = json.loads((folder / manifest.FILE).read_text())
    (folder / manifest.FILE).write_text(json.dumps({**said, "schema": manifest.SCHEMA + 1, **changes}))
    with pytest.raises(
        ManifestError, match=r"is of schema 2, this program reads up to 1: a newer one wrote it; update"
    ):
        manifest.load(folder, "ranker")


def test_a_manifest_cannot_reach_out_of_its_folder(folder: Path) -> None:
    said = json.loads((folder / manifest.FILE).read_text())
    said["files"]["../../etc/passwd"] = "0" * 64
    (folder / manifest.FILE).write_text(json.dumps(said))
    with pytest.raises(ManifestError, match="no plain file name"):
        manifest.load(folder, "ranker")


def test_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ManifestError, match="holds a ranker, not a copywriter"):
        manifest.load(folder, "copywriter")
    with pytest.raises(ManifestError, match="not 'poet'"):
        _write(folder, kind="poet")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"name": 3}', "\xff"])
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / manifest.FILE).write_text(text, encoding="latin-1")
    with pytest.raises(ManifestError, match="is not a manifest"):
        manifest.load(folder, "ranker")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="holds no model"):
        manifest.load(tmp_path / "nowhere", "ranker")
    with pytest.raises(ManifestError, match="holds no files"):
        _write(tmp_path)


def test_models_are_listed_by_kind_and_a_broken_one_is_named(folder: Path) -> None:
    other = folder.parent / "another"
    other.mkdir()
    (other / "gpt2.onnx").write_bytes(b"gpt2")
    _write(other, name="gpt2", kind="copywriter", features_hash=None)
    (folder.parent / "empty").mkdir()
    assert [(m.kind, m.name) for m in manifest.list_models(folder.parent)] == [
        ("copywriter", "gpt2"),
        ("ranker", "softmax"),
    ]
    (other / "gpt2.onnx").write_bytes(b"gpt3")
    with pytest.raises(ManifestError, match=r"gpt2\.onnx has changed"):
        manifest.list_models(folder.parent)
    with pytest.raises(ManifestError, match="is no folder"):
        manifest.list_models(folder.parent / "nowhere")
