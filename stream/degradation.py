"""Load shedding: which work an overloaded worker skips, in which order, and when it resumes.

Everything here is pure: time and load are arguments. Events are never shed.
"""

from typing import NamedTuple

# In the order of shedding. Each rung sheds everything that the rungs before it shed.
RUNGS = ("full", "no_copy", "no_exploration", "paced")
FULL, NO_COPY, NO_EXPLORATION, PACED = range(len(RUNGS))
# With fewer waiting events, their age alone is not overload: a storefront's clock may be slow by an hour.
MIN_WAITING_EVENTS = 32
# This many full runs waiting are overload, whatever their age: they are a second of work or more.
OVERLOAD_RUNS = 16


class Load(NamedTuple):
    lag: float  # s, age of the oldest waiting event
    waiting: int  # events


class Limits(NamedTuple):
    """Load at which the first rung begins. Each further rung begins at twice the load of the previous one."""

    lag: float  # s
    waiting: int  # events

    def is_reached(self, load: Load, rung: int, share: float = 1.0) -> bool:
        """True if the load is at least `share` of the load at which `rung` begins."""
        factor = share * (1 << rung) / 2
        too_old = load.waiting >= share * MIN_WAITING_EVENTS and load.lag >= factor * self.lag
        return too_old or load.waiting >= factor * self.waiting

    @property
    def climb_after_s(self) -> float:
        """Seconds of overload before the next rung; what was shed last may already help."""
        return self.lag / 2

    @property
    def descend_after_s(self) -> float:
        """Seconds that the load must stay below half of a rung's limit before the rung is left."""
        return 2 * self.lag

    @property
    def page_interval_s(self) -> float:
        """Minimum seconds between two pages of a shopper on the last rung. Pages are that late there in any case."""
        return self.lag * (1 << PACED) / 2


def limits_of(overload_lag: float, run_records: int) -> Limits:
    """Limits of a worker, from its settings: the lag (s) that counts as overload, and the records of a run."""
    return Limits(overload_lag, OVERLOAD_RUNS * run_records)


class Degradation(NamedTuple):
    """Work that pages currently do without."""

    sheds_headlines: bool = (
        False  # no headlines are requested and no page is regenerated for one; cached headlines remain
    )
    sheds_exploration: bool = False  # no exploration and no history model
    page_interval_s: float = 0.0  # a shopper's next page is deferred until this long after the last; 0 unpaced


def degradation_of(rung: int, limits: Limits) -> Degradation:
    """Work that is shed on a rung."""
    return Degradation(rung >= NO_COPY, rung >= NO_EXPLORATION, limits.page_interval_s if rung >= PACED else 0.0)


class DegradationController:
    """Current rung of a worker: one up after the load was too high for a while, one down after it was low.

    Climbing and descending are a factor of two apart, so that a constant load moves the rung in one direction at most.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rung = FULL
        self._over_since: float | None = None  # when the load reached the next rung
        self._under_since: float | None = None  # when the load fell below half of this rung

    def observe(self, load: Load, now: float) -> int:
        """Return the rung at `now` (s, monotonic), at most one away from the previous one."""
        if self.rung < PACED and self.limits.is_reached(load, self.rung + 1):
            self._over_since = now if self._over_since is None else self._over_since
        else:
            self._over_since = None
        if self.rung > FULL and not self.limits.is_reached(load, self.rung, 0.5):
            self._under_since = now if self._under_since is None else self._under_since
        else:
            self._under_since = None
        if self._over_since is not None and now - self._over_since >= self.limits.climb_after_s:
            self.rung, self._over_since = self.rung + 1, None
        elif self._under_since is not None and now - self._under_since >= self.limits.descend_after_s:
            self.rung, self._under_since = self.rung - 1, None
        return self.rung
