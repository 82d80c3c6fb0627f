"""The copywriter's process: it writes what the copywriter writes, is replaced when it dies, and outlives nobody."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.headlines.copywriter_process import LIVES, CopywriterProcess, CopywriterUnavailable, SamplingSettings
from agents.worker import Worker
from models.copywriter.model import Copywriter
from models.copywriter.facts import Facts
from models.manifest import ManifestError
from stream import metrics
from stream.settings import SHIPPED_MODELS
from tests.harness.counting import scenario, send, until
from tests.harness.worker_process import ROOT, clicks, open_shop, pages_of, read_all, settings_for, until_counted

FOLDER = SHIPPED_MODELS / "copywriter"
SAMPLING = SamplingSettings(temperature=0.9, top_k=50, top_p=0.95, max_tokens=50, samples=2)
PYTHON = sys.executable
FACTS = [Facts("en", "for_you", "lighting", ("Brass lamp",)), Facts("zh", "trending", ""), Facts("de", "for_you", "")]


def test_it_writes_what_the_copywriter_writes_and_goes_on_after_a_death() -> None:
    expected = Copywriter(FOLDER, samples=2).write(FACTS, 7)
    assert expected[0] is not None and expected[2] is None

    async def session() -> None:
        scribe = CopywriterProcess(FOLDER, SAMPLING)
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
        CopywriterProcess(FOLDER.parent, SAMPLING)


PARENT = """
import asyncio, sys
from tests.faults.test_scribe import FOLDER, SAMPLING
from agents.headlines.copywriter_process import Scribe

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


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, rest: str) -> Path:
    """A program in the place of Python: it is ready at once, notes each of its lives, and does `rest`."""
    program, lives = folder / "stand-in", folder / "lives"
    program.write_text(
        f"#!{PYTHON}\nimport sys, time\nopen({str(lives)!r}, 'a').write('x')\n"
        f'print(\'{{"number":0,"copies":[]}}\', flush=True)\n{rest}\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr("agents.headlines.copywriter_process.sys.executable", str(program))
    return lives


def test_a_process_that_dies_again_and_again_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lives = stand_in(tmp_path, monkeypatch, "sys.stdin.readline(); sys.exit(3)")
    clock = [1000.0]
    monkeypatch.setattr("agents.headlines.copywriter_process.monotonic", lambda: clock[0])

    async def session() -> None:
        scribe = CopywriterProcess(FOLDER, SAMPLING, rest=50.0)
        await scribe.start()
        assert scribe.alive
        with pytest.raises(CopywriterUnavailable):
            await scribe.write(FACTS, 7)
        assert lives.read_text() == "x" * LIVES and not scribe.alive
        [said] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        for part in ("ended with status 3", "3 times in a row", "template headlines", "50 s", "SHOPWINDOW_COPY=false"):
            assert part in said
        with pytest.raises(CopywriterUnavailable):
            await scribe.write(FACTS, 7)
        assert lives.read_text() == "x" * LIVES, "it rests"
        clock[0] += 51.0
        with pytest.raises(CopywriterUnavailable):
            await scribe.write(FACTS, 7)
        assert lives.read_text() == "x" * (LIVES + 1), "tried once"
        clock[0] += 51.0
        monkeypatch.undo()
        await scribe.start()
        monkeypatch.setattr("agents.headlines.copywriter_process.monotonic", lambda: clock[0])
        assert len(await scribe.write(FACTS, 7)) == 3
        assert "writes again" in caplog.messages[-1]
        await scribe.stop()

    asyncio.run(session())


def test_answers_that_are_none_and_a_process_that_hangs_are_failures_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def session() -> None:
        for rest in ("sys.stdin.readline(); print('what?', flush=True); time.sleep(60)", "time.sleep(60)"):
            stand_in(tmp_path, monkeypatch, rest)
            scribe = CopywriterProcess(FOLDER, SAMPLING)
            await scribe.start()
            monkeypatch.setattr("agents.headlines.copywriter_process.PATIENCE", 0.5)
            with pytest.raises(CopywriterUnavailable):
                await scribe.write(FACTS, 7)
            assert not scribe.alive

    asyncio.run(session())
    assert "no answer within" in caplog.messages[-1]


@pytest.mark.parametrize("dies", ["at a headline", "before it is ready"])
def test_a_dead_copywriter_costs_headlines_and_no_page(
    broker: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    dies: str,
) -> None:  # fmt: skip
    lives = stand_in(tmp_path, monkeypatch, "sys.stdin.readline(); sys.exit(3)")
    if dies == "before it is ready":
        monkeypatch.setattr("agents.headlines.copywriter_process.sys.executable", "/bin/false")
    pages_without_a_copywriter(broker, topic_prefix)
    if dies == "at a headline":
        assert lives.read_text() == "x" * LIVES
    [said] = [
        r.getMessage()
        for r in caplog.records
        if (r.name, r.levelname) == ("agents.headlines.copywriter_process", "ERROR")
    ]
    assert "ended with status" in said and "SHOPWINDOW_COPY=false" in said


@scenario
async def pages_without_a_copywriter(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, copy=True)
    await open_shop(settings)
    await send(settings, "clicks", clicks(200, 20))
    stop, worker = asyncio.Event(), Worker(settings)
    run = asyncio.create_task(worker.run(stop, lambda line: None))
    try:
        await until_counted(settings, 200)
        assert worker.scribe is not None
        await until(lambda: worker.scribe is not None and worker.scribe._rests_until > 0, "the copywriter rests")
        await send(settings, "clicks", clicks(300, 20)[200:])
        await until_counted(settings, 300)
        worker.update_gauges()
        assert metrics.REGISTRY.get_sample_value("shopwindow_copywriter_up") == 0
        assert not run.done()
    finally:
        stop.set()
        await run
    pages = pages_of(await read_all(settings, "homepages"))
    sources = {slot["title_source"] for made in pages.values() for page in made for slot in page["slots"]}
    assert (len(pages), sources) == (20, {"template"})
    assert await read_all(settings, "copy") == [], "no headline is called impossible for want of a copywriter"
