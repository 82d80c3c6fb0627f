"""Log lines: text for people or JSON for machines, each error once, nothing secret, and nothing of what shoppers did.

Keys, ids, bodies and search words reach a log by way of values in exceptions' messages and of libraries that log what they
were given. So of an exception only a message that is known to be a sentence is told: those that our code raised itself, and
those of the system, of Kafka and of runtime errors. Of any other there is its type and place (`KeyError in fold,
stream/profile/fold.py:120`). Libraries speak from WARNING on, whatever the level: below that they print records.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import asyncio

    from stream.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
OURS = ("shopwindow", "stream", "models", "agents", "deploy")
# What is said to whoever started the command: always, and in text without level and name.
VOICE = "shopwindow"
ABOUT = ("topic", "partition", "offset")  # what a line may tell of the record that it is about, by `extra`
AT_ONCE, WINDOW = 5, 60.0  # of lines that differ in their values only, so many in so many seconds
# aiokafka logs each of its attempts as an error. These end by themselves, while a topic or a coordinator moves.
PASSING = (
    "NotLeaderForPartition",
    "LeaderNotAvailable",
    "CoordinatorNotAvailable",
    "NotCoordinator",
    "CoordinatorLoad",
)
# How Faust's services tell one another of a crash.
CRASHING = ("Crashed reason", "Error while stopping child")
_voice = logging.getLogger(VOICE)


def say(line: str) -> None:
    """Tell whoever started the command. Before `configure`, or in a command that does not call it, as text."""
    if any(isinstance(handler.formatter, _Form) for handler in logging.getLogger().handlers):
        _voice.info("%s", line)
    else:
        print(f"shopwindow: {line}", file=sys.stderr, flush=True)


def about(topic: str, record: Any) -> Mapping[str, Any]:
    """`extra` of a line about an aiokafka record; `topic` is the logical name."""
    return {"topic": topic, "partition": record.partition, "offset": record.offset}


def configure(settings: Settings, stream: TextIO | None = None) -> None:
    """Have everything that this process logs, warns of or dies of go to stderr (or `stream`) as the settings say."""
    handler = logging.StreamHandler(stream)
    secrets = [settings.sasl_password] if settings.sasl_password else []
    form = Json if settings.log_format == "json" else Text
    handler.setFormatter(form(secrets, logging.getLevelName(settings.log_level) <= logging.DEBUG))
    handler.addFilter(Passing())
    handler.addFilter(Once())
    handler.addFilter(Sparing())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, logging.getLevelName(settings.log_level)))
    for name in OURS:
        logging.getLogger(name).setLevel(settings.log_level)
    _voice.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.excepthook = lambda _, error, __: _voice.critical("%s", told(error), exc_info=error)
    threading.excepthook = _thread_died


def _thread_died(died: threading.ExceptHookArgs) -> None:
    if died.exc_value is not None:
        name = died.thread.name if died.thread else "?"
        _voice.critical("thread %s died: %s", name, told(died.exc_value), exc_info=died.exc_value)


def loop_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler of event loops: asyncio's own prints the task or the callback, with what they hold."""
    error = context.get("exception")
    what = context.get("message") or "something failed in the event loop"
    logging.getLogger("asyncio").error("%s", f"{what}: {told(error)}" if error else what, exc_info=error)


