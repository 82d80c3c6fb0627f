"""Run a command under strace: which files it writes, and which addresses it contacts."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from models.telemetry import SWITCHED_OFF
from tests.harness.worker_process import ROOT

CHANGES = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
CONTACTS = "connect,sendto,sendmsg,sendmmsg"
# Devices, pipes, and a process's own entries are no files.
NO_FILES = ("/dev/", "/proc/")
LOOPBACK = ("127.", "::1", "::ffff:127.", "0.0.0.0")

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@dataclass
class Trace:
    """What a command did; equal if status, files and addresses are."""

    status: int
    written: set[str]  # paths that it created, or opened for writing
    contacted: set[str]  # addresses outside of this machine, and name servers wherever they are
    output: str = field(default="", compare=False)


def traced(command: Sequence[str], folder: Path, allowed: Sequence[Path] = (), **environ: str) -> Trace:
    """Run a command with `folder`/home as HOME, and return what it wrote outside of `allowed`, and contacted."""
    process = start_traced(command, folder, **environ)
    output, _ = process.communicate(timeout=300)
    return trace_of(folder, process.returncode, output, allowed)


def start_traced(command: Sequence[str], folder: Path, **environ: str) -> subprocess.Popen[str]:
    """Start a command under strace, with an environment that holds nothing of the user's but PATH and the cache."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "SHOPWINDOW_CACHE")}
    assert not kept.keys() & SWITCHED_OFF.keys()
    # -ff: a file for each thread, so that no call is cut in two by another thread's.
    strace = ["strace", "-ff", "--seccomp-bpf", "-f", "-qq", "-s", "256", "-o", str(folder / "strace")]
    return subprocess.Popen(
        [*strace, "-e", f"trace={CHANGES},{CONTACTS}", "-e", "signal=none", *command],
        cwd=ROOT, env={**kept, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home), **environ}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def trace_of(folder: Path, status: int, output: str, allowed: Sequence[Path] = ()) -> Trace:
    """What the command in `folder` wrote outside of `allowed`, and contacted."""
    lines = [line for path in folder.glob("strace.*") for line in path.read_text(errors="replace").splitlines()]
    written = {str(ROOT / path) for line in lines for path in _written(line) if not path.startswith(NO_FILES)}
    outside = {path for path in written if not any(Path(path).is_relative_to(place) for place in allowed)}
    return Trace(status, outside, {address for line in lines for address in _contacted(line)}, output)


def _written(line: str) -> Iterator[str]:
    """Paths that a line of strace creates or opens for writing, if the call succeeded."""
    call = re.search(r"\b(\w+)\((.*)\)\s+= (-?\d+)", line)
    if call is None or int(call[3]) < 0:
        return
    name, arguments = call[1], call[2]
    if name in ("open", "openat") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", arguments):
        return
    if name in CHANGES.split(","):
        paths = re.findall(r'"((?:[^"\\]|\\.)*)"', arguments)
        yield from paths[-1:]


def _contacted(line: str) -> Iterator[str]:
    for port, address in re.findall(r'sin6?_port=htons\((\d+)\).*?inet_(?:addr|pton)\((?:AF_INET6?, )?"([^"]+)"', line):
        if port == "53" or not address.startswith(LOOPBACK):
            yield f"{address}:{port}"
