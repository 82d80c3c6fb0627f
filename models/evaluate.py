"""How well the next click is foreseen: a clickstream through the fold, the candidates, phi and the ranker that serve.

At each click of a session but the first the whole catalogue is ranked. What is no candidate comes last, and ties count
against us. Frozen: signals stay as the training part left them. Prequential: they learn from each block of sessions after
it was ranked, as a worker's do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.clickstream import Clicks
from models.phi import joint_features
from models.ranker import Ranker
from models.train.ranker import Choices, export, fit
from stream.activity import fold_with_activity
from stream.catalog import AVAILABLE, EN, ITEM, PRODUCT, ZH, Catalog, fragment_of
from stream.events import CLICK, EVENT
from stream.ids import key64
from stream.profile import blank
from stream.retrieval import Candidates, retrieve
from stream.rows import rows_at
from stream.serving import SERVING
from stream.signals import ItemTable, Signals

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
BLOCK = 64  # sessions that are ranked before the signals learn from them
QUERIES = 38_000  # of the newest sessions, positions that the ranker is fitted on; more gained little
# Where the rows of the report begin.
LENGTHS = (1, 2, 3, 5, 10)  # clicks before the one that is foreseen
POPULARITY = (0, 1, 5, 20, 100)  # clicks on it in the training part
Say = Callable[[str], None]


class Shop:
    """A shop of which only clicks are known: items without texts by their number, and what signals have learnt."""

    def __init__(self, items: Sequence[str]) -> None:
        rows: Any = np.zeros(len(items), ITEM)
        rows["id"] = [key64(id) for id in items]
        rows["expires"], rows["present"], rows["flags"] = np.inf, 1, PRODUCT | AVAILABLE | EN | ZH
        self.catalog = Catalog.of_rows(rows, [fragment_of(id) for id in items])
        self.signals = Signals(self.catalog)
        self._table = ItemTable()
        self._counted = 0  # rows of activity

    def learn(self, activity: Rows) -> None:
        """Count activity, in order of time whatever its own."""
        activity = rows_at(activity, np.argsort(activity["time"], kind="stable"))
        activity["offset"] = np.arange(self._counted, self._counted + len(activity))
        self._counted += len(activity)
        self.signals.set(self._table.rows_of(self._table.fold("clicks", 0, activity)))


class Asked(NamedTuple):
    """Positions of U sessions, and what the page would be made of."""

    click: npt.NDArray[np.int64]  # (U,) the one that is to be foreseen
    before: npt.NDArray[np.int64]  # (U,) clicks of the session before it
    candidates: Candidates
    phi: Floats  # (U, C, F)

    def targets(self, clicks: Clicks) -> npt.NDArray[np.int64]:
        """(U,) which candidate was clicked next; -1 where it is none."""
        hit = self.candidates.rows == clicks.item[self.click][:, None]  # beyond the count rows are -1
        return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def walk(
    shop: Shop, clicks: Clicks, *, ask: bool, learn: bool, first: int = 0, last: int | None = None
) -> Iterator[Asked]:
    """Sessions `first` to `last` click by click, a block of them at a time; with `ask`, what is known at each position.

    With `learn` the signals learn from a block once it has been walked through.
    """
    last = len(clicks.ends) if last is None else last
    for start in range(first, last, BLOCK):
        part = clicks.part(start, min(start + BLOCK, last))
        begins, lengths = part.starts, np.diff(part.ends, prepend=0)
        number = clicks.ends[start - 1] if start else 0  # of the block's first click
        profiles = blank(len(lengths))
        activity = []
        for k in range(lengths.max()):
            who = np.flatnonzero(lengths > k)
            at = begins[who] + k
            events: Any = np.zeros(len(who), EVENT)
            events["id"], events["kind"], events["quantity"] = at + 1, CLICK, 1
            events["item"], events["time"] = shop.catalog.items["id"][part.item[at]], part.time[at]
            events["record"] = np.arange(len(who))
            _, caused = fold_with_activity(profiles, who.astype(np.int32), events, at)
            activity.append(caused)
            asked = who[lengths[who] > k + 1]
            if ask and len(asked):
                yield _ask(shop, rows_at(profiles, asked), number + begins[asked] + k + 1, k + 1)
        if learn:
            shop.learn(np.concatenate(activity))


def _ask(shop: Shop, profiles: Rows, click: npt.NDArray[np.int64], before: int) -> Asked:
    now = profiles["last_seen"].copy()
    candidates = retrieve(profiles, now, shop.catalog, shop.signals, shop.signals.leaders(float(now.max())))
    phi = joint_features(profiles, np.zeros(len(now), SERVING), now, candidates, shop.catalog, shop.signals)
    return Asked(click, np.full(len(now), before), candidates, phi)


def gather(shop: Shop, clicks: Clicks, say: Say, queries: int = QUERIES) -> Choices:
    """Learn from all sessions; of the newest, with about `queries` positions, what was offered before each was learnt from.

    Raises ValueError where no next click was among the candidates.
    """
    positions = np.cumsum(np.diff(clicks.ends, prepend=0)[::-1] - 1)
    first = max(len(clicks.ends) - int(np.searchsorted(positions, queries)) - 1, 0)
    for _ in walk(shop, clicks, ask=False, learn=True, last=first):
        pass
    say(f"signals of {first:,} sessions learnt")
    phi: list[npt.NDArray[np.float16]] = []
    chosen: list[int] = []
    for asked in walk(shop, clicks, ask=True, learn=True, first=first):
        for u, target in enumerate(asked.targets(clicks).tolist()):
            if target >= 0:
                phi.append(asked.phi[u, : asked.candidates.count[u]].astype(np.float16))
                chosen.append(target)
    if not chosen:
        raise ValueError(
            "no click of the training part follows from those before it; sessions of one click teach nothing"
        )
    ends = np.cumsum([len(offers) for offers in phi], dtype=np.int64)
    return Choices(np.concatenate(phi), ends, np.array(chosen, np.int32))


def ranks(scores: Floats, count: npt.NDArray[np.int32], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(U,) rank, from 1, of each target among the scores (U, C) of its candidates, behind its equals; 0 for target -1."""
    own = np.take_along_axis(scores, np.maximum(targets, 0)[:, None], axis=1)
    offered = np.arange(scores.shape[1])[None, :] < count[:, None]
    found = ((scores >= own) & offered).sum(axis=1)
    return np.where(targets < 0, 0, found).astype(np.int64)


