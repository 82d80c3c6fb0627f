"""Fit all that foresees clicks on a clickstream or a log of events: the history model, and the ranker's heads on what it and the signals say."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.data.clickstream import Clicks
from models.data.event_log import EventLog
from models.data.replay import EventSource, RankingQuery, Shop, walk
from models.history.model import History
from models.ranker.features import F
from models.train.history.sequences import InteractionSequences
from models.train.learning_curve import Point
from models.train.progress import Say, of_stretch
from models.train.ranker.fit import Choices, Fit
from models.train.ranker.graph import Head
from models.train.ranker.heads import fit_heads
from models.train.step_cache import StepCache

if TYPE_CHECKING:
    from models.train.history.trainer import Trainer

QUERIES = 38_000  # of the newest sessions, positions that the ranker is fitted on; more gained little
NEWEST = 0.3  # of all sessions, at most so many of them
EPOCHS, TUNING = 8, 2  # of the history model
STAGES = 4  # in which it goes on learning from the newest sessions while it is judged
BATCHES = 450  # of an epoch, where they are of 64 to 256 sessions
WITHOUT_TORCH = "torch is not installed, so there is neither a history model nor an MLP head, which foresee better: make setup-train"
# Of a choice: steps of its session before it, clicks on its item in the sessions that were learnt from.
ABOUT = np.dtype([("before", "i4"), ("popularity", "i4")])


def gather(
    shop: Shop, clicks: Clicks | EventLog, say: Say, queries: int = QUERIES, trainer: Trainer | None = None,
    finished: StepCache | None = None,
) -> Choices:  # fmt: skip
    """Learn from all sessions; of the newest, with about `queries` positions, what was offered before each was learnt from.

    While it is judged the history model is never asked for sessions that it has seen: it goes on learning from each of
    STAGES parts of the newest sessions once they were walked through, as old when it is asked as it will be in serving.
    Raises ValueError where no next click was among the candidates.
    """
    first = max(clicks.first_of_newest(queries), int((1 - NEWEST) * len(clicks.ends)))
    for _ in walk(shop, clicks, ask=False, learn=True, last=first, progress=of_stretch("sessions learnt", say)):
        pass
    say(f"signals of {first:,} sessions learnt")
    if trainer is not None and first:
        seen, following = _behaviour(clicks, 0, first), _behaviour(clicks, first, len(clicks.ends))
        trainer.start(seen)
        trainer.learn(seen, EPOCHS, say, finished=finished, held_out=following)
    stages = np.linspace(first, len(clicks.ends), STAGES + 1).astype(int).tolist()
    gathered: list[Choices] = []
    for number, (start, end) in enumerate(pairwise(stages)):
        name = f"choices-{number}"
        kept = finished.get(name) if finished is not None else None
        if kept is not None:
            gathered.append(Choices(**kept))
            for _ in walk(shop, clicks, ask=False, learn=True, first=start, last=end):
                pass
        else:
            if trainer is not None and start:
                shop.history = _served(trainer, shop)
            known = np.bincount(
                clicks.item[: clicks.ends[start - 1]] + 1 if start else [], minlength=len(shop.catalog) + 1
            )
            progress = of_stretch(f"sessions of part {number + 1} of {STAGES} asked for", say)
            asked = walk(shop, clicks, ask=True, learn=True, first=start, last=end, progress=progress)
            gathered.append(offered(asked, clicks, known[1:]))
            if finished is not None:
                finished.put(name, gathered[-1].arrays())
        if trainer is not None and start < end < len(clicks.ends):
            trainer.learn(_behaviour(clicks, start, end), TUNING, say, tune=True, finished=finished)
    choices = Choices.joined(gathered)
    if not len(choices.chosen):
        raise ValueError(
            "no click of the training part follows from those before it; sessions of one click teach nothing"
        )
    return choices


def _behaviour(clicks: Clicks | EventLog, first: int, last: int) -> InteractionSequences:
    """Of sessions `first` to `last`."""
    if isinstance(clicks, Clicks):
        return InteractionSequences.of_clicks(clicks.part(first, last))
    return InteractionSequences.of_events(clicks, first, last)


def offered(positions: Iterator[RankingQuery], clicks: EventSource, known: npt.NDArray[np.int64]) -> Choices:
    """Of the positions whose next click is among the candidates, what was offered; float16. known (V,) clicks on each item."""
    phi: list[npt.NDArray[np.float16]] = [np.empty((0, F), np.float16)]
    chosen: list[int] = []
    about, found = [np.zeros(0, ABOUT)], [np.zeros(0, np.bool_)]
    for asked in positions:
        rows: Any = np.zeros(len(asked.click), ABOUT)
        rows["before"], rows["popularity"] = asked.before, known[clicks.item[asked.click]]
        about.append(rows)
        targets = asked.targets(clicks)
        found.append(targets >= 0)
        for u, target in enumerate(targets.tolist()):
            if target >= 0:
                phi.append(asked.phi[u, : asked.candidates.count[u]].astype(np.float16))
                chosen.append(target)
    ends = np.cumsum([len(offers) for offers in phi[1:]], dtype=np.int64)
    all_about, hit = np.concatenate(about), np.concatenate(found)
    return Choices(np.concatenate(phi), ends, np.array(chosen, np.int32), about=all_about[hit], missed=all_about[~hit])


class Fitted(NamedTuple):
    """What foresees clicks. head and trainer are None where there is no torch."""

    logit: Fit
    head: Head | None
    choices: Choices
    trainer: Trainer | None  # of the history model that serves
    curves: dict[str, list[Point]]  # of each, by name; of the history model that was judged


def train(
    shop: Shop, clicks: Clicks | EventLog, say: Say, *, queries: int = QUERIES, seed: int = 1, history: bool = True,
    finished: StepCache | None = None,
) -> Fitted:  # fmt: skip
    """Train the shop's history model, if wanted and torch is there, and fit the heads.

    Raises ValueError where there is too little to learn from.
    """
    torch = find_spec("torch") is not None
    if history and not torch:
        say(WITHOUT_TORCH)
    judged = _trainer(shop, clicks, "history", seed) if history and torch else None
    choices = gather(shop, clicks, say, queries, judged, finished)
    say(f"{len(choices.chosen):,} choices gathered")
    trainer = None
    if judged is not None:
        # What was judged has learnt the newest sessions in passing; what serves learns from all alike.
        trainer = _trainer(shop, clicks, "history of all", seed)
        every = _behaviour(clicks, 0, len(clicks.ends))
        trainer.start(every)
        trainer.learn(every, EPOCHS, say, finished=finished)
        shop.history = _served(trainer, shop)
    curves: dict[str, list[Point]] = {"logit": [], "MLP": [], "history model": judged.curve if judged else []}
    logit, head = fit_heads(choices, say, seed=seed, finished=finished, curves=curves)
    return Fitted(logit, head, choices, trainer, curves)


def _trainer(shop: Shop, clicks: Clicks | EventLog, name: str, seed: int) -> Trainer:
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    batch = min(max(len(clicks.ends) // BATCHES, 64), 256)
    return Trainer(shop.catalog.items[: len(shop.catalog)], Shape(), batch=batch, seed=seed, name=name)


def _served(trainer: Trainer, shop: Shop) -> History:
    """The model as it serves: by way of its files."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.export(Path(folder), data="a clickstream", created="", metrics={})
        return History(Path(folder), shop.catalog)
