"""The lock of a broker's data folder: one process at a time, which the others name."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.broker.child_process import start_child, stop_child
from deploy.broker.folder_lock import LOCK_FILE, FolderLock, command_line
from deploy.broker.jars import BrokerError
from tests.harness.worker_process import ROOT

HOLD = """
import subprocess, sys
from pathlib import Path
from deploy.broker.child_process import start_child
from deploy.broker.folder_lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
child = start_child(["sleep", "60"], subprocess.DEVNULL, held=[lock.fileno])
print("locked", flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock, together with a child, until its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


def test_a_second_process_is_refused_and_names_the_first(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        start = time.monotonic()
        with pytest.raises(BrokerError, match=rf"{tmp_path} is in use by process {first.pid} \(-c {tmp_path}\); stop"):
            FolderLock(tmp_path).acquire()
        assert time.monotonic() - start < 1, "it does not wait for a process that lives"
    finally:
        first.communicate()


def test_the_lock_passes_on_when_the_child_of_a_killed_holder_has_ended(tmp_path: Path) -> None:
    first = holder(tmp_path)
    first.kill()
    first.communicate()
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    with pytest.raises(BrokerError, match=f"process {os.getpid()} "):
        FolderLock(tmp_path).acquire()
    lock.release()
    FolderLock(tmp_path).acquire()


def test_a_child_holds_the_lock_until_it_has_ended(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire()
    child = start_child(["sleep", "60"], subprocess.DEVNULL, held=[lock.fileno])
    lock.release()
    with pytest.raises(BrokerError, match="is in use"):
        FolderLock(tmp_path).acquire()
    assert stop_child(child) == 128 + 15, "as a shell reports SIGTERM"
    FolderLock(tmp_path).acquire()


def test_a_command_is_shown_as_it_is_typed() -> None:
    assert command_line(["/usr/bin/shopwindow", "broker", "--port", "0"]) == "shopwindow broker --port 0"
    assert command_line(["/site/shopwindow.py", "worker"]) == "shopwindow worker"
