"""Evaluation of next-click prediction: a clickstream through the fold, candidates, phi and ranker that serve.

At each click of a session but the first, the whole catalogue is ranked. Items that are not candidates come last, and
ties count against us. With the frozen protocol the signals stay as training left them. With the prequential protocol
they learn from each block of sessions after it was ranked, as a worker's signals do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from models.data.clickstream import Clicks
from models.data.replay import OfflineShop, replay_sessions
from models.ranker.model import Ranker
from models.train import clicks
from models.train.clicks import QUERIES, TrainedModels
from models.train.learning_curve import Point
from models.train.progress import LogLine
from models.train.ranker import half_lives
from models.train.ranker.fit import export
from stream.types import F32, F64, I32, I64, Bools

# Lower bounds of the groups in reports.
LENGTHS = (1, 2, 3, 5, 10)  # clicks of the session before the target
POPULARITY = (0, 1, 5, 20, 100)  # clicks on the target item in the training part
CALIBRATION_BINS = 15
PROGRESS_POSITIONS = 10_000  # between two progress lines


def ranks(scores: F32, count: I32, targets: I64) -> I64:
    """(U,) rank, from 1, of each target among the scores (U, C) of its candidates; 0 for target -1.

    count: (U,) number of candidates. A target ranks behind candidates with the same score.
    """
    own = np.take_along_axis(scores, np.maximum(targets, 0)[:, None], axis=1)
    is_candidate = np.arange(scores.shape[1])[None, :] < count[:, None]
    rank = ((scores >= own) & is_candidate).sum(axis=1)
    return np.where(targets < 0, 0, rank).astype(np.int64)


def hit_and_reciprocal_rank(rank: I64, k: int) -> tuple[float, float]:
    """HR@k and MRR@k, from 0 to 1, of ranks (P,) from 1; 0 is a miss."""
    is_hit = (rank > 0) & (rank <= k)
    return float(is_hit.mean()), float((is_hit / np.maximum(rank, 1)).mean())


class Calibration(NamedTuple):
    """Probabilities compared with outcomes, in B bins of equal width."""

    probability_sum: F64  # (B,)
    successes: F64  # (B,)
    positions: I64  # (B,)

    @classmethod
    def of(cls, probability: F32, is_success: Bools, bins: int = CALIBRATION_BINS) -> Calibration:
        """probability, is_success: (P,)."""
        bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)
        sums, successes = (
            np.bincount(bin_of, weights, bins).astype(np.float64) for weights in (probability, is_success)
        )
        return cls(sums, successes, np.bincount(bin_of, minlength=bins))

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al., 2017): mean distance of the bins, weighted by their positions."""
        return float(np.abs(self.probability_sum - self.successes).sum() / max(1, self.positions.sum()))


class Row(NamedTuple):
    """Figures of one group of positions, in per cent."""

    group: str
    positions: int
    hit_rate: float  # HR@k
    mrr: float  # MRR@k


