"""The recovery benchmark runs end to end, and restores everything that was written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from deploy.bench import population
from deploy.bench.recovery import table
from stream.profile.codec import decode_record
from stream.profile.exposure import SERVING, SERVING_VERSION
from stream.profile.row import PROFILE, PROFILE_VERSION
from stream.row_codec import unpack

ROOT = Path(__file__).parents[2]


def test_population_has_a_realistic_spread_of_histories() -> None:
    counts = population.histories(20_000, 1)
    assert 24 <= counts.mean() <= 30 and counts.min() >= 1
    rows = population.records(500, seed=2)
    pairs = [decode_record(row) for row in rows]
    profiles = unpack([pair[0] for pair in pairs], PROFILE, PROFILE_VERSION)
    serving = unpack([pair[1] for pair in pairs], SERVING, SERVING_VERSION)
    assert (profiles["events"] == population.histories(500, 2)).all(), "each event is folded once"
    assert (serving["version"] > 0).all() and (np.count_nonzero(serving["fatigue_item"], axis=1) > 0).mean() > 0.5
    assert rows == population.records(500, seed=2)


def test_recovery_compares_memory_and_disk_tables_with_stock_faust() -> None:
    environ = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
    command = [sys.executable, "-m", "shopwindow", "bench", "recovery", "--seconds", "1", "--rounds", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    table_figures = {"records_per_s", "bytes_per_shopper", "million_seconds", "cpu_us_per_record"}
    assert figures["stock"].keys() == table_figures
    assert figures["rocksdb"].keys() == table_figures | {"ratio"}
    assert figures.keys() == table_figures | {
        "ratio", "rocksdb", "stock", "shoppers", "row_bytes", "start_seconds", "pinned",
    }  # fmt: skip
    assert figures["shoppers"] == 8_000 and figures["row_bytes"] > 500
    assert "times stock Faust" in table(figures)
