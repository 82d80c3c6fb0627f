"""Recipes of the models trained on simulated shoppers. A short simulation shows if the long one would differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploy.train.simulation import Simulation, UniformScorer, simulate
from models.history.model import MAX_ATTRIBUTES, hash_all_attributes
from models.manifest import load
from models.ranker.columns import FEATURES
from models.train.history.graph import Shape
from models.train.recipe import make_recipe

SHOPS = 3  # that the history model learns from, with random pages
EPOCHS = 8  # of the history model
ROUNDS = 6  # of the ranker: the first with random pages, each other with pages of the previous round's ranker
SHAPE = Shape(width=64, unseen=1.0)
SHOPPERS, LOOKS = 40, 8  # of the short simulation


def history_recipe(shoppers: int, looks: int, seed: int) -> dict[str, Any]:
    """Recipe of the history model: items as the model reads them, and the interactions."""
    simulation = simulate(UniformScorer(), SHOPPERS, LOOKS, seed)
    slots = np.empty((len(simulation.items), MAX_ATTRIBUTES), np.int32)
    hash_all_attributes(simulation.items, SHAPE.attributes, slots)
    arguments = {
        "shoppers": shoppers,
        "looks": looks,
        "seed": seed,
        "shops": SHOPS,
        "epochs": EPOCHS,
        **SHAPE._asdict(),
    }
    return make_recipe(arguments, [slots.tobytes(), *_interaction_bytes(simulation)])


def ranker_recipe(shoppers: int, looks: int, seed: int, history: Path | None) -> dict[str, Any]:
    """Recipe of the ranker: the choices, and the mean of each feature.

    The means are kept apart because their last bits depend on the processor.
    """
    simulation = simulate(UniformScorer(), SHOPPERS, LOOKS, seed, history=history)
    choices = simulation.choices
    means = choices.phi.mean(axis=0, dtype=np.float64).tolist()
    arguments = {"shoppers": shoppers, "looks": looks, "seed": seed, "rounds": ROUNDS}
    return make_recipe(
        arguments,
        [*_interaction_bytes(simulation), choices.ends.tobytes(), choices.chosen.tobytes()],
        features={name: float(f"{mean:.6g}") for name, mean in zip(FEATURES, means, strict=True)},
        history=load(history, "history").version if history is not None else None,
    )


def _interaction_bytes(simulation: Simulation) -> list[bytes]:
    """The interactions, with times in milliseconds."""
    sequences = simulation.sequences
    milliseconds = np.round(sequences.time * 1e3).astype(np.int64)
    return [sequences.ends.tobytes(), sequences.item.tobytes(), milliseconds.tobytes(), sequences.kind.tobytes()]
