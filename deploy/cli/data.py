"""Commands that send data to the topics and read it back: send, catalog, replay, replay-diff, watch, profiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.command import COUNT, FILE, Command, Group, Number
from stream.logs import say
from stream.settings import Settings

if TYPE_CHECKING:
    from deploy.io.event_check import BadEvents, EventCheck

MAX_PROBLEMS = 20  # lines about bad input that are printed
MAX_IGNORED_TYPES = 5  # that are named
AS_FAST_AS_POSSIBLE = float("inf")


def _parse_speed(value: Any) -> float:
    return AS_FAST_AS_POSSIBLE if value == "max" else float(value)


SPEED = Number(_parse_speed, lambda speed: speed > 0, "a number above 0, or max")
TEXT_FILE = click.Path(allow_dash=True)


def _report(problems: Sequence[str]) -> None:
    for problem in problems[:MAX_PROBLEMS]:
        say(problem)
    if len(problems) > MAX_PROBLEMS:
        say(f"and {len(problems) - MAX_PROBLEMS:,} more")


def _bad_events_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --skip-bad and --force, which set the parameter `bad` to the name of a `BadEvents`; without them it is None.

    The last one on the command line holds.
    """
    for option in (
        click.option("--force", "bad", flag_value="SEND", help="Send bad events too; workers make them dead letters."),
        click.option("--skip-bad", "bad", flag_value="SKIP", help="Send the good events even if others are bad."),
    ):
        command = option(command)
    return command


def _report_check(path: str, check: EventCheck, bad: BadEvents, sent: int) -> int:
    """Print why events are refused, if any are, and fields that are not read. Return the exit status."""
    from deploy.io.event_check import BadEvents

    sentences = [*check.report()]
    if not check.refused:
        _report([f"{path}: {sentence}" for sentence in sentences])
        return 0
    if bad is BadEvents.SEND:
        result = "; they were sent, and become dead letters"
    elif bad is BadEvents.REFUSE and not sent:
        others = "--skip-bad sends the others, " if check.refused < check.checked else ""
        result = f", so nothing was sent; {others}--force sends all"
    else:
        result = "; these were not sent"
    say(f"{path}: workers refuse {check.refused:,} of {check.checked:,} events{result}")
    _report(sentences)
    return 1 if bad is BadEvents.REFUSE else 0


def _ignored_text(check: EventCheck) -> str:
    """End of a sentence on the events that workers ignore; empty if there are none."""
    if not check.ignored:
        return ""
    names = ", ".join(f"{name} {count:,}" for name, count in check.ignored.most_common(MAX_IGNORED_TYPES))
    return f"; workers ignore {check.ignored.total():,} of them (SHOPWINDOW_IGNORED_TYPES): {names}"


@click.command(cls=Command, example="shopwindow send events.jsonl\ntail -f events.jsonl | shopwindow send -")
@click.argument("file", type=TEXT_FILE)
@_bad_events_options
async def send(settings: Settings, file: str, bad: str | None) -> int:
    """Send events, one JSON object per line.

    Events are checked as workers check them. If one of a file is bad, nothing is sent, and the status is 1. From a pipe
    or stdin (`-`), good events are sent as they arrive, bad ones are left out, and the status is 1 at the end. FILE may
    be gzipped.
    """
    from deploy.cluster import require_broker
    from deploy.io.event_check import BadEvents
    from deploy.io.send import send_events

    what_if_bad = BadEvents[bad or "REFUSE"]
    sent = await send_events(require_broker(settings), file, what_if_bad)
    status = _report_check(file, sent.check, what_if_bad, sent.events)
    _report(sent.too_large)
    if sent.events or not status:
        print(f"sent {sent.events} events, all acknowledged{_ignored_text(sent.check)}")
    return 1 if sent.too_large else status


@click.group(cls=Group, example="shopwindow catalog load items.jsonl\nshopwindow catalog delete SKU1 SKU2")
def catalog() -> None:
    """Publish and delete items of the catalogue."""


