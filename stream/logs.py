"""Log lines as text or JSON. Each error is logged once; secrets and shopper data are never logged.

Exception messages may contain keys, ids, bodies and search words; libraries also log the records that they process. An
exception's message is therefore logged only if it is known to be safe: messages that our own code raised, and those of
the system, of Kafka and of RuntimeError. Any other exception appears as its type and location (`KeyError in fold,
stream/profile/fold.py:120`). Libraries log from WARNING up at every level, because below it they print records.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from stream.settings import Settings, secrets_of
from stream.times import rfc3339

if TYPE_CHECKING:
    import asyncio

ROOT = Path(__file__).resolve().parent.parent
OURS = ("shopwindow", "stream", "models", "agents", "deploy")  # top-level loggers and packages of this project
# Logger of messages to the user who ran the command. They are always shown, and in text without level and logger.
COMMAND_LOGGER = "shopwindow"
RECORD_FIELDS = ("topic", "partition", "offset")  # `extra` fields that identify the record a line is about
# At most MAX_SIMILAR lines per WINDOW_S seconds that differ only in their values.
MAX_SIMILAR, WINDOW_S = 5, 60.0
# aiokafka logs every attempt as an error. These errors resolve themselves while a topic or coordinator moves, or
# are those of an outage, which the worker logs once itself.
TRANSIENT_ERRORS = (
    "NodeNotReady",
    "KafkaConnectionError",
    "RequestTimedOut",
    "NotLeaderForPartition",
    "LeaderNotAvailable",
    "CoordinatorNotAvailable",
    "NotCoordinator",
    "CoordinatorLoad",
)
# Messages of aiokafka about a broker that does not answer, at each attempt. The worker logs an outage once itself.
UNREACHABLE_MESSAGES = (
    "Unable connect to",
    "Unable to update metadata",
    "Error sending %s to node",
    "Group Coordinator Request failed",
    "Heartbeat session expired",
    "Heartbeat send request failed",
    "LeaveGroup request failed",
)
# Messages by which Faust's services report a crash to one another.
CRASH_MESSAGES = ("Crashed reason", "Error while stopping child")
_command_log = logging.getLogger(COMMAND_LOGGER)


def say(line: str) -> None:
    """Log a line for the user who ran the command. Before `configure`, or without it, print it to stderr."""
    if any(isinstance(handler.formatter, _LineFormatter) for handler in logging.getLogger().handlers):
        _command_log.info("%s", line)
    else:
        print(f"shopwindow: {line}", file=sys.stderr, flush=True)


def record_fields(topic: str, record: Any) -> Mapping[str, Any]:
    """`extra` of a line about an aiokafka record. topic: its logical name."""
    return {"topic": topic, "partition": record.partition, "offset": record.offset}


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Send all logs, warnings and uncaught exceptions of this process to `stream` or stderr, as configured."""
    handler = logging.StreamHandler(stream)
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    handler.setFormatter(formatter(secrets_of(settings), logging.getLevelName(settings.log_level) <= logging.DEBUG))
    handler.addFilter(LibraryFilter())
    handler.addFilter(RepeatedErrorFilter())
    handler.addFilter(RateLimitFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    for name in OURS:
        logging.getLogger(name).setLevel(settings.log_level)
    _command_log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = lambda _, error, __: _command_log.critical("%s", redacted(error), exc_info=error)
    threading.excepthook = _log_thread_error


def _log_thread_error(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is not None:
        name = failure.thread.name if failure.thread else "?"
        error = failure.exc_value
        _command_log.critical("thread %s died: %s", name, redacted(error), exc_info=error)


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler for event loops. asyncio's own handler prints the task or callback with its contents."""
    error = context.get("exception")
    problem = context.get("message") or "the event loop reported an error"
    logging.getLogger("asyncio").error("%s", f"{problem}: {redacted(error)}" if error else problem, exc_info=error)


def redacted(error: BaseException) -> str:
    """Message of an exception if it is safe to log, else its type and location."""
    frames = traceback.extract_tb(error.__traceback__)
    our_frames = [frame for frame in frames if _path(frame).split("/")[0] in OURS]
    # Our code wrote the message if the last frame is ours and its line is a raise statement.
    is_our_message = (
        bool(frames)
        and bool(our_frames)
        and frames[-1] is our_frames[-1]
        and (frames[-1].line or "").startswith("raise ")
    )
    if is_our_message or isinstance(error, OSError | RuntimeError) or type(error) is LookupError:
        return str(error) or type(error).__name__
    location = (our_frames or frames)[-1:]
    return type(error).__name__ + "".join(f" in {frame.name}, {_path(frame)}:{frame.lineno}" for frame in location)


def _path(frame: traceback.FrameSummary) -> str:
    return frame.filename.removeprefix(f"{ROOT}/")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, its cause, the cause of that, ..."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _traceback_lines(error: BaseException) -> list[str]:
    """Traceback with redacted messages, the root cause last: lines of code, but no values."""
    lines = []
    for one in _chain(error):
        lines.append(redacted(one))
        for frame in traceback.extract_tb(one.__traceback__):
            lines.append(f"  {_path(frame)}:{frame.lineno} in {frame.name}: {frame.line}")
    return lines


def _is_ours(record: logging.LogRecord) -> bool:
    """True if our code wrote the line. Our Faust services log Faust's own lines under our name: `[^Service]: ...`."""
    return record.name.split(".")[0] in OURS and not str(record.msg).startswith("[^")


def _message(record: logging.LogRecord) -> str:
    """Message of a line. Arguments that could contain a record are removed from lines of libraries."""
    if _is_ours(record):
        return record.getMessage()
    args = record.args
    if isinstance(args, tuple):
        record = logging.makeLogRecord({**record.__dict__, "args": tuple(map(_without_data, args))})
    elif isinstance(args, Mapping):
        safe_args = {name: _without_data(value) for name, value in args.items()}
        record = logging.makeLogRecord({**record.__dict__, "args": safe_args})
    text = record.getMessage()
    # On further lines, asyncio's own handler prints the failed task with its arguments and exception.
    return text.splitlines()[0] if text else ""


def _without_data(value: object) -> object:
    if isinstance(value, BaseException):
        return _Verbatim(redacted(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _Verbatim(f"<{len(value)} bytes>")
    return value


class _Verbatim(str):
    """A text without quotes in both %s and %r."""

    def __repr__(self) -> str:
        return str(self)


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if isinstance(record.exc_info, tuple) else None


class _LineFormatter(logging.Formatter, ABC):
    """Base of our formatters: masks secrets."""

    def __init__(self, secrets: Iterable[str], tracebacks: bool) -> None:
        super().__init__()
        self._secrets = [secret for secret in secrets if secret]
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record, _message(record) + getattr(record, "suppressed", ""))
        for secret in self._secrets:
            line = line.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
        return line

    @abstractmethod
    def line(self, record: logging.LogRecord, message: str) -> str:
        """The record with its message as one line."""


class TextFormatter(_LineFormatter):
    """A line for people. Tracebacks appear at DEBUG only."""

    def line(self, record: logging.LogRecord, message: str) -> str:
        error = _error(record)
        if record.name == COMMAND_LOGGER:
            line = f"shopwindow: {message}"
        else:
            about = "/".join(str(getattr(record, name)) for name in RECORD_FIELDS if hasattr(record, name))
            suffix = f" [{about}]" if about else ""
            line = f"{rfc3339(record.created)} {record.levelname} {record.name} {message}{suffix}"
            if error is not None and redacted(error) not in message:
                line += f": {redacted(error)}"
        if error is not None and self._tracebacks:
            line = "\n".join([line, *(f"    {frame}" for frame in _traceback_lines(error))])
        return line


class JsonFormatter(_LineFormatter):
    """One object per line: time, level, logger, message; topic, partition, offset; error with type and traceback."""

    def line(self, record: logging.LogRecord, message: str) -> str:
        fields: dict[str, Any] = {
            "time": rfc3339(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        fields |= {name: getattr(record, name) for name in RECORD_FIELDS if hasattr(record, name)}
        error = _error(record)
        if error is not None:
            fields["error"] = {
                "type": type(error).__name__,
                "message": redacted(error),
                "traceback": _traceback_lines(error),
            }
        return json.dumps(fields, default=str)


class LibraryFilter(logging.Filter):
    """Drops lines of libraries below WARNING, transient errors, and outages and crashes that our code logs itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_ours(record):
            return True
        if record.name.startswith("aiokafka") and (
            str(record.msg).startswith(UNREACHABLE_MESSAGES)
            or any(name in record.getMessage() for name in TRANSIENT_ERRORS)
        ):
            return False
        return record.levelno >= logging.WARNING and not any(text in str(record.msg) for text in CRASH_MESSAGES)


class RepeatedErrorFilter(logging.Filter):
    """Drops lines about an exception that was logged before."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = _error(record)
        if error is None:
            return True
        if getattr(error, "_shopwindow_logged", False):
            # The final message of a process is always logged, but without the traceback.
            record.exc_info = None
            return record.name == COMMAND_LOGGER
        error._shopwindow_logged = True  # type: ignore[attr-defined]
        return True


class RateLimitFilter(logging.Filter):
    """Drops lines beyond MAX_SIMILAR in WINDOW_S seconds that differ only in values; the next line reports how many."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        # (logger, level, format) -> [start of the window, lines in it]
        self._windows: dict[tuple[str, int, str], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == COMMAND_LOGGER:
            return True
        key, now = (record.name, record.levelno, str(record.msg)), self._clock()
        if len(self._windows) > 1000 and key not in self._windows:
            self._windows.clear()
        window = self._windows.setdefault(key, [now, 0.0])
        if now - window[0] >= WINDOW_S:
            dropped = int(window[1]) - MAX_SIMILAR
            if dropped > 0:
                record.suppressed = f" ({dropped} similar lines suppressed)"
            window[:] = [now, 0.0]
        window[1] += 1
        return window[1] <= MAX_SIMILAR
