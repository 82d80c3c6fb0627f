"""Watches in which partitions producers place their records, and warns once for each topic if these are wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from stream.kafka.health.worker_status import ForwardedShare
from stream.kafka.keys.partitioner import PARTITIONERS, MisplacedSample

# Shares are those of about the last this many records of a topic, so that a producer which is mended shows.
WINDOW_RECORDS = 20_000
# A warning waits for this many distinct misplaced keys of a topic, but at most for this time.
WARNING_KEYS = 100
WARNING_DELAY_S = 10.0
log = logging.getLogger(__name__)


class _Topic:
    """What is known of one topic's producers."""

    def __init__(self, partitions: int) -> None:
        self.sample = MisplacedSample(partitions)
        self.records = 0  # of producers, in the window; forwarded ones are not counted again where they arrive
        self.misplaced = 0  # of these
        self.keyless = 0  # of these
        self.misplaced_logged = self.keyless_logged = False
        self.timer: asyncio.TimerHandle | None = None  # of the next warning

    def is_due(self) -> bool:
        """True if there is something to warn of."""
        return (self.misplaced > 0 and not self.misplaced_logged) or (self.keyless > 0 and not self.keyless_logged)


class PlacementMonitor:
    """Counts the records of each topic that lie in a wrong partition, and guesses their producers' partitioner.

    `observe` may be called in another thread than the other methods.
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._topics: dict[str, _Topic] = {}
        self._is_due = False  # a topic has something to warn of

    def observe(
        self, topic: str, partition: int, records: int, misplaced: Sequence[Any] = (), keyless: int = 0
    ) -> None:
        """Count the records of a run that producers wrote, those of them that were misplaced, and those without key."""
        found = self._topics.get(topic)
        if found is None:
            if not misplaced and not keyless:
                return
            found = self._topics[topic] = _Topic(self._partitions)
        found.records += records
        found.misplaced += len(misplaced)
        found.keyless += keyless
        for record in misplaced:
            found.sample.add(record.key, partition)
        if misplaced or keyless:
            self._is_due = self._is_due or found.is_due()
        if found.records > WINDOW_RECORDS:
            found.records, found.misplaced, found.keyless = found.records // 2, found.misplaced // 2, found.keyless // 2

    def warn_if_due(self) -> None:
        """Log due warnings: at once for a topic with enough misplaced keys, else after WARNING_DELAY_S.

        To be called on the event loop.
        """
        if not self._is_due:
            return
        for topic, one in list(self._topics.items()):
            if not one.is_due():
                continue
            if one.timer is None:
                one.timer = asyncio.get_running_loop().call_later(WARNING_DELAY_S, self._warn, topic, one)
            if not one.misplaced_logged and len(one.sample) >= WARNING_KEYS:
                one.timer.cancel()
                self._warn(topic, one)
        self._is_due = any(one.is_due() for one in list(self._topics.values()))

    def _warn(self, topic: str, one: _Topic) -> None:
        one.timer = None
        if one.misplaced and not one.misplaced_logged:
            one.misplaced_logged = True
            log.warning(
                "%d of %d records of '%s' lie in a wrong partition and are forwarded, which costs time; their "
                "producers seem to use %s (see 'Which partitioner' in deploy/README.md)",
                one.misplaced, one.records, topic, PARTITIONERS[one.sample.guess()], extra={"topic": topic},
            )  # fmt: skip
        if one.keyless and not one.keyless_logged:
            one.keyless_logged = True
            log.warning(
                "%d of %d records of '%s' have no key and are refused; the key must be the shopper's user_id, or their "
                "anonymous_id", one.keyless, one.records, topic, extra={"topic": topic},
            )  # fmt: skip

    def shares(self) -> dict[str, ForwardedShare]:
        """The forwarded share of each topic that has one."""
        return {
            topic: ForwardedShare(one.records, one.misplaced, one.sample.guess())
            for topic, one in list(self._topics.items())
            if one.misplaced
        }
