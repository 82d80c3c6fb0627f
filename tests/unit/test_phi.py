"""Retrieval and phi against what they say in plain Python: the walk over the neighbours, and what a shopper's lists hold."""

from typing import Any

import numpy as np
import pytest

from models.phi import FEATURES, joint_features
from stream.catalog import Catalog
from stream.events import ADD, BUY, CLICK, SEARCH, VIEW
from stream.ids import key32, key64
from stream.page import GEN_ANCHOR, GEN_CART, GEN_NEXT, GEN_RECENT, GEN_TOGETHER
from stream.profile import blank, fold
from stream.retrieval import RECENT_ITEMS, retrieve
from stream.serving import SERVING
from stream.signals import Signals
from tests.unit.behaviour import NOW, row, rows
from tests.unit.shop import catalog_of, signals_of

ITEMS = 150


def shop(seed: int) -> tuple[Catalog, Signals]:
    rng = np.random.default_rng(seed)
    catalog = catalog_of(ITEMS)
    sessions = [[f"i{k}" for k in (rng.integers(0, ITEMS) + rng.integers(0, 25, 6)) % ITEMS] for _ in range(300)]
    return catalog, signals_of(catalog, sessions)


def shoppers(seed: int, n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    profiles, serving = blank(n), np.zeros(n, SERVING)
    for u in range(n):
        told = []
        for k in range(int(rng.integers(1, 50))):
            kind = int(rng.choice([VIEW, CLICK, ADD, BUY, SEARCH], p=[0.4, 0.3, 0.15, 0.1, 0.05]))
            if kind == SEARCH:
                told.append(row(kind, "", NOW - 5000 + 90 * k, id=f"{u}-{k}"))
            else:
                name = f"i{(10 * u + rng.integers(0, 30)) % ITEMS}"
                told.append(row(kind, name, NOW - 5000 + 90 * k, id=f"{u}-{k}"))
        events: Any = rows(*told)
        events["category"] = [key32(f"c{k}") if k < 5 else 0 for k in rng.integers(0, 7, len(events))]
        fold(profiles[u : u + 1], np.zeros(len(events), np.int32), events)
        tired = np.array([key64(f"i{k}") for k in rng.integers(0, ITEMS, 6)]).astype(np.int32)
        serving["fatigue_item"][u, :6], serving["fatigue_count"][u, :6] = tired, 2.0
        serving["fatigue_time"][u, :6] = NOW - 1000
    return profiles, serving


def last_items(profile: Any, catalog: Catalog) -> list[int]:
    seen = [catalog.index.get(int(item)) for item in profile["recent_item"][::-1] if item]
    return list(dict.fromkeys(seen))[:RECENT_ITEMS]


def neighbours(signals: Signals, source: int) -> list[tuple[int, float, float]]:
    """Row, share of the transitions, cosine of co-visits, of each neighbour."""
    s = signals.rows[source]
    found = []
    for j, near in enumerate(signals.near_row[source].tolist()):
        if near >= 0 and s["item"]:
            together = s["near_visit"][j] / np.sqrt(max(float(s["seen"]) * signals.rows[near]["seen"], 1e-9))
            found.append((near, float(s["near_next"][j] / max(s["next_out"], np.float32(1e-9))), float(together)))
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_candidates_begin_with_the_last_items_and_their_strongest_neighbours(seed: int) -> None:
    catalog, signals = shop(seed)
    profiles, _ = shoppers(seed, 20)
    now = np.full(20, NOW)
    found = retrieve(profiles, now, catalog, signals, signals.leaders(NOW))
    for u in range(20):
        recent = last_items(profiles[u], catalog)
        carted = [
            catalog.index.get(int(i))
            for i, q in zip(profiles[u]["cart_item"], profiles[u]["cart_quantity"], strict=True)
            if i and q
        ]
        strength: dict[int, float] = {}
        kinds: dict[int, int] = dict.fromkeys(recent, GEN_RECENT)
        sources = [(source, 1 / (a + 1), a == 0, False) for a, source in enumerate(recent)]
        for source, weight, anchor, cart in sources + [(source, 0.5, False, True) for source in carted]:
            for near, follows, together in neighbours(signals, source):
                if follows <= 0 and together <= 0:
                    continue
                bits = (GEN_NEXT if follows > 0 else 0) | (GEN_TOGETHER if together > 0 else 0)
                kinds[near] = kinds.get(near, 0) | bits | (GEN_ANCHOR if anchor else 0) | (GEN_CART if cart else 0)
                if near not in recent:
                    strength[near] = strength.get(near, 0.0) + weight * (follows + 0.5 * together)
        walked = sorted(strength, key=lambda near: -strength[near])[:120]
        mine = found.rows[u].tolist()
        start = len(recent)
        assert mine[:start] == recent
        # Of equal strength the order is that of the walk; rounding may part what is equal here.
        taken = [strength[r] for r in mine[start : start + len(walked)]]
        assert taken == pytest.approx([strength[r] for r in walked], rel=1e-6)
        walk = GEN_RECENT | GEN_NEXT | GEN_TOGETHER | GEN_ANCHOR | GEN_CART
        for at in range(start + len(walked)):
            assert int(found.generators[u, at]) & walk == kinds[mine[at]]
        assert len(set(mine[: found.count[u]])) == found.count[u]


@pytest.mark.parametrize("seed", [3, 4])
def test_phi_says_what_stands_in_the_shoppers_lists_and_in_the_walk(seed: int) -> None:
    catalog, signals = shop(seed)
    profiles, serving = shoppers(seed, 20)
    now = profiles["last_seen"].copy()
    found = retrieve(profiles, now, catalog, signals, signals.leaders(NOW))
    phi = joint_features(profiles, serving, now, found, catalog, signals)
    at = {name: k for k, name in enumerate(FEATURES)}
    checked: set[str] = set()

    def same(x: Any, name: str, expected: float) -> None:
        assert x[at[name]] == pytest.approx(expected, rel=1e-5, abs=1e-6), (name, x[at[name]], expected)
        if expected:
            checked.add(name)

    for u in range(20):
        p, recent = profiles[u], last_items(profiles[u], catalog)
        categories = [int(catalog.items["category"][r]) for r in recent]
        weights = [1 / (a + 1) for a in range(len(recent))]
        near = {r: neighbours(signals, r) for r in range(ITEMS)}
        hop: dict[int, float] = {}
        for one, follows, _ in near[recent[0]] if recent else []:
            if follows > 0.02:
                for two, again, _ in near[one]:
                    hop[two] = hop.get(two, 0.0) + follows * again
        total = [1e-9 + float(p["category_weight"][:, life].sum()) for life in range(3)]
        decay = [2.0 ** -(max(0.0, now[u] - p["category_at"]) / h) for h in (1800.0, 86_400.0, 2_592_000.0)]
        for c in range(found.count[u]):
            r, x = int(found.rows[u, c]), phi[u, c]
            item = catalog.items[r]
            id, category = int(item["id"]), int(item["category"])
            times = p["recent_item"].tolist().count(id)
            same(x, "is_recent", float(times > 0))
            same(x, "recent_count", np.log1p(times))
            in_cart = any(i == id and q > 0 for i, q in zip(p["cart_item"], p["cart_quantity"], strict=True))
            same(x, "in_cart", float(in_cart))
            same(x, "bought", float(id in p["bought_item"].tolist()))
            tired = serving[u]["fatigue_item"].tolist()
            low = int(np.int64(id).astype(np.int32))
            gone = 2.0 ** -(max(0.0, now[u] - (NOW - 1000)) / 86_400.0)
            same(x, "shown_in_vain", np.log1p(2.0 * gone) if low in tired else 0.0)
            like = [w for w, of in zip(weights, categories, strict=True) if of == category]
            same(x, "category_recent", sum(like) / sum(weights) if recent else 0.0)
            for life, name in enumerate(("category_half_hour", "category_day", "category_month")):
                mine = [
                    float(w[life]) for k, w in zip(p["category"], p["category_weight"], strict=True) if k == category
                ]
                share = sum(mine) * decay[life] / (total[life] * decay[life] + 0.5)
                same(x, name, share)
            if recent:
                last = dict((n, (follows, together)) for n, follows, together in near[recent[0]])
                follows, together = last.get(r, (0.0, 0.0))
                same(x, "next_last", np.log1p(follows / 3e-4))
                same(x, "together_last", np.log1p(together / 3e-3))
                back = [follows for n, follows, _ in near[r] if n == recent[0]]
                same(x, "back_last", np.log1p(sum(back) / 3e-4))
                same(x, "two_hop", np.log1p(hop.get(r, 0.0) / 3e-4))
            figures = signals.rows[r]
            late = max(0.0, now[u] - figures["time"])
            same(x, "popular_day", np.log1p(float(figures["popular"][1]) * 2.0 ** -(late / 86_400.0)))
            same(x, "has_signals", float(figures["item"] != 0))
    assert len(checked) >= 15, checked
