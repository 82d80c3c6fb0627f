"""Creation of the topics, and the problems that `check` finds in existing ones."""

import asyncio
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stream.kafka import topics
from stream.kafka.client.connection import NoBroker, client_options
from tests.harness.counting import scenario, settings_for


async def create_topic(settings: Any, name: str, partitions: int, **configs: str) -> None:
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
async def test_missing_topics_are_one_sentence(broker: str, topic_prefix: str) -> None:
    (problem,) = await topics.check(settings_for(broker, topic_prefix))
    assert f"'{topic_prefix}clicks', '{topic_prefix}purchases'" in problem
    assert problem.endswith("are missing; `shopwindow topics create` creates what is missing.")


@scenario
async def test_a_wrong_partition_count_is_named_with_both_solutions(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await create_topic(settings, "purchases", 6)
    await topics.create(settings)
    (problem,) = await topics.check(settings)
    assert problem == (
        f"topic '{topic_prefix}purchases' has 6 partitions, the settings say 4; a shopper's events, profile and page "
        "must live in the same partition. Recreate it with 4, or set SHOPWINDOW_PARTITIONS=6 for all of them."
    )


@scenario
async def test_a_wrong_cleanup_policy_is_a_problem(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await create_topic(settings, "profiles", 4, cleanup_policy="delete", max_message_bytes=str(16 << 20))
    await create_topic(settings, "clicks", 4, cleanup_policy="compact")
    await topics.create(settings)
    clicks, profiles = await topics.check(settings)
    assert f"'{topic_prefix}clicks' has cleanup.policy=compact, it needs delete" in clicks
    assert f"'{topic_prefix}profiles' has cleanup.policy=delete, it needs compact" in profiles


@scenario
async def test_the_legacy_cleanup_policy_of_headlines_is_accepted(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await create_topic(settings, "copy", 4, cleanup_policy="compact")
    await topics.create(settings)
    assert await topics.check(settings) == []


@scenario
async def test_a_topic_too_small_for_its_batches_is_a_problem(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await create_topic(settings, "dead-letters", 4)
    await topics.create(settings)
    (problem,) = await topics.check(settings)
    assert f"'{topic_prefix}dead-letters' has max.message.bytes=1048588, it needs 2097152" in problem


@pytest.mark.parametrize("call", [topics.create, topics.check])
def test_no_broker_is_one_sentence_with_its_address(call: Any) -> None:
    with pytest.raises(NoBroker, match=r"no Kafka answers at 127\.0\.0\.1:1: nothing listens .*SHOPWINDOW_BROKER"):
        asyncio.run(call(settings_for("127.0.0.1:1", "none-")))
