"""What leads: the first of all that can be shown, however the catalogue is looked through."""

from typing import Any

import numpy as np
import pytest

from stream.ids import key64
from stream.items.catalog import AVAILABLE, showable
from stream.items.signals import HALF_LIVES, MAX_NEIGHBOURS, SIGNAL, Signals
from stream.items.trending import CATEGORY_LEADERS, LEADERS, LEADERS_AGE, Trending
from tests.harness.events import NOW
from tests.harness.shop import catalog_of, item, signals_of


def test_leaders_are_the_popular_that_can_be_shown() -> None:
    catalog = catalog_of(10)
    signals = signals_of(catalog, [["i3"]] * 5 + [["i4"]] * 3 + [["i5"]] * 9)
    catalog.apply([item("i5", available=False), (b"i9", None)])
    leaders = signals.trending(NOW)
    assert [catalog.item_id(r) for r in leaders.overall[:2]] == ["i3", "i4"]
    shown = {catalog.item_id(r) for r in leaders.overall if r >= 0}
    assert shown == {f"i{k}" for k in range(10)} - {"i5", "i9"}
    assert leaders.fresh[0] == -1, "items that say no date are not new"


def shop_with_popularity(n: int, seed: int) -> tuple[Any, Signals]:
    """Items of five categories, a fifth of them unavailable, some new; popularity with many equals."""
    rng = np.random.default_rng(seed)
    catalog = catalog_of(n)
    items: Any = catalog.items[:n]
    items["flags"] &= np.where(rng.random(n) < 0.2, ~AVAILABLE, ~0).astype(np.int8)
    items["added"] = np.where(rng.random(n) < 0.5, 0, NOW - rng.integers(-5, 30, n) * 86_400.0)
    items["category"] = np.where(rng.random(n) < 0.1, 0, items["category"])
    made: Any = np.zeros(n, SIGNAL)
    made["item"], made["time"] = items["id"], NOW - 3600.0 * rng.integers(0, 3, n)
    made["popular"] = rng.integers(0, 4, (n, 3))
    signals = Signals(catalog)
    signals.set_rows(np.arange(n, dtype=np.int32), made, np.full((n, MAX_NEIGHBOURS), -1, np.int32))
    return catalog, signals


def leaders_of(catalog: Any, signals: Signals, now: float) -> Any:
    """In plain Python: overall, by category, fresh."""
    shown = [k for k in range(len(catalog)) if showable(catalog.items[k], now, 0)]

    def score(row: int) -> float:
        popular = signals.rows["popular"][row]
        gap = max(0.0, min(now, signals.clock) - signals.rows["time"][row])
        found = 0.0
        for weight, count, life in zip((0.5, 1.0, 0.25), popular.tolist(), HALF_LIVES.popularity, strict=True):
            found += weight * count * 2.0 ** -(gap / life)
        return found

    ids, added, of = catalog.items["id"], catalog.items["added"], catalog.items["category"]
    best = sorted(shown, key=lambda k: (-score(k), ids[k]))
    fresh = [k for k in shown if now - 14 * 86_400 < added[k] <= now]
    categories = {int(c): [k for k in best if of[k] == c][:CATEGORY_LEADERS] for c in of[shown] if c}
    return best[:LEADERS], categories, sorted(fresh, key=lambda k: (-added[k], ids[k]))[:LEADERS]


def found_by(leaders: Trending) -> Any:
    by_category = {
        int(key): [r for r in rows if r >= 0]
        for key, rows in zip(leaders.categories, leaders.by_category.tolist(), strict=True)
    }
    return [r for r in leaders.overall if r >= 0], by_category, [r for r in leaders.fresh if r >= 0]


@pytest.mark.parametrize(("n", "seed"), [(30, 1), (700, 2), (1500, 3)])
def test_leaders_are_the_first_of_all_that_can_be_shown_sorted(n: int, seed: int) -> None:
    catalog, signals = shop_with_popularity(n, seed)
    assert found_by(signals.trending(NOW)) == leaders_of(catalog, signals, NOW)


def test_many_categories_make_room_for_themselves() -> None:
    catalog, signals = shop_with_popularity(700, 4)
    catalog.items["category"][:700] = np.arange(700) % 333 + 1
    leaders = signals.trending(NOW)
    assert len(leaders.categories) > 300 and sorted(leaders.categories) == leaders.categories.tolist()
    assert found_by(leaders) == leaders_of(catalog, signals, NOW)


def test_a_large_catalogue_is_looked_through_in_pieces_and_its_leaders_come_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stream.items.trending.SCAN", 100)
    catalog, signals = shop_with_popularity(1500, 5)
    first = signals.trending(NOW)
    signals.summaries["popular"][:1500] = signals.rows["popular"][:1500] = np.random.default_rng(6).random((1500, 3))
    assert signals.trending(NOW + 1) is first, "fresh enough"
    looks = 0
    while (found := signals.trending(NOW + 6 + looks)) is first:
        looks += 1
    assert looks + 1 >= 1500 / 100, "no page waits for more than a piece"
    assert looks < 2 * 1500 / 100
    assert found_by(found) == leaders_of(catalog, signals, NOW + 6)


def test_an_item_that_changes_is_looked_at_again_at_once_and_popularity_after_a_while() -> None:
    catalog = catalog_of(10)
    signals = signals_of(catalog, [["i3"]] * 5 + [["i4"]] * 3, NOW)
    first = signals.trending(NOW)
    row = catalog.index.get(key64("i7"))
    signals.summaries["popular"][row], signals.summaries["time"][row] = 99.0, NOW
    assert signals.trending(NOW + LEADERS_AGE) is first
    later = signals.trending(NOW + LEADERS_AGE + 0.001)
    assert [catalog.item_id(r) for r in later.overall[:3]] == ["i7", "i3", "i4"]
    catalog.apply([item("i7", available=False)])
    assert [catalog.item_id(r) for r in signals.trending(NOW + LEADERS_AGE + 0.001).overall[:2]] == ["i3", "i4"]


def test_what_leads_goes_on_leading_while_nothing_new_comes_in() -> None:
    _, signals = shop_with_popularity(50, 8)
    before = found_by(signals.trending(NOW))[0]
    signals.summaries["popular"][:50] = np.random.default_rng(9).random((50, 3))
    loved = found_by(signals.trending(NOW + 2000))[0]
    assert loved != before, "they are found anew"
    assert found_by(signals.trending(NOW + 30 * 86_400))[0] == loved, (
        "as half an hour later, and not by what lasts longest"
    )


def test_a_clock_that_was_wrong_once_does_not_keep_the_leaders_for_ever() -> None:
    catalog, signals = shop_with_popularity(50, 7)
    signals.trending(NOW + 70 * 365 * 86_400)
    assert found_by(signals.trending(NOW)) == leaders_of(catalog, signals, NOW)
