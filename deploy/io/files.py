"""Open the files that commands read, and turn their lines into records of events and items."""

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

from stream.events.cloudevents import unpack
from stream.events.decode import KINDS, TOPIC_KINDS, shopper_of
from stream.items.catalog import ItemError, decode_item

# The first bytes of a compressed file.
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_TOPIC_OF = {KINDS[kind]: topic for topic, kinds in TOPIC_KINDS.items() for kind in kinds}


class InputError(ValueError):
    """A file or an argument that cannot be used; the message names it, what is wrong, and what to do."""


class Outgoing(NamedTuple):
    """A record to send; `topic` is without the prefix."""

    topic: str
    key: bytes | None
    value: bytes


@contextmanager
def open_text(path: str) -> Iterator[IO[str]]:
    """Open a text file or pipe, plain or gzip, or stdin for "-". Raises InputError if it cannot be read.

    The text is UTF-8 with or without a byte order mark. Invalid bytes become lone surrogates.
    """
    if path == "-":
        yield io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig", "surrogateescape")
        return
    try:
        raw = Path(path).open("rb")  # noqa: SIM115 - closed below, also for the gzip reader
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    with raw:
        first = raw.peek(len(ZSTD_MAGIC))
        if first.startswith(ZSTD_MAGIC):
            raise InputError(f"{path} is compressed with zstd, which is not supported; decompress it: zstd -d {path}")
        binary: Any = gzip.GzipFile(fileobj=raw) if first.startswith(GZIP_MAGIC) else raw
        try:
            yield io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} is a damaged gzip file ({error}); copy or download it again") from None


def event_records(lines: Iterable[str]) -> Iterator[Outgoing]:
    """Yield lines of JSON as records. They are not validated here; the worker does that.

    A line that cannot be parsed goes to `clicks` without a key.
    """
    for line in lines:
        value = line.strip().encode("utf-8", "surrogateescape")
        if not value:
            continue
        key, topic = None, "clicks"
        try:
            event = unpack(value).document
            topic = _TOPIC_OF.get(event["type"], "clicks")
            key = shopper_of(event["data"]).encode("utf-8", "surrogatepass") or None
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
        yield Outgoing(topic, key, value)


def item_records(path: str) -> tuple[list[Outgoing], list[str]]:
    """Read the items of a file, JSON lines or one array.

    Return records of the good items, and a message for each bad one. The message names its line, or its number in the
    array, the field and the value. Raises InputError if the file cannot be read.
    """
    with open_text(path) as file:
        text = file.read()
    is_array = text.lstrip().startswith("[")
    good, problems = [], []
    for number, value in _array_items(path, text) if is_array else _line_items(text):
        try:
            good.append(Outgoing("catalog", decode_item(None, value).item_id.encode(), value))
        except ItemError as error:
            problems.append(f"{'item' if is_array else 'line'} {number}: {error.message}")
    return good, problems


def _array_items(path: str, text: str) -> Iterator[tuple[int, bytes]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a valid JSON array ({error})") from None
    for number, item in enumerate(items, 1):
        # Anything that JSON can hold is encoded again, so that `decode_item` reports what is wrong with it.
        yield number, json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _line_items(text: str) -> Iterator[tuple[int, bytes]]:
    # Not `splitlines`: a JSON string may contain other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.encode("utf-8", "surrogateescape")
