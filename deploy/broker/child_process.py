"""A child process that never outlives its parent, however the parent ends.

`python -m deploy.broker.child_process COMMAND...` is a small guard that runs the command as its own child. The parent
holds the other end of the guard's stdin. When the parent closes it or dies, also by kill -9, the guard sends SIGTERM to
the command, and SIGKILL `TERMINATE_TIMEOUT_S` later. If the guard itself is killed, Linux kills the command.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

TERMINATE_TIMEOUT_S = 10.0  # between SIGTERM and SIGKILL
_PR_SET_PDEATHSIG = 1


def start_child(
    command: list[str], output: IO[bytes] | int, environ: dict[str, str] | None = None, held: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start `command` under a guard and return the guard's process; its stdout and stderr go to `output`.

    The guard runs in its own session, so Ctrl-C in the terminal reaches only the parent. `held`: file descriptors that
    the guard keeps open until the command has ended. If a signal ends the command, the guard's exit status is 128 plus
    the signal's number, as in a shell.
    """
    return subprocess.Popen(
        [sys.executable, "-S", "-E", str(Path(__file__).resolve()), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environ,
        pass_fds=held,
        start_new_session=True,
    )


def stop_child(process: subprocess.Popen[bytes]) -> int:
    """Stop the command with SIGTERM, wait for it, and return its exit status."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return process.wait()


def kill_child(process: subprocess.Popen[bytes]) -> None:
    """Send SIGKILL to the guard and the command at once, and wait for the guard."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(command: list[str]) -> int:
    """Run `command` until it exits or stdin is closed, and return its exit status."""
    signalled, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    inputs = [0, signalled]
    while child.poll() is None:
        ready, _, _ = select.select(inputs, [], [], 1.0)
        if signalled in ready:
            os.read(signalled, 64)
        if 0 in ready and not os.read(0, 64):
            child.terminate()
            try:
                child.wait(TERMINATE_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
