"""Retrieval: at most 256 items of the catalogue as candidates for a shopper's page, each with its generators."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream.codes import (
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
from stream.ids import find
from stream.items.catalog import TITLE_BITS, Catalog, showable
from stream.items.signals import MAX_NEIGHBOURS, Signals
from stream.items.trending import Trending
from stream.jit import njit
from stream.profile.fold import is_hidden
from stream.profile.row import CART_ITEMS, TOP_KEYS
from stream.types import F32, F64, I32, I64, Row, Rows

MAX_CANDIDATES = 256
RECENT_ITEMS = 10  # distinct items of the shopper's past whose neighbours become candidates
# Most candidates of each generator. Neighbours of past items come first; popular items fill what is left of the 256.
MAX_EXPANDED, MAX_PROPOSALS, MAX_BOUGHT, MAX_CATEGORY, MAX_FRESH, MAX_POPULAR = 120, 50, 16, 60, 24, 64
MIN_TASTE_SHARE = 0.02  # categories with a smaller share of the shopper's taste contribute no candidates
CART_WEIGHT = 0.5  # of the neighbours of an item in the cart; those of the last item have weight 1

NO_PROPOSALS = np.empty((0, 0), np.int32)

HASH_SLOTS = 4096  # of a hash of catalogue rows
assert HASH_SLOTS > 2 * ((RECENT_ITEMS + CART_ITEMS) * MAX_NEIGHBOURS + MAX_CANDIDATES), (
    "a hash of catalogue rows must stay at least half empty"
)


@dataclass(frozen=True)
class Candidates:
    """Candidates of U shoppers, the strongest generator first; -1 and 0 beyond the count."""

    rows: I32  # (U, MAX_CANDIDATES) rows of the catalogue
    generators: I32  # (U, MAX_CANDIDATES) bits GEN_*
    count: I32  # (U,)


class _Draft(NamedTuple):
    """One shopper's candidates while a kernel collects them, and what makes an item eligible.

    Passing it instead of single arguments costs 3 to 7% of retrieval, about 1% of a page (`_retrieve` over 400
    shoppers, four alternating runs). Reading its members before a loop is slower still.
    """

    profile: Row
    has_hidden: bool
    now: float  # s
    title_bit: int
    items: Rows  # (capacity,) ITEM
    keys: I32  # (HASH_SLOTS,) hash of the rows met so far, -1 free
    places: I32  # (HASH_SLOTS,) index in `rows`; -2 - k for the k-th expanded neighbour that is no candidate yet
    rows: I32  # (limit,)
    generators: I32  # (limit,)


class _Expansion(NamedTuple):
    """Distinct neighbours of a shopper's items."""

    rows: I32
    strength: F64
    generators: I32


@njit
def distinct_recent(p: Row, index_keys: I64, index_rows: I32, out: I32) -> int:
    """Write the shopper's last distinct items, newest first, as catalogue rows into out; return how many.

    p: PROFILE row; out (RECENT_ITEMS,).
    """
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
def row_slot(keys: I32, row: int) -> int:
    """Slot of `row` in a hash of catalogue rows (a power of two of slots, -1 free), or the free slot for it.

    A hash of a few KB, cleared for each shopper, is faster than a column over the whole catalogue. Its cost does not
    depend on the number of items.
    """
    mask = keys.shape[0] - 1
    at: int = ((np.int64(row) * 2_654_435_769) >> 16) & mask
    while keys[at] != row and keys[at] != -1:
        at = (at + 1) & mask
    return at


@njit
def _has_hidden(p: Row) -> bool:
    """Whether the shopper has hidden any item."""
    for j in range(p.hidden_item.shape[0]):
        if p.hidden_item[j] != 0:
            return True
    return False


@njit
def add_candidate(row: int, generator: int, draft: _Draft, n: int) -> int:
    """Add catalogue `row` to the n candidates, or `generator` to a candidate that exists; return the new count."""
    if row < 0:
        return n
    slot = row_slot(draft.keys, row)
    if draft.keys[slot] == row and draft.places[slot] >= 0:
        draft.generators[draft.places[slot]] |= generator
        return n
    if n >= draft.rows.shape[0] or not showable(draft.items[row], draft.now, draft.title_bit):
        return n
    if draft.has_hidden and is_hidden(draft.profile, draft.items[row].id):
        return n
    draft.keys[slot] = row
    draft.places[slot] = n
    draft.rows[n] = row
    draft.generators[n] = generator
    return n + 1


