"""`shopwindow train`: fit models on clicks, events or impressions, or those that ship on simulated shoppers; go on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from deploy.io.files import InputError
from deploy.train.impressions import train_on_impressions
from deploy.train.inputs import data_kind, files_hash, read_catalog, read_events, source_of
from deploy.train.recipe import EPOCHS, ROUNDS, SHAPE, SHOPS, of_history, of_ranker
from deploy.train.simulation import Uniform, simulate
from models.data.clickstream import Clicks, read
from models.data.event_log import EventLog, items_of
from models.data.replay import Shop, walk
from models.evaluation.metrics import by_theta, next_figures, ranker_figures
from models.history.model import History
from models.ranker.model import Ranker, Scorer
from models.train.clicks import offered
from models.train.history.sequences import InteractionSequences
from models.train.ranker.fit import Choices, export
from models.train.ranker.heads import fit_heads
from models.train.recipe import made_here
from models.train.step_cache import Arrays, StepCache
from stream.logs import say
from stream.settings import Settings

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
    """Train `what` (one of manifest.KINDS, or "all") into folders of that name in `out`; progress on stderr. -> the folders.

    From data, a clickstream or a log of events beside which a catalogue may tell more of the items; from impressions, of
    the broker or in data; else from simulated shoppers: a ranker alone then believes the history model in `out` or, where
    none is there, of the models that are served. Raises NoTorch, ClickstreamError, InputError, ValueError where there is
    too little to learn from.
    """
    _refuse_what_does_not_fit(what, data, catalog, impressions)
    if find_spec("torch") is None:
        raise NoTorch
    if impressions:
        return [train_on_impressions(settings, data, out, seed, _now(), say)]
    if data:
        return _on_clicks(what, data, catalog, out, seed)
    made = []
    if what in ("history", "all"):
        made.append(_history_of_simulation(out / "history", shoppers, looks, seed))
    if what in ("copywriter", "all"):
        made.append(_copywriter(out / "copywriter", seed))
    if what in ("ranker", "all"):
        places = (out / "history", settings.models_dir / "history")
        history = next((path for path in places if path.is_dir()), None)
        made.append(_ranker_of_simulation(out / "ranker", history, shoppers, looks, seed + SHOPS))
    return made


def _refuse_what_does_not_fit(what: str, data: Sequence[Path], catalog: Path | None, impressions: bool) -> None:
    """Raises ValueError where the data cannot teach `what`, InputError where it cannot be read."""
    kind = data_kind(data) if data else None
    if impressions and what != "ranker":
        raise ValueError(
            f"impressions say what was chosen from pages, which teaches a ranker alone; train ranker, not {what}"
        )
    if kind == "impressions" and not impressions:
        raise ValueError(
            f"{', '.join(map(str, data))}: these are impressions; train ranker --impressions learns from them"
        )
    if impressions and kind == "clickstream":
        raise ValueError(
            "a clickstream knows no pages; with --impressions --data takes JSON lines of impressions and events"
        )
    if catalog is not None and (kind != "events" or impressions):
        raise ValueError("--catalog tells of the items of --data that holds events; leave it out here")
    if data and what == "copywriter":
        raise ValueError("a copywriter learns from generated texts, not from clicks; leave --data out")


def _copywriter(folder: Path, seed: int) -> Path:
    from models.train.copywriter import trainer as copywriter

    copywriter.train(folder, copywriter.Plan(seed), say)
    return folder


def _on_clicks(what: str, data: Sequence[Path], catalog: Path | None, out: Path, seed: int) -> list[Path]:
    from models.train import clicks
    from models.train.ranker import half_lives

    shop_with, log, told = _shop_and_log(data, catalog)
    of = source_of([*data, *([catalog] if catalog else [])], log.time)
    with StepCache(out, f"{what} {of.hash} {seed}", say) as finished:
        shop = shop_with(half_lives=half_lives.choose_once(shop_with, log, say, finished))
        fitted = clicks.train(shop, log, say, seed=seed, finished=finished)
        made = []
        if what in ("ranker", "all"):
            made.append(out / "ranker")
            figures = ranker_figures(fitted.choices, fitted.logit, fitted.head, seed)
            figures["choices"] = float(len(fitted.choices.chosen))
            _say_figures("ranker", figures)
            export(
                made[-1], fitted.logit, told, _now(), figures, fitted.head, RANKER_LIMITS + NEVER_SHOWN, of,
                half_lives=shop.half_lives,
            )  # fmt: skip
        if what in ("history", "all") and fitted.trainer is not None:
            made.append(out / "history")
            figures = {"loss": fitted.trainer.loss, **next_figures(fitted.choices)}
            _say_figures("history", figures)
            fitted.trainer.export(made[-1], data=told, created=_now(), metrics=figures, source=of)
    return made


def _shop_and_log(data: Sequence[Path], catalog: Path | None) -> tuple[Callable[..., Shop], Clicks | EventLog, str]:
    """What makes the shop of its half-lives, what was done in it, and that in a sentence. Raises as `train`."""
    names = ", ".join(path.name for path in data)
    if data_kind(data) == "clickstream":
        streams = read(data)
        clicks = streams.joined()
        return partial(Shop, streams.items), clicks, f"{len(clicks.item):,} clicks of {names}"
    known = None if catalog is None else read_catalog(catalog, say)
    events = read_events(data, say)
    items = items_of(events.rows, known)
    if not len(items):
        raise InputError(f"{names}: no event names an item, so that there is nothing to foresee")
    log = EventLog.of_rows(events.rows, items)
    told = f"{int((log.events['part'] == 0).sum()):,} events of {len(np.unique(log.shopper)):,} shoppers in {names}"
    say(f"{told}: {len(log.ends):,} sessions, {int(log.choice.sum()):,} choices, {len(items):,} items")
    return (
        partial(Shop, [str(id) for id in items["id"].tolist()], items),
        log,
        told
        + (f", {events.refused:,} lines refused" if events.refused else "")
        + (f", {events.erased:,} events of shoppers who asked to be erased left out" if events.erased else ""),
    )


def _say_figures(kind: str, figures: Mapping[str, float]) -> None:
    """Those that are of all, not of a group."""
    say(f"{kind}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if "/" not in name))


def _history_of_simulation(folder: Path, shoppers: int, looks: int, seed: int) -> Path:
    """Of attributes alone: every shop has items of its own."""
    from models.train.history.trainer import Trainer

    with StepCache(folder, f"history {shoppers} {looks} {seed}", say) as finished:
        seen = []
        for shop in range(SHOPS):
            name = f"shop-{shop}"

            def touched(number: int = seed + shop) -> Arrays:
                one = simulate(Uniform(), shoppers, looks, number)
                return {"items": one.items, **one.behaviour._asdict()}

            arrays = finished.once(name, touched)
            seen.append((arrays.pop("items"), InteractionSequences(**arrays)))
            say(f"shop {shop + 1} of {SHOPS}: {len(seen[-1][1].item):,} interactions")
        shifts = np.cumsum([0, *(len(items) for items, _ in seen[:-1])]).tolist()
        behaviour = InteractionSequences.joined([one for _, one in seen], shifts)
        trainer = Trainer(np.concatenate([items for items, _ in seen]), SHAPE, seed=seed)
        loss = trainer.learn(behaviour, EPOCHS, say, finished=finished)
        told = f"{len(behaviour.item)} interactions of simulated shoppers in {SHOPS} shops of the demo, seeds {seed} to {seed + SHOPS - 1}"
        trainer.export(folder, created=_now(), metrics={"loss": loss}, data=told)
        unseen = seed + SHOPS + ROUNDS
        figures = {"loss": loss, **next_figures(_unseen(folder, shoppers, looks, unseen, finished))}
        _say_figures("history", figures)
        trainer.export(
            folder, created=_now(), metrics=figures, recipe=made_here(of_history(shoppers, looks, seed)),
            data=f"{told}; judged by what came next in a shop unseen, seed {unseen}",
        )  # fmt: skip
    return folder


def _ranker_of_simulation(folder: Path, history: Path | None, shoppers: int, looks: int, seed: int) -> Path:
    """In shops that the history model has not seen, as every shop will be one."""
    inputs = f"ranker {shoppers} {looks} {seed} {files_hash(sorted(history.iterdir()) if history else [])}"
    with StepCache(folder, inputs, say) as finished:
        recipe = made_here(of_ranker(shoppers, looks, seed, history))
        scorer: Scorer = Uniform()
        gathered: list[Choices] = []
        for turn in range(ROUNDS):
            name = f"round-{turn}"

            def chosen(number: int = seed + turn, scorer: Scorer = scorer) -> Arrays:
                one = simulate(scorer, shoppers, looks, number, history=history)
                counts = {"looks": np.array(one.looks), "clicked": np.array(one.clicked)}
                return {**counts, **one.choices.arrays()}

            arrays = finished.once(name, chosen)
            rate = float(arrays.pop("clicked")) / max(1.0, float(arrays.pop("looks")))
            gathered.append(Choices(**arrays))
            choices = Choices.joined(gathered)
            say(f"round {turn + 1} of {ROUNDS}: {len(gathered[-1].chosen):,} choices, {rate:.1%} of looks clicked")
            fitted, head = fit_heads(choices, say, seed=seed, finished=finished, name=f"heads-{turn}")
            figures = {"choices": float(len(choices.chosen)), "looks_clicked_last_round": rate}
            figures |= ranker_figures(choices, fitted, head, seed)
            _say_figures("ranker", {"loss": fitted.loss, "uniform": fitted.uniform, **figures})
            told = f"{len(choices.chosen)} clicks of {shoppers} simulated shoppers in {ROUNDS} shops of the demo, seeds {seed} to {seed + turn}"
            if turn == ROUNDS - 1:
                unseen = seed + ROUNDS
                score = head.score if head is not None else by_theta(fitted.theta)
                next_ = next_figures(_unseen(history, shoppers, looks, unseen, finished), score)
                _say_figures("what comes next in an unseen shop", next_)
                figures |= next_
                told += f"; HR@20 and MRR@20 of what came next in a shop unseen, seed {unseen}"
            export(folder, fitted, told, _now(), figures, head, RANKER_LIMITS, recipe=recipe)
            scorer = Ranker(folder, "mlp")
    return folder


def _unseen(history: Path | None, shoppers: int, looks: int, seed: int, finished: StepCache) -> Choices:
    """What came next, of the later half of the shoppers of a simulated shop, whose signals have learnt from the others."""

    def asked() -> Arrays:
        one = simulate(Uniform(), shoppers, looks, seed)
        log = EventLog.of_rows(one.rows, one.items)
        shop = Shop([str(id) for id in one.items["id"].tolist()], one.items)
        shop.history = None if history is None else History(history, shop.catalog)
        half = len(log.ends) // 2
        for _ in walk(shop, log, ask=False, learn=True, last=half):
            pass
        seen = log.item[: log.ends[half - 1] if half else 0]
        known = np.bincount(seen + 1, minlength=len(one.items) + 1)[1:]
        return offered(walk(shop, log, ask=True, learn=True, first=half), log, known).arrays()

    return Choices(**finished.once("unseen", asked))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
