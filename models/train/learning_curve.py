"""A learning curve: what a model lost at the end of each epoch of its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Point(NamedTuple):
    """An epoch. Losses are means of a cross-entropy, in nats."""

    epoch: int  # from 1
    learnt: float  # of what was learnt from, while it was
    held_out: float  # of what was not, at the epoch's end; NaN where nothing is held out


Progress = Callable[[Point], None]


def unheard(point: Point) -> None:
    """Progress that nobody asked for."""
