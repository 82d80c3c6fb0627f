"""What the models of simulated shoppers are made of: a short simulation tells whether the long one would be another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploy.train.simulation import Simulated, Uniform, simulate
from models.history.model import MAX_ATTRIBUTES, hash_all_attributes
from models.manifest import load
from models.ranker.columns import FEATURES
from models.train.history.graph import Shape
from models.train.recipe import ingredients

SHOPS = 3  # whose shoppers the history model learns from, at random pages
EPOCHS = 8  # of it
ROUNDS = 6  # of the ranker: the first looks at random pages, each after it at pages of what the one before taught
SHAPE = Shape(width=64, unseen=1.0)
SHOPPERS, LOOKS = 40, 8  # of the short simulation


def of_history(shoppers: int, looks: int, seed: int) -> dict[str, Any]:
    """Items as the model reads them, and what was touched when."""
    one = simulate(Uniform(), SHOPPERS, LOOKS, seed)
    slots = np.empty((len(one.items), MAX_ATTRIBUTES), np.int32)
    hash_all_attributes(one.items, SHAPE.attributes, slots)
    arguments = {
        "shoppers": shoppers,
        "looks": looks,
        "seed": seed,
        "shops": SHOPS,
        "epochs": EPOCHS,
        **SHAPE._asdict(),
    }
    return ingredients(arguments, [slots.tobytes(), *_touched(one)])


def of_ranker(shoppers: int, looks: int, seed: int, history: Path | None) -> dict[str, Any]:
    """What was offered and chosen; and the mean of each feature, whose last bits differ from processor to processor."""
    one = simulate(Uniform(), SHOPPERS, LOOKS, seed, history=history)
    means = one.choices.phi.mean(axis=0, dtype=np.float64).tolist()
    arguments = {"shoppers": shoppers, "looks": looks, "seed": seed, "rounds": ROUNDS}
    return ingredients(
        arguments, [*_touched(one), one.choices.ends.tobytes(), one.choices.chosen.tobytes()],
        features={name: float(f"{mean:.6g}") for name, mean in zip(FEATURES, means, strict=True)},
        history=load(history, "history").version if history is not None else None,
    )  # fmt: skip


def _touched(one: Simulated) -> list[bytes]:
    of = one.behaviour
    return [of.ends.tobytes(), of.item.tobytes(), np.round(of.time * 1e3).astype(np.int64).tobytes(), of.kind.tobytes()]
