"""Commands that send data to the topics and read it back: send, catalog, replay, replay-diff, watch, profiles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from deploy.cli.command import COUNT, FILE, Command, Group, Number
from stream.logs import say
from stream.settings import Settings

MAX_PROBLEMS = 20  # lines about bad input that are printed
AS_FAST_AS_POSSIBLE = float("inf")


def _parse_speed(value: Any) -> float:
    return AS_FAST_AS_POSSIBLE if value == "max" else float(value)


SPEED = Number(_parse_speed, lambda speed: speed > 0, "a number above 0, or max")
TEXT_FILE = click.Path(allow_dash=True)


def _report(problems: Sequence[str]) -> None:
    for problem in problems[:MAX_PROBLEMS]:
        say(problem)


@click.command(cls=Command, example="shopwindow send events.jsonl")
@click.argument("file", type=TEXT_FILE)
async def send(settings: Settings, file: str) -> int:
    """Send events, one JSON object per line.

    The worker validates them; those that it refuses become dead letters. FILE may be gzipped; `-` reads stdin.
    """
    from deploy.cluster import require_broker
    from deploy.io.send import send_events

    count, problems = await send_events(require_broker(settings), file)
    _report(problems)
    print(f"sent {count} events, all acknowledged")
    return 1 if problems else 0


@click.group(cls=Group, example="shopwindow catalog load items.jsonl")
def catalog() -> None:
    """Publish items of the catalogue."""


@catalog.command("load", example="shopwindow catalog load items.jsonl")
@click.argument("file", type=TEXT_FILE)
@click.option("--skip-bad", is_flag=True, help="Load the good items even if others are bad.")
async def load_catalog(settings: Settings, file: str, skip_bad: bool) -> None:
    """Publish items: JSON lines, or one JSON array, of schema item/1.

    If an item is bad, nothing is loaded. FILE may be gzipped; `-` reads stdin.
    """
    from deploy.cluster import require_broker
    from deploy.io.send import load_catalog

    count, problems = await load_catalog(require_broker(settings), file, skip_bad)
    _report(problems)
    print(f"loaded {count} items" + (f", left out {len(problems)}" if problems else ""))


@click.command(
    cls=Command, example="shopwindow replay clicks.tsv.gz --speed 100 --add-items\nshopwindow replay events.jsonl"
)
@click.argument("file", type=TEXT_FILE)
@click.option(
    "--speed", type=SPEED, default=AS_FAST_AS_POSSIBLE, show_default=False, metavar="X|max",
    help="Speed relative to the events' own times. Default: max.",
)  # fmt: skip
@click.option("--limit", type=COUNT, metavar="N", help="Send only the first N events.")
@click.option("--add-items", is_flag=True, help="Add items that are missing from the catalogue.")
async def replay(settings: Settings, file: str, speed: float, limit: int | None, add_items: bool) -> None:
    """Send a clickstream or a log of events.

    FILE is a table with the columns SessionId, ItemId and Time, separated by tabs, commas or semicolons. Its clicks are
    sent in order of time, and each session is a shopper. Or FILE is JSON lines of events, sent in their own order. It
    may be gzipped; `-` reads stdin.
    """
    from deploy.cluster import require_broker
    from deploy.io.replay import replay

    done = await replay(require_broker(settings), file, speed, limit or 0, add_items)
    print(
        f"sent {done.events} events of {done.shoppers} shoppers in {done.seconds:.1f} s, all acknowledged; "
        f"{done.items} items were new"
    )


@click.command(
    "replay-diff",
    cls=Command,
    example="shopwindow replay-diff clicks.tsv.gz --left HEAD~1 --right HEAD --limit 1000\n"
    "shopwindow replay-diff events.jsonl --left models/default --right my-models",
)
@click.argument("log", type=FILE)
@click.option("--left", required=True, metavar="REV|MODELS", help="A git revision, or a models folder for this code.")
@click.option("--right", required=True, metavar="REV|MODELS", help="What to compare it with.")
@click.option("--catalog", type=FILE, metavar="FILE", help="Items, JSON lines. Items that it lacks have only their id.")
@click.option("--limit", type=COUNT, metavar="N", help="Use only the first N events.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def replay_diff(
    _: Settings, log: Path, left: str, right: str, catalog: Path | None, limit: int | None, as_json: bool
) -> int:
    """Compare what two versions publish for the same log.

    LOG is a file that `shopwindow replay` accepts. No broker is needed. The exit status is 0 if all pages are the same,
    and 1 if pages differ.
    """
    from deploy.replay.diff import diff_json, diff_text, replay_diff

    diff = replay_diff(log, left, right, catalog, limit or 0)
    print(json.dumps(diff_json(diff), ensure_ascii=False) if as_json else diff_text(diff))
    return 0 if diff.equal else 1


@click.command(cls=Command, example="shopwindow watch --user u1")
@click.option("--user", metavar="U", help="Only the pages of this shopper, starting with the current one.")
@click.option("--json", "as_json", is_flag=True, help="Print the payloads as published.")
async def watch(settings: Settings, user: str | None, as_json: bool) -> None:
    """Show pages as they are published, until Ctrl-C."""
    from deploy.cluster import require_broker
    from deploy.io.pages import follow_pages, page_text
    from stream.items.catalog import Catalog
    from stream.kafka.global_topics import read_table

    settings = require_broker(settings)
    items = Catalog(settings.default_locale)
    items.apply(list((await read_table(settings, "catalog")).items()))
    async for page in follow_pages(settings, user):
        text = json.dumps(page, ensure_ascii=False) if as_json else page_text(page, items)
        print(text, flush=True)


@click.command(cls=Command, example="shopwindow profiles --json > before.jsonl")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, sorted, to compare with diff.")
async def profiles(settings: Settings, as_json: bool) -> None:
    """Show the profiles of all shoppers, read from their changelog."""
    from deploy.cluster import require_broker
    from deploy.io.profiles import read_profiles

    rows = await read_profiles(require_broker(settings))
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False, sort_keys=True))
        return
    print(f"{'shopper':24} {'events':>7} {'cart':>5} {'bought':>7}  last item")
    for row in rows:
        last = row["recent"][-1][0] if row["recent"] else ""
        print(f"{row['shopper'][:24]:24} {row['events']:7d} {len(row['cart']):5d} {len(row['bought']):7d}  {last}")
    print(f"{len(rows)} profiles")
