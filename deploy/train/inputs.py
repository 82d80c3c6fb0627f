"""Input files of `shopwindow train`: format detection, hashes, and event logs read line by line."""

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

from deploy.io.files import InputError, event_records, open_text
from deploy.io.items import read_items
from models.data.event_log import without_duplicates, without_erased
from models.manifest import Source
from models.train.progress import LogLine
from stream.events.decode import EVENT, FUTURE_TOLERANCE_S, NO_ARRIVAL_S, Decoded, decode_run
from stream.items.catalog import Catalog
from stream.name_patterns import NO_NAMES, NamePatterns
from stream.row_codec import rows_at
from stream.types import F64, Rows

DataFormat = Literal["clickstream", "events", "impressions"]
DECODED_LINES = 4096  # decoded together
HASHED_BYTES = 1 << 20  # read at once
MAX_LOGGED_REFUSALS = 20  # the others are only counted
PROGRESS_LINES = 250_000  # between two progress lines
_IMPRESSION = re.compile(r'"schema"\s*:\s*"impression/1"')


def is_impression(line: str) -> bool:
    """True if the line names the schema impression/1, even if it is not valid JSON."""
    return _IMPRESSION.search(line) is not None


def detect_format(path: Path) -> DataFormat:
    """Format of a file by its first line. Raises InputError.

    A JSON object is an event or an impression; anything else is the header of a clickstream.
    """
    if str(path) == "-" or path.is_fifo():
        raise InputError(f"{path} can be read only once, and training reads its data twice; write it to a file first")
    with open_text(str(path)) as lines:
        first = next((line for line in lines if line.strip()), "").lstrip()
    if not first:
        raise InputError(f"{path} is empty; expected a clickstream (SessionId, ItemId, Time) or one JSON object a line")
    if first.startswith("["):
        raise InputError(f"{path} is a JSON array; expected one JSON object a line: jq -c '.[]' {path} > lines.jsonl")
    if not first.startswith("{"):
        return "clickstream"
    return "impressions" if is_impression(first) else "events"


def data_kind(paths: Sequence[Path]) -> DataFormat:
    """Common format of the files; events beside impressions count as impressions. Raises InputError."""
    formats = {path: detect_format(path) for path in paths}
    kinds = set(formats.values())
    if len(kinds) > 1 and "clickstream" in kinds:
        clickstream = next(path for path, kind in formats.items() if kind == "clickstream")
        other = next(path for path, kind in formats.items() if kind != "clickstream")
        raise InputError(f"{clickstream} is a clickstream and {other} holds JSON lines; train on files of one kind")
    return "impressions" if "impressions" in kinds else next(iter(kinds))


def files_hash(paths: Sequence[Path]) -> str:
    """Hash of the files' contents, in order."""
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                while part := file.read(HASHED_BYTES):
                    digest.update(part)
    return "sha256:" + digest.hexdigest()


def source_of(paths: Sequence[Path], times: F64) -> Source:
    """Hash of the files and range of the event times in them (seconds since the epoch, at least one)."""
    return Source(files_hash(paths), range_of(times))


def range_of(times: F64) -> tuple[str, str]:
    """First and last time in ISO 8601. times: seconds since the epoch, at least one."""
    first, last = (datetime.fromtimestamp(float(time), UTC).isoformat() for time in (times.min(), times.max()))
    return first, last


class Refusals:
    """Refused lines or records: the first MAX_LOGGED_REFUSALS are logged one by one, all of them are counted."""

    def __init__(self, log: LogLine) -> None:
        self._log, self.count = log, 0

    def add(self, place: str, reason: str) -> None:
        self.count += 1
        if self.count <= MAX_LOGGED_REFUSALS:
            self._log(f"{place}: {reason}; left out")
        elif self.count == MAX_LOGGED_REFUSALS + 1:
            self._log("more are refused; their number is given at the end")

    def log_total(self, what: str) -> None:
        """Log how many of `what` were refused, if any."""
        if self.count:
            self._log(f"{self.count:,} {what} were refused and left out")


class Events(NamedTuple):
    """Events of files, without duplicates, excluded shoppers and what was erased."""

    rows: Rows  # (n,) EVENT, the parts of an event adjacent
    lines: int
    refused: int  # lines
    repeated: int  # events that came again
    erased: int  # events up to an erasure request of their shopper


