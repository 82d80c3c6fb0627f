"""A click-through rate with its confidence interval."""

from math import sqrt
from typing import NamedTuple


class Rate(NamedTuple):
    clicks: int
    views: int

    @property
    def value(self) -> float:
        return self.clicks / self.views if self.views else 0.0


def wilson(rate: Rate, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval (Wilson, 1927) of a rate; the default z gives 95%."""
    n = rate.views
    if n == 0:
        return 0.0, 1.0
    p = rate.value
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)
