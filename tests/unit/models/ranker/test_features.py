"""Retrieval and phi compared with their definitions in plain Python (`phi_in_words` is the oracle of phi's kernels)."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy import log1p

from models.ranker import columns
from models.ranker.columns import FEATURES
from models.ranker.features import HistoryScores, joint_features
from stream.codes import GEN_ANCHOR, GEN_CART, GEN_CATEGORY, GEN_FRESH, GEN_NEXT, GEN_POPULAR, GEN_RECENT, GEN_TOGETHER
from stream.events.decode import ADD, BUY, CLICK, SEARCH, VIEW
from stream.ids import key32, key64
from stream.items.catalog import Catalog
from stream.items.signals import HALF_LIVES as SIGNAL_LIVES
from stream.items.signals import Signals
from stream.page.candidates import MAX_CANDIDATES, RECENT_ITEMS, retrieve
from stream.profile.exposure import SERVING
from stream.profile.fold import fold
from stream.profile.row import HALF_LIVES, blank_profiles
from stream.times import rfc3339
from tests.harness.events import NOW, row, rows
from tests.harness.shop import catalog_of, item, signals_of

ITEMS = 150
DAY_S = 86_400.0


def decayed(elapsed_s: float, half_life_s: float) -> float:
    return float(0.5 ** (elapsed_s / half_life_s))


def make_shop(seed: int) -> tuple[Catalog, Signals]:
    """A shop whose items differ in price, age and expiry; two in three have purchases, cart additions and repeats."""
    rng = np.random.default_rng(seed)
    catalog = catalog_of(ITEMS)
    facts: list[dict[str, Any]] = []
    for k in range(ITEMS):
        price = None if k % 11 == 0 else float(np.round(np.exp(rng.normal(3, 1)), 2))
        added = None if k % 3 == 0 else rfc3339(NOW - float(rng.uniform(0, 20 * DAY_S)))
        expires = rfc3339(NOW + DAY_S / 4) if k % 7 == 0 else None
        known = {"price": price, "added_at": added, "expires_at": expires}
        fields = {name: value for name, value in known.items() if value is not None or name == "price"}
        facts.append({"category": f"c{k % 5}", "brand": f"b{k % 17}", **fields})
    assert not catalog.apply([item(f"i{k}", **fields) for k, fields in enumerate(facts)])
    sessions = [[f"i{k}" for k in (rng.integers(0, ITEMS) + rng.integers(0, 25, 6)) % ITEMS] for _ in range(300)]
    signals = signals_of(catalog, sessions)
    at = np.flatnonzero(signals.rows["item"][:ITEMS]).astype(np.int32)
    counts: Any = signals.rows[at].copy()
    for field in ("buys", "carts", "repeat"):
        counts[field] = rng.integers(0, 3, len(at)) * rng.uniform(0, 5, len(at))
    signals.set_rows(at, counts, signals.neighbour_rows[at])
    return catalog, signals


def make_shoppers(seed: int, n: int) -> tuple[Any, Any]:
    """PROFILE and SERVING rows (n,) of shoppers with up to 50 random events and six items shown in vain."""
    rng = np.random.default_rng(seed)
    profiles, serving = blank_profiles(n), np.zeros(n, SERVING)
    for u in range(n):
        actions = []
        for k in range(int(rng.integers(1, 50))):
            kind = int(rng.choice([VIEW, CLICK, ADD, BUY, SEARCH], p=[0.4, 0.3, 0.15, 0.1, 0.05]))
            if kind == SEARCH:
                word = str(rng.choice(["thing", f"i{10 * u}", "lamp"]))
                actions.append(row(kind, "", NOW - 5000 + 90 * k, id=f"{u}-{k}", word=word))
            else:
                name = f"i{(10 * u + rng.integers(0, 30)) % ITEMS}"
                actions.append(row(kind, name, NOW - 5000 + 90 * k, id=f"{u}-{k}"))
        events: Any = rows(*actions)
        events["category"] = [key32(f"c{k}") if k < 5 else 0 for k in rng.integers(0, 7, len(events))]
        events["brand"] = [key32(f"b{k}") if k < 15 else 0 for k in rng.integers(0, 17, len(events))]
        events["price"] = np.round(np.exp(rng.normal(3, 1, len(events))), 2) * rng.integers(0, 2, len(events))
        fold(profiles[u : u + 1], np.zeros(len(events), np.int32), events)
        tired = np.array([key64(f"i{k}") for k in rng.integers(0, ITEMS, 6)]).astype(np.int32)
        serving["fatigue_item"][u, :6], serving["fatigue_count"][u, :6] = tired, 2.0
        serving["fatigue_time"][u, :6] = NOW - 1000
    return profiles, serving


def last_items(profile: Any, catalog: Catalog) -> list[int]:
    """Catalogue rows of the last distinct items, newest first."""
    seen = [catalog.index.get(int(item)) for item in profile["recent_item"][::-1] if item]
    return list(dict.fromkeys(seen))[:RECENT_ITEMS]


def items_in_cart(profile: Any) -> list[int]:
    return [int(i) for i, q in zip(profile["cart_item"], profile["cart_quantity"], strict=True) if i and q]


def strengths(signals: Signals, source: int, j: int, near: int) -> tuple[float, float, float]:
    """Share of transitions, share of one-step transitions and co-visit cosine of neighbour j, at row `near`."""
    s = signals.rows[source]
    together = s["near_visit"][j] / np.sqrt(max(float(s["seen"]) * signals.rows[near]["seen"], 1e-9))
    strict = s["near_strict"][j] / max(s["strict_out"], np.float32(1e-9))
    return float(s["near_next"][j] / max(s["next_out"], np.float32(1e-9))), float(strict), float(together)


def bigrams(signals: Signals, source: int) -> list[tuple[int, float, float]]:
    """Row, share of transitions and co-visit cosine of each neighbour of `source`."""
    found = []
    for j, near in enumerate(signals.neighbour_rows[source].tolist()):
        if near >= 0 and signals.rows[source]["item"]:
            follows, _, together = strengths(signals, source, j, near)
            found.append((near, follows, together))
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_candidates_begin_with_the_last_items_and_their_strongest_neighbours(seed: int) -> None:
    catalog, signals = make_shop(seed)
    profiles, _ = make_shoppers(seed, 20)
    now = np.full(20, NOW)
    found = retrieve(profiles, now, catalog, signals, signals.trending(NOW))
    for u in range(20):
        recent = last_items(profiles[u], catalog)
        carted = [catalog.index.get(one) for one in items_in_cart(profiles[u])]
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
        expected_rows = sorted(strength, key=lambda near: -strength[near])[:120]
        found_rows = found.rows[u].tolist()
        start = len(recent)
        assert found_rows[:start] == recent
        # Items of equal strength keep the order of retrieval; rounding may separate strengths that are equal here.
        taken = [strength[r] for r in found_rows[start : start + len(expected_rows)]]
        assert taken == pytest.approx([strength[r] for r in expected_rows], rel=1e-6)
        neighbour_bits = GEN_RECENT | GEN_NEXT | GEN_TOGETHER | GEN_ANCHOR | GEN_CART
        for at in range(start + len(expected_rows)):
            assert int(found.generators[u, at]) & neighbour_bits == kinds[found_rows[at]]
        assert len(set(found_rows[: found.count[u]])) == found.count[u]


def shares_of(signals: Signals, source: int, target: int) -> tuple[float, float, float]:
    """`strengths` of `target` as a neighbour of `source`; zeros if it is not a neighbour."""
    for j, near in enumerate(signals.neighbour_rows[source].tolist()):
        if near == target and signals.rows[source]["item"]:
            return strengths(signals, source, j, near)
    return 0.0, 0.0, 0.0


def taste_of(keys: Any, table: Any, at: float, now: float, key: int) -> list[float]:
    """Share of `key` in a table of the strongest keys, at three half-lives, with half an interaction of doubt."""
    found = []
    for life, half_life in enumerate(HALF_LIVES):
        decay = decayed(max(0.0, now - at), half_life)
        mine = sum(float(w[life]) for k, w in zip(keys, table, strict=True) if k == key and key)
        found.append(mine * decay / ((1e-9 + float(table[:, life].sum())) * decay + 0.5))
    return found


class Situation(NamedTuple):
    """One shopper and one candidate."""

    profile: Any
    serving: Any
    now: float  # s
    row: int  # of the candidate
    bits: int  # its generators
    catalog: Catalog
    signals: Signals
    share: float  # the history model's, of the candidate
    best_share: float  # and of its favourite candidate; 0 without a prediction
    is_unknown: bool  # the history model was not trained on the item

    @property
    def item(self) -> Any:
        return self.catalog.items[self.row]

    @property
    def signal(self) -> Any:
        return self.signals.rows[self.row]

    @property
    def recent(self) -> list[int]:
        return last_items(self.profile, self.catalog)

    @property
    def weights(self) -> list[float]:
        return [1 / (a + 1) for a in range(len(self.recent))]

    @property
    def signals_age(self) -> float:
        """Seconds since the candidate's signals were updated, as far as the signals know the time."""
        return max(0.0, min(self.now, self.signals.clock) - float(self.signal["time"]))


