"""Topics with small limits for record batches, and topics that grow under a running worker."""

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from deploy.io.files import InputError, Outgoing
from deploy.io.send import sender
from stream.kafka import topics
from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.global_topics import read_table, read_topic
from stream.kafka.health.topic_monitor import TopicMonitor
from stream.kafka.topics import MIN_BATCH_LIMIT
from tests.harness import worker_process
from tests.harness.counting import FULL_ROW_BYTES, counting_app, running, scenario, send, settings_for, total, until
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of
from tests.harness.profiles import assert_equal_profiles
from tests.harness.shopper_agent import agent_of, process, run_of
from tests.harness.worker_process import decoded_profiles, open_shop, profiles_of, read_all, until_counted, worker


@scenario
async def test_runs_are_split_to_the_limit_and_each_record_counts_once(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, partitions=2, run_records=4096)
    await topics.create(settings, MIN_BATCH_LIMIT)
    keys = [b"k%d" % (number % 300) for number in range(1500)]
    for topic in ("clicks", "purchases"):
        await send(settings, topic, [(key, b"x") for key in keys])
    app, counts = counting_app(settings, ("clicks", "purchases"), behind=True, row_bytes=FULL_ROW_BYTES)
    async with running(app):
        await until(lambda: app.lag() and sum(app.lag().values()) == 0, "all acknowledged", 60.0)
        assert total(counts) == 3000 and app.outputs.batch_limit("profiles") == MIN_BATCH_LIMIT
    table = await read_table(settings, "profiles")
    assert {key: int(value) for key, value in table.items()} == {b"k%d" % number: 10 for number in range(300)}
    seen = [one.value async for one in read_topic(settings, "impressions")]
    assert len(seen) == len(set(seen)) == 3000


@scenario
async def test_a_worker_with_small_topics_gives_the_same_profiles(broker: str, topic_prefix: str) -> None:
    settings = worker_process.settings_for(broker, topic_prefix, partitions=1, run_records=4096)
    await topics.create(settings, MIN_BATCH_LIMIT)
    await open_shop(settings)
    sent = [record("view_item", f"u{k % 500}", f"e{k}", NOW + k, item=f"i{k * 7 % 50}") for k in range(1000)]
    await send(settings, "clicks", sent)
    with worker(settings):
        await until_counted(settings, 1000)
        profiles = await profiles_of(settings)
        assert await read_all(settings, "dead-letters") == []
    [(result, _)] = await asyncio.to_thread(process, agent_of(path_of()), run_of(sent))
    expected = decoded_profiles({key: row for key, row in result.changelog if row is not None})
    assert profiles.keys() == expected.keys() and len(profiles) == 500
    for shopper, profile in expected.items():
        assert_equal_profiles(profile, profiles[shopper])


@scenario
async def test_a_topic_that_grows_is_noticed_and_its_first_partitions_are_read_on(
    broker: str, topic_prefix: str
) -> None:
    settings = settings_for(broker, topic_prefix)
    await topics.create(settings)
    app, counts = counting_app(settings)
    async with running(app):
        monitor = TopicMonitor(settings, app.fetch_metadata)
        await monitor.check()
        assert monitor.problems == []
        admin = AIOKafkaAdminClient(**client_options(settings))
        await admin.start()
        await admin.create_partitions({topic_prefix + "clicks": NewPartitions(6)})
        await admin.close()
        while not monitor.problems:
            await monitor.check()
        [problem] = monitor.problems
        assert f"topic '{topic_prefix}clicks' has 6 partitions, SHOPWINDOW_PARTITIONS is 4" in problem
        async with sender(settings) as client:  # as `shopwindow send`
            for number in range(40):
                await client.send(Outgoing("clicks", b"k%d" % number, b"x"))
            with pytest.raises(InputError, match=r"has 2000\d+ bytes as a record, and topic '.*clicks' takes at most"):
                await client.send(Outgoing("clicks", b"k", bytes(2_000_000)))
        await until(lambda: total(counts) == 40, "counted")
        assert all(partition_of(key, 4) == number for number, rows in counts.rows.items() for key in rows)
