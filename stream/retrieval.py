"""Candidates: at most 256 items of the catalogue that a shopper's page may be made of, each with its generators."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream.catalog import TITLE_BITS, Catalog, showable
from stream.ids import find
from stream.jit import njit
from stream.page import (
    GEN_ANCHOR,
    GEN_BOUGHT,
    GEN_CART,
    GEN_CATEGORY,
    GEN_FRESH,
    GEN_NEXT,
    GEN_POPULAR,
    GEN_RECENT,
    GEN_TOGETHER,
)
from stream.profile import is_hidden
from stream.signals import Leaders, Signals

Rows = npt.NDArray[np.void]
CANDIDATES = 256
RECENT_ITEMS = 10  # distinct items of the past that candidates are walked from
# Of each generator, at most. Neighbours of the past items first; what is left of the 256 is popular.
WALKED, OWNED, CATEGORY_ITEMS, FRESH_ITEMS, POPULAR_ITEMS = 120, 16, 60, 24, 64


@dataclass(frozen=True)
class Candidates:
    """Of U shoppers, the strongest signal first; -1 and 0 beyond the count."""

    rows: npt.NDArray[np.int32]  # (U, CANDIDATES) rows of the catalogue
    generators: npt.NDArray[np.int32]  # (U, CANDIDATES) bits GEN_*
    count: npt.NDArray[np.int32]  # (U,)


@njit
def distinct_recent(p, index_keys, index_rows, out):  # type: ignore[no-untyped-def]
    """The shopper's last distinct items, the newest first, as rows of the catalogue into out (RECENT_ITEMS,). -> how many."""
    n = 0
    for j in range(p.recent_item.shape[0] - 1, -1, -1):
        if p.recent_item[j] == 0 or n == out.shape[0]:
            break
        row = find(index_keys, index_rows, p.recent_item[j])
        if row < 0:
            continue
        known = False
        for k in range(n):
            known = known or out[k] == row
        if not known:
            out[n] = row
            n += 1
    return n


@njit
def _propose(row, generator, p, items, now, bit, slot_of, rows, generators, n, limit):  # type: ignore[no-untyped-def]
    """Add `row` to the candidates, or the generator to a candidate. -> how many there are."""
    if row < 0:
        return n
    at = slot_of[row]
    if at >= 0:
        generators[at] |= generator
        return n
    if n >= limit or not showable(items[row], now, bit) or is_hidden(p, items[row].id):
        return n
    slot_of[row] = n
    rows[n] = row
    generators[n] = generator
    return n + 1


@njit
def _retrieve(profiles, now, bits, index_keys, index_rows, items, signals, near_row,  # type: ignore[no-untyped-def]
              overall, categories, by_category, fresh, slot_of, limit, rows, generators, count):  # fmt: skip
    recent = np.empty(RECENT_ITEMS, np.int32)
    cap = (RECENT_ITEMS + 16) * near_row.shape[1]
    walked = np.empty(cap, np.int32)
    strength = np.empty(cap, np.float64)
    kinds = np.empty(cap, np.int32)
    for u in range(profiles.shape[0]):
        p, time, bit = profiles[u], now[u], bits[u]
        mine, gens = rows[u], generators[u]
        n = 0
        r = distinct_recent(p, index_keys, index_rows, recent)
        # What the shopper touched last, by itself: people come back.
        for a in range(r):
            n = _propose(recent[a], GEN_RECENT, p, items, time, bit, slot_of, mine, gens, n, limit)
        # Neighbours of the last items, and of the cart. slot_of holds the place in `walked` while it is being filled.
        w = 0
        for a in range(r + p.cart_item.shape[0]):
            in_cart = a >= r
            if in_cart:
                if p.cart_quantity[a - r] == 0 or p.cart_item[a - r] == 0:
                    continue
                source = find(index_keys, index_rows, p.cart_item[a - r])
                if source < 0:
                    continue
                weight = 0.5
            else:
                source = recent[a]
                weight = 1.0 / (a + 1.0)
            s = signals[source]
            if s.item == 0:
                continue
            for j in range(near_row.shape[1]):
                row = near_row[source, j]
                if row < 0:
                    continue
                follows = s.near_next[j] / max(s.next_out, np.float32(1e-9))
                together = s.near_visit[j] / np.sqrt(max(np.float64(s.seen) * signals[row].seen, 1e-9))
                if follows <= 0.0 and together <= 0.0:
                    continue
                kind = GEN_CART if in_cart else 0
                if follows > 0.0:
                    kind |= GEN_NEXT
                if together > 0.0:
                    kind |= GEN_TOGETHER
                if a == 0 and not in_cart:
                    kind |= GEN_ANCHOR
                known = slot_of[row]
                if known >= 0:  # one of the last items itself
                    gens[known] |= kind
                    continue
                at = -2 - known if known < -1 else w
                if at == w:
                    slot_of[row] = -2 - w
                    walked[w] = row
                    strength[w] = 0.0
                    kinds[w] = 0
                    w += 1
                strength[at] += weight * (follows + 0.5 * together)
                kinds[at] |= kind
        for j in range(w):
            slot_of[walked[j]] = -1
        order = np.argsort(-strength[:w], kind="mergesort")
        taken = 0
        for j in range(w):
            if taken == WALKED:
                break
            before = n
            n = _propose(walked[order[j]], kinds[order[j]], p, items, time, bit, slot_of, mine, gens, n, limit)
            taken += n - before
        before = n
        for j in range(p.bought_item.shape[0] - 1, -1, -1):
            if p.bought_item[j] != 0 and n - before < OWNED:
                row = find(index_keys, index_rows, p.bought_item[j])
                n = _propose(row, GEN_BOUGHT, p, items, time, bit, slot_of, mine, gens, n, limit)
        # Leaders of the categories that the shopper likes: of each in turn, as many as its share of the taste.
        total = 0.0
        for j in range(p.category.shape[0]):
            total += p.category_weight[j, 0] + p.category_weight[j, 1]
        for a in range(r):
            total += 1.0 / (a + 1.0)
        if total > 0.0:
            left = CATEGORY_ITEMS
            for c in range(categories.shape[0]):
                taste = 0.0
                for j in range(p.category.shape[0]):
                    if p.category[j] == categories[c]:
                        taste += p.category_weight[j, 0] + p.category_weight[j, 1]
                for a in range(r):
                    if items[recent[a]].category == categories[c]:
                        taste += 1.0 / (a + 1.0)
                wanted = min(left, int(np.ceil(CATEGORY_ITEMS * taste / total))) if taste > 0.02 * total else 0
                before = n
                for j in range(by_category.shape[1]):
                    if n - before >= wanted:
                        break
                    n = _propose(by_category[c, j], GEN_CATEGORY, p, items, time, bit, slot_of, mine, gens, n, limit)
                left -= n - before
        before = n
        for j in range(fresh.shape[0]):
            if fresh[j] < 0 or n - before >= FRESH_ITEMS:
                break
            n = _propose(fresh[j], GEN_FRESH, p, items, time, bit, slot_of, mine, gens, n, limit)
        before = n
        for j in range(overall.shape[0]):
            if overall[j] < 0 or n - before >= POPULAR_ITEMS:
                break
            n = _propose(overall[j], GEN_POPULAR, p, items, time, bit, slot_of, mine, gens, n, limit)
        for j in range(n):
            slot_of[mine[j]] = -1
        count[u] = n