Columns = dict[str, float]


def session_in_words(x: Columns, at: Situation) -> None:
    p = at.profile
    length = 0
    for one, time in zip(p["recent_item"][::-1], p["recent_time"][::-1], strict=True):
        if one == 0 or at.now - time > 1800:
            break
        length += 1
    x["session_length"], x["session_items"] = log1p(length), log1p(len(at.recent))
    if p["recent_item"][-2]:
        x["session_gap"] = log1p((p["recent_time"][-1] - p["recent_time"][-2]) / 60)
    if at.recent:
        last = at.signals.rows[at.recent[0]]
        x["last_support"], x["last_visits"] = log1p(float(last["strict_out"])) / 5, log1p(float(last["seen"])) / 5


def neighbours_in_words(x: Columns, at: Situation) -> None:
    signals, recent = at.signals, at.recent
    steps = [shares_of(signals, a, at.row) for a in recent]
    x["next_sum"] = log1p(sum(w * follows for w, (follows, _, _) in zip(at.weights, steps, strict=True)) / 3e-4)
    x["together_sum"] = log1p(sum(w * together for w, (_, _, together) in zip(at.weights, steps, strict=True)) / 3e-3)
    x["next_sum_length"] = x["next_sum"] * x["session_length"]
    if recent:
        last = signals.rows[recent[0]]
        x["next_last"], x["next_strict"] = log1p(steps[0][0] / 3e-4), log1p(steps[0][1] / 3e-4)
        x["together_last"] = log1p(steps[0][2] / 3e-3)
        x["next_last_support"] = x["next_last"] * x["last_support"]
        x["together_last_support"] = x["together_last"] * x["last_visits"]
        if at.signal["item"]:
            x["back_last"] = log1p(shares_of(signals, at.row, recent[0])[0] / 3e-4)
        hops = [(one, follows) for one, follows, _ in bigrams(signals, recent[0]) if follows > 0.02]
        x["two_hop"] = log1p(sum(follows * shares_of(signals, one, at.row)[0] for one, follows in hops) / 3e-4)
        near_rows = signals.neighbour_rows[recent[0]].tolist()
        steps_there = [float(last["near_strict"][j]) for j, near in enumerate(near_rows) if near == at.row]
        x["led_there"] = log1p(sum(steps_there)) if last["item"] else 0.0
    if len(recent) > 1:
        x["next_second"], x["together_second"] = log1p(steps[1][0] / 3e-4), log1p(steps[1][2] / 3e-3)
    carted = [at.catalog.index.get(one) for one in items_in_cart(at.profile)]
    x["together_cart"] = log1p(sum(shares_of(signals, one, at.row)[2] for one in carted) / 3e-3)


