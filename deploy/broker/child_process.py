"""A child process that cannot outlive its parent, however the parent ends.

`python -m deploy.broker.child_process COMMAND...` runs the command; when stdin reaches its end (the parent closed it, or died, also by
kill -9) the command is asked to stop, and killed 10 s later. Where the leash itself is killed, Linux kills the command.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

PATIENCE = 10.0  # s between SIGTERM and SIGKILL
_SET_PDEATHSIG = 1


def leashed(
    command: list[str], output: IO[bytes] | int, environ: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` on a leash, in a session of its own, so that Ctrl-C reaches only us; `output` gets all it prints."""
    return subprocess.Popen(
        [sys.executable, "-S", "-E", str(Path(__file__).resolve()), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environ,
        start_new_session=True,
    )


def release(process: subprocess.Popen[bytes]) -> int:
    """Let the command end as it wishes, and wait for it. -> its exit status."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return process.wait()


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of the leash and the command at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)


def main(command: list[str]) -> int:
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    inputs = [0, woken]
    while child.poll() is None:
        ready, _, _ = select.select(inputs, [], [], 1.0)
        if woken in ready:
            os.read(woken, 64)
        if 0 in ready and not os.read(0, 64):
            child.terminate()
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
