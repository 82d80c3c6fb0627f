"""Interactions with items, as sequences that a history model learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.data.clickstream import Clicks
from models.data.event_log import EventLog
from stream.events.decode import CLICK
from stream.types import F64, I8, I32, I64


class InteractionSequences(NamedTuple):
    """n interactions in S sequences, each of one shopper or session and in order of time."""

    ends: I64  # (S,) end of each sequence
    item: I32  # (n,) row among the trainer's items
    time: F64  # (n,) seconds since the epoch
    kind: I8  # (n,) code of stream.events.decode

    @classmethod
    def of_clicks(cls, clicks: Clicks) -> InteractionSequences:
        """One sequence for each session."""
        return cls(clicks.ends, clicks.item, clicks.time, np.full(len(clicks.item), CLICK, np.int8))

    @classmethod
    def of_events(cls, log: EventLog, first: int, last: int) -> InteractionSequences:
        """One sequence for each shopper of sessions `first` to `last`, without events while consent was refused."""
        rows = log.interactions(first, last)
        shopper = log.events["shopper"][rows]
        ends = np.flatnonzero(np.diff(shopper, append=shopper[-1:] ^ 1)) + 1
        return cls(ends, log.item[rows], log.time[rows], log.events["kind"][rows].astype(np.int8))

    @classmethod
    def of_sessions(cls, sessions: Clicks | EventLog, first: int, last: int) -> InteractionSequences:
        """Sequences of sessions `first` to `last`, exclusive."""
        if isinstance(sessions, Clicks):
            return cls.of_clicks(sessions.part(first, last))
        return cls.of_events(sessions, first, last)

    @classmethod
    def joined(cls, parts: Sequence[InteractionSequences], shifts: Sequence[int]) -> InteractionSequences:
        """Concatenate sequences; the item rows of each part are shifted by its element of `shifts`."""
        starts = np.cumsum([0, *(len(part.item) for part in parts[:-1])])
        return cls(
            np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=True)]),
            np.concatenate([part.item + np.int32(shift) for part, shift in zip(parts, shifts, strict=True)]),
            np.concatenate([part.time for part in parts]),
            np.concatenate([part.kind for part in parts]),
        )

    @property
    def starts(self) -> I64:
        """(S,) start of each sequence."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])
