"""The demo: its invariants hold, and it leaves no process behind, however it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness.worker_process import ROOT

ENVIRON = {
    name: value for name, value in os.environ.items() if not name.startswith("SHOPWINDOW_") or name.endswith("_CACHE")
}


def children_of(mark: str) -> dict[int, str]:
    """Command lines by process id of the processes with `mark` in their environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def wait_until_ended(mark: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while left := children_of(mark):
        assert time.monotonic() < deadline, f"still running: {[line[-100:] for line in left.values()]}"
        time.sleep(0.05)


def running_demo(mark: str) -> subprocess.Popen[str]:
    """A demo that already makes pages; its processes have `mark` in their environment."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shopwindow", "demo"], cwd=ROOT, env=ENVIRON | dict([mark.split("=")]),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    while not re.search(r"[1-9]\d* pages/s", line := process.stderr.readline()):
        assert line, "the demo ended before it made a page"
    return process


def test_every_invariant_of_a_short_demo_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shopwindow", "demo", "--seconds", "20", "--json"],
        cwd=ROOT, env=ENVIRON | {"DEMO_MARK": "demo-runs"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] and all(result["invariants"].values())
    assert result["ctr_personal"] > result["ctr_popular"]
    assert result["events"] == result["accepted"] + result["dead_letters"]
    assert result["shoppers"] > 50 and result["pages"] > 500 and result["copies_generated"] > 0
    wait_until_ended("DEMO_MARK=demo-runs")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_killed_or_interrupted_demo_leaves_no_process(how: signal.Signals) -> None:
    mark = f"DEMO_MARK=demo-{how.name}"
    process = running_demo(mark)
    assert len(children_of(mark)) >= 4, "Kafka, the worker and their guards"
    process.send_signal(how)
    out, _ = process.communicate(timeout=90)
    if how == signal.SIGINT:
        assert process.returncode == 0 and "all invariants hold" in out
    wait_until_ended(mark)


def test_the_commands_of_the_readme_exist_in_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert plan.returncode == 0, plan.stderr
        assert ("shopwindow demo" if target == "demo" else "pytest tests") in plan.stdout
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
@pytest.mark.parametrize(
    ("victim", "sentence"),
    [("-m shopwindow worker", "shopwindow: the worker ended"), ("kafka.Kafka", "shopwindow: Kafka ended by itself")],
    ids=["worker", "broker"],
)
def test_a_demo_reports_a_dead_worker_or_broker_and_leaves_no_process(victim: str, sentence: str) -> None:
    mark = f"DEMO_MARK=demo-{victim.split()[-1]}-dies"
    process = running_demo(mark)
    for pid, line in children_of(mark).items():
        if victim in line and "child_process" not in line:
            os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert any(line.startswith(sentence) for line in err.splitlines()), err[-2000:]
    assert "Traceback" not in err
    wait_until_ended(mark)
