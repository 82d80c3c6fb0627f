"""What a page costs, from the bytes of an event to the bytes of the page, its impression and its changelog record.

The yardstick is `orjson.loads` of the same events, timed between the same pages. The shop and its shoppers are invented,
the same at every run: full lists of neighbours, 256 candidates for whoever has seen a few items, histories of one to a few
hundred events. Event time goes on by a millisecond a page, so the leaders are found anew as often as at 1,000 pages/s.
"""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from agents.page.headline_cache import CATEGORY_SLOTS, TEMPLATES, Headline, HeadlineCache, segment_of
from agents.page.path import PagePath, Policy, warm_up
from deploy.bench.common import Figures, Plan, middle, one_core, say
from models.history.model import History
from models.ranker.model import Ranker
from stream.codes import SLOTS
from stream.events import ADD, BUY, CLICK, EVENT, HOME, KINDS, LOCALES, SEARCH, VIEW, decode_run
from stream.ids import key32, key64
from stream.items.catalog import AVAILABLE, EN, ITEM, PRODUCT, ZH, Catalog, fragment_of
from stream.items.signals import NEAR, SIGNAL, Signals
from stream.kafka.app import settle_garbage
from stream.page.candidates import retrieve
from stream.page.json_kernels import rfc3339
from stream.profile.codec import decode_records, encode_records
from stream.profile.exposure import SERVING, SHOWN
from stream.profile.fold import blank, fold
from stream.settings import SHIPPED_MODELS, Settings

SECONDS = 50.0
NOW = 1_767_225_600.0  # 2026-01-01
SEED = 1
ITEMS, SHOPPERS = 100_000, 20_000
BATCHES = (1, 32, 256)
GROWTH_ITEMS = (1_000, 10_000, 100_000, 1_000_000)
GROWTH_EVENTS = (1, 10, 100, 10_000)
GROWTH_BATCH, GROWTH_SHOPPERS = 32, 128
PAGE_TIME = 0.001  # s of event time a page
_WORDS = 400  # of titles
_OWN = 32  # neighbours of the item's own category; the rest are of others


class Shop(NamedTuple):
    """Items by row: category `row % categories`, the lower rows of each the more popular."""

    catalog: Catalog
    signals: Signals
    ids: list[str]
    categories: int


def records_of(n: int) -> list[tuple[bytes, bytes]]:
    """The catalogue's records of the n invented items, as a shop would send them."""
    facts = _facts(n)
    made = []
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
        made.append((facts.ids[row].encode(), orjson.dumps(item)))
    return made


