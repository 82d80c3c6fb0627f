"""A share of looks, and how sure it is."""

from math import sqrt
from typing import NamedTuple


class Rate(NamedTuple):
    clicked: int
    looks: int

    @property
    def value(self) -> float:
        return self.clicked / self.looks if self.looks else 0.0


def wilson(rate: Rate, z: float = 1.96) -> tuple[float, float]:
    """95% interval of a share (Wilson, 1927)."""
    n = rate.looks
    if n == 0:
        return 0.0, 1.0
    p = rate.value
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)
