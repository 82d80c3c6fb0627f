"""Profiles at rest as a shop would have them: what benchmarks of the store and its changelog are fed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from stream.events import ADD, BUY, CLICK, EVENT, HIDE, HOME, REMOVE, SEARCH, VIEW
from stream.profile.codec import encode_records
from stream.profile.exposure import SERVING, SHOWN_ITEMS, apply_feedback
from stream.profile.row import PROFILE
from stream.profile.fold import fold

NOW = 1_767_225_600.0
MOST_EVENTS = 400
KINDS = (VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, BUY, HIDE)
SHARES = (0.44, 0.2, 0.12, 0.08, 0.09, 0.02, 0.03, 0.02)


def histories(shoppers: int, seed: int) -> np.ndarray:
    """Events of each shopper, (shoppers,): log-normal, median 15, mean 27, a tenth above 60, at most MOST_EVENTS."""
    chance = np.random.default_rng(seed)
    return np.clip(np.rint(chance.lognormal(np.log(15.0), 1.08, shoppers)), 1, MOST_EVENTS).astype(np.int64)


def records(shoppers: int, seed: int = 1) -> list[bytes]:
    """Changelog values of so many shoppers of a shop of 100,000 items: profile and what was served, by the real folds."""
    chance = np.random.default_rng(seed)
    counts = histories(shoppers, seed)
    n = int(counts.sum())
    who = np.repeat(np.arange(shoppers, dtype=np.int32), counts)
    events = np.zeros(n, EVENT)
    events["kind"] = chance.choice(KINDS, n, p=SHARES)
    # A month of visits, some minutes each.
    visit = np.floor(chance.random(n) * np.repeat(1 + counts // 8, counts))
    start = chance.random((shoppers, 1 + MOST_EVENTS // 8)) * 30 * 86_400.0
    moment = NOW - start[who, visit.astype(np.int64)] + chance.random(n) * 1200.0
    events["time"] = np.round(moment, 3)  # to the millisecond, as a browser's clock tells it
    events = events[np.lexsort((events["time"], who))]
    ids = chance.integers(1, 2**62, 100_000)
    item = np.minimum(chance.zipf(1.3, n) - 1 + 7 * who, 99_999 + 0 * who) % 100_000
    concerns = ~np.isin(events["kind"], (HOME, SEARCH))
    events["item"] = np.where(concerns, ids[item], 0)
    taste = chance.integers(1, 2**30, (2, 400))
    mine = chance.integers(0, 400, (shoppers, 6))
    events["category"] = np.where(concerns, taste[0][mine[who, item % 4]], 0)
    events["brand"] = np.where(concerns, taste[1][mine[who, item % 6]], 0)
    events["price"] = np.where(concerns, np.round(np.exp(chance.normal(3.5, 0.8, n)), 2), 0)
    events["word"] = np.where(events["kind"] == SEARCH, chance.integers(1, 2**30, n), 0)
    events["quantity"], events["id"] = 1, chance.integers(1, 2**62, n)
    events["locale"], events["channel"] = 1, chance.integers(1, 3, n)
    profiles, serving = np.zeros(shoppers, PROFILE), np.zeros(shoppers, SERVING)
    serving["version"] = counts
    serving["shown_item"] = ids[chance.integers(0, 100_000, (shoppers, SHOWN_ITEMS))]
    fresh = fold(profiles, who, events)
    apply_feedback(serving, who, events, fresh)
    return encode_records(profiles, serving)


def keys(count: int) -> Iterator[bytes]:
    """Keys as long as a user id of most shops."""
    return (b"shopper-%012d" % k for k in range(count))
