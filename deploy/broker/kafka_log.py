"""Why Kafka ended: the cause and the remedy in a sentence, from its log, its exit status and its disk."""

from __future__ import annotations

import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

FULL_DISK_BYTES = 16 << 20  # with less free space, Kafka cannot write even its log
MAX_LINE_CHARS = 300
KILLED = 128  # exit status of a process that a signal ended: this plus the signal's number


class _Cause(NamedTuple):
    pattern: str  # of a line of the log
    sentence: str  # {folder}, {port}: of the broker


_FULL_DISK = "the disk of {folder} is full; free some space, or choose another folder (SHOPWINDOW_DATA_DIR)"
_NO_MEMORY = "it did not get enough memory; free some, or raise the limit of this process (ulimit -v, the container's)"
# In order of precedence: a full disk also causes the lines about lost log directories.
_CAUSES = (
    _Cause(r"No space left on device|Disk quota exceeded", _FULL_DISK),
    _Cause(
        r"OutOfMemoryError|insufficient memory for the Java Runtime|Cannot allocate memory|Could not reserve enough"
        r"|unable to create native thread|Could not allocate|Could not create the Java Virtual Machine"
        r"|Not enough space",
        _NO_MEMORY,
    ),
    _Cause(r"Too many open files", "it has too many open files; raise the limit (ulimit -n 65536)"),
    _Cause(r"Address already in use", "another program took port {port} of 127.0.0.1; choose another: --port P"),
    _Cause(r"Failed to acquire lock", "another Kafka runs on {folder}; stop it, or choose another folder: --data DIR"),
    _Cause(r"Read-only file system", "{folder} is on a read-only file system; choose another folder: --data DIR"),
    _Cause(r"Permission denied|AccessDeniedException", "{folder} has files of another user; choose another folder"),
    _Cause(r"Input/output error", "the disk of {folder} has failed (input/output error)"),
    _Cause(
        r"CorruptRecordException|InconsistentClusterIdException|InconsistentVoterSetException|Stored node id",
        "{folder} holds data that this Kafka cannot use; choose another folder, or remove it with all its topics",
    ),
)


def why_kafka_ended(log: Path, status: int | None, port: int) -> str:
    """Return the reason and the remedy, without a full stop.

    log: Kafka's log file, in its data folder. status: of its process, None if it still runs. port: on which it listens.
    """
    folder = log.parent
    text = ""
    with suppress(OSError):
        text = log.read_text(errors="replace")
    if (cause := known_cause(text, folder, port)) is not None:
        return cause
    with suppress(OSError):
        if shutil.disk_usage(folder).free < FULL_DISK_BYTES:
            return _FULL_DISK.format(folder=folder)
    if status is not None and status > KILLED:
        with suppress(ValueError):
            name = signal.Signals(status - KILLED).name
            hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
            return f"it was ended by the signal {name}{hint}"
    return f"{key_log_line(text)} (log: {log})"


def known_cause(text: str, folder: Path, port: int) -> str | None:
    """Return the first known cause in the output of a Java program, with its remedy; None if there is none."""
    for cause in _CAUSES:
        if re.search(cause.pattern, text):
            return cause.sentence.format(folder=folder, port=port)
    return None


def key_log_line(text: str) -> str:
    """Return the last line of a Java log with an exception or an error, else the last line; at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "Exception" in line or "ERROR" in line or "FATAL" in line]
    return (errors or lines or ["the log is empty"])[-1][:MAX_LINE_CHARS]
