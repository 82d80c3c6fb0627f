"""Changelog records of realistic profiles, for the benchmark of recovery."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stream.events.decode import ADD, BUY, CLICK, EVENT, HIDE, HOME, REMOVE, SEARCH, VIEW
from stream.profile.codec import encode_records
from stream.profile.exposure import SERVING, SHOWN_ITEMS, apply_feedback
from stream.profile.fold import fold
from stream.profile.row import PROFILE
from stream.types import I64

NOW = 1_767_225_600.0
MAX_EVENTS = 400
KINDS = (VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, BUY, HIDE)
SHARES = (0.44, 0.2, 0.12, 0.08, 0.09, 0.02, 0.03, 0.02)


def histories(shoppers: int, seed: int) -> I64:
    """Number of events of each shopper, (shoppers,): log-normal, median 15, mean 27, 10% above 60, capped."""
    rng = np.random.default_rng(seed)
    return np.clip(np.rint(rng.lognormal(np.log(15.0), 1.08, shoppers)), 1, MAX_EVENTS).astype(np.int64)


def records(shoppers: int, seed: int = 1) -> list[bytes]:
    """Return changelog values, profile and exposure, of shoppers in a shop of 100,000 items, made by the real folds."""
    rng = np.random.default_rng(seed)
    counts = histories(shoppers, seed)
    n = int(counts.sum())
    owner = np.repeat(np.arange(shoppers, dtype=np.int32), counts)
    events = np.zeros(n, EVENT)
    events["kind"] = rng.choice(KINDS, n, p=SHARES)
    # Visits of some minutes each, spread over a month.
    visit = np.floor(rng.random(n) * np.repeat(1 + counts // 8, counts))
    start = rng.random((shoppers, 1 + MAX_EVENTS // 8)) * 30 * 86_400.0
    time = NOW - start[owner, visit.astype(np.int64)] + rng.random(n) * 1200.0
    events["time"] = np.round(time, 3)  # in milliseconds, as browsers report them
    events = events[np.lexsort((events["time"], owner))]
    ids = rng.integers(1, 2**62, 100_000)
    item = np.minimum(rng.zipf(1.3, n) - 1 + 7 * owner, 99_999 + 0 * owner) % 100_000
    has_item = ~np.isin(events["kind"], (HOME, SEARCH))
    events["item"] = np.where(has_item, ids[item], 0)
    codes = rng.integers(1, 2**30, (2, 400))
    tastes = rng.integers(0, 400, (shoppers, 6))
    events["category"] = np.where(has_item, codes[0][tastes[owner, item % 4]], 0)
    events["brand"] = np.where(has_item, codes[1][tastes[owner, item % 6]], 0)
    events["price"] = np.where(has_item, np.round(np.exp(rng.normal(3.5, 0.8, n)), 2), 0)
    events["word"] = np.where(events["kind"] == SEARCH, rng.integers(1, 2**30, n), 0)
    events["quantity"], events["id"] = 1, rng.integers(1, 2**62, n)
    events["locale"], events["channel"] = 1, rng.integers(1, 3, n)
    profiles, serving = np.zeros(shoppers, PROFILE), np.zeros(shoppers, SERVING)
    serving["version"] = counts
    serving["shown_item"] = ids[rng.integers(0, 100_000, (shoppers, SHOWN_ITEMS))]
    fresh = fold(profiles, owner, events)
    apply_feedback(serving, profiles, owner, events, fresh)
    return encode_records(profiles, serving)


def keys(count: int) -> Iterator[bytes]:
    """Shopper keys of a realistic length."""
    return (b"shopper-%012d" % k for k in range(count))
