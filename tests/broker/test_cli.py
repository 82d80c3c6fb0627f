"""Commands as processes, against a real broker."""

import asyncio
import gzip
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from deploy.broker.embedded import free_port
from stream.kafka import topics
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.shop import item
from tests.harness.worker_process import (
    ROOT,
    clicks,
    command,
    environ_of,
    fetch,
    read_all,
    settings_for,
    until_counted,
    worker,
)


def test_topics_are_created_checked_and_reported_missing(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    missing = command(settings, "topics", "check")
    assert missing.returncode == 1 and "shopwindow topics create" in missing.stderr
    assert command(settings, "send", "-", input="{}\n").stderr.startswith("shopwindow: topic ")
    created = command(settings, "topics", "create")
    assert created.returncode == 0 and f"{topic_prefix}clicks" in created.stdout
    assert "all topics were there" in command(settings, "topics", "create").stdout
    wrong = command(settings_for(broker, topic_prefix, partitions=8), "topics", "check")
    assert wrong.returncode == 1 and "SHOPWINDOW_PARTITIONS=4" in wrong.stderr


@scenario
async def test_sent_events_are_counted_watched_and_dumped_identically_twice(
    broker: str, topic_prefix: str, tmp_path: Path
) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    shop, lines = tmp_path / "shop.jsonl", tmp_path / "events.jsonl"
    shop.write_bytes(b"\n".join(item(f"i{k}")[1] for k in range(50)))
    lines.write_bytes(
        b"\n".join([*(value for _, value in clicks(200, 4) if value), b"{half an event", b"not json at all"])
    )
    assert "loaded 50 items" in (await asyncio.to_thread(command, settings, "catalog", "load", str(shop))).stdout
    assert "sent 202 events" in (await asyncio.to_thread(command, settings, "send", str(lines))).stdout
    with worker(settings):
        await until_counted(settings, 200)
        dumps = [await asyncio.to_thread(command, settings, "profiles", "--json") for _ in range(2)]
        watch = subprocess.Popen(
            [sys.executable, "-m", "shopwindow", "watch", "--user", "u1"], env=environ_of(settings), cwd=ROOT,
            stdout=subprocess.PIPE, text=True,
            # If a shell runs the tests in the background, they ignore Ctrl-C, and child processes inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert watch.stdout is not None
        assert (await asyncio.to_thread(watch.stdout.readline)).startswith("u1  version ")
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 130
    assert dumps[0].stdout == dumps[1].stdout
    rows = [json.loads(line) for line in dumps[0].stdout.splitlines()]
    assert [row["shopper"] for row in rows] == ["u0", "u1", "u2", "u3"]
    assert rows[0]["recent"][-1][0].startswith("i")
    assert {letter.value for letter in await read_all(settings, "dead-letters")} == {
        b"{half an event",
        b"not json at all",
    }


@scenario
async def test_a_live_pipe_is_sent_at_once_without_its_oversized_line(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    pipe = subprocess.Popen(
        [sys.executable, "-m", "shopwindow", "send", "-"], env=environ_of(settings), cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert pipe.stdin is not None
    pipe.stdin.write(b"x" * 2_000_000 + b"\n" + record("view_item", "u1", "e", item="i")[1] + b"\n")
    pipe.stdin.flush()
    while not await read_all(settings, "clicks"):
        assert pipe.poll() is None
        await asyncio.sleep(0.05)
    out, err = await asyncio.to_thread(pipe.communicate)
    assert out == b"sent 1 events, all acknowledged\n" and b"-, line 1 has 2000093 bytes as a record" in err


def test_bad_items_are_named_and_nothing_is_loaded(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    asyncio.run(topics.create(settings))
    text = b"\n".join([item("a")[1], b'{"item_id": "b"}', item("c")[1]]).decode()
    refused = command(settings, "catalog", "load", "-", input=text)
    assert refused.returncode == 1 and "-, line 2: " in refused.stderr and "title" in refused.stderr
    assert "loaded 2 items, left out 1" in command(settings, "catalog", "load", "-", "--skip-bad", input=text).stdout
    assert "loaded 1 items" in command(settings, "catalog", "load", "-", input=f"[{item('d')[1].decode()}]").stdout


@scenario
async def test_a_clickstream_is_replayed_with_its_items(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    path = tmp_path / "clicks.tsv.gz"
    text = "SessionId\tItemId\tTime\n" + "".join(f"s{k % 7}\ti{k % 11}\t{NOW + k / 10}\n" for k in range(300))
    path.write_bytes(gzip.compress(text.encode()))
    done = await asyncio.to_thread(command, settings, "replay", str(path), "--add-items", "--limit", "250")
    assert "sent 250 events of 7 shoppers" in done.stdout and "11 items were new" in done.stdout, done.stderr
    paced = await asyncio.to_thread(command, settings, "replay", str(path), "--limit", "20", "--speed", "4")
    assert float(paced.stdout.split(" in ")[1].split(" s")[0]) >= 0.4
    with worker(settings):
        profiles = await until_counted(settings, 250)
    assert len(profiles) == 7, "records that are sent again have the same ids and count once"


@scenario
async def test_a_worker_reports_readiness_and_metrics(broker: str, topic_prefix: str) -> None:
    port = free_port()
    settings = settings_for(broker, topic_prefix, web_port=port)
    await topics.create(settings)
    await send(settings, "catalog", [item(f"i{k}") for k in range(20)])
    await send(settings, "clicks", clicks(40, 4))
    with worker(settings):
        conditions: dict[str, Any] = {}
        while not conditions or not all(conditions.values()):
            await asyncio.sleep(0.05)
            conditions = await asyncio.to_thread(fetch, port, "/readyz") or {}
        await until_counted(settings, 40)
        await send(settings, "clicks", [record("view_item", "u1", "more", NOW + 99, item="i1")])
        await until_counted(settings, 41)
        text = ""
        while 'shopwindow_events_total{kind="view_item",topic="clicks"} 21.0' not in text:
            text = await asyncio.to_thread(urlopen, f"http://127.0.0.1:{port}/metrics")
    for name in (
        "shopwindow_homepage_freshness_seconds_bucket",
        'shopwindow_stage_seconds_count{stage="phi"}',
        "shopwindow_profiles 4.0",
        "shopwindow_catalog_items 20.0",
        "shopwindow_ready 1.0",
        'shopwindow_consumer_lag_seconds{topic="clicks"}',
        'shopwindow_consumer_lag_records{topic="clicks"}',
        "shopwindow_recovery_remaining_records 0.0",
        'shopwindow_pages_total{mode="cached_copy"}',
    ):
        assert name in text, name
    assert set(conditions) == {
        "partitions_assigned_and_tables_recovered",
        "catalogue_and_signals_read",
        "models_warmed",
        "kafka_answers",
        "recovery",
    }
    read = conditions["recovery"]["profiles"]
    assert (read["partitions"], read["percent"], read["seconds_left"]) == (4, 100.0, 0.0)


def urlopen(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def test_an_occupied_port_is_one_sentence(broker: str, topic_prefix: str) -> None:
    port = int(broker.rsplit(":", 1)[1])
    refused = command(settings_for(broker, topic_prefix, web_port=port), "worker")
    assert refused.returncode == 1 and f"port {port}" in refused.stderr and "Traceback" not in refused.stderr
    kafka = command(settings_for(broker, topic_prefix), "broker", "--port", str(port))
    assert kafka.returncode == 1 and f"port {port}" in kafka.stderr and "--port" in kafka.stderr
