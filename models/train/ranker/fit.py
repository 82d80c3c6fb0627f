"""Fit theta by gradient descent on the listwise cross-entropy of the chosen offers, and export the ranker.

For choices from pages, P(i | one click) = e(k_i) exp(s_i) / sum_j e(k_j) exp(s_j). Here s is the score and e(k) the
examination probability of position k, as in the position-based model (Richardson et al., 2007; Craswell et al., 2008),
inside McFadden's conditional logit (1974). log e is a weighted sum of features of the position. Its weights are fitted
with theta and are not served.

Position and relevance can be separated because the order of a page depends on phi alone: given phi, a position carries
information on examination, not on the item. The explored item has a position that its score would not have given it.

Features are standardised for the descent, and theta is returned for raw phi. Adding a constant to all scores leaves a
softmax unchanged, so dividing theta by the features' deviations is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from models import manifest, parity
from models.parity import Case
from models.ranker.columns import FEATURES, features_hash, signals_hash
from models.ranker.model import GRAPH, MLP_GRAPH, MLP_LINEAR, THETA
from models.train.learning_curve import OnEpoch, Point, ignore_epoch
from models.train.ranker.graph import Head, graph, head_graph
from models.train.recipe import NO_RECIPE, Recipe
from stream.items.signals import HALF_LIVES, HalfLives
from stream.types import F32, F64, I32, I64, Bools, Rows

HELD_OUT_SHARE = 0.1  # of the choices
EPOCHS = 30
MIN_CHOICES = 100
SCALE_SAMPLE = 400_000  # offers that the features' deviations are estimated from
POSITION_FEATURES = 4
NO_POSITION_WEIGHTS = np.zeros(POSITION_FEATURES, np.float32)


class Choices(NamedTuple):
    """N choices and their O offers, those of one choice after those of the previous one.

    The names of the fields are part of a hash in manifests (deploy.train.impressions) and of files of StepCache.
    """

    phi: npt.NDArray[np.floating[Any]]  # (O, F) float16 or float32
    ends: I64  # (N,) end of each choice's offers
    chosen: I32  # (N,) index of the chosen offer among those of its choice
    position: I32 | None = None  # (O,) 0-based rank on a page; None if there was no page
    held: Bools | None = None  # (N,) held-out choices; None: a random tenth
    about: Rows | None = None  # (N,) attributes that figures are grouped by, one field for each kind of group
    missed: Rows | None = None  # (M,) the same attributes of choices whose item was not offered

    def held_out(self, rng: np.random.Generator) -> Bools:
        """(N,) held-out choices. A random tenth is the same for each new generator of the same seed."""
        return rng.random(len(self.chosen)) < HELD_OUT_SHARE if self.held is None else self.held

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The fields that are not None, by name; `Choices(**arrays)` restores them."""
        return {name: array for name, array in self._asdict().items() if array is not None}

    @classmethod
    def joined(cls, parts: Sequence[Choices]) -> Choices:
        """Concatenate choices."""
        shift = np.cumsum([0, *(len(part.phi) for part in parts[:-1])])
        optional = {
            name: np.concatenate(arrays)
            for name in ("position", "held", "about", "missed")
            if (arrays := [array for part in parts if (array := getattr(part, name)) is not None])
        }
        return cls(
            np.concatenate([part.phi for part in parts]),
            np.concatenate([part.ends + start for part, start in zip(parts, shift, strict=True)]),
            np.concatenate([part.chosen for part in parts]),
            **optional,
        )


class Fit(NamedTuple):
    """A fitted logit. Losses are in nats."""

    theta: F32  # (F, 1), for raw phi
    loss: float  # mean cross-entropy of held-out choices
    uniform: float  # the same for equal probabilities: mean log(count)
    top1: float  # share of held-out choices ranked first, without position effects
    position_weights: F32 = NO_POSITION_WEIGHTS  # (POSITION_FEATURES,); log e(k) is their sum over the features of k


def position_features(position: I32) -> F32:
    """(O, POSITION_FEATURES) features of 0-based ranks (O,). Without them, theta would learn our own order."""
    p = position.astype(np.float32)
    return np.stack([np.log1p(p), p / 10.0, (p == 0).astype(np.float32), (p < 4).astype(np.float32)], axis=1)


