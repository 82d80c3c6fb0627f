"""The product's worker, which kills itself with SIGKILL: `python -m tests.harness.dying_worker POINT RUNS`."""

import os
import sys
from typing import Any

from agents import worker
from stream.settings import Settings, load
from tests.harness.counting import die_at


class DyingWorker(worker.Worker):
    """A worker that dies at `point` of its `runs`-th run, as `die_at` says."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.app.when_ready(lambda: die_at(self.app, point, runs))


if __name__ == "__main__":
    point, runs = sys.argv[1], int(sys.argv[2])
    patched: Any = worker
    patched.Worker = DyingWorker
    sys.exit(worker.run(load(os.environ)))