class Report(NamedTuple):
    """Of P positions."""

    rank: npt.NDArray[np.int64]  # (P,) of the next click; 0: no candidate
    before: npt.NDArray[np.int64]  # (P,) clicks before it in its session
    popularity: npt.NDArray[np.int64]  # (P,) clicks on it in the training part
    train_minutes: float
    us_per_page: float

    def figures(self, k: int) -> dict[str, float]:
        """What is compared: per cent, minutes, us."""
        hit, gain = self._of(np.ones(len(self.rank), np.bool_), k)
        return {
            f"HR@{k}": round(hit, 3), f"MRR@{k}": round(gain, 3), "positions": len(self.rank),
            "recall_candidates": round(100 * float((self.rank > 0).mean()), 3),
            "train_minutes": round(self.train_minutes, 2), "us_per_page": round(self.us_per_page, 1),
        }  # fmt: skip

    def _of(self, these: npt.NDArray[np.bool_], k: int) -> tuple[float, float]:
        rank = self.rank[these]
        hit = (rank > 0) & (rank <= k)
        return 100 * float(hit.mean()), 100 * float((hit / np.maximum(rank, 1)).mean())

    def table(self, k: int) -> str:
        """By length of the session and by popularity of the item, for people."""
        lines = [f"{'':34}{'positions':>10}{f'HR@{k}':>9}{f'MRR@{k}':>9}"]
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
                    hit, gain = self._of(these, k)
                    lines.append(f"{what + ', ' + span:34}{these.sum():>10,}{hit:>9.2f}{gain:>9.2f}")
        return "\n".join(lines)


def evaluate(
    items: Sequence[str], train: Clicks, test: Clicks, *, prequential: bool = False, limit: int | None = None,
    queries: int = QUERIES, seed: int = 1, say: Say = lambda line: None,
) -> Report:  # fmt: skip
    """Fit a ranker on `train`, rank each position of `test`, at most `limit` of them.

    items: ids by number, of both. Raises ValueError where there is too little to learn from.
    """
    began = perf_counter()
    shop = Shop(items)
    choices = gather(shop, train, say, queries)
    say(f"{len(choices.chosen):,} choices gathered, {perf_counter() - began:.0f} s")
    fitted = fit(choices, seed=seed, progress=lambda epoch, loss: say(f"epoch {epoch}: held-out loss {loss:.4f} nats"))
    minutes = (perf_counter() - began) / 60
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder), fitted, "a clickstream", "", {})
        ranker = Ranker(Path(folder))
    known = np.bincount(train.item, minlength=len(items))
    found: list[npt.NDArray[np.int64]] = []
    before: list[npt.NDArray[np.int64]] = []
    asked_for: list[npt.NDArray[np.int64]] = []
    done, spent, told = 0, 0.0, 0
    start = perf_counter()
    for asked in walk(shop, test, ask=True, learn=prequential):
        scores = ranker.score(asked.phi, asked.candidates.count)
        spent += perf_counter() - start
        found.append(ranks(scores, asked.candidates.count, asked.targets(test)))
        before.append(asked.before)
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
    clicks = np.concatenate(asked_for)
    return Report(
        np.concatenate(found)[:limit], np.concatenate(before)[:limit], known[test.item[clicks]][:limit],
        minutes, 1e6 * spent / done,
    )  # fmt: skip
