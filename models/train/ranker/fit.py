"""Fit theta by gradient descent on the listwise cross-entropy of what was chosen among what was offered, and export it.

Of what a page showed, P(i | one click) = e(k_i) exp(s_i) / sum_j e(k_j) exp(s_j): s is the score and e(k) how likely the
eye comes to position k, the examination of the position-based model (Richardson et al., 2007; Craswell et al., 2008) in
McFadden's conditional logit (1974). log e is a sum of weighted features of the position, fitted with theta and left out
of what is served. The order of a page depends on phi alone, so that, given phi, a position tells of the eye and not of
the item; the item that is drawn by chance stands where its score would not have put it, which tells the two apart.

Inputs are standardised for the descent, and theta is handed back for raw phi: a shift of every candidate's score by the
same constant leaves a softmax as it was, so dividing theta by the features' deviation is all there is to undo.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import manifest
from models import parity as reference
from models.parity import Case
from models.ranker.columns import FEATURES, features_hash
from models.ranker.model import GRAPH, MLP_GRAPH, MLP_LINEAR, THETA
from models.train.learning_curve import Point, Progress, unheard
from models.train.ranker.graph import Head, graph, head_graph
from models.train.recipe import UNTOLD, Recipe
from stream.items.signals import HALF_LIVES, HalfLives

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.void]
HELD = 0.1  # of the choices are held out
EPOCHS = 30
SAMPLE = 400_000  # offers that the features' deviations are taken of


class Choices(NamedTuple):
    """What was offered and what was chosen, N times; the offers of one choice after those of the other, O in all."""

    phi: npt.NDArray[np.floating[Any]]  # (O, F) float16 or float32
    ends: npt.NDArray[np.int64]  # (N,) where the offers of each end
    chosen: npt.NDArray[np.int32]  # (N,) which of its offers
    position: npt.NDArray[np.int32] | None = None  # (O,) 0-based rank on a page; None where there was no page
    held: npt.NDArray[np.bool_] | None = None  # (N,) to judge by; None: a tenth by chance
    about: Rows | None = None  # (N,) what groups of them are made of, a field for each kind of group
    missed: Rows | None = None  # (M,) the same of choices of what was not offered

    def held_out(self, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """(N,) True for those that a fit whose generator is new judges by."""
        return rng.random(len(self.chosen)) < HELD if self.held is None else self.held

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Those that there are, by name: what `Choices(**...)` takes."""
        return {name: array for name, array in self._asdict().items() if array is not None}

    @classmethod
    def joined(cls, parts: Sequence[Choices]) -> Choices:
        shift = np.cumsum([0, *(len(part.phi) for part in parts[:-1])])
        rest = {
            name: np.concatenate(there)
            for name in ("position", "held", "about", "missed")
            if (there := [array for part in parts if (array := getattr(part, name)) is not None])
        }
        return cls(
            np.concatenate([part.phi for part in parts]),
            np.concatenate([part.ends + at for part, at in zip(parts, shift, strict=True)]),
            np.concatenate([part.chosen for part in parts]),
            **rest,
        )


PLACES = 4  # features of a position
NO_PLACE = np.zeros(PLACES, np.float32)


class Fit(NamedTuple):
    theta: Floats  # (F, 1) float32, for raw phi
    loss: float  # mean cross-entropy on held-out choices, nats
    uniform: float  # the same for a model that knows nothing: mean log(count)
    top1: float  # share of held-out choices ranked first, position effects removed
    place: Floats = NO_PLACE  # (PLACES,) weights of the position's features: log e(k) is their sum


def position_features(position: npt.NDArray[np.int32]) -> Floats:
    """(O,) ranks to (O, 4): a shopper's eye prefers the top; without these theta would learn our own order."""
    p = position.astype(np.float32)
    return np.stack([np.log1p(p), p / 10.0, (p == 0).astype(np.float32), (p < 4).astype(np.float32)], axis=1)


def examination(place: Floats, positions: int) -> Floats:
    """(positions,) how likely the eye comes to each position, over how likely it comes to the first."""
    log_e = position_features(np.arange(positions, dtype=np.int32)) @ place
    return np.exp(log_e - log_e[0])  # type: ignore[no-any-return]


