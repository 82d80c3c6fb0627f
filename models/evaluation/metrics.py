"""How well what was held out is foreseen, in all and by group: the figures of a model's card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluation.evaluate import LENGTHS, POPULARITY, Calibration
from models.ranker.columns import FORESEEN
from models.train.ranker.fit import HELD, PLACES, Choices, Fit, examination, position_features, ragged
from models.train.ranker.graph import Head
from stream.codes import SLOTS
from stream.events import LOCALES
from stream.page.json_kernels import POSITIONS

Rows = npt.NDArray[np.void]
Bools = npt.NDArray[np.bool_]
Phi = npt.NDArray[np.float32]
Scores = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[np.int64]
Score = Callable[[Phi], Any]  # of phi (n, F) the scores (n, 1)
K = 20  # places that count
# What groups are made of, by field: the name of each kind, and where its spans begin, or what its codes mean.
SPANS = {"before": ("steps before", (0, *LENGTHS)), "popularity": ("clicks on it before", POPULARITY)}
CODES = {"slot": ("slot", SLOTS), "locale": ("locale", LOCALES), "explored": ("place", ("by score", "explored"))}
NEWTON, RIDGE = 50, 1e-4  # steps at most, and what keeps weights of what never differs at 0
HALVINGS = 30  # of a step that leads too far, at most
CLIPPED = 10.0  # the weight of a click at most, however seldom the eye comes to where it was
FEWEST = 10  # choices that a group's figures are worth telling of


def softmax_within(scores: Scores, starts: Numbers, count: Numbers) -> Scores:
    """(O,) probability of each offer among those of its choice. scores (O,); starts, count (N,): where those of each begin, how many."""
    raised = np.exp(scores - np.repeat(np.maximum.reduceat(scores, starts), count))
    return raised / np.repeat(np.add.reduceat(raised, starts), count)  # type: ignore[no-any-return]


def by_theta(theta: Phi) -> Score:
    """The logit's scores, theta (F, 1). Not by BLAS, which sums in another order with other threads."""
    return lambda phi: np.einsum("of,fs->os", phi, theta)


class Judged:
    """The choices that a model is judged by, one at least, and what its scores make of them."""

    def __init__(self, choices: Choices, held: Bools, missed: Rows | None = None) -> None:
        """held (N,): which of the choices; missed: choices of what was not offered, that count as found nowhere."""
        self.choices, self.held = choices, np.flatnonzero(held)
        self._about = None if choices.about is None else choices.about[self.held]
        self._missed = missed
        self._count = np.diff(choices.ends, prepend=0)
        self._starts = choices.ends - self._count
        self.chosen = self._starts + choices.chosen  # (N,) among all offers

    def scores_of(self, score: Score) -> Scores:
        """(O,) of all offers."""
        phi, step = self.choices.phi, 200_000
        return np.concatenate([score(phi[at : at + step].astype(np.float32))[:, 0] for at in range(0, len(phi), step)])

    def shares(self, scores: Scores, place: npt.NDArray[np.float32] | None = None) -> Scores:
        """(O,) probability of each offer. place: weights of the position's features, where the eye counts too."""
        if place is not None and len(place) and self.choices.position is not None:
            scores = scores + position_features(self.choices.position) @ place
        return softmax_within(scores, self._starts, self._count)

    def held_out_loss(self, shares: Scores) -> float:
        """Mean cross-entropy, nats, of any model whose `shares` (O,) are given; `ranker.cross_entropy` is that of a theta over all choices."""
        return -float(np.log(shares[self.chosen][self.held] + 1e-12).mean())

    def calibration_error(self, shares: Scores) -> float:
        """Of the probability that the favourite is chosen."""
        best = np.maximum.reduceat(shares, self._starts)
        right = shares[self.chosen] >= best
        return Calibration.of(best[self.held].astype(np.float32), right[self.held]).error

    def ranks(self, scores: Scores) -> npt.NDArray[np.int64]:
        """(H,) rank, from 1, of each choice judged by, behind its equals; then 0 for each that was not offered."""
        own = scores[self.chosen]
        found = np.add.reduceat((scores >= np.repeat(own, self._count)).astype(np.int64), self._starts)[self.held]
        return np.concatenate([found, np.zeros(0 if self._missed is None else len(self._missed), np.int64)])

    def hit_rates(self, scores: Scores) -> dict[str, float]:
        """HR@20 and MRR@20, shares of 1, and how many they are of ("n"); in all and by group ("group/HR@20")."""
        rank = self.ranks(scores)
        figures = _hit_rates(rank)
        for group, these in self._groups():
            if these.sum() >= FEWEST:
                figures |= {f"{group}/{name}": value for name, value in _hit_rates(rank[these]).items()}
        return figures

    def _groups(self) -> Iterator[tuple[str, Bools]]:
        """The name of each, and which of `ranks` are of it."""
        if self._about is None:
            return
        about = self._about if self._missed is None else np.concatenate([self._about, self._missed])
        for field in about.dtype.names or ():
            if field in CODES:
                name, codes = CODES[field]
                yield from ((f"{name} {code}", about[field] == at) for at, code in enumerate(codes) if code)
                continue
            name, edges = SPANS[field]
            for start, end in zip(edges, [*edges[1:], None], strict=True):
                span = f"{start}+" if end is None else f"{start}" if end == start + 1 else f"{start}-{end - 1}"
                yield f"{name} {span}", (about[field] >= start) & (about[field] < (np.inf if end is None else end))


