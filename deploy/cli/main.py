"""The command line. Each command reads the settings once; every error is one sentence that says what to do."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cli.models import add_commands
from stream import logs
from stream.logs import say
from stream.settings import Settings, SettingsError, describe, load

if TYPE_CHECKING:
    from deploy.broker.embedded import Broker

WATCH_EVERY = 2.0  # s
BENCHMARKS = ("stream", "page", "latency", "recovery", "models")
Command = Callable[[Settings, argparse.Namespace], int]


def connected(settings: Settings) -> Settings:
    """With a broker: the one that is set, or the embedded one that this user has running. Raises BrokerError."""
    if settings.broker:
        return settings
    from deploy.broker.embedded import BrokerError, find_running_broker

    found = find_running_broker(settings.data_dir)
    if found is None:
        raise BrokerError(
            "no broker: start `shopwindow broker` or `shopwindow worker`, or set SHOPWINDOW_BROKER "
            "(for instance kafka://127.0.0.1:9092)"
        )
    return _local(settings, found)


def _local(settings: Settings, bootstrap: str) -> Settings:
    """For the embedded broker: one replica, plain text on loopback, whatever a cluster elsewhere would need."""
    return dataclasses.replace(settings, broker=f"kafka://{bootstrap}", replication=1, security_protocol="PLAINTEXT")


def demo(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.demo.run import demo as run

    return run(settings, given.seconds, given.seed, given.json)


def _embedded(stack: ExitStack, settings: Settings, port: int, data: Path) -> tuple[Broker, Settings]:
    """Kafka with all topics, for as long as the stack lasts."""
    from deploy.broker.embedded import Broker, announce_broker
    from stream.kafka import topics

    broker = stack.enter_context(Broker(port, data, say, optimize_jvm=True))
    stack.enter_context(announce_broker(broker, settings.data_dir))
    settings = _local(settings, broker.bootstrap)
    created = asyncio.run(topics.create(settings))
    if created:
        say(f"created {len(created)} topics with {settings.partitions} partitions each")
    return broker, settings


def broker(settings: Settings, given: argparse.Namespace) -> int:
    with ExitStack() as stack:
        kafka, _ = _embedded(stack, settings, given.port, given.data or settings.data_dir / "kafka")
        say(f"Kafka answers at {kafka.bootstrap}; Ctrl-C stops it")
        print(f"export SHOPWINDOW_BROKER=kafka://{kafka.bootstrap}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            kafka.wait_until_exit()
        except KeyboardInterrupt:
            return 0
        say(f"Kafka ended by itself; its log: {kafka.log}")
    return 1


def worker(settings: Settings, given: argparse.Namespace) -> int:
    from agents.worker import run
    from deploy.broker.embedded import find_running_broker

    logs.configure(settings)
    with ExitStack() as stack:
        if not settings.broker:
            found = find_running_broker(settings.data_dir)
            if found:
                settings = _local(settings, found)
            else:
                say("no broker is set: this worker brings its own (SHOPWINDOW_BROKER names another)")
                _, settings = _embedded(stack, settings, 0, settings.data_dir / "kafka")
        return run(settings)


def topics(settings: Settings, given: argparse.Namespace) -> int:
    from stream.kafka import topics

    settings = connected(settings)
    if given.action == "create":
        created = asyncio.run(topics.create(settings))
        print(f"created {', '.join(created)}" if created else "all topics were there")
    problems = asyncio.run(topics.check(settings))
    for problem in problems:
        say(problem)
    if not problems:
        print("all topics are as they should be")
    return 1 if problems else 0


def send(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.io.clients import send_events

    count, problems = asyncio.run(send_events(connected(settings), given.file))
    for problem in problems[:20]:
        say(problem)
    print(f"sent {count} events, all acknowledged")
    return 1 if problems else 0


def catalog(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.io.clients import load_catalog

    count, problems = asyncio.run(load_catalog(connected(settings), given.file, given.skip_bad))
    for problem in problems[:20]:
        say(problem)
    print(f"loaded {count} items" + (f", left out {len(problems)}" if problems else ""))
    return 0


def replay(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.io.clients import replay

    done = asyncio.run(replay(connected(settings), given.file, given.speed, given.limit, given.add_items))
    print(
        f"sent {done.events} events of {done.shoppers} shoppers in {done.seconds:.1f} s, all acknowledged; "
        f"{done.items} items were new"
    )
    return 0


def replay_diff(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.replay.diff import diff_json, diff_text, replay_diff

    diff = replay_diff(given.log, given.left, given.right, given.catalog, given.limit)
    print(json.dumps(diff_json(diff), ensure_ascii=False) if given.json else diff_text(diff))
    return 0 if diff.equal else 1


def watch(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.io.clients import page_text, pages
    from stream.items.catalog import Catalog
    from stream.kafka.global_topics import read_table

    settings = connected(settings)

    async def follow() -> None:
        items = Catalog()
        items.apply(list((await read_table(settings, "catalog")).items()))
        async for page in pages(settings, given.user):
            print(
                json.dumps(page, ensure_ascii=False) if given.json else page_text(page, items, settings.default_locale),
                flush=True,
            )

    asyncio.run(follow())
    return 0


def profiles(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.io.clients import profiles

    rows = asyncio.run(profiles(connected(settings)))
    if given.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False, sort_keys=True))
        return 0
    print(f"{'shopper':24} {'events':>7} {'cart':>5} {'bought':>7}  last item")
    for row in rows:
        last = row["recent"][-1][0] if row["recent"] else ""
        print(f"{row['shopper'][:24]:24} {row['events']:7d} {len(row['cart']):5d} {len(row['bought']):7d}  {last}")
    print(f"{len(rows)} profiles")
    return 0


def list_dead_letters(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.operate.dead_letters import list_letters, print_letter_list

    found = asyncio.run(list_letters(connected(settings), given.reason, given.limit, given.all))
    print_letter_list(found, given.json)
    return 0


def show_dead_letter(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.operate.dead_letters import describe_letter

    print(asyncio.run(describe_letter(connected(settings), given.id)))
    return 0


def redrive_dead_letters(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.operate.dead_letters import format_redrive, redrive_letters

    done = asyncio.run(redrive_letters(connected(settings), given.reason, given.ids, given.dry_run, given.force))
    print(format_redrive(done, given.dry_run))
    return 1 if given.ids and done.left else 0


def status(settings: Settings, given: argparse.Namespace) -> int:
    from deploy.operate.status import cluster_status, format_status, has_page_worker

    settings = connected(settings)
    while True:
        seen = asyncio.run(cluster_status(settings))
        if given.watch and not given.json and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print(json.dumps(seen) if given.json else format_status(seen), flush=True)
        if not given.watch:
            return 0 if has_page_worker(seen) else 1
        time.sleep(WATCH_EVERY)


def bench(settings: Settings, given: argparse.Namespace) -> int:
    import importlib

    from deploy.bench.common import Plan

    measured = importlib.import_module(f"deploy.bench.{given.what}")
    figures = measured.measure(settings, Plan(given.seconds or measured.SECONDS, given.rounds))
    print(json.dumps(figures) if given.json else measured.table(figures))
    return 0


def show_settings(settings: Settings, given: argparse.Namespace) -> int:
    rows = describe(settings, os.environ)
    if given.markdown:
        print("| variable | default | expected | meaning |\n|---|---|---|---|")
        for row in describe(Settings(), {}):
            value = row.value.replace(str(Path.home()), "~").replace(str(Path(__file__).resolve().parents[2]), ".")
            print(f"| `{row.name}` | {value and f'`{value}`'} | {row.expected} | {row.meaning} |")
        return 0
    for row in rows:
        print(f"{row.name:32} {row.value or '-':28} {row.source:12} {row.meaning}")
    return 0


def show_metrics(settings: Settings, given: argparse.Namespace) -> int:
    from stream.metrics import DESCRIBED

    if given.markdown:
        print("| metric | kind | labels | meaning |\n|---|---|---|---|")
    for name, kind, labels, meaning in DESCRIBED:
        if given.markdown:
            print(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |")
        else:
            print(f"{name}{'{' + ', '.join(labels) + '}' if labels else ''}\n    {kind}: {meaning}")
    return 0


def schemas(settings: Settings, given: argparse.Namespace) -> int:
    from stream.page.json_kernels import schemas

    for name, schema in schemas().items():
        text = json.dumps(schema, indent=2, ensure_ascii=False)
        if given.folder is None:
            print(text)
        else:
            given.folder.mkdir(parents=True, exist_ok=True)
            (given.folder / f"{name.replace('/', '-')}.json").write_text(text + "\n")
    return 0


def _speed(text: str) -> float:
    if text == "max":
        return float("inf")
    speed = float(text)
    if not speed > 0:
        raise ValueError
    return speed


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 1e7:
        raise ValueError
    return seconds


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="shopwindow", description="Keep every shopper's homepage personal in real time.",
        epilog="example: shopwindow demo --seconds 30", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = top.add_subparsers(metavar="command", required=True)

    def add(name: str, run: Command | None, meaning: str, example: str, of: Any = commands) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = of.add_parser(
            name, help=meaning, description=meaning, epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.set_defaults(run=run)
        return made

    p = add(
        "demo", demo, "run the demo shop: Kafka, a worker, simulated shoppers", "shopwindow demo --seconds 30 --json"
    )
    p.add_argument("--seconds", type=_seconds, metavar="N", help="end after so long; without it, at Ctrl-C")
    p.add_argument("--seed", type=int, default=1, metavar="S", help="another shop, other shoppers (default 1)")
    p.add_argument("--json", action="store_true", help="the summary as one JSON object, the last line of stdout")
    p = add("broker", broker, "run the embedded Kafka in the foreground", "shopwindow broker --port 9092")
    p.add_argument("--port", type=int, default=0, metavar="P", help="port on 127.0.0.1 (default: any free one)")
    p.add_argument("--data", type=Path, metavar="DIR", help="where it keeps its data (default: SHOPWINDOW_DATA_DIR)")
    add(
        "worker",
        worker,
        "run a worker: consume behaviour, publish pages, write headlines; with SHOPWINDOW_ROLE one of both",
        "SHOPWINDOW_BROKER=kafka://127.0.0.1:9092 shopwindow worker",
    )
    p = add(
        "topics", topics, "create the topics that are missing, or check those there are", "shopwindow topics create"
    )
    p.add_argument("action", choices=("create", "check"))
    p = add(
        "send", send, "send events, one JSON object a line; the worker validates them", "shopwindow send events.jsonl"
    )
    p.add_argument("file", help="file, or - for stdin")
    p = add(
        "catalog",
        catalog,
        "publish items: JSON lines or an array of schema item/1",
        "shopwindow catalog load items.jsonl",
    )
    p.add_argument("action", choices=("load",))
    p.add_argument("file", help="file, or - for stdin")
    p.add_argument("--skip-bad", action="store_true", help="load the good items though others are bad")
    p = add(
        "replay", replay,
        "send a clickstream: a TSV or CSV with SessionId, ItemId, Time (one shopper a session), or JSON lines of events",
        "shopwindow replay clicks.tsv.gz --speed 100 --add-items",
    )  # fmt: skip
    p.add_argument("file", help="file, plain or gzip")
    p.add_argument(
        "--speed", type=_speed, default=float("inf"), metavar="X|max", help="times its own pace (default max)"
    )
    p.add_argument("--limit", type=_count, default=0, metavar="N", help="only the first N events")
    p.add_argument("--add-items", action="store_true", help="put items that the catalogue lacks into it")
    p = add(
        "replay-diff", replay_diff,
        "the same log through two versions, without a broker: the same pages (0), or where they differ (1)",
        "shopwindow replay-diff clicks.tsv.gz --left HEAD~1 --right HEAD --limit 1000",
    )  # fmt: skip
    p.add_argument(
        "log", type=Path, metavar="LOG", help="a clickstream or JSON lines of events, as `replay` takes them"
    )
    for side in ("left", "right"):
        p.add_argument(
            f"--{side}", required=True, metavar="REV|MODELS", help="a git revision, or a models directory for this code"
        )
    p.add_argument("--catalog", type=Path, metavar="FILE", help="items, JSON lines; those it lacks have only their id")
    p.add_argument("--limit", type=_count, default=0, metavar="N", help="only the first N events")
    p.add_argument("--json", action="store_true", help="one JSON object")
    p = add("watch", watch, "show pages as they are published", "shopwindow watch --user u1")
    p.add_argument("--user", metavar="U", help="only this shopper's, the newest first")
    p.add_argument("--json", action="store_true", help="the payloads as they are")
    p = add(
        "profiles",
        profiles,
        "show the live table of profiles, read from its changelog",
        "shopwindow profiles --json > before.jsonl",
    )
    p.add_argument("--json", action="store_true", help="one JSON object a line, sorted, fit for diff")
    p = add(
        "status", status, "show workers, their rate, and the lag of each partition; 1 where no worker is at work",
        "shopwindow status --watch",
    )  # fmt: skip
    p.add_argument("--watch", action="store_true", help="again every 2 s, until Ctrl-C")
    p.add_argument("--json", action="store_true", help="one JSON object")
    p = add(
        "dead-letters", None, "list the records that were refused, look at one, send them back",
        "shopwindow dead-letters redrive --reason invalid --dry-run",
    )  # fmt: skip
    letters = p.add_subparsers(metavar="action", required=True)
    p = add(
        "list", list_dead_letters, "the newest first, those that were sent back left out",
        "shopwindow dead-letters list --reason not_json", letters,
    )  # fmt: skip
    p.add_argument("--reason", metavar="R", help="only of this reason, such as not_json or missing")
    p.add_argument("--limit", type=_count, default=20, metavar="N", help="so many at most (default 20)")
    p.add_argument("--all", action="store_true", help="those that were sent back too")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    p = add(
        "show", show_dead_letter, "everything of one: why it was refused, its headers and its bytes",
        "shopwindow dead-letters show 3-17", letters,
    )  # fmt: skip
    p.add_argument("id", metavar="ID", help="as `list` prints it: PARTITION-OFFSET")
    p = add(
        "redrive", redrive_dead_letters,
        "send the original key and bytes back to where they came from, each letter once",
        "shopwindow dead-letters redrive --reason invalid --dry-run", letters,
    )  # fmt: skip
    p.add_argument("ids", nargs="*", metavar="ID", help="only these")
    p.add_argument("--reason", metavar="R", help="only of this reason")
    p.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    p.add_argument("--force", action="store_true", help="also those that this version would refuse again")
    add_commands(add, _count)
    p = add(
        "bench", bench, "measure speed against a baseline in the same run; medians of several rounds",
        "shopwindow bench page --json",
    )  # fmt: skip
    p.add_argument("what", choices=BENCHMARKS)
    p.add_argument("--seconds", type=_seconds, metavar="N", help="how long it may take, about")
    p.add_argument(
        "--rounds", type=_count, default=5, metavar="N", help="rounds, of which the median counts (default 5)"
    )
    p.add_argument("--json", action="store_true", help="the figures as one JSON object, the last line of stdout")
    p = add("settings", show_settings, "show every setting, its value and where it comes from", "shopwindow settings")
    p.add_argument("--markdown", action="store_true", help="as a table of the defaults")
    p = add("metrics", show_metrics, "list the metrics of a worker, their labels and meaning", "shopwindow metrics")
    p.add_argument("--markdown", action="store_true", help="as the README's table")
    p = add(
        "schemas",
        schemas,
        "print the JSON Schemas of events, items, pages, impressions",
        "shopwindow schemas ./schemas",
    )
    p.add_argument("folder", type=Path, nargs="?", help="write a file for each into this folder")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. -> its exit status: 0, 1 for what went wrong, 2 for a wrong call, 130 when interrupted."""
    given = parser().parse_args(arguments)
    given.command = shlex.join(["shopwindow", *(sys.argv[1:] if arguments is None else arguments)])
    # Retries are a Kafka client's daily business; what is not mended by them is raised.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    try:
        settings = load(os.environ)
        run: Command = given.run
        return run(settings, given)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our stdout is gone, as `| head` does: Python must not complain of it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except SettingsError as error:
        for line in str(error).splitlines():
            say(line)
        return 2
    except (ValueError, RuntimeError, OSError, LookupError) as error:
        # Ours all derive from these: BrokerError, NoBroker, WrongTopics, ManifestError, InputError.
        say(str(error) or type(error).__name__)
        return 1
