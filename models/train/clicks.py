"""Train the models that predict the next click from a clickstream or an event log: history model and ranker heads."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.data.clickstream import Clicks
from models.data.event_log import EventLog
from models.data.replay import EventSource, OfflineShop, RankingQuery, replay_sessions
from models.history.model import History
from models.ranker.columns import F
from models.train.history.sequences import InteractionSequences
from models.train.learning_curve import Point
from models.train.progress import LogLine, progress_logger
from models.train.ranker.fit import Choices, Fit
from models.train.ranker.graph import Head
from models.train.ranker.heads import fit_heads
from models.train.step_cache import StepCache
from stream.types import I64

if TYPE_CHECKING:
    from models.train.history.trainer import Trainer

# Positions of the newest sessions that the ranker is fitted on. More gained little.
QUERIES = 38_000
NEWEST_SHARE = 0.3  # largest share of all sessions that those positions are taken from
EPOCHS = 8  # of the history model
# Number of stages in which the newest sessions are queried. After a stage, the history model learns from its sessions.
STAGES = 4
TUNING_EPOCHS = 2  # of the history model after a stage
# Batches hold 64 to 256 sessions, so that an epoch has about this many.
BATCHES_PER_EPOCH = 450
WITHOUT_TORCH = (
    "torch is not installed, so neither a history model nor an MLP head is trained; both predict better: "
    "make setup-train"
)
# Attributes that group choices: earlier steps of the session, and clicks on the chosen item in the training sessions.
GROUP_FIELDS = np.dtype([("before", "i4"), ("popularity", "i4")])


class TrainedModels(NamedTuple):
    """Models trained on clicks. head and trainer are None without torch."""

    logit: Fit
    head: Head | None
    choices: Choices
    trainer: Trainer | None  # of the history model that serves
    curves: dict[str, list[Point]]  # by model; for the history model, those of the model that is evaluated


def train(
    shop: OfflineShop, sessions: Clicks | EventLog, log: LogLine, *, queries: int = QUERIES, seed: int = 1,
    history: bool = True, cache: StepCache | None = None,
) -> TrainedModels:  # fmt: skip
    """Train the shop's history model, if wanted and torch is installed, and fit the ranker heads.

    Two history models are trained. The one that is evaluated never sees a session before it is queried; its scores are
    features of the choices. The one that serves learns from all sessions alike. Raises ValueError if there are too few
    choices.
    """
    has_torch = find_spec("torch") is not None
    if history and not has_torch:
        log(WITHOUT_TORCH)
    evaluated = _new_trainer(shop, sessions, "history", seed) if history and has_torch else None
    choices = gather_choices(shop, sessions, log, queries, evaluated, cache)
    log(f"{len(choices.chosen):,} choices gathered")
    trainer = None
    if evaluated is not None:
        trainer = _new_trainer(shop, sessions, "history of all", seed)
        sequences = InteractionSequences.of_sessions(sessions, 0, len(sessions.ends))
        trainer.init_vectors(sequences)
        trainer.learn(sequences, EPOCHS, log, cache=cache)
        shop.history = _load_exported(trainer, shop)
    curves: dict[str, list[Point]] = {"logit": [], "MLP": [], "history model": evaluated.curve if evaluated else []}
    logit, head = fit_heads(choices, log, seed=seed, cache=cache, curves=curves)
    return TrainedModels(logit, head, choices, trainer, curves)


def gather_choices(
    shop: OfflineShop, sessions: Clicks | EventLog, log: LogLine, queries: int = QUERIES,
    trainer: Trainer | None = None, cache: StepCache | None = None,
) -> Choices:  # fmt: skip
    """Learn from all sessions, and return the choices at about `queries` positions of the newest ones.

    Each position is queried before anything is learnt from its session. The history model of `trainer` is tuned on each
    of STAGES parts of the newest sessions after that part was queried, so that it is as old at a query as in serving.
    Raises ValueError if no target is among its candidates.
    """
    count = len(sessions.ends)
    first = max(sessions.first_of_newest(queries), int((1 - NEWEST_SHARE) * count))
    progress = progress_logger("sessions learnt", log)
    for _ in replay_sessions(shop, sessions, query=False, learn=True, last=first, progress=progress):
        pass
    log(f"signals of {first:,} sessions learnt")
    if trainer is not None and first:
        known = InteractionSequences.of_sessions(sessions, 0, first)
        trainer.init_vectors(known)
        held_out = InteractionSequences.of_sessions(sessions, first, count)
        trainer.learn(known, EPOCHS, log, cache=cache, held_out=held_out)
    stages = np.linspace(first, count, STAGES + 1).astype(int).tolist()
    gathered = []
    for number, (start, end) in enumerate(pairwise(stages)):
        gathered.append(_gather_stage(shop, sessions, log, trainer, cache, number, start, end))
        if trainer is not None and start < end < count:
            stage = InteractionSequences.of_sessions(sessions, start, end)
            trainer.learn(stage, TUNING_EPOCHS, log, tune=True, cache=cache)
    choices = Choices.joined(gathered)
    if not len(choices.chosen):
        raise ValueError(
            "no click of the training part follows from the clicks before it; sessions of one click teach nothing"
        )
    return choices


def _gather_stage(
    shop: OfflineShop, sessions: Clicks | EventLog, log: LogLine, trainer: Trainer | None, cache: StepCache | None,
    number: int, start: int, end: int,
) -> Choices:  # fmt: skip
    """Choices of sessions `start` to `end`, from the cache if the stage is finished.

    The signals learn from these sessions in either case.
    """
    step = f"choices-{number}"
    stored = cache.load(step) if cache is not None else None
    if stored is not None:
        for _ in replay_sessions(shop, sessions, query=False, learn=True, first=start, last=end):
            pass
        return Choices(**stored)
    if trainer is not None and start:
        shop.history = _load_exported(trainer, shop)
    popularity = item_counts(sessions, start, len(shop.catalog))
    progress = progress_logger(f"sessions queried, part {number + 1} of {STAGES}", log)
    queries = replay_sessions(shop, sessions, query=True, learn=True, first=start, last=end, progress=progress)
    choices = choices_of(queries, sessions, popularity)
    if cache is not None:
        cache.save(step, choices.arrays())
    return choices


def item_counts(source: EventSource, sessions: int, items: int) -> I64:
    """(items,) number of events on each item in the first `sessions` sessions."""
    events = source.item[: source.ends[sessions - 1]] if sessions else np.zeros(0, np.int32)
    # Events without an item have -1.
    return np.bincount(events + 1, minlength=items + 1)[1:]


def choices_of(queries: Iterable[RankingQuery], source: EventSource, popularity: I64) -> Choices:
    """Choices at the queries whose target is a candidate; phi is stored as float16.

    popularity: (V,) clicks on each item. Targets that are not among the candidates are returned as `missed`.
    """
    phi: list[npt.NDArray[np.float16]] = [np.empty((0, F), np.float16)]
    chosen: list[int] = []
    groups, is_hit = [np.zeros(0, GROUP_FIELDS)], [np.zeros(0, np.bool_)]
    for query in queries:
        rows: Any = np.zeros(len(query.target_event), GROUP_FIELDS)
        rows["before"], rows["popularity"] = query.steps_before, popularity[source.item[query.target_event]]
        groups.append(rows)
        columns = query.target_columns(source)
        is_hit.append(columns >= 0)
        for u, column in enumerate(columns.tolist()):
            if column >= 0:
                phi.append(query.phi[u, : query.candidates.count[u]].astype(np.float16))
                chosen.append(column)
    ends = np.cumsum([len(offers) for offers in phi[1:]], dtype=np.int64)
    group, hit = np.concatenate(groups), np.concatenate(is_hit)
    return Choices(np.concatenate(phi), ends, np.array(chosen, np.int32), about=group[hit], missed=group[~hit])


def _new_trainer(shop: OfflineShop, sessions: Clicks | EventLog, name: str, seed: int) -> Trainer:
    from models.train.history.graph import Shape
    from models.train.history.trainer import Trainer

    batch = min(max(len(sessions.ends) // BATCHES_PER_EPOCH, 64), 256)
    return Trainer(shop.catalog.items[: len(shop.catalog)], Shape(), batch=batch, seed=seed, name=name)


def _load_exported(trainer: Trainer, shop: OfflineShop) -> History:
    """The trainer's model as it serves, exported and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        trainer.export(Path(folder), data="a clickstream", created="", metrics={})
        return History(Path(folder), shop.catalog)
