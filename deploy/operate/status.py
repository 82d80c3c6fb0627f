"""`shopwindow status`: the state that each worker reports, and the lag of each partition as Kafka knows it."""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from stream.kafka.client.connection import bootstrap, client_options, connecting, stop_client
from stream.kafka.global_topics import assign, connect_reader, read_topic
from stream.kafka.health.worker_status import (
    FORGOTTEN_AFTER_S,
    TOPIC,
    ForwardedShare,
    WorkerStatus,
    decode,
    total_shares,
)
from stream.kafka.topics import copy_group, grown_topic
from stream.settings import Settings

# The topics that workers commit.
SOURCES = ("clicks", "purchases", "privacy", "refreshes", "item-activity", "copy-requests")
OLDEST_RECORD_TIMEOUT_S = 10.0  # for reading the oldest waiting record of every partition
NAME_WIDTH = 24  # of a worker's name in a table


async def cluster_status(settings: Settings) -> dict[str, Any]:
    """Return the current state of the cluster, as `--json` prints it.

    Lag is counted from the group's committed offsets, so it includes partitions of dead workers. Workers commit once a
    second. `lag_seconds` is the age of the oldest record that is not committed.

    Raises NoBroker, and LookupError if a topic is missing.
    """
    now = time.time()
    reported: dict[str, tuple[float, WorkerStatus]] = {}
    async for record in read_topic(settings, TOPIC):
        name = (record.key or b"").decode("utf-8", "replace")
        status = decode(record.value) if record.value is not None else None
        reported.pop(name, None)
        if (
            status is not None
            and status.app_id == settings.app_id
            and now - record.timestamp / 1000 < FORGOTTEN_AFTER_S
        ):
            reported[name] = record.timestamp / 1000, status
    workers: list[dict[str, Any]] = [
        {
            "worker": status.worker, "state": "dead" if status.is_dead(now - at) else status.state,
            "told_seconds_ago": round(max(0.0, now - at), 1), "events_per_s": status.events_per_s, "rung": status.rung,
            "recovery_remaining": status.recovery_remaining, "recovery_share": status.recovery_share,
            "metrics": status.metrics, "partitions": status.partitions, "role": status.role,
            "forwarded": {topic: share_fields(share) for topic, share in status.forwarded.items()},
        }
        for at, status in sorted(reported.values(), key=lambda entry: entry[1].worker)
    ]  # fmt: skip
    shares = [status.forwarded for at, status in reported.values() if not status.is_dead(now - at)]
    owners = {
        (topic, number): worker["worker"]
        for worker in workers
        if worker["state"] != "dead"
        for topic, numbers in worker["partitions"].items()
        for number in numbers
    }
    lags = await partition_lags(settings)
    partitions = [
        {"topic": topic, "partition": number, "worker": owners.get((topic, number)), **lag}
        for (topic, number), lag in lags.items()
    ]
    return {
        "app_id": settings.app_id,
        "brokers": bootstrap(settings),
        "workers": workers,
        "partitions": partitions,
        "forwarded": {topic: share_fields(share) for topic, share in total_shares(shares).items()},
        "problems": grown_topics(settings, lags),
    }


def grown_topics(settings: Settings, partitions: Iterable[tuple[str, int]]) -> list[str]:
    """The problems of topics with more partitions than workers read. `partitions`: (logical topic, number)."""
    counts = Counter(topic for topic, _ in partitions)
    problems = [grown_topic(settings, topic, count) for topic, count in counts.items()]
    return [problem for problem in problems if problem]


def share_fields(share: ForwardedShare) -> dict[str, Any]:
    """A forwarded share as `--json` prints it."""
    return {
        "records": share.records, "forwarded": share.forwarded, "partitioner": share.partitioner,
        "share": round(share.forwarded / share.records, 4) if share.records else 0.0,
    }  # fmt: skip


async def partition_lags(settings: Settings) -> dict[tuple[str, int], dict[str, Any]]:
    """Return committed and end offset, and lag in records and seconds, by (logical topic, partition)."""
    committed = await _committed_offsets(settings)
    consumer = await connect_reader(settings)
    try:
        ends = await assign(consumer, [settings.prefix + topic for topic in SOURCES])
        starts = await consumer.beginning_offsets(list(ends))
        done = {tp: max(starts[tp], committed.get(tp, -1)) for tp in ends}
        waiting = {tp: offset for tp, offset in done.items() if offset < ends[tp]}
        oldest = await _oldest_timestamps(consumer, waiting, ends)
    finally:
        await stop_client(consumer)
    now = time.time()
    return {
        (tp.topic.removeprefix(settings.prefix), tp.partition): {
            "committed": committed.get(tp, -1), "end": ends[tp],
            # A partition without an oldest record has only transaction markers or compacted offsets left: no lag.
            "lag_records": ends[tp] - done[tp] if tp in oldest else 0,
            "lag_seconds": round(max(0.0, now - oldest[tp]), 3) if tp in oldest else 0.0,
        }
        for tp in ends
    }  # fmt: skip