def told(error: BaseException) -> str:
    """What may be said of an exception in one sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _path(frame).split("/")[0] in OURS]
    # A frame whose line is a raise statement is one that chose the words.
    by_us = bool(frames) and bool(ours) and frames[-1] is ours[-1] and (frames[-1].line or "").startswith("raise ")
    if by_us or isinstance(error, OSError | RuntimeError) or type(error) is LookupError:
        return str(error) or type(error).__name__
    place = (ours or frames)[-1:]
    return type(error).__name__ + "".join(f" in {frame.name}, {_path(frame)}:{frame.lineno}" for frame in place)


def _path(frame: traceback.FrameSummary) -> str:
    return frame.filename.removeprefix(f"{ROOT}/")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> list[str]:
    """The traceback without the messages: the innermost cause last, lines of code but no values."""
    lines = []
    for one in _chain(error):
        lines.append(told(one))
        for frame in traceback.extract_tb(one.__traceback__):
            lines.append(f"  {_path(frame)}:{frame.lineno} in {frame.name}: {frame.line}")
    return lines


def _ours(record: logging.LogRecord) -> bool:
    """Whether our code speaks. A Faust service of ours speaks by our name, of what Faust does: `[^Service]: ...`."""
    return record.name.split(".")[0] in OURS and not str(record.msg).startswith("[^")


def _message(record: logging.LogRecord) -> str:
    """The message, of foreign lines without what could hold a record."""
    if _ours(record):
        return record.getMessage()
    args = record.args
    if isinstance(args, tuple):
        record = logging.makeLogRecord({**record.__dict__, "args": tuple(map(_harmless, args))})
    elif isinstance(args, Mapping):
        record = logging.makeLogRecord({**record.__dict__, "args": {k: _harmless(v) for k, v in args.items()}})
    text = record.getMessage()
    # asyncio's own handler goes on with the task that failed, its arguments and its exception.
    return text.splitlines()[0] if text else ""


def _harmless(value: object) -> object:
    if isinstance(value, BaseException):
        return _Told(told(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return _Told(f"<{len(value)} bytes>")
    return value


class _Told(str):
    """A text that looks the same by %s and by %r."""

    def __repr__(self) -> str:
        return str(self)


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if isinstance(record.exc_info, tuple) else None


class _Form(logging.Formatter, ABC):
    def __init__(self, secrets: Iterable[str], tracebacks: bool) -> None:
        super().__init__()
        self._secrets = [secret for secret in secrets if secret]
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        line = self.line(record, _message(record) + getattr(record, "more", ""))
        for secret in self._secrets:
            line = line.replace(secret, "***").replace(json.dumps(secret)[1:-1], "***")
        return line

    @abstractmethod
    def line(self, record: logging.LogRecord, message: str) -> str:
        """The record with its message, in one line."""

    def time(self, record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Text(_Form):
    """A line for people. Where an exception came from is told at DEBUG only."""

    def line(self, record: logging.LogRecord, message: str) -> str:
        error = _error(record)
        if record.name == VOICE:
            line = f"shopwindow: {message}"
        else:
            place = "/".join(str(getattr(record, name)) for name in ABOUT if hasattr(record, name))
            line = f"{self.time(record)} {record.levelname} {record.name} {message}{f' [{place}]' if place else ''}"
            if error is not None and told(error) not in message:
                line += f": {told(error)}"
        if error is not None and self._tracebacks:
            line = "\n".join([line, *(f"    {frame}" for frame in _frames(error))])
        return line


class Json(_Form):
    """An object a line: time, level, logger, message; topic, partition, offset; error with type and traceback."""

    def line(self, record: logging.LogRecord, message: str) -> str:
        fields: dict[str, Any] = {
            "time": self.time(record), "level": record.levelname, "logger": record.name, "message": message
        }  # fmt: skip
        fields |= {name: getattr(record, name) for name in ABOUT if hasattr(record, name)}
        error = _error(record)
        if error is not None:
            fields["error"] = {"type": type(error).__name__, "told": told(error), "traceback": _frames(error)}
        return json.dumps(fields, default=str)


class Passing(logging.Filter):
    """Leaves out what libraries say below WARNING, of troubles that pass, and of a crash that we tell ourselves."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _ours(record):
            return True
        if record.name.startswith("aiokafka") and any(name in record.getMessage() for name in PASSING):
            return False
        return record.levelno >= logging.WARNING and not any(text in str(record.msg) for text in CRASHING)


class Once(logging.Filter):
    """An exception is told once, whoever else comes upon it."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = _error(record)
        if error is None:
            return True
        if getattr(error, "_shopwindow_told", False):
            record.exc_info = None
            return record.name == VOICE  # the last words of a process are said in any case, without the traceback
        error._shopwindow_told = True  # type: ignore[attr-defined]
        return True


class Sparing(logging.Filter):
    """Of lines that differ in their values only, AT_ONCE in WINDOW seconds; the first one after says how many were not."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, int, str], list[float]] = {}  # -> [start of the window, lines in it]

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == VOICE:
            return True
        key, now = (record.name, record.levelno, str(record.msg)), self._clock()
        if len(self._said) > 1000 and key not in self._said:
            self._said.clear()
        window = self._said.setdefault(key, [now, 0.0])
        if now - window[0] >= WINDOW:
            unsaid = int(window[1]) - AT_ONCE
            if unsaid > 0:
                record.more = f" (and {unsaid} more like it since)"
            window[:] = [now, 0.0]
        window[1] += 1
        return window[1] <= AT_ONCE