@njit
def _add_listed(rows: I32, generator: int, max_new: int, draft: _Draft, n: int) -> int:
    """Add rows (k,) in order, until -1 or until `max_new` are new; return the new count."""
    before = n
    for j in range(rows.shape[0]):
        if rows[j] < 0 or n - before >= max_new:
            break
        n = add_candidate(rows[j], generator, draft, n)
    return n


@njit
def sift_down(heap: I32, size: int, at: int, strength: F64) -> None:
    """Restore the max-heap of indices into `strength` below `at`; of equal strengths the lower index is first."""
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
def expand_neighbours(
    source: int,
    weight: float,
    kind: int,
    signals: Rows,
    neighbour_rows: I32,
    sessions: F32,
    draft: _Draft,
    expansion: _Expansion,
    n: int,
) -> int:
    """Add the neighbours of the catalogue row `source` to the n expanded rows, and return the new count.

    A neighbour's strength grows by weight * (share of transitions + 0.5 * cosine of co-visits). signals (capacity,)
    SIGNAL; neighbour_rows (capacity, MAX_NEIGHBOURS); sessions (capacity,); kind: generator bits that all get.
    """
    s = signals[source]
    if s.item == 0:
        return n
    out = max(s.next_out, np.float32(1e-9))
    for j in range(neighbour_rows.shape[1]):
        row = neighbour_rows[source, j]
        if row < 0:
            continue
        follows = s.near_next[j] / out
        together = s.near_visit[j] / np.sqrt(max(np.float64(s.seen) * sessions[row], 1e-9))
        if follows <= 0.0 and together <= 0.0:
            continue
        generators = kind
        if follows > 0.0:
            generators |= GEN_NEXT
        if together > 0.0:
            generators |= GEN_TOGETHER
        slot = row_slot(draft.keys, row)
        if draft.keys[slot] == row:
            if draft.places[slot] >= 0:  # a candidate: one of the shopper's last items
                draft.generators[draft.places[slot]] |= generators
                continue
            at = int(-2 - draft.places[slot])
        else:
            draft.keys[slot] = row
            draft.places[slot] = -2 - n
            expansion.rows[n] = row
            expansion.strength[n] = 0.0
            expansion.generators[n] = 0
            at = n
            n += 1
        expansion.strength[at] += weight * (follows + 0.5 * together)
        expansion.generators[at] |= generators
    return n


@njit
def _expand_past(
    recent: I32,
    n_recent: int,
    index_keys: I64,
    index_rows: I32,
    signals: Rows,
    neighbour_rows: I32,
    sessions: F32,
    draft: _Draft,
    expansion: _Expansion,
) -> int:
    """Expand the last items (the a-th with weight 1 / (a + 1)) and the cart; return the number of expanded rows."""
    n = 0
    for a in range(n_recent):
        anchor = GEN_ANCHOR if a == 0 else 0
        n = expand_neighbours(
            recent[a], 1.0 / (a + 1.0), anchor, signals, neighbour_rows, sessions, draft, expansion, n
        )
    p = draft.profile
    for j in range(p.cart_item.shape[0]):
        if p.cart_quantity[j] == 0 or p.cart_item[j] == 0:
            continue
        source = find(index_keys, index_rows, p.cart_item[j])
        if source >= 0:
            n = expand_neighbours(source, CART_WEIGHT, GEN_CART, signals, neighbour_rows, sessions, draft, expansion, n)
    return n


