"""What is installed is what runs: a wheel built here and now holds all that the program reads, and needs what it imports."""

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
# Imported, but brought by a dependency whose own they are.
BROUGHT = {"mode-streaming": "faust-streaming", "llvmlite": "numba", "huggingface-hub": "transformers"}
NOT_SHIPPED = ("deploy/entry/*", "*/checkpoint/*", "*/.training/*", "*.pyc")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the backend of pyproject.toml, without a network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("the build backend hatchling is not installed: make setup")
    folder = tmp_path_factory.mktemp("wheel")
    build = f"import hatchling.build; print(hatchling.build.build_wheel({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


def shipped() -> Iterator[str]:
    """Files of the layers that git would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *LAYERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("this is no checkout of git, so what belongs to it is not known")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not any(fnmatch(name, pattern) for pattern in NOT_SHIPPED):
            yield name


def test_the_wheel_holds_every_file_of_the_layers_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {*shipped(), "shopwindow.py"}
    for needed in (
        "models/default/ranker/mlp.onnx", "models/default/history/history.onnx", "models/default/copywriter/gpt2.onnx",
        "models/train/copywriter/topics.txt", "models/train/copywriter/shapes.txt", "deploy/broker/server.properties", "deploy/broker/log4j2.xml",
        *(f"{layer}/py.typed" for layer in LAYERS),
    ):  # fmt: skip
        assert needed in names, needed


def test_what_was_unpacked_elsewhere_runs_with_its_own_models(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    # -P and the folder: neither the checkout nor an editable install is found before the wheel.
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
    assert "NOT" not in run("models", "verify", "ranker")
    assert "falconry" in run("copy", "--interest", "falconry", "--seed", "3").lower()


def test_what_is_imported_is_a_dependency() -> None:
    """Without the tools of development, and without torch, the program finds all that it imports at the top of a file."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {_plain(re.split(r"[<>=\[; ]", name)[0]) for name in told["dependencies"]}
    training = {_plain(re.split(r"[<>=\[; ]", name)[0]) for name in told["optional-dependencies"]["train"]}
    for name in shipped():
        if not name.endswith(".py"):
            continue
        for module in _imported(ast.parse((ROOT / name).read_text())):
            if module in sys.stdlib_module_names or module in LAYERS:
                continue
            project = _plain(_projects().get(module, [module])[0])
            project = BROUGHT.get(project, project)
            assert project in declared | training, f"{name} imports {module}, which is no dependency"


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@cache
def _projects() -> dict[str, list[str]]:
    """Which projects bring a module, of those that are installed."""
    return dict(importlib.metadata.packages_distributions())


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
