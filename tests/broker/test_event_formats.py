"""Events as other producers write them, over a real broker into a worker."""

import asyncio
import json
import urllib.request
from typing import Any

from aiokafka import AIOKafkaProducer

from stream.kafka.client.connection import client_options, partition_of
from tests.harness.counting import scenario
from tests.harness.events import NOW
from tests.harness.worker_process import open_shop, pages_of, read_all, settings_for, until_counted, worker

NOW_MS = int(NOW * 1000)
BINARY = [("ce_specversion", b"1.0"), ("ce_type", b"view_item"), ("ce_source", b"/shop"), ("ce_id", b"b1")]
TIME = "2026-01-01T00:00:00Z"


def event(type: str, id: Any, data: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"specversion": "1.0", "source": "/shop", "id": id, "type": type, "data": data, **more}).encode()


def metric(text: str, name: str) -> float:
    """Value of a metric, with its labels as the worker writes them; 0 if it is not there."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + " "))


@scenario
async def test_events_of_many_formats_lead_to_pages_and_only_the_unknown_are_refused(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix)
    await open_shop(settings)
    item: dict[str, Any] = {"items": [{"item_id": "i1"}]}
    sent: list[tuple[bytes, bytes, list[tuple[str, bytes]], int]] = [
        (b"binary", json.dumps({"user_id": "binary", **item}).encode(), BINARY, NOW_MS),
        (b"42", event("view_item", 7, {"user_id": 42, "items": [{"item_id": "i1", "price": "16.0", "quantity": None}]},
                      time=NOW_MS), [], NOW_MS),
        (b"visitor", event("view_homepage", "v1", {"user_id": "", "anonymous_id": "visitor"}, time=TIME), [], NOW_MS),
        (b"seconds", event("view_item", "s1", {"user_id": "seconds", **item}, time=TIME), [], int(NOW)),
        (b"undated", event("view_item", "u1", {"user_id": "undated", **item}), [], NOW_MS),
        (b"strict", event("view_item", "x1", {"user_id": "strict", **item}, time=TIME), [], NOW_MS),
        (b"strict", event("page_view", "p1", {"user_id": "strict"}, time=TIME), [], NOW_MS),
        (b"strict", event("teleport", "t1", {"user_id": "strict"}, time=TIME), [], NOW_MS),
        (b"no-clock", event("view_item", "n1", {"user_id": "no-clock", **item}, time=TIME), [], 5),
    ]  # fmt: skip
    with worker(settings) as process:
        await process.ready()
        async with AIOKafkaProducer(**client_options(settings)) as producer:
            for key, value, headers, timestamp in sent:
                partition = partition_of(key, settings.partitions)
                await producer.send_and_wait(
                    settings.prefix + "clicks", value, key=key, headers=headers, timestamp_ms=timestamp,
                    partition=partition,
                )  # fmt: skip
        profiles = await until_counted(settings, 6)
        assert sorted(profiles) == ["42", "binary", "seconds", "strict", "undated", "visitor"]
        while len(letters := await read_all(settings, "dead-letters")) < 2:
            await asyncio.sleep(0.05)
        url = f"http://127.0.0.1:{await process.port()}/metrics"
        text = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
    pages = pages_of(await read_all(settings, "homepages"))
    triggers = {
        key: (made[-1]["trigger"]["event_id"], made[-1]["trigger"]["event_time"]) for key, made in pages.items()
    }
    assert {id for id, _ in triggers.values()} == {"b1", "7", "v1", "s1", "u1", "x1"}
    assert {time for _, time in triggers.values()} == {"2026-01-01T00:00:00.000Z"}
    refused = [{name: content.decode() for name, content in letter.headers} for letter in letters]
    assert sorted((one["error"], one["field"]) for one in refused) == [
        ("out_of_range", "timestamp"), ("unknown_type", "type")
    ]  # fmt: skip
    assert metric(text, 'shopwindow_lenient_events_total{topic="clicks"}') == 3
    assert metric(text, 'shopwindow_ignored_events_total{topic="clicks",type="page_view"}') == 1
