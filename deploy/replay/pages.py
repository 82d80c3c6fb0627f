"""The pages of a log of events, by this version and without a broker: the half of `shopwindow replay-diff` that each version
runs for itself, as `python -m deploy.replay.pages LOG`.

The same log gives the same bytes, in any process: the clock is that of the events, runs are cut by count, and draws are
seeded by shopper and version. Headlines are templates, for GPT-2's depend on when they come.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec
import numpy as np

from agents.page.headline_cache import HeadlineCache
from agents.page.path import PagePath, Policy
from deploy.io.event_log import read_log
from deploy.io.files import InputError, Outgoing
from models.history.model import History
from models.manifest import ManifestError
from models.ranker.model import HEAD, Ranker
from stream.events import TOPIC_KINDS, decode_run
from stream.items.activity import decode_activity, encode_activity
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals
from stream.settings import SHIPPED_MODELS

RUN = 32  # records that are answered together


def pages(log: Path, models: Path, catalog: Path | None, limit: int) -> Iterator[bytes]:
    """Each page that the events of a log lead to, as published; limit 0: of all events.

    Items that the catalogue (JSON lines of schema item/1) lacks are put into it by their id. Raises InputError,
    ManifestError.
    """
    records, times, items = read_log(str(log), limit)
    shop = Catalog()
    if catalog is not None:
        for line in catalog.read_bytes().splitlines():
            if line.strip() and (problems := shop.apply([(_item_id(catalog, line), line)])):
                raise InputError(f"{catalog}: {problems[0].message}")
    unknown = (item for item in dict.fromkeys(items) if item not in shop)
    shop.apply([(item.encode(), _invented(item)) for item in unknown])
    history = History(models / "history", shop) if (models / "history").is_dir() else None
    ranker = Ranker(models / "ranker", "mlp" if (models / "ranker" / HEAD).is_file() else "logit")
    signals, table = Signals(shop, ranker.half_lives), ItemTable(ranker.half_lives)
    path = PagePath(shop, signals, ranker, HeadlineCache(), Policy(copy=False), history)
    stored: dict[bytes, bytes] = {}
    now = 0.0
    for topic, numbers in _runs(records):
        of = [records[number] for number in numbers]
        moments = [times[number] for number in numbers]
        now = max(now, *moments)
        decoded = decode_run([one.value for one in of], [one.key for one in of], moments, topic)
        step = path.step(stored, decoded, np.array(numbers, np.int64), now)
        for key, value in step.changelog:
            if value is None:
                stored.pop(key, None)
            else:
                stored[key] = value
        if len(step.activity):
            activity = decode_activity(encode_activity(topic, 0, step.activity))
            signals.apply(table.records(table.fold(*activity)))
        yield from (value for _, value in step.pages)


def _runs(records: list[Outgoing]) -> Iterator[tuple[str, list[int]]]:
    """Stretches of one topic, RUN records at most, as indices."""
    for topic, group in groupby(range(len(records)), lambda number: records[number].topic):
        numbers = list(group)
        if topic in TOPIC_KINDS:
            yield from ((topic, numbers[at : at + RUN]) for at in range(0, len(numbers), RUN))


def _item_id(catalog: Path, line: bytes) -> bytes:
    try:
        return str(msgspec.json.decode(line)["item_id"]).encode()
    except (msgspec.MsgspecError, LookupError, TypeError):
        raise InputError(f"{catalog}: {line[:80]!r} is no item of schema item/1") from None


def _invented(item: str) -> bytes:
    return msgspec.json.encode({"item_id": item, "title": item, "category": "replayed"})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.replay.pages", description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--models", type=Path, default=SHIPPED_MODELS)
    parser.add_argument("--catalog", type=Path)
    parser.add_argument("--limit", type=int, default=0)
    given = parser.parse_args()
    try:
        for page in pages(given.log, given.models, given.catalog, given.limit):
            sys.stdout.buffer.write(page + b"\n")
    except (InputError, ManifestError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
