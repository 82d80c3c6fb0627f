"""Retrieval and phi against what they say in plain Python: the walk over the neighbours, and what a shopper's lists hold."""

from typing import Any

import numpy as np
import pytest

from models.ranker.features import FEATURES, HistoryScores, joint_features
from stream.events import ADD, BUY, CLICK, SEARCH, VIEW
from stream.ids import key32, key64
from stream.items.catalog import Catalog
from stream.items.signals import HALF_LIVES as SIGNAL_LIVES
from stream.items.signals import Signals
from stream.page.candidates import CANDIDATES, RECENT_ITEMS, retrieve
from stream.page.json_kernels import (
    GEN_ANCHOR,
    GEN_CART,
    GEN_CATEGORY,
    GEN_FRESH,
    GEN_NEXT,
    GEN_POPULAR,
    GEN_RECENT,
    GEN_TOGETHER,
    rfc3339,
)
from stream.profile.exposure import SERVING
from stream.profile.fold import HALF_LIVES, blank, fold
from tests.harness.events import NOW, row, rows
from tests.harness.shop import catalog_of, item, signals_of

ITEMS = 150


def shop(seed: int) -> tuple[Catalog, Signals]:
    """Items of many prices, some new, some about to go; of two in three it is known who bought them and came back."""
    rng = np.random.default_rng(seed)
    catalog = catalog_of(ITEMS)
    day = 86_400.0
    facts: list[dict[str, Any]] = [
        {"price": None if k % 11 == 0 else float(np.round(np.exp(rng.normal(3, 1)), 2)),
         "added_at": None if k % 3 == 0 else rfc3339(NOW - float(rng.uniform(0, 20 * day))),
         "expires_at": rfc3339(NOW + day / 4) if k % 7 == 0 else None} for k in range(ITEMS)
    ]  # fmt: skip
    own = [{"category": f"c{k % 5}", "brand": f"b{k % 17}", **of} for k, of in enumerate(facts)]
    assert not catalog.apply(
        [item(f"i{k}", **{n: v for n, v in of.items() if v is not None or n == "price"}) for k, of in enumerate(own)]
    )
    sessions = [[f"i{k}" for k in (rng.integers(0, ITEMS) + rng.integers(0, 25, 6)) % ITEMS] for _ in range(300)]
    signals = signals_of(catalog, sessions)
    at = np.flatnonzero(signals.rows["item"][:ITEMS]).astype(np.int32)
    told: Any = signals.rows[at].copy()
    for field in ("buys", "carts", "repeat"):
        told[field] = rng.integers(0, 3, len(at)) * rng.uniform(0, 5, len(at))
    signals.put(at, told, signals.near_row[at])
    return catalog, signals


