"""Open the files that commands read, and turn lines of events into records."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from stream.events.cloudevents import unpack
from stream.events.decode import KINDS, TOPIC_KINDS, shopper_of

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
    """Yield lines of JSON as records. They are not validated here; `EventCheck` does that, and the worker.

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
