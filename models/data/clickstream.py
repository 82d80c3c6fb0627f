"""The project's only reader of clickstreams: tables with the columns SessionId, ItemId and Time.

A session stands for one shopper who only clicks. The first line names the columns, in any order; other columns are
ignored. Columns are separated by tabs, commas or semicolons. Ids are any text. Time is in seconds or milliseconds since
the epoch, or ISO 8601 (UTC if it names no zone). Files may be gzipped.

Clocks may be coarse: some record only the day. Clicks of one session with equal times keep the order of the file, and
`spread_equal_times` moves them apart, so that training, evaluation and `shopwindow replay` see the same sessions.

* `read(paths)` returns arrays for training and evaluation: sessions by last click, items numbered across files.
* `read_clicks(path)` returns one `Click` (session, item, time) a line, in order of time, for replaying a file.
* `parse_clicks(lines, name)` does the same for lines that are already open, such as stdin.

All three raise ClickstreamError, whose message names file, line, column and value.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from stream.events.decode import CLICK, EVENT
from stream.types import F64, I32, I64, Bools, Rows

COLUMNS = ("SessionId", "ItemId", "Time")
SEPARATORS = "\t,;"
GZIP_MAGIC = b"\x1f\x8b"
CLOCK_TICKS_S = (86_400.0, 3_600.0, 60.0, 1.0, 1e-3)
# Larger times are milliseconds: as seconds this is the year 5138, as milliseconds 1973.
FIRST_MILLISECONDS = 1e11
# Largest gap that is put between two clicks of a session with equal times.
MAX_SPREAD_S = 30.0


class ClickstreamError(ValueError):
    """The file is not a clickstream; the message names file, line, column and value."""


class Click(NamedTuple):
    """One line of a clickstream."""

    session: str
    item: str
    time: float  # seconds since the epoch; equal times of a session are spread
    number: int  # 0-based place in its session, in the order of the file
    written_time: str  # Time as the file has it
    line: int  # 1-based line of the file


class EventBlock(NamedTuple):
    """Events of some sessions: n events of U shoppers, by shopper and then by time; parts of an event are adjacent."""

    shopper: I64  # (U,) numbers of the shoppers
    shopper_row: I32  # (n,) index into `shopper`
    round: I32  # (n,) number of earlier events of the same shopper in the block; parts of an event share it
    number: I64  # (n,) index among all events of the source
    events: Rows  # (n,) EVENT
    is_target: Bools  # (n,) events that a model has to predict
    steps_before: I64  # (n,) earlier steps of the session
    returns: Bools  # (U,) shoppers with events in a later block


class Clicks(NamedTuple):
    """n clicks of S sessions. Sessions are ordered by their last click, clicks by time and then by the file's order."""

    ends: I64  # (S,) end of each session's clicks
    item: I32  # (n,) item numbers
    time: F64  # (n,) seconds since the epoch, as `spread_equal_times` returns them

    @property
    def starts(self) -> I64:
        """(S,) start of each session's clicks."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])

    def part(self, first: int, last: int) -> Clicks:
        """Sessions `first` to `last`, exclusive."""
        start, end = self.ends[first - 1] if first else 0, self.ends[last - 1]
        return Clicks(self.ends[first:last] - start, self.item[start:end], self.time[start:end])

    def first_of_newest(self, targets: int) -> int:
        """First of the newest sessions that together have about `targets` clicks after each session's first."""
        following = np.cumsum(np.diff(self.ends, prepend=0)[::-1] - 1)
        return max(len(self.ends) - int(np.searchsorted(following, targets)) - 1, 0)

    def block(self, items: Rows, first: int, last: int) -> EventBlock:
        """Sessions `first` to `last`, exclusive, each of another shopper. items: (V,) ITEM, indexed by item number."""
        part = self.part(first, last)
        lengths = np.diff(part.ends, prepend=0)
        step = np.arange(len(part.item)) - np.repeat(part.starts, lengths)
        number = np.arange(len(part.item)) + (self.ends[first - 1] if first else 0)
        events: Any = np.zeros(len(part.item), EVENT)
        events["id"], events["kind"], events["quantity"] = np.arange(1, len(part.item) + 1), CLICK, 1
        events["item"], events["time"] = items["id"][part.item], part.time
        return EventBlock(
            shopper=np.arange(first, last),
            shopper_row=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            round=step.astype(np.int32),
            number=number,
            events=events,
            is_target=step > 0,
            steps_before=step,
            returns=np.zeros(len(lengths), np.bool_),
        )


