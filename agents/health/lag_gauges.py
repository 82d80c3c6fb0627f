"""Gauges of lag by topic, which keep their values while a rebalance hides them."""

from __future__ import annotations

from collections.abc import Mapping, Set

from stream import metrics

Place = tuple[str, int]  # topic (logical name), partition


class LagGauges:
    """Lag of the partitions of one consumer group that this worker has. The lag of a topic is that of all of these."""

    def __init__(self) -> None:
        self._records: dict[Place, int] = {}
        self._seconds: dict[Place, float] = {}
        self._topics: set[str] = set()  # those with a series

    def update(self, assigned: Set[Place] | None, records: Mapping[Place, int], seconds: Mapping[Place, float]) -> None:
        """Set the gauges. A partition that is not in `records` keeps its last lag.

        assigned: the partitions of this worker; None during a rebalance: the previous partitions keep their lag.
        """
        self._records.update(records)
        self._seconds.update(seconds)
        if assigned is not None:
            self._records = {place: lag for place, lag in self._records.items() if place in assigned}
            self._seconds = {place: lag for place, lag in self._seconds.items() if place in assigned}
        total: dict[str, int] = {}
        oldest: dict[str, float] = {}
        for (topic, _), lag in self._records.items():
            total[topic] = total.get(topic, 0) + lag
        for (topic, _), age in self._seconds.items():
            oldest[topic] = max(oldest.get(topic, 0.0), age)
        for topic in self._topics - total.keys():  # all of its partitions have moved to other workers
            metrics.LAG.remove(topic)
            metrics.LAG_SECONDS.remove(topic)
        self._topics = set(total)
        for topic, lag in total.items():
            metrics.LAG.labels(topic).set(lag)
            metrics.LAG_SECONDS.labels(topic).set(oldest.get(topic, 0.0))
