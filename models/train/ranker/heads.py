"""Both heads of a ranker, fitted on the same choices: the logit, and the MLP if torch is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

from models.train.learning_curve import OnEpoch, Point
from models.train.progress import LogLine, epoch_logger
from models.train.ranker import fit as ranker
from models.train.ranker.fit import Choices, Fit
from models.train.ranker.graph import Head
from models.train.step_cache import Arrays, StepCache


def fit_heads(
    choices: Choices, log: LogLine, *, seed: int, cache: StepCache | None = None, name: str = "heads",
    curves: dict[str, list[Point]] | None = None,
) -> tuple[Fit, Head | None]:  # fmt: skip
    """Fit the logit and the MLP. The MLP is None without torch.

    Each head is kept in `cache` under `name`. The losses of "logit" and "MLP" by epoch are appended to `curves`. Raises
    ValueError if there are too few choices.
    """
    all_curves: dict[str, list[Point]] = {} if curves is None else curves

    def on_epoch(model: str, epochs: int) -> OnEpoch:
        return epoch_logger(model, epochs, log, all_curves.setdefault(model, []))

    def load_or_fit(head: str, fit: Callable[[], NamedTuple]) -> dict[str, Any]:
        def compute() -> Arrays:
            return {field: np.asarray(value) for field, value in fit()._asdict().items()}

        arrays = compute() if cache is None else cache.load_or_compute(f"{name}-{head}", compute)
        return {field: value if value.ndim else float(value) for field, value in arrays.items()}

    def fit_logit() -> Fit:
        return ranker.fit(choices, seed=seed, progress=on_epoch("logit", ranker.EPOCHS))

    fitted = Fit(**load_or_fit("logit", fit_logit))
    if find_spec("torch") is None:
        return fitted, None
    from models.train.ranker.mlp_head import EPOCHS, fit_head

    def fit_mlp() -> Head:
        return fit_head(choices, seed=seed, progress=on_epoch("MLP", EPOCHS))

    return fitted, Head(**load_or_fit("mlp", fit_mlp))
