"""The wheel contains every file that the program reads, and declares every package that it imports."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests.harness.worker_process import ROOT

LAYERS = ("stream", "agents", "models", "deploy")
# Imported, and installed by a dependency.
BROUGHT_BY = {"mode-streaming": "faust-streaming", "llvmlite": "numba", "huggingface-hub": "transformers"}
NOT_SHIPPED = ("deploy/entry/*", "*/checkpoint/*", "*/.training/*", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the backend of pyproject.toml, without a network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("the build backend hatchling is not installed: make setup")
    folder = tmp_path_factory.mktemp("wheel")
    build = f"import hatchling.build; print(hatchling.build.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def shipped() -> Iterator[str]:
    """Yield the files of the layers that git tracks, or would if they were added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *LAYERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout, so its files are not known")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not any(fnmatch(name, pattern) for pattern in NOT_SHIPPED):
            yield name


@pytest.mark.slow
def test_the_wheel_contains_exactly_the_files_of_the_layers(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {*shipped(), "shopwindow.py"}
    for needed in (
        "models/default/ranker/mlp.onnx",
        "models/default/history/history.onnx",
        "models/default/copywriter/gpt2.onnx",
        "models/train/copywriter/topics.txt",
        "models/train/copywriter/shapes.txt",
        "deploy/broker/server.properties",
        "deploy/broker/log4j2.xml",
        *(f"{layer}/py.typed" for layer in LAYERS),
    ):
        assert needed in names, needed


@pytest.mark.slow
def test_an_unpacked_wheel_runs_with_its_own_models(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    # With -P and another folder, neither the checkout nor an editable install comes before the wheel.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHOPWINDOW_")}
    environment["PYTHONPATH"] = str(tmp_path / "site")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "shopwindow", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path / "site" / "models" / "default") in run("settings")
    kinds = {line.split()[0] for line in run("models", "list").splitlines() if line and not line.startswith(" ")}
    assert kinds == {"ranker", "history", "copywriter"}
    assert "DIFFERS" not in run("models", "verify", "ranker")
    assert "falconry" in run("copy", "--interest", "falconry", "--seed", "3").lower()


@pytest.mark.slow
def test_every_imported_package_is_a_dependency() -> None:
    project_table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {_plain(re.split(r"[<>=\[; ]", name)[0]) for name in project_table["dependencies"]}
    training = {_plain(re.split(r"[<>=\[; ]", name)[0]) for name in project_table["optional-dependencies"]["train"]}
    for name in shipped():
        if not name.endswith(".py"):
            continue
        for module in _imported(ast.parse((ROOT / name).read_text())):
            if module in sys.stdlib_module_names or module in LAYERS:
                continue
            project = _plain(_projects().get(module, [module])[0])
            project = BROUGHT_BY.get(project, project)
            assert project in declared | training, f"{name} imports {module}, which is not a dependency"


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@cache
def _projects() -> dict[str, list[str]]:
    """Return the installed projects that contain each module."""
    return dict(importlib.metadata.packages_distributions())


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
