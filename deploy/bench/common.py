"""What the benchmarks share: rounds, pinning to one core, a broker on the other cores, medians, a throughput meter.

A benchmark is a module with `SECONDS` (default duration), `measure(settings, plan)` and `table(figures)`.
"""

from __future__ import annotations

import asyncio
import gc
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

Figures = dict[str, Any]  # the JSON object that `--json` prints
BROKER_HEAP_MB = 512


def report(line: str) -> None:
    """Print progress to stderr; stdout is for the result."""
    print(f"  {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Plan:
    """Approximate duration of a benchmark, and the number of rounds; figures are medians over the rounds."""

    seconds: float
    rounds: int = 5

    @property
    def round_seconds(self) -> float:
        return self.seconds / self.rounds


@contextmanager
def one_core() -> Iterator[bool]:
    """Pin this process to its last core. Yields False if the system does not support it or has one core."""
    with _pinned_to(lambda cores: {max(cores)}) as is_pinned:
        yield is_pinned


@contextmanager
def broker_on_other_cores() -> Iterator[Broker]:
    """Run an embedded Kafka that stays off the core of `one_core`."""
    broker = Broker(heap_mb=BROKER_HEAP_MB, optimize_jvm=True)
    try:
        with _pinned_to(lambda cores: cores - {max(cores)}):
            broker.start()
        yield broker
    finally:
        broker.stop()


@contextmanager
def _pinned_to(choose: Callable[[set[int]], set[int]]) -> Iterator[bool]:
    cores = set(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else set()
    if len(cores) < 2:
        yield False
        return
    os.sched_setaffinity(0, choose(cores))
    try:
        yield True
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def worker_garbage_collection() -> Iterator[None]:
    """Set Python's garbage collector as a worker does; restore it afterwards."""
    from stream.kafka.app import tune_garbage_collection

    thresholds = gc.get_threshold()
    tune_garbage_collection()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def rounded_median(values: Sequence[float], digits: int = 4) -> float:
    """Return the median, rounded to `digits` significant digits."""
    return float(f"{median(values):.{digits}g}")


class Meter:
    """Throughput, CPU time and memory of an engine, from its first record to the last that is durable."""

    def __init__(self, expected: int) -> None:
        self.expected = expected  # records
        self.done = 0
        self.all_done = asyncio.Event()
        self._start = self._cpu_start = 0.0
        self._figures: Figures = {}

    def start(self) -> None:
        """Start the clock at the first call; later calls do nothing."""
        if not self._start:
            self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def add(self, records: int) -> None:
        """Count durable records; stop the clock at the last expected one."""
        self.done += records
        if self.done >= self.expected and not self._figures:
            seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu_start
            self._figures = {
                "records": self.done,
                "per_s": self.done / seconds,
                "cpu_us": cpu / self.done * 1e6,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            self.all_done.set()

    def print_figures(self) -> None:
        print(json.dumps(self._figures), flush=True)
