"""The ladder of degradation: what an overloaded worker sheds, in which order, and when it takes it up again.

Nothing here reads a clock or a queue: time and load are arguments. Events are on no rung: they are never shed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import NamedTuple

# In the order of shedding. Each rung keeps shed what those below it shed.
RUNGS = ("full", "no_copy", "no_exploration", "paced")
FULL, NO_COPY, NO_EXPLORATION, PACED = range(len(RUNGS))
# Age alone is no overload where next to nothing waits: a storefront's clock may be slow by an hour.
FEW = 32  # events
RUNS = 16  # full runs that wait are overload, however young: a second or more of work


class Load(NamedTuple):
    lag: float  # s, age of the oldest event that waits
    waiting: int  # events


class Limits(NamedTuple):
    """The load at which the first rung is taken; each rung above begins at twice the load of the one before."""

    lag: float  # s
    waiting: int

    def reached(self, load: Load, rung: int, share: float = 1.0) -> bool:
        """True where the load is `share` of that at which `rung` begins, or more."""
        times = share * 2.0 ** (rung - 1)
        old = load.waiting >= share * FEW and load.lag >= times * self.lag
        return old or load.waiting >= times * self.waiting

    @property
    def patience(self) -> float:
        """s that an overload lasts before one more rung is taken: what was shed last may already help."""
        return self.lag / 2

    @property
    def calm(self) -> float:
        """s that the load stays below half of what a rung begins at before the rung is given up."""
        return 2 * self.lag

    @property
    def page_every(self) -> float:
        """s between two pages of a shopper on the last rung, which begins where pages are as late as that anyway."""
        return self.lag * 2.0 ** (PACED - 1)


def limits_of(overload_lag: float, run_records: int) -> Limits:
    """The limits of a worker: its settings are the lag (s) that counts as overload, and the records of a run."""
    return Limits(overload_lag, RUNS * run_records)


class Degradation(NamedTuple):
    """What pages go without."""

    copy: bool = False  # headlines are neither asked for nor do pages go out again for them; those there are stay
    exploration: bool = False  # and what a history model says
    page_every: float = 0.0  # s: a shopper gets a page no more often; the page that is owed goes out later


def degradation_of(rung: int, limits: Limits) -> Degradation:
    return Degradation(rung >= NO_COPY, rung >= NO_EXPLORATION, limits.page_every if rung >= PACED else 0.0)


class DegradationController:
    """Where a worker stands: a rung up when the load has been too high for a while, a rung down when it has been low.

    Between the two lies a factor of two, so that a load that does not change moves the ladder at most one way.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.rung = FULL
        self._over: float | None = None  # since when the load calls for the next rung
        self._under: float | None = None  # since when it does not call for half of this one

    def observe(self, load: Load, now: float) -> int:
        """The rung at `now` (s, of a clock that never goes back), one at most from where it was."""
        if self.rung < PACED and self.limits.reached(load, self.rung + 1):
            self._over = now if self._over is None else self._over
        else:
            self._over = None
        if self.rung > FULL and not self.limits.reached(load, self.rung, 0.5):
            self._under = now if self._under is None else self._under
        else:
            self._under = None
        if self._over is not None and now - self._over >= self.limits.patience:
            self.rung, self._over = self.rung + 1, None
        elif self._under is not None and now - self._under >= self.limits.calm:
            self.rung, self._under = self.rung - 1, None
        return self.rung


class DeferredPages:
    """Shoppers to whom a page is owed, by partition, who waits longest first. The truth is in their rows at rest."""

    #: Pages of one partition that are asked for at once: the next are when these are made, so that paying does not overload.
    AT_ONCE = 64

    def __init__(self, owing: Callable[[Mapping[bytes, bytes | None]], AbstractSet[bytes]]) -> None:
        self._owing = owing  # the keys of those rows at rest that owe a page
        self._since: dict[int, dict[bytes, float]] = defaultdict(dict)
        self._asked: dict[int, set[bytes]] = defaultdict(set)

    def __len__(self) -> int:
        return sum(map(len, list(self._since.values()))) + sum(map(len, list(self._asked.values())))

    def note(self, partition: int, records: Iterable[tuple[bytes, bytes | None]], now: float) -> None:
        """Rows of the partition have changed, or are read anew; None: deleted. now: s, as in `due`."""
        since, asked = self._since[partition], self._asked[partition]
        rows = dict(records)  # of a row that comes twice the later holds
        owing = self._owing(rows)
        if since or asked:
            for key in rows.keys() - owing:
                self.forget(partition, key)
        for key in rows if owing else ():
            if key in owing and key not in asked:
                since.setdefault(key, now)

    def forget(self, partition: int, key: bytes) -> None:
        self._since[partition].pop(key, None)
        self._asked[partition].discard(key)

    def drop(self, partition: int) -> None:
        """The partition has another owner, or is about to be read anew."""
        self._since.pop(partition, None)
        self._asked.pop(partition, None)

    def due(self, now: float, after: float) -> list[tuple[int, list[bytes]]]:
        """By partition, shoppers who have waited for `after` s; each is named once, and so many at once."""
        found = []
        for partition, since in list(self._since.items()):
            asked = self._asked[partition]
            oldest = list(islice(since.items(), max(0, self.AT_ONCE - len(asked))))
            keys = [key for key, at in oldest if now - at >= after]
            for key in keys:
                del since[key]
                asked.add(key)
            if keys:
                found.append((partition, keys))
        return found