def retrieve(
    profiles: Rows,
    now: npt.NDArray[np.float64],
    catalog: Catalog,
    signals: Signals,
    leaders: Leaders,
    default_locale: int = 1,
    limit: int = CANDIDATES,
) -> Candidates:
    """Candidates of U shoppers: profiles (U,) PROFILE, now (U,) s, the newest event time of each.

    Generators: the last items and their neighbours (transitions, co-visits), neighbours of the cart, own purchases,
    leaders of the categories of the shopper's taste, fresh items, what is popular. Nothing that is absent, sold out,
    expired, hidden by the shopper, or without a title in the shopper's language.
    """
    signals.fit()
    u = len(profiles)
    rows = np.full((u, limit), -1, np.int32)
    generators, count = np.zeros((u, limit), np.int32), np.zeros(u, np.int32)
    locales = np.where(profiles["locale"] == 0, default_locale, profiles["locale"])
    _retrieve(
        profiles, now, TITLE_BITS[locales], catalog.index.keys, catalog.index.rows, catalog.items, signals.rows,
        signals.near_row, leaders.overall, leaders.categories, leaders.by_category, leaders.fresh,
        np.full(len(catalog.items), -1, np.int32), limit, rows, generators, count,
    )  # fmt: skip
    return Candidates(rows, generators, count)


@njit
def _retrieve_popular(profiles, now, bits, items, overall, popularity, fresh, slot_of, rows, generators, count, scores):  # type: ignore[no-untyped-def]
    limit = rows.shape[1]
    for u in range(profiles.shape[0]):
        n, total = 0, 0.0
        for j in range(fresh.shape[0]):
            if fresh[j] < 0 or n == FRESH_ITEMS:
                break
            n = _propose(
                fresh[j], GEN_FRESH, profiles[u], items, now[u], bits[u], slot_of, rows[u], generators[u], n, limit
            )
        for j in range(overall.shape[0]):
            if overall[j] < 0:
                break
            n = _propose(
                overall[j], GEN_POPULAR, profiles[u], items, now[u], bits[u], slot_of, rows[u], generators[u], n, limit
            )
            at = slot_of[overall[j]]
            if at >= 0:
                scores[u, at] = popularity[j]
        for j in range(n):
            scores[u, j] += np.float32(1e-3)  # before anything was clicked, all are equal
            total += scores[u, j]
        for j in range(n):
            scores[u, j] /= np.float32(total)
            slot_of[rows[u, j]] = -1
        count[u] = n


def retrieve_popular(
    profiles: Rows, now: npt.NDArray[np.float64], catalog: Catalog, leaders: Leaders, default_locale: int = 1
) -> tuple[Candidates, npt.NDArray[np.float32]]:
    """Candidates of U shoppers who get the popular page: leaders and fresh items in their language, none they hid.

    -> candidates; (U, CANDIDATES) float32 share of the popularity of all of them, zero beyond the count.
    """
    u = len(profiles)
    rows = np.full((u, CANDIDATES), -1, np.int32)
    generators, count = np.zeros((u, CANDIDATES), np.int32), np.zeros(u, np.int32)
    scores = np.zeros((u, CANDIDATES), np.float32)
    locales = np.where(profiles["locale"] == 0, default_locale, profiles["locale"])
    _retrieve_popular(
        profiles, now, TITLE_BITS[locales], catalog.items, leaders.overall, leaders.popularity, leaders.fresh,
        np.full(len(catalog.items), -1, np.int32), rows, generators, count, scores,
    )  # fmt: skip
    return Candidates(rows, generators, count), scores
