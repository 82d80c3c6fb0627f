"""An outage of Kafka: since when it lasts, and what an operator reads about it."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from stream.kafka.client.connection import bootstrap

if TYPE_CHECKING:
    from stream.settings import Settings

log = logging.getLogger(__name__)


class Outage:
    """Begins and ends with one log line each. Times are those of the monotonic clock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.since: float | None = None  # time of Kafka's last answer; None while there is no outage

    @property
    def seconds(self) -> float:
        """How long Kafka has not answered; 0 if there is no outage."""
        return 0.0 if self.since is None else monotonic() - self.since

    @property
    def note(self) -> str | None:
        """What is wrong; None if there is no outage."""
        if self.since is None:
            return None
        return f"Kafka at {', '.join(bootstrap(self._settings))} does not answer; this worker keeps trying"

    def begin(self, since: float, error: Exception) -> None:
        """Log the outage. since: time of the last answer. error: of the last attempt."""
        self.since = since
        log.warning("%s (%s)", self.note, error if str(error) else type(error).__name__)

    def end(self) -> None:
        """Log the end of the outage."""
        log.warning("Kafka answers again, after %.0f s", self.seconds)
        self.since = None
