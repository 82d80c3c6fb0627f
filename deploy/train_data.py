"""Files that `shopwindow train` learns from: what they hold, and logs of events read line by line."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.files import InputError, event_records, item_records, opened
from models.eventlog import distinct
from stream.catalog import Catalog
from stream.events import EVENT, FUTURE_TOLERANCE, decode_run

Rows = npt.NDArray[np.void]
Say = Callable[[str], None]
Holds = Literal["clickstream", "events", "impressions"]
CHUNK = 4096  # lines that are decoded together
TOLD = 20  # bad lines that are told of one by one
NO_CLOCK = 4e9  # s; a file's lines have no time of arrival, so that none of them is from the future
IMPRESSION = "impression/1"


def holds(path: Path) -> Holds:
    """By the first line: a JSON object is an event or an impression, all else the header of a clickstream. Raises InputError."""
    with opened(str(path)) as lines:
        first = next((line for line in lines if line.strip()), "").lstrip("\ufeff \t")
    if not first.startswith("{"):
        return "clickstream"
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        return "events"
    return "impressions" if found.get("schema") == IMPRESSION else "events"


def data_kind(paths: Sequence[Path]) -> Holds:
    """What all of them hold; events beside impressions count as impressions. Raises InputError."""
    found = {path: holds(path) for path in paths}
    kinds = set(found.values())
    if len(kinds) > 1 and "clickstream" in kinds:
        one, other = (next(p for p, kind in found.items() if (kind == "clickstream") == is_) for is_ in (True, False))
        raise InputError(f"{one} is a clickstream and {other} holds JSON lines; train on files of one kind")
    return "impressions" if "impressions" in kinds else next(iter(kinds))


def files_hash(paths: Sequence[Path]) -> str:
    """Of the contents, in order."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(path.read_bytes())
    return "sha256:" + digest.hexdigest()


class Bad:
    """Lines that are refused: the first ones told at once, all of them counted."""

    def __init__(self, say: Say) -> None:
        self._say, self.count = say, 0

    def add(self, where: str, why: str) -> None:
        self.count += 1
        if self.count <= TOLD:
            self._say(f"{where}: {why}; left out")
        elif self.count == TOLD + 1:
            self._say("more lines are refused; the end says how many")


class Events(NamedTuple):
    rows: Rows  # (n,) EVENT, in the order of the files, each event once
    lines: int
    bad: int
    twice: int  # events that came again


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, from 1. Raises InputError."""
    with opened(str(path)) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line


def read_events(paths: Sequence[Path], say: Say) -> Events:
    """Raises InputError where a file cannot be read, or where no line of all is an event."""
    found: list[Rows] = [np.zeros(0, EVENT)]
    bad, count = Bad(say), 0
    for path in paths:
        lines = numbered(path)
        while chunk := list(islice(lines, CHUNK)):
            found.append(_decoded(path, chunk, bad))
            count += len(chunk)
            if count // 250_000 > (count - len(chunk)) // 250_000:
                say(f"{count:,} lines read")
    rows = np.concatenate(found)
    if not len(rows):
        raise InputError(f"{', '.join(map(str, paths))}: none of {count} lines is an event")
    once = distinct(rows)
    twice = int((rows["part"] == 0).sum() - (once["part"] == 0).sum())
    if bad.count:
        say(f"{bad.count:,} of {count:,} lines were refused and left out")
    if twice:
        say(f"{twice:,} events came more than once (same shopper, source and id) and count once")
    return Events(once, count, bad.count, twice)


def _decoded(path: Path, lines: Sequence[tuple[int, str]], bad: Bad) -> Rows:
    """(n,) EVENT in the order of the lines."""
    records, numbers = defaultdict(list), defaultdict(list)
    for number, line in lines:
        for record in event_records([line]):
            records[record.topic].append(record)
            numbers[record.topic].append(number)
    parts, at = [np.zeros(0, EVENT)], [np.zeros(0, np.int64)]
    refused = []
    for topic, of in records.items():
        decoded = decode_run(
            [one.value for one in of], [one.key for one in of], [NO_CLOCK] * len(of), topic, FUTURE_TOLERANCE
        )
        refused += [(numbers[topic][reject.record], reject.message) for reject in decoded.rejects]
        parts.append(decoded.rows)
        at.append(np.array(numbers[topic], np.int64)[decoded.rows["record"]])
    for number, message in sorted(refused):
        bad.add(f"{path} line {number}", message)
    return np.concatenate(parts)[np.argsort(np.concatenate(at), kind="stable")]


def read_catalog(path: Path, say: Say) -> Catalog:
    """JSON lines or one array of schema item/1; bad items are told of and left out. Raises InputError."""
    good, problems = item_records(str(path))
    bad = Bad(say)
    for problem in problems:
        bad.add(str(path), problem)
    catalog = Catalog()
    catalog.apply([(record.key or b"", record.value) for record in good])
    say(f"{path}: {len(good):,} items" + (f", {bad.count:,} refused and left out" if bad.count else ""))
    return catalog
