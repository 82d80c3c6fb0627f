"""The `shopwindow` command. Each part is imported by the command that needs it, so that help comes at once."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.failure import Failure
from stream.settings import SHIPPED_MODELS, Settings, SettingsError, describe, load

if TYPE_CHECKING:
    from deploy.broker import Broker

INTERRUPTED = 130  # as shells have it: 128 + SIGINT
INDENT = "\n" + " " * len("shopwindow: ")
Run = Callable[[Settings, argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Run a command. -> exit status: 0, 1 with a sentence on stderr, 130 where it was interrupted; usage exits with 2."""
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    args.more = more
    if more and not args.passes_on:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode, or half a surrogate pair in a key, must not end a command.
            stream.reconfigure(errors="backslashreplace")
    try:
        settings = load(os.environ)
        _log(settings)
        status: int = args.run(settings, args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has seen enough, as `head` does; the interpreter must not flush into the void once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        _say(sentence)
        return 1


def _say(text: str) -> None:
    print("shopwindow: " + text.replace("\n", INDENT), file=sys.stderr, flush=True)


def _log(settings: Settings) -> None:
    import logging

    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None where it is our own mistake."""
    if isinstance(error, (SettingsError, Failure)):
        return str(error)
    if isinstance(error, TimeoutError):
        return "Kafka did not answer in time; check the broker"
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return f"{error.filename}: {what}" if error.filename is not None else what
    from aiokafka.errors import KafkaError

    from deploy.broker import BrokerError
    from models.manifest import ManifestError
    from stream.kafka.connect import NoBroker
    from stream.kafka.topics import WrongTopics

    if isinstance(error, (BrokerError, NoBroker, WrongTopics, ManifestError)) or type(error) is LookupError:
        return str(error)
    return f"Kafka refused: {error}" if isinstance(error, KafkaError) else None


# Which broker


def _on_embedded(settings: Settings, bootstrap: str) -> Settings:
    """One broker on loopback: no encryption, no second copy."""
    return replace(settings, broker=f"kafka://{bootstrap}", security_protocol="PLAINTEXT", replication=1)


def _reached(settings: Settings) -> Settings:
    """The settings with a broker in them: theirs, or the embedded one that runs. Raises Failure where none does."""
    found = settings if settings.broker else _running(settings)
    if found is None:
        raise Failure("no broker: start `shopwindow broker` or `shopwindow worker`, or set SHOPWINDOW_BROKER")
    return found


def _running(settings: Settings) -> Settings | None:
    from deploy.broker import running

    bootstrap = running(settings.data_dir)
    return _on_embedded(settings, bootstrap) if bootstrap else None


@contextmanager
def _embedded(settings: Settings, port: int, data: Path | None) -> Iterator[tuple[Broker, Settings]]:
    """The embedded broker with its topics, known to the other commands while inside."""
    import asyncio

    from deploy.broker import Broker, announced
    from stream.kafka.topics import create

    with Broker(port, data or settings.data_dir / "kafka", _say) as broker, announced(broker, settings.data_dir):
        reached = _on_embedded(settings, broker.bootstrap)
        asyncio.run(create(reached))
        yield broker, reached


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Whoever ends us by SIGTERM wants the broker's end as orderly as Ctrl-C has it."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# The commands


def _demo(settings: Settings, args: argparse.Namespace) -> int:
    from deploy.demo.run import demo

    return demo(settings, args.seconds, args.seed, args.json)


def _broker(settings: Settings, args: argparse.Namespace) -> int:
    from deploy.broker import BrokerError

    known = _running(settings)
    if known is not None:
        raise Failure(f"a broker already runs at {known.broker}; stop it, or set SHOPWINDOW_DATA_DIR to another folder")
    with _sigterm_as_ctrl_c(), _embedded(settings, args.port, args.data) as (broker, reached):
        print(f"{reached.broker}", flush=True)
        _say(
            "the broker is ready, Ctrl-C ends it. Other shopwindow commands of this user find it;\n"
            f"for other programs: export SHOPWINDOW_BROKER={reached.broker}"
        )
        try:
            while broker.poll() is None:
                time.sleep(0.2)
        except KeyboardInterrupt:
            return 0
        raise BrokerError(f"Kafka ended by itself with status {broker.poll()}; its log: {broker.log}")


def _worker(settings: Settings, args: argparse.Namespace) -> int:
    from agents.app import run

    reached = settings if settings.broker else _running(settings)
    with ExitStack() as stack:
        if reached is None:
            stack.enter_context(_sigterm_as_ctrl_c())
            _, reached = stack.enter_context(_embedded(settings, 0, None))
            _say(f"no SHOPWINDOW_BROKER is set; {reached.broker} is here as long as this worker")
        return run(reached)


def _topics_create(settings: Settings, args: argparse.Namespace) -> int:
    import asyncio

    from stream.kafka.topics import TOPICS, create

    created = asyncio.run(create(_reached(settings)))
    print(f"created {len(created)} of {len(TOPICS)} topics" + "".join(f"\n  {name}" for name in created))
    return 0


def _topics_check(settings: Settings, args: argparse.Namespace) -> int:
    import asyncio

    from stream.kafka.topics import TOPICS, WrongTopics, check

    problems = asyncio.run(check(_reached(settings)))
    if problems:
        raise WrongTopics("\n".join(problems))
    print(f"all {len(TOPICS)} topics are as they should be")
    return 0


def _send(settings: Settings, args: argparse.Namespace) -> int:
    reached = _client(settings)
    import asyncio

    from deploy.replay import send

    return asyncio.run(send(reached, args.file))


def _catalog_load(settings: Settings, args: argparse.Namespace) -> int:
    reached = _client(settings)
    import asyncio

    from deploy.replay import load_catalog

    return asyncio.run(load_catalog(reached, args.file, args.skip_bad))


def _replay(settings: Settings, args: argparse.Namespace) -> int:
    reached = _client(settings)
    import asyncio

    from deploy.replay import replay

    return asyncio.run(replay(reached, args.file, args.speed, args.limit, args.add_items, args.prefix_user))


def _watch(settings: Settings, args: argparse.Namespace) -> int:
    reached = _client(settings)
    import asyncio

    from deploy.inspect_topics import watch

    asyncio.run(watch(reached, args.user, args.json, _print_at_once))
    return 0


def _print_at_once(text: str) -> None:
    print(text, flush=True)


def _profiles(settings: Settings, args: argparse.Namespace) -> int:
    reached = _client(settings)
    import asyncio

    from deploy.inspect_topics import profiles

    asyncio.run(profiles(reached, args.json, print))
    return 0


def _client(settings: Settings) -> Settings:
    """For commands whose errors are sentences: what aiokafka logs besides is for those who ask for it."""
    import logging

    if settings.log_level != "DEBUG":
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return _reached(settings)


def _models_list(settings: Settings, args: argparse.Namespace) -> int:
    from models.manifest import list_models

    found = list_models(settings.models_dir)
    for model in found:
        figures = " ".join(f"{name}={value:g}" for name, value in sorted(model.metrics.items()))
        print(f"{model.kind:<10} {model.name}  {model.version[:19]}  {model.created}\n  {model.data}\n  {figures}")
    if not found:
        raise Failure(f"{settings.models_dir} holds no model; `shopwindow models train` makes a ranker")
    return 0


def _models_train(settings: Settings, args: argparse.Namespace) -> int:
    from deploy.train_ranker import main as train

    return train(args.more)


def _settings(settings: Settings, args: argparse.Namespace) -> int:
    if not args.markdown:
        for row in describe(settings, os.environ):
            print(f"{row.name}={row.value}  ({row.source})\n    {row.meaning}; {row.expected}")
        return 0
    print("| variable | default | meaning | expected |\n|---|---|---|---|")
    for row in describe(Settings(), {}):
        # The same on every machine: the table goes into the README.
        value = row.value.replace(str(SHIPPED_MODELS.parent.parent) + os.sep, "").replace(str(Path.home()), "~")
        print(f"| `{row.name}` | {f'`{value}`' if value else ''} | {row.meaning} | {row.expected} |")
    return 0


def _schemas(settings: Settings, args: argparse.Namespace) -> int:
    from stream.page import schemas

    if args.dir is None:
        print(json.dumps(schemas(), indent=2, sort_keys=True))
        return 0
    args.dir.mkdir(parents=True, exist_ok=True)
    for name, schema in sorted(schemas().items()):
        path = args.dir / (name.replace("/", "-") + ".json")
        path.write_text(json.dumps(schema, indent=2, sort_keys=True) + "\n")
        print(path)
    return 0


# The usage


def _number(parse: Callable[[str], Any], low: float, expected: str, high: float = 1e18) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = parse(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")
        return value

    return read


def _speed(text: str) -> float | None:
    read = _number(float, 1e-6, "a number above 0, or max")
    return None if text == "max" else float(read(text))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shopwindow",
        description="Keeps every shopper's homepage personal in real time. Settings: `shopwindow settings`.",
        epilog="example:\n  shopwindow demo --seconds 30",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(to: Any, name: str, run: Run, help: str, example: str, passes_on: bool = False) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = to.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", epilog=f"example:\n  shopwindow {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        command.set_defaults(run=run, passes_on=passes_on)
        return command

    def group(name: str, help: str, example: str) -> Any:
        command = add(commands, name, _demo, help, example)
        return command.add_subparsers(metavar="COMMAND", required=True)

    demo = add(commands, "demo", _demo, "a demo shop: Kafka, a worker, simulated shoppers", "demo --seconds 30 --json")
    demo.add_argument("--seconds", type=_number(float, 1, "1 or more"), metavar="N", help="end after so long")
    demo.add_argument("--seed", type=_number(int, 0, "a whole number from 0"), default=1, metavar="S", help="another shop")
    demo.add_argument("--json", action="store_true", help="the summary as JSON, the last line of stdout")

    broker = add(commands, "broker", _broker, "run the embedded Kafka until Ctrl-C", "broker --port 9092")
    port = _number(int, 0, "a port from 0 to 65535", 65535)
    broker.add_argument("--port", type=port, default=0, metavar="P", help="of 127.0.0.1; without it any free one")
    broker.add_argument("--data", type=Path, metavar="DIR", help="where Kafka keeps its data")

    add(commands, "worker", _worker, "serve: turn behaviour into pages until Ctrl-C",
        "worker\n  SHOPWINDOW_BROKER=kafka://kafka:9092 shopwindow worker")  # fmt: skip

    topics = group("topics", "create or check the topics", "topics check")
    add(topics, "create", _topics_create, "create the topics that are missing", "topics create")
    add(topics, "check", _topics_check, "say what is wrong with the topics", "topics check")

    send = add(
        commands, "send", _send,
        "send events, one JSON object a line, each to the topic of its type; the worker validates them",
        "send events.jsonl\n  generate-events | shopwindow send -",
    )  # fmt: skip
    send.add_argument("file", metavar="FILE", help="JSON lines; - reads stdin")

    catalog = group("catalog", "fill the catalogue", "catalog load items.jsonl")
    catalog_load = add(catalog, "load", _catalog_load, "check the items of a file and put them into the catalogue",
                       "catalog load items.jsonl --skip-bad")  # fmt: skip
    catalog_load.add_argument("file", metavar="FILE", help="items as JSON lines or a JSON array, plain or gzip")
    catalog_load.add_argument("--skip-bad", action="store_true", help="load the good items though others are bad")

    replay = add(commands, "replay", _replay, "send a recorded clickstream, one shopper a session",
                 "replay clicks.tsv.gz --add-items --speed 60")  # fmt: skip
    replay.add_argument("file", metavar="FILE", help="TSV or CSV with SessionId, ItemId, Time, or events as JSON lines; "
                        "plain or gzip")  # fmt: skip
    replay.add_argument("--speed", type=_speed, metavar="X|max", help="so many times as fast as it was; max is the default")
    count = _number(int, 1, "a whole number from 1")
    replay.add_argument("--limit", type=count, metavar="N", help="only the first N events")
    replay.add_argument("--add-items", action="store_true", help="put items that the catalogue does not know into it first")
    replay.add_argument("--prefix-user", default="", metavar="P", help="put before each session's id")

    watch = add(commands, "watch", _watch, "show homepages as they are published", "watch --user anna")
    watch.add_argument("--user", metavar="U", help="only this shopper's, the newest that there is first")
    watch.add_argument("--json", action="store_true", help="as they are in Kafka, one a line")

    profiles = add(commands, "profiles", _profiles, "show the live table of profiles, sorted by shopper",
                   "profiles --json > profiles.jsonl")  # fmt: skip
    profiles.add_argument("--json", action="store_true", help="one JSON object a line, keys sorted, made for diff")

    models = group("models", "list or train models", "models list")
    add(models, "list", _models_list, "list the models that a worker would serve", "models list")
    add(models, "train", _models_train, "train a ranker from simulated shoppers; its options are passed on",
        "models train", passes_on=True)  # fmt: skip

    settings = add(commands, "settings", _settings, "show every setting and where its value comes from",
                   "settings --markdown")  # fmt: skip
    settings.add_argument("--markdown", action="store_true", help="the defaults as a table for the README")

    schemas = add(commands, "schemas", _schemas, "show the JSON Schemas of events, items, pages, impressions", "schemas out/")
    schemas.add_argument("dir", type=Path, nargs="?", metavar="DIR", help="write a file for each into this folder")
    return parser
