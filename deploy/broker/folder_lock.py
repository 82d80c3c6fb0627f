"""An exclusive lock on a data folder. It holds for as long as a process lives that has its file open."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from deploy.broker.child_process import TERMINATE_TIMEOUT_S
from deploy.broker.jars import BrokerError

LOCK_FILE = "broker.lock"
# The guard of a killed process needs TERMINATE_TIMEOUT_S to end its Kafka, and holds the lock until then.
HANDOVER_TIMEOUT_S = TERMINATE_TIMEOUT_S + 5.0
POLL_S = 0.05


class Holder(NamedTuple):
    """The process that took the lock; it may have ended, and its Kafka may still be stopping."""

    pid: int
    command: str


class FolderLock:
    """The lock of `folder`. Child processes that get `fileno` share it: it is released when the last of them ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock. If the process that took it has ended, wait for what it started.

        Raises BrokerError that names the process that holds it, and OSError if the folder cannot be written.
        """
        file = (self._folder / LOCK_FILE).open("a+")
        deadline = time.monotonic() + HANDOVER_TIMEOUT_S
        while not _try_lock(file):
            holder = _read_holder(file)
            if holder is None or is_alive(holder.pid) or time.monotonic() > deadline:
                file.close()
                owner = "another process" if holder is None else f"process {holder.pid} ({holder.command})"
                raise BrokerError(
                    f"{self._folder} is in use by {owner}; stop it, or choose another folder (--data DIR, or "
                    "SHOPWINDOW_DATA_DIR for a worker)"
                )
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "command": command_line(sys.argv)}))
        file.flush()
        self._file = file

    @property
    def fileno(self) -> int:
        """The descriptor of the lock, for child processes."""
        assert self._file is not None, "acquire first"
        return self._file.fileno()

    def release(self) -> None:
        """Give up our share of the lock. Does nothing if it is not held."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def is_alive(pid: int) -> bool:
    """Whether a process with this id exists, of whichever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def command_line(arguments: Sequence[str]) -> str:
    """The command as a user would type it: `shopwindow worker`."""
    return " ".join([Path(arguments[0]).stem, *arguments[1:]])


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_holder(file: TextIO) -> Holder | None:
    """The process that wrote the file; None if it has not written it yet."""
    file.seek(0)
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(file.read())
        return Holder(int(found["pid"]), str(found["command"]))
    return None