def _hit_rates(rank: npt.NDArray[np.int64]) -> dict[str, float]:
    hit = (rank > 0) & (rank <= K)
    return {f"HR@{K}": float(hit.mean()), f"MRR@{K}": float((hit / np.maximum(rank, 1)).mean()), "n": float(len(rank))}


def ranker_figures(choices: Choices, fitted: Fit, head: Head | None, seed: int) -> dict[str, float]:
    """Of both heads over what was held out; groups are those of the MLP where there is one, as it serves then.

    Of choices among the some 40 items of a page the rank among 20 says little: then it is left out.
    """
    rng = np.random.default_rng(seed)
    held = choices.held_out(rng)
    missed = choices.missed
    if missed is not None:
        missed = missed[rng.random(len(missed)) < HELD]
    judged = Judged(choices, held, missed)
    figures = {"held_out": float(held.sum() + (0 if missed is None else len(missed)))}
    heads: list[tuple[str, Score, npt.NDArray[np.float32]]] = [("", by_theta(fitted.theta), fitted.place)]
    if head is not None:
        heads.append(("mlp_", head.score, head.place))
    rates: dict[str, float] = {}
    for prefix, score, place in heads:
        scores = judged.scores_of(score)
        figures[f"{prefix}calibration_error"] = judged.calibration_error(judged.shares(scores, place))
        rates = judged.hit_rates(scores)
        figures |= {prefix + name: value for name, value in rates.items() if "/" not in name and name != "n"}
    figures |= {name: value for name, value in rates.items() if "/" in name}
    return figures if choices.position is None else _among_shown(figures)


def _among_shown(figures: dict[str, float]) -> dict[str, float]:
    """Without hit rates, which say nothing of some 40 items, and the reciprocal rank under the name that says among what."""
    return {name.replace(f"MRR@{K}", "shown_MRR"): value for name, value in figures.items() if f"HR@{K}" not in name}


