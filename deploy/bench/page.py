"""`shopwindow bench page`: the cost of a page, from the bytes of an event to those of page, impression and changelog.

The unit is one `orjson.loads` of the same events, timed between the pages. Event time advances by a millisecond per
page, so trending items are recomputed as often as at 1,000 pages/s.
"""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import fmean
from typing import NamedTuple

import numpy as np
import orjson

from agents.page.path import PagePath, Policy, warm_up
from deploy.bench.common import Figures, Plan, one_core, report, rounded_median, worker_garbage_collection
from deploy.bench.page_workload import NOW, Crowd, Shop, headlines, history_lengths, shop_of
from models.history.model import History
from models.ranker.model import Ranker
from stream.events.decode import decode_run
from stream.page.candidates import retrieve
from stream.profile.codec import decode_records
from stream.settings import SHIPPED_MODELS, Settings
from stream.types import I64

SECONDS = 50.0
ITEMS, SHOPPERS = 100_000, 20_000
BATCHES = (1, 32, 256)
GROWTH_ITEMS = (1_000, 10_000, 100_000, 1_000_000)
GROWTH_EVENTS = (1, 10, 100, 10_000)
GROWTH_BATCH, GROWTH_SHOPPERS = 32, 128


class Timed(NamedTuple):
    """Means of one round, in seconds per page, or per event for `load`."""

    page: float
    load: float
    stages: dict[str, float]
    page_bytes: float


Rounds = dict[int, list[Timed]]  # by batch size


class Bench:
    """One shop, its shoppers, and the page path that serves them."""

    def __init__(self, ranker: Ranker, shop: Shop, events: I64, history: History | None = None) -> None:
        self.shop, self.crowd = shop, Crowd(shop, events, len(shop.ids))
        self.path = PagePath(shop.catalog, shop.signals, ranker, headlines(shop), Policy(), history)
        self._offset = 0

    def candidates(self) -> float:
        """Return the mean number of candidates of a page."""
        profiles, _ = decode_records([self.crowd.stored[key] for key in self.crowd.keys[:2000]])
        found = retrieve(
            profiles, profiles["last_seen"], self.shop.catalog, self.shop.signals, self.shop.signals.trending(NOW)
        )
        return float(found.count.mean())

    def round(self, batch: int, seconds: float) -> Timed:
        """Make pages in batches of `batch` for about `seconds`, and between them `orjson.loads` of the same events."""
        path, crowd = self.path, self.crowd
        spent = parsed = 0.0
        pages = size = 0
        stages: dict[str, float] = defaultdict(float)
        until = time.perf_counter() + seconds
        while not pages or time.perf_counter() < until:
            # Events of several small batches are made at once, so that decoding starts without them in the cache.
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
                    raise RuntimeError(
                        f"{batch} events gave {len(step.pages)} pages; the timing would not be of whole pages"
                    )
                spent += end - start
                stages["decode"] += decode
                for stage, took in step.seconds.items():
                    stages[stage] += took
                crowd.stored.update((key, value) for key, value in step.changelog if value is not None)
                self._offset += batch
                pages += batch
                size += sum(len(page.value) for page in step.pages)
        return Timed(spent / pages, parsed / pages, {k: v / pages for k, v in stages.items()}, size / pages)


def measure(
    settings: Settings,
    plan: Plan,
    items: int = ITEMS,
    shoppers: int = SHOPPERS,
    growth_items: tuple[int, ...] = GROWTH_ITEMS,
    growth_events: tuple[int, ...] = GROWTH_EVENTS,
) -> Figures:
    """Return pages/s by batch, the cost of a page in loads, its stages, and its growth with items and history."""
    ranker = Ranker(SHIPPED_MODELS / "ranker")
    with one_core() as is_pinned:
        report(f"{items:,} items, {shoppers:,} shoppers" + ("" if is_pinned else ", not pinned to a core"))
        base = Bench(ranker, shop_of(items), history_lengths(shoppers))
        warm_up(base.path)
        candidates = base.candidates()
        # The same with everything that models can add: the MLP as the ranker's head, and the history model.
        history = History(SHIPPED_MODELS / "history", base.shop.catalog)
        full = Bench(Ranker(SHIPPED_MODELS / "ranker", "mlp"), base.shop, history_lengths(shoppers), history)
        # Half of the time for the three batches, half for the growth.
        base_rounds, full_rounds = _batch_rounds(base, full, plan)
        growth = _growth_figures(ranker, base.shop, plan, shoppers, growth_items, growth_events)
    # The unit of a round is a load in its largest batch, where loads are fastest.
    loads = [t.load for t in base_rounds[max(BATCHES)]]
    return {
        "batch": _pages_per_s(base_rounds),
        "loads_us": rounded_median([load * 1e6 for load in loads], 3),
        "cost_in_loads": _cost_in_loads(base_rounds, loads),
        "full": _cost_in_loads(full_rounds, loads),
        "full_batch": _pages_per_s(full_rounds),
        "stages": _stages_us(base_rounds),
        "full_stages": _stages_us(full_rounds),
        "pages_bytes": round(fmean(t.page_bytes for ts in base_rounds.values() for t in ts)),
        "candidates": round(candidates, 1),
        "growth": growth,
    }


