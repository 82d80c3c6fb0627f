"""`shopwindow status` as text, and the status that a worker reports."""

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import msgspec

from agents import items, shopper
from agents.headlines import agent as copy
from agents.health.status_reporter import StatusReporter
from deploy.operate.status import SOURCES, format_status, grown_topics, share_fields
from stream import metrics
from stream.kafka.health.worker_status import ForwardedShare, WorkerStatus, decode, encode, total_shares
from stream.settings import Settings


def worker(**more: Any) -> dict[str, Any]:
    return {
        "worker": "host:1", "state": "ready", "told_seconds_ago": 1.0, "events_per_s": 81234.5,
        "rung": "no_exploration", "recovery_remaining": 0, "recovery_share": 1.0, "metrics": "127.0.0.1:6066",
        "partitions": {"clicks": [0, 1], "refreshes": [0, 1]}, "role": "all", "forwarded": {}, **more,
    }  # fmt: skip


def partition(number: int, **more: Any) -> dict[str, Any]:
    return {
        "topic": "copy-requests", "partition": number, "worker": "host:1", "committed": 0, "end": 0, "lag_records": 0,
        "lag_seconds": 0.0, **more,
    }  # fmt: skip


def status_of(workers: list[dict[str, Any]], partitions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "app_id": "shopwindow",
        "brokers": ["kafka-1.example.com:9092"] * 9,
        "workers": workers,
        "partitions": partitions,
        "forwarded": {},
        "problems": [],
    }


def test_tables_fit_80_columns_with_long_names_and_figures() -> None:
    long = "shopwindow-worker-7c9d8f6b5-abcde.shop.svc.cluster.local:12345"
    text = format_status(
        status_of(
            [worker(worker=long), worker(state="recovering", recovery_remaining=5, recovery_share=0.43)],
            [partition(4095, worker=long, lag_records=123_456_789, lag_seconds=99_999.9), partition(1), partition(2)],
        )
    )
    assert max(map(len, text.splitlines())) <= 80, text
    assert "local:12345 ready" in text and "recovering 43%" in text and "81,23" in text
    assert "123,456,789   99,999.9" in text and "no records wait in the other 2 partitions" in text


def test_partitions_are_sorted_by_lag_and_name_their_worker() -> None:
    rows = [partition(1, lag_records=5, lag_seconds=1.0), partition(2, lag_records=1, lag_seconds=60.0, worker=None)]
    lines = format_status(status_of([worker()], rows)).splitlines()
    first, second = (line for line in lines if line.startswith("copy-requests"))
    assert first.split() == ["copy-requests", "2", "1", "60.0", "none"] and second.split()[1] == "1"


def test_the_forwarded_share_of_all_workers_is_shown_with_the_partitioner() -> None:
    first = {"clicks": ForwardedShare(1000, 900, "crc32"), "privacy": ForwardedShare(3, 1, "unknown")}
    total = total_shares([first, {}, {"clicks": ForwardedShare(1000, 850, "unknown")}])
    assert total == {"clicks": ForwardedShare(2000, 1750, "crc32"), "privacy": ForwardedShare(3, 1, "unknown")}
    status = status_of([worker()], [partition(0)])
    status["forwarded"] = {topic: share_fields(share) for topic, share in total.items()}
    text = format_status(status)
    assert max(map(len, text.splitlines())) <= 80, text
    assert re.search(r"^clicks +87\.5%  crc32$", text, re.M) and re.search(r"^privacy +33\.3%  unknown$", text, re.M)
    assert "FORWARDED" not in format_status(status_of([worker()], [partition(0)]))


def test_dead_workers_are_shown_with_advice_to_start_one() -> None:
    text = format_status(status_of([worker(state="dead", told_seconds_ago=13.2)], [partition(0)]))
    assert "dead: no report for 13 s" in text and "start one with `shopwindow worker`" in text
    assert "start one" not in format_status(status_of([worker()], []))
    assert "start one" in format_status(status_of([], []))


def test_a_worker_is_dead_once_its_session_has_ended() -> None:
    def reported(session_timeout: float) -> WorkerStatus:
        return msgspec.convert({**worker(), "app_id": "shop", "session_timeout": session_timeout}, WorkerStatus)

    assert [reported(6.0).is_dead(age) for age in (0.0, 5.9, 6.1)] == [False, False, True]
    assert [reported(1.0).is_dead(age) for age in (2.5, 4.1)] == [False, True], "one late report is no death"


