"""The ranker is fitted on what simulated shoppers chose: through the path that serves."""

import numpy as np

from deploy.train.simulation import TOUCHED, Uniform, simulate
from models.ranker.columns import F


def test_choices_are_gathered_from_pages_that_the_model_samples() -> None:
    one, again = (simulate(Uniform(), 12, 6, seed=3) for _ in range(2))
    choices, n = one.choices, len(one.choices.chosen)
    assert n > 5 and 0 < one.clicked < one.looks
    count = np.diff(choices.ends, prepend=0)
    assert (choices.chosen < count).all() and (choices.chosen >= 0).all() and count.min() > 3
    assert np.isfinite(choices.phi).all() and choices.phi.any(axis=1).all()
    assert choices.phi.shape == (choices.ends[-1], F) and choices.position is not None
    assert choices.position[: count[0]].tolist() == list(range(count[0]))
    assert again.choices.phi.tobytes() == choices.phi.tobytes(), "the same seed, the same shop"


def test_what_shoppers_touched_is_a_sequence_of_each_in_order_of_time() -> None:
    one = simulate(Uniform(), 12, 6, seed=3)
    touched = one.behaviour
    assert 1 < len(touched.ends) <= 12 and touched.ends[-1] == len(touched.item) == len(touched.time)
    assert set(touched.kind.tolist()) <= set(TOUCHED) and len(set(touched.kind.tolist())) > 1
    assert touched.item.min() >= 0 and touched.item.max() < len(one.items)
    for start, end in zip(touched.starts.tolist(), touched.ends.tolist(), strict=True):
        assert (np.diff(touched.time[start:end]) >= 0).all()
