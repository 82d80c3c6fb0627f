"""Clickstreams: files of SessionId, ItemId, Time. A session is a shopper who does nothing but click in it.

Tab, comma or semicolon between the columns, whose names the first line gives, in any order; others are passed over. Ids
are any text, Time is in seconds or milliseconds since the epoch or ISO 8601. Files may be gzipped.

A clock may be coarse, down to one that knows but the day: of equal times in a session the file's order holds.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stream.events import CLICK, EVENT

Rows = npt.NDArray[np.void]
COLUMNS = ("SessionId", "ItemId", "Time")
GZIP = b"\x1f\x8b"
TICKS = (86_400.0, 3_600.0, 60.0, 1.0, 1e-3)  # s, of clocks
MILLISECONDS = 1e11  # from here on: as seconds the year 5138, as milliseconds 1973
APART = 30.0  # s between two clicks of a session that have the same time, at most


class ClickstreamError(ValueError):
    """A file that is no clickstream; the message names file, line, column and value."""


class Block(NamedTuple):
    """Some sessions: n events of U shoppers, shopper by shopper, each in order of time, the parts of one event together."""

    shopper: npt.NDArray[np.int64]  # (U,) numbers
    who: npt.NDArray[np.int32]  # (n,) place of each event's shopper among them
    wave: npt.NDArray[np.int32]  # (n,) how many of the shopper's events in the block come before it
    number: npt.NDArray[np.int64]  # (n,) place among all events of the walk
    events: Rows  # (n,) EVENT
    asked: npt.NDArray[np.bool_]  # (n,) which are to be foreseen
    before: npt.NDArray[np.int64]  # (n,) steps of its session before it
    again: npt.NDArray[np.bool_]  # (U,) who will be seen in a later block


class Clicks(NamedTuple):
    """n clicks of S sessions, session by session in the order of their last clicks; each in order of time, then of the file."""

    ends: npt.NDArray[np.int64]  # (S,) where the clicks of each session end
    item: npt.NDArray[np.int32]  # (n,) number of the item
    time: npt.NDArray[np.float64]  # (n,) s since the epoch, as `apart` leaves them

    def part(self, first: int, last: int) -> Clicks:
        """Sessions `first` to `last`, that one not included."""
        start, end = self.ends[first - 1] if first else 0, self.ends[last - 1]
        return Clicks(self.ends[first:last] - start, self.item[start:end], self.time[start:end])

    def newest(self, clicks: int) -> int:
        """First of the newest sessions that have so many clicks after their first, as near as may be."""
        following = np.cumsum(np.diff(self.ends, prepend=0)[::-1] - 1)
        return max(len(self.ends) - int(np.searchsorted(following, clicks)) - 1, 0)

    def block(self, items: Rows, first: int, last: int) -> Block:
        """Sessions `first` to `last` as events of shoppers who come but once. items: (V,) ITEM by the items' numbers."""
        part = self.part(first, last)
        lengths = np.diff(part.ends, prepend=0)
        step = np.arange(len(part.item)) - np.repeat(part.starts, lengths)
        number = np.arange(len(part.item)) + (self.ends[first - 1] if first else 0)
        events: Any = np.zeros(len(part.item), EVENT)
        events["id"], events["kind"], events["quantity"] = np.arange(1, len(part.item) + 1), CLICK, 1
        events["item"], events["time"] = items["id"][part.item], part.time
        return Block(
            np.arange(first, last), np.repeat(np.arange(len(lengths), dtype=np.int32), lengths), step.astype(np.int32),
            number, events, step > 0, step, np.zeros(len(lengths), np.bool_),
        )  # fmt: skip

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(S,) where the clicks of each session start."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])


class Clickstreams(NamedTuple):
    """Several files, whose items are numbered together."""

    items: list[str]  # ids by number, in order of appearance
    files: list[Clicks]

    def joined(self) -> Clicks:
        """All files as one, its sessions in the order of their last clicks, those of a file in its own."""
        if len(self.files) == 1:
            return self.files[0]
        starts = np.cumsum([0, *(len(one.item) for one in self.files[:-1])])
        ends = np.concatenate([one.ends + at for one, at in zip(self.files, starts, strict=True)])
        item, time = (np.concatenate([getattr(one, name) for one in self.files]) for name in ("item", "time"))
        last = np.concatenate([np.maximum.accumulate(one.time[one.ends - 1]) for one in self.files])
        order = np.argsort(last, kind="stable")
        lengths = np.diff(ends, prepend=0)
        clicks = np.concatenate([np.arange(ends[s] - lengths[s], ends[s]) for s in order.tolist()])
        return Clicks(np.cumsum(lengths[order]), item[clicks], time[clicks])


