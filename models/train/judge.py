"""How well what was held out is foreseen, in all and by group: the figures of a model's card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluate import LENGTHS, POPULARITY, Calibration
from models.phi import FORESEEN
from models.train.ranker import HELD, PLACES, Choices, Fit, examination, position_features, ragged
from models.train.ranker_graph import Head
from stream.events import LOCALES
from stream.page import POSITIONS
from stream.slots import SLOTS

Rows = npt.NDArray[np.void]
Bools = npt.NDArray[np.bool_]
Phi = npt.NDArray[np.float32]
Scores = npt.NDArray[np.floating[Any]]
K = 20  # places that count
# What groups are made of, by field: the name of each kind, and where its spans begin, or what its codes mean.
SPANS = {"before": ("steps before", (0, *LENGTHS)), "popularity": ("clicks on it before", POPULARITY)}
CODES = {"slot": ("slot", SLOTS), "locale": ("locale", LOCALES), "explored": ("place", ("by score", "explored"))}
NEWTON, RIDGE = 20, 1e-4  # steps, and what keeps weights of what never differs at 0
CLIPPED = 10.0
FEWEST = 10  # choices that a group's figures are worth telling of


class Judged:
    """The held-out choices of a fit with this seed, and what scores make of them."""

    def __init__(self, choices: Choices, held: Bools, missed: Rows | None) -> None:
        """held (N,); missed: choices of what was not offered, that count as found nowhere."""
        self.choices, self.these = choices, np.flatnonzero(held)
        self._about = None if choices.about is None else choices.about[self.these]
        self._missed = missed
        count = np.diff(choices.ends, prepend=0)
        self.starts, self._count = choices.ends - count, count

    def scores_of(self, score: Callable[[Phi], Any]) -> Scores:
        """(O,) of all offers; score: of phi (n, F) float32 the scores (n, 1)."""
        phi, step = self.choices.phi, 200_000
        return np.concatenate([score(phi[at : at + step].astype(np.float32))[:, 0] for at in range(0, len(phi), step)])

    def shares(self, scores: Scores, place: npt.NDArray[np.float32] | None = None) -> Scores:
        """(O,) probability of each offer. place: weights of the position's features, where the eye counts too."""
        if place is not None and len(place) and self.choices.position is not None:
            scores = scores + position_features(self.choices.position) @ place
        raised = np.exp(scores - np.repeat(np.maximum.reduceat(scores, self.starts), self._count))
        return raised / np.repeat(np.add.reduceat(raised, self.starts), self._count)  # type: ignore[no-any-return]

    def loss(self, shares: Scores) -> float:
        """Mean cross-entropy, nats."""
        of = shares[self.starts + self.choices.chosen][self.these]
        return -float(np.log(of + 1e-12).mean())

    def calibration_error(self, shares: Scores) -> float:
        """Of the probability that the favourite is chosen."""
        best = np.maximum.reduceat(shares, self.starts)
        right = shares[self.starts + self.choices.chosen] >= best
        return Calibration.of(best[self.these].astype(np.float32), right[self.these]).error

    def ranks(self, scores: Scores) -> npt.NDArray[np.int64]:
        """(H,) rank, from 1, of each held-out choice, behind its equals; then 0 for each that was not offered."""
        own = scores[self.starts + self.choices.chosen]
        found = np.add.reduceat((scores >= np.repeat(own, self._count)).astype(np.int64), self.starts)[self.these]
        return np.concatenate([found, np.zeros(0 if self._missed is None else len(self._missed), np.int64)])

    def found(self, scores: Scores) -> dict[str, float]:
        """HR@20 and MRR@20, shares of 1, in all and by group ("group/HR@20")."""
        rank = self.ranks(scores)
        figures = _figures(rank)
        for group, these in self._groups():
            if these.sum() >= FEWEST:
                figures |= {f"{group}/{name}": value for name, value in _figures(rank[these]).items()}
        return figures

    def _groups(self) -> Iterator[tuple[str, Bools]]:
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


