"""Request that pages are made again.

The requests go through the topic `refreshes`, because only the owner of a partition writes its pages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec

from agents.batcher import OffLoop
from agents.page.headline_cache import RefreshRequest
from agents.page.path import PagePath
from stream import metrics
from stream.kafka.commit import Outputs
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.profile.store import MemoryProfileStore

# The request for a deferred page; the shopper's row holds its trigger.
DEFERRED_PAGE = msgspec.json.encode(RefreshRequest("", "", 0.0))


class PageRefresher:
    """Sends refresh requests for the shoppers whose profiles this worker owns."""

    def __init__(
        self, path: PagePath, profiles: MemoryProfileStore | DiskProfileStore, out: Outputs, off_loop: OffLoop
    ) -> None:
        self._path, self._profiles, self._out, self._off_loop = path, profiles, out, off_loop

    async def refresh_for_headlines(self, refreshes: Mapping[bytes, RefreshRequest]) -> None:
        """Request the pages whose headline has arrived, unless headlines are degraded."""
        if self._path.degradation.sheds_headlines:
            return
        requests = [(key, msgspec.json.encode(refreshes[key])) for key in self._profiles.owned(refreshes)]
        await self._out.send("refreshes", None, requests)

    async def refresh_deferred(self) -> None:
        """Request the deferred pages that are due.

        The stored rows say whose page was deferred, so a crash at any point forgets none. A page that is requested
        twice is made once, because the first page clears that entry.
        """
        deferred = self._profiles.deferred
        metrics.OWED_PAGES.set(len(deferred))
        if len(deferred):
            now, min_interval = time.monotonic(), self._path.degradation.page_interval_s
            for partition, keys in await self._off_loop(lambda: deferred.due(now, min_interval)):
                await self._out.send("refreshes", partition, [(key, DEFERRED_PAGE) for key in keys])
