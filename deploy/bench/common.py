"""What the benchmarks share: rounds, a core of one's own, a baseline in the same run, figures as a table or as JSON."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

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
    """Keep this process on the last of its cores, the others are the broker's. -> False where the system has no say."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        yield False
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield True
    finally:
        os.sched_setaffinity(0, before)


def seconds_of(work: Callable[[], Any]) -> float:
    """Time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def middle(values: Sequence[float], digits: int = 4) -> float:
    """The median, to `digits` significant digits."""
    return float(f"{median(values):.{digits}g}")
