"""Replay a log of events into the topics."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

from deploy.io.event_check import BadEvents, EventCheck, NumberedRecord
from deploy.io.event_log import ReplayLog, invented_item, read_log
from deploy.io.files import Outgoing
from deploy.io.send import CHECKED_TOGETHER, sender
from stream.kafka.global_topics import read_table
from stream.settings import Settings

# A long wait is cut into steps; after each, the time left is measured again.
MAX_SLEEP_S = 1.0


class Replayed(NamedTuple):
    """What `replay` did."""

    check: EventCheck
    events: int  # sent
    shoppers: int
    items: int  # added to the catalogue
    seconds: float


async def replay(settings: Settings, path: str, speed: float, limit: int, add_items: bool, bad: BadEvents) -> Replayed:
    """Send a log in its order, at `speed` times its own pace, and return when the broker has acknowledged all of it.

    speed: infinity sends as fast as possible. limit: number of events, 0 for all. `bad`: what becomes of events that
    workers would refuse; with REFUSE, one is enough that nothing is sent. Raises InputError.
    """
    from tqdm import tqdm

    log, check = read_log(path, limit), EventCheck(settings)
    sent = _checked(log, check, bad)
    if check.refused and bad is BadEvents.REFUSE:
        return Replayed(check, 0, 0, 0, 0.0)
    added = await _missing_items(settings, log.items) if add_items else []
    start = time.monotonic()
    async with sender(settings) as client:
        for item in added:
            await client.send(item)
        await client.acknowledged()
        with tqdm(total=len(sent), unit=" events", file=sys.stderr, mininterval=0.2) as bar:
            for record, event_time in sent:
                if speed != float("inf"):
                    await _sleep_until(start + (event_time - log.times[0]) / speed)
                await client.send(record)
                bar.update()
            await client.acknowledged()
    shoppers = len({record.key for record, _ in sent if record.key is not None})
    return Replayed(check, len(sent), shoppers, len(added), time.monotonic() - start)


def _checked(log: ReplayLog, check: EventCheck, bad: BadEvents) -> list[tuple[Outgoing, float]]:
    """Check all events of a log, and return those to send, with their times in seconds since the epoch."""
    numbered = [NumberedRecord(line, record) for line, record in zip(log.lines, log.records, strict=True)]
    good = {
        one.line
        for at in range(0, len(numbered), CHECKED_TOGETHER)
        for one in check.good(numbered[at : at + CHECKED_TOGETHER])
    }
    return [
        (record, event_time)
        for line, record, event_time in zip(log.lines, log.records, log.times, strict=True)
        if bad is BadEvents.SEND or line in good
    ]


async def _sleep_until(due: float) -> None:
    while (wait := due - time.monotonic()) > 0:
        await asyncio.sleep(min(wait, MAX_SLEEP_S))


async def _missing_items(settings: Settings, wanted: Iterable[str]) -> list[Outgoing]:
    """Return a catalogue record for each item that the catalogue lacks."""
    known = {key.decode("utf-8", "replace") for key in await read_table(settings, "catalog")}
    return [
        Outgoing("catalog", item.encode(), invented_item(item)) for item in dict.fromkeys(wanted) if item not in known
    ]
