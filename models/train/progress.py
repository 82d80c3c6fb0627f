"""Progress lines of a training: how far it is, its loss, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from models.train.learning_curve import OnEpoch, Point

LogLine = Callable[[str], None]  # writes a line for people
QUIET_S = 2.0  # work that takes less is not reported


def epoch_logger(what: str, epochs: int, log: LogLine, curve: list[Point]) -> OnEpoch:
    """Return a callback that logs each epoch's held-out loss and the time left, and appends the point to `curve`."""
    began = perf_counter()

    def on_epoch(point: Point) -> None:
        curve.append(point)
        left = (perf_counter() - began) / point.epoch * (epochs - point.epoch)
        log(f"{what}, epoch {point.epoch} of {epochs}: held-out loss {point.held_out:.4f} nats, {left:.0f} s left")

    return on_epoch


def progress_logger(what: str, log: LogLine) -> Callable[[int, int], None]:
    """Return a callback (done, total) that logs each tenth of a long piece of work, with the time left."""
    began, logged_tenths = perf_counter(), 0

    def on_progress(done: int, total: int) -> None:
        nonlocal logged_tenths
        spent = perf_counter() - began
        if done and spent > QUIET_S and 10 * done // total > logged_tenths:
            logged_tenths = 10 * done // total
            log(f"{what}: {done:,} of {total:,}, {spent / done * (total - done):.0f} s left")

    return on_progress
