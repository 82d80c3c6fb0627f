"""The writer of headlines: GPT-2, a batch of segments at a time, in a process beside the worker.

Its consumer group is its own: writers are started and stopped, lag and crash without a word to those who make pages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from agents.headlines.copywriter_process import CopywriterProcess, CopywriterUnavailable
from agents.page.headline_cache import PATIENCE, TEXTS, Headline, HeadlineRequest
from models.copywriter.facts import Facts
from models.copywriter.facts import allowed_names
from stream import logs, metrics
from stream.events import Reject
from stream.kafka.commit import Output, Pair
from stream.kafka.dead_letters import count_letters, dead_letter
from stream.kafka.group import Group
from stream.settings import Settings

TOPICS = ("copy-requests",)
RUN_RECORDS = 8  # nine tenths of the throughput of a large batch, and the first headline does not wait for the last
WAITING = 1024  # requests that are held, to choose the most urgent from
IDLE = 5.0  # s of a question for more that nothing answers
RETRY = 10.0  # s until headlines are tried again in a worker that makes pages too
log = logging.getLogger(__name__)


class _Asked(NamedTuple):
    """A segment that a headline is wanted for, and all requests for it."""

    request: HeadlineRequest  # the newest
    records: list[Any]
    since: float  # s, when it was made


class HeadlineAgent:
    """Takes `copy-requests` and publishes to `copy`, which everybody reads. `run` it once at a time."""

    def __init__(self, settings: Settings, scribe: CopywriterProcess, group: Group) -> None:
        self._settings, self._scribe, self.group = settings, scribe, group
        # Of the last PATIENCE s, segment -> until when it is not written anew, and what it names; the first to end first.
        # Who asks later has lost it.
        self._written: dict[str, tuple[float, list[str]]] = {}
        # Those of many pages, then those of few; in each in the order in which they came.
        self._common: dict[str, _Asked] = {}
        self._naming: dict[str, _Asked] = {}

    async def run(self) -> None:
        """For ever. Raises NoBroker or the Kafka error that does not pass."""
        async with self.group:
            while True:
                held = len(self._common) + len(self._naming)
                await self.turn(await self.group.take(max(1, WAITING - held), 0.0 if held else IDLE))

    async def run_beside_pages(self) -> None:
        """`run`, begun again where it fails: want of headlines must not cost a page."""
        while True:
            try:
                await self.run()
            except Exception as error:  # whatever it is, the pages go on; it is said, and tried again
                log.error("no headlines are written for now, it is tried again in %.0f s: %s", RETRY, logs.told(error))
            await asyncio.sleep(RETRY)

    async def turn(self, records: Iterable[Any]) -> None:
        """Take in requests, and answer the RUN_RECORDS most urgent of those that wait."""
        refused, letters = self._take_in(records)
        batch, needless = self._most_urgent()
        outputs = [*letters, *await self._copies([asked.request for asked in batch])]
        done = [*refused, *needless, *(record for asked in batch for record in asked.records)]
        if done:
            await self.group.done(done, outputs)

    def _take_in(self, records: Iterable[Any]) -> tuple[list[Any], list[Output]]:
        """-> records that are no requests, and their dead letters."""
        refused: list[Any] = []
        letters: list[Output] = []
        for record in records:
            try:
                request = msgspec.json.decode(record.value, type=HeadlineRequest)
                if request.item and not request.titles:
                    raise msgspec.ValidationError("an item without a title")
            except (msgspec.MsgspecError, TypeError) as error:
                reject = Reject(0, "invalid", "value", f"not a request for copy: {error}")
                pair, headers = dead_letter(TOPICS[0], record.partition, record, reject)
                letters.append(Output("dead-letters", None, [pair], [headers]))
                refused.append(record)
                continue
            waiting = self._naming if request.item else self._common
            before = waiting.get(request.segment)
            of = [*before.records, record] if before else [record]
            waiting[request.segment] = _Asked(request, of, record.timestamp / 1000)
        count_letters(letters)
        return refused, letters

    def _most_urgent(self) -> tuple[list[_Asked], list[Any]]:
        """What is to be written next, RUN_RECORDS at most; and the records before it that need no answer."""
        batch: list[_Asked] = []
        needless: list[Any] = []
        now = time.time()
        for asked in self._in_turn():
            if not any(self.group.held(record) for record in asked.records):
                continue  # a rebalance has given them to another
            # After PATIENCE whoever wants it still has asked again.
            if now - asked.since > PATIENCE or self._has_been_written(asked.request, now):
                needless += asked.records
                continue
            batch.append(asked)
            if len(batch) == RUN_RECORDS:
                break
        return batch, needless

    def _in_turn(self) -> Iterator[_Asked]:
        """What waits, the most urgent first; it waits no more."""
        for waiting in (self._common, self._naming):
            while waiting:
                yield waiting.pop(next(iter(waiting)))

    def _has_been_written(self, request: HeadlineRequest, now: float) -> bool:
        until, titles = self._written.get(request.segment, (0.0, []))
        return now < until and titles == _names(request)

    async def _copies(self, requests: list[HeadlineRequest]) -> list[Output]:
        """A record of `copy` for each; none while the copywriter rests: they are asked for again."""
        if not requests:
            return []
        start = time.perf_counter()
        # A common headline names no item, for it stands on other shoppers' pages too.
        facts = [Facts(r.locale, r.slot, r.category, tuple(_names(r))) for r in requests]
        # What has a name that may not be said need not be tried.
        tried = [at for at, (r, f) in enumerate(zip(requests, facts, strict=True)) if not r.item or allowed_names(f)]
        texts: list[tuple[str, float] | None] = [None] * len(requests)
        try:
            if tried:
                # It depends on nothing but these facts and the hour, and is another once it has expired.
                seed = int(time.time() // self._settings.copy_ttl)
                for at, copy in zip(tried, await self._scribe.write([facts[at] for at in tried], seed), strict=True):
                    if copy is not None and (not requests[at].item or allowed_names(facts[at])[0] in copy.text):
                        texts[at] = copy.text, copy.logprob
        except CopywriterUnavailable:
            for request in requests:
                metrics.COPIES.labels(request.locale, "dropped").inc()
            return []
        metrics.COPY_SECONDS.observe(time.perf_counter() - start)
        now = time.time()
        return [Output("copy", None, [self._record(r, text, now) for r, text in zip(requests, texts, strict=True)])]

    def _record(self, request: HeadlineRequest, copy: tuple[str, float] | None, now: float) -> Pair:
        metrics.COPIES.labels(request.locale, "refused" if copy is None else "written").inc()
        self._written.pop(request.segment, None)
        self._written[request.segment] = now + min(PATIENCE, self._settings.copy_ttl), _names(request)
        while len(self._written) > TEXTS or self._written[next(iter(self._written))][0] <= now:
            del self._written[next(iter(self._written))]
        written, logprob = copy or (None, None)
        text = Headline(
            segment=request.segment, locale=request.locale, slot=request.slot, category=request.category, text=written,
            created=now, ttl=self._settings.copy_ttl, copywriter=self._scribe.version, logprob=logprob,
            item=request.item, title=_names(request)[0] if request.item else "",
        )  # fmt: skip
        return request.segment.encode(), msgspec.json.encode(text)


def _names(request: HeadlineRequest) -> list[str]:
    """What the headline is to name: the item's title; nothing where it is common to all."""
    return request.titles[:1] if request.item else []