def read(paths: Sequence[Path]) -> Clickstreams:
    """Raises ClickstreamError, OSError where a file cannot be read."""
    numbers: dict[str, int] = {}
    files = [_read(path, numbers) for path in paths]
    return Clickstreams(list(numbers), files)


def _read(path: Path, items: dict[str, int]) -> Clicks:
    sessions: dict[str, int] = {}
    of: list[int] = []
    item: list[int] = []
    time: list[float] = []
    for line, (session, name, moment) in _rows(path):
        of.append(sessions.setdefault(session, len(sessions)))
        item.append(items.setdefault(name, len(items)))
        time.append(_seconds(path, line, moment))
    if not of:
        raise ClickstreamError(f"{path} holds no clicks")
    who, when = np.array(of), np.array(time)
    last = np.full(len(sessions), -np.inf)
    np.maximum.at(last, who, when)
    rank = np.empty(len(sessions), np.int64)
    rank[np.argsort(last, kind="stable")] = np.arange(len(sessions))
    order = np.lexsort((when, rank[who]))  # stable: of equal times the file's order
    ends = np.cumsum(np.bincount(rank[who], minlength=len(sessions)))
    return Clicks(ends.astype(np.int64), np.array(item, np.int32)[order], apart(rank[who[order]], when[order]))


def apart(session: npt.NDArray[np.int64], time: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n,) times, s, of which equal ones of a session are spread in their order, within the tick of the clock at most.

    session, time: (n,) session by session, each in order of time. A profile knows events by their times, as it must come
    out the same in whatever order they arrive; without this, equal times would put a session in the order of its items' ids.
    """
    tick = next((tick for tick in TICKS if not np.mod(time, tick).any()), TICKS[-1])
    new = np.ones(len(time), np.bool_)
    new[1:] = (np.diff(session) != 0) | (np.diff(time) != 0)
    first = np.flatnonzero(new)
    many = np.diff(first, append=len(time))  # clicks of each run of equal times
    place = np.arange(len(time)) - np.repeat(first, many)
    step: npt.NDArray[np.float64] = np.minimum(APART, tick / many)
    return time + place * step.repeat(many)


def _rows(path: Path) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Line number and the three columns of each line."""
    with open(path, "rb") as raw:
        packed = raw.read(2) == GZIP
    with (
        gzip.open(path, "rt", encoding="utf-8", newline="")
        if packed
        else open(path, encoding="utf-8", newline="") as file
    ):
        try:
            yield from _columns(path, file)
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error, csv.Error) as error:
            raise ClickstreamError(f"{path} cannot be read as text: {error}") from None


def _columns(path: Path, file: io.TextIOBase | io.TextIOWrapper) -> Iterator[tuple[int, tuple[str, str, str]]]:
    header = file.readline().strip("\r\n").lstrip("\ufeff")
    between = next((mark for mark in "\t,;" if mark in header), ",")
    names = [name.strip().strip('"').lower() for name in header.split(between)]
    missing = [name for name in COLUMNS if name.lower() not in names]
    if missing:
        raise ClickstreamError(
            f"{path} line 1: there is no column {missing[0]} in {header[:80]!r}; the first line is to name "
            f"{', '.join(COLUMNS)}, with tabs, commas or semicolons between"
        )
    session, item, time = (names.index(name.lower()) for name in COLUMNS)
    for line, row in enumerate(csv.reader(file, delimiter=between), 2):
        if not row:
            continue
        if len(row) <= max(session, item, time):
            raise ClickstreamError(f"{path} line {line}: {len(row)} columns where {len(names)} are expected")
        found = row[session].strip(), row[item].strip(), row[time].strip()
        if not all(found):
            name = COLUMNS[found.index("")]
            raise ClickstreamError(f"{path} line {line}: {name} is empty")
        yield line, found


def _seconds(path: Path, line: int, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            moment = None
        seconds = np.nan if moment is None else (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if seconds >= MILLISECONDS:
        seconds /= 1000
    if not 0 <= seconds < MILLISECONDS:
        raise ClickstreamError(
            f"{path} line {line}: Time is {text[:40]!r}, expected seconds or milliseconds since the epoch or ISO 8601"
        )
    return seconds
