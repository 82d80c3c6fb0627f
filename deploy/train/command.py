"""`shopwindow train`: train models on clicks, events or impressions, or the shipped models on simulated shoppers.

A training that was stopped resumes with the same command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploy.io.files import InputError
from deploy.train.impressions import train_on_impressions
from deploy.train.inputs import data_kind, files_hash, read_catalog, read_events, source_of
from deploy.train.recipe import EPOCHS, ROUNDS, SHAPE, SHOPS, history_recipe, ranker_recipe
from deploy.train.simulation import UniformScorer, simulate
from models.data.clickstream import Clicks, read
from models.data.event_log import EventLog, collect_items
from models.data.replay import OfflineShop, replay_sessions
from models.evaluation.metrics import logit_scorer, next_figures, ranker_figures
from models.history.model import History
from models.manifest import load
from models.ranker.model import Ranker, Scorer
from models.train.clicks import choices_of, item_counts
from models.train.history.sequences import InteractionSequences
from models.train.ranker.fit import Choices, export
from models.train.ranker.heads import fit_heads
from models.train.recipe import with_environment
from models.train.step_cache import Arrays, StepCache
from stream.logs import say
from stream.name_patterns import NO_NAMES, NamePatterns, name_patterns
from stream.settings import Settings
from stream.types import Rows

# `limits` texts of manifests.
RANKER_LIMITS = (
    "Fitted on what the data's shoppers chose from what they were offered; of another shop it is a beginning."
)
NEVER_SHOWN = " What pages showed in vain is not in the data, so that features of it have no weight."


class NoTorch(RuntimeError):
    def __init__(self) -> None:
        super().__init__("training needs torch, which is not installed: make setup-train, then run it again")


def train(
    what: str, data: Sequence[Path], out: Path, settings: Settings, *, shoppers: int, looks: int, seed: int,
    catalog: Path | None = None, impressions: bool = False,
) -> list[Path]:  # fmt: skip
    """Train `what` (one of manifest.KINDS, or "all") into folders of that name in `out`, and return these folders.

    data: a clickstream, or an event log with an optional catalogue of its items. impressions: train on the impressions
    in data, or of the broker without data. Without data and impressions, train on simulated shoppers. A ranker that is
    trained alone on simulated shoppers uses the history model in `out` or else the one that serves.

    Progress goes to stderr. Raises NoTorch, ClickstreamError, InputError, and ValueError if there is too little data.
    """
    _check_arguments(what, data, catalog, impressions)
    if find_spec("torch") is None:
        raise NoTorch
    if impressions:
        return [train_on_impressions(settings, data, out, seed, _now(), say)]
    if data:
        return _train_on_clicks(what, data, catalog, out, seed, settings.exclude_shoppers)
    folders = []
    if what in ("history", "all"):
        folders.append(_train_history_on_simulation(out / "history", shoppers, looks, seed))
    if what in ("copywriter", "all"):
        folders.append(_train_copywriter(out / "copywriter", seed))
    if what in ("ranker", "all"):
        candidates = (out / "history", settings.models_dir / "history")
        history = next((path for path in candidates if path.is_dir()), None)
        folders.append(_train_ranker_on_simulation(out / "ranker", history, shoppers, looks, seed + SHOPS))
    return folders


def _check_arguments(what: str, data: Sequence[Path], catalog: Path | None, impressions: bool) -> None:
    """Raises ValueError if the data cannot train `what`, InputError if they cannot be read."""
    kind = data_kind(data) if data else None
    if impressions and what != "ranker":
        raise ValueError(
            f"impressions record choices from pages, which only a ranker learns from; train ranker, not {what}"
        )
    if kind == "impressions" and not impressions:
        raise ValueError(
            f"{', '.join(map(str, data))}: these are impressions; use `train ranker --impressions` to train on them"
        )
    if impressions and kind == "clickstream":
        raise ValueError(
            "a clickstream has no pages; with --impressions, --data takes JSON lines of impressions and events"
        )
    if catalog is not None and (kind != "events" or impressions):
        raise ValueError("--catalog describes the items of an event log in --data; leave it out here")
    if data and what == "copywriter":
        raise ValueError("a copywriter is trained on generated texts, not on clicks; leave --data out")


def _train_copywriter(folder: Path, seed: int) -> Path:
    from models.train.copywriter import trainer as copywriter

    copywriter.train(folder, copywriter.Plan(seed), say)
    return folder


def _train_on_clicks(
    what: str, data: Sequence[Path], catalog: Path | None, out: Path, seed: int, exclude_shoppers: str
) -> list[Path]:
    from models.train import clicks
    from models.train.ranker import half_lives

    inputs = _load_inputs(data, catalog, name_patterns(exclude_shoppers))
    source = source_of([*data, *([catalog] if catalog else [])], inputs.sessions.time)
    with StepCache(out, f"{what} {source.hash} {seed} {exclude_shoppers}".rstrip(), say) as cache:
        shop = inputs.shop_with(half_lives=half_lives.choose_once(inputs.shop_with, inputs.sessions, say, cache))
        models = clicks.train(shop, inputs.sessions, say, seed=seed, cache=cache)
        folders = []
        if what in ("ranker", "all"):
            folders.append(out / "ranker")
            figures = ranker_figures(models.choices, models.logit, models.head, seed)
            figures["choices"] = float(len(models.choices.chosen))
            _log_figures("ranker", figures)
            export(
                folders[-1],
                models.logit,
                inputs.description,
                _now(),
                figures,
                models.head,
                RANKER_LIMITS + NEVER_SHOWN,
                source,
                half_lives=shop.half_lives,
                history=None if shop.history is None else shop.history.version,
            )
        if what in ("history", "all") and models.trainer is not None:
            folders.append(out / "history")
            figures = {"loss": models.trainer.loss, **next_figures(models.choices)}
            _log_figures("history", figures)
            models.trainer.export(folders[-1], data=inputs.description, created=_now(), metrics=figures, source=source)
    return folders


class _Inputs(NamedTuple):
    """Training data of clicks or events."""

    shop_with: Callable[..., OfflineShop]  # takes half_lives
    sessions: Clicks | EventLog
    description: str  # the `data` text of manifests


def _load_inputs(data: Sequence[Path], catalog: Path | None, excluded_shoppers: NamePatterns = NO_NAMES) -> _Inputs:
    """Read a clickstream or an event log. Raises the errors of `train`."""
    names = ", ".join(path.name for path in data)
    if data_kind(data) == "clickstream":
        streams = read(data)
        clicks = streams.joined()
        return _Inputs(partial(OfflineShop, streams.items), clicks, f"{len(clicks.item):,} clicks of {names}")
    known = None if catalog is None else read_catalog(catalog, say)
    events = read_events(data, say, excluded_shoppers)
    items = collect_items(events.rows, known)
    if not len(items):
        raise InputError(f"{names}: no event names an item, so there is nothing to predict")
    log = EventLog.of_rows(events.rows, items)
    count = int((log.events["part"] == 0).sum())
    description = f"{count:,} events of {len(np.unique(log.shopper)):,} shoppers in {names}"
    say(f"{description}: {len(log.ends):,} sessions, {int(log.is_target.sum()):,} choices, {len(items):,} items")
    if events.refused:
        description += f", {events.refused:,} lines refused"
    if events.erased:
        description += f", {events.erased:,} events of shoppers who asked to be erased left out"
    return _Inputs(partial(OfflineShop, _ids_of(items), items), log, description)


def _ids_of(items: Rows) -> list[str]:
    """Names for items of which only key64 is known."""
    return [str(id) for id in items["id"].tolist()]


def _log_figures(kind: str, figures: Mapping[str, float]) -> None:
    """Log the figures that are not of a group."""
    say(f"{kind}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if "/" not in name))


def _train_history_on_simulation(folder: Path, shoppers: int, looks: int, seed: int) -> Path:
    """Train a history model on attributes alone, because every shop has its own items."""
    from models.train.history.trainer import Trainer

    with StepCache(folder, f"history {shoppers} {looks} {seed}", say) as cache:
        items, sequences = _simulate_shops(shoppers, looks, seed, cache)
        trainer = Trainer(items, SHAPE, seed=seed)
        loss = trainer.learn(sequences, EPOCHS, say, cache=cache)
        description = (
            f"{len(sequences.item)} interactions of simulated shoppers in {SHOPS} shops of the demo, "
            f"seeds {seed} to {seed + SHOPS - 1}"
        )
        trainer.export(folder, created=_now(), metrics={"loss": loss}, data=description)
        unseen_seed = seed + SHOPS + ROUNDS
        choices = _choices_in_unseen_shop(folder, shoppers, looks, unseen_seed, cache)
        figures = {"loss": loss, **next_figures(choices)}
        _log_figures("history", figures)
        trainer.export(
            folder,
            created=_now(),
            metrics=figures,
            recipe=with_environment(history_recipe(shoppers, looks, seed)),
            data=f"{description}; judged by what came next in a shop unseen, seed {unseen_seed}",
        )
    return folder


def _simulate_shops(shoppers: int, looks: int, seed: int, cache: StepCache) -> tuple[Rows, InteractionSequences]:
    """(V,) ITEM of SHOPS simulated shops, and the interactions of their shoppers with random pages."""
    all_items: list[Rows] = []
    all_sequences: list[InteractionSequences] = []
    for shop in range(SHOPS):

        def compute(shop_seed: int = seed + shop) -> Arrays:
            simulation = simulate(UniformScorer(), shoppers, looks, shop_seed)
            return {"items": simulation.items, **simulation.sequences._asdict()}

        arrays = cache.load_or_compute(f"shop-{shop}", compute)
        all_items.append(arrays.pop("items"))
        all_sequences.append(InteractionSequences(**arrays))
        say(f"shop {shop + 1} of {SHOPS}: {len(all_sequences[-1].item):,} interactions")
    shifts = np.cumsum([0, *(len(items) for items in all_items[:-1])]).tolist()
    return np.concatenate(all_items), InteractionSequences.joined(all_sequences, shifts)


def _train_ranker_on_simulation(folder: Path, history: Path | None, shoppers: int, looks: int, seed: int) -> Path:
    """Train a ranker in ROUNDS shops that the history model has not seen, as it will not have seen any real shop."""
    inputs = f"ranker {shoppers} {looks} {seed} {files_hash(sorted(history.iterdir()) if history else [])}"
    with StepCache(folder, inputs, say) as cache:
        recipe = with_environment(ranker_recipe(shoppers, looks, seed, history))
        scorer: Scorer = UniformScorer()
        gathered: list[Choices] = []
        for turn in range(ROUNDS):

            def compute(shop_seed: int = seed + turn, scorer: Scorer = scorer) -> Arrays:
                simulation = simulate(scorer, shoppers, looks, shop_seed, history=history)
                counts = {"looks": np.array(simulation.looks), "clicked": np.array(simulation.looks_with_click)}
                return {**counts, **simulation.choices.arrays()}

            arrays = cache.load_or_compute(f"round-{turn}", compute)
            rate = float(arrays.pop("clicked")) / max(1.0, float(arrays.pop("looks")))
            gathered.append(Choices(**arrays))
            choices = Choices.joined(gathered)
            say(f"round {turn + 1} of {ROUNDS}: {len(gathered[-1].chosen):,} choices, {rate:.1%} of looks clicked")
            fitted, head = fit_heads(choices, say, seed=seed, cache=cache, name=f"heads-{turn}")
            figures = {"choices": float(len(choices.chosen)), "looks_clicked_last_round": rate}
            figures |= ranker_figures(choices, fitted, head, seed)
            _log_figures("ranker", {"loss": fitted.loss, "uniform": fitted.uniform, **figures})
            description = (
                f"{len(choices.chosen)} clicks of {shoppers} simulated shoppers in {ROUNDS} shops of the demo, "
                f"seeds {seed} to {seed + turn}"
            )
            if turn == ROUNDS - 1:
                unseen_seed = seed + ROUNDS
                score = head.score if head is not None else logit_scorer(fitted.theta)
                unseen = _choices_in_unseen_shop(history, shoppers, looks, unseen_seed, cache)
                unseen_figures = next_figures(unseen, score)
                _log_figures("next clicks in an unseen shop", unseen_figures)
                figures |= unseen_figures
                description += f"; HR@20 and MRR@20 of what came next in a shop unseen, seed {unseen_seed}"
            export(
                folder, fitted, description, _now(), figures, head, RANKER_LIMITS, recipe=recipe,
                history=None if history is None else load(history, "history").version,
            )  # fmt: skip
            scorer = Ranker(folder, "mlp")
    return folder


def _choices_in_unseen_shop(history: Path | None, shoppers: int, looks: int, seed: int, cache: StepCache) -> Choices:
    """Choices in the newer half of a simulated shop's sessions, whose signals learnt from the older half."""

    def compute() -> Arrays:
        simulation = simulate(UniformScorer(), shoppers, looks, seed)
        log = EventLog.of_rows(simulation.rows, simulation.items)
        shop = OfflineShop(_ids_of(simulation.items), simulation.items)
        shop.history = None if history is None else History(history, shop.catalog)
        half = len(log.ends) // 2
        for _ in replay_sessions(shop, log, query=False, learn=True, last=half):
            pass
        popularity = item_counts(log, half, len(simulation.items))
        queries = replay_sessions(shop, log, query=True, learn=True, first=half)
        return choices_of(queries, log, popularity).arrays()

    return Choices(**cache.load_or_compute("unseen", compute))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
