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
    await create_topic(settings, "purchases", 3)
    await topics.create(settings)
    (problem,) = await topics.check(settings)
    assert problem == (
        f"topic '{topic_prefix}purchases' has 3 partitions, the settings say 4; a shopper's events, profile and page "
        "must live in the same partition. Recreate it with 4, or set SHOPWINDOW_PARTITIONS=3 for all of them."
    )


@scenario
async def test_topics_with_more_partitions_than_the_profiles_do_not_stop_workers(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix)
    for name in ("purchases", "impressions", "item-activity"):
        await create_topic(settings, name, 6)
    await topics.create(settings)
    found = await topics.inspect(settings)
    [problem] = found.grown
    assert found.problems == [] and await topics.check(settings) == [problem]
    assert problem.startswith(f"topic '{topic_prefix}purchases' has 6 partitions, SHOPWINDOW_PARTITIONS is 4: workers ")
    settings.partitions = 5
    assert (await topics.inspect(settings)).problems, "the profiles have 4 partitions"


@scenario
async def test_a_wrong_cleanup_policy_is_a_problem(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix)
    await create_topic(settings, "profiles", 4, cleanup_policy="delete")
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
    await create_topic(settings, "dead-letters", 4, max_message_bytes="50000")
    await topics.create(settings)
    (problem,) = await topics.check(settings)
    assert f"'{topic_prefix}dead-letters' has max.message.bytes=50000, it needs at least 100000" in problem


@scenario
async def test_new_topics_have_the_brokers_limit_unless_another_is_asked_for(broker: str, topic_prefix: str) -> None:
    for number, limit in ((1, None), (2, 4_000_000)):
        settings = settings_for(broker, f"{topic_prefix}{number}-")
        await topics.create(settings, limit)
        found = await topics.inspect(settings)
        assert found.problems == [] and set(found.batch_limits.values()) == {limit or topics.DEFAULT_BATCH_LIMIT}
        assert found.batch_limits.keys() == {topic.name for topic in topics.TOPICS}


@pytest.mark.parametrize("call", [topics.create, topics.check])
def test_no_broker_is_one_sentence_with_its_address(call: Any) -> None:
    with pytest.raises(NoBroker, match=r"no Kafka answers at 127\.0\.0\.1:1: nothing listens .*SHOPWINDOW_BROKER"):
        asyncio.run(call(settings_for("127.0.0.1:1", "none-")))
