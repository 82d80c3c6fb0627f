"""The page benchmark's workload: an invented shop of any size, shoppers with a history, and the events they send next.

Everything is the same at every run. Items have full lists of neighbours, and shoppers who have seen a few items get 256
candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np
import orjson

from agents.page.headline_cache import CATEGORY_SLOTS, TEMPLATES, Headline, HeadlineCache, segment_of
from stream.codes import SLOTS
from stream.events.decode import ADD, BUY, CLICK, EVENT, HOME, KINDS, SEARCH, VIEW
from stream.ids import key32, key64
from stream.items.catalog import AVAILABLE, EN, ITEM, PRODUCT, ZH, Catalog, fragment_of
from stream.items.signals import MAX_NEIGHBOURS, SIGNAL, Signals
from stream.locales import LOCALES
from stream.profile.codec import encode_records
from stream.profile.exposure import SERVING, SHOWN_ITEMS
from stream.profile.fold import fold
from stream.profile.row import blank_profiles
from stream.times import rfc3339
from stream.types import F64, I64

NOW = 1_767_225_600.0  # 2026-01-01
SEED = 1
PAGE_INTERVAL_S = 0.001  # event time between two pages
TITLE_WORDS = 400  # distinct words of titles
OWN_NEIGHBOURS = 32  # neighbours from the item's own category; the rest are from others


class Shop(NamedTuple):
    """Items by row. The category is `row % categories`; in each category lower rows are more popular."""

    catalog: Catalog
    signals: Signals
    ids: list[str]
    categories: int


def records_of(n: int) -> list[tuple[bytes, bytes]]:
    """Return the catalogue records of n invented items, as a shop would send them."""
    facts = _facts(n)
    records = []
    for row in range(n):
        first, second, price = facts.first[row], facts.second[row], facts.price[row]
        item = {
            "item_id": facts.ids[row],
            "title": {"en": f"w{first} w{second} {facts.ids[row]}", "zh": f"灯具{first} 台灯{second}"},
            "category": f"category {row % facts.categories}",
            "brand": f"brand {row % facts.brands}",
            "price": float(price),
            "added_at": rfc3339(float(facts.added[row])),
        }
        records.append((facts.ids[row].encode(), orjson.dumps(item)))
    return records


def _categories(items: int) -> int:
    return min(1000, max(20, items // 200))


def _brands(items: int) -> int:
    # Not a multiple of the number of categories, so that a category has many brands.
    return min(5000, max(20, items // 50)) + 1


class _Facts(NamedTuple):
    ids: list[str]
    categories: int
    brands: int
    first: I64  # (n,) numbers of the title words
    second: I64
    price: F64
    added: F64  # whole seconds since the epoch


def _facts(n: int) -> _Facts:
    rng = np.random.default_rng([SEED, 1, n])
    return _Facts(
        [f"SKU{row:07d}" for row in range(n)],
        _categories(n),
        _brands(n),
        rng.integers(0, TITLE_WORDS, n),
        rng.integers(0, TITLE_WORDS, n),
        np.asarray(np.round(np.exp(rng.normal(3.0, 1.0, n)), 2) + 0.01, np.float64),
        np.floor(NOW - rng.uniform(0, 400 * 86_400, n)),
    )


def catalog_of(n: int) -> Catalog:
    """Return the catalogue of `records_of(n)`, built from arrays: a million items take seconds."""
    facts = _facts(n)
    rows: Any = np.zeros(n, ITEM)
    order = np.arange(n)
    rows["id"] = [key64(id) for id in facts.ids]
    rows["expires"], rows["added"] = np.inf, facts.added
    rows["category"] = np.array([key32(f"category {k}") for k in range(facts.categories)])[order % facts.categories]
    rows["brand"] = np.array([key32(f"brand {k}") for k in range(facts.brands)])[order % facts.brands]
    rows["log_price"] = np.log(facts.price)
    rows["present"], rows["flags"] = 1, PRODUCT | AVAILABLE | EN | ZH
    english = np.array([key32(f"w{k}") for k in range(TITLE_WORDS)])
    numbers = np.array([key32(str(k)) for k in range(TITLE_WORDS)])
    same = facts.first == facts.second
    words = np.zeros((n, 8), np.int64)
    words[:, 0], words[:, 1] = english[facts.first], np.where(same, 0, english[facts.second])
    words[:, 2] = [key32(id.lower()) for id in facts.ids]
    words[:, 3], words[:, 4], words[:, 5] = key32("灯具"), numbers[facts.first], key32("台灯")
    words[:, 6] = np.where(same, 0, numbers[facts.second])
    # Words are stored without gaps.
    packed = np.take_along_axis(words, np.argsort(words == 0, axis=1, kind="stable"), axis=1)
    rows["word"] = packed[:, : rows["word"].shape[1]]
    catalog = Catalog.from_rows(rows, [fragment_of(id) for id in facts.ids])
    for text in [f"category {k}" for k in range(facts.categories)]:
        catalog.names[key32(text)] = text
    return catalog


def shop_of(n: int) -> Shop:
    """Return a shop of n items (at least 1,000), each with as many neighbours as signals hold."""
    catalog = catalog_of(n)
    rng = np.random.default_rng([SEED, 2, n])
    categories = _categories(n)
    each = n // categories
    row = np.arange(n)
    # The stride and `each` are coprime, so that no neighbour appears twice.
    stride = rng.choice([k for k in (1, 3, 7, 9, 11, 13, 17, 19, 21, 23) if np.gcd(k, each) == 1], n)[:, None]
    position = (row // categories)[:, None] + np.arange(1, OWN_NEIGHBOURS + 1) * stride
    own = row[:, None] % categories + categories * (position % each)
    popular = (each * rng.random((n, MAX_NEIGHBOURS - OWN_NEIGHBOURS)) ** 3).astype(np.int64)
    other = (row[:, None] + 1 + np.arange(MAX_NEIGHBOURS - OWN_NEIGHBOURS)) % categories + categories * popular
    near = np.concatenate([own, other], axis=1)
    near = np.take_along_axis(near, rng.random((n, MAX_NEIGHBOURS), np.float32).argsort(axis=1), axis=1)
    signals = Signals(catalog)
    rows: Any = np.zeros(n, SIGNAL)
    weight = (40.0 / (1.0 + np.arange(MAX_NEIGHBOURS)))[None, :] * rng.uniform(0.5, 1.5, (n, 1))
    rows["item"], rows["time"] = catalog.items["id"][:n], NOW - rng.uniform(0, 3600, n)
    rows["near_item"] = catalog.items["id"][near]
    rows["near_next"], rows["near_strict"], rows["near_visit"] = weight, weight / 2, weight * 1.5
    popularity = 1.0 / (1.0 + row // categories) * rng.uniform(0.5, 1.5, n)
    rows["popular"] = popularity[:, None] * np.array([20.0, 300.0, 3000.0])
    rows["seen"], rows["next_out"], rows["strict_out"] = (
        1000 * popularity + 60,
        weight.sum(axis=1),
        weight.sum(axis=1) / 2,
    )
    rows["repeat"], rows["buys"], rows["carts"], rows["count"] = (
        5 * popularity,
        50 * popularity,
        90 * popularity,
        3000 * popularity,
    )
    signals.set_rows(np.arange(n, dtype=np.int32), rows, near.astype(np.int32))
    return Shop(catalog, signals, [f"SKU{k:07d}" for k in range(n)], categories)


class Crowd:
    """Shoppers with a history, and the events that they send next."""

    def __init__(self, shop: Shop, events: I64, seed: int) -> None:
        """events (n,): number of past events of each shopper."""
        self._shop, self._rng = shop, np.random.default_rng([SEED, 3, seed])
        n = len(events)
        self.keys = [b"shopper-%06d" % k for k in range(n)]
        self._taste = self._rng.integers(0, shop.categories, (n, 4))
        self._next, self._order, self._sent = 0, self._rng.permutation(n), 0
        self.stored: dict[bytes, bytes] = {}
        for start in range(0, n, 1000):
            self._store_profiles(np.arange(start, min(start + 1000, n)), events[start : start + 1000])

    def _draw_items(self, shoppers: I64) -> I64:
        """Draw a row of the catalogue for each shopper, from a category that the shopper likes."""
        taste = self._taste[shoppers, self._rng.integers(0, 4, len(shoppers)) * self._rng.integers(0, 2, len(shoppers))]
        each = len(self._shop.ids) // self._shop.categories
        rows: I64 = taste + self._shop.categories * (each * self._rng.random(len(shoppers)) ** 2).astype(np.int64)
        return rows

    def _store_profiles(self, shoppers: I64, events: I64) -> None:
        """Fold random past events into profiles and put the changelog values into `stored`."""
        rng, items = self._rng, self._shop.catalog.items
        owner = np.repeat(np.arange(len(shoppers)), events)
        rows: Any = np.zeros(len(owner), EVENT)
        # The last event was an hour ago, the ones before it minutes or days earlier.
        back = np.cumsum(rng.exponential(600.0, len(owner)) * np.where(rng.random(len(owner)) < 0.1, 200, 1))
        first = np.concatenate([[0], np.cumsum(events)[:-1]])
        rows["time"] = np.floor(NOW - 3600.0 - (back - back[np.repeat(first, events)]).clip(0, 2e7))
        rows["id"] = rng.integers(1, 2**62, len(owner))
        rows["kind"] = rng.choice(
            [VIEW, CLICK, ADD, BUY, HOME, SEARCH], len(owner), p=[0.5, 0.25, 0.08, 0.04, 0.08, 0.05]
        )
        with_item = np.isin(rows["kind"], (VIEW, CLICK, ADD, BUY))
        row = self._draw_items(shoppers[owner])
        rows["item"] = np.where(with_item, items["id"][row], 0)
        for field in ("category", "brand"):
            rows[field] = np.where(with_item, items[field][row], 0)
        rows["price"] = np.where(with_item, np.exp(items["log_price"][row]), 0)
        rows["word"] = np.where(rows["kind"] == SEARCH, items["word"][row, 0], 0)
        rows["quantity"], rows["channel"], rows["locale"] = 1, 1, 1 + shoppers[owner] % 2
        profiles = blank_profiles(len(shoppers))
        order = np.argsort(rows["time"], kind="stable")
        fold(profiles, owner[order].astype(np.int32), rows[order])
        serving: Any = np.zeros(len(shoppers), SERVING)
        serving["version"] = events
        serving["shown_item"] = items["id"][rng.integers(0, len(self._shop.ids), (len(shoppers), SHOWN_ITEMS))].astype(
            np.int32
        )
        fatigued = min(12, SHOWN_ITEMS)
        serving["fatigue_item"][:, :fatigued] = serving["shown_item"][:, :fatigued]
        serving["fatigue_count"][:, :fatigued], serving["fatigue_time"][:, :fatigued] = 1.5, NOW - 7200
        values = encode_records(profiles, serving)
        self.stored.update((self.keys[at], value) for at, value in zip(shoppers.tolist(), values, strict=True))

    def act(self, n: int) -> tuple[list[bytes], list[bytes]]:
        """Return keys and values of the next event of n different shoppers."""
        if self._next + n > len(self._order):
            self._order, self._next = self._rng.permutation(len(self.keys)), 0
        shoppers = self._order[self._next : self._next + n]
        self._next += n
        kinds = self._rng.choice([VIEW, CLICK, ADD, HOME, SEARCH], n, p=[0.5, 0.25, 0.08, 0.12, 0.05]).tolist()
        values = []
        for shopper, kind, row in zip(shoppers.tolist(), kinds, self._draw_items(shoppers).tolist(), strict=True):
            self._sent += 1
            values.append(self._event(shopper, kind, row))
        return [self.keys[k] for k in shoppers.tolist()], values

    @property
    def now(self) -> float:
        """Event time of the newest event, in seconds since the epoch."""
        return NOW + self._sent * PAGE_INTERVAL_S

    def _event(self, shopper: int, kind: int, row: int) -> bytes:
        shop = self._shop
        data: dict[str, Any] = {
            "user_id": self.keys[shopper].decode(),
            "anonymous_id": f"a-{shopper:016x}",
            "session_id": f"s-{shopper:08x}-{self._sent // 1000:06d}",
            "channel": "web",
            "locale": LOCALES[1 + shopper % 2],
            "consent": {"personalization": True},
            "attribution": {"page_id": f"{shopper:024x}", "slot": "for_you", "position": 3},
            "currency": "EUR",
        }
        if kind == SEARCH:
            data["search_term"] = f"w{row % TITLE_WORDS} lamp"
        elif kind != HOME:
            item = shop.catalog.items[row]
            price = round(float(np.exp(item["log_price"])), 2)
            data["items"] = [
                {
                    "item_id": shop.ids[row],
                    "price": price,
                    "quantity": 1,
                    "item_category": f"category {row % shop.categories}",
                    "item_brand": f"brand {row % _brands(len(shop.ids))}",
                }
            ]
            data["value"] = price
        return orjson.dumps(
            {
                "specversion": "1.0",
                "id": f"01J{self._sent:023d}",
                "source": "/web/eu",
                "type": KINDS[kind],
                "time": rfc3339(self.now),
                "data": data,
            }
        )


def headlines(shop: Shop) -> HeadlineCache:
    """Return a cache with a headline for every segment, as if the copywriter had answered all requests.

    No headline names an item, because this catalogue has no texts; naming costs a page of a batch 2 to 3 us more.
    """
    cache = HeadlineCache(item_requests_per_s=0.0)
    names = [f"category {k}" for k in range(shop.categories)]
    for locale, templates in TEMPLATES.items():
        for slot in templates:
            for name in ["", *names] if slot in CATEGORY_SLOTS else [""]:
                headline = Headline(
                    segment=segment_of(locale, slot, name), locale=locale, slot=SLOTS[slot], category=name,
                    text=f"{templates[slot]} {name}", created=NOW, ttl=1e9, copywriter="bench",
                )  # fmt: skip
                cache.apply([(headline.segment.encode(), msgspec.json.encode(headline))])
    return cache


def history_lengths(n: int) -> I64:
    """Return the number of past events of n shoppers: 1 to 400, mostly a few, about 30 on average."""
    drawn = np.random.default_rng([SEED, 4]).lognormal(2.4, 1.4, n)
    return np.clip(drawn, 1, 400).astype(np.int64)