def _scores(x: Floats, theta: Floats) -> Floats:
    """(O,). A product by BLAS sums in another order with other threads, and gives another artefact."""
    return np.einsum("of,f->o", x, theta)  # type: ignore[no-any-return]


class _Batch(NamedTuple):
    """Some choices, ready for the descent; O offers in all."""

    x: Floats  # (O, K)
    starts: npt.NDArray[np.int64]  # (B,)
    offers: npt.NDArray[np.int64]  # (B,) how many each has
    chosen: npt.NDArray[np.int64]  # (B,) among the O

    def probabilities(self, theta: Floats) -> Floats:
        """Softmax among the offers of each choice. (O,)"""
        scores = _scores(self.x, theta)
        shares = np.exp(scores - np.repeat(np.maximum.reduceat(scores, self.starts), self.offers))
        return shares / np.repeat(np.add.reduceat(shares, self.starts), self.offers)  # type: ignore[no-any-return]


def ragged(
    choices: Choices, these: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of the choices of the numbers `these` (B,): their offers (O,), how many each has (B,), the chosen among the O (B,)."""
    starts = np.where(these > 0, choices.ends[these - 1], 0)
    count = choices.ends[these] - starts
    new_starts = np.cumsum(count) - count
    return np.arange(count.sum()) + np.repeat(starts - new_starts, count), count, new_starts + choices.chosen[these]


def _batch(choices: Choices, these: npt.NDArray[np.int64], scale: Floats) -> _Batch:
    """The choices of the numbers `these`, features over `scale` (F,), beside them those of the position."""
    offers, count, chosen = ragged(choices, these)
    x = choices.phi[offers].astype(np.float32) / scale
    if choices.position is not None:
        x = np.concatenate([x, position_features(choices.position[offers])], axis=1)
    return _Batch(x, np.cumsum(count) - count, count, chosen)


def features_scale(phi: npt.NDArray[np.floating[Any]], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(F,) deviation of each feature, infinite where it is constant; (F,) their means."""
    some = phi[rng.choice(len(phi), min(len(phi), SAMPLE), replace=False)].astype(np.float32)
    spread = some.std(axis=0)
    # A constant feature gets no weight, and one that hardly varies no giant: its theta would explode off-line's few cases.
    return np.where(spread > 1e-4, np.maximum(spread, 0.05), np.inf).astype(np.float32), some.mean(axis=0)


def fit(
    choices: Choices,
    *,
    epochs: int = EPOCHS,
    rate: float = 0.03,
    l2: float = 1e-3,
    batch: int = 256,
    seed: int = 1,
    progress: Progress = unheard,
) -> Fit:
    """Adam on the mean cross-entropy plus `l2` |theta|^2 (standardised units), less the choices that are held out.

    Raises ValueError where there are fewer than 100 choices to learn from.
    """
    n = len(choices.chosen)
    if n < 100:
        raise ValueError(
            f"{n} choices are too few to fit {len(FEATURES)} weights on: at least 100 are needed; give more data"
        )
    rng = np.random.default_rng(seed)
    held = choices.held_out(rng)
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    scale, _ = features_scale(choices.phi, rng)
    tests = [_batch(choices, test[at : at + batch], scale) for at in range(0, len(test), batch)]

    theta = np.zeros(tests[0].x.shape[1], np.float32)
    first: npt.NDArray[np.floating[Any]] = np.zeros_like(theta)
    second, step = np.zeros_like(first), 0
    loss = float("nan")
    for epoch in range(epochs):
        slope = rate * (1 - epoch / epochs)
        order, learnt = rng.permutation(train), 0.0
        for at in range(0, len(order), batch):
            part = _batch(choices, order[at : at + batch], scale)
            p = part.probabilities(theta)
            learnt -= float(np.log(p[part.chosen] + 1e-12).sum())
            p[part.chosen] -= 1.0
            gradient = np.einsum("o,of->f", p, part.x) / len(part.offers) + 2 * l2 * theta
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            theta -= slope * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        loss = -float(np.concatenate([np.log(of.probabilities(theta)[of.chosen] + 1e-12) for of in tests]).mean())
        progress(Point(epoch + 1, learnt / len(train), loss))
    features = len(FEATURES)
    return Fit(
        theta=(theta[:features] / scale).astype(np.float32)[:, None],
        loss=loss,
        uniform=float(np.concatenate([np.log(of.offers) for of in tests]).mean()),
        top1=float(np.concatenate([_found_first(of, theta[:features]) for of in tests]).mean()),
        place=theta[features:] if choices.position is not None else NO_PLACE,
    )


def cross_entropy(theta: Floats, choices: Choices, batch: int = 256) -> float:
    """Mean of theta (F, 1) over all choices, nats."""
    whole = np.ones(len(theta), np.float32)
    parts = [
        _batch(choices, np.arange(at, min(at + batch, len(choices.chosen))), whole)
        for at in range(0, len(choices.chosen), batch)
    ]
    return -float(np.concatenate([np.log(of.probabilities(theta[:, 0])[of.chosen] + 1e-12) for of in parts]).mean())


def _found_first(batch: _Batch, theta: Floats) -> npt.NDArray[np.bool_]:
    """(B,) True where no other offer scores as high as what was chosen."""
    scores = _scores(batch.x[:, : len(theta)], theta)
    reached = np.add.reduceat((scores >= np.repeat(scores[batch.chosen], batch.offers)).astype(np.int64), batch.starts)
    return reached == 1  # type: ignore[no-any-return]


def sample_phi() -> Floats:
    """(3, 40, F) of numbers such as features have, for a graph to be compared on."""
    rng = np.random.default_rng(1)
    return (rng.gamma(1.0, 1.0, (3, 40, len(FEATURES))) * (rng.random((3, 40, len(FEATURES))) < 0.4)).astype(np.float32)


def softmax(column: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Scores (U, C, 1) among those that the mask (U, C) leaves, in double precision."""
    scores = np.where(mask, column[..., 0].astype(np.float64), -np.inf)
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def export(
    folder: Path,
    fitted: Fit,
    data: str,
    created: str,
    metrics: dict[str, float],
    head: Head | None = None,
    limits: str = "",
    source: manifest.Source = manifest.UNKNOWN_SOURCE,
    half_lives: HalfLives = HALF_LIVES,
    recipe: Recipe = UNTOLD,
) -> manifest.Manifest:
    """Write graph, theta, where there is one the MLP head, and the manifest into `folder` (made where it is missing).

    half_lives: of the signals that it was fitted with; a worker takes them over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(graph())
    np.save(folder / THETA, fitted.theta)
    for name in (MLP_GRAPH, MLP_LINEAR):
        (folder / name).unlink(missing_ok=True)
    if head is not None:
        (folder / MLP_GRAPH).write_bytes(head_graph(head))
        np.save(folder / MLP_LINEAR, head.linear)
        metrics = {**metrics, "mlp_loss": head.loss}
    phi = sample_phi()
    count = np.array([len(phi[0]), 5, 1], np.int64)
    mask = np.arange(phi.shape[1])[None, :] < count[:, None]
    cases = [
        Case(
            GRAPH,
            {"phi": phi, "mask": mask, "theta": fitted.theta},
            {"probability": softmax(phi @ fitted.theta, mask)},
            1e-4,
        )
    ]
    if head is not None:
        cases.append(
            Case(
                MLP_GRAPH,
                {"phi": phi, "mask": mask, "theta": head.linear},
                {"probability": softmax(head.score(phi), mask)},
                1e-4,
            )
        )
    reference.write(folder, cases)
    return manifest.write(
        folder,
        name="softmax",
        kind="ranker",
        created=created,
        features_hash=features_hash(),
        data=data,
        metrics={"loss": fitted.loss, "uniform": fitted.uniform, "top1": fitted.top1, **metrics},
        limits=limits,
        source=source,
        params={
            "features": list(FEATURES),
            "theta": [round(float(v), 5) for v in fitted.theta[:, 0]],
            "half_lives": list(half_lives),  # of popularity, of transitions, s
        },
        recipe=recipe,
    )
