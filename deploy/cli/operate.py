"""Commands for operators: status, dead-letters."""

from __future__ import annotations

import json
import sys

import click

from deploy.cli.command import COUNT, Command, Group
from stream.settings import Settings

REFRESH_S = 2.0
CLEAR_SCREEN = "\x1b[2J\x1b[H"


@click.command(cls=Command, example="shopwindow status --watch")
@click.option("--watch", is_flag=True, help="Repeat every 2 s, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
async def status(settings: Settings, watch: bool, as_json: bool) -> int:
    """Show workers, their rate, and the lag of each partition.

    The exit status is 1 if no worker is making pages.
    """
    import asyncio

    from deploy.cluster import require_broker
    from deploy.operate.status import cluster_status, format_status, has_page_worker

    settings = require_broker(settings)
    while True:
        seen = await cluster_status(settings)
        if watch and not as_json and sys.stdout.isatty():
            print(CLEAR_SCREEN, end="")
        print(json.dumps(seen) if as_json else format_status(seen), flush=True)
        if not watch:
            return 0 if has_page_worker(seen) else 1
        await asyncio.sleep(REFRESH_S)


@click.group(
    "dead-letters",
    cls=Group,
    example="shopwindow dead-letters list\nshopwindow dead-letters redrive --reason invalid --dry-run",
)
def dead_letters() -> None:
    """List refused records, show one, send them back."""


@dead_letters.command("list", example="shopwindow dead-letters list --reason not_json")
@click.option("--reason", metavar="R", help="Only those with this reason, such as not_json or missing.")
@click.option("--limit", type=COUNT, default=20, metavar="N", help="At most N dead letters.")
@click.option("--all", "with_redriven", is_flag=True, help="Include those that were sent back already.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
async def list_dead_letters(
    settings: Settings, reason: str | None, limit: int, with_redriven: bool, as_json: bool
) -> None:
    """List dead letters, newest first.

    Those that were sent back are left out, unless --all is given.
    """
    from deploy.cluster import require_broker
    from deploy.operate.dead_letters import list_letters, print_letter_list

    print_letter_list(await list_letters(require_broker(settings), reason, limit, with_redriven), as_json)


@dead_letters.command("show", example="shopwindow dead-letters show 3-17")
@click.argument("letter_id", metavar="ID")
async def show_dead_letter(settings: Settings, letter_id: str) -> None:
    """Show a record: why it was refused, its headers and its bytes.

    ID is PARTITION-OFFSET, as `shopwindow dead-letters list` prints it.
    """
    from deploy.cluster import require_broker
    from deploy.operate.dead_letters import describe_letter

    print(await describe_letter(require_broker(settings), letter_id))


@dead_letters.command("redrive", example="shopwindow dead-letters redrive --reason invalid --dry-run")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--reason", metavar="R", help="Only those with this reason.")
@click.option("--dry-run", is_flag=True, help="Print what would be sent, and send nothing.")
@click.option("--force", is_flag=True, help="Include those that this version would refuse again.")
async def redrive_dead_letters(
    settings: Settings, ids: tuple[str, ...], reason: str | None, dry_run: bool, force: bool
) -> int:
    """Send refused records back to their topics, each once.

    A record keeps its original key and bytes. With IDs, only those are sent, and the exit status is 1 if one of them
    is not.
    """
    from deploy.cluster import require_broker
    from deploy.operate.dead_letters import format_redrive, redrive_letters

    done = await redrive_letters(require_broker(settings), reason, ids, dry_run, force)
    print(format_redrive(done, dry_run))
    return 1 if ids and done.left else 0