def popularity_in_words(x: Columns, at: Situation) -> None:
    s, age = at.signal, at.signals_age
    if not s["item"]:
        return
    names = ("popular_hour", "popular_day", "popular_fortnight")
    for name, count, half_life in zip(names, s["popular"], SIGNAL_LIVES.popularity, strict=True):
        x[name] = log1p(float(count) * decayed(age, half_life))
    slow = decayed(age, SIGNAL_LIVES.popularity[2])
    x["popular_newcomer"] = x["popular_day"] / (1 + at.profile["events"])
    x["bought_by_many"], x["carted_by_many"] = log1p(float(s["buys"]) * slow), log1p(float(s["carts"]) * slow)
    x["buy_rate"] = np.log((s["buys"] * slow + 1) / (s["popular"][2] * slow + 20) * 20)
    x["has_signals"] = 1.0
    x["support"], x["touched_age"] = log1p(float(s["strict_out"])) / 5, log1p(age / 3600)


def repeats_in_words(x: Columns, at: Situation) -> None:
    p, s, id = at.profile, at.signal, int(at.item["id"])
    ring = zip(p["recent_item"][::-1], p["recent_time"][::-1], p["recent_kind"][::-1], strict=True)
    mine = [(back, time, kind) for back, (one, time, kind) in enumerate(ring) if one == id]
    if mine:
        back, time, _ = mine[0]
        rate = float(s["repeat"] / max(s["strict_out"], np.float32(1)))
        x["is_last"], x["is_recent"], x["recent_steps"] = float(back == 0), 1.0, 1 / (1 + back)
        x["recent_count"], x["recent_age"] = log1p(len(mine)), log1p(max(0.0, at.now - time) / 60)
        x["repeat_rate_last"], x["repeat_rate_recent"] = rate * x["is_last"], rate
        x["carted_before"] = float(any(kind == ADD for _, _, kind in mine))
    x["in_cart"] = float(id in items_in_cart(p))
    bought = [float(time) for one, time in zip(p["bought_item"], p["bought_time"], strict=True) if one == id]
    if bought:
        x["bought"], x["bought_age"] = 1.0, log1p(max(0.0, at.now - bought[-1]) / DAY_S)
    served = at.serving
    fatigue = zip(served["fatigue_item"], served["fatigue_count"], served["fatigue_time"], strict=True)
    for one, count, time in fatigue:
        if one == np.int64(id).astype(np.int32):
            x["shown_in_vain"] = log1p(count * decayed(max(0.0, at.now - time), DAY_S))
    x["shown_in_vain_popular"] = x["shown_in_vain"] * x["popular_day"]


