"""Figures of a model card: how well held-out choices are predicted, in all and by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.evaluation.evaluate import LENGTHS, POPULARITY, Calibration, hit_and_reciprocal_rank
from models.ranker.columns import FORESEEN
from models.train.ranker.fit import (
    HELD_OUT_SHARE,
    POSITION_FEATURES,
    Choices,
    Fit,
    examination,
    position_features,
    select_offers,
)
from models.train.ranker.graph import Head
from stream.codes import MAX_PAGE_ITEMS, SLOTS
from stream.locales import LOCALES
from stream.types import F32, F64, I64, Bools, Rows

Scores = npt.NDArray[np.floating[Any]]
Scorer = Callable[[F32], Any]  # from phi (n, F) to scores (n, 1)
K = 20  # of HR@K and MRR@K
SCORE_BATCH = 200_000  # offers
# Groups of choices by a field of `Choices.about`: a label, and lower bounds of spans or names of codes.
SPANS = {"before": ("steps before", (0, *LENGTHS)), "popularity": ("clicks on it before", POPULARITY)}
CODES = {"slot": ("slot", SLOTS), "locale": ("locale", LOCALES), "explored": ("place", ("by score", "explored"))}
MIN_GROUP = 10  # choices; figures of smaller groups are left out
# Newton's method for the position weights.
MAX_NEWTON_STEPS = 50
MAX_HALVINGS = 30  # of a step that is too long
RIDGE = 1e-4  # keeps weights of constant features at 0
MAX_WEIGHT = 10.0  # largest inverse propensity weight of a click


class _Model(NamedTuple):
    """A model in a comparison."""

    prefix: str  # of the names of its figures
    scores: Scores  # (O,)
    position_weights: F32


def softmax_within(scores: Scores, starts: I64, count: I64) -> Scores:
    """(O,) probability of each offer among those of its choice.

    scores: (O,). starts, count: (N,) start and number of each choice's offers.
    """
    exponentials = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), count))
    return exponentials / np.repeat(np.add.reduceat(exponentials, starts), count)  # type: ignore[no-any-return]


def logit_scorer(theta: F32) -> Scorer:
    """Scores of the logit with theta (F, 1). Not by BLAS, whose sums depend on the number of threads."""
    return lambda phi: np.einsum("of,fs->os", phi, theta)


class HeldOutChoices:
    """The choices that models are evaluated on, at least one, and figures of a model's scores for them."""

    def __init__(self, choices: Choices, held_out: Bools, missed: Rows | None = None) -> None:
        """held_out: (N,) those of the choices. missed: attributes of choices that were not offered; each is a miss."""
        self.choices, self.held_out = choices, np.flatnonzero(held_out)
        self._groups = None if choices.about is None else choices.about[self.held_out]
        self._missed = missed
        self._count = np.diff(choices.ends, prepend=0)
        self._starts = choices.ends - self._count
        self.chosen = self._starts + choices.chosen  # (N,) among all offers

    def scores_of(self, scorer: Scorer) -> Scores:
        """(O,) scores of all offers."""
        phi = self.choices.phi
        starts = range(0, len(phi), SCORE_BATCH)
        return np.concatenate([scorer(phi[at : at + SCORE_BATCH].astype(np.float32))[:, 0] for at in starts])

    def probabilities(self, scores: Scores, position_weights: F32 | None = None) -> Scores:
        """(O,) probability of each offer. With position weights, examination is part of the model."""
        if position_weights is not None and len(position_weights) and self.choices.position is not None:
            scores = scores + position_features(self.choices.position) @ position_weights
        return softmax_within(scores, self._starts, self._count)

    def loss(self, probabilities: Scores) -> float:
        """Mean cross-entropy of held-out choices, in nats. `fit.cross_entropy` is that of a theta over all choices."""
        return -float(np.log(probabilities[self.chosen][self.held_out] + 1e-12).mean())

    def calibration_error(self, probabilities: Scores) -> float:
        """Expected calibration error of the probability that the most probable offer is chosen."""
        top = np.maximum.reduceat(probabilities, self._starts)
        is_right = probabilities[self.chosen] >= top
        return Calibration.of(top[self.held_out].astype(np.float32), is_right[self.held_out]).error

    def ranks(self, scores: Scores) -> I64:
        """(H,) rank, from 1, of each held-out choice, behind offers with the same score; then 0 for each missed one."""
        own = scores[self.chosen]
        reaches = (scores >= np.repeat(own, self._count)).astype(np.int64)
        rank = np.add.reduceat(reaches, self._starts)[self.held_out]
        return np.concatenate([rank, np.zeros(0 if self._missed is None else len(self._missed), np.int64)])

    def hit_rates(self, scores: Scores) -> dict[str, float]:
        """HR@20 and MRR@20, from 0 to 1, and their number of choices "n"; in all and by group ("group/HR@20")."""
        rank = self.ranks(scores)
        figures = _hit_rates(rank)
        for group, these in self._group_masks():
            if these.sum() >= MIN_GROUP:
                figures |= {f"{group}/{name}": value for name, value in _hit_rates(rank[these]).items()}
        return figures

    def _group_masks(self) -> Iterator[tuple[str, Bools]]:
        """The name of each group, and a mask over `ranks`."""
        if self._groups is None:
            return
        groups = self._groups if self._missed is None else np.concatenate([self._groups, self._missed])
        for field in groups.dtype.names or ():
            values = groups[field]
            if field in CODES:
                label, names = CODES[field]
                yield from ((f"{label} {name}", values == code) for code, name in enumerate(names) if name)
                continue
            label, bounds = SPANS[field]
            for start, end in zip(bounds, [*bounds[1:], None], strict=True):
                span = f"{start}+" if end is None else f"{start}" if end == start + 1 else f"{start}-{end - 1}"
                yield f"{label} {span}", (values >= start) & (values < (np.inf if end is None else end))


