"""What tests of training share: synthetic clickstreams, and the mark for tests that need torch."""

import sys
from pathlib import Path

import numpy as np
import pytest

from models.data.clickstream import Clicks

ITEMS = [f"i{k}" for k in range(60)]
needs_torch = pytest.mark.skipif(
    not any((Path(folder) / "torch").is_dir() for folder in sys.path), reason="torch is not installed: make setup-train"
)


def ignore_line(line: str) -> None:
    """A log that drops its lines."""


def stride_clicks(seed: int, sessions: int, stride: int, start: float = 1e9) -> Clicks:
    """Sessions of 1 to 6 clicks on ITEMS. The next item is `stride` further on; in 15% of the cases it is random."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, sessions)
    items, times = [], []
    for s, length in enumerate(lengths.tolist()):
        item = int(rng.integers(0, len(ITEMS)))
        for k in range(length):
            items.append(item)
            times.append(start + 100 * s + 10 * k)
            item = int(rng.integers(0, len(ITEMS))) if rng.random() < 0.15 else (item + stride) % len(ITEMS)
    return Clicks(np.cumsum(lengths), np.array(items, np.int32), np.array(times))


def write_clickstream(clicks: Clicks, path: Path) -> Path:
    """Write clicks on ITEMS as a clickstream file."""
    sessions = np.repeat(np.arange(len(clicks.ends)), np.diff(clicks.ends, prepend=0))
    lines = [f"{s}\t{ITEMS[i]}\t{t}" for s, i, t in zip(sessions, clicks.item, clicks.time, strict=True)]
    path.write_text("SessionId\tItemId\tTime\n" + "\n".join(lines) + "\n")
    return path
