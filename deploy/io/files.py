"""Files that commands read: opened whatever packs them, and their lines as records of events and items."""

from __future__ import annotations

import gzip
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from stream.events import KINDS, TOPIC_KINDS
from stream.items.catalog import ItemError, decode_item

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # how files of theirs begin
_TOPIC_OF = {KINDS[kind]: topic for topic, kinds in TOPIC_KINDS.items() for kind in kinds}


class InputError(ValueError):
    """A file that cannot be used; the message says where and why."""


class Outgoing(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes


@contextmanager
def opened(path: str) -> Iterator[IO[str]]:
    """A text file or pipe, gzip or plain, or stdin for "-". Raises InputError where it cannot be read.

    It is UTF-8, with or without a mark at its beginning; bytes that are not come through as lone surrogates.
    """
    if path == "-":
        yield io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig", "surrogateescape")
        return
    try:
        raw = Path(path).open("rb")  # noqa: SIM115 - closed below, whichever wrapper reads it
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    with raw:
        first = raw.peek(len(ZSTD))
        if first.startswith(ZSTD):
            raise InputError(f"{path} is packed by zstd, which is not read here; unpack it first: zstd -d {path}")
        binary: Any = gzip.GzipFile(fileobj=raw) if first.startswith(GZIP) else raw
        try:
            yield io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} is a damaged gzip file ({error})") from None


def event_records(lines: Iterable[str]) -> Iterator[Outgoing]:
    """Lines of JSON as records, unjudged: the worker validates. What does not parse goes to `clicks` without a key."""
    for line in lines:
        value = line.strip().encode("utf-8", "surrogateescape")
        if not value:
            continue
        key, topic = None, "clicks"
        try:
            event = json.loads(value)
            topic = _TOPIC_OF.get(event["type"], "clicks")
            shopper = event["data"].get("user_id") or event["data"].get("anonymous_id")
            key = shopper.encode("utf-8", "surrogatepass")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        yield Outgoing(topic, key, value)


def _item_json(item: Any) -> bytes:
    """Of whatever JSON knows, so that `decode_item` may say what is wrong with it."""
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def item_records(path: str) -> tuple[list[Outgoing], list[str]]:
    """The good items of a file, JSON lines or one array, and what is wrong with the others. Raises InputError."""
    with opened(path) as file:
        text = file.read()
    values: list[bytes]
    if text.lstrip().startswith("["):
        try:
            values = [_item_json(item) for item in json.loads(text)]
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no JSON array ({error})") from None
    else:
        # Not `splitlines`: a JSON string may hold other ends of lines than these.
        values = [line.encode("utf-8", "surrogateescape") for line in text.split("\n") if line.strip()]
    good, problems = [], []
    for number, value in enumerate(values, 1):
        try:
            good.append(Outgoing("catalog", decode_item(None, value).item_id.encode(), value))
        except ItemError as error:
            problems.append(f"item {number}: {error.message}")
    return good, problems