def test_a_topic_with_more_partitions_is_shown_with_what_to_do() -> None:
    settings = Settings(prefix="p-", partitions=2)
    lags = [("clicks", 0), ("clicks", 1), ("clicks", 2), ("purchases", 0), ("purchases", 1)]
    [problem] = grown_topics(settings, lags)
    assert problem.startswith("topic 'p-clicks' has 3 partitions, SHOPWINDOW_PARTITIONS is 2: workers do not")
    status = status_of([worker()], [partition(0)])
    status["problems"] = [problem]
    text = format_status(status)
    assert "topic 'p-clicks' has 3 partitions" in text and max(map(len, text.splitlines())) <= 80, text


def test_a_headline_worker_does_not_count_as_a_page_worker() -> None:
    text = format_status(status_of([worker(role="copy", partitions={"copy-requests": [0, 1, 2]})], []))
    assert "headlines only" in text and "no worker makes pages: start one" in text
    assert "start one" not in format_status(status_of([worker(role="copy"), worker(role="pages")], []))
    assert max(map(len, text.splitlines())) <= 80, text


class App:
    """The parts of an app that `StatusReporter` reads."""

    ready, rebalancing, started, should_stop = False, False, True, False
    settings = SimpleNamespace(prefix="p-", app_id="shop", role="pages", session_timeout=6.0)
    left = 200

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, bytes | None]] = []

    def read_topics(self) -> set[str]:
        return {"clicks", "refreshes"}

    def partitions(self, topic: str) -> set[int]:
        return {2, 0} if topic == "clicks" else set()

    def recovery_remaining(self) -> int:
        return self.left

    async def send_record(self, topic: str, record: tuple[bytes, bytes | None]) -> None:
        assert topic == "worker-status"
        self.sent.append(record)


def test_worker_reports_its_recovery_and_degradation() -> None:
    app = App()
    copies: Any = SimpleNamespace(group=SimpleNamespace(partitions=lambda: {1, 0}))
    shares = {"clicks": ForwardedShare(8, 7, "crc32")}
    reporter = StatusReporter(app, lambda: 1, "h:1", copies, lambda: shares)  # type: ignore[arg-type]
    status = reporter.status()
    assert (status.state, status.recovery_remaining, status.recovery_share) == ("recovering", 200, 0.0)
    app.left = 50
    assert reporter.status().recovery_share == 0.75
    app.left, app.ready = 0, True
    status = reporter.status()
    assert (status.state, status.recovery_share, status.rung) == ("ready", 1.0, "no_copy")
    assert status.partitions == {"clicks": [0, 2], "copy-requests": [0, 1]}
    assert (status.app_id, status.role, status.forwarded) == ("shop", "pages", shares)


def test_event_rate_covers_only_the_last_reports() -> None:
    reporter = StatusReporter(App(), lambda: 0, "h:1")  # type: ignore[arg-type]
    reporter.status()
    metrics.RUN_RECORDS.labels("clicks").observe(100)
    assert reporter.status().events_per_s > 0
    for _ in range(5):
        last = reporter.status()
    assert last.events_per_s == 0.0, "events before the last reports do not count"


def test_deregistering_deletes_the_status_and_ends_reporting() -> None:
    async def scene() -> list[tuple[bytes, bytes | None]]:
        app = App()
        reporter = StatusReporter(app, lambda: 0, "h:1")  # type: ignore[arg-type]
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0)
        await reporter.deregister()
        again = asyncio.create_task(reporter.run())
        await asyncio.sleep(0)
        for task in (running, again):
            task.cancel()
        return app.sent

    reported, deleted = asyncio.run(scene())
    assert reported[0] == deleted[0] and reported[1] is not None and deleted[1] is None


def test_state_changes_are_reported_at_once() -> None:
    async def scene() -> list[tuple[bytes, bytes | None]]:
        app = App()
        app.started = False
        reporter = StatusReporter(app, lambda: 0, "h:1")  # type: ignore[arg-type]
        running = asyncio.create_task(reporter.run())
        await asyncio.sleep(0)
        assert not app.sent
        app.started = True
        reporter.report_now()
        async with asyncio.timeout(1):  # half of EVERY
            while not app.sent:
                await asyncio.sleep(0)
        running.cancel()
        return app.sent

    assert len(asyncio.run(scene())) == 1


def test_sources_are_the_topics_that_workers_read() -> None:
    assert set(SOURCES) == {*shopper.TOPICS, *items.TOPICS, *copy.TOPICS}


def test_status_survives_encoding_and_invalid_values_are_skipped() -> None:
    status = WorkerStatus(
        worker="host:1", app_id="a", state="ready", events_per_s=1.0, rung="full", recovery_remaining=0,
        recovery_share=1.0, metrics="h:1", partitions={"clicks": [1]},
        forwarded={"clicks": ForwardedShare(10, 5, "crc32")},
    )  # fmt: skip
    assert decode(encode(status)) == status
    assert decode(b"{}") is None and decode(b"\xff") is None
