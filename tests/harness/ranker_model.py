"""A ranker with random weights."""

from pathlib import Path

import numpy as np

from models.ranker.columns import F
from models.train.ranker.fit import Fit, export


def write_ranker_folder(tmp_path: Path, seed: int = 0) -> Path:
    theta = np.random.default_rng(seed).normal(size=(F, 1)).astype(np.float32)
    export(tmp_path / "ranker", Fit(theta, 1.0, 2.0, 0.5), "a test", "2026-01-01T00:00:00Z", {})
    return tmp_path / "ranker"
