"""Changes of the topics under a running worker are noticed, and the assignment does not follow them."""

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from stream import metrics
from stream.kafka.assignor import FirstPartitions
from stream.kafka.health.topic_monitor import TopicMonitor
from stream.kafka.topics import TOPICS
from stream.settings import Settings
from tests.harness.kafka_parts import VirtualTimeLoop

SETTINGS = Settings(prefix="p-", partitions=4)


def unread(topic: str) -> float:
    return float(metrics.GROWN_PARTITIONS.labels(topic)._value.get())


def monitor() -> TopicMonitor:
    no_kafka: Any = None
    return TopicMonitor(SETTINGS, no_kafka)


def test_grown_topics_are_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    found = monitor()
    found.observe({"clicks": 4, "homepages": 4})
    assert found.problems == [] and found.note is None and unread("clicks") == 0
    for _ in range(3):
        found.observe({"clicks": 6, "homepages": 4})
    [problem] = found.problems
    assert problem.startswith("topic 'p-clicks' has 6 partitions, SHOPWINDOW_PARTITIONS is 4: ")
    assert "place records as for 4 partitions" in problem and found.note == problem
    assert unread("clicks") == 2 and unread("homepages") == 0
    assert [entry.getMessage() for entry in caplog.records if entry.levelno == logging.ERROR] == [problem]
    found.observe({"clicks": 4, "homepages": 4})
    assert found.problems == [] and unread("clicks") == 0, "the topic was recreated"


def test_only_topics_that_others_write_to_are_a_problem() -> None:
    found = monitor()
    found.observe({"homepages": 9, "item-activity": 9, "catalog": 5})
    assert found.problems == [], "a worker that starts reads the whole catalogue"
    found.observe({"homepages": 9, "item-activity": 9, "catalog": 6})
    [problem] = found.problems
    assert problem.startswith("topic 'p-catalog' has 6 partitions, but this worker reads 5")


def test_a_topic_counts_as_deleted_at_the_second_look() -> None:
    found = monitor()
    found.observe({"clicks": 4, "homepages": 0})
    assert found.problems == [], "a broker that starts may not know its topics yet"
    found.observe({"clicks": 4, "homepages": 0})
    assert found.problems == [
        "topic 'p-homepages' was deleted; `shopwindow topics create` creates it, then restart the workers"
    ]


def test_a_grown_topic_is_noticed_within_a_minute_also_after_a_lost_answer() -> None:
    answers = iter([{}, KafkaConnectionError(), {"p-clicks": {0, 1, 2, 3, 4}}])

    async def fetch_metadata() -> Any:
        answer: Any = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(partitions_for_topic=lambda topic: answer.get(topic, {0, 1, 2, 3}))

    async def run() -> None:
        found = TopicMonitor(SETTINGS, fetch_metadata)
        task = asyncio.create_task(found.run())
        await asyncio.sleep(59)
        assert len(found.problems) == 1 and "'p-clicks' has 5 partitions" in found.problems[0]
        task.cancel()

    loop = VirtualTimeLoop()
    try:
        loop.run_until_complete(run())
    finally:
        loop.close()


def test_the_assignor_sees_the_same_partitions_of_each_topic_after_one_has_grown() -> None:
    cluster: Any = SimpleNamespace(
        partitions_for_topic={"clicks": set(range(12)), "profiles": set(range(4)), "gone": None}.get
    )
    seen = FirstPartitions(cluster, 4)
    assert seen.partitions_for_topic("clicks") == seen.partitions_for_topic("profiles") == {0, 1, 2, 3}
    assert seen.partitions_for_topic("gone") == set()
    assert "clicks" in {topic.name for topic in TOPICS}
