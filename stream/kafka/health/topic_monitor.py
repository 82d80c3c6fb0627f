"""Notices that a topic has got other partitions, or was deleted, while workers run.

Nothing else shows a later change: records in new partitions would wait there unread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError

from stream import metrics
from stream.kafka.topics import TOPICS, grown_topic

if TYPE_CHECKING:
    from stream.settings import Settings

CHECK_INTERVAL_S = 20.0
log = logging.getLogger(__name__)


def grown_catalog(name: str, count: int, read: int) -> str:
    """The problem of a catalogue with more partitions than this worker reads, and what to do."""
    return (
        f"topic '{name}' has {count} partitions, but this worker reads {read}, those of its start: restart the workers"
    )


def deleted_topic(name: str) -> str:
    """The problem of a topic that is missing, and what to do."""
    return f"topic '{name}' was deleted; `shopwindow topics create` creates it, then restart the workers"


class TopicMonitor:
    """Compares the topics with SHOPWINDOW_PARTITIONS at intervals; start it with `run`.

    `fetch_metadata` asks the cluster for all topics.
    """

    def __init__(self, settings: Settings, fetch_metadata: Callable[[], Awaitable[ClusterMetadata]]) -> None:
        self._settings, self._fetch_metadata = settings, fetch_metadata
        self._missing: set[str] = set()  # at the last check: a broker that starts may not know its topics yet
        self._catalog_partitions = 0  # at the first check; the worker has read the catalogue right before
        self.problems: list[str] = []  # a sentence each, with what to do

    @property
    def note(self) -> str | None:
        """The problems as one text; None if there are none."""
        return "; ".join(self.problems) or None

    async def run(self) -> None:
        """Check for ever. Errors of Kafka are left to those who need its answer."""
        while True:
            with suppress(KafkaError):
                await self.check()
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def check(self) -> None:
        """Ask the cluster once, and `observe` its answer. Raises a Kafka error if there is none."""
        cluster = await self._fetch_metadata()
        names = {topic.name: self._settings.prefix + topic.name for topic in TOPICS}
        self.observe({topic: len(cluster.partitions_for_topic(name) or ()) for topic, name in names.items()})

    def observe(self, counts: Mapping[str, int]) -> None:
        """Update the problems and the metric, and log each new problem. `counts`: partitions by logical topic."""
        partitions, prefix = self._settings.partitions, self._settings.prefix
        missing = {topic for topic, count in counts.items() if not count}
        found = [grown_topic(self._settings, topic, count) for topic, count in counts.items()]
        problems = [problem for problem in found if problem]
        catalog = counts.get("catalog", 0)
        self._catalog_partitions = self._catalog_partitions or catalog
        if catalog > self._catalog_partitions:
            problems.append(grown_catalog(prefix + "catalog", catalog, self._catalog_partitions))
        problems += [deleted_topic(prefix + topic) for topic in sorted(missing & self._missing)]
        for topic, count in counts.items():
            metrics.GROWN_PARTITIONS.labels(topic).set(max(0, count - partitions))
        for problem in problems:
            if problem not in self.problems:
                log.error("%s", problem)
        self.problems, self._missing = problems, missing
