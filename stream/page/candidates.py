"""Candidates: at most 256 items of the catalogue that a shopper's page may be made of, each with its generators."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream.ids import find
from stream.items.catalog import TITLE_BITS, Catalog, showable
from stream.items.signals import NEAR, Signals
from stream.items.trending import Trending
from stream.jit import njit
from stream.page.json_kernels import (
    GEN_ANCHOR,
    GEN_BOUGHT,
    GEN_CART,
    GEN_CATEGORY,
    GEN_FRESH,
    GEN_HISTORY,
    GEN_NEXT,
    GEN_POPULAR,
    GEN_RECENT,
    GEN_TOGETHER,
)
from stream.profile.fold import is_hidden
from stream.profile.row import CART_ITEMS, TOP_KEYS

Rows = npt.NDArray[np.void]
CANDIDATES = 256
RECENT_ITEMS = 10  # distinct items of the past that candidates are walked from
# Of each generator, at most. Neighbours of the past items first; what is left of the 256 is popular.
WALKED, PROPOSED, OWNED, CATEGORY_ITEMS, FRESH_ITEMS, POPULAR_ITEMS = 120, 50, 16, 60, 24, 64


NO_PROPOSALS = np.empty((0, 0), np.int32)


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


PLACES = 4096  # slots of a hash of rows
assert PLACES > 2 * ((RECENT_ITEMS + CART_ITEMS) * NEAR + CANDIDATES), "a hash of rows is to be half empty"


@njit
def slot_of(keys, row):  # type: ignore[no-untyped-def]
    """Where `row` stands in a hash of rows (a power of two of them, -1 free), or the free slot where it belongs.

    A few KB of one's own, cleared for each shopper, are faster than a column for every item of the catalogue, and cost
    the same however many items there are.
    """
    mask = keys.shape[0] - 1
    at = ((np.int64(row) * 2_654_435_769) >> 16) & mask
    while keys[at] != row and keys[at] != -1:
        at = (at + 1) & mask
    return at


@njit
def _propose(row, generator, p, hides, items, now, bit, keys, places, rows, generators, n, limit):  # type: ignore[no-untyped-def]
    """Add `row` to the candidates, or the generator to a candidate. -> how many there are."""
    if row < 0:
        return n
    slot = slot_of(keys, row)
    if keys[slot] == row and places[slot] >= 0:
        generators[places[slot]] |= generator
        return n
    if n >= limit or not showable(items[row], now, bit) or (hides and is_hidden(p, items[row].id)):
        return n
    keys[slot] = row
    places[slot] = n
    rows[n] = row
    generators[n] = generator
    return n + 1


@njit
def _hides(p):  # type: ignore[no-untyped-def]
    for j in range(p.hidden_item.shape[0]):
        if p.hidden_item[j] != 0:
            return True
    return False


@njit
def _sink(heap, size, at, strength):  # type: ignore[no-untyped-def]
    """Restore the heap (the strongest on top, of equals the first) below `at`."""
    moved = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            strength[heap[other]] > strength[heap[child]]
            or (strength[heap[other]] == strength[heap[child]] and heap[other] < heap[child])
        ):
            child = other
        if strength[moved] > strength[heap[child]] or (
            strength[moved] == strength[heap[child]] and moved < heap[child]
        ):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moved


@njit
def _walk(source, weight, kind, signals, near_row, seen_of, keys, places, gens, walked, strength, kinds, w):  # type: ignore[no-untyped-def]
    """Add the neighbours of `source` to what was walked (rows, strengths, generators). -> how many there are."""
    s = signals[source]
    if s.item == 0:
        return w
    out = max(s.next_out, np.float32(1e-9))
    for j in range(near_row.shape[1]):
        row = near_row[source, j]
        if row < 0:
            continue
        follows = s.near_next[j] / out
        together = s.near_visit[j] / np.sqrt(max(np.float64(s.seen) * seen_of[row], 1e-9))
        if follows <= 0.0 and together <= 0.0:
            continue
        generators = kind
        if follows > 0.0:
            generators |= GEN_NEXT
        if together > 0.0:
            generators |= GEN_TOGETHER
        slot = slot_of(keys, row)
        if keys[slot] == row:
            if places[slot] >= 0:  # one of the last items itself
                gens[places[slot]] |= generators
                continue
            at = -2 - places[slot]
        else:
            keys[slot] = row
            places[slot] = -2 - w  # the place in `walked`, until it is a candidate
            walked[w] = row
            strength[w] = 0.0
            kinds[w] = 0
            at = w
            w += 1
        strength[at] += weight * (follows + 0.5 * together)
        kinds[at] |= generators
    return w


@njit
def _tastes(p, recent, r, items, keys):  # type: ignore[no-untyped-def]
    """The categories that a shopper may like, each once, in ascending order, into keys. -> how many."""
    n = 0
    for j in range(p.category.shape[0] + r):
        key = p.category[j] if j < p.category.shape[0] else items[recent[j - p.category.shape[0]]].category
        at = n
        while at > 0 and keys[at - 1] >= key:
            at -= 1
        if key == 0 or (at < n and keys[at] == key):
            continue
        for k in range(n, at, -1):
            keys[k] = keys[k - 1]
        keys[at] = key
        n += 1
    return n


@njit
def _retrieve(profiles, now, default_locale, index_keys, index_rows, items, signals, near_row, seen_of,  # type: ignore[no-untyped-def]
              overall, categories, by_category, fresh, foreseen, limit, rows, generators, count):  # fmt: skip
    recent = np.empty(RECENT_ITEMS, np.int32)
    cap = (RECENT_ITEMS + CART_ITEMS) * near_row.shape[1]
    walked = np.empty(cap, np.int32)
    strength = np.empty(cap, np.float64)
    kinds = np.empty(cap, np.int32)
    heap = np.empty(cap, np.int32)
    keys, places = np.empty(PLACES, np.int32), np.empty(PLACES, np.int32)
    liked = np.empty(TOP_KEYS + RECENT_ITEMS, np.int32)
    for u in range(profiles.shape[0]):
        p, time = profiles[u], now[u]
        bit = TITLE_BITS[p.locale if p.locale != 0 else default_locale]
        hides = _hides(p)
        mine, gens = rows[u], generators[u]
        keys[:] = -1
        n = 0
        r = distinct_recent(p, index_keys, index_rows, recent)
        # What the shopper touched last, by itself: people come back.
        for a in range(r):
            n = _propose(recent[a], GEN_RECENT, p, hides, items, time, bit, keys, places, mine, gens, n, limit)
        # Neighbours of the last items, and of the cart.
        w = 0
        for a in range(r):
            anchor = GEN_ANCHOR if a == 0 else 0
            w = _walk(
                recent[a], 1.0 / (a + 1.0), anchor, signals, near_row, seen_of, keys, places, gens, walked, strength, kinds, w,
            )  # fmt: skip
        for a in range(p.cart_item.shape[0]):
            if p.cart_quantity[a] == 0 or p.cart_item[a] == 0:
                continue
            source = find(index_keys, index_rows, p.cart_item[a])
            if source >= 0:
                w = _walk(
                    source, 0.5, GEN_CART, signals, near_row, seen_of, keys, places, gens, walked, strength, kinds, w,
                )  # fmt: skip
        # The strongest first: a heap sorts no more of them than are taken.
        for j in range(w):
            heap[j] = j
        for j in range(w // 2 - 1, -1, -1):
            _sink(heap, w, j, strength)
        left, taken = w, 0
        while left > 0 and taken < WALKED:
            at = heap[0]
            left -= 1
            heap[0] = heap[left]
            if left > 0:
                _sink(heap, left, 0, strength)
            before = n
            n = _propose(walked[at], kinds[at], p, hides, items, time, bit, keys, places, mine, gens, n, limit)
            taken += n - before
        if foreseen.shape[0] > 0:
            for j in range(foreseen.shape[1]):
                n = _propose(
                    foreseen[u, j], GEN_HISTORY, p, hides, items, time, bit, keys, places, mine, gens, n, limit
                )
        before = n
        for j in range(p.bought_item.shape[0] - 1, -1, -1):
            if p.bought_item[j] != 0 and n - before < OWNED:
                row = find(index_keys, index_rows, p.bought_item[j])
                n = _propose(row, GEN_BOUGHT, p, hides, items, time, bit, keys, places, mine, gens, n, limit)
        # Leaders of the categories that the shopper likes: of each in turn, as many as its share of the taste.
        total = 0.0
        for j in range(p.category.shape[0]):
            total += p.category_weight[j, 0] + p.category_weight[j, 1]
        for a in range(r):
            total += 1.0 / (a + 1.0)
        if total > 0.0:
            left = CATEGORY_ITEMS
            for i in range(_tastes(p, recent, r, items, liked)):
                c = np.searchsorted(categories, liked[i])
                if c == categories.shape[0] or categories[c] != liked[i]:
                    continue
                taste = 0.0
                for j in range(p.category.shape[0]):
                    if p.category[j] == liked[i]:
                        taste += p.category_weight[j, 0] + p.category_weight[j, 1]
                for a in range(r):
                    if items[recent[a]].category == liked[i]:
                        taste += 1.0 / (a + 1.0)
                wanted = min(left, int(np.ceil(CATEGORY_ITEMS * taste / total))) if taste > 0.02 * total else 0
                before = n
                for j in range(by_category.shape[1]):
                    if n - before >= wanted:
                        break
                    row = by_category[c, j]
                    n = _propose(row, GEN_CATEGORY, p, hides, items, time, bit, keys, places, mine, gens, n, limit)
                left -= n - before
        before = n
        for j in range(fresh.shape[0]):
            if fresh[j] < 0 or n - before >= FRESH_ITEMS:
                break
            n = _propose(fresh[j], GEN_FRESH, p, hides, items, time, bit, keys, places, mine, gens, n, limit)
        before = n
        for j in range(overall.shape[0]):
            if overall[j] < 0 or n - before >= POPULAR_ITEMS:
                break
            n = _propose(overall[j], GEN_POPULAR, p, hides, items, time, bit, keys, places, mine, gens, n, limit)
        for j in range(n, rows.shape[1]):
            mine[j] = -1
            gens[j] = 0
        count[u] = n


def retrieve(
    profiles: Rows,
    now: npt.NDArray[np.float64],
    catalog: Catalog,
    signals: Signals,
    leaders: Trending,
    default_locale: int = 1,
    limit: int = CANDIDATES,
    proposals: npt.NDArray[np.int32] = NO_PROPOSALS,
) -> Candidates:
    """Candidates of U shoppers: profiles (U,) PROFILE, now (U,) s, the newest event time of each.

    Generators: the last items and their neighbours (transitions, co-visits), neighbours of the cart, `proposals` (U, K)
    of a history model (rows of the catalogue, -1 for none; none of them by default), own purchases, leaders of the
    categories of the shopper's taste, fresh items, what is popular. Nothing that is absent, sold out,
    expired, hidden by the shopper, or without a title in the shopper's language.
    """
    signals.fit()
    u = len(profiles)
    rows, generators, count = np.empty((u, limit), np.int32), np.empty((u, limit), np.int32), np.empty(u, np.int32)
    _retrieve(
        profiles, now, default_locale, catalog.index.keys, catalog.index.rows, catalog.items, signals.rows,
        signals.near_row, signals.seen, leaders.overall, leaders.categories, leaders.by_category, leaders.fresh, proposals,
        limit, rows, generators, count,
    )  # fmt: skip
    return Candidates(rows, generators, count)


@njit
def _retrieve_popular(  # type: ignore[no-untyped-def]
    profiles, now, default_locale, items, overall, popularity, fresh, rows, generators, count, scores
):
    limit = rows.shape[1]
    keys, places = np.empty(PLACES, np.int32), np.empty(PLACES, np.int32)
    for u in range(profiles.shape[0]):
        p, time, mine, gens = profiles[u], now[u], rows[u], generators[u]
        bit = TITLE_BITS[p.locale if p.locale != 0 else default_locale]
        hides = _hides(p)
        keys[:] = -1
        n, total = 0, 0.0
        for j in range(fresh.shape[0]):
            if fresh[j] < 0 or n == FRESH_ITEMS:
                break
            n = _propose(fresh[j], GEN_FRESH, p, hides, items, time, bit, keys, places, mine, gens, n, limit)
        for j in range(overall.shape[0]):
            if overall[j] < 0:
                break
            n = _propose(overall[j], GEN_POPULAR, p, hides, items, time, bit, keys, places, mine, gens, n, limit)
            slot = slot_of(keys, overall[j])
            if keys[slot] == overall[j]:
                scores[u, places[slot]] = popularity[j]
        for j in range(n):
            scores[u, j] += np.float32(1e-3)  # before anything was clicked, all are equal
            total += scores[u, j]
        for j in range(n):
            scores[u, j] /= np.float32(total)
        count[u] = n


def retrieve_popular(
    profiles: Rows, now: npt.NDArray[np.float64], catalog: Catalog, leaders: Trending, default_locale: int = 1
) -> tuple[Candidates, npt.NDArray[np.float32]]:
    """Candidates of U shoppers who get the popular page: leaders and fresh items in their language, none they hid.

    -> candidates; (U, CANDIDATES) float32 share of the popularity of all of them, zero beyond the count.
    """
    u = len(profiles)
    rows = np.full((u, CANDIDATES), -1, np.int32)
    generators, count = np.zeros((u, CANDIDATES), np.int32), np.zeros(u, np.int32)
    scores = np.zeros((u, CANDIDATES), np.float32)
    _retrieve_popular(
        profiles, now, default_locale, catalog.items, leaders.overall, leaders.popularity, leaders.fresh, rows, generators,
        count, scores,
    )  # fmt: skip
    return Candidates(rows, generators, count), scores