def _figures(rank: npt.NDArray[np.int64]) -> dict[str, float]:
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
    heads: list[tuple[str, Callable[[Phi], Any], npt.NDArray[np.float32]]] = [
        ("", lambda phi: phi @ fitted.theta, fitted.place)
    ]
    if head is not None:
        heads.append(("mlp_", head.score, head.place))
    for prefix, score, place in heads:
        scores = judged.scores_of(score)
        figures[f"{prefix}calibration_error"] = judged.calibration_error(judged.shares(scores, place))
        found = judged.found(scores)
        figures |= {prefix + name: value for name, value in found.items() if "/" not in name and name != "n"}
    figures |= {name: value for name, value in found.items() if "/" in name}
    return figures if choices.position is None else _of_pages(figures)


def _of_pages(figures: dict[str, float]) -> dict[str, float]:
    return {name.replace(f"MRR@{K}", "shown_MRR"): value for name, value in figures.items() if f"HR@{K}" not in name}


def fit_place(scores: Scores, choices: Choices, these: Bools) -> npt.NDArray[np.float32]:
    """(PLACES,) weights of the position's features for scores (O,) that stay as they are, by Newton's method.

    So a model that was fitted elsewhere is judged with an examination of its own, as the one beside it.
    """
    offers, count, chosen = ragged(choices, np.flatnonzero(these))
    assert choices.position is not None
    x = position_features(choices.position[offers]).astype(np.float64)
    base, starts = scores[offers].astype(np.float64), np.cumsum(count) - count
    place = np.zeros(PLACES)
    for _ in range(NEWTON):
        raised = base + x @ place
        raised = np.exp(raised - np.repeat(np.maximum.reduceat(raised, starts), count))
        p = raised / np.repeat(np.add.reduceat(raised, starts), count)
        mean = np.add.reduceat(p[:, None] * x, starts)  # (B, PLACES)
        slope = (mean - x[chosen]).mean(axis=0) + RIDGE * place
        bend = (x * p[:, None]).T @ x / len(count) - mean.T @ mean / len(count) + RIDGE * np.eye(PLACES)
        place -= np.linalg.solve(bend, slope)
    return place.astype(np.float32)


def _unbiased_mrr(judged: Judged, scores: Scores, place: npt.NDArray[np.float32]) -> float:
    """Mean reciprocal rank if the eye came to every position alike: each click counts 1 / e(k), at most CLIPPED.

    Self-normalised inverse propensity weights (Joachims et al., 2017; Swaminathan and Joachims, 2015).
    """
    choices, these = judged.choices, judged.these
    assert choices.position is not None
    seen = examination(place, POSITIONS)[choices.position[judged.starts + choices.chosen]][these]
    weight = np.minimum(1.0 / seen, CLIPPED)
    return float((weight / judged.ranks(scores)).sum() / weight.sum())


def page_figures(choices: Choices, fitted: Fit, head: Head | None, serving: Scores | None) -> dict[str, float]:
    """Of choices among what pages showed: both heads, and beside them what serves now, each with its own examination.

    serving: (O,) scores of the ranker that serves now; None where there is none to compare with.
    """
    assert choices.held is not None
    judged = Judged(choices, choices.held, None)
    models: list[tuple[str, Scores, npt.NDArray[np.float32]]] = [
        ("", judged.scores_of(lambda phi: phi @ fitted.theta), fitted.place)
    ]
    if head is not None:
        models.append(("mlp_", judged.scores_of(head.score), head.place))
    if serving is not None:
        models.insert(0, ("served_", serving, fit_place(serving, choices, ~choices.held)))
    figures: dict[str, float] = {"held_out": float(choices.held.sum())}
    for prefix, scores, place in models:
        shares = judged.shares(scores, place)
        figures[f"{prefix}loss"] = judged.loss(shares)
        figures[f"{prefix}calibration_error"] = judged.calibration_error(shares)
        found = judged.found(scores)
        figures[f"{prefix}shown_MRR"] = found[f"MRR@{K}"]
        figures[f"{prefix}unbiased_MRR"] = _unbiased_mrr(judged, scores, models[-1][2])
    return figures | _of_pages({name: value for name, value in found.items() if "/" in name})


def next_figures(
    choices: Choices, score: Callable[[Phi], Any] = lambda phi: phi[:, FORESEEN, None]
) -> dict[str, float]:
    """Of what comes next among the candidates, of all choices: none of them was learnt from.

    score: of phi (n, F) the scores (n, 1); those of the history model alone where none are given.
    """
    judged = Judged(choices, np.ones(len(choices.chosen), np.bool_), choices.missed)
    found = judged.found(judged.scores_of(score))
    positions = found.pop("n")
    return {**found, "positions": positions}
