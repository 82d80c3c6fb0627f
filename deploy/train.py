"""`shopwindow train`: fit models on a clickstream, or those that ship on simulated shoppers; go on where it was stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from deploy.recipe import EPOCHS, ROUNDS, SHAPE, SHOPS, of_history, of_ranker
from deploy.simulation import Uniform, simulate
from models.clickstream import Clicks, read
from models.manifest import Source
from models.ranker import Ranker, Scorer
from models.train.behaviour import Behaviour
from models.train.ranker import Choices, Fit, export, fit
from models.train.ranker_graph import Head
from models.train.recipe import made_here
from models.train.resume import Arrays, Bench
from stream.logs import say

RANKER_LIMITS = (
    "Fitted on what the data's shoppers chose from what they were offered; of another shop it is a beginning."
)


class NoTorch(RuntimeError):
    def __init__(self) -> None:
        super().__init__("training needs torch, which is not installed: make setup-train, then run it again")


def train(
    what: str, data: Sequence[Path], out: Path, served: Path, *, shoppers: int, looks: int, seed: int
) -> list[Path]:
    """Train `what` (one of manifest.KINDS, or "all") into folders of that name in `out`; progress on stderr. -> the folders.

    Without data, shoppers are simulated; a ranker alone then believes the history model in `out` or, where none is there,
    of the models that are `served`. Raises NoTorch, ClickstreamError, ValueError where there is too little to learn from.
    """
    if find_spec("torch") is None:
        raise NoTorch
    if data and what == "copywriter":
        raise ValueError("a copywriter learns from generated texts, not from clicks; leave --data out")
    if data:
        return _on_clicks(what, data, out, seed)
    made = []
    if what in ("history", "all"):
        made.append(_history_of_simulation(out / "history", shoppers, looks, seed))
    if what in ("copywriter", "all"):
        made.append(_copywriter(out / "copywriter", seed))
    if what in ("ranker", "all"):
        history = next((path for path in (out / "history", served / "history") if path.is_dir()), None)
        made.append(_ranker_of_simulation(out / "ranker", history, shoppers, looks, seed + SHOPS))
    return made


def _copywriter(folder: Path, seed: int) -> Path:
    from models.train import copywriter

    copywriter.train(folder, copywriter.Plan(seed))
    return folder


def _on_clicks(what: str, data: Sequence[Path], out: Path, seed: int) -> list[Path]:
    from models.train import clicks, half_lives
    from models.walk import Shop

    streams = read(data)
    joined = streams.joined()
    of, told = source(data, joined), f"{len(joined.item):,} clicks of {', '.join(p.name for p in data)}"
    bench = Bench(out, f"{what} {of.hash} {seed}", say)
    shop = Shop(streams.items, half_lives.chosen(streams.items, joined, say, bench))
    fitted = clicks.train(shop, joined, say, seed=seed, bench=bench)
    made = []
    if what in ("ranker", "all"):
        made.append(out / "ranker")
        export(
            made[-1], fitted.logit, told, _now(), {"choices": float(fitted.choices)}, fitted.head, RANKER_LIMITS, of,
            half_lives=shop.half_lives,
        )  # fmt: skip
    if what in ("history", "all") and fitted.trainer is not None:
        made.append(out / "history")
        fitted.trainer.export(made[-1], data=told, created=_now(), metrics={"loss": fitted.trainer.loss}, source=of)
    bench.clear()
    return made


def _history_of_simulation(folder: Path, shoppers: int, looks: int, seed: int) -> Path:
    """Of attributes alone: every shop has items of its own."""
    from models.train.history import Trainer

    bench = Bench(folder, f"history {shoppers} {looks} {seed}", say)
    seen = []
    for shop in range(SHOPS):
        name = f"shop-{shop}"

        def touched(number: int = seed + shop) -> Arrays:
            one = simulate(Uniform(), shoppers, looks, number)
            return {"items": one.items, **one.behaviour._asdict()}

        arrays = bench.once(name, touched)
        seen.append((arrays.pop("items"), Behaviour(**arrays)))
        say(f"shop {shop + 1} of {SHOPS}: {len(seen[-1][1].item):,} interactions")
    shifts = np.cumsum([0, *(len(items) for items, _ in seen[:-1])]).tolist()
    behaviour = Behaviour.joined([one for _, one in seen], shifts)
    trainer = Trainer(np.concatenate([items for items, _ in seen]), SHAPE, seed=seed)
    loss = trainer.learn(behaviour, EPOCHS, say, bench=bench)
    trainer.export(
        folder, created=_now(), metrics={"loss": loss}, recipe=made_here(of_history(shoppers, looks, seed)),
        data=f"{len(behaviour.item)} interactions of simulated shoppers in {SHOPS} shops of the demo, seeds {seed} to {seed + SHOPS - 1}",
    )  # fmt: skip
    bench.clear()
    return folder


def _ranker_of_simulation(folder: Path, history: Path | None, shoppers: int, looks: int, seed: int) -> Path:
    """In shops that the history model has not seen, as every shop will be one."""
    bench = Bench(
        folder, f"ranker {shoppers} {looks} {seed} {_files_hash(sorted(history.iterdir()) if history else [])}", say
    )
    recipe = made_here(of_ranker(shoppers, looks, seed, history))
    scorer: Scorer = Uniform()
    gathered: list[Choices] = []
    for turn in range(ROUNDS):
        name = f"round-{turn}"

        def chosen(number: int = seed + turn, scorer: Scorer = scorer) -> Arrays:
            one = simulate(scorer, shoppers, looks, number, history=history)
            counts = {"looks": np.array(one.looks), "clicked": np.array(one.clicked)}
            return {**counts, **one.choices.arrays()}

        arrays = bench.once(name, chosen)
        rate = float(arrays.pop("clicked")) / max(1.0, float(arrays.pop("looks")))
        gathered.append(Choices(**arrays))
        choices = Choices.joined(gathered)
        fitted, head = _fit(choices, seed)
        say(
            f"round {turn + 1} of {ROUNDS}: {len(gathered[-1].chosen):,} choices, {rate:.1%} of looks clicked; held-out loss "
            f"{fitted.loss:.3f}, of the MLP {head.loss:.3f} (uniform {fitted.uniform:.3f}), first choice found {fitted.top1:.1%}"
        )
        export(
            folder, fitted,
            f"{len(choices.chosen)} clicks of {shoppers} simulated shoppers in {ROUNDS} shops of the demo, seeds {seed} to {seed + turn}",
            _now(), {"choices": float(len(choices.chosen)), "looks_clicked_last_round": rate}, head, RANKER_LIMITS,
            recipe=recipe,
        )  # fmt: skip
        scorer = Ranker(folder, "mlp")
    bench.clear()
    return folder


def _fit(choices: Choices, seed: int) -> tuple[Fit, Head]:
    from models.train.head import fit_head

    return fit(choices, seed=seed), fit_head(choices, seed=seed)


def source(data: Sequence[Path], clicks: Clicks) -> Source:
    """Hash and range of times of the files, whose clicks are given."""
    first, last = (datetime.fromtimestamp(float(t), UTC).isoformat() for t in (clicks.time.min(), clicks.time.max()))
    return Source(_files_hash(data), (first, last))


def _files_hash(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            digest.update(path.read_bytes())
    return "sha256:" + digest.hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