def examination(position_weights: F32, positions: int) -> F32:
    """(positions,) examination probability of each position, relative to that of the first."""
    log_e = position_features(np.arange(positions, dtype=np.int32)) @ position_weights
    return np.exp(log_e - log_e[0])  # type: ignore[no-any-return]


def _scores(x: F32, theta: F32) -> F32:
    """(O,) scores. A BLAS product would depend on the number of threads, and with it the artefact's hash."""
    return np.einsum("of,f->o", x, theta)  # type: ignore[no-any-return]


class _Batch(NamedTuple):
    """B choices with O offers in all, ready for the descent."""

    x: F32  # (O, K) scaled features
    starts: I64  # (B,) start of each choice's offers
    offers: I64  # (B,) number of offers of each choice
    chosen: I64  # (B,) chosen offers among the O

    def probabilities(self, theta: F32) -> F32:
        """(O,) softmax among the offers of each choice."""
        scores = _scores(self.x, theta)
        exponentials = np.exp(scores - np.repeat(np.maximum.reduceat(scores, self.starts), self.offers))
        sums = np.repeat(np.add.reduceat(exponentials, self.starts), self.offers)
        return exponentials / sums  # type: ignore[no-any-return]


def select_offers(choices: Choices, numbers: I64) -> tuple[I64, I64, I64]:
    """Offers of the choices `numbers` (B,): rows (O,), counts by choice (B,), and chosen ones among the O (B,)."""
    starts = np.where(numbers > 0, choices.ends[numbers - 1], 0)
    count = choices.ends[numbers] - starts
    new_starts = np.cumsum(count) - count
    rows = np.arange(count.sum()) + np.repeat(starts - new_starts, count)
    return rows, count, new_starts + choices.chosen[numbers]


def _make_batch(choices: Choices, numbers: I64, scale: F32) -> _Batch:
    """The choices `numbers`; features are divided by `scale` (F,) and followed by those of the position, if any."""
    rows, count, chosen = select_offers(choices, numbers)
    x = choices.phi[rows].astype(np.float32) / scale
    if choices.position is not None:
        x = np.concatenate([x, position_features(choices.position[rows])], axis=1)
    return _Batch(x, np.cumsum(count) - count, count, chosen)


def feature_scales(phi: npt.NDArray[np.floating[Any]], rng: np.random.Generator) -> tuple[F32, F32]:
    """(F,) standard deviation of each feature, infinite for constant ones; (F,) their means."""
    sample = phi[rng.choice(len(phi), min(len(phi), SCALE_SAMPLE), replace=False)].astype(np.float32)
    deviation = sample.std(axis=0)
    # A constant feature gets weight 0. One that hardly varies offline must not get a huge theta from a few cases.
    scale = np.where(deviation > 1e-4, np.maximum(deviation, 0.05), np.inf).astype(np.float32)
    return scale, sample.mean(axis=0)


def fit(
    choices: Choices, *, epochs: int = EPOCHS, rate: float = 0.03, l2: float = 1e-3, batch: int = 256, seed: int = 1,
    progress: OnEpoch = ignore_epoch,
) -> Fit:  # fmt: skip
    """Minimise the mean cross-entropy plus `l2` |theta|^2 (standardised units) with Adam, without held-out choices.

    Raises ValueError if there are fewer than MIN_CHOICES choices.
    """
    n = len(choices.chosen)
    if n < MIN_CHOICES:
        raise ValueError(
            f"{n} choices are too few to fit {len(FEATURES)} weights on: at least {MIN_CHOICES} are needed; "
            "give more data"
        )
    rng = np.random.default_rng(seed)
    held_out = choices.held_out(rng)
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    scale, _ = feature_scales(choices.phi, rng)
    test_batches = [_make_batch(choices, test[at : at + batch], scale) for at in range(0, len(test), batch)]

    theta = np.zeros(test_batches[0].x.shape[1], np.float32)
    # Adam's first and second moments.
    first: npt.NDArray[np.floating[Any]] = np.zeros_like(theta)
    second, step = np.zeros_like(first), 0
    loss = float("nan")
    for epoch in range(epochs):
        epoch_rate = rate * (1 - epoch / epochs)
        order, train_loss = rng.permutation(train), 0.0
        for at in range(0, len(order), batch):
            part = _make_batch(choices, order[at : at + batch], scale)
            p = part.probabilities(theta)
            train_loss -= float(np.log(p[part.chosen] + 1e-12).sum())
            p[part.chosen] -= 1.0
            gradient = np.einsum("o,of->f", p, part.x) / len(part.offers) + 2 * l2 * theta
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            theta -= epoch_rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        loss = _mean_loss(test_batches, theta)
        progress(Point(epoch + 1, train_loss / len(train), loss))
    features = len(FEATURES)
    return Fit(
        theta=(theta[:features] / scale).astype(np.float32)[:, None],
        loss=loss,
        uniform=float(np.concatenate([np.log(part.offers) for part in test_batches]).mean()),
        top1=float(np.concatenate([_is_ranked_first(part, theta[:features]) for part in test_batches]).mean()),
        position_weights=theta[features:] if choices.position is not None else NO_POSITION_WEIGHTS,
    )


