"""The topics of the product, each with its settings; creating them and checking those that are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from stream.kafka.client.connection import client_options, connecting

if TYPE_CHECKING:
    from stream.settings import Settings

DAY = 86_400_000  # ms
CREATION = 30.0  # s that a cluster may take to create topics

# A changelog batch carries a whole run and is never split, for it must land whole or not at all.
CHANGELOG_BYTES = 16 << 20
# A dead letter is the original record plus headers: it must fit where the original (at most 1 MiB) did.
DEAD_LETTER_BYTES = 2 << 20


class WrongTopics(RuntimeError):
    """The cluster's topics would lose or misplace data; the message has a line for each problem and its way out."""


class Topic(NamedTuple):
    name: str  # logical: the cluster's name is `settings.prefix` + name
    configs: Mapping[str, str]
    beside: bool  # True: partition p belongs to the owner of the shoppers of p, so its count must match
    policies: frozenset[str] = frozenset()  # cleanup policies of clusters of before, which do as well


def _kept(days: int) -> dict[str, str]:
    return {"cleanup.policy": "delete", "retention.ms": str(days * DAY)}


def _compacted(**more: str) -> dict[str, str]:
    # Small segments and a low dirty ratio keep a newcomer's read near the size of the live data; a tombstone
    # stays a day, longer than any reader takes to reach it.
    return {
        "cleanup.policy": "compact",
        "segment.bytes": str(64 << 20),
        "min.cleanable.dirty.ratio": "0.2",
        "delete.retention.ms": str(DAY),
        **{name.replace("_", "."): value for name, value in more.items()},
    }


