"""The writer of headlines: GPT-2, a batch of segments at a time, in a thread that yields to everything else."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from agents.shopper import dead_letters
from models.copybook import CopyRequest, CopyText
from models.copywriter import Copywriter, Facts
from stream import metrics
from stream.events import Reject
from stream.ids import key64
from stream.kafka.outputs import Output, Outputs, Record
from stream.kafka.transport import Run
from stream.settings import Settings

TOPICS = ("copy-requests",)
RUN_RECORDS = 8  # nine tenths of the throughput of a large batch, and the first headline does not wait for the last
OffLoop = Callable[[Callable[[], list[Output]]], Awaitable[list[Output]]]


class Copies:
    """The agent of `copy-requests`; it publishes to `copy`, which everybody reads."""

    def __init__(self, settings: Settings, writer: Copywriter, out: Outputs, off_loop: OffLoop) -> None:
        self._settings, self._writer, self._out, self._off_loop = settings, writer, out, off_loop
        self._written: dict[str, float] = {}  # segment -> until when its headline holds

    async def live(self, runs: AsyncIterator[Run]) -> None:
        async for run in runs:
            await self._out.commit_run(run, await self._off_loop(lambda run=run: self._write(run)))  # type: ignore[misc]

    def _write(self, run: Run) -> list[Output]:
        requests: dict[str, CopyRequest] = {}
        rejects = []
        now = time.time()
        for at, record in enumerate(run.records):
            try:
                request = msgspec.json.decode(record.value, type=CopyRequest)
            except (msgspec.MsgspecError, TypeError) as error:
                rejects.append(Reject(at, "invalid", "value", f"not a request for copy: {error}"))
                continue
            if self._written.get(request.segment, 0.0) <= now:
                requests[request.segment] = request
        letters = dead_letters(run.topic, run.records, rejects)
        if not requests:
            return letters
        asked = list(requests.values())
        start = time.perf_counter()
        facts = [Facts(r.locale, r.slot, r.category, tuple(r.titles)) for r in asked]
        seed = key64("\n".join(r.segment for r in asked)) & 0x7FFFFFFF
        copies = self._writer.write(facts, seed)
        metrics.COPY_SECONDS.observe(time.perf_counter() - start)
        return [*letters, Output("copy", None, [self._record(r, c, now) for r, c in zip(asked, copies, strict=True)])]

    def _record(self, request: CopyRequest, copy: Any, now: float) -> Record:
        metrics.COPIES.labels(request.locale, "refused" if copy is None else "written").inc()
        self._written[request.segment] = now + self._settings.copy_ttl
        text = CopyText(
            segment=request.segment, locale=request.locale, slot=request.slot, category=request.category,
            text=None if copy is None else copy.text, created=now, ttl=self._settings.copy_ttl,
            copywriter=self._writer.version, logprob=None if copy is None else copy.logprob,
        )  # fmt: skip
        return Record(request.segment.encode(), msgspec.json.encode(text))
