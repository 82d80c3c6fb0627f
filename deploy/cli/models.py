"""The commands that make, judge and look at models."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from models.manifest import KINDS, Manifest, list_models, load
from stream.codes import SLOTS
from stream.logs import say
from stream.settings import HEADS, Settings

if TYPE_CHECKING:
    from models.data.clickstream import Clicks

Add = Callable[..., argparse.ArgumentParser]


def train(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.train.command import train as fit

    try:
        folders = fit(
            given.what, given.data, given.out, settings, shoppers=given.shoppers, looks=given.looks, seed=given.seed,
            catalog=given.catalog, impressions=given.impressions,
        )  # fmt: skip
    except KeyboardInterrupt:
        say("stopped; the same command goes on from what it has finished")
        raise
    for folder in folders:
        made = load(folder, folder.name)
        print(f"{made.kind:10} {made.version}  {folder}")
    return 0


def export(settings: Settings, given: argparse.Namespace) -> int:
    import shutil

    from models.copywriter.checkpoint import checkpoint_folder

    if given.out.exists():
        raise ValueError(f"{given.out} exists already; name a folder that does not")
    shutil.copytree(checkpoint_folder(given.checkpoint), given.out)
    made = load(given.out, "copywriter")
    print(f"{made.kind:10} {made.version}  {given.out}")
    return 0


def copy(settings: Settings, given: argparse.Namespace) -> int:
    from agents.page.headline_cache import TEMPLATES
    from models.copywriter.model import Copywriter
    from models.copywriter.locate import copywriter_folder_of
    from models.copywriter.facts import Facts

    writer = Copywriter(
        copywriter_folder_of(settings), temperature=given.temperature, top_k=given.top_k, top_p=given.top_p, max_tokens=given.max_length,
        samples=given.samples,
    )  # fmt: skip
    titles = tuple(name.strip() for name in given.items.split(",") if name.strip())
    (made,) = writer.write([Facts(given.locale, given.slot, given.interest, titles)], given.seed)
    if made is None:
        say(f"none of {given.samples} samples passed the guard; this is the template that the page would have")
    print(TEMPLATES[given.locale][SLOTS.index(given.slot)] if made is None else made.text)
    return 0


def list_(settings: Settings, given: argparse.Namespace) -> int:
    for found in list_models(settings.models_dir):
        figures = ", ".join(f"{name} {value:.4g}" for name, value in found.metrics.items() if "/" not in name)
        print(f"{found.kind:10} {found.name:10} {found.version[:19]}  {found.created}\n  {found.data}\n  {figures}")
    return 0


def _folder(settings: Settings, given: argparse.Namespace) -> Path:
    """A kind names the one that is served."""
    return settings.models_dir / given.model if given.model in KINDS else Path(given.model)


def show(settings: Settings, given: argparse.Namespace) -> int:
    from models.manifest import kind_of

    folder = _folder(settings, given)
    found = load(folder, kind_of(folder))
    print((folder / "manifest.json").read_text(encoding="utf-8").rstrip() if given.json else card(found))
    return 0


def card(found: Manifest) -> str:
    """A model card for people."""
    rows = [
        ("kind", found.kind), ("name", found.name), ("version", found.version), ("created", found.created),
        ("licence", found.licence), ("trained on", found.data), ("data", found.data_hash or "-"),
        ("from, to", ", ".join(found.data_range) if found.data_range else "-"), ("limits", found.limits or "-"),
        *((f"  {name}", f"{value:.5g}") for name, value in found.metrics.items() if "/" not in name),
        *((f"  {group}", told) for group, told in _groups(found.metrics).items()),
        *((f"  {name}", digest[:16]) for name, digest in found.files.items()),
    ]  # fmt: skip
    return "\n".join(f"{name:28} {value}" for name, value in rows)


def _groups(metrics: Mapping[str, float]) -> dict[str, str]:
    """Figures of each group on one line."""
    found: dict[str, list[str]] = {}
    for name, value in metrics.items():
        group, _, metric = name.rpartition("/")
        if group:
            found.setdefault(group, []).append(f"{metric} {value:.5g}")
    return {group: ", ".join(told) for group, told in found.items()}


def verify(settings: Settings, given: argparse.Namespace) -> int:
    from models.parity import verify as compared

    checks = compared(_folder(settings, given))
    for check in checks:
        verdict = "as its reference" if check.good else "NOT as its reference"
        print(
            f"{check.graph}: {check.output} {verdict}, largest difference {check.difference:.2g}, bound {check.bound:.2g}"
        )
    if all(check.good for check in checks):
        return 0
    say("the graph does not give what its reference gave; train the model again, or use another onnxruntime")
    return 1


def evaluate(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.train.inputs import data_kind
    from models.data.clickstream import read
    from models.evaluation.evaluate import evaluate as measured

    if given.report is not None and (given.report.is_dir() or not given.report.parent.is_dir()):
        raise ValueError(f"--report {given.report}: name a file in a folder that is there")
    if (kind := data_kind([given.train, given.test])) != "clickstream":
        raise ValueError(f"{given.train}, {given.test}: these are {kind}; evaluate takes SessionId, ItemId, Time")
    streams = read([given.train, given.test])
    report = measured(
        streams.items, *streams.files, prequential=given.protocol == "prequential", limit=given.limit, seed=given.seed,
        head=given.head, history=given.history, say=say,
    )  # fmt: skip
    if given.report is not None:
        from deploy.train.report import page

        told = _asked_and_read(given, streams.files)
        given.report.write_text(page(report, given.k, told), encoding="utf-8")
        say(f"{given.report} shows how it learnt and how far its probabilities can be believed")
    print(report.table(given.k), file=sys.stderr if given.json else sys.stdout)
    print(json.dumps(report.figures(given.k)))
    return 0


def _asked_and_read(given: argparse.Namespace, files: Sequence[Clicks]) -> dict[str, str]:
    """What was asked, and of which data, by name."""
    from deploy.train.inputs import source_of

    told = {"command": given.command, "history model": "no" if not given.history else "yes, where torch is installed"}
    for name, path, clicks in zip(("train", "test"), (given.train, given.test), files, strict=True):
        of = source_of([path], clicks.time)
        told[name] = f"{path.name}: {len(clicks.item):,} clicks in {len(clicks.ends):,} sessions"
        told[f"{name}, times"] = " to ".join(of.range or ())
        told[f"{name}, hash"] = of.hash or ""
    return {**told, "made": datetime.now(UTC).isoformat(timespec="seconds")}


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} to {high}")
        return int(text)

    return read


def _within(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return value

    return read


def add_commands(add: Add, count: Callable[[str], int]) -> None:
    """`add` makes a command's parser; `count` reads a whole number above 0."""
    p = add(
        "train", train,
        "train models on a clickstream, on events or on impressions, or those that ship on simulated shoppers; goes on if it "
        "was stopped",
        "shopwindow train all --data clicks.tsv.gz --out my-models\n"
        "         shopwindow train all --data events.jsonl.gz --catalog items.jsonl --out my-models\n"
        "         shopwindow train ranker --impressions --out my-models",
    )  # fmt: skip
    p.add_argument("what", choices=(*KINDS, "all"))
    p.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="a clickstream (SessionId, ItemId, Time) or JSON lines of events, plain or gzip; without: simulated shoppers",
    )
    p.add_argument("--catalog", type=Path, metavar="FILE", help="items of the events, as `catalog load` takes them")
    p.add_argument(
        "--impressions",
        action="store_true",
        help="the ranker from what pages showed and the clicks on it: of the broker's topics, or JSON lines in --data",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("my-models"),
        metavar="DIR",
        help="gets a folder of each kind (default my-models)",
    )
    p.add_argument(
        "--shoppers", type=count, default=240, metavar="N", help="simulated shoppers of a shop (default 240)"
    )
    p.add_argument("--looks", type=count, default=60, metavar="N", help="looks of each (default 60)")
    p.add_argument("--seed", type=int, default=1001, metavar="S", help="the same seed, the same models (default 1001)")
    p = add(
        "export", export, "make a model's folder, graph and all, of a Hugging Face GPT-2",
        "shopwindow export my-gpt2 --out my-models/copywriter",
    )  # fmt: skip
    p.add_argument("checkpoint", help="a folder with config.json and model.safetensors, or a name such as gpt2")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist yet")
    p = add(
        "copy", copy, "write one headline", "shopwindow copy --locale en --interest falconry --items 'Hawk Glove, Field Bag'"
    )  # fmt: skip
    p.add_argument("--locale", choices=("en", "zh"), default="en", help="its language (default en)")
    p.add_argument("--interest", default="", metavar="TEXT", help="what it is about: any words, or a category's id")
    p.add_argument("--items", default="", metavar="NAME[,NAME...]", help="items that it may name, three at most")
    p.add_argument("--slot", choices=SLOTS[1:], default="for_you", help="the slot that it is for (default for_you)")
    p.add_argument(
        "--temperature", type=_within(0.05, 5), default=0.9, metavar="T", help="below 1 plays safe (default .9)"
    )
    p.add_argument(
        "--top-k", type=_whole(1, 50), default=50, metavar="K", help="among so many likeliest tokens (default 50)"
    )
    p.add_argument(
        "--top-p", type=_within(0.01, 1), default=0.95, metavar="P", help="of this total chance (default .95)"
    )
    p.add_argument("--max-length", type=_whole(4, 64), default=50, metavar="N", help="tokens at most (default 50)")
    p.add_argument(
        "--samples", type=count, default=8, metavar="N", help="of which the likeliest good one is kept (default 8)"
    )
    p.add_argument("--seed", type=int, default=1, metavar="S", help="the same seed, the same headline (default 1)")
    p = add("models", None, "list the models that are served, look at one, verify one", "shopwindow models list")
    actions = p.add_subparsers(metavar="action", required=True)
    add("list", list_, "those that are served, each with its data and figures", "shopwindow models list", actions)
    p = add("show", show, "the card of a model", "shopwindow models show ranker", actions)
    p.add_argument("--json", action="store_true", help="its manifest")
    v = add(
        "verify", verify, "its files are those of its manifest, and its graphs give what their reference gave",
        "shopwindow models verify history", actions,
    )  # fmt: skip
    for one in (p, v):
        one.add_argument("model", metavar="MODEL", help=f"one that is served ({', '.join(KINDS)}), or a folder")
    p = add(
        "evaluate", evaluate, "train on one clickstream, foresee the next clicks of another, among the whole catalogue",
        "shopwindow evaluate --train train.tsv.gz --test test.tsv.gz --protocol prequential",
    )  # fmt: skip
    for name in ("train", "test"):
        p.add_argument(
            f"--{name}", type=Path, required=True, metavar="FILE", help="SessionId, ItemId, Time; may be gzipped"
        )
    p.add_argument(
        "--protocol", choices=("frozen", "prequential"), default="frozen",
        help="frozen: as it was after training; prequential: signals learn from sessions once they are ranked",
    )  # fmt: skip
    p.add_argument("--head", choices=HEADS, default="mlp", help="what scores candidates (default mlp)")
    p.add_argument("--no-history", dest="history", action="store_false", help="without a history model")
    p.add_argument("--k", type=count, default=20, metavar="K", help="how many places count (default 20)")
    p.add_argument("--limit", type=count, metavar="N", help="rank the first N positions only")
    p.add_argument("--seed", type=int, default=1, metavar="S", help="of the fit (default 1)")
    p.add_argument("--json", action="store_true", help="on stdout nothing but the figures, one JSON object")
    p.add_argument(
        "--report", type=Path, metavar="FILE.html",
        help="also write learning and calibration curves, tables and figures into one HTML file",
    )  # fmt: skip