def fit_place(scores: Scores, choices: Choices, these: Bools) -> npt.NDArray[np.float32]:
    """(PLACES,) weights of the position's features for scores (O,) that stay as they are, from the choices `these` (N,).

    So a model that was fitted elsewhere is judged with an examination of its own, as the one beside it. The loss, with
    RIDGE |place|^2 / 2, is convex: Newton's method finds its minimum, with steps that are halved while they lead too far.
    """
    offers, count, chosen = ragged(choices, np.flatnonzero(these))
    assert choices.position is not None
    x = position_features(choices.position[offers]).astype(np.float64)  # (B, PLACES), B offers
    base, starts = scores[offers].astype(np.float64), np.cumsum(count) - count

    def at(place: npt.NDArray[np.float64]) -> tuple[Scores, float]:
        p = softmax_within(base + x @ place, starts, count)
        return p, float(-np.log(p[chosen] + 1e-300).mean() + RIDGE * place @ place / 2)

    place = np.zeros(PLACES)
    p, loss = at(place)
    for _ in range(NEWTON):
        mean = np.add.reduceat(p[:, None] * x, starts)  # (choices, PLACES)
        slope = (mean - x[chosen]).mean(axis=0) + RIDGE * place
        bend = (x * p[:, None]).T @ x / len(count) - mean.T @ mean / len(count) + RIDGE * np.eye(PLACES)
        step = np.linalg.solve(bend, slope)
        for _ in range(HALVINGS):
            p, less = at(place - step)
            if less <= loss - 1e-4 * slope @ step:  # Armijo (1966)
                break
            step /= 2
        if not less < loss:
            break
        place, loss = place - step, less
    return place.astype(np.float32)


def _unbiased_mrr(judged: Judged, scores: Scores, eye: npt.NDArray[np.float32]) -> float:
    """Mean reciprocal rank if the eye came to every position alike: each click counts 1 / e(k), at most CLIPPED.

    eye (PLACES,): weights of the position's features, of which e is made. Self-normalised inverse propensity weights
    (Joachims et al., 2017; Swaminathan and Joachims, 2015).
    """
    position = judged.choices.position
    assert position is not None
    seen = examination(eye, POSITIONS)[position[judged.chosen][judged.held]]
    weight = np.minimum(1.0 / seen, CLIPPED)
    return float((weight / judged.ranks(scores)).sum() / weight.sum())


def page_figures(choices: Choices, fitted: Fit, head: Head | None, serving: Scores | None) -> dict[str, float]:
    """Of choices among what pages showed: both heads, and beside them what serves now, each with its own examination.

    Only the unbiased MRR weighs the clicks of all of them alike, by the examination of the MLP, or the logit where there
    is none. serving: (O,) scores of the ranker that serves now; None where there is none to compare with.
    """
    assert choices.held is not None
    judged = Judged(choices, choices.held)
    models: list[tuple[str, Scores, npt.NDArray[np.float32]]] = [
        ("", judged.scores_of(by_theta(fitted.theta)), fitted.place)
    ]
    if head is not None:
        models.append(("mlp_", judged.scores_of(head.score), head.place))
    if serving is not None:
        models.insert(0, ("served_", serving, fit_place(serving, choices, ~choices.held)))
    *_, (_, _, eye) = models
    figures: dict[str, float] = {"held_out": float(choices.held.sum())}
    rates: dict[str, float] = {}
    for prefix, scores, place in models:
        shares = judged.shares(scores, place)
        figures[f"{prefix}loss"] = judged.held_out_loss(shares)
        figures[f"{prefix}calibration_error"] = judged.calibration_error(shares)
        rates = judged.hit_rates(scores)
        figures[f"{prefix}shown_MRR"] = rates[f"MRR@{K}"]
        figures[f"{prefix}unbiased_MRR"] = _unbiased_mrr(judged, scores, eye)
    return figures | _among_shown({name: value for name, value in rates.items() if "/" in name})


def next_figures(choices: Choices, score: Score = lambda phi: phi[:, FORESEEN, None]) -> dict[str, float]:
    """Of what comes next among the candidates, of all choices: none of them was learnt from.

    score: that of the history model alone where none is given. Raises ValueError where there are no choices.
    """
    if not len(choices.chosen):
        raise ValueError("there is nothing that comes next to judge by; give more --shoppers or --looks")
    judged = Judged(choices, np.ones(len(choices.chosen), np.bool_), choices.missed)
    rates = judged.hit_rates(judged.scores_of(score))
    positions = rates.pop("n")
    return {**rates, "positions": positions}
