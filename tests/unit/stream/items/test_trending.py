"""Trending items are the best of all showable items, whether the catalogue is scanned whole or in pieces."""

from typing import Any

import numpy as np
import pytest

from stream.ids import key64
from stream.items.catalog import AVAILABLE, showable
from stream.items.signals import HALF_LIVES, MAX_NEIGHBOURS, SIGNAL, Signals
from stream.items.trending import TRENDING_ITEMS, TRENDING_MAX_AGE_S, TRENDING_PER_CATEGORY, Trending
from tests.harness.events import NOW
from tests.harness.shop import catalog_of, item, signals_of


def test_trending_items_are_popular_and_showable() -> None:
    catalog = catalog_of(10)
    signals = signals_of(catalog, [["i3"]] * 5 + [["i4"]] * 3 + [["i5"]] * 9)
    catalog.apply([item("i5", available=False), (b"i9", None)])
    leaders = signals.trending(NOW)
    assert [catalog.item_id(r) for r in leaders.overall[:2]] == ["i3", "i4"]
    shown = {catalog.item_id(r) for r in leaders.overall if r >= 0}
    assert shown == {f"i{k}" for k in range(10)} - {"i5", "i9"}
    assert leaders.fresh[0] == -1, "items without a date are not new"


def shop_with_popularity(n: int, seed: int) -> tuple[Any, Signals]:
    """Items of five categories, a fifth of them unavailable, some new; popularity with many ties."""
    rng = np.random.default_rng(seed)
    catalog = catalog_of(n)
    items: Any = catalog.items[:n]
    items["flags"] &= np.where(rng.random(n) < 0.2, ~AVAILABLE, ~0).astype(np.int8)
    items["added"] = np.where(rng.random(n) < 0.5, 0, NOW - rng.integers(-5, 30, n) * 86_400.0)
    items["category"] = np.where(rng.random(n) < 0.1, 0, items["category"])
    rows: Any = np.zeros(n, SIGNAL)
    rows["item"], rows["time"] = items["id"], NOW - 3600.0 * rng.integers(0, 3, n)
    rows["popular"] = rng.integers(0, 4, (n, 3))
    signals = Signals(catalog)
    signals.set_rows(np.arange(n, dtype=np.int32), rows, np.full((n, MAX_NEIGHBOURS), -1, np.int32))
    return catalog, signals


def expected_trending(catalog: Any, signals: Signals, now: float) -> Any:
    """Overall, by category and fresh, in plain Python."""
    shown = [k for k in range(len(catalog)) if showable(catalog.items[k], now, 0)]

    def score(row: int) -> float:
        popular = signals.rows["popular"][row]
        elapsed = max(0.0, min(now, signals.clock) - signals.rows["time"][row])
        found = 0.0
        for weight, count, life in zip((0.5, 1.0, 0.25), popular.tolist(), HALF_LIVES.popularity, strict=True):
            found += weight * count * 2.0 ** -(elapsed / life)
        return found

    ids, added, of = catalog.items["id"], catalog.items["added"], catalog.items["category"]
    best = sorted(shown, key=lambda k: (-score(k), ids[k]))
    fresh = [k for k in shown if now - 14 * 86_400 < added[k] <= now]
    categories = {int(c): [k for k in best if of[k] == c][:TRENDING_PER_CATEGORY] for c in of[shown] if c}
    return best[:TRENDING_ITEMS], categories, sorted(fresh, key=lambda k: (-added[k], ids[k]))[:TRENDING_ITEMS]


def listed(leaders: Trending) -> Any:
    """Overall, by category and fresh, without the padding."""
    by_category = {
        int(key): [r for r in rows if r >= 0]
        for key, rows in zip(leaders.categories, leaders.by_category.tolist(), strict=True)
    }
    return [r for r in leaders.overall if r >= 0], by_category, [r for r in leaders.fresh if r >= 0]


@pytest.mark.parametrize(("n", "seed"), [(30, 1), (700, 2), (1500, 3)])
def test_trending_items_are_the_best_of_all_showable_items(n: int, seed: int) -> None:
    catalog, signals = shop_with_popularity(n, seed)
    assert listed(signals.trending(NOW)) == expected_trending(catalog, signals, NOW)


def test_the_hash_of_categories_grows() -> None:
    catalog, signals = shop_with_popularity(700, 4)
    catalog.items["category"][:700] = np.arange(700) % 333 + 1
    leaders = signals.trending(NOW)
    assert len(leaders.categories) > 300 and sorted(leaders.categories) == leaders.categories.tolist()
    assert listed(leaders) == expected_trending(catalog, signals, NOW)


def test_a_scan_in_pieces_finds_the_same_trending_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.items.trending.SCAN_ITEMS", 100)
    catalog, signals = shop_with_popularity(1500, 5)
    first = signals.trending(NOW)
    signals.summaries["popular"][:1500] = signals.rows["popular"][:1500] = np.random.default_rng(6).random((1500, 3))
    assert signals.trending(NOW + 1) is first, "the last scan is recent enough"
    calls = 0
    while (found := signals.trending(NOW + 6 + calls)) is first:
        calls += 1
    assert calls + 1 >= 1500 / 100, "no call scans more than one piece"
    assert calls < 2 * 1500 / 100
    assert listed(found) == expected_trending(catalog, signals, NOW + 6)


def test_a_changed_item_is_scanned_at_once_and_popularity_after_five_seconds() -> None:
    catalog = catalog_of(10)
    signals = signals_of(catalog, [["i3"]] * 5 + [["i4"]] * 3, NOW)
    first = signals.trending(NOW)
    row = catalog.index.get(key64("i7"))
    signals.summaries["popular"][row], signals.summaries["time"][row] = 99.0, NOW
    assert signals.trending(NOW + TRENDING_MAX_AGE_S) is first
    later = signals.trending(NOW + TRENDING_MAX_AGE_S + 0.001)
    assert [catalog.item_id(r) for r in later.overall[:3]] == ["i7", "i3", "i4"]
    catalog.apply([item("i7", available=False)])
    assert [catalog.item_id(r) for r in signals.trending(NOW + TRENDING_MAX_AGE_S + 0.001).overall[:2]] == ["i3", "i4"]


def test_trending_items_stay_while_no_activity_arrives() -> None:
    _, signals = shop_with_popularity(50, 8)
    before = listed(signals.trending(NOW))[0]
    signals.summaries["popular"][:50] = np.random.default_rng(9).random((50, 3))
    later = listed(signals.trending(NOW + 2000))[0]
    assert later != before, "the catalogue is scanned again"
    assert listed(signals.trending(NOW + 30 * 86_400))[0] == later, "popularity is not decayed beyond the newest event"


def test_one_wrong_future_time_does_not_freeze_trending_items() -> None:
    catalog, signals = shop_with_popularity(50, 7)
    signals.trending(NOW + 70 * 365 * 86_400)
    assert listed(signals.trending(NOW)) == expected_trending(catalog, signals, NOW)
