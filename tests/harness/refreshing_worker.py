"""The product's worker, which requests pages without end: `python -m tests.harness.refreshing_worker`.

A request is always under way when it is stopped.
"""

import asyncio
import os
import sys
from typing import Any

from agents import worker
from agents.global_tables import GlobalTables
from agents.page_refresher import DEFERRED_PAGE
from stream.settings import Settings, load


class RefreshingWorker(worker.Worker):
    """A worker whose global tables have a headline for a page at any time."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        app, ready = self.app, asyncio.Event()
        app.when_ready(ready.set)

        async def request_pages(*_: Any) -> None:
            await ready.wait()
            while True:
                await app.outputs.send("refreshes", None, [(b"u1", DEFERRED_PAGE)])

        patched: Any = GlobalTables
        patched.follow = request_pages


if __name__ == "__main__":
    patched: Any = worker
    patched.Worker = RefreshingWorker
    sys.exit(worker.run(load(os.environ)))