def _categories(items: int) -> int:
    return min(1000, max(20, items // 200))


def _brands(items: int) -> int:
    # Not a multiple of the categories: a category has many brands.
    return min(5000, max(20, items // 50)) + 1


class _Facts(NamedTuple):
    ids: list[str]
    categories: int
    brands: int
    first: npt.NDArray[np.int64]  # (n,) numbers of title words
    second: npt.NDArray[np.int64]
    price: npt.NDArray[np.float64]
    added: npt.NDArray[np.float64]  # s, whole


def _facts(n: int) -> _Facts:
    rng = np.random.default_rng([SEED, 1, n])
    return _Facts(
        [f"SKU{row:07d}" for row in range(n)],
        _categories(n),
        _brands(n),
        rng.integers(0, _WORDS, n),
        rng.integers(0, _WORDS, n),
        np.asarray(np.round(np.exp(rng.normal(3.0, 1.0, n)), 2) + 0.01, np.float64),
        np.floor(NOW - rng.uniform(0, 400 * 86_400, n)),
    )


def catalog_of(n: int) -> Catalog:
    """What `records_of(n)` come to, made as arrays: a million of them in seconds."""
    facts = _facts(n)
    rows: Any = np.zeros(n, ITEM)
    order = np.arange(n)
    rows["id"] = [key64(id) for id in facts.ids]
    rows["expires"], rows["added"] = np.inf, facts.added
    rows["category"] = np.array([key32(f"category {k}") for k in range(facts.categories)])[order % facts.categories]
    rows["brand"] = np.array([key32(f"brand {k}") for k in range(facts.brands)])[order % facts.brands]
    rows["log_price"] = np.log(facts.price)
    rows["present"], rows["flags"] = 1, PRODUCT | AVAILABLE | EN | ZH
    english = np.array([key32(f"w{k}") for k in range(_WORDS)])
    numbers = np.array([key32(str(k)) for k in range(_WORDS)])
    same = facts.first == facts.second
    words = np.zeros((n, 8), np.int64)
    words[:, 0], words[:, 1] = english[facts.first], np.where(same, 0, english[facts.second])
    words[:, 2] = [key32(id.lower()) for id in facts.ids]
    words[:, 3], words[:, 4], words[:, 5] = key32("灯具"), numbers[facts.first], key32("台灯")
    words[:, 6] = np.where(same, 0, numbers[facts.second])
    # An absent word leaves no gap.
    packed = np.take_along_axis(words, np.argsort(words == 0, axis=1, kind="stable"), axis=1)
    rows["word"] = packed[:, : rows["word"].shape[1]]
    catalog = Catalog.of_rows(rows, [fragment_of(id) for id in facts.ids])
    for text in [f"category {k}" for k in range(facts.categories)]:
        catalog.names[key32(text)] = text
    return catalog


def shop_of(n: int) -> Shop:
    """A shop of n items (at least 1,000), each with as many neighbours as signals hold."""
    catalog = catalog_of(n)
    rng = np.random.default_rng([SEED, 2, n])
    categories = _categories(n)
    each = n // categories
    row = np.arange(n)
    # A stride without common divisor of `each`: no neighbour comes twice.
    stride = rng.choice([k for k in (1, 3, 7, 9, 11, 13, 17, 19, 21, 23) if np.gcd(k, each) == 1], n)[:, None]
    place = (row // categories)[:, None] + np.arange(1, _OWN + 1) * stride
    own = row[:, None] % categories + categories * (place % each)
    liked = (each * rng.random((n, NEAR - _OWN)) ** 3).astype(np.int64)
    other = (row[:, None] + 1 + np.arange(NEAR - _OWN)) % categories + categories * liked
    near = np.concatenate([own, other], axis=1)
    near = np.take_along_axis(near, rng.random((n, NEAR), np.float32).argsort(axis=1), axis=1)
    signals = Signals(catalog)
    rows: Any = np.zeros(n, SIGNAL)
    weight = (40.0 / (1.0 + np.arange(NEAR)))[None, :] * rng.uniform(0.5, 1.5, (n, 1))
    rows["item"], rows["time"] = catalog.items["id"][:n], NOW - rng.uniform(0, 3600, n)
    rows["near_item"] = catalog.items["id"][near]
    rows["near_next"], rows["near_strict"], rows["near_visit"] = weight, weight / 2, weight * 1.5
    fame = 1.0 / (1.0 + row // categories) * rng.uniform(0.5, 1.5, n)
    rows["popular"] = fame[:, None] * np.array([20.0, 300.0, 3000.0])
    rows["seen"], rows["next_out"], rows["strict_out"] = 1000 * fame + 60, weight.sum(axis=1), weight.sum(axis=1) / 2
    rows["repeat"], rows["buys"], rows["carts"], rows["count"] = 5 * fame, 50 * fame, 90 * fame, 3000 * fame
    signals.put(np.arange(n, dtype=np.int32), rows, near.astype(np.int32))
    return Shop(catalog, signals, [f"SKU{k:07d}" for k in range(n)], categories)


class Crowd:
    """Shoppers with a past, and what they do next."""

    def __init__(self, shop: Shop, events: npt.NDArray[np.int64], seed: int) -> None:
        """events (n,): how many each shopper has behind her."""
        self._shop, self._rng = shop, np.random.default_rng([SEED, 3, seed])
        n = len(events)
        self.keys = [b"shopper-%06d" % k for k in range(n)]
        self._taste = self._rng.integers(0, shop.categories, (n, 4))
        self._turn, self._order, self._sent = 0, self._rng.permutation(n), 0
        self.stored: dict[bytes, bytes] = {}
        for start in range(0, n, 1000):
            self._remember(np.arange(start, min(start + 1000, n)), events[start : start + 1000])

    def _items(self, who: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A row of the catalogue for each shopper, of a category that she likes."""
        taste = self._taste[who, self._rng.integers(0, 4, len(who)) * self._rng.integers(0, 2, len(who))]
        each = len(self._shop.ids) // self._shop.categories
        rows: npt.NDArray[np.int64] = taste + self._shop.categories * (each * self._rng.random(len(who)) ** 2).astype(
            np.int64
        )
        return rows

    def _remember(self, these: npt.NDArray[np.int64], events: npt.NDArray[np.int64]) -> None:
        rng, items = self._rng, self._shop.catalog.items
        who = np.repeat(np.arange(len(these)), events)
        rows: Any = np.zeros(len(who), EVENT)
        # The last event an hour ago, those before it by half-hours and days.
        back = np.cumsum(rng.exponential(600.0, len(who)) * np.where(rng.random(len(who)) < 0.1, 200, 1))
        first = np.concatenate([[0], np.cumsum(events)[:-1]])
        rows["time"] = np.floor(NOW - 3600.0 - (back - back[np.repeat(first, events)]).clip(0, 2e7))
        rows["id"] = rng.integers(1, 2**62, len(who))
        rows["kind"] = rng.choice(
            [VIEW, CLICK, ADD, BUY, HOME, SEARCH], len(who), p=[0.5, 0.25, 0.08, 0.04, 0.08, 0.05]
        )
        with_item = np.isin(rows["kind"], (VIEW, CLICK, ADD, BUY))
        row = self._items(these[who])
        rows["item"] = np.where(with_item, items["id"][row], 0)
        for field in ("category", "brand"):
            rows[field] = np.where(with_item, items[field][row], 0)
        rows["price"] = np.where(with_item, np.exp(items["log_price"][row]), 0)
        rows["word"] = np.where(rows["kind"] == SEARCH, items["word"][row, 0], 0)
        rows["quantity"], rows["channel"], rows["locale"] = 1, 1, 1 + these[who] % 2
        profiles = blank(len(these))
        order = np.argsort(rows["time"], kind="stable")
        fold(profiles, who[order].astype(np.int32), rows[order])
        served: Any = np.zeros(len(these), SERVING)
        served["version"] = events
        served["shown_item"] = items["id"][rng.integers(0, len(self._shop.ids), (len(these), SHOWN))].astype(np.int32)
        tired = min(12, SHOWN)
        served["fatigue_item"][:, :tired] = served["shown_item"][:, :tired]
        served["fatigue_count"][:, :tired], served["fatigue_time"][:, :tired] = 1.5, NOW - 7200
        values = encode_records(profiles, served)
        self.stored.update((self.keys[at], value) for at, value in zip(these.tolist(), values, strict=True))

    def act(self, n: int) -> tuple[list[bytes], list[bytes]]:
        """The next event of each of n different shoppers. -> keys, values."""
        if self._turn + n > len(self._order):
            self._order, self._turn = self._rng.permutation(len(self.keys)), 0
        who = self._order[self._turn : self._turn + n]
        self._turn += n
        kinds = self._rng.choice([VIEW, CLICK, ADD, HOME, SEARCH], n, p=[0.5, 0.25, 0.08, 0.12, 0.05]).tolist()
        values = []
        for shopper, kind, row in zip(who.tolist(), kinds, self._items(who).tolist(), strict=True):
            self._sent += 1
            values.append(self._event(shopper, kind, row))
        return [self.keys[k] for k in who.tolist()], values

    @property
    def now(self) -> float:
        """Event time of the newest event, s."""
        return NOW + self._sent * PAGE_TIME

    def _event(self, shopper: int, kind: int, row: int) -> bytes:
        facts = self._shop
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
            data["search_term"] = f"w{row % _WORDS} lamp"
        elif kind != HOME:
            item = facts.catalog.items[row]
            price = round(float(np.exp(item["log_price"])), 2)
            data["items"] = [
                {
                    "item_id": facts.ids[row],
                    "price": price,
                    "quantity": 1,
                    "item_category": f"category {row % facts.categories}",
                    "item_brand": f"brand {row % _brands(len(facts.ids))}",
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
    """A headline for every segment: the copywriter has answered all.

    None names an item, which would cost a page of a batch 2 to 3 us more: the catalogue has no texts.
    """
    book = HeadlineCache(item_requests_per_s=0.0)
    names = [f"category {k}" for k in range(shop.categories)]
    for locale, templates in TEMPLATES.items():
        for slot in templates:
            for name in ["", *names] if slot in CATEGORY_SLOTS else [""]:
                text = Headline(
                    segment=segment_of(locale, slot, name), locale=locale, slot=SLOTS[slot], category=name,
                    text=f"{templates[slot]} {name}", created=NOW, ttl=1e9, copywriter="bench",
                )  # fmt: skip
                book.apply([(text.segment.encode(), msgspec.json.encode(text))])
    return book


@contextmanager
def _garbage_as_in_a_worker() -> Iterator[None]:
    before = gc.get_threshold()
    settle_garbage()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


class Timed(NamedTuple):
    """Means of one round, s a page or an event."""

    page: float
    loads: float
    stages: dict[str, float]
    page_bytes: float


class Bench:
    """One shop, one crowd, and the path between them."""

    def __init__(
        self, ranker: Ranker, shop: Shop, events: npt.NDArray[np.int64], history: History | None = None
    ) -> None:
        self.shop, self.crowd = shop, Crowd(shop, events, len(shop.ids))
        self.path = PagePath(shop.catalog, shop.signals, ranker, headlines(shop), Policy(), history)
        self._offset = 0

    def candidates(self) -> float:
        """Mean number of candidates of a page."""
        profiles, _ = decode_records([self.crowd.stored[key] for key in self.crowd.keys[:2000]])
        found = retrieve(
            profiles, profiles["last_seen"], self.shop.catalog, self.shop.signals, self.shop.signals.leaders(NOW)
        )
        return float(found.count.mean())

    def round(self, batch: int, seconds: float) -> Timed:
        """Pages in batches of `batch` for about `seconds`, and between them `orjson.loads` of the same bytes."""
        path, crowd = self.path, self.crowd
        spent = parsed = 0.0
        pages = size = 0
        stages: dict[str, float] = defaultdict(float)
        until = time.perf_counter() + seconds
        while not pages or time.perf_counter() < until:
            # Many small batches at a time: what makes the events is not in the cache when they are decoded.
            for keys, values in [crowd.act(batch) for _ in range(max(1, 64 // batch))]:
                timestamps = [crowd.now] * batch
                start = time.perf_counter()
                decoded = decode_run(values, keys, timestamps, "clicks")
                decode = time.perf_counter() - start
                offsets = np.arange(self._offset, self._offset + batch)
                step = path.refresh_partition(crowd.stored, decoded, offsets, crowd.now)
                end = time.perf_counter()
                for value in values:
                    orjson.loads(value)
                parsed += time.perf_counter() - end
                if len(step.pages) != batch:
                    raise RuntimeError(f"{batch} events came to {len(step.pages)} pages; the path is not what is timed")
                spent += end - start
                stages["decode"] += decode
                for stage, took in step.seconds.items():
                    stages[stage] += took
                crowd.stored.update((key, value) for key, value in step.changelog if value is not None)
                self._offset += batch
                pages += batch
                size += sum(len(page.value) for page in step.pages)
        return Timed(spent / pages, parsed / pages, {k: v / pages for k, v in stages.items()}, size / pages)


def spread(n: int) -> npt.NDArray[np.int64]:
    """Events behind each of n shoppers: 1 to a few hundred, most have a few, the mean is about 30."""
    drawn = np.random.default_rng([SEED, 4]).lognormal(2.4, 1.4, n)
    return np.clip(drawn, 1, 400).astype(np.int64)


def measure(
    settings: Settings,
    plan: Plan,
    items: int = ITEMS,
    shoppers: int = SHOPPERS,
    growth_items: tuple[int, ...] = GROWTH_ITEMS,
    growth_events: tuple[int, ...] = GROWTH_EVENTS,
) -> Figures:
    """Pages/s by batch, what a page costs in loads, the stages, and how the cost grows with items and history."""
    ranker = Ranker(SHIPPED_MODELS / "ranker")
    # Half of the time for the three batches, half for the growth.
    seconds = plan.round_seconds / 2 / len(BATCHES)
    with one_core() as pinned:
        say(f"{items:,} items, {shoppers:,} shoppers" + ("" if pinned else ", not pinned to a core"))
        bench = Bench(ranker, shop_of(items), spread(shoppers))
        warm_up(bench.path)
        reached = bench.candidates()
        # The same with all that models can add: an MLP as the ranker's head, and a history model.
        history = History(SHIPPED_MODELS / "history", bench.shop.catalog)
        full = Bench(Ranker(SHIPPED_MODELS / "ranker", "mlp"), bench.shop, spread(shoppers), history)
        rounds: dict[int, list[Timed]] = {batch: [] for batch in BATCHES}
        full_rounds: dict[int, list[Timed]] = {batch: [] for batch in BATCHES}
        with _garbage_as_in_a_worker():
            for one in (bench, full):
                one.round(max(BATCHES), seconds / 2)
            for _ in range(plan.rounds):
                for batch in BATCHES:
                    rounds[batch].append(bench.round(batch, seconds / 2))
                    full_rounds[batch].append(full.round(batch, seconds / 2))
        seconds = plan.round_seconds / 2 / (len(growth_items) + len(growth_events))
        few = min(GROWTH_SHOPPERS, shoppers)
        by_events = _growth(
            {n: Bench(ranker, bench.shop, np.full(few, n)) for n in growth_events}, seconds, plan.rounds
        )
        say(f"up to {max(growth_items):,} items")
        shops = {n: bench.shop if n == items else shop_of(n) for n in growth_items}
        by_items = _growth(
            {n: Bench(ranker, shop, spread(min(2000, shoppers))) for n, shop in shops.items()}, seconds, plan.rounds
        )
    # The yardstick of a round is a load in its largest batch, where loads are at their fastest.
    loads = [t.loads for t in rounds[max(BATCHES)]]

    def costs(of: dict[int, list[Timed]]) -> dict[str, float]:
        return {str(b): middle([t.page / load for t, load in zip(ts, loads, strict=True)], 3) for b, ts in of.items()}

    def stages(of: dict[int, list[Timed]]) -> dict[str, dict[str, float]]:
        return {
            str(batch): {stage: middle([t.stages[stage] * 1e6 for t in ts], 3) for stage in ts[0].stages}
            for batch, ts in of.items()
        }

    return {
        "batch": {str(b): round(middle([1 / t.page for t in ts])) for b, ts in rounds.items()},
        "loads_us": middle([load * 1e6 for load in loads], 3),
        "cost_in_loads": costs(rounds),
        "full": costs(full_rounds),
        "full_batch": {str(b): round(middle([1 / t.page for t in ts])) for b, ts in full_rounds.items()},
        "stages": stages(rounds),
        "full_stages": stages(full_rounds),
        "pages_bytes": round(fmean(t.page_bytes for ts in rounds.values() for t in ts)),
        "candidates": round(reached, 1),
        "growth": {"batch": GROWTH_BATCH, "items": by_items, "events": by_events},
    }


def _growth(benches: dict[int, Bench], seconds: float, rounds: int) -> dict[str, float]:
    """us a page of each, round by round beside each other: the machine may be louder in one minute than in the next."""
    pages: dict[int, list[float]] = {n: [] for n in benches}
    with _garbage_as_in_a_worker():
        for bench in benches.values():
            bench.round(GROWTH_BATCH, 0)
        for _ in range(rounds):
            for n, bench in benches.items():
                pages[n].append(bench.round(GROWTH_BATCH, seconds).page * 1e6)
    return {str(n): middle(us, 3) for n, us in pages.items()}


def table(figures: Figures) -> str:
    """For people."""
    lines = [f"{'events':>7} {'pages/s':>9} {'us/page':>9} {'in loads':>9}   us a page by stage"]
    for title, pages_of, costs, stages in (
        ("", "batch", "cost_in_loads", "stages"),
        ("with the MLP and the history model", "full_batch", "full", "full_stages"),
    ):
        if title:
            lines.append(title)
        for batch, pages in figures[pages_of].items():
            told = "  ".join(f"{stage} {us:.0f}" for stage, us in figures[stages][batch].items())
            lines.append(f"{batch:>7} {pages:9,} {1e6 / pages:9.0f} {figures[costs][batch]:9.0f}   {told}")
    lines.append(
        f"one orjson.loads of an event {figures['loads_us']} us; a page has {figures['pages_bytes']:,} bytes, "
        f"{figures['candidates']:.0f} candidates on average"
    )
    growth = figures["growth"]
    for of, name in (("items", "items of the catalogue"), ("events", "events of the shopper")):
        told = "  ".join(f"{int(n):,}: {us:.0f}" for n, us in growth[of].items())
        lines.append(f"us a page, {growth['batch']} at a time, by {name}   {told}")
    return "\n".join(lines)
