"""The gauges of lag during and after a rebalance."""

from agents.health.lag_gauges import LagGauges
from stream import metrics


def series() -> dict[str, tuple[float, float]]:
    """Records and seconds of each topic that has series, of the test's topics."""
    [records], [seconds] = metrics.LAG.collect(), metrics.LAG_SECONDS.collect()
    ages = {sample.labels["topic"]: sample.value for sample in seconds.samples}
    return {
        topic: (sample.value, ages[topic])
        for sample in records.samples
        if (topic := sample.labels["topic"]).startswith("test-")
    }


def test_series_keep_their_last_value_in_a_rebalance() -> None:
    gauges = LagGauges()
    mine = {("test-clicks", 0), ("test-clicks", 1), ("test-privacy", 0)}
    gauges.update(
        mine, {("test-clicks", 0): 5, ("test-clicks", 1): 2, ("test-privacy", 0): 0}, {("test-clicks", 1): 9.0}
    )
    assert series() == {"test-clicks": (7, 9.0), "test-privacy": (0, 0.0)}
    gauges.update(None, {}, {})
    assert series() == {"test-clicks": (7, 9.0), "test-privacy": (0, 0.0)}
    gauges.update(mine, {("test-clicks", 0): 1}, {("test-clicks", 0): 0.5})
    assert series() == {"test-clicks": (3, 9.0), "test-privacy": (0, 0.0)}, "the lag of partition 1 is not known yet"
    gauges.update({("test-clicks", 0)}, {("test-clicks", 0): 1}, {("test-clicks", 0): 0.5})
    assert series() == {"test-clicks": (1, 0.5)}, "the others have another owner now"
    gauges.update(set(), {}, {})
    assert series() == {}