def cross_entropy(theta: F32, choices: Choices, batch: int = 256) -> float:
    """Mean loss of theta (F, 1) over all choices, in nats."""
    unscaled = np.ones(len(theta), np.float32)
    count = len(choices.chosen)
    starts = range(0, count, batch)
    batches = [_make_batch(choices, np.arange(at, min(at + batch, count)), unscaled) for at in starts]
    return _mean_loss(batches, theta[:, 0])


def _mean_loss(batches: Sequence[_Batch], theta: F32) -> float:
    """Mean cross-entropy of all choices of the batches, in nats. theta: (K,)."""
    losses = [np.log(part.probabilities(theta)[part.chosen] + 1e-12) for part in batches]
    return -float(np.concatenate(losses).mean())


def _is_ranked_first(batch: _Batch, theta: F32) -> Bools:
    """(B,) True if no other offer scores as high as the chosen one."""
    scores = _scores(batch.x[:, : len(theta)], theta)
    reaches = (scores >= np.repeat(scores[batch.chosen], batch.offers)).astype(np.int64)
    return np.add.reduceat(reaches, batch.starts) == 1  # type: ignore[no-any-return]


def sample_phi() -> F32:
    """(3, 40, F) values in the range of real features, as reference inputs of a graph."""
    rng = np.random.default_rng(1)
    return (rng.gamma(1.0, 1.0, (3, 40, len(FEATURES))) * (rng.random((3, 40, len(FEATURES))) < 0.4)).astype(np.float32)


def softmax(column: npt.NDArray[Any], mask: Bools) -> F64:
    """(U, C) softmax of scores (U, C, 1) among the candidates of the mask (U, C), in double precision."""
    scores = np.where(mask, column[..., 0].astype(np.float64), -np.inf)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


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
    recipe: Recipe = NO_RECIPE,
    history: str | msgspec.UnsetType | None = None,
) -> manifest.Manifest:
    """Write the logit, the MLP head if given, reference outputs and the manifest into `folder`, created if missing.

    half_lives: of the signals that the ranker was fitted with; a worker uses the same. history: version of the history
    model that is to serve beside the ranker, None if it was fitted without one, UNSET if that is not known.
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
    parity.write(folder, _reference_cases(fitted, head))
    return manifest.write(
        folder,
        name="softmax",
        kind="ranker",
        created=created,
        features_hash=features_hash(),
        fitted_with=manifest.UNKNOWN_FEATURES
        if history is msgspec.UNSET
        else manifest.FittedWith(history=history, signals=signals_hash(half_lives)),
        data=data,
        metrics={"loss": fitted.loss, "uniform": fitted.uniform, "top1": fitted.top1, **metrics},
        limits=limits,
        source=source,
        params={
            "features": list(FEATURES),
            "theta": [round(float(v), 5) for v in fitted.theta[:, 0]],
            # Of popularity and of transitions, in seconds.
            "half_lives": list(half_lives),
        },
        recipe=recipe,
    )


def _reference_cases(fitted: Fit, head: Head | None) -> list[Case]:
    """Inputs and expected outputs of each graph."""
    phi = sample_phi()
    count = np.array([len(phi[0]), 5, 1], np.int64)
    mask = np.arange(phi.shape[1])[None, :] < count[:, None]
    inputs = {"phi": phi, "mask": mask, "theta": fitted.theta}
    cases = [Case(GRAPH, inputs, {"probability": softmax(phi @ fitted.theta, mask)}, 1e-4)]
    if head is not None:
        inputs = {"phi": phi, "mask": mask, "theta": head.linear}
        cases.append(Case(MLP_GRAPH, inputs, {"probability": softmax(head.score(phi), mask)}, 1e-4))
    return cases
