"""The product's topics with their settings: creation of missing ones, and a check of existing ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from stream.kafka.client.connection import client_options, connecting, stop_client

if TYPE_CHECKING:
    from stream.settings import Settings

DAY_MS = 86_400_000
CREATE_TIMEOUT_S = 30.0
POLL_S = 0.02

BATCH_LIMIT = "max.message.bytes"  # the config of a topic that limits the bytes of a record batch
DEFAULT_BATCH_LIMIT = 1_048_588  # Kafka's default, for clusters that do not report the configs of a topic
# Runs are split until their changelog fits, but the changelog of one event must fit: the shopper's profile, tombstones
# of expired ones, and the offsets of forwarded records. A page with usual ids has 6 KB.
MIN_BATCH_LIMIT = 100_000
# A larger batch would only cost memory.
MAX_CHANGELOG_BYTES = 16 << 20


class WrongTopics(RuntimeError):
    """The cluster's topics would lose or misplace data; the message has a line per problem, with its solution."""


class Topic(NamedTuple):
    name: str  # logical: the cluster's name is `settings.prefix` + name
    configs: Mapping[str, str]
    # True if partition p must belong to the worker that owns the shoppers of p, so that partition counts must match.
    is_copartitioned: bool
    legacy_policies: frozenset[str] = frozenset()  # cleanup policies of older clusters, also accepted


def _retained(days: int) -> dict[str, str]:
    return {"cleanup.policy": "delete", "retention.ms": str(days * DAY_MS)}


def _compacted(**more: str) -> dict[str, str]:
    # Small segments and a low dirty ratio keep the topic near the size of its live data, which a new reader must read.
    # A tombstone stays for a day, longer than any reader takes to reach it.
    return {
        "cleanup.policy": "compact",
        "segment.bytes": str(64 << 20),
        "min.cleanable.dirty.ratio": "0.2",
        "delete.retention.ms": str(DAY_MS),
        **{name.replace("_", "."): value for name, value in more.items()},
    }


