"""A model's folder is loaded only if every hash matches its manifest."""

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
    fields: dict[str, object] = {
        "name": "softmax",
        "kind": "ranker",
        "created": "2026-01-01T00:00:00Z",
        "features_hash": "f" * 64,
        "data": "simulated choices",
        "metrics": {"loss": 1.5},
        "params": {"theta": [0.25, -1.0]},
    }
    return manifest.write(path, **{**fields, **changes})  # type: ignore[arg-type]


def test_written_manifest_is_read_back(folder: Path) -> None:
    read = manifest.load(folder, "ranker")
    assert read == _write(folder)
    assert read.version.startswith("sha256:") and len(read.version) == 71
    assert list(read.files) == ["graph.onnx", "theta.npy"]


def test_metric_may_be_an_integer(folder: Path) -> None:
    written = _write(folder, metrics={"segments": 500})
    assert manifest.load(folder, "ranker") == written and written.metrics == {"segments": 500.0}


def test_version_depends_on_content_but_not_on_date_or_metrics(folder: Path) -> None:
    first = manifest.load(folder, "ranker").version
    assert _write(folder, created="2027-01-01T00:00:00Z", metrics={"loss": 9.0}).version == first
    assert _write(folder, params={"theta": [0.5]}).version != first
    (folder / "theta.npy").write_bytes(b"other")
    assert _write(folder).version != first


def test_changed_file_is_rejected_with_name_and_remedy(folder: Path) -> None:
    (folder / "theta.npy").write_bytes(b"thetA")
    with pytest.raises(ManifestError, match=r"theta\.npy has changed .* train it again or restore"):
        manifest.load(folder, "ranker")


def test_missing_file_is_rejected(folder: Path) -> None:
    (folder / "graph.onnx").unlink()
    with pytest.raises(ManifestError, match=r"graph\.onnx is missing"):
        manifest.load(folder, "ranker")


def test_edited_manifest_is_rejected(folder: Path) -> None:
    content = json.loads((folder / manifest.FILE).read_text())
    content["params"]["theta"] = [1.0]
    (folder / manifest.FILE).write_text(json.dumps(content))
    with pytest.raises(ManifestError, match="was edited"):
        manifest.load(folder, "ranker")


@pytest.mark.parametrize("changes", [{}, {"metrics": "another type"}])
def test_newer_schema_is_rejected_whatever_else_differs(folder: Path, changes: dict[str, str]) -> None:
    content = json.loads((folder / manifest.FILE).read_text())
    (folder / manifest.FILE).write_text(json.dumps({**content, "schema": manifest.SCHEMA + 1, **changes}))
    with pytest.raises(
        ManifestError, match=r"has schema 3, this program reads up to 2: a newer version wrote it; update"
    ):
        manifest.load(folder, "ranker")


def test_a_ranker_serves_only_beside_the_history_model_that_it_was_fitted_with(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def ranker(history: str | None) -> manifest.Manifest:
        return _write(folder, fitted_with=manifest.FittedWith(history=history, signals="sha256:s"))

    history = _write(folder, kind="history", params={})
    for one, served in ((history.version, history), (None, None)):
        manifest.check_history(ranker(one), served)
    with pytest.raises(ManifestError, match=r"fitted with the history model sha256:other, .*SHOPWINDOW_HISTORY=false"):
        manifest.check_history(ranker("sha256:other"), history)
    with pytest.raises(ManifestError, match=f"without a history model, .* beside it is {history.version[:19]}"):
        manifest.check_history(ranker(None), history)
    assert not caplog.records
    manifest.check_history(_write(folder), history)
    assert "does not name the history model that it was fitted with" in caplog.text
    manifest.check_history(ranker(history.version), None)
    assert f"the history model {history.version[:19]}, which does not serve" in caplog.text


def test_what_a_ranker_was_fitted_with_is_sealed_and_not_part_of_its_version(folder: Path) -> None:
    before = manifest.load(folder, "ranker")
    fitted_with = manifest.FittedWith(history=None, signals="sha256:s")
    assert _write(folder, fitted_with=fitted_with).version == before.version
    assert manifest.load(folder, "ranker").fitted_with == fitted_with
    text = (folder / manifest.FILE).read_text()
    (folder / manifest.FILE).write_text(text.replace("sha256:s", "sha256:t"))
    with pytest.raises(ManifestError, match="was edited"):
        manifest.load(folder, "ranker")


def test_manifest_cannot_list_files_outside_its_folder(folder: Path) -> None:
    content = json.loads((folder / manifest.FILE).read_text())
    content["files"]["../../etc/passwd"] = "0" * 64
    (folder / manifest.FILE).write_text(json.dumps(content))
    with pytest.raises(ManifestError, match="not a plain file name"):
        manifest.load(folder, "ranker")


def test_model_of_another_kind_is_rejected(folder: Path) -> None:
    with pytest.raises(ManifestError, match="contains a ranker, not a copywriter"):
        manifest.load(folder, "copywriter")
    with pytest.raises(ManifestError, match="not 'poet'"):
        _write(folder, kind="poet")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"name": 3}', "\xff"])
def test_malformed_manifest_is_rejected(folder: Path, text: str) -> None:
    (folder / manifest.FILE).write_text(text, encoding="latin-1")
    with pytest.raises(ManifestError, match="is not a manifest"):
        manifest.load(folder, "ranker")


def test_folder_without_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="contains no model"):
        manifest.load(tmp_path / "nowhere", "ranker")
    with pytest.raises(ManifestError, match="contains no files"):
        _write(tmp_path)


def test_models_are_listed_by_kind_and_a_broken_one_is_reported(folder: Path) -> None:
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
    with pytest.raises(ManifestError, match="is not a folder"):
        manifest.list_models(folder.parent / "nowhere")
