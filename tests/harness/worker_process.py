"""The product as its users run it: a worker process, events sent to it, and the topics that it writes."""

import asyncio
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from stream.kafka import topics
from stream.kafka.client.connection import client_options
from stream.kafka.global_topics import read_table, read_topic
from stream.profile.codec import decode_record, owing_pages
from stream.profile.row import PROFILE, PROFILE_VERSION
from stream.profile.store import META_PREFIX
from stream.row_codec import unpack
from stream.settings import Settings, to_environ
from tests.harness.counting import send
from tests.harness.events import NOW, record
from tests.harness.shop import item

ROOT = Path(__file__).parents[2]
Record = tuple[bytes | None, bytes | None]


def settings_for(broker: str, prefix: str, **more: Any) -> Settings:
    values: dict[str, Any] = {
        "broker": f"kafka://{broker}",
        "prefix": prefix,
        "app_id": f"{prefix}app",
        "partitions": 4,
        "session_timeout": 2.0,
        "heartbeat": 0.3,
        "web_port": 0,
        "copy": False,
        "late_events": "fold",  # the events of `mixed_clicks` may be older than all ids of a shopper's full window
    }
    return Settings(**(values | more))


def environ_of(settings: Settings) -> dict[str, str]:
    """The environment from which a command reads exactly these settings."""
    return to_environ(settings, os.environ)


def command(settings: Settings, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of the product until it exits."""
    return subprocess.run(
        [sys.executable, "-m", "shopwindow", *arguments], env=environ_of(settings), cwd=ROOT, text=True,
        capture_output=True, timeout=120, **more,
    )  # fmt: skip


# Tests use these words as secrets and shoppers' data. A worker must never log one.
PRIVATE = re.compile(r"sesame|secretly|tweed", re.I)


class WorkerProcess(subprocess.Popen[bytes]):
    """A worker process, whose output is kept."""

    def __init__(self, settings: Settings, program: Sequence[str] = ("-m", "shopwindow", "worker")) -> None:
        # It lives as long as the process.
        self._output = tempfile.NamedTemporaryFile(prefix="worker-", suffix=".log")  # noqa: SIM115
        super().__init__(
            [sys.executable, *program],
            env=environ_of(settings),
            cwd=ROOT,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def output(self) -> str:
        return Path(self._output.name).read_text(errors="replace")

    async def wait_for_output(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Wait until the output matches. Fails if the worker ends first, or after the timeout."""
        try:
            async with asyncio.timeout(seconds):
                while not (found := re.search(pattern, self.output())):
                    ended = self.poll() is not None
                    found = re.search(pattern, self.output())
                    if found:
                        break
                    assert not ended, (
                        f"the worker ended with {self.returncode} without {pattern!r} in its output: {self.output()}"
                    )
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"no {pattern!r} in the worker's output within {seconds} s: {self.output()}") from None
        return found

    async def port(self) -> int:
        """Port of its HTTP endpoint."""
        return int((await self.wait_for_output(r"metrics at http://[^:]+:(\d+)/"))[1])

    async def ready(self) -> None:
        await self.wait_for_output("shopwindow: ready")

    async def wait_for_exit(self, seconds: float = 60.0) -> int:
        """Wait until it exits and return its status."""
        return await asyncio.to_thread(self.wait, seconds)


@contextmanager
def worker(settings: Settings, *program: str) -> Iterator[WorkerProcess]:
    """A worker, or another `program` that runs one; it is stopped at the end unless it has ended by then.

    The output of every worker is searched for secrets and shoppers' data.
    """
    process = WorkerProcess(settings, *([program] if program else []))
    try:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, "a worker that gets SIGTERM exits with 0"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        output = process.output()
        sys.stderr.write(output)
        private = PRIVATE.search(output)
        assert private is None, f"the worker's log contains {private and private.group()!r}"


def clicks(n: int, shoppers: int, start: float = NOW, items: int = 50, first: int = 0) -> list[Record]:
    """n events of the shoppers in turn, a second apart, with distinct ids; `first`: number of the first event."""
    made: list[Record] = []
    for k in range(first, first + n):
        kind = ("select_item", "view_item", "add_to_cart", "view_item")[k % 4]
        made.append(record(kind, f"u{k % shoppers}", f"e{k}", start + k, item=f"i{(k * 7 + k // shoppers) % items}"))
    return made


def mixed_clicks(chance: random.Random, n: int, shoppers: int, items: int = 50, late: float = 0.1) -> list[Record]:
    """n events of all kinds of `clicks`, of random shoppers, a share of them late.

    Each shopper's last event is also their newest, so that their last page names it as its trigger.
    """
    owners = [chance.randrange(shoppers) for _ in range(n)]
    last = {shopper: k for k, shopper in enumerate(owners)}
    made: list[Record] = []
    for k, shopper in enumerate(owners):
        kind = chance.choice(("view_item", "view_item", "select_item", "add_to_cart", "remove_from_cart", "search",
                              "view_homepage", "hide_item"))  # fmt: skip
        is_late = chance.random() < late and last[shopper] != k
        data: dict[str, Any] = {"locale": chance.choice(("en", "zh"))}
        if kind == "search":
            data["search_term"] = f"tweed {chance.randrange(9)}"
        elif kind != "view_homepage":
            data["item"] = f"i{chance.randrange(items)}"
        moment = NOW + k - (chance.uniform(0, 90_000) if is_late else 0)
        made.append(record(kind, f"secretly-{shopper}", f"e{k}", moment, **data))
    return made