class Report(NamedTuple):
    """Results at P positions."""

    rank: I64  # (P,) of the next click; 0 if it was not a candidate
    steps_before: I64  # (P,) clicks before it in its session
    popularity: I64  # (P,) clicks on its item in the training part
    top_probability: F32  # (P,) probability of the top-ranked candidate
    train_minutes: float
    us_per_page: float
    head: str  # one of ranker.HEADS
    curves: Mapping[str, Sequence[Point]]  # learning curve by model

    @property
    def calibration(self) -> Calibration:
        """Calibration of the top-ranked candidate. If the next click was not a candidate, no prediction was right."""
        return Calibration.of(self.top_probability, self.rank == 1)

    @property
    def calibration_among_candidates(self) -> Calibration:
        """The same for positions whose next click was a candidate, as P(C|U) assumes."""
        is_candidate = self.rank > 0
        return Calibration.of(self.top_probability[is_candidate], self.rank[is_candidate] == 1)

    def figures(self, k: int) -> dict[str, float]:
        """Figures to compare: per cent, minutes, microseconds."""
        hit_rate, mrr = self._percent(np.ones(len(self.rank), np.bool_), k)
        return {
            f"HR@{k}": round(hit_rate, 3),
            f"MRR@{k}": round(mrr, 3),
            "positions": len(self.rank),
            "recall_candidates": round(100 * float((self.rank > 0).mean()), 3),
            "calibration_error": round(100 * self.calibration.error, 3),
            "calibration_error_among_candidates": round(100 * self.calibration_among_candidates.error, 3),
            "train_minutes": round(self.train_minutes, 2),
            "us_per_page": round(self.us_per_page, 1),
        }

    def _percent(self, these: Bools, k: int) -> tuple[float, float]:
        hit_rate, mrr = hit_and_reciprocal_rank(self.rank[these], k)
        return 100 * hit_rate, 100 * mrr

    def rows(self, k: int) -> list[Row]:
        """By length of the session and by popularity of the item; groups without positions are left out."""
        found = []
        for what, values, bounds in (
            ("clicks before", self.steps_before, LENGTHS),
            ("clicks on it in training", self.popularity, POPULARITY),
        ):
            for low, high in zip(bounds, [*bounds[1:], None], strict=True):
                these = (values >= low) & ((values < high) if high is not None else True)
                if these.any():
                    group = f"{what}, {_span(low, high)}"
                    found.append(Row(group, int(these.sum()), *self._percent(these, k)))
        return found

    def table(self, k: int) -> str:
        """The rows as text."""
        lines = [f"{'':34}{'positions':>10}{f'HR@{k}':>9}{f'MRR@{k}':>9}"]
        lines += [f"{row.group:34}{row.positions:>10,}{row.hit_rate:>9.2f}{row.mrr:>9.2f}" for row in self.rows(k)]
        return "\n".join(lines)


def _span(low: int, high: int | None) -> str:
    """Text of the range from low to high, exclusive."""
    if high is None:
        return f"{low} and more"
    return f"{low}" if high == low + 1 else f"{low} to {high - 1}"


def evaluate(
    items: Sequence[str], train: Clicks, test: Clicks, *, prequential: bool = False, limit: int | None = None,
    queries: int = QUERIES, seed: int = 1, head: str = "mlp", history: bool = True,
    log: LogLine = lambda line: None,
) -> Report:  # fmt: skip
    """Train history model and ranker on `train`, and rank at the positions of `test`, at most `limit` of them.

    items: ids by number, of both parts. head: one of ranker.HEADS; the MLP needs torch, and without it the logit is
    used. log: receives progress lines. Raises ValueError if there is too little data.
    """
    began = perf_counter()
    shop = OfflineShop(items, half_lives=half_lives.choose(partial(OfflineShop, items), train, log))
    models = clicks.train(shop, train, log, queries=queries, seed=seed, history=history)
    minutes = (perf_counter() - began) / 60
    ranker, used_head = _load_ranker(models, head)
    popularity = np.bincount(train.item, minlength=len(items))
    rank: list[I64] = []
    steps_before: list[I64] = []
    target_events: list[I64] = []
    top_probability: list[F32] = []
    done, spent, logged = 0, 0.0, 0
    start = perf_counter()
    for query in replay_sessions(shop, test, query=True, learn=prequential):
        scores = ranker.score(query.phi, query.candidates.count)
        spent += perf_counter() - start
        rank.append(ranks(scores, query.candidates.count, query.target_columns(test)))
        steps_before.append(query.steps_before)
        top_probability.append(scores.max(axis=1))
        target_events.append(query.target_event)
        done += len(query.target_event)
        if done // PROGRESS_POSITIONS > logged:
            logged = done // PROGRESS_POSITIONS
            log(f"{done:,} positions ranked")
        if limit is not None and done >= limit:
            break
        start = perf_counter()
    if not done:
        raise ValueError("no session of the test part has a second click, so there is nothing to predict")
    return Report(
        rank=np.concatenate(rank)[:limit],
        steps_before=np.concatenate(steps_before)[:limit],
        popularity=popularity[test.item[np.concatenate(target_events)]][:limit],
        top_probability=np.concatenate(top_probability)[:limit],
        train_minutes=minutes,
        us_per_page=1e6 * spent / done,
        head=used_head,
        curves=models.curves,
    )


def _load_ranker(models: TrainedModels, head: str) -> tuple[Ranker, str]:
    """The trained ranker as it serves, exported and loaded again; and the head that it uses."""
    used_head = head if models.head is not None else "logit"
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), models.logit, "a clickstream", "", {}, models.head)
        return Ranker(Path(folder), used_head), used_head