class Clickstreams(NamedTuple):
    """The clicks of several files, with one numbering of items."""

    items: list[str]  # ids by number, in order of appearance
    files: list[Clicks]

    def joined(self) -> Clicks:
        """All files as one: sessions by last click, and those of one file in that file's order."""
        if len(self.files) == 1:
            return self.files[0]
        starts = np.cumsum([0, *(len(clicks.item) for clicks in self.files[:-1])])
        ends = np.concatenate([clicks.ends + start for clicks, start in zip(self.files, starts, strict=True)])
        item, time = (np.concatenate([getattr(clicks, name) for clicks in self.files]) for name in ("item", "time"))
        last = np.concatenate([np.maximum.accumulate(clicks.time[clicks.ends - 1]) for clicks in self.files])
        order = np.argsort(last, kind="stable")
        lengths = np.diff(ends, prepend=0)
        clicks = np.concatenate([np.arange(ends[s] - lengths[s], ends[s]) for s in order.tolist()])
        return Clicks(np.cumsum(lengths[order]), item[clicks], time[clicks])


def read(paths: Sequence[Path]) -> Clickstreams:
    """Read files for training or evaluation. Raises ClickstreamError, and OSError if a file cannot be opened."""
    items: dict[str, int] = {}
    files = [_read_file(path, items) for path in paths]
    return Clickstreams(list(items), files)


def read_clicks(path: Path) -> list[Click]:
    """Clicks of a file in order of time; equal times keep the file's order. Raises as `read` does."""
    with _open_text(path) as lines:
        return parse_clicks(lines, str(path))


def parse_clicks(lines: Iterable[str], name: str) -> list[Click]:
    """Clicks of a table whose lines, header included, are already open. name: of the source, for error messages.

    Raises ClickstreamError.
    """
    rows = list(_parse(lines, name))
    if not rows:
        raise ClickstreamError(f"{name} holds no clicks")
    sessions: dict[str, int] = {}
    session = np.array([sessions.setdefault(row.session, len(sessions)) for row in rows])
    time = np.array([row.seconds for row in rows])
    by_session = np.lexsort((time, session))
    time[by_session] = spread_equal_times(session[by_session], time[by_session])
    clicks_of = [0] * len(sessions)
    clicks: list[Click] = []
    for row, of, seconds in zip(rows, session.tolist(), time.tolist(), strict=True):
        clicks.append(Click(row.session, row.item, seconds, clicks_of[of], row.written_time, row.line))
        clicks_of[of] += 1
    clicks.sort(key=lambda click: click.time)
    return clicks


def _read_file(path: Path, items: dict[str, int]) -> Clicks:
    """Clicks of one file. items: numbers of known items; new ones are added."""
    sessions: dict[str, int] = {}
    session_list: list[int] = []
    item: list[int] = []
    time_list: list[float] = []
    with _open_text(path) as lines:
        for row in _parse(lines, str(path)):
            session_list.append(sessions.setdefault(row.session, len(sessions)))
            item.append(items.setdefault(row.item, len(items)))
            time_list.append(row.seconds)
    if not session_list:
        raise ClickstreamError(f"{path} holds no clicks")
    session, time = np.array(session_list), np.array(time_list)
    last = np.full(len(sessions), -np.inf)
    np.maximum.at(last, session, time)
    rank = np.empty(len(sessions), np.int64)
    rank[np.argsort(last, kind="stable")] = np.arange(len(sessions))
    # lexsort is stable: clicks with equal times keep the order of the file.
    order = np.lexsort((time, rank[session]))
    ends = np.cumsum(np.bincount(rank[session], minlength=len(sessions)))
    spread = spread_equal_times(rank[session[order]], time[order])
    return Clicks(ends.astype(np.int64), np.array(item, np.int32)[order], spread)


