"""What `shopwindow status` makes of what it finds."""

import asyncio
from types import SimpleNamespace
from typing import Any

from agents import items, shopper
from agents.headlines import agent as copy
from agents.health.status_reporter import StatusReporter
from deploy.operate.status import SOURCES, format_status
from stream import metrics
from stream.kafka.worker_status import WorkerStatus, decode, encode


def worker(**more: Any) -> dict[str, Any]:
    return {
        "worker": "host:1", "state": "ready", "told_seconds_ago": 1.0, "events_per_s": 81234.5, "rung": "no_exploration",
        "recovery_remaining": 0, "recovery_share": 1.0, "metrics": "127.0.0.1:6066",
        "partitions": {"clicks": [0, 1], "refreshes": [0, 1]}, "role": "all", **more,
    }  # fmt: skip


def partition(number: int, **more: Any) -> dict[str, Any]:
    return {"topic": "copy-requests", "partition": number, "worker": "host:1", "committed": 0, "end": 0, "lag_records": 0,
            "lag_seconds": 0.0, **more}  # fmt: skip


def seen(workers: list[dict[str, Any]], partitions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "app_id": "shopwindow",
        "brokers": ["kafka-1.example.com:9092"] * 9,
        "workers": workers,
        "partitions": partitions,
    }


def test_a_table_fits_eighty_columns_whatever_the_names_and_figures() -> None:
    long = "shopwindow-worker-7c9d8f6b5-abcde.shop.svc.cluster.local:12345"
    text = format_status(
        seen(
            [worker(worker=long), worker(state="recovering", recovery_remaining=5, recovery_share=0.43)],
            [partition(4095, worker=long, lag_records=123_456_789, lag_seconds=99_999.9), partition(1), partition(2)],
        )
    )
    assert max(map(len, text.splitlines())) <= 80, text
    assert "local:12345 ready" in text and "recovering 43%" in text and "81,23" in text
    assert "123,456,789   99,999.9" in text and "nothing waits in the other 2 partitions" in text


def test_the_partition_that_is_furthest_behind_comes_first_and_one_without_a_worker_says_so() -> None:
    rows = [partition(1, lag_records=5, lag_seconds=1.0), partition(2, lag_records=1, lag_seconds=60.0, worker=None)]
    lines = format_status(seen([worker()], rows)).splitlines()
    first, second = (line for line in lines if line.startswith("copy-requests"))
    assert first.split() == ["copy-requests", "2", "1", "60.0", "nobody"] and second.split()[1] == "1"


def test_a_worker_that_stopped_telling_is_silent_and_without_any_the_text_says_what_to_do() -> None:
    text = format_status(seen([worker(state="silent", told_seconds_ago=73.2)], [partition(0)]))
    assert "silent for 73 s" in text and "start one with `shopwindow worker`" in text
    assert "start one" not in format_status(seen([worker()], []))
    assert "start one" in format_status(seen([], []))


def test_a_worker_that_only_writes_headlines_makes_no_pages() -> None:
    text = format_status(seen([worker(role="copy", partitions={"copy-requests": [0, 1, 2]})], []))
    assert "headlines only" in text and "no worker makes pages: start one" in text
    assert "start one" not in format_status(seen([worker(role="copy"), worker(role="pages")], []))
    assert max(map(len, text.splitlines())) <= 80, text


class App:
    """What of an app `StatusReporter` looks at."""

    ready, rebalancing, started, should_stop = False, False, True, False
    settings = SimpleNamespace(prefix="p-", app_id="shop", role="pages")
    left = 200

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes | None]] = []

    def read_topics(self) -> set[str]:
        return {"clicks", "refreshes"}

    def partitions(self, topic: str) -> set[int]:
        return {2, 0} if topic == "clicks" else set()

    def recovery_remaining(self) -> int:
        return self.left

    async def tell(self, topic: str, record: tuple[bytes, bytes | None]) -> None:
        assert topic == "worker-status"
        self.sent.append(record)


def test_a_worker_tells_how_far_its_recovery_is_and_what_it_sheds() -> None:
    app = App()
    copies = SimpleNamespace(group=SimpleNamespace(partitions=lambda: {1, 0}))
    telling = StatusReporter(app, lambda: 1, "h:1", copies)  # type: ignore[arg-type]
    told = telling.status()
    assert (told.state, told.recovery_remaining, told.recovery_share) == ("recovering", 200, 0.0)
    app.left = 50
    assert telling.status().recovery_share == 0.75
    app.left, app.ready = 0, True
    told = telling.status()
    assert (told.state, told.recovery_share, told.rung) == ("ready", 1.0, "no_copy")
    assert told.partitions == {"clicks": [0, 2], "copy-requests": [0, 1]}
    assert (told.app_id, told.role) == ("shop", "pages")


def test_the_rate_is_that_of_the_last_looks() -> None:
    telling = StatusReporter(App(), lambda: 0, "h:1")  # type: ignore[arg-type]
    telling.status()
    metrics.RUN_RECORDS.labels("clicks").observe(100)
    assert telling.status().events_per_s > 0
    for _ in range(5):
        last = telling.status()
    assert last.events_per_s == 0.0, "what was done before the last looks is over"


def test_a_farewell_takes_away_what_was_told_and_nothing_is_told_after_it() -> None:
    async def scene() -> list[tuple[bytes, bytes | None]]:
        app = App()
        telling = StatusReporter(app, lambda: 0, "h:1")  # type: ignore[arg-type]
        running = asyncio.create_task(telling.run())
        await asyncio.sleep(0)
        await telling.deregister()
        again = asyncio.create_task(telling.run())
        await asyncio.sleep(0)
        for task in (running, again):
            task.cancel()
        return app.sent

    (told, gone) = asyncio.run(scene())
    assert told[0] == gone[0] and told[1] is not None and gone[1] is None


def test_what_is_new_is_told_at_once() -> None:
    async def scene() -> list[tuple[bytes, bytes | None]]:
        app = App()
        app.started = False
        telling = StatusReporter(app, lambda: 0, "h:1")  # type: ignore[arg-type]
        running = asyncio.create_task(telling.run())
        await asyncio.sleep(0)
        assert not app.sent
        app.started = True
        telling.report_now()
        async with asyncio.timeout(1):  # half of EVERY
            while not app.sent:
                await asyncio.sleep(0)
        running.cancel()
        return app.sent

    assert len(asyncio.run(scene())) == 1


def test_the_sources_are_those_that_workers_read() -> None:
    assert set(SOURCES) == {*shopper.TOPICS, *items.TOPICS, *copy.TOPICS}


def test_a_status_is_read_as_it_was_told_and_what_is_none_is_passed_over() -> None:
    told = WorkerStatus(worker="host:1", app_id="a", state="ready", events_per_s=1.0, rung="full", recovery_remaining=0,
                        recovery_share=1.0, metrics="h:1", partitions={"clicks": [1]})  # fmt: skip
    assert decode(encode(told)) == told
    assert decode(b"{}") is None and decode(b"\xff") is None
