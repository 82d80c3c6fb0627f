"""What shoppers touched, as sequences that a history model learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.data.clickstream import Clicks
from models.data.event_log import EventLog
from stream.events import CLICK


class InteractionSequences(NamedTuple):
    """n interactions of S shoppers or sessions, one after the other, each in order of time."""

    ends: npt.NDArray[np.int64]  # (S,)
    item: npt.NDArray[np.int32]  # (n,) row among the trainer's items
    time: npt.NDArray[np.float64]  # (n,) s
    kind: npt.NDArray[np.int8]  # (n,) code of stream.events

    @classmethod
    def of_clicks(cls, clicks: Clicks) -> InteractionSequences:
        return cls(clicks.ends, clicks.item, clicks.time, np.full(len(clicks.item), CLICK, np.int8))

    @classmethod
    def of_events(cls, log: EventLog, first: int, last: int) -> InteractionSequences:
        """Sessions `first` to `last`, those of a shopper as one; of whoever refused consent nothing."""
        rows = log.touched(first, last)
        shopper = log.events["shopper"][rows]
        ends = np.flatnonzero(np.diff(shopper, append=shopper[-1:] ^ 1)) + 1
        return cls(ends, log.item[rows], log.time[rows], log.events["kind"][rows].astype(np.int8))

    @classmethod
    def joined(cls, parts: Sequence[InteractionSequences], shifts: Sequence[int]) -> InteractionSequences:
        """One after the other; the items of each are numbered from its shift on."""
        starts = np.cumsum([0, *(len(part.item) for part in parts[:-1])])
        return cls(
            np.concatenate([part.ends + at for part, at in zip(parts, starts, strict=True)]),
            np.concatenate([part.item + np.int32(shift) for part, shift in zip(parts, shifts, strict=True)]),
            np.concatenate([part.time for part in parts]),
            np.concatenate([part.kind for part in parts]),
        )

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(S,) where each begins."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
