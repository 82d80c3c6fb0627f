"""Exponential decay of counters, written once and called by every kernel."""

from stream.jit import njit


@njit
def decay_factor(elapsed_s: float, half_life_s: float) -> float:
    """Factor that remains of a counter after `elapsed_s` seconds: 1 at 0, one half at `half_life_s`.

    Decay is multiplicative, so that a late event only needs to be weighted by its own age. numba inlines the call.
    Oracle: `decayed_sum` in tests/unit/stream/profile/test_fold.py.
    """
    return 2.0 ** -(elapsed_s / half_life_s)  # type: ignore[no-any-return]
