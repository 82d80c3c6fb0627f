"""Commands that print reference tables: settings, metrics, schemas, kinds of events."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from deploy.cli.command import FILE, Command
from stream.settings import Settings, describe

ROOT = Path(__file__).resolve().parents[2]


@click.command("settings", cls=Command, example="shopwindow settings")
@click.option("--markdown", is_flag=True, help="Print the defaults as a Markdown table, for the documentation.")
def settings(current: Settings, markdown: bool) -> None:
    """Show every setting, its value and where it comes from."""
    if markdown:
        print("| variable | default | expected | meaning |\n|---|---|---|---|")
        for row in describe(Settings(), {}):
            default = row.value.replace(str(Path.home()), "~").replace(str(ROOT), ".")
            print(f"| `{row.name}` | {default and f'`{default}`'} | {row.expected} | {row.meaning} |")
        return
    for row in describe(current, os.environ):
        print(f"{row.name:32} {row.value or '-':28} {row.source:12} {row.meaning}")


@click.command("metrics", cls=Command, example="shopwindow metrics")
@click.option("--markdown", is_flag=True, help="Print a Markdown table, for the documentation.")
def metrics(_: Settings, markdown: bool) -> None:
    """List the metrics of a worker, their labels and meaning."""
    from stream.metrics import METRIC_DESCRIPTIONS

    if markdown:
        print("| metric | kind | labels | meaning |\n|---|---|---|---|")
    for name, kind, labels, meaning in METRIC_DESCRIPTIONS:
        if markdown:
            print(f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in labels)} | {meaning} |")
        else:
            print(f"{name}{'{' + ', '.join(labels) + '}' if labels else ''}\n    {kind}: {meaning}")


@click.command("schemas", cls=Command, example="shopwindow schemas ./schemas")
@click.argument("folder", type=FILE, required=False)
def schemas(_: Settings, folder: Path | None) -> None:
    """Print the JSON Schemas of all payloads.

    These are events, items, pages and impressions. With FOLDER, write each one into a file there instead.
    """
    from stream.page.schemas import schemas

    for name, schema in schemas().items():
        text = json.dumps(schema, indent=2, ensure_ascii=False)
        if folder is None:
            print(text)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name.replace('/', '-')}.json").write_text(text + "\n")


@click.command("kinds", cls=Command, example="shopwindow kinds")
@click.option("--markdown", is_flag=True, help="Print a Markdown table, for the documentation.")
def kinds(_: Settings, markdown: bool) -> None:
    """List the kinds of events: topic, required fields, meaning.

    Every event also needs `id`, `type` and a shopper: `data.user_id` or `data.anonymous_id`.
    """
    from stream.events.decode import KIND_MEANINGS, KINDS, REQUIRED_FIELDS, TOPIC_KINDS

    if markdown:
        print("| kind | topic | required fields | sent when |\n|---|---|---|---|")
    for topic, of_topic in TOPIC_KINDS.items():
        for kind in sorted(of_topic):
            fields, meaning = REQUIRED_FIELDS.get(kind, ()), KIND_MEANINGS[kind]
            if markdown:
                shown = ", ".join(f"`{field}`" for field in fields)
                print(f"| `{KINDS[kind]}` | `{topic}` | {shown} | {meaning} |")
            else:
                print(f"{KINDS[kind]:18} {topic:10} {', '.join(fields) or '-'}\n    {meaning.replace('`', '')}")
