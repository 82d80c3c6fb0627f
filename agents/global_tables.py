"""What every worker holds in full: the catalogue, the items' signals, the headlines; kept current between batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from agents.batcher import OffLoop
from agents.page.headline_cache import HeadlineCache, Refresh
from stream import metrics
from stream.items.catalog import Catalog
from stream.items.signals import HalfLives, Signals
from stream.kafka.global_topics import GlobalTopics, PartitionRecords
from stream.settings import Settings

TOPICS = ("catalog", "item-signals", "copy")
log = logging.getLogger(__name__)


class GlobalTables:
    """Broadcast topics as the domain's tables. They change only in the thread of the batches, between two steps."""

    def __init__(self, settings: Settings, half_lives: HalfLives) -> None:
        self.catalog = Catalog()
        self.signals = Signals(self.catalog, half_lives)
        self.copies = HeadlineCache(settings.copy_items)
        self._broadcast = GlobalTopics(settings, TOPICS)

    @property
    def ready(self) -> bool:
        return self._broadcast.ready

    async def start(self) -> None:
        """Return when everything that there was is in the tables. Raises NoBroker, LookupError for a missing topic."""
        await self._broadcast.start()
        self.apply(self._broadcast.drain())

    async def follow(self, off_loop: OffLoop, on_copy: Callable[[dict[bytes, Refresh]], Awaitable[None]]) -> None:
        """Apply what comes, for ever; `on_copy` gets the shoppers whose headline has come, as refreshes."""
        while True:
            await self._broadcast.arrived()
            news = self._broadcast.drain()
            served = await off_loop(lambda news=news: self.apply(news))  # type: ignore[misc]
            if served:
                await on_copy(served)

    async def stop(self) -> None:
        await self._broadcast.stop()

    def apply(self, news: Sequence[PartitionRecords]) -> dict[bytes, Refresh]:
        served: dict[bytes, Refresh] = {}
        for topic, records, partition, offsets in news:
            if topic == "catalog":
                for reject in self.catalog.apply(records):
                    metrics.DEAD_LETTERS.labels("catalog", "invalid").inc()
                    place = {"topic": topic, "partition": partition, "offset": offsets[reject.record]}
                    log.warning("an item of the catalogue is left out: %s", reject.message, extra=place)
            elif topic == "item-signals":
                self.signals.apply(records)
            else:
                served |= self.copies.apply(records, time.time())
        return served


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel the task and wait for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
