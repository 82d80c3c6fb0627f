"""Commands for models: train, evaluate, models, copy, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from deploy.cli.command import COUNT, FILE, Command, FilesCommand, Group, real, whole
from models.manifest import KINDS, Manifest, check_history, list_models, load
from stream.codes import SLOTS
from stream.logs import say
from stream.settings import HEADS, Settings

if TYPE_CHECKING:
    from models.data.clickstream import Clicks


@click.command(
    cls=FilesCommand,
    example="shopwindow train all --data clicks.tsv.gz --out my-models\n"
    "shopwindow train all --data events.jsonl.gz --catalog items.jsonl --out my-models\n"
    "shopwindow train ranker --impressions --out my-models",
)
@click.argument("what", type=click.Choice((*KINDS, "all")))
@click.option(
    "--data", type=FILE, multiple=True, metavar="FILE...",
    help="Clickstreams (SessionId, ItemId, Time) or JSON lines of events, plain or gzip. "
    "Without it: simulated shoppers.",
)  # fmt: skip
@click.option("--catalog", type=FILE, metavar="FILE", help="Items of the events, as `catalog load` accepts them.")
@click.option(
    "--impressions", is_flag=True,
    help="Train the ranker on what pages showed and the clicks on it, from the broker's topics "
    "or from JSON lines in --data.",
)  # fmt: skip
@click.option("--out", type=FILE, default=Path("my-models"), metavar="DIR", help="Gets one folder for each kind.")
@click.option("--shoppers", type=COUNT, default=240, metavar="N", help="Simulated shoppers of a shop.")
@click.option("--looks", type=COUNT, default=60, metavar="N", help="Pages that each simulated shopper looks at.")
@click.option("--seed", type=int, default=1001, metavar="S", help="The same seed gives the same models.")
def train(
    settings: Settings, what: str, data: tuple[Path, ...], catalog: Path | None, impressions: bool, out: Path,
    shoppers: int, looks: int, seed: int,
) -> None:  # fmt: skip
    """Train models on your data, or the shipped models again.

    The data is a clickstream, a log of events, or impressions. Without data, simulated shoppers provide it, as they did
    for the models that ship. If training is stopped, the same command resumes it.
    """
    from deploy.train.command import train as fit

    try:
        folders = fit(
            what, data, out, settings, shoppers=shoppers, looks=looks, seed=seed, catalog=catalog,
            impressions=impressions,
        )  # fmt: skip
    except KeyboardInterrupt:
        say("stopped; the same command resumes after the steps that are finished")
        raise
    for folder in folders:
        _print_folder(load(folder, folder.name), folder)


def _print_folder(manifest: Manifest, folder: Path) -> None:
    print(f"{manifest.kind:10} {manifest.version}  {folder}")


@click.command(cls=Command, example="shopwindow export my-gpt2 --out my-models/copywriter")
@click.argument("checkpoint")
@click.option("--out", type=FILE, required=True, metavar="DIR", help="A folder that does not exist yet.")
def export(_: Settings, checkpoint: str, out: Path) -> None:
    """Export a Hugging Face GPT-2 as a copywriter model.

    CHECKPOINT is a folder with config.json and model.safetensors, or a name such as gpt2.
    """
    import shutil

    from models.copywriter.checkpoint import checkpoint_folder

    if out.exists():
        raise ValueError(f"{out} exists already; name a folder that does not")
    shutil.copytree(checkpoint_folder(checkpoint), out)
    _print_folder(load(out, "copywriter"), out)


@click.command(cls=Command, example="shopwindow copy --locale en --interest falconry --items 'Hawk Glove, Field Bag'")
@click.option("--locale", type=click.Choice(("en", "zh")), default="en", help="Language of the headline.")
@click.option(
    "--interest", default="", show_default=False, metavar="TEXT", help="Its topic: any words, or a category's id."
)
@click.option(
    "--items", default="", show_default=False, metavar="NAME,...", help="Items that it may name, at most three."
)
@click.option(
    "--slot",
    type=click.Choice(SLOTS[1:]),
    default="for_you",
    metavar="SLOT",
    help=f"{', '.join(SLOTS[1:-1])} or {SLOTS[-1]}.",
)
@click.option("--temperature", type=real(0.05, 5), default=0.9, metavar="T", help="Below 1 favours likely words.")
@click.option("--top-k", type=whole(1, 50), default=50, metavar="K", help="Sample among the K likeliest tokens.")
@click.option(
    "--top-p", type=real(0.01, 1), default=0.95, metavar="P", help="Sample among tokens of this total chance."
)
@click.option("--max-length", type=whole(4, 64), default=50, metavar="N", help="At most N tokens.")
@click.option(
    "--samples", type=COUNT, default=8, metavar="N", help="Samples, of which the likeliest valid one is kept."
)
@click.option("--seed", type=int, default=1, metavar="S", help="The same seed gives the same headline.")
def copy(
    settings: Settings, locale: str, interest: str, items: str, slot: str, temperature: float, top_k: int, top_p: float,
    max_length: int, samples: int, seed: int,
) -> None:  # fmt: skip
    """Write one headline."""
    from agents.page.headline_cache import template_of
    from models.copywriter.facts import Facts
    from models.copywriter.locate import copywriter_folder_of
    from models.copywriter.model import Copywriter

    writer = Copywriter(
        copywriter_folder_of(settings),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_tokens=max_length,
        samples=samples,
    )
    names = tuple(name.strip() for name in items.split(",") if name.strip())
    (headline,) = writer.write([Facts(locale, slot, interest, names)], seed)
    if headline is None:
        say(f"none of {samples} samples passed the guard; this is the template that the page would show")
    print(template_of(locale, SLOTS.index(slot)) if headline is None else headline.text)


@click.group(cls=Group, example="shopwindow models list")
def models() -> None:
    """List the models in use, show one, verify one."""


@models.command("list", example="shopwindow models list")
def list_in_use(settings: Settings) -> None:
    """List the models in use, with their data and metrics.

    They are in the folder SHOPWINDOW_MODELS_DIR.
    """
    for found in list_models(settings.models_dir):
        figures = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items() if "/" not in name)
        print(f"{found.kind:10} {found.name:10} {found.version[:19]}  {found.created}\n  {found.data}\n  {figures}")
        if found.kind == "ranker":
            print(f"  fitted with {_history_text(found)}")


@models.command("show", example="shopwindow models show ranker")
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print its manifest.")
def show(settings: Settings, model: str, as_json: bool) -> None:
    """Show the card of a model.

    MODEL is ranker, history or copywriter for the one in use, or a folder.
    """
    from models.manifest import kind_of

    folder = _folder(settings, model)
    found = load(folder, kind_of(folder))
    print((folder / "manifest.json").read_text(encoding="utf-8").rstrip() if as_json else card(found))


@models.command("verify", example="shopwindow models verify history")
@click.argument("model")
def verify(settings: Settings, model: str) -> int:
    """Check a model's files and compare its graphs with their reference.

    The files must have the hashes of the manifest. The graphs must give the outputs that the reference implementation
    gave when the model was exported. A ranker must have been fitted with the history model in the folder beside it.
    Otherwise the exit status is 1. MODEL is ranker, history or copywriter for the one in use, or a folder.
    """
    from models.parity import verify as compare

    folder = _folder(settings, model)
    checks = compare(folder)
    for check in checks:
        verdict = "matches its reference" if check.passed else "DIFFERS from its reference"
        print(
            f"{check.graph}: {check.output} {verdict}, "
            f"largest difference {check.difference:.2g}, bound {check.bound:.2g}"
        )
    if not all(check.passed for check in checks):
        say("the graph's outputs differ from its reference; train the model again, or use another onnxruntime")
        return 1
    ranker, history = (folder.parent / kind for kind in ("ranker", "history"))
    if folder.name in ("ranker", "history") and ranker.is_dir() and history.is_dir():
        fitted, beside = load(ranker, "ranker"), load(history, "history")
        check_history(fitted, beside)
        print(f"ranker {fitted.version[:19]}: fitted with {_history_text(fitted)}, beside it is {beside.version[:19]}")
    return 0


def _history_text(ranker: Manifest) -> str:
    """The history model that a ranker was fitted with, in words."""
    if ranker.fitted_with is msgspec.UNSET:
        return "an unknown history model"
    version = ranker.fitted_with.history
    return "no history model" if version is None else f"the history model {version[:19]}"


def _folder(settings: Settings, model: str) -> Path:
    """Return the folder of the model in use if `model` is a kind; else `model` is a folder."""
    return settings.models_dir / model if model in KINDS else Path(model)


def card(found: Manifest) -> str:
    """Return a model card: a line for each field, metric and file."""
    rows = [
        ("kind", found.kind), ("name", found.name), ("version", found.version), ("created", found.created),
        ("licence", found.licence), ("trained on", found.data), ("data", found.data_hash or "-"),
        ("from, to", ", ".join(found.data_range) if found.data_range else "-"), ("limits", found.limits or "-"),
        *([("fitted with", _history_text(found))] if found.kind == "ranker" else []),
        *((f"  {name}", f"{value:.5g}") for name, value in found.metrics.items() if "/" not in name),
        *((f"  {group}", figures) for group, figures in _grouped(found.metrics).items()),
        *((f"  {name}", digest[:16]) for name, digest in found.files.items()),
    ]  # fmt: skip
    return "\n".join(f"{name:28} {value}" for name, value in rows)


def _grouped(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the metrics named "group/metric": those of each group on one line."""
    found: dict[str, list[str]] = {}
    for name, value in metrics.items():
        group, _, metric = name.rpartition("/")
        if group:
            found.setdefault(group, []).append(f"{metric} {value:.5g}")
    return {group: ", ".join(figures) for group, figures in found.items()}


