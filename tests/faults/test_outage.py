"""An outage of Kafka as an operator sees it: in the log, in the metrics, in the health checks, and in the last line."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from deploy.broker.embedded import Broker
from tests.harness.counting import scenario, send
from tests.harness.events import record
from tests.harness.worker_process import (
    ROOT,
    clicks,
    environ_of,
    open_shop,
    read_all,
    settings_for,
    until_counted,
    worker,
)

SILENCE = "shopwindow_fetch_silence_seconds "
LIMIT_S = 2.0

# Kills Kafka before the first page is sent, and waits 3 s for its acknowledgement instead of 60 s.
DEADLY = """
import os, signal, sys
from deploy.cli.main import main
from stream.kafka import app
from stream.kafka.client.producer import BatchSender

app.SEND_TIMEOUT_S = 3.0
send = BatchSender.send

def deadly(self, batch, topic, partition):
    if topic.endswith("homepages"):
        try:
            os.killpg(int(sys.argv[1]), signal.SIGKILL)
        except ProcessLookupError:
            pass
    return send(self, batch, topic, partition)

BatchSender.send = deadly
sys.exit(main(["worker"]))
"""


class Probe:
    """What a worker's HTTP endpoint shows."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, path: str) -> tuple[int, str]:
        async with self._session.get(path) as answer:
            return answer.status, await answer.text()

    async def silence(self) -> float:
        _, text = await self.get("/metrics")
        return float(next(line for line in text.splitlines() if line.startswith(SILENCE)).split()[1])


@scenario
async def test_silence_rises_until_kafka_is_back_and_the_outage_is_logged_twice() -> None:
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "outage-", fetch_timeout=LIMIT_S)
        await open_shop(settings)
        with worker(settings) as process:
            await process.ready()
            await send(settings, "clicks", clicks(20, 2))
            await until_counted(settings, 20)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{await process.port()}") as session:
                probe = Probe(session)
                assert (await probe.get("/readyz"))[0] == 200 and await probe.silence() < LIMIT_S
                kafka.kill()
                seen = [await probe.silence()]
                while seen[-1] < 4 * LIMIT_S:
                    await asyncio.sleep(0.1)
                    seen.append(await probe.silence())
                assert seen[1:] == sorted(seen[1:]), "it rises steadily"
                status, text = await probe.get("/readyz")
                assert status == 503 and '"kafka_answers": false' in text
                note = f"Kafka at {kafka.bootstrap} does not answer; this worker keeps trying"
                assert await probe.get("/healthz") == (200, f"ok; {note}\n")
                assert "answers again" not in process.output()
                await asyncio.to_thread(kafka.restart)
                while (await probe.get("/readyz"))[0] != 200:
                    await asyncio.sleep(0.1)
                await send(settings, "clicks", clicks(20, 2, first=20))
                await until_counted(settings, 40)
                assert await probe.silence() < LIMIT_S and await probe.get("/healthz") == (200, "ok\n")
    lines = [line for line in process.output().splitlines() if not line.startswith("shopwindow: ")]
    assert len(lines) == 2, lines
    assert note in lines[0] and re.search(r"Kafka answers again, after \d+ s", lines[1])


@scenario
async def test_a_worker_whose_write_kafka_does_not_accept_names_kafka_and_the_time() -> None:
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "lost-write-", fetch_timeout=LIMIT_S)
        await open_shop(settings)
        assert kafka._process is not None
        program: Any = "-c", DEADLY, str(kafka._process.pid)
        with worker(settings, *program) as process:
            await process.ready()
            await send(settings, "clicks", clicks(20, 2))
            assert await process.wait_for_exit(90) == 1
        last = process.output().splitlines()[-1]
        assert re.match(
            rf"shopwindow: the worker stopped: Kafka at {kafka.bootstrap} has not accepted a batch for "
            r"'lost-write-\S+' \d+ for [3-9] s \(.*\); what it did not accept is repeated after a restart", last,
        ), process.output()  # fmt: skip


@scenario
async def test_a_worker_is_stopped_in_order_during_an_outage() -> None:
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "stopped-", fetch_timeout=LIMIT_S)
        await open_shop(settings)
        with worker(settings) as process:
            await process.ready()
            kafka.kill()
            await process.wait_for_output("does not answer; this worker keeps trying")


# A worker with its own Kafka, on any free port: other tests may use the default.
OWN_BROKER_WORKER = """
import sys
from deploy.broker import embedded
from deploy.cli.main import main

embedded.choose_port = lambda data: embedded.free_port()
sys.exit(main(["worker"]))
"""
IMPATIENT = """
import sys
from deploy.cli.main import main
from deploy.io import send
from stream.kafka import global_topics

send.ACKNOWLEDGE_TIMEOUT_S = 3.0
global_topics.SILENCE_TIMEOUT_S = 3.0
sys.exit(main(sys.argv[1:]))
"""


@scenario
async def test_send_ends_with_one_sentence_when_kafka_is_lost() -> None:
    with Broker() as kafka:
        settings = settings_for(kafka.bootstrap, "send-")
        await open_shop(settings)
        sending = await asyncio.create_subprocess_exec(
            sys.executable, "-c", IMPATIENT, "send", "-", cwd=ROOT, env=environ_of(settings),
            stdin=PIPE, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        assert sending.stdin is not None
        sending.stdin.write(record("view_item", item="i1")[1] + b"\n")
        while not await read_all(settings, "clicks"):
            await asyncio.sleep(0.05)
        kafka.kill()
        # The pipe stays open: the deadline does not wait for another line.
        sending.stdin.write(b"".join(value + b"\n" for _, value in clicks(3000, 5) if value))
        assert sending.stdout is not None and sending.stderr is not None
        error = (await sending.stderr.read()).decode()
        assert await sending.wait() == 1
        assert re.fullmatch(
            rf"shopwindow: Kafka at {kafka.bootstrap} has acknowledged nothing for 3 s; 1 of \d+ records were "
            "acknowledged, the others may have arrived. Check that Kafka runs, and send again: events with the same id "
            "count once\n", error,
        ), error  # fmt: skip


def commands() -> Iterator[tuple[int, str]]:
    """Process id and command line of every process that runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue  # it has ended


@scenario
async def test_a_worker_names_why_its_own_kafka_ended(tmp_path: Path) -> None:
    environ = environ_of(settings_for("", "", data_dir=tmp_path, copy=False)) | {"SHOPWINDOW_WEB_PORT": "0"}
    del environ["SHOPWINDOW_BROKER"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWN_BROKER_WORKER, cwd=ROOT, env=environ, stdout=PIPE, stderr=STDOUT
    )
    assert process.stdout is not None
    output: list[str] = []
    while not (output and "shopwindow: ready" in output[-1]):
        output.append((await process.stdout.readline()).decode())
        assert output[-1], output
    java = next(found for found in commands() if str(tmp_path) in found[1] and found[1].split()[0].endswith("/java"))
    os.kill(java[0], signal.SIGKILL)
    output.append((await process.stdout.read()).decode())
    assert await process.wait() == 1
    last = output[-1].splitlines()[-1]
    assert last.startswith("shopwindow: the worker stopped: its Kafka ended: it was ended by the signal SIGKILL"), (
        output
    )