def record_now(chance: random.Random, number: int, shoppers: int = 30, items: int = 50) -> Record:
    """A view with the present time; its id ends with that time (s since the epoch)."""
    now = time.time()
    shopper, item = f"secretly-{chance.randrange(shoppers)}", f"i{chance.randrange(items)}"
    return record("view_item", shopper, f"e{number}@{now:.4f}", now, item=item)


async def open_shop(settings: Settings, items: int = 50) -> None:
    """Create the topics, and a catalogue with this number of items."""
    await topics.create(settings)
    await send(settings, "catalog", [item(f"i{k}", category=f"c{k % 5}", brand=f"b{k % 17}") for k in range(items)])


async def replay(settings: Settings, sent: AsyncIterator[Record], done: list[Record]) -> None:
    """Send as a storefront should: in order, each event acknowledged by all replicas, whatever fails meanwhile."""
    producer = AIOKafkaProducer(
        **client_options(settings), acks="all", enable_idempotence=True, request_timeout_ms=120_000
    )
    async with producer:
        waiting = []
        async for key, value in sent:
            waiting.append(await producer.send(settings.prefix + "clicks", value, key=key))
            done.append((key, value))
        await asyncio.gather(*waiting)


def resident(pid: int | str = "self") -> float:
    """Resident memory of a process in MB, by default of this one."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def profiles_of(settings: Settings) -> dict[str, Any]:
    """The profile of each shopper, read from the changelog."""
    return decoded_profiles(await read_table(settings, "profiles"))


def decoded_profiles(table: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The profile of each shopper in the rows of a changelog."""
    keys = sorted(key for key in table if not key.startswith(META_PREFIX))
    rows = unpack([decode_record(table[key])[0] for key in keys], PROFILE, PROFILE_VERSION)
    return {key.decode(): row for key, row in zip(keys, rows, strict=True)}


async def until_counted(settings: Settings, events: int, deadline: float = 60.0) -> dict[str, Any]:
    """The profiles, once they count this number of events and no page is deferred.

    Fails if they count more, or if `deadline` s have passed.
    """
    counted, deferred = -1, 0
    try:
        async with asyncio.timeout(deadline):
            while True:
                table = await read_table(settings, "profiles")
                profiles, deferred = decoded_profiles(table), len(owing_pages(table))
                counted = sum(int(row["events"]) for row in profiles.values())
                if counted >= events:
                    assert counted == events, f"{counted} events counted, {events} were sent"
                    if not deferred:
                        return profiles
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(
            f"{counted} of {events} events counted, {deferred} pages deferred after {deadline} s"
        ) from None


async def read_all(settings: Settings, topic: str) -> list[Any]:
    """Every record of a topic, ordered within each partition."""
    return [record async for record in read_topic(settings, topic)]


def pages_of(records: Sequence[Any]) -> dict[str, list[dict[str, Any]]]:
    """The pages of each shopper in order, since their last tombstone."""
    pages: dict[str, list[dict[str, Any]]] = {}
    for page in records:
        if page.value is None:
            pages.pop(page.key.decode(), None)
            continue
        pages.setdefault(page.key.decode(), []).append(json.loads(page.value))
    return pages


def assert_versions_rise(pages: Mapping[str, Sequence[Mapping[str, Any]]], may_repeat: bool = False) -> None:
    """Assert that each page of a shopper has a larger version than the one before.

    may_repeat: a worker was killed, so a page may be sent again with its version.
    """
    for shopper, made in pages.items():
        versions = [page["version"] for page in made]
        assert all(a < b or (may_repeat and a == b) for a, b in itertools.pairwise(versions)), (shopper, versions)


async def assert_answered(settings: Settings, sent: Sequence[Record]) -> dict[str, list[dict[str, Any]]]:
    """Assert that each shopper's last page answers their last event, and that versions never go back.

    A page may be sent again with its version, for a run that was replayed. Each page has its impression. Each shopper's
    last event must also be their newest, as in `mixed_clicks`.
    """
    pages = pages_of(await read_all(settings, "homepages"))
    last = {key.decode(): json.loads(value)["id"] for key, value in sent if key and value}
    assert_versions_rise(pages, may_repeat=True)
    assert {key: made[-1]["trigger"]["event_id"] for key, made in pages.items()} == last
    impressions = {json.loads(record.value)["page_id"] for record in await read_all(settings, "impressions")}
    assert impressions == {page["page_id"] for made in pages.values() for page in made}
    return pages


def fetch(port: int, path: str) -> Any:
    """Return the JSON of a worker's endpoint, also of an error; None if nothing listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return json.loads(error.read())
    except OSError:
        return None
