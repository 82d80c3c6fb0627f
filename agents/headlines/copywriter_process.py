"""The copywriter in its own process, so that it never holds the interpreter's lock while a click waits.

A low-priority thread would still hold the lock while it waits for a processor. Requests and answers are lines of JSON
on the process's pipes. The process ends when its stdin does, however the worker ended.
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
from models.copywriter.facts import Facts
from models.copywriter.model import Copy, Copywriter
from stream import logs, metrics
from stream.settings import load

NICE = 10
# Weights in huge pages: each token reads them all, a GPT-2 of 124M in 9.9 ms instead of 10.7.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
ANSWER_TIMEOUT_S = 60.0  # also to get ready; a process that takes longer counts as stuck
# After this many failures without an answer in between, the process is not started for the cooldown.
MAX_FAILURES = 3
COOLDOWN_S = 300.0
LINE_BYTES = 1 << 20
# Errors of the process, its pipes and its answers.
FAILURES = (EOFError, TimeoutError, OSError, ValueError, msgspec.MsgspecError)
T = TypeVar("T")
log = logging.getLogger(__name__)


class SamplingSettings(msgspec.Struct, frozen=True):
    """The sampling arguments of `Copywriter`."""

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
    """No headlines for now: the process keeps failing. It is started again after the cooldown."""


class CopywriterProcess:
    """`Copywriter.write` as an awaitable call. Raises ManifestError if a file of the model is missing or changed."""

    def __init__(self, folder: Path, sampling: SamplingSettings, cooldown_s: float = COOLDOWN_S) -> None:
        self.version = manifest.load(folder, "copywriter").version  # `sha256:...`
        self._folder, self._sampling = folder.resolve(), sampling
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._number = 0  # of the last request
        self._cooldown_s, self._unavailable_until = cooldown_s, 0.0  # the latter on the monotonic clock
        self._failures = 0  # in a row

    @property
    def is_alive(self) -> bool:
        """True while the process runs."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Return once the model is loaded and warm, so that the first headline need not wait.

        Raises CopywriterUnavailable, as `write` does.
        """

        async def nothing() -> None: ...

        await self._with_process(nothing)

    async def _start(self) -> None:
        await self.stop()
        sampling = msgspec.json.encode(self._sampling).decode()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agents.headlines.copywriter_process", str(self._folder), sampling,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES,
            cwd=Path(__file__).resolve().parents[2], env=HUGE_PAGES | os.environ,
        )  # fmt: skip
        await self._read_answer(0)

    async def write(self, facts: Sequence[Facts], seed: int) -> list[Copy | None]:
        """A headline for each of the facts, None if none passed the guard.

        A process that died or hangs is replaced. Raises CopywriterUnavailable after MAX_FAILURES failures in a row, and
        then immediately until the cooldown is over.
        """
        return await self._with_process(lambda: self._ask(facts, seed))

    async def _with_process(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call` while a process runs. After a failure it is tried again with another process."""
        async with self._lock:
            while monotonic() >= self._unavailable_until:
                try:
                    if self._process is not None and self._process.returncode is not None:
                        raise EOFError(f"it ended with status {self._process.returncode}")
                    if self._process is None:
                        await self._start()
                    result = await call()
                except FAILURES as error:
                    await self.stop()
                    self._record_failure(error)
                else:
                    if self._failures >= MAX_FAILURES:
                        log.warning("the copywriter writes again")
                    self._failures = 0
                    return result
        raise CopywriterUnavailable

    def _record_failure(self, error: Exception) -> None:
        self._failures += 1
        metrics.COPYWRITER_DEATHS.inc()
        if self._failures < MAX_FAILURES:
            log.warning("the copywriter's process is started again: %s", _describe(error))
            return
        self._unavailable_until = monotonic() + self._cooldown_s
        log.error(
            "the copywriter's process keeps failing (%s, %d times in a row); pages go out with template headlines, and "
            "it is started again in %.0f s: see its output above, check SHOPWINDOW_MODELS_DIR, "
            "or set SHOPWINDOW_COPY=false",
            _describe(error), self._failures, self._cooldown_s,
        )  # fmt: skip

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
        return await self._read_answer(self._number)

    async def _read_answer(self, number: int) -> list[Copy | None]:
        assert self._process is not None and self._process.stdout is not None, "start first"
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            # The answer of a cancelled call may still arrive. Skip it.
            while line := await self._process.stdout.readline():
                answer = msgspec.json.decode(line, type=_Answer)
                if answer.number == number:
                    return answer.copies
        raise EOFError(f"it ended with status {await self._process.wait()}")


def _describe(error: Exception) -> str:
    return f"no answer within {ANSWER_TIMEOUT_S:.0f} s" if isinstance(error, TimeoutError) else str(error)


def main(folder: str, sampling: str) -> None:
    """The process: answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which ends this process
    logs.configure(load(os.environ))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    if sys.platform == "linux":
        os.nice(NICE)
    copywriter = Copywriter(Path(folder), **msgspec.to_builtins(msgspec.json.decode(sampling, type=SamplingSettings)))
    copies = copywriter.write([Facts("en", "for_you", "")], 0)
    request = _Request(0, [], 0)
    while True:
        answers.write(msgspec.json.encode(_Answer(request.number, copies)) + b"\n")
        answers.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        request = msgspec.json.decode(line, type=_Request)
        copies = copywriter.write(request.facts, request.seed)


if __name__ == "__main__":
    main(*sys.argv[1:])
