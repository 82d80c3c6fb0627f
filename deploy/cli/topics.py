"""The command group `topics`: create the topics, or check them."""

from __future__ import annotations

import click

from deploy.cli.command import Group, whole
from stream.logs import say
from stream.settings import Settings


@click.group(cls=Group, example="shopwindow topics create")
def topics() -> None:
    """Create missing topics, or check the existing ones."""


@topics.command(example="shopwindow topics create")
@click.option(
    "--max-message-bytes", type=whole(100_000, 100 << 20), metavar="N",
    help="Maximum size of a record batch in the new topics. Default: the broker's, which suffices.",
)  # fmt: skip
async def create(settings: Settings, max_message_bytes: int | None) -> int:
    """Create the topics that are missing, then check all of them.

    The exit status is 1 if a topic has other partitions or settings.
    """
    from deploy.cluster import require_broker
    from stream.kafka.topics import create

    settings = require_broker(settings)
    created = await create(settings, max_message_bytes)
    print(f"created {', '.join(created)}" if created else "all topics were there")
    return await _report_problems(settings)


@topics.command(example="shopwindow topics check")
async def check(settings: Settings) -> int:
    """Check that every topic exists and has the right settings.

    The exit status is 1 if one is missing or has other partitions or settings.
    """
    from deploy.cluster import require_broker

    return await _report_problems(require_broker(settings))


async def _report_problems(settings: Settings) -> int:
    from stream.kafka.topics import check

    problems = await check(settings)
    for problem in problems:
        say(problem)
    if not problems:
        print("all topics are as they should be")
    return 1 if problems else 0
