"""A learning curve: the losses of a model at the end of each epoch of its training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Point(NamedTuple):
    """Losses of one epoch: mean cross-entropies, in nats."""

    epoch: int  # from 1
    training: float  # training loss, averaged over the epoch
    held_out: float  # held-out loss at the end of the epoch; NaN if nothing is held out


OnEpoch = Callable[[Point], None]


def ignore_epoch(point: Point) -> None:
    """Default callback that does nothing."""