def _batch_rounds(base: Bench, full: Bench, plan: Plan) -> tuple[Rounds, Rounds]:
    """Time both benches in all batch sizes, alternating in each round."""
    seconds = plan.round_seconds / 2 / len(BATCHES)
    base_rounds: Rounds = {batch: [] for batch in BATCHES}
    full_rounds: Rounds = {batch: [] for batch in BATCHES}
    with worker_garbage_collection():
        for bench in (base, full):
            bench.round(max(BATCHES), seconds / 2)
        for _ in range(plan.rounds):
            for batch in BATCHES:
                base_rounds[batch].append(base.round(batch, seconds / 2))
                full_rounds[batch].append(full.round(batch, seconds / 2))
    return base_rounds, full_rounds


def _growth_figures(
    ranker: Ranker, shop: Shop, plan: Plan, shoppers: int, growth_items: tuple[int, ...], growth_events: tuple[int, ...]
) -> Figures:
    """Return microseconds per page by events of the shopper and by items of the catalogue."""
    seconds = plan.round_seconds / 2 / (len(growth_items) + len(growth_events))
    few = min(GROWTH_SHOPPERS, shoppers)
    by_events = _page_us({n: Bench(ranker, shop, np.full(few, n)) for n in growth_events}, seconds, plan.rounds)
    report(f"up to {max(growth_items):,} items")
    shops = {n: shop if n == len(shop.ids) else shop_of(n) for n in growth_items}
    by_items = _page_us(
        {n: Bench(ranker, of, history_lengths(min(2000, shoppers))) for n, of in shops.items()}, seconds, plan.rounds
    )
    return {"batch": GROWTH_BATCH, "items": by_items, "events": by_events}


def _pages_per_s(rounds: Rounds) -> dict[str, int]:
    return {str(batch): round(rounded_median([1 / t.page for t in ts])) for batch, ts in rounds.items()}


def _cost_in_loads(rounds: Rounds, loads: list[float]) -> dict[str, float]:
    return {
        str(batch): rounded_median([t.page / load for t, load in zip(ts, loads, strict=True)], 3)
        for batch, ts in rounds.items()
    }


def _stages_us(rounds: Rounds) -> dict[str, dict[str, float]]:
    return {
        str(batch): {stage: rounded_median([t.stages[stage] * 1e6 for t in ts], 3) for stage in ts[0].stages}
        for batch, ts in rounds.items()
    }


def _page_us(benches: dict[int, Bench], seconds: float, rounds: int) -> dict[str, float]:
    """Return microseconds per page of each bench. Rounds alternate, because a machine is slower in some minutes."""
    pages: dict[int, list[float]] = {n: [] for n in benches}
    with worker_garbage_collection():
        for bench in benches.values():
            bench.round(GROWTH_BATCH, 0)
        for _ in range(rounds):
            for n, bench in benches.items():
                pages[n].append(bench.round(GROWTH_BATCH, seconds).page * 1e6)
    return {str(n): rounded_median(us, 3) for n, us in pages.items()}


def table(figures: Figures) -> str:
    lines = [f"{'events':>7} {'pages/s':>9} {'us/page':>9} {'in loads':>9}   us/page by stage"]
    for title, pages_of, costs, stages in (
        ("", "batch", "cost_in_loads", "stages"),
        ("with the MLP and the history model", "full_batch", "full", "full_stages"),
    ):
        if title:
            lines.append(title)
        for batch, pages in figures[pages_of].items():
            text = "  ".join(f"{stage} {us:.0f}" for stage, us in figures[stages][batch].items())
            lines.append(f"{batch:>7} {pages:9,} {1e6 / pages:9.0f} {figures[costs][batch]:9.0f}   {text}")
    lines.append(
        f"one orjson.loads of an event takes {figures['loads_us']} us; a page has {figures['pages_bytes']:,} bytes, "
        f"{figures['candidates']:.0f} candidates on average"
    )
    growth = figures["growth"]
    for of, name in (("items", "items in the catalogue"), ("events", "events of the shopper")):
        text = "  ".join(f"{int(n):,}: {us:.0f}" for n, us in growth[of].items())
        lines.append(f"us/page in batches of {growth['batch']}, by {name}   {text}")
    return "\n".join(lines)