TOPICS = (
    Topic("clicks", _kept(7), True),
    Topic("purchases", _kept(30), True),
    Topic("privacy", _kept(30), True),
    Topic("refreshes", _kept(1), True),
    Topic("profiles", _compacted(max_message_bytes=str(CHANGELOG_BYTES)), True),
    Topic("homepages", {**_compacted(), "cleanup.policy": "compact,delete", "retention.ms": str(30 * DAY)}, True),
    Topic("impressions", _kept(30), False),
    Topic("catalog", _compacted(), False),
    Topic("item-activity", _kept(1), False),
    Topic("item-signals", _compacted(max_message_bytes=str(CHANGELOG_BYTES)), False),
    Topic("copy-requests", _kept(1), False),
    # A headline holds for an hour, unless set otherwise; those that name items are many, and come again when asked for.
    Topic(
        "copy",
        {**_compacted(segment_ms=str(DAY // 4)), "cleanup.policy": "compact,delete", "retention.ms": str(DAY)},
        False,
        frozenset(("compact",)),
    ),
    Topic("dead-letters", {**_kept(30), "max.message.bytes": str(DEAD_LETTER_BYTES)}, False),
    # Dated by the broker; see status.py. A worker that was killed is forgotten after a day.
    Topic(
        "worker-status",
        {
            **_compacted(),
            "cleanup.policy": "compact,delete",
            "retention.ms": str(DAY),
            "message.timestamp.type": "LogAppendTime",
        },
        False,
    ),
    # Kept longer than the letters, and dated by the broker; see redrive.py.
    Topic("redrives", {**_kept(37), "message.timestamp.type": "LogAppendTime"}, False),
)


def copy_group(settings: Settings) -> str:
    """Name of the consumer group of those who write headlines; that of those who make pages is the app's id."""
    return f"{settings.app_id}-copy"


async def create(settings: Settings) -> list[str]:
    """Create the topics that are missing; those that exist are left as they are. -> names of the created.

    Returns when every partition has a leader: the controller answers before the brokers know. Raises NoBroker,
    TimeoutError after CREATION seconds, or the Kafka error where the cluster refuses.
    """
    # Three copies survive the loss of one only where two must hold a write before it counts.
    replicas = {"min.insync.replicas": "2"} if settings.replication >= 3 else {}
    wanted = [
        NewTopic(
            name=settings.prefix + topic.name,
            num_partitions=settings.partitions,
            replication_factor=settings.replication,
            topic_configs={**topic.configs, **replicas},
        )
        for topic in TOPICS
    ]
    created = []
    async with _admin(settings) as admin:
        response = await admin.create_topics(wanted)
        for name, code, *reason in response.topic_errors:
            error = for_code(code)
            if code == 0:
                created.append(name)
            elif error is not TopicAlreadyExistsError:
                raise error(f"topic '{name}' cannot be created: {reason[0] if reason else error.__name__}")
        async with asyncio.timeout(CREATION):
            names = {topic.name for topic in wanted}
            while names - {name for name, leaders in (await _leaders(admin)).items() if min(leaders) >= 0}:
                await asyncio.sleep(0.02)
    return created


async def check(settings: Settings) -> list[str]:
    """What is wrong with the cluster's topics, one sentence or two a problem; empty where all is well."""
    names = {settings.prefix + topic.name: topic for topic in TOPICS}
    async with _admin(settings) as admin:
        counts = {name: len(leaders) for name, leaders in (await _leaders(admin)).items()}
        there = [name for name in names if name in counts]
        configs: dict[str, dict[str, str]] = {}
        if there:
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
            for response in await admin.describe_configs(resources):
                for _code, _message, _type, name, entries in response.resources:
                    configs[name] = {entry[0]: entry[1] for entry in entries}
    problems = []
    missing = [name for name in names if name not in counts]
    if missing:
        problems.append(
            f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            "`shopwindow topics create` creates what is missing."
        )
    for name in there:
        topic = names[name]
        if counts[name] != settings.partitions and topic.beside:
            problems.append(
                f"topic '{name}' has {counts[name]} partitions, the settings say {settings.partitions}; "
                "a shopper's events, profile and page must live in the same partition. Create it anew with "
                f"{settings.partitions}, or set SHOPWINDOW_PARTITIONS={counts[name]} for all of them."
            )
        elif counts[name] != settings.partitions:
            problems.append(
                f"topic '{name}' has {counts[name]} partitions, the settings say {settings.partitions}; "
                "owners of its keys are found by that count. Create it anew, or set SHOPWINDOW_PARTITIONS to match."
            )
        problems.extend(_config_problems(name, topic, configs.get(name, {})))
    return problems


async def _leaders(admin: AIOKafkaAdminClient) -> dict[str, list[int]]:
    """The leader of each partition, -1 where there is none yet, of every topic of the cluster.

    All of them, for to ask for one by name creates it where the cluster creates topics by itself.
    """
    rows = await admin.describe_topics()
    return {row["topic"]: [part["leader"] for part in row["partitions"]] for row in rows if row["partitions"]}


def _config_problems(name: str, topic: Topic, found: Mapping[str, str]) -> list[str]:
    problems = []
    wanted = set(topic.configs["cleanup.policy"].split(","))
    policy = set(found.get("cleanup.policy", "").split(","))
    if "compact" in wanted and wanted != policy and policy != topic.policies:
        problems.append(
            f"topic '{name}' has cleanup.policy={','.join(sorted(policy))}, it needs {','.join(sorted(wanted))}; "
            "it holds the latest state of each key, which would be lost or grow for ever. Alter the topic."
        )
    if "compact" in policy and "compact" not in wanted:
        problems.append(
            f"topic '{name}' has cleanup.policy={','.join(sorted(policy))}, it needs delete; "
            "compaction would drop events of a key before they are read. Alter the topic."
        )
    needed = int(topic.configs.get("max.message.bytes", 0))
    if int(found.get("max.message.bytes", needed)) < needed:
        problems.append(
            f"topic '{name}' has max.message.bytes={found['max.message.bytes']}, it needs {needed}; "
            "a large batch would be refused and the worker would stop. Alter the topic."
        )
    return problems


def _listed(names: list[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return f"topic {quoted[0]}" if len(quoted) == 1 else f"topics {', '.join(quoted[:-1])} and {quoted[-1]}"


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        with connecting(settings):
            await admin.start()
        yield admin
    finally:
        await admin.close()
