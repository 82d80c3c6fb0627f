"""Files that `shopwindow train` learns from: what they hold, and logs of events read line by line."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.io.files import InputError, event_records, item_records, open_text
from models.data.event_log import distinct, without_erased
from models.manifest import Source
from models.train.progress import Say
from stream.events import EVENT, FUTURE_TOLERANCE, decode_run
from stream.items.catalog import Catalog

Rows = npt.NDArray[np.void]
Holds = Literal["clickstream", "events", "impressions"]
CHUNK = 4096  # lines that are decoded together
TOLD = 20  # bad lines that are told of one by one
TOLD_EVERY = 250_000  # lines
NO_CLOCK = 4e9  # s; a file's lines have no time of arrival, so that none of them is from the future
_IMPRESSION = re.compile(r'"schema"\s*:\s*"impression/1"')


def is_impression(line: str) -> bool:
    """True for a line that says so of itself, however the rest of it is torn."""
    return _IMPRESSION.search(line) is not None


def holds(path: Path) -> Holds:
    """By the first line: a JSON object is an event or an impression, all else the header of a clickstream. Raises InputError."""
    if str(path) == "-" or path.is_fifo():
        raise InputError(f"{path} can be read but once, and training reads its data twice; write it to a file first")
    with open_text(str(path)) as lines:
        first = next((line for line in lines if line.strip()), "").lstrip()
    if not first:
        raise InputError(f"{path} is empty; expected a clickstream (SessionId, ItemId, Time) or one JSON object a line")
    if first.startswith("["):
        raise InputError(f"{path} is a JSON array; expected one JSON object a line: jq -c '.[]' {path} > lines.jsonl")
    if not first.startswith("{"):
        return "clickstream"
    return "impressions" if is_impression(first) else "events"


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
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    digest.update(part)
    return "sha256:" + digest.hexdigest()


def source_of(paths: Sequence[Path], times: npt.NDArray[np.float64]) -> Source:
    """Hash of the files, and range of the times (s since the epoch, one at least) of what was done in them."""
    return Source(files_hash(paths), range_of(times))


def range_of(times: npt.NDArray[np.float64]) -> tuple[str, str]:
    """The first and the last of times (s since the epoch, one at least), in ISO 8601."""
    first, last = (datetime.fromtimestamp(float(time), UTC).isoformat() for time in (times.min(), times.max()))
    return first, last


class Refusals:
    """Of lines or records: the first ones told at once, all of them counted."""

    def __init__(self, say: Say) -> None:
        self._say, self.count = say, 0

    def add(self, where: str, why: str) -> None:
        self.count += 1
        if self.count <= TOLD:
            self._say(f"{where}: {why}; left out")
        elif self.count == TOLD + 1:
            self._say("more are refused; the end says how many")

    def sum_up(self, what: str) -> None:
        """Say how many of `what` there were, if any."""
        if self.count:
            self._say(f"{self.count:,} {what} were refused and left out")


class Events(NamedTuple):
    rows: Rows  # (n,) EVENT, each event once, its parts together; as `without_erased` leaves them
    lines: int
    refused: int  # lines
    twice: int  # events that came again
    erased: int  # events before their shoppers asked to be erased


def numbered(path: Path, say: Say) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, from 1; tells how far it is. Raises InputError."""
    with open_text(str(path)) as lines:
        for number, line in enumerate(lines, 1):
            if number % TOLD_EVERY == 0:
                say(f"{path}: {number:,} lines read")
            if line.strip():
                yield number, line


def read_events(paths: Sequence[Path], say: Say) -> Events:
    """Raises InputError where a file cannot be read, or where no event is left to learn from."""
    found: list[Rows] = [np.zeros(0, EVENT)]
    refusals, count = Refusals(say), 0
    for path in paths:
        lines = numbered(path, say)
        while chunk := list(islice(lines, CHUNK)):
            found.append(_decoded(path, chunk, refusals))
            count += len(chunk)
    rows = np.concatenate(found)
    names = ", ".join(map(str, paths))
    if not len(rows):
        raise InputError(f"{names}: none of {count:,} lines is an event")
    once = distinct(rows)
    twice = int((rows["part"] == 0).sum() - (once["part"] == 0).sum())
    refusals.sum_up(f"of {count:,} lines")
    if twice:
        say(f"{twice:,} events came more than once (same shopper, source and id) and count once")
    kept = without_erased(once)
    if kept.events:
        say(f"{kept.events:,} events of {kept.shoppers:,} shoppers who asked to be erased are left out")
    if not len(kept.rows):
        raise InputError(f"{names}: all shoppers asked to be erased, so that there is nothing to learn from")
    return Events(kept.rows, count, refusals.count, twice, kept.events)


def _decoded(path: Path, lines: Sequence[tuple[int, str]], refusals: Refusals) -> Rows:
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
        refusals.add(f"{path} line {number}", message)
    return np.concatenate(parts)[np.argsort(np.concatenate(at), kind="stable")]


def read_catalog(path: Path, say: Say) -> Catalog:
    """JSON lines or one array of schema item/1; bad items are told of and left out. Raises InputError where none is good."""
    good, problems = item_records(str(path))
    refusals = Refusals(say)
    for problem in problems:
        refusals.add(str(path), problem)
    if not good:
        raise InputError(f"{path}: none of {len(problems):,} lines is an item (shopwindow schemas shows what one is)")
    catalog = Catalog()
    catalog.apply([(record.key or b"", record.value) for record in good])
    say(f"{path}: {len(good):,} items" + (f", {refusals.count:,} refused and left out" if problems else ""))
    return catalog
