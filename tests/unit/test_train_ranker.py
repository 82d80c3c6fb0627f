"""The ranker is fitted on what simulated shoppers chose: through the path that serves, and into an artefact that loads."""

from pathlib import Path

import numpy as np

from deploy.train_ranker import simulate, train
from models.phi import F
from models.ranker import Ranker


def test_choices_are_gathered_from_pages_that_the_model_samples() -> None:
    theta = np.zeros((F, 1), np.float32)
    choices, rate = simulate(theta, 12, 6, seed=3)
    again, _ = simulate(theta, 12, 6, seed=3)
    n = len(choices.chosen)
    assert n > 5 and 0 < rate < 1
    count = np.diff(choices.ends, prepend=0)
    assert (choices.chosen < count).all() and (choices.chosen >= 0).all() and count.min() > 3
    assert np.isfinite(choices.phi).all() and choices.phi.any(axis=1).all()
    assert choices.phi.shape == (choices.ends[-1], F) and choices.position is not None
    assert choices.position[: count[0]].tolist() == list(range(count[0]))
    assert again.phi.tobytes() == choices.phi.tobytes(), "the same seed, the same shop"


def test_what_is_fitted_loads_and_ranks(tmp_path: Path) -> None:
    assert train(tmp_path / "ranker", shoppers=40, looks=16, seed=5) == 0
    ranker = Ranker(tmp_path / "ranker")
    assert ranker.works() and np.isfinite(ranker.theta).all() and ranker.theta.any()
