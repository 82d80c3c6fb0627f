"""What the benchmarks share: rounds, a core of one's own, a baseline in the same run, figures as a table or as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from deploy.broker.embedded import Broker

Figures = dict[str, Any]


def say(line: str) -> None:
    """Progress goes to stderr: stdout is the result."""
    print(f"  {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """How long a benchmark may take: `seconds` in all, about, in `rounds` rounds of which the median counts."""

    seconds: float
    rounds: int = 5

    @property
    def round_seconds(self) -> float:
        return self.seconds / self.rounds


@contextmanager
def one_core() -> Iterator[bool]:
    """Keep this process on the last of its cores. -> False where the system has no say."""
    with _only(lambda cores: {max(cores)}) as held:
        yield held


@contextmanager
def broker_beside() -> Iterator[Broker]:
    """An embedded Kafka that keeps off the core of `one_core`."""
    broker = Broker(heap_mb=512, optimize_jvm=True)
    try:
        with _only(lambda cores: cores - {max(cores)}):
            broker.start()
        yield broker
    finally:
        broker.stop()


@contextmanager
def _only(choose: Callable[[set[int]], set[int]]) -> Iterator[bool]:
    before = set(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else set()
    if len(before) < 2:
        yield False
        return
    os.sched_setaffinity(0, choose(before))
    try:
        yield True
    finally:
        os.sched_setaffinity(0, before)


def middle(values: Sequence[float], digits: int = 4) -> float:
    """The median, to `digits` significant digits."""
    return float(f"{median(values):.{digits}g}")


class Meter:
    """When the first of `wanted` records came, when the last was durable, and what it took."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.done = 0
        self.all_done = asyncio.Event()
        self._first = self._cpu = 0.0
        self._figures: Figures = {}

    def began(self) -> None:
        if not self._first:
            self._first, self._cpu = time.perf_counter(), time.process_time()

    def count(self, records: int) -> None:
        self.done += records
        if self.done >= self.wanted and not self._figures:
            took, cpu = time.perf_counter() - self._first, time.process_time() - self._cpu
            self._figures = {
                "records": self.done,
                "per_s": self.done / took,
                "cpu_us": cpu / self.done * 1e6,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            self.all_done.set()

    def tell(self) -> None:
        print(json.dumps(self._figures), flush=True)
