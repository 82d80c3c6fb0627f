"""The product as its users run it: a worker as a process, events sent to it, and what can be read back."""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream.kafka.broadcast import read_table, read_topic
from stream.profile import PROFILE, PROFILE_VERSION, decode_record
from stream.rows import unpack
from stream.settings import Settings
from tests.unit.behaviour import NOW, record

ROOT = Path(__file__).parents[1]
Record = tuple[bytes | None, bytes | None]


def settings_for(broker: str, prefix: str, **more: Any) -> Settings:
    values: dict[str, Any] = {"broker": f"kafka://{broker}", "prefix": prefix, "app_id": f"{prefix}app", "partitions": 4,
                              "session_timeout": 2.0, "heartbeat": 0.3, "web_port": 0, "copy": False}  # fmt: skip
    return Settings(**(values | more))


def environ_of(settings: Settings) -> dict[str, str]:
    """The environment in which a command reads exactly these settings."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SHOPWINDOW_") or name.endswith("_CACHE")
    }
    default = Settings()
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if value != getattr(default, field.name):
            environ["SHOPWINDOW_" + field.name.upper()] = str(value)
    return environ


def command(settings: Settings, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of the product to its end."""
    return subprocess.run(
        [sys.executable, "-m", "shopwindow", *arguments], env=environ_of(settings), cwd=ROOT, text=True,
        capture_output=True, timeout=120, **more,
    )  # fmt: skip


@contextmanager
def worker(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as a process of its own; stopped, unless it has been killed, at the end."""
    process = subprocess.Popen([sys.executable, "-m", "shopwindow", "worker"], env=environ_of(settings), cwd=ROOT)
    try:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, "a worker that is told to stop ends with 0"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def clicks(n: int, shoppers: int, start: float = NOW, items: int = 50) -> list[Record]:
    """n events of so many shoppers in turn, a second apart, with distinct ids."""
    made: list[Record] = []
    for k in range(n):
        kind = ("select_item", "view_item", "add_to_cart", "view_item")[k % 4]
        made.append(record(kind, f"u{k % shoppers}", f"e{k}", start + k, item=f"i{(k * 7 + k // shoppers) % items}"))
    return made


async def profiles_of(settings: Settings) -> dict[str, Any]:
    """The profile of each shopper, as anybody reads it from the changelog."""
    table = await read_table(settings, "profiles")
    keys = sorted(table)
    rows = unpack([decode_record(table[key])[0] for key in keys], PROFILE, PROFILE_VERSION)
    return {key.decode(): row for key, row in zip(keys, rows, strict=True)}


async def until_counted(settings: Settings, events: int, deadline: float = 60.0) -> dict[str, Any]:
    """The profiles, once they count so many events. Fails where they do not by the deadline, or count more."""
    counted = -1
    async with asyncio.timeout(deadline):
        try:
            while True:
                profiles = await profiles_of(settings)
                counted = sum(int(row["events"]) for row in profiles.values())
                if counted >= events:
                    assert counted == events, f"{counted} events counted, {events} were sent"
                    return profiles
                await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{counted} of {events} events counted after {deadline} s") from None


async def read_all(settings: Settings, topic: str) -> list[Any]:
    """Every record of a topic, in order within its partitions."""
    return [record async for record in read_topic(settings, topic)]


def pages_of(records: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """The pages of each shopper in order."""
    pages: dict[str, list[dict[str, Any]]] = {}
    for page in records:
        pages.setdefault(page.key.decode(), []).append(json.loads(page.value))
    return pages
