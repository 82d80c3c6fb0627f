"""No library that a model uses reports to its makers, whoever imports it."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.telemetry import SWITCHED_OFF
from tests.harness.tracing import Trace, needs_strace, traced
from tests.harness.worker_process import ROOT

REPORTING = {"onnxruntime", "huggingface_hub", "transformers"}
LOADED = """
from pathlib import Path
from models.onnx_session import create_session
import time
create_session(Path("models/default/ranker/softmax.onnx"))
time.sleep(1)  # its uploader runs in a thread
"""


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of each import of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("layer", ["stream", "agents", "deploy", "tests"])
@pytest.mark.slow
def test_libraries_that_report_are_imported_after_a_module_of_models(layer: str) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        seen = dict[str, int]()
        for line, package in imports(path):
            seen[package] = min(line, seen.get(package, line))
        for package in REPORTING & seen.keys():
            assert seen.get("models", 1 << 30) < seen[package], (
                f"{path.relative_to(ROOT)}:{seen[package]} imports {package} before any module of `models`"
            )


def test_a_process_and_its_children_get_the_switches() -> None:
    environ = {name: value for name, value in os.environ.items() if name not in SWITCHED_OFF}
    environ["ORT_DISABLE_TELEMETRY"] = "0"
    shown = "import os, subprocess, models; subprocess.run(['env'], check=True)"
    done = subprocess.run([sys.executable, "-c", shown], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert {f"{name}={value}" for name, value in SWITCHED_OFF.items()} <= set(done.stdout.splitlines()), done.stderr


@needs_strace
@pytest.mark.slow
def test_a_model_used_alone_writes_and_contacts_nothing(tmp_path: Path) -> None:
    trace = traced([sys.executable, "-c", LOADED], tmp_path)
    assert trace == Trace(0, set(), set()), trace.output


@needs_strace
@pytest.mark.slow
def test_the_trace_finds_the_report_of_onnx_runtime(tmp_path: Path) -> None:
    import onnxruntime

    if onnxruntime.__version__ != "1.32.0":
        pytest.skip("another version of ONNX Runtime may report in another way")
    session = f"import onnxruntime as ort; ort.InferenceSession({str(ROOT / 'models/default/ranker/softmax.onnx')!r})"
    trace = traced([sys.executable, "-c", f"import time; {session}; time.sleep(1)"], tmp_path)
    assert any("Microsoft" in path for path in trace.written), trace