def numbered_lines(path: Path, log: LogLine) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1; logs progress. Raises InputError."""
    with open_text(str(path)) as lines:
        for number, line in enumerate(lines, 1):
            if number % PROGRESS_LINES == 0:
                log(f"{path}: {number:,} lines read")
            if line.strip():
                yield number, line


def read_events(paths: Sequence[Path], log: LogLine, excluded_shoppers: NamePatterns = NO_NAMES) -> Events:
    """Read JSON lines of events. Raises InputError if a file cannot be read or no event is left to learn from."""
    found: list[Rows] = [np.zeros(0, EVENT)]
    refusals, count, excluded = Refusals(log), 0, _Excluded(excluded_shoppers)
    for path in paths:
        lines = numbered_lines(path, log)
        while chunk := list(islice(lines, DECODED_LINES)):
            found.append(_decode_lines(path, chunk, refusals, excluded))
            count += len(chunk)
    rows = np.concatenate(found)
    names = ", ".join(map(str, paths))
    if excluded.count:
        log(f"{excluded.count:,} events of shoppers in SHOPWINDOW_EXCLUDE_SHOPPERS are left out")
    if not len(rows):
        raise InputError(f"{names}: none of {count:,} lines is an event to learn from")
    distinct = without_duplicates(rows)
    repeated = int((rows["part"] == 0).sum() - (distinct["part"] == 0).sum())
    refusals.log_total(f"of {count:,} lines")
    if repeated:
        log(f"{repeated:,} events came more than once (same shopper, source and id) and count once")
    kept = without_erased(distinct)
    if kept.events:
        log(f"{kept.events:,} events of {kept.shoppers:,} shoppers who asked to be erased are left out")
    if not len(kept.rows):
        raise InputError(f"{names}: all shoppers asked to be erased, so there is nothing to learn from")
    return Events(kept.rows, count, refusals.count, repeated, kept.events)


class _Excluded:
    """Leaves out the events of excluded shoppers, and counts them."""

    def __init__(self, shoppers: NamePatterns) -> None:
        self._shoppers, self.count = shoppers, 0

    def without(self, decoded: Decoded) -> Rows:
        """(n,) EVENT of the other shoppers."""
        if not self._shoppers:
            return decoded.rows
        matches = [self._shoppers.match(key.decode("utf-8", "surrogatepass")) for key in decoded.keys]
        is_excluded = np.array([match is not None for match in matches], np.bool_)
        self.count += int(is_excluded.sum())
        return rows_at(decoded.rows, np.flatnonzero(~is_excluded[decoded.rows["record"]]))


def _decode_lines(path: Path, lines: Sequence[tuple[int, str]], refusals: Refusals, excluded: _Excluded) -> Rows:
    """(n,) EVENT in the order of the numbered lines."""
    records, numbers = defaultdict(list), defaultdict(list)
    for number, line in lines:
        for record in event_records([line]):
            records[record.topic].append(record)
            numbers[record.topic].append(number)
    parts, line_numbers = [np.zeros(0, EVENT)], [np.zeros(0, np.int64)]
    refused = []
    for topic, of_topic in records.items():
        values, keys = [record.value for record in of_topic], [record.key for record in of_topic]
        decoded = decode_run(values, keys, [NO_ARRIVAL_S] * len(values), topic, FUTURE_TOLERANCE_S)
        refused += [(numbers[topic][reject.record], reject.message) for reject in decoded.rejects]
        parts.append(excluded.without(decoded))
        line_numbers.append(np.array(numbers[topic], np.int64)[parts[-1]["record"]])
    for number, message in sorted(refused):
        refusals.add(f"{path} line {number}", message)
    return np.concatenate(parts)[np.argsort(np.concatenate(line_numbers), kind="stable")]


def read_catalog(path: Path, log: LogLine) -> Catalog:
    """Read JSON lines or one array of schema item/1; bad items are logged and left out.

    Raises InputError if there is no valid item.
    """
    records, problems, unknown_fields, _ = read_items(str(path))
    for sentence in unknown_fields:
        log(f"{path}: {sentence}")
    refusals = Refusals(log)
    for problem in problems:
        refusals.add(str(path), problem)
    if not records:
        raise InputError(
            f"{path}: none of {len(problems):,} lines is an item (`shopwindow schemas` prints the schema of an item)"
        )
    catalog = Catalog()
    catalog.apply([(record.key or b"", record.value) for record in records])
    log(f"{path}: {len(records):,} items" + (f", {refusals.count:,} refused and left out" if problems else ""))
    return catalog
