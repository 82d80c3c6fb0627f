"""Metrics of the runs of the shopper agent."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter

import numpy as np

from agents.page.fold_step import PartitionInput
from agents.page.path import PageResult
from stream import metrics
from stream.codes import MODES
from stream.events.decode import KINDS, TOPIC_KINDS
from stream.kafka.run import Run
from stream.times import EARLIEST_S, LATEST_S, record_seconds
from stream.types import Bools

TOPICS = ("clicks", "purchases", "privacy", "refreshes")
# Looking up a metric by its labels takes longer than counting, so it is done once.
_STAGES = {stage: metrics.STAGE.labels(stage) for stage in metrics.STAGES}
_RUN_RECORDS = {topic: metrics.RUN_RECORDS.labels(topic) for topic in TOPICS}
_PAGES = {mode: metrics.PAGES.labels(mode) for mode in MODES}
_EVENTS = {
    topic: {kind: metrics.EVENTS.labels(topic, KINDS[kind]) for kind in sorted(kinds)}
    for topic, kinds in TOPIC_KINDS.items()
}


# An event whose record has a timestamp more than this after its time was sent late: by a phone that was offline, or by
# an import. Its page is stale by the event's time, through no fault of the worker.
LATE_S = 60.0


def observe_stages(seconds: dict[str, float]) -> None:
    for stage, spent in seconds.items():
        _STAGES[stage].observe(spent)


def count_run(run: Run, one: PartitionInput, result: PageResult) -> None:
    """Count the records, events and deferred pages of a run."""
    decoded = one.decoded
    _RUN_RECORDS[run.topic].observe(len(run.records))
    if run.skipped:
        metrics.SKIPPED.labels(run.topic).inc(run.skipped)
    is_first_row = decoded.rows["part"] == 0
    # (2 * kinds,) number of events of each kind: the duplicates, then the fresh ones.
    number_of = np.bincount(
        (decoded.rows["kind"] + len(KINDS) * result.fresh)[is_first_row], minlength=2 * len(KINDS)
    ).tolist()
    for kind, number in enumerate(number_of[len(KINDS) :]):
        if number:
            _EVENTS[run.topic][kind].inc(number)
    report = result.report
    metrics.DUPLICATES.inc(sum(number_of[: len(KINDS)]) - len(report.late_records))
    if report.forgotten_transactions:
        metrics.FORGOTTEN_TRANSACTIONS.inc(report.forgotten_transactions)
    if report.id_window < math.inf:
        metrics.ID_WINDOW.observe(report.id_window)
    for reason, number in report.without_activity.items():
        metrics.WITHOUT_ACTIVITY.labels(reason).inc(number)
    metrics.CLAMPED.inc(decoded.clamped)
    if late := _late_events(one, is_first_row & result.fresh):
        metrics.LATE_EVENTS.labels(run.topic).inc(late)
    if decoded.lenient:
        metrics.LENIENT.labels(run.topic).inc(decoded.lenient)
    for entry, number in decoded.ignored.items():
        metrics.IGNORED.labels(run.topic, entry).inc(number)
    metrics.DEFERRED_PAGES.inc(len(result.changelog) - len(result.pages))


def _late_events(one: PartitionInput, is_counted: Bools) -> int:
    """Number of late events among the counted rows. is_counted: (n,) of the event rows."""
    rows, timestamps = one.decoded.rows, one.decoded.timestamps
    # The first test suffices for nearly all runs, and costs a single click next to nothing.
    if not len(rows) or not timestamps or max(timestamps) - rows["time"].min() <= LATE_S:
        return 0
    arrivals = np.array(timestamps)[rows["record"]]
    is_time = (arrivals >= EARLIEST_S) & (arrivals <= LATEST_S)  # else the producer wrote another unit
    return int(np.count_nonzero(is_counted & is_time & (arrivals - rows["time"] > LATE_S)))


def count_published(topic: str, result: PageResult, since: float, commit: asyncio.Task[None]) -> None:
    """Count the pages of a run once it is committed. since: s, when the commit began."""
    if commit.cancelled() or commit.exception() is not None:
        return
    _STAGES["publish"].observe(time.perf_counter() - since)
    now = time.time()
    for page in result.pages:
        # A page that was only made again for its headline says nothing about how fast its event was answered.
        if page.was_deferred or topic != "refreshes":
            trigger = page.trigger
            metrics.FRESHNESS.observe(max(0.0, now - trigger.event_time))
            # The row of a deferred page has no room for the timestamp of the record.
            arrived = record_seconds(trigger.arrived) or trigger.event_time
            metrics.LATENCY.observe(max(0.0, now - arrived))
    for mode, number in Counter(page.mode for page in result.pages).items():
        _PAGES[mode].inc(number)
