"""Replay a log of events into the topics."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from deploy.io.event_log import invented_item, read_log
from deploy.io.files import Outgoing
from deploy.io.send import sender
from stream.kafka.global_topics import read_table
from stream.settings import Settings

# A long wait is cut into steps; after each, the time left is measured again.
MAX_SLEEP_S = 1.0


class Replayed(NamedTuple):
    events: int
    shoppers: int
    items: int  # added to the catalogue
    seconds: float


async def replay(settings: Settings, path: str, speed: float, limit: int, add_items: bool) -> Replayed:
    """Send a log in its order, at `speed` times its own pace, and return when the broker has acknowledged all of it.

    speed: infinity sends as fast as possible. limit: number of events, 0 for all. Raises InputError.
    """
    from tqdm import tqdm

    records, times, items = read_log(path, limit)
    added = await _missing_items(settings, items) if add_items else []
    start = time.monotonic()
    async with sender(settings) as client:
        for item in added:
            await client.send(item)
        await client.acknowledged()
        with tqdm(total=len(records), unit=" events", file=sys.stderr, mininterval=0.2) as bar:
            for record, event_time in zip(records, times, strict=True):
                if speed != float("inf"):
                    await _sleep_until(start + (event_time - times[0]) / speed)
                await client.send(record)
                bar.update()
            await client.acknowledged()
    shoppers = len({record.key for record in records if record.key is not None})
    return Replayed(len(records), shoppers, len(added), time.monotonic() - start)


async def _sleep_until(due: float) -> None:
    while (wait := due - time.monotonic()) > 0:
        await asyncio.sleep(min(wait, MAX_SLEEP_S))


async def _missing_items(settings: Settings, wanted: Iterable[str]) -> list[Outgoing]:
    """Return a catalogue record for each item that the catalogue lacks."""
    known = {key.decode("utf-8", "replace") for key in await read_table(settings, "catalog")}
    return [
        Outgoing("catalog", item.encode(), invented_item(item)) for item in dict.fromkeys(wanted) if item not in known
    ]