async def _committed_offsets(settings: Settings) -> dict[TopicPartition, int]:
    """Return the committed offsets of the workers' group and of the group for headlines."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        with connecting(settings):
            await admin.start()
        try:
            page_group = await admin.list_consumer_group_offsets(settings.app_id)
            headline_group = await admin.list_consumer_group_offsets(copy_group(settings))
        except GroupCoordinatorNotAvailableError:
            return {}  # this cluster has never had a group
        # In older clusters the workers' group has offsets of copy-requests too, which no worker commits any more.
        pages = {tp: meta for tp, meta in page_group.items() if tp.topic != settings.prefix + "copy-requests"}
        return {tp: int(meta.offset) for tp, meta in (pages | headline_group).items()}
    finally:
        await stop_client(admin)


async def _oldest_timestamps(
    consumer: AIOKafkaConsumer, waiting: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, float]:
    """Return the timestamp (s) of the first record at or after each offset, for partitions that have one.

    Raises TimeoutError if Kafka does not deliver them within OLDEST_RECORD_TIMEOUT_S.
    """
    oldest: dict[TopicPartition, float] = {}
    if not waiting:
        return oldest
    consumer.assign(list(waiting))
    for tp, offset in waiting.items():
        consumer.seek(tp, offset)
    left = set(waiting)
    async with asyncio.timeout(OLDEST_RECORD_TIMEOUT_S):
        while left:
            for tp, records in (await consumer.getmany(*left, timeout_ms=200)).items():
                oldest[tp] = records[0].timestamp / 1000
            left -= oldest.keys()
            left -= {tp for tp in left if await consumer.position(tp) >= ends[tp]}
    return oldest


def format_status(status: Mapping[str, Any]) -> str:
    """Format the result of `cluster_status` as tables of at most 80 columns."""
    lines = [f"group {status['app_id']} at {','.join(status['brokers'])}"[:80], *_worker_lines(status["workers"])]
    if not has_page_worker(status):
        lines += [
            "",
            "no worker makes pages: start one with `shopwindow worker`. If one runs, check",
            "that its SHOPWINDOW_APP_ID and SHOPWINDOW_PREFIX are those of this command.",
        ]
    for problem in status["problems"]:
        lines += ["", *textwrap.wrap(problem, 80, break_long_words=False)]
    lines += _forwarded_lines(status["forwarded"])
    lines += _lag_lines(status["partitions"])
    return "\n".join(line.rstrip() for line in lines)


def _worker_lines(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    if workers:
        lines += ["", f"{'WORKER':{NAME_WIDTH}} {'STATE':17} {'EVENTS/S':>9}  {'RUNG':15} PARTITIONS"]
    for worker in workers:
        if worker["state"] == "dead":
            lines.append(f"{_short_name(worker['worker'])} dead: no report for {worker['told_seconds_ago']:.0f} s")
            continue
        state = worker["state"]
        if worker["recovery_remaining"]:
            state += f" {worker['recovery_share']:.0%}"
        count = sum(map(len, worker["partitions"].values()))
        rung = "headlines only" if worker["role"] == "copy" else str(worker["rung"])
        lines.append(
            f"{_short_name(worker['worker'])} {state:17} {worker['events_per_s']:9,.0f}  {rung:15} {count:10d}"
        )
    return lines


def _forwarded_lines(forwarded: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not forwarded:
        return []
    lines = ["", f"{'TOPIC':14} {'FORWARDED':>9}  PRODUCERS' PARTITIONER (see deploy/README.md)"]
    for topic, share in forwarded.items():
        lines.append(f"{topic:14} {share['share']:9.1%}  {share['partitioner']}")
    return lines


def _lag_lines(partitions: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    behind = [row for row in partitions if row["lag_records"]]
    if behind:
        lines += ["", f"{'TOPIC':14} {'PARTITION':>9} {'LAG':>11} {'LAG S':>10}  WORKER"]
    for row in sorted(behind, key=lambda row: -row["lag_seconds"]):
        owner = _short_name(row["worker"]) if row["worker"] else "none"
        lines.append(
            f"{row['topic']:14} {row['partition']:9d} {row['lag_records']:11,d} {row['lag_seconds']:10,.1f}  {owner}"
        )
    others = len(partitions) - len(behind)
    lines += ["", f"no records wait in {'the other ' if behind else 'any of the '}{others} partitions"]
    return lines


def has_page_worker(status: Mapping[str, Any]) -> bool:
    """Return whether a worker that makes pages is alive; one that only writes headlines does not count."""
    return any(worker["state"] != "dead" and worker["role"] != "copy" for worker in status["workers"])


def _short_name(worker: str) -> str:
    """Keep the end of a long name: the distinct part of a pod's name, and the process id."""
    return f"{worker if len(worker) <= NAME_WIDTH else '~' + worker[1 - NAME_WIDTH :]:{NAME_WIDTH}}"