def taste_in_words(x: Columns, at: Situation) -> None:
    p, item, recent = at.profile, at.item, at.recent
    for kind in ("category", "brand"):
        shares = taste_of(p[kind], p[f"{kind}_weight"], p[f"{kind}_at"], at.now, item[kind])
        for name, share in zip(("half_hour", "day", "month"), shares, strict=True):
            x[f"{kind}_{name}"] = share
        keys = at.catalog.items[kind]
        same = [w for w, a in zip(at.weights, recent, strict=True) if keys[a] == item[kind] != 0]
        x[f"{kind}_recent"] = sum(same) / sum(at.weights) if recent else 0.0
        x[f"{kind}_last"] = float(bool(recent) and keys[recent[0]] == item[kind] != 0)
    x["category_and_brand"] = np.sqrt(x["category_recent"] * x["brand_recent"])
    decay = decayed(max(0.0, at.now - p["activity_at"]), HALF_LIVES[0])
    x["category_activity"] = x["category_half_hour"] * log1p(float(p["activity"][:, 0].sum()) * decay)


def price_in_words(x: Columns, at: Situation) -> None:
    p, price, recent = at.profile, float(at.item["log_price"]), at.recent
    if price and p["price_weight"] > 0:
        mean = p["price_sum"] / p["price_weight"]
        variance = max(0.0, p["price_square"] / p["price_weight"] - mean**2)
        spread = np.sqrt((variance * p["price_weight"] + 0.245) / (p["price_weight"] + 0.5)) + 0.1
        far = (price - mean) / spread
        x["price_distance"], x["price_square"] = min(abs(far), 6.0), min(far**2, 36.0) / 6
        x["price_above"], x["price_below"] = min(max(far, 0.0), 6.0), min(max(-far, 0.0), 6.0)
    if price and recent and at.catalog.items["log_price"][recent[0]]:
        x["price_last"] = min(abs(price - float(at.catalog.items["log_price"][recent[0]])), 5.0)


def title_in_words(x: Columns, at: Situation) -> None:
    p, recent = at.profile, at.recent
    title = {int(word) for word in at.item["word"] if word}
    searched = {int(word): float(w) for word, w in zip(p["word"], p["word_weight"], strict=True) if word}
    decay = decayed(max(0.0, at.now - p["word_at"]), DAY_S)
    x["searched"] = sum(searched.get(word, 0.0) for word in title) * decay
    largest = max([1e-9, *searched.values()])
    x["searched_any"] = max((searched[word] for word in title & searched.keys()), default=0.0) / largest
    if title and recent:
        words = [{int(word) for word in at.catalog.items["word"][a] if word} for a in recent]
        x["title_last"] = len(title & words[0]) / len(title)
        shared = sum(w * len(title & other) for w, other in zip(at.weights, words, strict=True))
        x["title_recent"] = shared / (len(title) * sum(at.weights))
    x["title_category"] = x["title_recent"] * x["category_recent"]


