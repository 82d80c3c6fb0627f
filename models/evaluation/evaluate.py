"""How well the next click is foreseen: a clickstream through the fold, the candidates, phi and the ranker that serve.

At each click of a session but the first the whole catalogue is ranked. What is no candidate comes last, and ties count
against us. Frozen: signals stay as the training part left them. Prequential: they learn from each block of sessions after
it was ranked, as a worker's do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.data.clickstream import Clicks
from models.data.replay import Shop, walk
from models.ranker.model import Ranker
from models.train import clicks
from models.train.clicks import QUERIES
from models.train.learning_curve import Point
from models.train.progress import Say
from models.train.ranker import half_lives
from models.train.ranker.fit import export

Floats = npt.NDArray[np.float32]
# Where the rows of the report begin.
LENGTHS = (1, 2, 3, 5, 10)  # clicks before the one that is foreseen
POPULARITY = (0, 1, 5, 20, 100)  # clicks on it in the training part


def ranks(scores: Floats, count: npt.NDArray[np.int32], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(U,) rank, from 1, of each target among the scores (U, C) of its candidates, behind its equals; 0 for target -1."""
    own = np.take_along_axis(scores, np.maximum(targets, 0)[:, None], axis=1)
    offered = np.arange(scores.shape[1])[None, :] < count[:, None]
    found = ((scores >= own) & offered).sum(axis=1)
    return np.where(targets < 0, 0, found).astype(np.int64)


class Calibration(NamedTuple):
    """How far probabilities are from what comes true, in B bins of equal width."""

    said: npt.NDArray[np.float64]  # (B,) sum of the probabilities in each
    came: npt.NDArray[np.float64]  # (B,) how many of them came true
    positions: npt.NDArray[np.int64]  # (B,) how many there are

    @classmethod
    def of(cls, sure: Floats, right: npt.NDArray[np.bool_], bins: int = 15) -> Calibration:
        """sure: (P,) probabilities; right: (P,) which of them came true."""
        at = np.minimum((sure * bins).astype(np.int64), bins - 1)
        said, came = (np.bincount(at, weights, bins).astype(np.float64) for weights in (sure, right))
        return cls(said, came, np.bincount(at, minlength=bins))

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al., 2017): the mean distance in the bins, weighted by their positions."""
        return float(np.abs(self.said - self.came).sum() / max(1, self.positions.sum()))


class Row(NamedTuple):
    """Of the positions of one kind; hit and gain in per cent."""

    what: str
    positions: int
    hit: float  # HR@k
    gain: float  # MRR@k


class Report(NamedTuple):
    """Of P positions."""

    rank: npt.NDArray[np.int64]  # (P,) of the next click; 0: no candidate
    before: npt.NDArray[np.int64]  # (P,) clicks before it in its session
    popularity: npt.NDArray[np.int64]  # (P,) clicks on it in the training part
    sure: Floats  # (P,) probability that the favourite was given
    train_minutes: float
    us_per_page: float
    head: str  # of ranker.HEADS, that scored
    curves: Mapping[str, Sequence[Point]]  # how each model learnt, by name

    @property
    def calibration(self) -> Calibration:
        """Of the favourites' probabilities, where a next click that is no candidate makes all of them wrong."""
        return Calibration.of(self.sure, self.rank == 1)

    @property
    def calibration_among_candidates(self) -> Calibration:
        """The same where the next click is a candidate, as P(C|U) supposes."""
        there = self.rank > 0
        return Calibration.of(self.sure[there], self.rank[there] == 1)

    def figures(self, k: int) -> dict[str, float]:
        """What is compared: per cent, minutes, us."""
        hit, gain = self._of(np.ones(len(self.rank), np.bool_), k)
        return {
            f"HR@{k}": round(hit, 3), f"MRR@{k}": round(gain, 3), "positions": len(self.rank),
            "recall_candidates": round(100 * float((self.rank > 0).mean()), 3),
            "calibration_error": round(100 * self.calibration.error, 3),
            "calibration_error_among_candidates": round(100 * self.calibration_among_candidates.error, 3),
            "train_minutes": round(self.train_minutes, 2), "us_per_page": round(self.us_per_page, 1),
        }  # fmt: skip

    def _of(self, these: npt.NDArray[np.bool_], k: int) -> tuple[float, float]:
        rank = self.rank[these]
        hit = (rank > 0) & (rank <= k)
        return 100 * float(hit.mean()), 100 * float((hit / np.maximum(rank, 1)).mean())

    def rows(self, k: int) -> list[Row]:
        """By length of the session and by popularity of the item; kinds without a position are left out."""
        found = []
        for what, values, edges in (
            ("clicks before", self.before, LENGTHS),
            ("clicks on it in training", self.popularity, POPULARITY),
        ):
            for low, high in zip(edges, [*edges[1:], None], strict=True):
                these = (values >= low) & ((values < high) if high is not None else True)
                if these.any():
                    span = (
                        f"{low}" if high == low + 1 else f"{low} and more" if high is None else f"{low} to {high - 1}"
                    )
                    found.append(Row(f"{what}, {span}", int(these.sum()), *self._of(these, k)))
        return found

    def table(self, k: int) -> str:
        """The rows, for people."""
        lines = [f"{'':34}{'positions':>10}{f'HR@{k}':>9}{f'MRR@{k}':>9}"]
        lines += [f"{row.what:34}{row.positions:>10,}{row.hit:>9.2f}{row.gain:>9.2f}" for row in self.rows(k)]
        return "\n".join(lines)


