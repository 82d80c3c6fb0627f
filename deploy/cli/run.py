"""Commands that run processes: demo, broker, worker."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import click

from deploy.cli.command import FILE, SECONDS, Command, whole
from stream import logs
from stream.logs import say
from stream.settings import Settings


@click.command(cls=Command, example="shopwindow demo --seconds 30 --json")
@click.option("--seconds", type=SECONDS, metavar="N", help="Stop after N seconds. Without it, stop at Ctrl-C.")
@click.option("--seed", type=int, default=1, metavar="S", help="Seed of the shop and of the shoppers.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, the last line of stdout.")
def demo(settings: Settings, seconds: float | None, seed: int, as_json: bool) -> int:
    """Run the demo shop: Kafka, a worker and simulated shoppers."""
    from deploy.demo.run import demo as run

    return run(settings, seconds, seed, as_json)


@click.command(cls=Command, example="shopwindow broker --port 9092")
@click.option(
    "--port", type=whole(0, 65_535), metavar="P",
    help="Port on 127.0.0.1; 0 takes any free one. Default: 9092, or the folder's last port if that is taken.",
)  # fmt: skip
@click.option("--data", type=FILE, metavar="DIR", help="Folder of its data. Default: kafka in SHOPWINDOW_DATA_DIR.")
def broker(settings: Settings, port: int | None, data: Path | None) -> int:
    """Run the embedded Kafka in the foreground."""
    from deploy.cluster import embedded_broker

    with embedded_broker(settings, port, data or settings.data_dir / "kafka") as (kafka, _):
        say(f"Kafka answers at {kafka.bootstrap}; Ctrl-C stops it")
        print(f"export SHOPWINDOW_BROKER=kafka://{kafka.bootstrap}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            kafka.wait_until_exit()
        except KeyboardInterrupt:
            return 0
        say(f"Kafka ended: {kafka.end_reason()}")
    return 1


@click.command(cls=Command, example="SHOPWINDOW_BROKER=kafka://127.0.0.1:9092 shopwindow worker")
def worker(settings: Settings) -> int:
    """Run a worker: consume events, publish pages, write headlines.

    SHOPWINDOW_ROLE limits it to pages or to headlines. Without a broker it starts the embedded Kafka.
    """
    from agents.worker import run
    from deploy.cluster import embedded_broker, find_broker

    logs.configure(settings)
    with ExitStack() as stack:
        found = find_broker(settings)
        if found is not None:
            return run(found)
        say("no broker is set: this worker starts its own (SHOPWINDOW_BROKER names another)")
        kafka, found = stack.enter_context(embedded_broker(settings, None, settings.data_dir / "kafka"))
        say(f"its Kafka answers at {kafka.bootstrap}")
        return run(found, lambda: None if kafka.poll() is None else f"its Kafka ended: {kafka.end_reason()}")
