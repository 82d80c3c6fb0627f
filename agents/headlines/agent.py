"""The headline agent: answers `copy-requests` with generated headlines, a batch of segments at a time.

It has its own consumer group. So copywriters can start, stop, lag and crash without effect on workers that make pages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from agents.headlines.copywriter_process import CopywriterProcess, CopywriterUnavailable
from agents.page.headline_cache import MAX_HEADLINES, REQUEST_TIMEOUT_S, Headline, HeadlineRequest
from models.copywriter.facts import Facts, allowed_names
from models.copywriter.model import Copy
from stream import logs, metrics
from stream.events.decode import Reject
from stream.kafka.commit import Output, Pair
from stream.kafka.dead_letters import count_dead_letters, encode_dead_letter
from stream.kafka.group import GroupMember
from stream.settings import Settings

TOPICS = ("copy-requests",)
# Nine tenths of the throughput of a large batch, and the first headline need not wait for the last.
BATCH_REQUESTS = 8
MAX_HELD_REQUESTS = 1024  # the most urgent of them are written first
TAKE_TIMEOUT_S = 5.0
RETRY_DELAY_S = 10.0  # after a failure, in a worker that also makes pages
log = logging.getLogger(__name__)


class _PendingHeadline(NamedTuple):
    """A segment whose headline is requested, and all of its requests."""

    request: HeadlineRequest  # the newest
    records: list[Any]
    requested_at: float  # s


class HeadlineAgent:
    """Consumes `copy-requests` and publishes to `copy`, which every worker reads. `run` it once at a time."""

    def __init__(self, settings: Settings, copywriter: CopywriterProcess, group: GroupMember) -> None:
        self._settings, self._copywriter, self.group = settings, copywriter, group
        # By segment, the headlines of the last REQUEST_TIMEOUT_S: until when a repeated request needs no answer, and
        # the item title that it names. The first to end is first. A later request means that a worker has lost it.
        self._written: dict[str, tuple[float, list[str]]] = {}
        # Requests by segment, in order of arrival. Segment headlines, which many pages share, are written first.
        self._segment_requests: dict[str, _PendingHeadline] = {}
        self._item_requests: dict[str, _PendingHeadline] = {}

    async def run(self) -> None:
        """Run for ever. Raises NoBroker, or a Kafka error that does not pass."""
        async with self.group:
            while True:
                held = len(self._segment_requests) + len(self._item_requests)
                records = await self.group.take(max(1, MAX_HELD_REQUESTS - held), 0.0 if held else TAKE_TIMEOUT_S)
                await self.process(records)

    async def run_beside_pages(self) -> None:
        """Call `run`, and again after any failure: missing headlines must not cost a page."""
        while True:
            try:
                await self.run()
            except Exception as error:
                log.error(
                    "headline generation failed and is tried again in %.0f s: %s", RETRY_DELAY_S, logs.redacted(error)
                )
            await asyncio.sleep(RETRY_DELAY_S)

    async def process(self, records: Iterable[Any]) -> None:
        """Hold the new requests, and answer the BATCH_REQUESTS most urgent of those held."""
        refused, refusals = self._hold(records)
        batch, obsolete = self._next_batch()
        outputs = [*refusals, *await self._write([pending.request for pending in batch])]
        done = [*refused, *obsolete, *(record for pending in batch for record in pending.records)]
        if done:
            await self.group.done(done, outputs)

    def _hold(self, records: Iterable[Any]) -> tuple[list[Any], list[Output]]:
        """Hold the requests in `records`. Return the records that are not requests, and their dead letters."""
        refused: list[Any] = []
        refusals: list[Output] = []
        for record in records:
            try:
                request = msgspec.json.decode(record.value, type=HeadlineRequest)
                if request.item and not request.titles:
                    raise msgspec.ValidationError("an item without a title")
            except (msgspec.MsgspecError, TypeError) as error:
                reject = Reject(0, "invalid", "value", f"not a headline request: {error}")
                pair, headers = encode_dead_letter(
                    TOPICS[0], record.partition, record, reject, self.group.dead_letter_limit
                )
                refusals.append(Output("dead-letters", None, [pair], [headers]))
                refused.append(record)
                continue
            held = self._item_requests if request.item else self._segment_requests
            previous = held.get(request.segment)
            of_segment = [*previous.records, record] if previous else [record]
            held[request.segment] = _PendingHeadline(request, of_segment, record.timestamp / 1000)
        count_dead_letters(refusals)
        return refused, refusals

    def _next_batch(self) -> tuple[list[_PendingHeadline], list[Any]]:
        """Remove and return the next headlines to write, and the records before them that need no answer."""
        batch: list[_PendingHeadline] = []
        obsolete: list[Any] = []
        now = time.time()
        for pending in self._by_urgency():
            if not any(self.group.held(record) for record in pending.records):
                continue  # a rebalance has assigned them to another worker
            # After the timeout, a worker that still needs the headline has sent its request again.
            if now - pending.requested_at > REQUEST_TIMEOUT_S or self._was_just_written(pending.request, now):
                obsolete += pending.records
                continue
            batch.append(pending)
            if len(batch) == BATCH_REQUESTS:
                break
        return batch, obsolete

    def _by_urgency(self) -> Iterator[_PendingHeadline]:
        """Remove and yield the held requests, the most urgent first."""
        for held in (self._segment_requests, self._item_requests):
            while held:
                yield held.pop(next(iter(held)))

    def _was_just_written(self, request: HeadlineRequest, now: float) -> bool:
        until, item_titles = self._written.get(request.segment, (0.0, []))
        return now < until and item_titles == _item_title(request)

    async def _write(self, requests: list[HeadlineRequest]) -> list[Output]:
        """A record of `copy` for each request; none while the copywriter is unavailable (requests repeat)."""
        if not requests:
            return []
        start = time.perf_counter()
        try:
            headlines = await self._generate(requests)
        except CopywriterUnavailable:
            for request in requests:
                metrics.COPIES.labels(request.locale, "dropped").inc()
            return []
        metrics.COPY_SECONDS.observe(time.perf_counter() - start)
        now = time.time()
        pairs = [self._record(request, headline, now) for request, headline in zip(requests, headlines, strict=True)]
        return [Output("copy", None, pairs)]

    async def _generate(self, requests: list[HeadlineRequest]) -> list[Copy | None]:
        """A headline for each request, None if none passed the guard or if it does not name its item."""
        # A segment headline names no item, because it also titles other shoppers' pages.
        facts = [Facts(r.locale, r.slot, r.category, tuple(_item_title(r))) for r in requests]
        # An item whose name may not be used needs no attempt.
        tried = [
            index for index, (r, f) in enumerate(zip(requests, facts, strict=True)) if not r.item or allowed_names(f)
        ]
        headlines: list[Copy | None] = [None] * len(requests)
        if tried:
            # The headline depends on these facts and on this seed only, and changes once it has expired.
            seed = int(time.time() // self._settings.copy_ttl)
            written = await self._copywriter.write([facts[index] for index in tried], seed)
            for index, headline in zip(tried, written, strict=True):
                if headline is None:
                    continue
                if not requests[index].item or allowed_names(facts[index])[0] in headline.text:
                    headlines[index] = headline
        return headlines

    def _record(self, request: HeadlineRequest, headline: Copy | None, now: float) -> Pair:
        """The record of `copy`; the segment is noted as written."""
        metrics.COPIES.labels(request.locale, "refused" if headline is None else "written").inc()
        self._written.pop(request.segment, None)
        until = now + min(REQUEST_TIMEOUT_S, self._settings.copy_ttl)
        self._written[request.segment] = until, _item_title(request)
        while len(self._written) > MAX_HEADLINES or self._written[next(iter(self._written))][0] <= now:
            del self._written[next(iter(self._written))]
        value = Headline(
            segment=request.segment, locale=request.locale, slot=request.slot, category=request.category,
            text=None if headline is None else headline.text, created=now, ttl=self._settings.copy_ttl,
            copywriter=self._copywriter.version, logprob=None if headline is None else headline.logprob,
            item=request.item, title=_item_title(request)[0] if request.item else "",
        )  # fmt: skip
        return request.segment.encode(), msgspec.json.encode(value)


def _item_title(request: HeadlineRequest) -> list[str]:
    """The title of the item that the headline is to name; empty for a segment headline."""
    return request.titles[:1] if request.item else []
