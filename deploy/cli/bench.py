"""The command bench."""

from __future__ import annotations

import json
from importlib import import_module

import click

from deploy.cli.command import COUNT, SECONDS, Command
from stream.settings import Settings

BENCHMARKS = ("stream", "page", "latency", "recovery", "models", "client")


@click.command(cls=Command, example="shopwindow bench page --json")
@click.argument("benchmark", type=click.Choice(BENCHMARKS))
@click.option("--seconds", type=SECONDS, metavar="N", help="How long it takes, about. Default: one to five minutes.")
@click.option("--rounds", type=COUNT, default=5, metavar="N", help="Rounds; the result is their median.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object, the last line of stdout.")
def bench(settings: Settings, benchmark: str, seconds: float | None, rounds: int, as_json: bool) -> None:
    """Measure speed against a baseline in the same run."""
    from deploy.bench.common import Plan

    module = import_module(f"deploy.bench.{benchmark}")
    figures = module.measure(settings, Plan(seconds or module.SECONDS, rounds))
    print(json.dumps(figures) if as_json else module.table(figures))
