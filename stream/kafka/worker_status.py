"""What each worker tells of itself, every EVERY seconds, in the compacted topic `worker-status`.

Why a topic: whoever can reach Kafka can read it, from anywhere, without knowing on which hosts the workers are or being
let through to their ports; it outlives the worker, so that one that was killed shows as silent; and it costs a record a
worker. The broker dates the records. A worker that is told to stop takes its own away.
"""

from __future__ import annotations

import msgspec

TOPIC = "worker-status"
EVERY = 2.0  # s
SILENT = 5 * EVERY  # s after which a worker counts as silent
FORGOTTEN = 3600.0  # s after which one that was never taken away is not shown any more


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The value; the key is the worker's name."""

    worker: str  # host:pid
    app_id: str
    state: str  # "ready", "recovering", "rebalancing", "starting"
    events_per_s: float  # records of behaviour done, in the last seconds
    rung: str  # of the ladder of degradation
    recovery_remaining: int  # changelog records
    recovery_share: float  # of them that is done, 0 to 1
    metrics: str  # host:port of its endpoints
    partitions: dict[str, list[int]]  # topic (logical) -> those of this worker
    role: str = "all"  # what it makes, as SHOPWINDOW_ROLE says it


def encode(status: WorkerStatus) -> bytes:
    return msgspec.json.encode(status)


def decode(value: bytes) -> WorkerStatus | None:
    """None for a record that another version wrote, or somebody else."""
    try:
        return msgspec.json.decode(value, type=WorkerStatus)
    except msgspec.MsgspecError:
        return None