@catalog.command("load", example="shopwindow catalog load items.jsonl")
@click.argument("file", type=TEXT_FILE)
@click.option("--skip-bad", is_flag=True, help="Load the good items even if others are bad.")
async def load_catalog(settings: Settings, file: str, skip_bad: bool) -> int:
    """Publish items: JSON lines, or one JSON array, of schema item/1.

    If an item is bad, nothing is loaded. Fields that item/1 lacks are named and not read. If an id comes twice, its
    last item counts. Items that FILE lacks stay in the catalogue: see `shopwindow catalog delete`. FILE may be gzipped;
    `-` reads stdin.
    """
    from deploy.cluster import require_broker
    from deploy.io.catalog import load_items
    from deploy.io.items import read_items

    settings = require_broker(settings)
    items = read_items(file)
    _report([f"{file}: {sentence}" for sentence in items.unknown_fields])
    _report([f"{file}, {problem}" for problem in items.problems])
    if items.problems and not skip_bad:
        say(f"{file}: {len(items.problems):,} items are bad, so nothing was loaded; --skip-bad loads the others")
        return 1
    await load_items(settings, items)
    left_out = f", left out {len(items.problems)}" if items.problems else ""
    print(f"loaded {len(items.records)} items{left_out}{_duplicates_text(items.duplicates)}")
    return 0


def _duplicates_text(duplicates: Sequence[str]) -> str:
    """End of a sentence on ids that came more than once; empty if none did."""
    if not duplicates:
        return ""
    count = len(duplicates)
    return f" ({count} duplicate{'s' if count > 1 else ''}, the first {duplicates[0]}: the last of an id counts)"


@catalog.command("delete", example="shopwindow catalog delete SKU1 SKU2\nshopwindow catalog delete --from sold-out.txt")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--from", "file", type=TEXT_FILE, metavar="FILE", help="Delete the ids in FILE too, one a line.")
async def delete_from_catalog(settings: Settings, ids: tuple[str, ...], file: str | None) -> int:
    """Delete items; the next page of each shopper is made without them.

    Ids that the catalogue lacks are named, the others are deleted, and the status is 1. `--from -` reads stdin.
    """
    from deploy.cluster import require_broker
    from deploy.io.catalog import delete_items
    from deploy.io.files import InputError
    from deploy.io.items import read_ids

    settings = require_broker(settings)
    wanted = [*ids, *(read_ids(file) if file is not None else ())]
    if not wanted:
        raise InputError("no item ids are given; name them, or a file with --from")
    deleted = await delete_items(settings, wanted)
    _report([f"{item_id!r} is not in the catalogue" for item_id in deleted.unknown])
    unknown = f"; {len(deleted.unknown)} are not in the catalogue" if deleted.unknown else ""
    print(f"deleted {deleted.items} items{unknown}")
    return 1 if deleted.unknown else 0


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
@_bad_events_options
async def replay(
    settings: Settings, file: str, speed: float, limit: int | None, add_items: bool, bad: str | None
) -> int:
    """Send a clickstream or a log of events.

    FILE is a table with the columns SessionId, ItemId and Time, separated by tabs, commas or semicolons. Its clicks are
    sent in order of time, and each session is a shopper. Or FILE is JSON lines of events, sent in their own order. If
    an event is bad, nothing is sent, and the status is 1. FILE may be gzipped; `-` reads stdin.
    """
    from deploy.cluster import require_broker
    from deploy.io.event_check import BadEvents
    from deploy.io.replay import replay

    what_if_bad = BadEvents[bad or "REFUSE"]
    done = await replay(require_broker(settings), file, speed, limit or 0, add_items, what_if_bad)
    status = _report_check(file, done.check, what_if_bad, done.events)
    if done.events or not status:
        print(
            f"sent {done.events} events of {done.shoppers} shoppers in {done.seconds:.1f} s, all acknowledged; "
            f"{done.items} items were new{_ignored_text(done.check)}"
        )
    return status


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
