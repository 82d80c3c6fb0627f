"""The copywriter process: it writes what the copywriter writes, is replaced when it dies, and ends with its worker."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agents.headlines.copywriter_process import MAX_FAILURES, CopywriterProcess, CopywriterUnavailable, SamplingSettings
from agents.worker import Worker
from models.copywriter.facts import Facts
from models.copywriter.model import Copywriter
from models.manifest import ManifestError
from stream import metrics
from stream.settings import SHIPPED_MODELS
from tests.harness.counting import scenario, send, until
from tests.harness.worker_process import ROOT, clicks, open_shop, pages_of, read_all, settings_for, until_counted

FOLDER = SHIPPED_MODELS / "copywriter"
SAMPLING = SamplingSettings(temperature=0.9, top_k=50, top_p=0.95, max_tokens=50, samples=2)
PYTHON = sys.executable
FACTS = [Facts("en", "for_you", "lighting", ("Brass lamp",)), Facts("zh", "trending", ""), Facts("de", "for_you", "")]


def test_it_writes_what_the_copywriter_writes_even_after_a_kill() -> None:
    expected = Copywriter(FOLDER, samples=2).write(FACTS, 7)
    assert expected[0] is not None and expected[2] is None

    async def session() -> None:
        copywriter = CopywriterProcess(FOLDER, SAMPLING)
        await copywriter.start()
        try:
            assert await copywriter.write(FACTS, 7) == expected
            assert copywriter._process is not None
            os.kill(copywriter._process.pid, signal.SIGKILL)
            assert await copywriter.write(FACTS, 7) == expected, "another process has replaced it"
            cancelled = asyncio.create_task(copywriter.write(FACTS, 8))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cancelled.cancel()
            assert await copywriter.write(FACTS, 7) == expected, "the answer of the cancelled call is skipped"
        finally:
            await copywriter.stop()

    asyncio.run(session())


def test_a_missing_model_is_refused_before_any_process_starts() -> None:
    with pytest.raises(ManifestError, match="manifest"):
        CopywriterProcess(FOLDER.parent, SAMPLING)


PARENT = """
import asyncio, sys
from tests.faults.test_copywriter_process import FOLDER, SAMPLING
from agents.headlines.copywriter_process import CopywriterProcess

async def main():
    copywriter = CopywriterProcess(FOLDER, SAMPLING)
    await copywriter.start()
    print(copywriter._process.pid, flush=True)
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
    while is_running(pid):
        assert time.monotonic() < deadline, "the copywriter process outlives its worker"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def fake_process(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> Path:
    """Replace Python by a program that notes each start in the returned file, is ready at once, and runs `then`."""
    program, starts = folder / "fake", folder / "starts"
    program.write_text(
        f"#!{PYTHON}\nimport sys, time\nopen({str(starts)!r}, 'a').write('x')\n"
        f'print(\'{{"number":0,"copies":[]}}\', flush=True)\n{then}\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr("agents.headlines.copywriter_process.sys.executable", str(program))
    return starts


def test_a_process_that_keeps_failing_is_not_started_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    starts = fake_process(tmp_path, monkeypatch, "sys.stdin.readline(); sys.exit(3)")
    clock = [1000.0]
    monkeypatch.setattr("agents.headlines.copywriter_process.monotonic", lambda: clock[0])

    async def session() -> None:
        copywriter = CopywriterProcess(FOLDER, SAMPLING, cooldown_s=50.0)
        await copywriter.start()
        assert copywriter.is_alive
        with pytest.raises(CopywriterUnavailable):
            await copywriter.write(FACTS, 7)
        assert starts.read_text() == "x" * MAX_FAILURES and not copywriter.is_alive
        [error] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        for part in ("ended with status 3", "3 times in a row", "template headlines", "50 s", "SHOPWINDOW_COPY=false"):
            assert part in error
        with pytest.raises(CopywriterUnavailable):
            await copywriter.write(FACTS, 7)
        assert starts.read_text() == "x" * MAX_FAILURES, "the cooldown has not ended"
        clock[0] += 51.0
        with pytest.raises(CopywriterUnavailable):
            await copywriter.write(FACTS, 7)
        assert starts.read_text() == "x" * (MAX_FAILURES + 1), "tried once"
        clock[0] += 51.0
        monkeypatch.undo()
        await copywriter.start()
        monkeypatch.setattr("agents.headlines.copywriter_process.monotonic", lambda: clock[0])
        assert len(await copywriter.write(FACTS, 7)) == 3
        assert "writes again" in caplog.messages[-1]
        await copywriter.stop()

    asyncio.run(session())


def test_invalid_answers_and_a_hanging_process_count_as_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def session() -> None:
        for then in ("sys.stdin.readline(); print('what?', flush=True); time.sleep(60)", "time.sleep(60)"):
            fake_process(tmp_path, monkeypatch, then)
            copywriter = CopywriterProcess(FOLDER, SAMPLING)
            await copywriter.start()
            monkeypatch.setattr("agents.headlines.copywriter_process.ANSWER_TIMEOUT_S", 0.5)
            with pytest.raises(CopywriterUnavailable):
                await copywriter.write(FACTS, 7)
            assert not copywriter.is_alive

    asyncio.run(session())
    assert "no answer within" in caplog.messages[-1]


@pytest.mark.parametrize("dies", ["at a headline", "before it is ready"])
def test_a_dead_copywriter_costs_headlines_and_no_page(
    broker: str, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    dies: str,
) -> None:  # fmt: skip
    starts = fake_process(tmp_path, monkeypatch, "sys.stdin.readline(); sys.exit(3)")
    if dies == "before it is ready":
        monkeypatch.setattr("agents.headlines.copywriter_process.sys.executable", "/bin/false")
    pages_without_a_copywriter(broker, topic_prefix)
    if dies == "at a headline":
        assert starts.read_text() == "x" * MAX_FAILURES
    [error] = [
        r.getMessage()
        for r in caplog.records
        if (r.name, r.levelname) == ("agents.headlines.copywriter_process", "ERROR")
    ]
    assert "ended with status" in error and "SHOPWINDOW_COPY=false" in error


@scenario
async def pages_without_a_copywriter(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, copy=True)
    await open_shop(settings)
    await send(settings, "clicks", clicks(200, 20))
    stop, worker = asyncio.Event(), Worker(settings)
    run = asyncio.create_task(worker.run(stop, lambda line: None))
    try:
        await until_counted(settings, 200)
        assert worker.copywriter is not None
        await until(
            lambda: worker.copywriter is not None and worker.copywriter._unavailable_until > 0,
            "the copywriter is unavailable",
        )
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
    assert await read_all(settings, "copy") == [], "no headline is refused because the copywriter is down"
