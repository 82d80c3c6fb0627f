"""Replay a log of events through the page path, without a broker: one side of `shopwindow replay-diff`.

Each version runs its own copy of this module as `python -m deploy.replay.pages LOG --outputs FOLDER`.

The same log gives the same bytes in any process. The clock is the event time, runs are cut by record count, and random
draws are seeded by shopper and version. GPT-2 would make the result depend on timing, so `--headlines` delivers
stand-in headlines instead: one for each request, every HEADLINE_RUNS runs, followed by the refresh of the pages that
wait for them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from agents.page.fold_step import PartitionInput
from agents.page.headline_cache import Headline, HeadlineCache, HeadlineRequest
from agents.page.path import PagePath, PageResult, Policy
from deploy.io.event_log import invented_item, read_log
from deploy.io.files import InputError, Outgoing
from models.history.model import History
from models.manifest import ManifestError, check_history
from models.ranker.model import MLP_GRAPH, Ranker
from stream.events.decode import TOPIC_KINDS, decode_run
from stream.items.activity import decode_activity, encode_activity
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals
from stream.settings import SHIPPED_MODELS

RUN_RECORDS = 32  # records of one run
HEADLINE_RUNS = 8  # runs between two deliveries of headlines
HEADLINE_TTL_S = 3600.0
FILES = ("pages", "impressions", "profiles")  # written by `main`, one record a line


class Record(NamedTuple):
    """One record that the worker would publish: `topic` is one of FILES."""

    topic: str
    key: bytes
    value: bytes | None


class Replay:
    """The page path over one log, with the state that a worker keeps in tables."""

    def __init__(self, models: Path, catalog: Catalog, headlines: bool) -> None:
        history = History(models / "history", catalog) if (models / "history").is_dir() else None
        ranker = Ranker(models / "ranker", "mlp" if (models / "ranker" / MLP_GRAPH).is_file() else "logit")
        check_history(ranker.manifest, None if history is None else history.manifest)
        self._signals, self._table = Signals(catalog, ranker.half_lives), ItemTable(ranker.half_lives)
        self._path = PagePath(catalog, self._signals, ranker, HeadlineCache(), Policy(copy=headlines), history)
        self._profiles: dict[bytes, bytes] = {}
        self._requests: list[HeadlineRequest] = []

    def run(
        self, topic: str, records: list[Outgoing], times: list[float], offsets: list[int], now: float
    ) -> list[Record]:
        """Process one run of records at time `now` (s since the epoch), and return what it publishes."""
        decoded = decode_run([one.value for one in records], [one.key for one in records], times, topic)
        result = self._path.refresh_partition(self._profiles, decoded, np.array(offsets, np.int64), now)
        published = self._apply(result, now)
        if len(result.activity):
            activity = decode_activity(encode_activity(topic, 0, result.activity))
            self._signals.apply(self._table.records(self._table.fold(*activity)))
        return published

    def deliver_headlines(self, now: float) -> list[Record]:
        """Answer all open headline requests, and return the refreshed pages."""
        answers = [_stand_in(request, now) for request in self._requests]
        self._requests.clear()
        refreshes = self._path.headlines.apply(answers, now)
        if not refreshes:
            return []
        return self._apply(self._path.refresh_pages([PartitionInput(self._profiles, refreshes=refreshes)], now)[0], now)

    def _apply(self, result: PageResult, now: float) -> list[Record]:
        self._path.record_published([result], now)
        self._requests += [request for page in result.pages for request in page.headline_requests]
        for key, value in result.changelog:
            if value is None:
                self._profiles.pop(key, None)
            else:
                self._profiles[key] = value
        return [
            *(Record("profiles", key, value) for key, value in result.changelog),
            *(Record("pages", key, value) for key, value in result.page_records()),
            *(Record("impressions", key, value) for key, value in result.impression_records()),
        ]


def replay(log: Path, models: Path, catalog: Path | None, limit: int, headlines: bool) -> Iterator[Record]:
    """Yield every record that the events of a log lead to; limit 0: all events.

    Items that the catalogue (JSON lines of schema item/1) lacks are added with their id as title. Raises InputError and
    ManifestError.
    """
    records, _, times, items = read_log(str(log), limit)
    work = Replay(models, _catalog(catalog, items), headlines)
    now = 0.0
    for number, (topic, indices) in enumerate(_runs(records), 1):
        moments = [times[index] for index in indices]
        now = max(now, *moments)
        yield from work.run(topic, [records[index] for index in indices], moments, indices, now)
        if headlines and number % HEADLINE_RUNS == 0:
            yield from work.deliver_headlines(now)


def _runs(records: list[Outgoing]) -> Iterator[tuple[str, list[int]]]:
    """Yield runs of one topic, of at most RUN_RECORDS, as (topic, indices of the records)."""
    for topic, group in groupby(range(len(records)), lambda index: records[index].topic):
        indices = list(group)
        if topic in TOPIC_KINDS:
            yield from ((topic, indices[at : at + RUN_RECORDS]) for at in range(0, len(indices), RUN_RECORDS))


def _catalog(path: Path | None, items: list[str]) -> Catalog:
    catalog = Catalog()
    for line in path.read_bytes().splitlines() if path is not None else ():
        if line.strip() and (problems := catalog.apply([(_item_id(path, line), line)])):
            raise InputError(f"{path}: {problems[0].message}")
    missing = [item for item in dict.fromkeys(items) if item not in catalog]
    catalog.apply([(item.encode(), invented_item(item)) for item in missing])
    return catalog


def _item_id(catalog: Path | None, line: bytes) -> bytes:
    try:
        return str(msgspec.json.decode(line)["item_id"]).encode()
    except (msgspec.MsgspecError, LookupError, TypeError):
        raise InputError(f"{catalog}: {line[:80]!r} is not an item of schema item/1") from None


def _stand_in(request: HeadlineRequest, now: float) -> tuple[bytes, bytes]:
    """Return the record of topic `copy` that answers a request, with a text made of the request alone."""
    title = request.titles[0] if request.titles else ""
    headline = Headline(
        segment=request.segment,
        locale=request.locale,
        slot=request.slot,
        category=request.category,
        text=f"{title or request.category or request.slot} ({request.locale})",
        created=now,
        ttl=HEADLINE_TTL_S,
        copywriter="stand-in",
        item=request.item,
        title=title if request.item else "",
    )
    return request.segment.encode(), msgspec.json.encode(headline)


def _line(record: Record) -> bytes:
    """Pages and impressions as published; profile rows as `key value` in hexadecimal, without a value if deleted."""
    if record.topic == "profiles":
        return b"%s %s\n" % (record.key.hex().encode(), (record.value or b"").hex().encode())
    return (record.value or b"null") + b"\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.replay.pages", description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--models", type=Path, default=SHIPPED_MODELS)
    parser.add_argument("--catalog", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--headlines", action="store_true", help="deliver stand-in headlines and refresh pages")
    parser.add_argument("--outputs", type=Path, required=True, help="folder for pages, impressions and profiles")
    given = parser.parse_args()
    files = {name: (given.outputs / f"{name}.jsonl").open("wb") for name in FILES}
    try:
        for record in replay(given.log, given.models, given.catalog, given.limit, given.headlines):
            files[record.topic].write(_line(record))
    except (InputError, ManifestError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for file in files.values():
            file.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
