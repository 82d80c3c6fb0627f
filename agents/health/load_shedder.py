"""Observe the worker's load, adapt what its pages go without, and request deferred pages when they are due."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from stream import metrics
from stream.degradation import FULL, RUNGS, DegradationController, Load, degradation_of, limits_of

if TYPE_CHECKING:
    from agents.page.path import PagePath
    from agents.page_refresher import PageRefresher
    from stream.kafka.app import BatchApp
    from stream.settings import Settings

CHECK_INTERVAL_S = 0.1
EVENT_TOPICS = ("clicks", "purchases", "privacy")  # the other topics' backlogs are of our own making
log = logging.getLogger(__name__)


def load_of(app: BatchApp, now: float) -> Load:
    """The events that wait for this worker at `now` (s since the epoch)."""
    waiting = sum(records for (topic, _), records in app.lag().items() if topic in EVENT_TOPICS)
    ages = [age for (topic, _), age in app.lag_seconds(now).items() if topic in EVENT_TOPICS]
    return Load(max(ages, default=0.0), waiting)


class LoadShedder:
    """Sets the degradation of a page path by the load of its worker."""

    def __init__(self, settings: Settings, app: BatchApp, path: PagePath, refresher: PageRefresher) -> None:
        self._app, self._path, self._refresher = app, path, refresher
        self.controller = DegradationController(limits_of(settings.overload_lag, settings.run_records))

    async def run(self) -> None:
        """Run until the app stops."""
        while not self._app.should_stop:
            await asyncio.sleep(CHECK_INTERVAL_S)
            if not self._app.ready:
                continue
            self.observe(load_of(self._app, time.time()), time.monotonic())
            try:
                await self._refresher.refresh_deferred()
            except KafkaError:
                if not self._app.should_stop:
                    raise

    def observe(self, load: Load, now: float) -> None:
        """Adapt the degradation to the load at `now` (s, of a monotonic clock)."""
        previous, rung = self.controller.rung, self.controller.observe(load, now)
        if rung == previous:
            return
        self._path.degradation = degradation_of(rung, self.controller.limits)
        metrics.RUNG.set(rung)
        metrics.RUNG_MOVES.labels("up" if rung > previous else "down").inc()
        if rung > previous:
            change = "the worker is overloaded"
        else:
            change = "the load has decreased" if rung > FULL else "the load is normal again"
        log.warning(
            "%s: degradation rung %d (%s); %d events wait, the oldest for %.1f s",
            change, rung, RUNGS[rung], load.waiting, load.lag,
        )  # fmt: skip