def spread_equal_times(session: I64, time: F64) -> F64:
    """(n,) times in seconds; equal times of a session are spread in their order, within one tick of the clock.

    session, time: (n,) sorted by session and then by time. A profile orders events by time alone, so that the order of
    arrival does not matter. Without the spread, equal times would be ordered by the ids of their items.
    """
    tick = next((tick for tick in CLOCK_TICKS_S if not np.mod(time, tick).any()), CLOCK_TICKS_S[-1])
    is_new = np.ones(len(time), np.bool_)
    is_new[1:] = (np.diff(session) != 0) | (np.diff(time) != 0)
    first = np.flatnonzero(is_new)
    run_length = np.diff(first, append=len(time))
    place = np.arange(len(time)) - np.repeat(first, run_length)
    gap: F64 = np.minimum(MAX_SPREAD_S, tick / run_length)
    return time + place * gap.repeat(run_length)


class _Row(NamedTuple):
    line: int
    session: str
    item: str
    written_time: str
    seconds: float


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """A text file, plain or gzipped. Errors of the encoding or of gzip become ClickstreamError."""
    with open(path, "rb") as raw:
        is_gzip = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    open_text: Any = partial(gzip.open, mode="rt") if is_gzip else open
    with open_text(path, encoding="utf-8", newline="") as lines:
        try:
            yield lines
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ClickstreamError(f"{path} cannot be read as text: {error}") from None


def _parse(lines: Iterable[str], name: str) -> Iterator[_Row]:
    """Rows of a table, header included in `lines`. name: of the source, for error messages."""
    rest = iter(lines)
    header = next(rest, "").strip("\r\n").lstrip("\ufeff")
    separator = next((mark for mark in SEPARATORS if mark in header), ",")
    names = [column.strip().strip('"').lower() for column in header.split(separator)]
    missing = [column for column in COLUMNS if column.lower() not in names]
    if missing:
        raise ClickstreamError(
            f"{name} line 1: there is no column {missing[0]} in {header[:80]!r}; the first line must name "
            f"{', '.join(COLUMNS)}, separated by tabs, commas or semicolons"
        )
    places = [names.index(column.lower()) for column in COLUMNS]
    try:
        for line, row in enumerate(csv.reader(rest, delimiter=separator), 2):
            if not row:
                continue
            if len(row) <= max(places):
                raise ClickstreamError(f"{name} line {line}: {len(row)} columns where {len(names)} are expected")
            session, item, time = found = [row[place].strip() for place in places]
            if not all(found):
                raise ClickstreamError(f"{name} line {line}: {COLUMNS[found.index('')]} is empty")
            yield _Row(line, session, item, time, _seconds(time, name, line))
    except csv.Error as error:
        raise ClickstreamError(f"{name} cannot be read as text: {error}") from None


def _seconds(text: str, name: str, line: int) -> float:
    """Seconds since the epoch of a Time in seconds, milliseconds or ISO 8601. name, line: for error messages."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
        seconds = np.nan if moment is None else (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if seconds >= FIRST_MILLISECONDS:
        seconds /= 1000
    if not 0 <= seconds < FIRST_MILLISECONDS:
        raise ClickstreamError(
            f"{name} line {line}: Time is {text[:40]!r}, expected seconds or milliseconds since the epoch or ISO 8601"
        )
    return seconds
