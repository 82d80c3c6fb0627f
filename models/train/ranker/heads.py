"""Both heads of a ranker fitted on the same choices: the logit, and the MLP where torch is there."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from models.train.learning_curve import Point, Progress
from models.train.progress import Say, of_epochs
from models.train.ranker import fit as ranker
from models.train.ranker.fit import Choices, Fit
from models.train.ranker.graph import Head
from models.train.step_cache import Arrays, StepCache


def fit_heads(
    choices: Choices, say: Say, *, seed: int, finished: StepCache | None = None, name: str = "heads",
    curves: dict[str, list[Point]] | None = None,
) -> tuple[Fit, Head | None]:  # fmt: skip
    """Each is kept in `finished` under `name`. `curves` gets the losses of "logit" and "MLP" by epoch.

    Raises ValueError where there are too few choices.
    """
    drawn: dict[str, list[Point]] = {} if curves is None else curves

    def told(what: str, epochs: int) -> Progress:
        return of_epochs(what, epochs, say, drawn.setdefault(what, []))

    def kept(part: str, make: Callable[[], NamedTuple]) -> dict[str, Any]:
        def made() -> Arrays:
            return {field: np.asarray(value) for field, value in make()._asdict().items()}

        arrays = made() if finished is None else finished.once(f"{name}-{part}", made)
        return {field: value if value.ndim else float(value) for field, value in arrays.items()}

    fitted = Fit(**kept("logit", lambda: ranker.fit(choices, seed=seed, progress=told("logit", ranker.EPOCHS))))
    if find_spec("torch") is None:
        return fitted, None
    from models.train.ranker.mlp_head import EPOCHS, fit_head

    return fitted, Head(**kept("mlp", lambda: fit_head(choices, seed=seed, progress=told("MLP", EPOCHS))))
