"""What a training tells while it works: how far it is, its loss, and how long the rest takes."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from models.train.learning_curve import Point, Progress

Say = Callable[[str], None]  # takes a line for people
PATIENCE = 2.0  # s of work that nothing is said of


def of_epochs(what: str, epochs: int, say: Say, curve: list[Point]) -> Progress:
    """Tells of each epoch its held-out loss, and how long the rest takes; the curve gets it too."""
    began = perf_counter()

    def told(point: Point) -> None:
        curve.append(point)
        left = (perf_counter() - began) / point.epoch * (epochs - point.epoch)
        say(f"{what}, epoch {point.epoch} of {epochs}: held-out loss {point.held_out:.4f} nats, {left:.0f} s left")

    return told


def of_stretch(what: str, say: Say) -> Callable[[int, int], None]:
    """Tells each tenth of a long stretch; gets how much of it is done, and how much there is."""
    began, told = perf_counter(), 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        spent = perf_counter() - began
        if done and spent > PATIENCE and 10 * done // total > told:
            told = 10 * done // total
            say(f"{what}: {done:,} of {total:,}, {spent / done * (total - done):.0f} s left")

    return progress
