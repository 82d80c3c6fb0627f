"""Cut runs so that the changelog of each fits one record batch of its topic.

A run's changelog and its watermark are one append, so a run is never committed in parts. A smaller run is. How large
its changelog will be is known only after its step, which changes nothing; the step is then repeated with fewer records.
The size that was found is the estimate for the next runs, so that repetitions are rare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stream.kafka.commit import changelog_bytes
from stream.kafka.run import Run

FILL = 0.9  # of a batch that a cut run is expected to fill
# Runs whose changelog fills less than this of a batch say little about larger ones: each record has its own shopper.
LARGE = 0.5


class RunCutter:
    """Cuts the runs of one agent. `limit` returns the maximum bytes of a changelog."""

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._record_bytes = 0.0  # changelog bytes for each record of the last large run; 0 before the first

    def cut_to_estimate(self, run: Run) -> None:
        """Cut a run before its step, if runs like it were too large."""
        if self._record_bytes:
            self._cut_to(run, int(FILL * self._limit() / self._record_bytes))

    def cut_to_fit(self, run: Run, changelog: Sequence[tuple[bytes, bytes | None]]) -> bool:
        """Cut a run if its `changelog` is too large. Return True if it was cut: its step must be repeated.

        A run of one record cannot be cut.
        """
        size, limit = changelog_bytes(changelog), self._limit()
        if size > LARGE * limit or run.left_over:
            self._record_bytes = size / len(run.records)
        if size <= limit or len(run.records) == 1:
            return False
        self._cut_to(run, min(int(FILL * limit / size * len(run.records)), len(run.records) - 1))
        return True

    @staticmethod
    def _cut_to(run: Run, count: int) -> None:
        if count < len(run.records):
            run.cut(max(1, count))