def evaluate(
    items: Sequence[str], train: Clicks, test: Clicks, *, prequential: bool = False, limit: int | None = None,
    queries: int = QUERIES, seed: int = 1, head: str = "mlp", history: bool = True, say: Say = lambda line: None,
) -> Report:  # fmt: skip
    """Fit history model and ranker on `train`, rank each position of `test`, at most `limit` of them.

    items: ids by number, of both. head: of ranker.HEADS; the MLP needs torch, without which the logit stands in.
    Raises ValueError where there is too little to learn from.
    """
    began = perf_counter()
    shop = Shop(items, half_lives=half_lives.choose(partial(Shop, items), train, say))
    fitted = clicks.train(shop, train, say, queries=queries, seed=seed, history=history)
    minutes = (perf_counter() - began) / 60
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), fitted.logit, "a clickstream", "", {}, fitted.head)
        head = head if fitted.head is not None else "logit"
        ranker = Ranker(Path(folder), head)
    known = np.bincount(train.item, minlength=len(items))
    found: list[npt.NDArray[np.int64]] = []
    before: list[npt.NDArray[np.int64]] = []
    asked_for: list[npt.NDArray[np.int64]] = []
    sure: list[Floats] = []
    done, spent, told = 0, 0.0, 0
    start = perf_counter()
    for asked in walk(shop, test, ask=True, learn=prequential):
        scores = ranker.score(asked.phi, asked.candidates.count)
        spent += perf_counter() - start
        found.append(ranks(scores, asked.candidates.count, asked.targets(test)))
        before.append(asked.before)
        sure.append(scores.max(axis=1))
        asked_for.append(asked.click)
        done += len(asked.click)
        if done // 10_000 > told:
            told = done // 10_000
            say(f"{done:,} positions ranked")
        if limit is not None and done >= limit:
            break
        start = perf_counter()
    if not done:
        raise ValueError("no session of the test has a second click, so that there is nothing to foresee")
    at = np.concatenate(asked_for)
    return Report(
        np.concatenate(found)[:limit], np.concatenate(before)[:limit], known[test.item[at]][:limit],
        np.concatenate(sure)[:limit], minutes, 1e6 * spent / done, head, fitted.curves,
    )  # fmt: skip