TOPICS = (
    Topic("clicks", _retained(7), True),
    Topic("purchases", _retained(30), True),
    Topic("privacy", _retained(30), True),
    Topic("refreshes", _retained(1), True),
    Topic("profiles", _compacted(), True),
    Topic("homepages", {**_compacted(), "cleanup.policy": "compact,delete", "retention.ms": str(30 * DAY_MS)}, True),
    Topic("impressions", _retained(30), False),
    Topic("catalog", _compacted(), False),
    Topic("item-activity", _retained(1), False),
    Topic("item-signals", _compacted(), False),
    Topic("copy-requests", _retained(1), False),
    # A headline is valid for an hour by default. Headlines that name items are many, and are requested again as needed.
    Topic(
        "copy",
        {**_compacted(segment_ms=str(DAY_MS // 4)), "cleanup.policy": "compact,delete", "retention.ms": str(DAY_MS)},
        False,
        frozenset(("compact",)),
    ),
    Topic("dead-letters", _retained(30), False),
    # Dated by the broker; see worker_status.py. The record of a killed worker is deleted after a day.
    Topic(
        "worker-status",
        {
            **_compacted(),
            "cleanup.policy": "compact,delete",
            "retention.ms": str(DAY_MS),
            "message.timestamp.type": "LogAppendTime",
        },
        False,
    ),
    # Kept longer than the dead letters, and dated by the broker; see redrive.py.
    Topic("redrives", {**_retained(37), "message.timestamp.type": "LogAppendTime"}, False),
)


PRODUCED = ("clicks", "purchases", "privacy")  # topics of events, which producers write to


def copy_group(settings: Settings) -> str:
    """Name of the consumer group of the headline workers. The page workers' group has the name of the app id."""
    return f"{settings.app_id}-copy"


async def create(settings: Settings, batch_limit: int | None = None) -> list[str]:
    """Create the missing topics and return their names. Existing topics are left unchanged.

    batch_limit: max.message.bytes of the new topics; None: the broker's default. Returns when every partition has a
    leader: the controller answers before the brokers know. Raises NoBroker, TimeoutError after CREATE_TIMEOUT_S, or the
    Kafka error if the cluster refuses.
    """
    # Three replicas survive the loss of one only if a write must reach two before it is acknowledged.
    more = {"min.insync.replicas": "2"} if settings.replication >= 3 else {}
    if batch_limit is not None:
        more[BATCH_LIMIT] = str(batch_limit)
    wanted = [
        NewTopic(
            name=settings.prefix + topic.name,
            num_partitions=settings.partitions,
            replication_factor=settings.replication,
            topic_configs={**topic.configs, **more},
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
        async with asyncio.timeout(CREATE_TIMEOUT_S):
            names = {topic.name for topic in wanted}
            while names - {name for name, leaders in (await _partition_leaders(admin)).items() if min(leaders) >= 0}:
                await asyncio.sleep(POLL_S)
    return created


class Inspection(NamedTuple):
    """What `inspect` has found."""

    problems: list[str]  # why no worker may start, one or two sentences each
    grown: list[str]  # problems of topics that have got more partitions; workers can work all the same
    batch_limits: dict[str, int]  # maximum bytes of a record batch, by logical topic
    partitions: dict[str, int]  # their number, by logical topic; missing topics are left out


async def check(settings: Settings) -> list[str]:
    """Return the problems of the cluster's topics, one or two sentences each. Empty if there are none."""
    found = await inspect(settings)
    return found.problems + found.grown


def grown_topic(settings: Settings, topic: str, count: int) -> str | None:
    """The problem of a topic (logical name) that has `count` partitions; None if it has not grown, or no harm came.

    Only workers write to the other topics, and they use the first SHOPWINDOW_PARTITIONS. The catalogue is read in full.
    """
    partitions = settings.partitions
    if count <= partitions or topic not in PRODUCED:
        return None
    return (
        f"topic '{settings.prefix}{topic}' has {count} partitions, SHOPWINDOW_PARTITIONS is {partitions}: workers do "
        f"not read the new ones. Let producers place records as for {partitions} partitions, and send what the new "
        "ones hold again with `shopwindow send`; or move to new topics with another SHOPWINDOW_PREFIX "
        "(deploy/README.md, Grown topics)"
    )


async def inspect(settings: Settings) -> Inspection:
    """Read the partitions and configs of the product's topics."""
    names = {settings.prefix + topic.name: topic for topic in TOPICS}
    async with _admin(settings) as admin:
        counts = {name: len(leaders) for name, leaders in (await _partition_leaders(admin)).items()}
        existing = [name for name in names if name in counts]
        configs: dict[str, dict[str, str]] = {}
        if existing:
            resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in existing]
            for response in await admin.describe_configs(resources):
                for _code, _message, _type, name, entries in response.resources:
                    configs[name] = {entry[0]: entry[1] for entry in entries}
    problems = []
    missing = [name for name in names if name not in counts]
    if missing:
        problems.append(
            f"{_quote_names(missing)} {'is' if len(missing) == 1 else 'are'} missing; "
            "`shopwindow topics create` creates what is missing."
        )
    # Topics may only grow, so a topic with more partitions than `profiles` had fewer before.
    may_have_grown = counts.get(settings.prefix + "profiles") == settings.partitions
    grown = []
    for name in existing:
        topic = names[name]
        if counts[name] > settings.partitions and may_have_grown:
            problem = grown_topic(settings, topic.name, counts[name])
            grown += [problem] if problem else []
        elif counts[name] != settings.partitions and topic.is_copartitioned:
            problems.append(
                f"topic '{name}' has {counts[name]} partitions, the settings say {settings.partitions}; "
                "a shopper's events, profile and page must live in the same partition. Recreate it with "
                f"{settings.partitions}, or set SHOPWINDOW_PARTITIONS={counts[name]} for all of them."
            )
        elif counts[name] != settings.partitions:
            problems.append(
                f"topic '{name}' has {counts[name]} partitions, the settings say {settings.partitions}; "
                "the owner of a key is computed from that count. Recreate it, or set SHOPWINDOW_PARTITIONS to match."
            )
        problems.extend(_config_problems(name, topic, configs.get(name, {})))
    limits = {names[name].name: int(configs.get(name, {}).get(BATCH_LIMIT) or DEFAULT_BATCH_LIMIT) for name in existing}
    return Inspection(problems, grown, limits, {names[name].name: counts[name] for name in existing})


async def _partition_leaders(admin: AIOKafkaAdminClient) -> dict[str, list[int]]:
    """The leader of each partition, -1 if it has none yet, of every topic of the cluster.

    It asks for all topics: a request for a single missing topic would create it if the cluster creates topics itself.
    """
    rows = await admin.describe_topics()
    return {row["topic"]: [partition["leader"] for partition in row["partitions"]] for row in rows if row["partitions"]}


def _config_problems(name: str, topic: Topic, found: Mapping[str, str]) -> list[str]:
    problems = []
    wanted = set(topic.configs["cleanup.policy"].split(","))
    policy = set(found.get("cleanup.policy", "").split(","))
    if "compact" in wanted and wanted != policy and policy != topic.legacy_policies:
        problems.append(
            f"topic '{name}' has cleanup.policy={','.join(sorted(policy))}, it needs {','.join(sorted(wanted))}; "
            "it holds the latest state of each key, which would otherwise be lost or grow forever. Alter the topic."
        )
    if "compact" in policy and "compact" not in wanted:
        problems.append(
            f"topic '{name}' has cleanup.policy={','.join(sorted(policy))}, it needs delete; "
            "compaction would drop events of a key before they are read. Alter the topic."
        )
    if int(found.get(BATCH_LIMIT) or DEFAULT_BATCH_LIMIT) < MIN_BATCH_LIMIT:
        problems.append(
            f"topic '{name}' has {BATCH_LIMIT}={found[BATCH_LIMIT]}, it needs at least {MIN_BATCH_LIMIT}; "
            "a single record may have that many bytes, and the worker would stop. Alter the topic."
        )
    return problems


def _quote_names(names: list[str]) -> str:
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
        await stop_client(admin)
