"""Creating the topics, and what a worker is told about topics that somebody else made."""

import asyncio
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stream.kafka import topics
from stream.kafka.client.connection import NoBroker, client_options
from tests.harness.counting import scenario, settings_for


async def make(settings: Any, name: str, partitions: int, **configs: str) -> None:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        named = {key.replace("_", "."): value for key, value in configs.items()}
        topic = NewTopic(settings.prefix + name, partitions, 1, topic_configs=named)
        await admin.create_topics([topic])
    finally:
        await admin.close()


@scenario
async def test_creating_the_topics_twice_changes_nothing(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    assert await topics.create(settings) == [topic_prefix + topic.name for topic in topics.TOPICS]
    assert await topics.check(settings) == []
    assert await topics.create(settings) == []
    assert await topics.check(settings) == []


@scenario
async def test_a_cluster_without_topics_is_one_sentence(broker: str, topic_prefix: str) -> None:
    (problem,) = await topics.check(settings_for(broker, topic_prefix))
    assert f"'{topic_prefix}clicks', '{topic_prefix}purchases'" in problem
    assert problem.endswith("are missing; `shopwindow topics create` creates what is missing.")


@scenario
async def test_a_wrong_count_of_partitions_is_named_with_both_ways_out(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await make(settings, "purchases", 6)
    await topics.create(settings)
    (problem,) = await topics.check(settings)
    assert problem == (
        f"topic '{topic_prefix}purchases' has 6 partitions, the settings say 4; a shopper's events, profile and page "
        "must live in the same partition. Recreate it with 4, or set SHOPWINDOW_PARTITIONS=6 for all of them."
    )


@scenario
async def test_a_table_that_would_be_deleted_or_events_that_would_be_compacted_are_problems(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix)
    await make(settings, "profiles", 4, cleanup_policy="delete", max_message_bytes=str(16 << 20))
    await make(settings, "clicks", 4, cleanup_policy="compact")
    await topics.create(settings)
    clicks, profiles = await topics.check(settings)
    assert f"'{topic_prefix}clicks' has cleanup.policy=compact, it needs delete" in clicks
    assert f"'{topic_prefix}profiles' has cleanup.policy=delete, it needs compact" in profiles


@scenario
async def test_headlines_of_a_cluster_of_before_may_be_kept_for_ever(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await make(settings, "copy", 4, cleanup_policy="compact")
    await topics.create(settings)
    assert await topics.check(settings) == []


@scenario
async def test_a_topic_too_small_for_its_batches_is_a_problem(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await make(settings, "dead-letters", 4)
    await topics.create(settings)
    (problem,) = await topics.check(settings)
    assert f"'{topic_prefix}dead-letters' has max.message.bytes=1048588, it needs 2097152" in problem


@pytest.mark.parametrize("call", [topics.create, topics.check])
def test_no_broker_is_one_sentence_with_its_address(call: Any) -> None:
    with pytest.raises(NoBroker, match=r"no Kafka answers at 127\.0\.0\.1:1: nothing listens .*SHOPWINDOW_BROKER"):
        asyncio.run(call(settings_for("127.0.0.1:1", "none-")))