def _hit_rates(rank: I64) -> dict[str, float]:
    hit_rate, mrr = hit_and_reciprocal_rank(rank, K)
    return {f"HR@{K}": hit_rate, f"MRR@{K}": mrr, "n": float(len(rank))}


def ranker_figures(choices: Choices, fitted: Fit, head: Head | None, seed: int) -> dict[str, float]:
    """Figures of both heads on held-out choices. Groups are those of the MLP if there is one, because it serves then.

    For choices among the items of a page, about 40, hit rates at 20 are left out: they would say little.
    """
    rng = np.random.default_rng(seed)
    held_out = choices.held_out(rng)
    missed = choices.missed
    if missed is not None:
        missed = missed[rng.random(len(missed)) < HELD_OUT_SHARE]
    evaluation = HeldOutChoices(choices, held_out, missed)
    figures = {"held_out": float(held_out.sum() + (0 if missed is None else len(missed)))}
    rates: dict[str, float] = {}
    for prefix, scores, position_weights in _models(evaluation, fitted, head):
        figures[f"{prefix}calibration_error"] = evaluation.calibration_error(
            evaluation.probabilities(scores, position_weights)
        )
        rates = evaluation.hit_rates(scores)
        figures |= {prefix + name: value for name, value in rates.items() if "/" not in name and name != "n"}
    figures |= {name: value for name, value in rates.items() if "/" in name}
    return figures if choices.position is None else _among_shown(figures)


def _models(evaluation: HeldOutChoices, fitted: Fit, head: Head | None) -> list[_Model]:
    """The logit, and the MLP if there is one."""
    models = [_Model("", evaluation.scores_of(logit_scorer(fitted.theta)), fitted.position_weights)]
    if head is not None:
        models.append(_Model("mlp_", evaluation.scores_of(head.score), head.position_weights))
    return models


def _among_shown(figures: dict[str, float]) -> dict[str, float]:
    """Without hit rates, which say nothing about 40 items; MRR is renamed to show that it is among shown items."""
    return {name.replace(f"MRR@{K}", "shown_MRR"): value for name, value in figures.items() if f"HR@{K}" not in name}