def shoppers(seed: int, n: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    profiles, serving = blank(n), np.zeros(n, SERVING)
    for u in range(n):
        told = []
        for k in range(int(rng.integers(1, 50))):
            kind = int(rng.choice([VIEW, CLICK, ADD, BUY, SEARCH], p=[0.4, 0.3, 0.15, 0.1, 0.05]))
            if kind == SEARCH:
                word = str(rng.choice(["thing", f"i{10 * u}", "lamp"]))
                told.append(row(kind, "", NOW - 5000 + 90 * k, id=f"{u}-{k}", word=word))
            else:
                name = f"i{(10 * u + rng.integers(0, 30)) % ITEMS}"
                told.append(row(kind, name, NOW - 5000 + 90 * k, id=f"{u}-{k}"))
        events: Any = rows(*told)
        events["category"] = [key32(f"c{k}") if k < 5 else 0 for k in rng.integers(0, 7, len(events))]
        events["brand"] = [key32(f"b{k}") if k < 15 else 0 for k in rng.integers(0, 17, len(events))]
        events["price"] = np.round(np.exp(rng.normal(3, 1, len(events))), 2) * rng.integers(0, 2, len(events))
        fold(profiles[u : u + 1], np.zeros(len(events), np.int32), events)
        tired = np.array([key64(f"i{k}") for k in rng.integers(0, ITEMS, 6)]).astype(np.int32)
        serving["fatigue_item"][u, :6], serving["fatigue_count"][u, :6] = tired, 2.0
        serving["fatigue_time"][u, :6] = NOW - 1000
    return profiles, serving


def last_items(profile: Any, catalog: Catalog) -> list[int]:
    seen = [catalog.index.get(int(item)) for item in profile["recent_item"][::-1] if item]
    return list(dict.fromkeys(seen))[:RECENT_ITEMS]


def strengths(signals: Signals, source: int, j: int, near: int) -> tuple[float, float, float]:
    """Of the neighbour at place j, row `near`: its share of the transitions, of those of one step, cosine of co-visits."""
    s = signals.rows[source]
    together = s["near_visit"][j] / np.sqrt(max(float(s["seen"]) * signals.rows[near]["seen"], 1e-9))
    strict = s["near_strict"][j] / max(s["strict_out"], np.float32(1e-9))
    return float(s["near_next"][j] / max(s["next_out"], np.float32(1e-9))), float(strict), float(together)


def bigrams(signals: Signals, source: int) -> list[tuple[int, float, float]]:
    """Row, share of the transitions, cosine of co-visits, of each neighbour."""
    found = []
    for j, near in enumerate(signals.near_row[source].tolist()):
        if near >= 0 and signals.rows[source]["item"]:
            follows, _, together = strengths(signals, source, j, near)
            found.append((near, follows, together))
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
            for near, follows, together in bigrams(signals, source):
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


def shares(signals: Signals, source: int, target: int) -> tuple[float, float, float]:
    """`strengths` of `target` as a neighbour of `source`; zeros where it is none."""
    for j, near in enumerate(signals.near_row[source].tolist()):
        if near == target and signals.rows[source]["item"]:
            return strengths(signals, source, j, near)
    return 0.0, 0.0, 0.0


def taste(keys: Any, table: Any, at: float, now: float, key: int) -> list[float]:
    """Share of `key` in a table of the strongest, at three half-lives, with half a taste of doubt."""
    found = []
    for life, half_life in enumerate(HALF_LIVES):
        decay = 2.0 ** -(max(0.0, now - at) / half_life)
        mine = sum(float(w[life]) for k, w in zip(keys, table, strict=True) if k == key and key)
        found.append(mine * decay / ((1e-9 + float(table[:, life].sum())) * decay + 0.5))
    return found


def phi_in_words(
    p: Any, served: Any, now: float, r: int, bits: int, catalog: Catalog, signals: Signals, chance: float, best: float,
    unknown: bool,
) -> dict[str, float]:  # fmt: skip
    """Every feature of one shopper and one candidate (row r, generators `bits`), said without a kernel.

    chance: the history model's, best: that of its favourite candidate; unknown: the item is one that it has not seen.
    """
    item, s, log1p = catalog.items[r], signals.rows[r], np.log1p
    id = int(item["id"])
    recent = last_items(p, catalog)
    weights = [1 / (a + 1) for a in range(len(recent))]
    x = dict.fromkeys(FEATURES, 0.0)

    # The walk from the last items and from the cart.
    steps = [shares(signals, a, r) for a in recent]
    x["next_sum"] = log1p(sum(w * follows for w, (follows, _, _) in zip(weights, steps, strict=True)) / 3e-4)
    x["together_sum"] = log1p(sum(w * together for w, (_, _, together) in zip(weights, steps, strict=True)) / 3e-3)
    if recent:
        last = signals.rows[recent[0]]
        x["next_last"], x["next_strict"] = log1p(steps[0][0] / 3e-4), log1p(steps[0][1] / 3e-4)
        x["together_last"] = log1p(steps[0][2] / 3e-3)
        x["next_last_support"] = x["next_last"] * log1p(float(last["strict_out"])) / 5
        x["together_last_support"] = x["together_last"] * log1p(float(last["seen"])) / 5
        if s["item"]:
            x["back_last"] = log1p(shares(signals, r, recent[0])[0] / 3e-4)
        hops = [(one, follows) for one, follows, _ in bigrams(signals, recent[0]) if follows > 0.02]
        x["two_hop"] = log1p(sum(follows * shares(signals, one, r)[0] for one, follows in hops) / 3e-4)
    if len(recent) > 1:
        x["next_second"], x["together_second"] = log1p(steps[1][0] / 3e-4), log1p(steps[1][2] / 3e-3)
    length = 0
    for one, time in zip(p["recent_item"][::-1], p["recent_time"][::-1], strict=True):
        if one == 0 or now - time > 1800:
            break
        length += 1
    x["next_sum_length"] = x["next_sum"] * log1p(length)
    cart = [int(i) for i, q in zip(p["cart_item"], p["cart_quantity"], strict=True) if i and q]
    x["together_cart"] = log1p(sum(shares(signals, catalog.index.get(one), r)[2] for one in cart) / 3e-3)

    # The item's own fame.
    if s["item"]:
        late = max(0.0, min(now, signals.clock) - s["time"])
        for name, of, half_life in zip(
            ("hour", "day", "fortnight"), s["popular"], SIGNAL_LIVES.popularity, strict=True
        ):
            x[f"popular_{name}"] = log1p(float(of) * 2.0 ** -(late / half_life))
        stock = 2.0 ** -(late / SIGNAL_LIVES.popularity[2])
        x["popular_newcomer"] = x["popular_day"] / (1 + p["events"])
        x["bought_by_many"], x["carted_by_many"] = log1p(float(s["buys"]) * stock), log1p(float(s["carts"]) * stock)
        x["buy_rate"] = np.log((s["buys"] * stock + 1) / (s["popular"][2] * stock + 20) * 20)
        x["has_signals"] = 1.0

    # What the shopper did with it before, the newest first.
    mine = [(back, t, k) for back, (i, t, k) in enumerate(
        zip(p["recent_item"][::-1], p["recent_time"][::-1], p["recent_kind"][::-1], strict=True)) if i == id]  # fmt: skip
    if mine:
        back, time, _ = mine[0]
        rate = float(s["repeat"] / max(s["strict_out"], np.float32(1)))
        x["is_last"], x["is_recent"], x["recent_steps"] = float(back == 0), 1.0, 1 / (1 + back)
        x["recent_count"], x["recent_age"] = log1p(len(mine)), log1p(max(0.0, now - time) / 60)
        x["repeat_rate_last"], x["repeat_rate_recent"] = rate * x["is_last"], rate
        x["carted_before"] = float(any(kind == ADD for _, _, kind in mine))
    x["in_cart"] = float(id in cart)
    bought = [float(t) for i, t in zip(p["bought_item"], p["bought_time"], strict=True) if i == id]
    if bought:
        x["bought"], x["bought_age"] = 1.0, log1p(max(0.0, now - bought[-1]) / 86_400)

    # Categories, brands, prices, words.
    for kind in ("category", "brand"):
        names = ("half_hour", "day", "month")
        for name, share in zip(
            names, taste(p[kind], p[f"{kind}_weight"], p[f"{kind}_at"], now, item[kind]), strict=True
        ):
            x[f"{kind}_{name}"] = share
        same = [w for w, a in zip(weights, recent, strict=True) if catalog.items[kind][a] == item[kind] != 0]
        x[f"{kind}_recent"] = sum(same) / sum(weights) if recent else 0.0
        x[f"{kind}_last"] = float(bool(recent) and catalog.items[kind][recent[0]] == item[kind] != 0)
    x["category_and_brand"] = np.sqrt(x["category_recent"] * x["brand_recent"])
    price = float(item["log_price"])
    if price and p["price_weight"] > 0:
        mean = p["price_sum"] / p["price_weight"]
        variance = max(0.0, p["price_square"] / p["price_weight"] - mean**2)
        far = (price - mean) / (np.sqrt((variance * p["price_weight"] + 0.245) / (p["price_weight"] + 0.5)) + 0.1)
        x["price_distance"], x["price_square"] = min(abs(far), 6.0), min(far**2, 36.0) / 6
        x["price_above"], x["price_below"] = min(max(far, 0.0), 6.0), min(max(-far, 0.0), 6.0)
    if price and recent and catalog.items["log_price"][recent[0]]:
        x["price_last"] = min(abs(price - float(catalog.items["log_price"][recent[0]])), 5.0)
    title = {int(word) for word in item["word"] if word}
    searched = {int(word): float(w) for word, w in zip(p["word"], p["word_weight"], strict=True) if word}
    x["searched"] = sum(searched.get(word, 0.0) for word in title) * 2.0 ** -(max(0.0, now - p["word_at"]) / 86_400)
    x["searched_any"] = max((searched[word] for word in title & searched.keys()), default=0.0) / max(
        [1e-9, *searched.values()]
    )
    if title and recent:
        words = [{int(word) for word in catalog.items["word"][a] if word} for a in recent]
        x["title_last"] = len(title & words[0]) / len(title)
        shared = sum(w * len(title & of) for w, of in zip(weights, words, strict=True))
        x["title_recent"] = shared / (len(title) * sum(weights))
    x["title_category"] = x["title_recent"] * x["category_recent"]

    # Novelty, fatigue, where it comes from.
    if item["added"]:
        days = max(0.0, now - item["added"]) / 86_400
        x["age"], x["is_new"] = log1p(days), float(days < 7)
    x["expires_soon"] = float(item["expires"] - now < 86_400)
    for one, count, time in zip(served["fatigue_item"], served["fatigue_count"], served["fatigue_time"], strict=True):
        if one == np.int64(id).astype(np.int32):
            x["shown_in_vain"] = log1p(count * 2.0 ** -(max(0.0, now - time) / 86_400))
    x["shown_in_vain_popular"] = x["shown_in_vain"] * x["popular_day"]
    for name, bit in (("categories", GEN_CATEGORY), ("fresh", GEN_FRESH), ("popular", GEN_POPULAR)):
        x[f"from_{name}"] = float(bool(bits & bit))
    active = float(p["activity"][:, 0].sum()) * 2.0 ** -(max(0.0, now - p["activity_at"]) / HALF_LIVES[0])
    x["category_activity"] = x["category_half_hour"] * log1p(active)

    # What a history model says.
    if best:
        x["foreseen"] = log1p(chance / 1e-5)
        if recent:
            x["foreseen_support"] = x["foreseen"] * log1p(float(signals.rows[recent[0]]["strict_out"])) / 5
        x["foreseen_length"] = x["foreseen"] * log1p(length)
        x["foreseen_behind"] = np.log((chance + 1e-5) / (best + 1e-5))
        x["foreseen_unknown"] = float(unknown)

    # How sure all that is.
    if s["item"]:
        x["support"], x["touched_age"] = log1p(float(s["strict_out"])) / 5, log1p(late / 3600)
    if recent:
        last = signals.rows[recent[0]]
        near = [float(last["near_strict"][j]) for j, at in enumerate(signals.near_row[recent[0]].tolist()) if at == r]
        x["led_there"] = log1p(sum(near)) if last["item"] else 0.0
        x["last_support"], x["last_visits"] = log1p(float(last["strict_out"])) / 5, log1p(float(last["seen"])) / 5
    x["session_length"], x["session_items"] = log1p(length), log1p(len(recent))
    if p["recent_item"][-2]:
        x["session_gap"] = log1p((p["recent_time"][-1] - p["recent_time"][-2]) / 60)
    return x


@pytest.mark.parametrize("seed", [3, 4])
def test_phi_is_what_it_says_in_words(seed: int) -> None:
    catalog, signals = shop(seed)
    profiles, serving = shoppers(seed, 8)
    now = profiles["last_seen"] + np.arange(8) * 1700.0
    found = retrieve(profiles, now, catalog, signals, signals.leaders(NOW))
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(CANDIDATES, 0.1), 8).astype(np.float32)
    shares[0] = 0.0  # of the first shopper the model knows nothing
    unknown = (rng.random(len(catalog.items)) < 0.3).astype(np.int8)
    phi = joint_features(profiles, serving, now, found, catalog, signals, foreseen=HistoryScores(shares, unknown))
    seen: set[str] = set()
    for u in range(8):
        for c in range(found.count[u]):
            r, bits = int(found.rows[u, c]), int(found.generators[u, c])
            best = float(shares[u, : found.count[u]].max())
            expected = phi_in_words(
                profiles[u], serving[u], now[u], r, bits, catalog, signals, float(shares[u, c]), best, bool(unknown[r])
            )
            assert tuple(expected) == FEATURES
            seen.update(name for name, value in expected.items() if value)
            got = dict(zip(FEATURES, phi[u, c].tolist(), strict=True))
            wrong = {name: (got[name], value) for name, value in expected.items()
                     if got[name] != pytest.approx(value, rel=1e-4, abs=1e-5)}  # fmt: skip
            assert not wrong, (u, c, wrong)
        assert not phi[u, found.count[u] :].any()
    assert seen == set(FEATURES), set(FEATURES) - seen


def test_signals_do_not_fade_while_nothing_new_is_counted() -> None:
    catalog, signals = shop(5)
    profiles, serving = shoppers(5, 4)

    def of_signals(now: float) -> Any:
        """What phi says of items' popularity and age, with what the shopper has done being as it is."""
        found = retrieve(profiles, np.full(4, NOW), catalog, signals, signals.leaders(NOW))
        phi = joint_features(profiles, serving, np.full(4, now), found, catalog, signals)
        names = ("popular_hour", "popular_day", "popular_fortnight", "bought_by_many", "touched_age")
        return phi[..., [FEATURES.index(name) for name in names]]

    clock = float(signals.rows["time"].max())
    fresh = of_signals(clock)
    assert fresh.any() and np.array_equal(of_signals(clock + 7 * 86_400), fresh)
    assert not np.array_equal(of_signals(clock - 600), fresh), "of an earlier shopper they are as of her time"