@click.command(
    cls=Command, example="shopwindow evaluate --train train.tsv.gz --test test.tsv.gz --protocol prequential"
)
@click.option("--train", type=FILE, required=True, metavar="FILE", help="SessionId, ItemId, Time; plain or gzip.")
@click.option("--test", type=FILE, required=True, metavar="FILE", help="The same, of later sessions.")
@click.option(
    "--protocol", type=click.Choice(("frozen", "prequential")), default="frozen", metavar="P",
    help="frozen: signals stay as they are after training. "
    "prequential: they learn from each session once it is ranked.",
)  # fmt: skip
@click.option(
    "--head",
    type=click.Choice(HEADS),
    default="mlp",
    metavar="HEAD",
    help=f"Model that scores the candidates: {' or '.join(HEADS)}.",
)
@click.option("--no-history", is_flag=True, help="Do not train a history model.")
@click.option("--k", type=COUNT, default=20, metavar="K", help="Cut-off of HR@K and MRR@K.")
@click.option("--limit", type=COUNT, metavar="N", help="Rank only the first N positions.")
@click.option("--seed", type=int, default=1, metavar="S", help="Seed of the fit.")
@click.option("--json", "as_json", is_flag=True, help="Print only the figures on stdout, as one JSON object.")
@click.option(
    "--report", type=FILE, metavar="FILE.html",
    help="Also write learning curves, calibration curves, tables and figures into one HTML file.",
)  # fmt: skip
@click.pass_context
def evaluate(
    context: click.Context, settings: Settings, train: Path, test: Path, protocol: str, head: str, no_history: bool,
    k: int, limit: int | None, seed: int, as_json: bool, report: Path | None,
) -> None:  # fmt: skip
    """Train on a clickstream, predict the clicks of another.

    Each next click is ranked among the whole catalogue.
    """
    from deploy.train.inputs import data_kind
    from models.data.clickstream import read
    from models.evaluation.evaluate import evaluate as measure

    if report is not None and (report.is_dir() or not report.parent.is_dir()):
        raise ValueError(f"--report {report}: name a file in a folder that exists")
    if (kind := data_kind([train, test])) != "clickstream":
        raise ValueError(f"{train}, {test}: these are {kind}; evaluate takes SessionId, ItemId, Time")
    streams = read([train, test])
    measured = measure(
        streams.items, *streams.files, prequential=protocol == "prequential", limit=limit, seed=seed, head=head,
        history=not no_history, log=say,
    )  # fmt: skip
    if report is not None:
        from deploy.train.report import render_report

        facts = {
            "command": context.find_root().obj,
            "history model": "no" if no_history else "yes, if torch is installed",
            **_facts_of_data({"train": train, "test": test}, streams.files),
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        report.write_text(render_report(measured, k, facts), encoding="utf-8")
        say(f"{report} shows the learning curves and the calibration")
    print(measured.table(k), file=sys.stderr if as_json else sys.stdout)
    print(json.dumps(measured.figures(k)))


def _facts_of_data(paths: Mapping[str, Path], files: Sequence[Clicks]) -> dict[str, str]:
    """Return size, times and hash of each clickstream, for the report."""
    from deploy.train.inputs import source_of

    facts = {}
    for (name, path), clicks in zip(paths.items(), files, strict=True):
        source = source_of([path], clicks.time)
        facts[name] = f"{path.name}: {len(clicks.item):,} clicks in {len(clicks.ends):,} sessions"
        facts[f"{name}, times"] = " to ".join(source.range or ())
        facts[f"{name}, hash"] = source.hash or ""
    return facts
