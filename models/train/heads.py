"""Both heads of a ranker fitted on the same choices: the logit, and the MLP where torch is there."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from models.train import ranker
from models.train.progress import of_epochs
from models.train.ranker import Choices, Fit
from models.train.ranker_graph import Head
from models.train.resume import Arrays, Bench

Say = Callable[[str], None]


def fit_heads(
    choices: Choices, say: Say, *, seed: int, bench: Bench | None = None, name: str = "heads"
) -> tuple[Fit, Head | None]:
    """On a bench each is kept under `name`. Raises ValueError where there are too few choices."""

    def kept(part: str, make: Callable[[], NamedTuple]) -> dict[str, Any]:
        def made() -> Arrays:
            return {field: np.asarray(value) for field, value in make()._asdict().items()}

        arrays = made() if bench is None else bench.once(f"{name}-{part}", made)
        return {field: value if value.ndim else float(value) for field, value in arrays.items()}

    fitted = Fit(
        **kept("logit", lambda: ranker.fit(choices, seed=seed, progress=of_epochs("logit", ranker.EPOCHS, say)))
    )
    if find_spec("torch") is None:
        return fitted, None
    from models.train.head import EPOCHS, fit_head

    return fitted, Head(**kept("mlp", lambda: fit_head(choices, seed=seed, progress=of_epochs("MLP", EPOCHS, say))))
