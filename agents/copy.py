"""The writer of headlines: GPT-2, a batch of segments at a time, in a process beside the worker."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from agents.scribe import Scribe, ScribeRests
from models.copybook import PATIENCE, TEXTS, CopyRequest, CopyText
from models.headline import Facts
from stream import metrics
from stream.events import Reject
from stream.kafka.dead_letters import dead_letters
from stream.kafka.outputs import Output, Outputs, Pair
from stream.kafka.run import Run
from stream.settings import Settings

TOPICS = ("copy-requests",)
RUN_RECORDS = 8  # nine tenths of the throughput of a large batch, and the first headline does not wait for the last


class Copies:
    """The agent of `copy-requests`; it publishes to `copy`, which everybody reads."""

    def __init__(self, settings: Settings, scribe: Scribe, out: Outputs) -> None:
        self._settings, self._scribe, self._out = settings, scribe, out
        self._written: dict[str, float] = {}  # segment -> until when its headline holds, the first to end first

    async def live(self, runs: AsyncIterator[Run]) -> None:
        async for run in runs:
            requests, letters = self._read(run)
            await self._out.commit_run(run, [*letters, *await self._copies(requests)])

    def _read(self, run: Run) -> tuple[list[CopyRequest], list[Output]]:
        requests: dict[str, CopyRequest] = {}
        rejects = []
        now = time.time()
        for at, record in enumerate(run.records):
            try:
                request = msgspec.json.decode(record.value, type=CopyRequest)
            except (msgspec.MsgspecError, TypeError) as error:
                rejects.append(Reject(at, "invalid", "value", f"not a request for copy: {error}"))
                continue
            if now - record.timestamp / 1000 > PATIENCE:
                continue  # whoever wants it still has asked again
            if self._written.get(request.segment, 0.0) <= now:
                requests[request.segment] = request
        return list(requests.values()), dead_letters(run, rejects)

    async def _copies(self, requests: list[CopyRequest]) -> list[Output]:
        if not requests:
            return []
        start = time.perf_counter()
        # Not the items of the page that asked: a segment's headline stands on other shoppers' pages too.
        facts = [Facts(r.locale, r.slot, r.category) for r in requests]
        try:
            # A segment's headline depends on nothing but the segment and the hour, and is another once it has expired.
            copies = await self._scribe.write(facts, int(time.time() // self._settings.copy_ttl))
        except ScribeRests:
            for request in requests:
                metrics.COPIES.labels(request.locale, "dropped").inc()
            return []  # they are asked for again
        metrics.COPY_SECONDS.observe(time.perf_counter() - start)
        now = time.time()
        return [Output("copy", None, [self._record(r, c, now) for r, c in zip(requests, copies, strict=True)])]

    def _record(self, request: CopyRequest, copy: Any, now: float) -> Pair:
        metrics.COPIES.labels(request.locale, "refused" if copy is None else "written").inc()
        self._written.pop(request.segment, None)
        self._written[request.segment] = now + self._settings.copy_ttl
        while len(self._written) > TEXTS or self._written[next(iter(self._written))] <= now:
            del self._written[next(iter(self._written))]
        text = CopyText(
            segment=request.segment, locale=request.locale, slot=request.slot, category=request.category,
            text=None if copy is None else copy.text, created=now, ttl=self._settings.copy_ttl,
            copywriter=self._scribe.version, logprob=None if copy is None else copy.logprob,
        )  # fmt: skip
        return request.segment.encode(), msgspec.json.encode(text)
