"""The status that each worker publishes every STATUS_INTERVAL_S seconds in the compacted topic `worker-status`.

Why a topic: whoever can reach Kafka can read it from anywhere, without knowing the workers' hosts and without access to
their ports. It outlives the worker, so a killed worker shows as silent. It costs one record per worker. The broker
dates the records. A worker that stops in good order removes its record.
"""

from __future__ import annotations

import msgspec

TOPIC = "worker-status"
STATUS_INTERVAL_S = 2.0
SILENT_AFTER_S = 5 * STATUS_INTERVAL_S
FORGOTTEN_AFTER_S = 3600.0  # a record that was never removed is no longer shown after this time


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a record; its key is the worker's name."""

    worker: str  # host:pid
    app_id: str
    state: str  # "ready", "recovering", "rebalancing", "starting"
    events_per_s: float  # shopper events processed, in the last seconds
    rung: str  # of the degradation ladder
    recovery_remaining: int  # changelog records
    recovery_share: float  # of the recovery that is done, 0 to 1
    metrics: str  # host:port of the worker's HTTP endpoints
    partitions: dict[str, list[int]]  # topic (logical name) -> partitions of this worker
    role: str = "all"  # as in SHOPWINDOW_ROLE


def encode(status: WorkerStatus) -> bytes:
    return msgspec.json.encode(status)


def decode(value: bytes) -> WorkerStatus | None:
    """Return None for a record that another version or another program wrote."""
    try:
        return msgspec.json.decode(value, type=WorkerStatus)
    except msgspec.MsgspecError:
        return None