def fit_position_weights(scores: Scores, choices: Choices, these: Bools) -> F32:
    """(POSITION_FEATURES,) position weights for fixed scores (O,), fitted on the choices `these` (N,).

    So a model that was fitted elsewhere is evaluated with its own examination, like the new one. The loss is the mean
    cross-entropy plus RIDGE |weights|^2 / 2. It is convex, and Newton's method finds its minimum. Steps are
    halved until they reduce the loss enough (Armijo, 1966).
    """
    offers, count, chosen = select_offers(choices, np.flatnonzero(these))
    assert choices.position is not None
    x = position_features(choices.position[offers]).astype(np.float64)  # (B, POSITION_FEATURES), B offers
    base, starts = scores[offers].astype(np.float64), np.cumsum(count) - count

    def loss_at(weights: F64) -> tuple[Scores, float]:
        p = softmax_within(base + x @ weights, starts, count)
        return p, float(-np.log(p[chosen] + 1e-300).mean() + RIDGE * weights @ weights / 2)

    weights = np.zeros(POSITION_FEATURES)
    p, loss = loss_at(weights)
    for _ in range(MAX_NEWTON_STEPS):
        mean = np.add.reduceat(p[:, None] * x, starts)  # (choices, POSITION_FEATURES)
        gradient = (mean - x[chosen]).mean(axis=0) + RIDGE * weights
        hessian = (x * p[:, None]).T @ x / len(count) - mean.T @ mean / len(count) + RIDGE * np.eye(POSITION_FEATURES)
        step = np.linalg.solve(hessian, gradient)
        for _ in range(MAX_HALVINGS):
            p, new_loss = loss_at(weights - step)
            if new_loss <= loss - 1e-4 * gradient @ step:
                break
            step /= 2
        if not new_loss < loss:
            break
        weights, loss = weights - step, new_loss
    return weights.astype(np.float32)


def _unbiased_mrr(evaluation: HeldOutChoices, scores: Scores, position_weights: F32) -> float:
    """Mean reciprocal rank as if every position were examined alike: a click at position k weighs 1 / e(k).

    e(k) follows from position_weights (POSITION_FEATURES,), and weights are at most MAX_WEIGHT. These are
    self-normalised inverse propensity weights (Joachims et al., 2017; Swaminathan and Joachims, 2015).
    """
    position = evaluation.choices.position
    assert position is not None
    examined = examination(position_weights, MAX_PAGE_ITEMS)[position[evaluation.chosen][evaluation.held_out]]
    weight = np.minimum(1.0 / examined, MAX_WEIGHT)
    return float((weight / evaluation.ranks(scores)).sum() / weight.sum())


def page_figures(choices: Choices, fitted: Fit, head: Head | None, serving: Scores | None) -> dict[str, float]:
    """Figures on held-out choices among shown items: of the new heads and of the ranker that serves.

    Each model is evaluated with its own examination. Only the unbiased MRR weighs the clicks for all models alike, by
    the examination of the MLP, or of the logit without an MLP. serving: (O,) scores of the serving ranker, or None.
    """
    assert choices.held is not None
    evaluation = HeldOutChoices(choices, choices.held)
    models = _models(evaluation, fitted, head)
    if serving is not None:
        models.insert(0, _Model("served_", serving, fit_position_weights(serving, choices, ~choices.held)))
    common_weights = models[-1].position_weights
    figures: dict[str, float] = {"held_out": float(choices.held.sum())}
    rates: dict[str, float] = {}
    for prefix, scores, position_weights in models:
        probabilities = evaluation.probabilities(scores, position_weights)
        figures[f"{prefix}loss"] = evaluation.loss(probabilities)
        figures[f"{prefix}calibration_error"] = evaluation.calibration_error(probabilities)
        rates = evaluation.hit_rates(scores)
        figures[f"{prefix}shown_MRR"] = rates[f"MRR@{K}"]
        figures[f"{prefix}unbiased_MRR"] = _unbiased_mrr(evaluation, scores, common_weights)
    return figures | _among_shown({name: value for name, value in rates.items() if "/" in name})


def _history_scores(phi: F32) -> F32:
    """(n, 1) scores of the history model alone."""
    return phi[:, FORESEEN, None]


def next_figures(choices: Choices, scorer: Scorer = _history_scores) -> dict[str, float]:
    """Hit rates of what comes next among the candidates, at all choices: none of them was trained on.

    Raises ValueError if there are no choices.
    """
    if not len(choices.chosen):
        raise ValueError("there are no next clicks to evaluate on; give more --shoppers or --looks")
    evaluation = HeldOutChoices(choices, np.ones(len(choices.chosen), np.bool_), choices.missed)
    rates = evaluation.hit_rates(evaluation.scores_of(scorer))
    positions = rates.pop("n")
    return {**rates, "positions": positions}
