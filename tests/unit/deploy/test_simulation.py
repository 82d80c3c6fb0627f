"""The simulation that the shipped ranker and history model are trained on."""

import numpy as np
import pytest

from deploy.train.simulation import INTERACTION_KINDS, UniformScorer, simulate
from models.ranker.columns import F


@pytest.mark.slow
def test_choices_come_from_sampled_pages_and_are_reproducible() -> None:
    one, again = (simulate(UniformScorer(), 12, 6, seed=3) for _ in range(2))
    choices, n = one.choices, len(one.choices.chosen)
    assert n > 5 and 0 < one.looks_with_click < one.looks
    count = np.diff(choices.ends, prepend=0)
    assert (choices.chosen < count).all() and (choices.chosen >= 0).all() and count.min() > 3
    assert np.isfinite(choices.phi).all() and choices.phi.any(axis=1).all()
    assert choices.phi.shape == (choices.ends[-1], F) and choices.position is not None
    assert choices.position[: count[0]].tolist() == list(range(count[0]))
    assert again.choices.phi.tobytes() == choices.phi.tobytes(), "the same seed gives the same shop"


@pytest.mark.slow
def test_interactions_form_one_sequence_a_shopper_in_order_of_time() -> None:
    one = simulate(UniformScorer(), 12, 6, seed=3)
    sequences = one.sequences
    assert 1 < len(sequences.ends) <= 12 and sequences.ends[-1] == len(sequences.item) == len(sequences.time)
    assert set(sequences.kind.tolist()) <= set(INTERACTION_KINDS) and len(set(sequences.kind.tolist())) > 1
    assert sequences.item.min() >= 0 and sequences.item.max() < len(one.items)
    for start, end in zip(sequences.starts.tolist(), sequences.ends.tolist(), strict=True):
        assert (np.diff(sequences.time[start:end]) >= 0).all()