def context_in_words(x: Columns, at: Situation) -> None:
    item = at.item
    if item["added"]:
        days = max(0.0, at.now - item["added"]) / DAY_S
        x["age"], x["is_new"] = log1p(days), float(days < 7)
    x["expires_soon"] = float(item["expires"] - at.now < DAY_S)
    for name, bit in (("categories", GEN_CATEGORY), ("fresh", GEN_FRESH), ("popular", GEN_POPULAR)):
        x[f"from_{name}"] = float(bool(at.bits & bit))


def history_in_words(x: Columns, at: Situation) -> None:
    if at.best_share:
        x["foreseen"] = log1p(at.share / 1e-5)
        x["foreseen_support"] = x["foreseen"] * x["last_support"]
        x["foreseen_length"] = x["foreseen"] * x["session_length"]
        x["foreseen_behind"] = np.log((at.share + 1e-5) / (at.best_share + 1e-5))
        x["foreseen_unknown"] = float(at.is_unknown)


def phi_in_words(at: Situation) -> Columns:
    """Every feature of one shopper and one candidate, computed without a kernel. The order is that of dependencies."""
    x = dict.fromkeys(FEATURES, 0.0)
    session_in_words(x, at)
    neighbours_in_words(x, at)
    popularity_in_words(x, at)
    repeats_in_words(x, at)
    taste_in_words(x, at)
    price_in_words(x, at)
    title_in_words(x, at)
    context_in_words(x, at)
    history_in_words(x, at)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_phi_equals_its_definition_in_plain_python(seed: int) -> None:
    catalog, signals = make_shop(seed)
    profiles, serving = make_shoppers(seed, 8)
    now = profiles["last_seen"] + np.arange(8) * 1700.0
    found = retrieve(profiles, now, catalog, signals, signals.trending(NOW))
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(MAX_CANDIDATES, 0.1), 8).astype(np.float32)
    shares[0] = 0.0  # no prediction for the first shopper
    unknown = (rng.random(len(catalog.items)) < 0.3).astype(np.int8)
    scores = HistoryScores(shares, unknown)
    phi = joint_features(profiles, serving, now, found, catalog, signals, history_scores=scores)
    nonzero: set[str] = set()
    for u in range(8):
        best = float(shares[u, : found.count[u]].max())
        for c in range(found.count[u]):
            r, bits = int(found.rows[u, c]), int(found.generators[u, c])
            at = Situation(
                profiles[u], serving[u], now[u], r, bits, catalog, signals, float(shares[u, c]), best, bool(unknown[r])
            )
            expected = phi_in_words(at)
            assert tuple(expected) == FEATURES
            nonzero.update(name for name, value in expected.items() if value)
            computed = dict(zip(FEATURES, phi[u, c].tolist(), strict=True))
            wrong = {
                name: (computed[name], value)
                for name, value in expected.items()
                if computed[name] != pytest.approx(value, rel=1e-4, abs=1e-5)
            }
            assert not wrong, (u, c, wrong)
        assert not phi[u, found.count[u] :].any()
    assert nonzero == set(FEATURES), set(FEATURES) - nonzero


def test_each_column_constant_is_its_feature_name_in_capitals() -> None:
    constants = {name.upper(): at for at, name in enumerate(FEATURES)}
    assert {name: getattr(columns, name) for name in constants} == constants


def test_signals_do_not_fade_while_nothing_new_is_counted() -> None:
    catalog, signals = make_shop(5)
    profiles, serving = make_shoppers(5, 4)

    def signal_features(now: float) -> Any:
        """Popularity and age of the items at `now`, for unchanged profiles."""
        found = retrieve(profiles, np.full(4, NOW), catalog, signals, signals.trending(NOW))
        phi = joint_features(profiles, serving, np.full(4, now), found, catalog, signals)
        names = ("popular_hour", "popular_day", "popular_fortnight", "bought_by_many", "touched_age")
        return phi[..., [FEATURES.index(name) for name in names]]

    clock = float(signals.rows["time"].max())
    fresh = signal_features(clock)
    assert fresh.any() and np.array_equal(signal_features(clock + 7 * DAY_S), fresh)
    assert not np.array_equal(signal_features(clock - 600), fresh), "an earlier shopper sees them at their own time"