@njit
def _add_strongest(expansion: _Expansion, size: int, heap: I32, draft: _Draft, n: int) -> int:
    """Add the strongest MAX_EXPANDED of `size` expanded rows; return the new count. heap: scratch space.

    A heap sorts only as many as are taken.
    """
    for j in range(size):
        heap[j] = j
    for j in range(size // 2 - 1, -1, -1):
        sift_down(heap, size, j, expansion.strength)
    left, before = size, n
    while left > 0 and n - before < MAX_EXPANDED:
        at = heap[0]
        left -= 1
        heap[0] = heap[left]
        if left > 0:
            sift_down(heap, left, 0, expansion.strength)
        n = add_candidate(expansion.rows[at], expansion.generators[at], draft, n)
    return n


@njit
def _liked_categories(p: Row, recent: I32, n_recent: int, items: Rows, out: I32) -> int:
    """Write the categories of the profile and of the last items, distinct and ascending, into out; return how many."""
    n = 0
    for j in range(p.category.shape[0] + n_recent):
        key = p.category[j] if j < p.category.shape[0] else items[recent[j - p.category.shape[0]]].category
        at = n
        while at > 0 and out[at - 1] >= key:
            at -= 1
        if key == 0 or (at < n and out[at] == key):
            continue
        for k in range(n, at, -1):
            out[k] = out[k - 1]
        out[at] = key
        n += 1
    return n


@njit
def _add_category_leaders(
    recent: I32, n_recent: int, categories: I32, by_category: I32, liked: I32, draft: _Draft, n: int
) -> int:
    """Add the trending items of the categories that the shopper likes; return the new count. liked: scratch space.

    Each category gets as many of MAX_CATEGORY as its share of the taste: weights of the profile, and 1 / (a + 1) for
    the a-th of the last items.
    """
    p, items = draft.profile, draft.items
    total = 0.0
    for j in range(p.category.shape[0]):
        total += p.category_weight[j, 0] + p.category_weight[j, 1]
    for a in range(n_recent):
        total += 1.0 / (a + 1.0)
    if not total > 0.0:
        return n
    left = MAX_CATEGORY
    for i in range(_liked_categories(p, recent, n_recent, items, liked)):
        c = np.searchsorted(categories, liked[i])
        if c == categories.shape[0] or categories[c] != liked[i]:
            continue
        taste = 0.0
        for j in range(p.category.shape[0]):
            if p.category[j] == liked[i]:
                taste += p.category_weight[j, 0] + p.category_weight[j, 1]
        for a in range(n_recent):
            if items[recent[a]].category == liked[i]:
                taste += 1.0 / (a + 1.0)
        wanted = 0
        if taste > MIN_TASTE_SHARE * total:
            wanted = min(left, int(np.ceil(MAX_CATEGORY * taste / total)))
        before = n
        for j in range(by_category.shape[1]):
            if n - before >= wanted:
                break
            n = add_candidate(by_category[c, j], GEN_CATEGORY, draft, n)
        left -= n - before
    return n


@njit
def _add_bought(index_keys: I64, index_rows: I32, draft: _Draft, n: int) -> int:
    """Add the shopper's purchases, newest first, up to MAX_BOUGHT; return the new count."""
    p, before = draft.profile, n
    for j in range(p.bought_item.shape[0] - 1, -1, -1):
        if p.bought_item[j] != 0 and n - before < MAX_BOUGHT:
            n = add_candidate(find(index_keys, index_rows, p.bought_item[j]), GEN_BOUGHT, draft, n)
    return n


@njit
def _retrieve(
    profiles: Rows,
    now: F64,
    default_locale: int,
    index_keys: I64,
    index_rows: I32,
    items: Rows,
    signals: Rows,
    neighbour_rows: I32,
    sessions: F32,
    overall: I32,
    categories: I32,
    by_category: I32,
    fresh: I32,
    proposals: I32,
    rows: I32,
    generators: I32,
    count: I32,
) -> None:
    """Kernel of `retrieve`: fills rows and generators (U, limit) and count (U,).

    Oracle: test_candidates_are_showable_distinct_and_keep_their_generators and the page path's golden payloads.
    """
    recent = np.empty(RECENT_ITEMS, np.int32)
    capacity = (RECENT_ITEMS + CART_ITEMS) * neighbour_rows.shape[1]
    expansion = _Expansion(np.empty(capacity, np.int32), np.empty(capacity, np.float64), np.empty(capacity, np.int32))
    heap = np.empty(capacity, np.int32)
    keys, places = np.empty(HASH_SLOTS, np.int32), np.empty(HASH_SLOTS, np.int32)
    liked = np.empty(TOP_KEYS + RECENT_ITEMS, np.int32)
    for u in range(profiles.shape[0]):
        p = profiles[u]
        title_bit = TITLE_BITS[p.locale if p.locale != 0 else default_locale]
        draft = _Draft(p, _has_hidden(p), now[u], title_bit, items, keys, places, rows[u], generators[u])
        keys[:] = -1
        n = 0
        n_recent = distinct_recent(p, index_keys, index_rows, recent)
        # The last items themselves: shoppers return to them.
        for a in range(n_recent):
            n = add_candidate(recent[a], GEN_RECENT, draft, n)
        size = _expand_past(
            recent, n_recent, index_keys, index_rows, signals, neighbour_rows, sessions, draft, expansion
        )
        n = _add_strongest(expansion, size, heap, draft, n)
        if proposals.shape[0] > 0:
            for j in range(proposals.shape[1]):
                n = add_candidate(proposals[u, j], GEN_HISTORY, draft, n)
        n = _add_bought(index_keys, index_rows, draft, n)
        n = _add_category_leaders(recent, n_recent, categories, by_category, liked, draft, n)
        n = _add_listed(fresh, GEN_FRESH, MAX_FRESH, draft, n)
        n = _add_listed(overall, GEN_POPULAR, MAX_POPULAR, draft, n)
        for j in range(n, rows.shape[1]):
            rows[u, j] = -1
            generators[u, j] = 0
        count[u] = n


def retrieve(
    profiles: Rows,
    now: F64,
    catalog: Catalog,
    signals: Signals,
    trending: Trending,
    default_locale: int = 1,
    limit: int = MAX_CANDIDATES,
    proposals: I32 = NO_PROPOSALS,
) -> Candidates:
    """Candidates of U shoppers: profiles (U,) PROFILE; now (U,) s, the newest event time of each shopper.

    Generators: the last items and their neighbours (transitions, co-visits), neighbours of the cart, `proposals` of a
    history model, own purchases, trending items of the liked categories, fresh items, trending items overall. Items
    that are absent, sold out, expired, hidden by the shopper or without a title in their language are left out.
    proposals (U, K): rows of the catalogue, -1 for none.
    """
    signals.grow_to_catalog()
    u = len(profiles)
    rows, generators, count = np.empty((u, limit), np.int32), np.empty((u, limit), np.int32), np.empty(u, np.int32)
    _retrieve(
        profiles, now, default_locale, catalog.index.keys, catalog.index.rows, catalog.items, signals.rows,
        signals.neighbour_rows, signals.seen, trending.overall, trending.categories, trending.by_category,
        trending.fresh, proposals, rows, generators, count,
    )  # fmt: skip
    return Candidates(rows, generators, count)


@njit
def _retrieve_popular(
    profiles: Rows,
    now: F64,
    default_locale: int,
    items: Rows,
    overall: I32,
    popularity: F32,
    fresh: I32,
    rows: I32,
    generators: I32,
    count: I32,
    scores: F32,
) -> None:
    """Kernel of `retrieve_popular`: fills rows, generators and scores (U, MAX_CANDIDATES) and count (U,)."""
    keys, places = np.empty(HASH_SLOTS, np.int32), np.empty(HASH_SLOTS, np.int32)
    for u in range(profiles.shape[0]):
        p = profiles[u]
        title_bit = TITLE_BITS[p.locale if p.locale != 0 else default_locale]
        draft = _Draft(p, _has_hidden(p), now[u], title_bit, items, keys, places, rows[u], generators[u])
        keys[:] = -1
        n = _add_listed(fresh, GEN_FRESH, MAX_FRESH, draft, 0)
        for j in range(overall.shape[0]):
            if overall[j] < 0:
                break
            n = add_candidate(overall[j], GEN_POPULAR, draft, n)
            slot = row_slot(keys, overall[j])
            if keys[slot] == overall[j]:
                scores[u, places[slot]] = popularity[j]
        total = 0.0
        for j in range(n):
            scores[u, j] += np.float32(1e-3)  # all are equal before the first click
            total += scores[u, j]
        for j in range(n):
            scores[u, j] /= np.float32(total)
        count[u] = n


def retrieve_popular(
    profiles: Rows, now: F64, catalog: Catalog, trending: Trending, default_locale: int = 1
) -> tuple[Candidates, F32]:
    """Candidates of U shoppers who get the popular page, and their scores (U, MAX_CANDIDATES).

    Candidates are trending and fresh items that the shopper may see. A score is the candidate's share of the popularity
    of all candidates, zero beyond the count.
    """
    u = len(profiles)
    rows = np.full((u, MAX_CANDIDATES), -1, np.int32)
    generators, count = np.zeros((u, MAX_CANDIDATES), np.int32), np.zeros(u, np.int32)
    scores = np.zeros((u, MAX_CANDIDATES), np.float32)
    _retrieve_popular(
        profiles, now, default_locale, catalog.items, trending.overall, trending.popularity, trending.fresh,
        rows, generators, count, scores,
    )  # fmt: skip
    return Candidates(rows, generators, count), scores
