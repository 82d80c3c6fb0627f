"""The copywriter in a process of its own, so that it never keeps the interpreter from a click.

A thread that yields to everything else would still hold the interpreter's lock while it waits for a processor. Requests and
answers are lines of JSON on the process's pipes; it ends when its stdin does, however the worker ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TypeVar

import msgspec

from models import manifest
from models.copywriter.model import Copy, Copywriter
from models.copywriter.facts import Facts
from stream import logs, metrics
from stream.settings import load

NICE = 10
# Weights in huge pages: each token reads them all, a GPT-2 of 124M in 9.9 ms in place of 10.7.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PATIENCE = 60.0  # s for an answer, or to be ready; then it is taken to be stuck
# A process that ends or hangs so often, with no answer in between, is left alone for a while.
LIVES = 3
REST = 300.0  # s
LINE_BYTES = 1 << 20
FAILURES = (EOFError, TimeoutError, OSError, ValueError, msgspec.MsgspecError)  # of a process, its pipes, its answers
T = TypeVar("T")
log = logging.getLogger(__name__)


class SamplingSettings(msgspec.Struct, frozen=True):
    """As `Copywriter` takes it."""

    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    samples: int


class _Request(msgspec.Struct, frozen=True):
    number: int
    facts: list[Facts]
    seed: int


class _Answer(msgspec.Struct, frozen=True):
    number: int
    copies: list[Copy | None]


class CopywriterUnavailable(Exception):
    """No headlines for now: the process does not stay up. It is tried again after REST seconds."""


class CopywriterProcess:
    """`Copywriter.write` as an awaitable call. Raises ManifestError where a file of the model is missing or changed."""

    def __init__(self, folder: Path, sampling: SamplingSettings, rest: float = REST) -> None:
        self.version = manifest.load(folder, "copywriter").version  # `sha256:...`
        self._folder, self._sampling = folder.resolve(), sampling
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._number = 0
        self._rest, self._rests_until = rest, 0.0  # s, of the monotonic clock
        self._failed = 0  # times in a row

    @property
    def alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Return when the model is loaded and warm, so that the first headline need not wait. Raises ScribeRests as `write`."""

        async def nothing() -> None: ...

        await self._of_process(nothing)

    async def _start(self) -> None:
        await self.stop()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agents.headlines.copywriter_process", str(self._folder), msgspec.json.encode(self._sampling).decode(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
            cwd=Path(__file__).resolve().parents[2], env=HUGE_PAGES | os.environ,
        )  # fmt: skip
        await self._answer(0)

    async def write(self, facts: Sequence[Facts], seed: int) -> list[Copy | None]:
        """A headline for each, None where there is none. A process that died or hangs is replaced.

        Raises ScribeRests where it dies or hangs again and again, and at once until it has rested.
        """
        return await self._of_process(lambda: self._ask(facts, seed))

    async def _of_process(self, what: Callable[[], Awaitable[T]]) -> T:
        """The result of `what`, once a process runs; it is tried again with another where it fails, and not while it rests."""
        async with self._turn:
            while monotonic() >= self._rests_until:
                try:
                    if self._process is not None and self._process.returncode is not None:
                        raise EOFError(f"it ended with status {self._process.returncode}")
                    if self._process is None:
                        await self._start()
                    came = await what()
                except FAILURES as error:
                    await self.stop()
                    self._failed += 1
                    metrics.COPYWRITER_DEATHS.inc()
                    if self._failed < LIVES:
                        log.warning("the copywriter's process is started again: %s", _said(error))
                        continue
                    self._rests_until = monotonic() + self._rest
                    log.error(
                        "the copywriter's process does not stay up (%s, %d times in a row); pages go out with template "
                        "headlines, and it is tried again in %.0f s: see what it said above, check SHOPWINDOW_MODELS_DIR, "
                        "or set SHOPWINDOW_COPY=false",
                        _said(error), self._failed, self._rest,
                    )  # fmt: skip
                else:
                    if self._failed >= LIVES:
                        log.warning("the copywriter writes again")
                    self._failed = 0
                    return came
        raise CopywriterUnavailable

    async def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def _ask(self, facts: Sequence[Facts], seed: int) -> list[Copy | None]:
        assert self._process is not None and self._process.stdin is not None, "start first"
        self._number += 1
        self._process.stdin.write(msgspec.json.encode(_Request(self._number, list(facts), seed)) + b"\n")
        await self._process.stdin.drain()
        return await self._answer(self._number)

    async def _answer(self, number: int) -> list[Copy | None]:
        assert self._process is not None and self._process.stdout is not None, "start first"
        async with asyncio.timeout(PATIENCE):
            # An answer whose caller was cancelled is still to come; it is passed over.
            while line := await self._process.stdout.readline():
                answer = msgspec.json.decode(line, type=_Answer)
                if answer.number == number:
                    return answer.copies
        raise EOFError(f"it ended with status {await self._process.wait()}")


def _said(error: Exception) -> str:
    return f"no answer within {PATIENCE:.0f} s" if isinstance(error, TimeoutError) else str(error)


def main(folder: str, sampling: str) -> None:
    """In the process: answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which ends us
    logs.configure(load(os.environ))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not come between the answers
    if sys.platform == "linux":
        os.nice(NICE)
    writer = Copywriter(Path(folder), **msgspec.to_builtins(msgspec.json.decode(sampling, type=SamplingSettings)))
    copies = writer.write([Facts("en", "for_you", "")], 0)
    request = _Request(0, [], 0)
    while True:
        answers.write(msgspec.json.encode(_Answer(request.number, copies)) + b"\n")
        answers.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        request = msgspec.json.decode(line, type=_Request)
        copies = writer.write(request.facts, request.seed)


if __name__ == "__main__":
    main(*sys.argv[1:])
