"""The copywriter's process: it writes what the copywriter writes, is replaced when it dies, and outlives nobody."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from agents.scribe import Sampling, Scribe
from models.copywriter import Copywriter, Facts
from models.manifest import ManifestError
from stream.settings import SHIPPED_MODELS
from tests.shopwindow import ROOT

FOLDER = SHIPPED_MODELS / "copywriter"
SAMPLING = Sampling(temperature=0.9, top_k=50, top_p=0.95, max_tokens=50, samples=2)
FACTS = [Facts("en", "for_you", "lighting", ("Brass lamp",)), Facts("zh", "trending", ""), Facts("en", "for_you", "?")]


def test_it_writes_what_the_copywriter_writes_and_goes_on_after_a_death() -> None:
    expected = Copywriter(FOLDER, samples=2).write(FACTS, 7)
    assert expected[0] is not None and expected[2] is None

    async def session() -> None:
        scribe = Scribe(FOLDER, SAMPLING)
        await scribe.start()
        try:
            assert await scribe.write(FACTS, 7) == expected
            assert scribe._process is not None
            os.kill(scribe._process.pid, signal.SIGKILL)
            assert await scribe.write(FACTS, 7) == expected, "another process has taken its place"
            hasty = asyncio.create_task(scribe.write(FACTS, 8))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            hasty.cancel()
            assert await scribe.write(FACTS, 7) == expected, "not the answer that somebody else did not wait for"
        finally:
            await scribe.stop()

    asyncio.run(session())


def test_a_model_that_is_not_there_is_refused_before_any_process_starts() -> None:
    with pytest.raises(ManifestError, match="manifest"):
        Scribe(FOLDER.parent, SAMPLING)


PARENT = """
import asyncio, sys
from tests.faults.test_scribe import FOLDER, SAMPLING
from agents.scribe import Scribe

async def main():
    scribe = Scribe(FOLDER, SAMPLING)
    await scribe.start()
    print(scribe._process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_it_ends_when_its_worker_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while alive(pid):
        assert time.monotonic() < deadline, "the copywriter's process outlives its worker"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
