"""The worker watches its own load: it moves the ladder, and sees to it that pages which were put off go out."""

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
    from agents.shopper import Shoppers
    from stream.kafka.app import BatchApp
    from stream.settings import Settings

BEAT = 0.1  # s between two looks
EVENTS = ("clicks", "purchases", "privacy")  # what waits in other topics is our own doing
log = logging.getLogger(__name__)


def load_of(app: BatchApp, now: float) -> Load:
    """What waits for this worker at `now` (s since the epoch)."""
    waiting = sum(records for (topic, _), records in app.lag().items() if topic in EVENTS)
    ages = [age for (topic, _), age in app.lag_seconds(now).items() if topic in EVENTS]
    return Load(max(ages, default=0.0), waiting)


class LoadShedder:
    """The ladder of one worker at work."""

    def __init__(self, settings: Settings, app: BatchApp, path: PagePath, shoppers: Shoppers) -> None:
        self._app, self._path, self._shoppers = app, path, shoppers
        self.ladder = DegradationController(limits_of(settings.overload_lag, settings.run_records))

    async def watch(self) -> None:
        """Until the app stops."""
        while not self._app.should_stop:
            await asyncio.sleep(BEAT)
            if not self._app.ready:
                continue
            self.look(load_of(self._app, time.time()), time.monotonic())
            try:
                await self._shoppers.pay_pages()
            except KafkaError:
                if not self._app.should_stop:
                    raise

    def look(self, load: Load, now: float) -> None:
        """Move the ladder for the load at `now` (s, of a clock that never goes back)."""
        before, rung = self.ladder.rung, self.ladder.observe(load, now)
        if rung == before:
            return
        self._path.shed = degradation_of(rung, self.ladder.limits)
        metrics.RUNG.set(rung)
        metrics.RUNG_MOVES.labels("up" if rung > before else "down").inc()
        what = (
            "the worker is overloaded" if rung > before else "the load is less" if rung > FULL else "all is well again"
        )
        log.warning(
            "%s: rung %d (%s) of the ladder; %d events wait, the oldest for %.1f s",
            what, rung, RUNGS[rung], load.waiting, load.lag,
        )  # fmt: skip
