"""Expire profiles by the event time of their partition."""

from __future__ import annotations

from typing import NamedTuple

from agents.page.path import PageResult
from stream import metrics
from stream.kafka.commit import Output
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.profile.store import CLOCK_KEY, MemoryProfileStore


class Expiry(NamedTuple):
    """What a run has to write beside its own result."""

    changelog: list[tuple[bytes, bytes | None]]  # the partition's clock, and tombstones of profiles
    tombstones: list[Output]  # for `homepages`, to be sent before the run's pages


def expire_profiles(
    profiles: MemoryProfileStore | DiskProfileStore, partition: int, result: PageResult, profile_ttl: float
) -> Expiry:
    """Expire a few profiles of a partition, none of which `result` has changed.

    The storefront must drop the page of an expired profile, so shoppers who have just returned get a tombstone too.
    """
    if not profile_ttl:
        return Expiry([], [])
    changelog: list[tuple[bytes, bytes | None]] = []
    if result.clock > profiles.clock(partition):
        changelog.append((CLOCK_KEY, repr(result.clock).encode()))
    changed = {key for key, _ in [*result.changelog, *changelog]}
    swept = profiles.sweep(partition, result.clock, profile_ttl, changed)
    changelog += [(key, None) for key in swept]
    expired = [*result.expired, *swept]
    metrics.EXPIRED.inc(len(expired))
    return Expiry(changelog, [Output("homepages", partition, [(key, None) for key in expired])] if expired else [])
