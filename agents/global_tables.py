"""The tables that every worker holds in full: the catalogue, the items' signals, the headlines."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from agents.batcher import OffLoop
from agents.page.headline_cache import MAX_HEADLINES, HeadlineCache, RefreshRequest
from stream import metrics
from stream.items.catalog import Catalog
from stream.items.signals import HalfLives, Signals
from stream.kafka.global_topics import GlobalTopics, PartitionRecords
from stream.kafka.keys.partition_merge import PartitionMerge
from stream.settings import Settings

TOPICS = ("catalog", "item-signals", "copy")
log = logging.getLogger(__name__)


class GlobalTables:
    """Catalogue, signals and headlines, updated from their topics.

    They change only in the thread that makes pages, between two batches.
    """

    def __init__(self, settings: Settings, half_lives: HalfLives) -> None:
        self.catalog = Catalog(settings.default_locale)
        self.signals = Signals(self.catalog, half_lives)
        self.headlines = HeadlineCache(settings.copy_items)
        self._topics = GlobalTopics(settings, TOPICS)
        # Producers with different partitioners write an item to different partitions.
        self._merges = {"catalog": PartitionMerge(), "copy": PartitionMerge(max_present=MAX_HEADLINES)}

    @property
    def ready(self) -> bool:
        return self._topics.ready

    async def start(self) -> None:
        """Return when every existing record is applied. Raises NoBroker, or LookupError for a missing topic."""
        await self._topics.start()
        self.apply(self._topics.drain())

    async def follow(
        self, off_loop: OffLoop, on_headlines: Callable[[dict[bytes, RefreshRequest]], Awaitable[None]]
    ) -> None:
        """Apply new records, for ever. `on_headlines` gets a refresh request for each page whose headline arrived."""
        while True:
            await self._topics.arrived()
            received = self._topics.drain()
            refreshes = await off_loop(lambda received=received: self.apply(received))  # type: ignore[misc]
            if refreshes:
                await on_headlines(refreshes)

    async def stop(self) -> None:
        await self._topics.stop()

    def apply(self, received: Sequence[PartitionRecords]) -> dict[bytes, RefreshRequest]:
        refreshes: dict[bytes, RefreshRequest] = {}
        for topic, records, partition, offsets, timestamps in received:
            if topic == "item-signals":  # each item's signals are written by the owner of its only partition
                self.signals.apply(records)
                continue
            claim = self._merges[topic].claims(records, partition, timestamps)
            if topic == "catalog":
                for reject in self.catalog.apply(records, claim):
                    metrics.DEAD_LETTERS.labels("catalog", "invalid").inc()
                    where = {"topic": topic, "partition": partition, "offset": offsets[reject.record]}
                    log.warning("an item of the catalogue is invalid and was skipped: %s", reject.message, extra=where)
            else:
                current = [record for at, record in enumerate(records) if claim(at)]
                refreshes |= self.headlines.apply(current, time.time())
        return refreshes
