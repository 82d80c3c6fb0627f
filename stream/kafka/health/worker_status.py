"""The status that each worker publishes every STATUS_INTERVAL_S seconds in the compacted topic `worker-status`.

Why a topic: whoever can reach Kafka can read it from anywhere, without knowing the workers' hosts and without access to
their ports. It outlives the worker, so a killed worker shows as dead. It costs one record per worker. The broker dates
the records. A worker that stops in good order removes its record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

TOPIC = "worker-status"
STATUS_INTERVAL_S = 2.0
FORGOTTEN_AFTER_S = 60.0  # a dead worker is no longer shown after this time without a report


class ForwardedShare(msgspec.Struct, frozen=True):
    """How many of a topic's last records lay in a wrong partition and were forwarded."""

    records: int  # of producers; records that were forwarded are not counted again where they arrive
    forwarded: int  # of these
    partitioner: str  # that the producers seem to use: a key of `partitioner.PARTITIONERS`


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
    session_timeout: float = 6.0  # s, as in SHOPWINDOW_SESSION_TIMEOUT
    forwarded: dict[str, ForwardedShare] = {}  # topic (logical name) -> share, if there is one

    def is_dead(self, age: float) -> bool:
        """True if a worker whose last report is `age` seconds old has lost its partitions by now.

        One late report does not count, should the session be shorter than the interval of reports.
        """
        return age > max(self.session_timeout, 2 * STATUS_INTERVAL_S)


def encode(status: WorkerStatus) -> bytes:
    return msgspec.json.encode(status)


def decode(value: bytes) -> WorkerStatus | None:
    """Return None for a record that another version or another program wrote."""
    try:
        return msgspec.json.decode(value, type=WorkerStatus)
    except msgspec.MsgspecError:
        return None


def total_shares(shares: Iterable[Mapping[str, ForwardedShare]]) -> dict[str, ForwardedShare]:
    """The shares of several workers together, by topic. A partitioner that one of them has recognised is kept."""
    total: dict[str, ForwardedShare] = {}
    for topic, share in (item for one in shares for item in one.items()):
        known = total.get(topic, ForwardedShare(0, 0, "unknown"))
        partitioner = share.partitioner if share.partitioner != "unknown" else known.partitioner
        total[topic] = ForwardedShare(known.records + share.records, known.forwarded + share.forwarded, partitioner)
    return dict(sorted(total.items()))
