"""How a cluster of workers is doing, in one look: what each worker tells, and what Kafka knows of the lag without them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from stream.kafka.client.connection import bootstrap, client_options, connecting
from stream.kafka.global_topics import assign, connected, read_topic
from stream.kafka.topics import copy_group
from stream.kafka.worker_status import FORGOTTEN, SILENT, TOPIC, WorkerStatus, decode
from stream.settings import Settings

SOURCES = ("clicks", "purchases", "privacy", "refreshes", "item-activity", "copy-requests")  # what workers commit
ANSWER = 10.0  # s in which the oldest waiting records are to be read
WIDTH = 24  # of a worker's name in a table


async def cluster_status(settings: Settings) -> dict[str, Any]:
    """The cluster now, as `--json` prints it. Raises NoBroker, LookupError where a topic is missing.

    Lag is counted from what the group has committed, so it is known of dead workers too; commits come once a second.
    `lag_seconds` is the age of the oldest record that is not committed.
    """
    now = time.time()
    told: dict[str, tuple[float, WorkerStatus]] = {}
    async for record in read_topic(settings, TOPIC):
        name = (record.key or b"").decode("utf-8", "replace")
        status = decode(record.value) if record.value is not None else None
        told.pop(name, None)
        if status is not None and status.app_id == settings.app_id and now - record.timestamp / 1000 < FORGOTTEN:
            told[name] = record.timestamp / 1000, status
    workers: list[dict[str, Any]] = [
        {
            "worker": status.worker, "state": "silent" if now - at > SILENT else status.state,
            "told_seconds_ago": round(max(0.0, now - at), 1), "events_per_s": status.events_per_s, "rung": status.rung,
            "recovery_remaining": status.recovery_remaining, "recovery_share": status.recovery_share,
            "metrics": status.metrics, "partitions": status.partitions, "role": status.role,
        }
        for at, status in sorted(told.values(), key=lambda one: one[1].worker)
    ]  # fmt: skip
    owners = {
        (topic, number): worker["worker"]
        for worker in workers
        if worker["state"] != "silent"
        for topic, numbers in worker["partitions"].items()
        for number in numbers
    }
    partitions = [
        {"topic": topic, "partition": number, "worker": owners.get((topic, number)), **lag}
        for (topic, number), lag in (await lags(settings)).items()
    ]
    return {
        "app_id": settings.app_id,
        "brokers": bootstrap(settings),
        "workers": workers,
        "partitions": partitions,
    }


async def lags(settings: Settings) -> dict[tuple[str, int], dict[str, Any]]:
    """(logical topic, partition) -> committed and end offset, lag in records and in seconds."""
    committed = await _committed(settings)
    consumer = await connected(settings)
    try:
        ends = await assign(consumer, [settings.prefix + topic for topic in SOURCES])
        starts = await consumer.beginning_offsets(list(ends))
        done = {tp: max(starts[tp], committed.get(tp, -1)) for tp in ends}
        waiting = {tp: offset for tp, offset in done.items() if offset < ends[tp]}
        since = await _oldest(consumer, waiting, ends)
    finally:
        await consumer.stop()
    now = time.time()
    return {
        (tp.topic.removeprefix(settings.prefix), tp.partition): {
            "committed": committed.get(tp, -1), "end": ends[tp],
            # What is left may be markers of a transaction, or compacted away: then nothing waits.
            "lag_records": ends[tp] - done[tp] if tp in since else 0,
            "lag_seconds": round(max(0.0, now - since[tp]), 3) if tp in since else 0.0,
        }
        for tp in ends
    }  # fmt: skip


async def _committed(settings: Settings) -> dict[TopicPartition, int]:
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        with connecting(settings):
            await admin.start()
        try:
            found = await admin.list_consumer_group_offsets(settings.app_id)
            writers = await admin.list_consumer_group_offsets(copy_group(settings))
        except GroupCoordinatorNotAvailableError:
            return {}  # no group has ever been in this cluster
        # In a cluster of before the workers' group has offsets of requests for copy too, which nobody moves any more.
        of_pages = {tp: meta for tp, meta in found.items() if tp.topic != settings.prefix + "copy-requests"}
        return {tp: int(meta.offset) for tp, meta in (of_pages | writers).items()}
    finally:
        await admin.close()


async def _oldest(
    consumer: AIOKafkaConsumer, waiting: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]
) -> dict[TopicPartition, float]:
    """Timestamp (s) of the first record at or after each offset; partitions that have none are left out.

    Raises TimeoutError where Kafka does not give them within ANSWER seconds.
    """
    since: dict[TopicPartition, float] = {}
    if not waiting:
        return since
    consumer.assign(list(waiting))
    for tp, offset in waiting.items():
        consumer.seek(tp, offset)
    left = set(waiting)
    async with asyncio.timeout(ANSWER):
        while left:
            for tp, records in (await consumer.getmany(*left, timeout_ms=200)).items():
                since[tp] = records[0].timestamp / 1000
            left -= since.keys()
            left -= {tp for tp in left if await consumer.position(tp) >= ends[tp]}
    return since


def format_status(seen: Mapping[str, Any]) -> str:
    """For people, in at most 80 columns."""
    workers: Sequence[Mapping[str, Any]] = seen["workers"]
    lines = [f"group {seen['app_id']} at {','.join(seen['brokers'])}"[:80]]
    if workers:
        lines += ["", f"{'WORKER':{WIDTH}} {'STATE':17} {'EVENTS/S':>9}  {'RUNG':15} PARTITIONS"]
    for worker in workers:
        if worker["state"] == "silent":
            lines.append(f"{_name(worker['worker'])} silent for {worker['told_seconds_ago']:.0f} s")
            continue
        state = worker["state"]
        if worker["recovery_remaining"]:
            state += f" {worker['recovery_share']:.0%}"
        count = sum(map(len, worker["partitions"].values()))
        lines.append(
            f"{_name(worker['worker'])} {state:17} {worker['events_per_s']:9,.0f}  {_does(worker):15} {count:10d}"
        )
    if not has_page_worker(seen):
        lines += [
            "",
            "no worker makes pages: start one with `shopwindow worker`. If one runs, look",
            "whether its SHOPWINDOW_APP_ID and SHOPWINDOW_PREFIX are those of this command.",
        ]
    behind = [row for row in seen["partitions"] if row["lag_records"]]
    if behind:
        lines += ["", f"{'TOPIC':14} {'PARTITION':>9} {'LAG':>11} {'LAG S':>10}  WORKER"]
    for row in sorted(behind, key=lambda row: -row["lag_seconds"]):
        owner = _name(row["worker"]) if row["worker"] else "nobody"
        lines.append(
            f"{row['topic']:14} {row['partition']:9d} {row['lag_records']:11,d} {row['lag_seconds']:10,.1f}  {owner}"
        )
    others = len(seen["partitions"]) - len(behind)
    lines += ["", f"nothing waits in {'the other ' if behind else 'any of the '}{others} partitions"]
    return "\n".join(line.rstrip() for line in lines)


def has_page_worker(seen: Mapping[str, Any]) -> bool:
    """True where a worker is at work that does more than to write headlines."""
    return any(worker["state"] != "silent" and worker["role"] != "copy" for worker in seen["workers"])


def _does(worker: Mapping[str, Any]) -> str:
    return "headlines only" if worker["role"] == "copy" else str(worker["rung"])


def _name(worker: str) -> str:
    """The end says most: a pod's own name, and the process."""
    return f"{worker if len(worker) <= WIDTH else '~' + worker[1 - WIDTH :]:{WIDTH}}"
