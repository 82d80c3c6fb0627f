"""Report when the ranker's scores become invalid, and when they are valid again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from agents.page.path import PageResult
from stream import metrics

RECOVERY_S = 10.0  # the ranker counts as healthy after this long without invalid scores
log = logging.getLogger(__name__)


class RankerHealth:
    """Health of the ranker in a folder; feed it all results with `observe`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._invalid_at: float | None = None  # s, time of the last invalid scores while the ranker counts as broken

    def observe(self, results: Sequence[PageResult], now: float) -> None:
        """Update the metrics, and log each change of state once. now: s since the epoch."""
        fallbacks = sum(page.is_fallback for result in results for page in result.pages)
        metrics.UNSOUND_PAGES.inc(fallbacks)
        if fallbacks:
            if self._invalid_at is None:
                metrics.RANKER_BROKEN.set(1)
                log.error(
                    "the ranker in %s returned invalid scores (NaN, no probabilities, or an error), so pages fall back "
                    "to popularity; restore the previous ranker there, or fit it again (shopwindow train ranker), and "
                    "restart the worker",
                    self._folder,
                )
            self._invalid_at = now
        elif (
            self._invalid_at is not None
            and not 0 <= now - self._invalid_at < RECOVERY_S
            and any(page.mode in ("full", "cached_copy") for result in results for page in result.pages)
        ):
            metrics.RANKER_BROKEN.set(0)
            log.warning("the ranker returns valid scores again; pages are personal")
            self._invalid_at = None
