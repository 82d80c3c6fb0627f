"""Page assembly: scored candidates become slots, with a cap per brand and one exploring position."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream.codes import (
    GEN_ANCHOR,
    GEN_BOUGHT,
    GEN_CATEGORY,
    GEN_FRESH,
    GEN_POPULAR,
    MAX_PAGE_ITEMS,
    REASON_BOUGHT_BEFORE,
    REASON_EXPLORING,
    REASON_NEW,
    REASON_POPULAR,
    SLOT_BECAUSE_VIEWED,
    SLOT_BUY_AGAIN,
    SLOT_CATEGORIES,
    SLOT_FOR_YOU,
    SLOT_FRESH,
    SLOT_TRENDING,
    SLOTS,
)
from stream.items.catalog import Catalog
from stream.jit import njit
from stream.page.candidates import Candidates
from stream.types import F32, I8, I32, I64, Bools, Row, Rows

# Columns of the layout. GENERATOR: the generator that makes an item eligible, 0 for any. MIN_ITEMS: a slot with fewer
# items is left out.
_SLOT, _GENERATOR, _PERSONAL_ITEMS, _POPULAR_ITEMS, _MIN_ITEMS = range(5)
# In page order.
_LAYOUT = np.array(
    [
        (SLOT_FOR_YOU, 0, 12, 0, 1),
        (SLOT_BECAUSE_VIEWED, GEN_ANCHOR, 8, 0, 2),
        (SLOT_TRENDING, GEN_POPULAR, 6, 36, 1),
        (SLOT_CATEGORIES, GEN_CATEGORY, 6, 0, 2),
        (SLOT_FRESH, GEN_FRESH, 4, 4, 1),
        (SLOT_BUY_AGAIN, GEN_BOUGHT, 4, 0, 1),
    ],
    np.int64,
)
assert len(_LAYOUT) == len(SLOTS) - 1
assert _LAYOUT[:, _PERSONAL_ITEMS].sum() <= MAX_PAGE_ITEMS and _LAYOUT[:, _POPULAR_ITEMS].sum() <= MAX_PAGE_ITEMS
UNIFORM_SHARE = 0.2  # of the exploring draw; the rest follows the model's probabilities

PLACED = np.dtype(
    [
        ("row", "i4"),  # the item's row in the catalogue
        ("candidate", "i4"),  # its column among the shopper's candidates
        ("score", "f4"),  # softmax among the items shown in its slot: sums to 1 over the slot
        ("propensity", "f4"),  # chance that the policy shows this item at this position, given the positions before it
        ("weight", "f4"),  # of the reason
        ("reason_row", "i4"),  # row of the item that the reason refers to; -1 none
        ("slot", "i1"),  # code
        ("position", "i1"),  # 1-based within the slot
        ("explored", "i1"),  # 1 if the exploring draw chose it
        ("reason", "i1"),  # code
    ]
)


class PageRules(NamedTuple):
    brand_cap: int = 2  # most items of one brand in a slot
    explore: bool = True

    def applied(self) -> list[str]:
        """The rules in the form of a page's `rules_applied`."""
        return [f"brand_cap:{self.brand_cap}", f"explore:{int(self.explore)}"]


@dataclass(frozen=True)
class Placements:
    placed: Rows  # (U, MAX_PAGE_ITEMS) PLACED, in page order
    count: I32  # (U,)


@njit
def uniform(seed: int) -> float:
    """Number in [0, 1) that depends only on the int64 `seed`: splitmix64 (Steele, Lea, Flood 2014)."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@njit
def _is_brand_full(placed: Rows, start: int, end: int, brands: I32, candidate: int, cap: int) -> bool:
    """Whether placed[start:end] already has `cap` items of the candidate's brand. Brand 0 is unknown and has no cap."""
    brand = brands[candidate]
    if brand == 0:
        return False
    same = 0
    for j in range(start, end):
        if brands[placed[j].candidate] == brand:
            same += 1
    return same >= cap


@njit
def _place(at: Row, row: int, candidate: int, score: float, slot: int, position: int, reason: int) -> None:
    """Fill the PLACED row `at`; its propensity is 1."""
    at.row, at.candidate, at.score, at.propensity = row, candidate, score, np.float32(1.0)
    at.reason_row, at.slot, at.position, at.explored, at.reason = -1, slot, position, 0, reason
    at.weight = 0.0


@njit
def _fill_slot(
    placed: Rows,
    start: int,
    size: int,
    slot: int,
    generator: int,
    order: I64,
    rows: I32,
    generators: I32,
    scores: F32,
    brands: I32,
    used: Bools,
    brand_cap: int,
) -> int:
    """Place up to `size` of the best unused candidates from placed[start] on, and return the end. Mutates placed, used.

    order (n,): candidates by descending score; rows, generators, scores, brands, used: (C,) by candidate.
    """
    end = start
    for i in range(order.shape[0]):
        if end - start == size:
            break
        c = order[i]
        g = generators[c]
        # An item that the shopper has bought belongs to its own slot, not among new ideas.
        if used[c] or (generator != 0 and not g & generator) or (slot != SLOT_BUY_AGAIN and g & GEN_BOUGHT):
            continue
        if _is_brand_full(placed, start, end, brands, c, brand_cap):
            continue
        reason = REASON_POPULAR
        if slot == SLOT_FRESH:
            reason = REASON_NEW
        elif slot == SLOT_BUY_AGAIN:
            reason = REASON_BOUGHT_BEFORE
        _place(placed[end], rows[c], c, scores[c], slot, end - start + 1, reason)
        used[c] = True
        end += 1
    return end


@njit
def _place_explored(
    placed: Rows,
    at: int,
    seed: int,
    n: int,
    rows: I32,
    generators: I32,
    scores: F32,
    brands: I32,
    used: Bools,
    brand_cap: int,
) -> bool:
    """Draw an item for the free position placed[at], the last of its slot. Return False if no candidate is eligible.

    Eligible are the candidates that are on no other position, so no other position depends on the draw and its
    propensity is exact. rows, generators, scores, brands, used: (C,) by candidate, of which the first n count.
    """
    previous = placed[at - 1]
    start = at - previous.position
    pool, mass = 0, 0.0
    for c in range(n):
        if used[c] or generators[c] & GEN_BOUGHT or _is_brand_full(placed, start, at, brands, c, brand_cap):
            continue
        pool += 1
        mass += scores[c]
    if pool == 0:
        return False
    left, chance, drawn = uniform(seed), 0.0, 0
    for c in range(n):
        if used[c] or generators[c] & GEN_BOUGHT or _is_brand_full(placed, start, at, brands, c, brand_cap):
            continue
        chance = UNIFORM_SHARE / pool
        chance += (1.0 - UNIFORM_SHARE) * (scores[c] / mass if mass > 0.0 else 1.0 / pool)
        left -= chance
        drawn = c
        if left < 0.0:
            break
    explored = placed[at]
    _place(explored, rows[drawn], drawn, scores[drawn], previous.slot, previous.position + 1, REASON_EXPLORING)
    explored.propensity = chance
    explored.explored = 1
    return True


@njit
def _normalise_scores(placed: Rows, total: int) -> None:
    """Turn P(C|U) of placed[:total] into probabilities among the items of the same slot, in place."""
    start = 0
    while start < total:
        end, mass = start, 0.0
        while end < total and placed[end].slot == placed[start].slot:
            mass += placed[end].score
            end += 1
        for j in range(start, end):
            placed[j].score = placed[j].score / mass if mass > 0.0 else 1.0 / (end - start)
        start = end


@njit
def _assemble(
    rows: I32,
    generators: I32,
    count: I32,
    scores: F32,
    personal: Bools,
    seeds: I64,
    items: Rows,
    layout: I64,
    brand_cap: int,
    explore: bool,
    placed: Rows,
    placed_count: I32,
) -> None:
    """Kernel of `assemble`: fills placed (U, MAX_PAGE_ITEMS) and placed_count (U,).

    Oracle: the rules that `test_every_page_keeps_the_rules` checks on random candidates.
    """
    used = np.zeros(rows.shape[1], np.bool_)
    brands = np.empty(rows.shape[1], np.int32)
    for u in range(rows.shape[0]):
        n, page, total = count[u], placed[u], 0
        order = np.argsort(-scores[u, :n], kind="mergesort")
        used[:] = False
        for c in range(n):
            brands[c] = items[rows[u, c]].brand
        explored_at = -1  # the exploring position: the last of the first slot that has items
        for s in range(layout.shape[0]):
            slot, generator, min_items = layout[s, _SLOT], layout[s, _GENERATOR], layout[s, _MIN_ITEMS]
            size = layout[s, _PERSONAL_ITEMS] if personal[u] else layout[s, _POPULAR_ITEMS]
            if explore and explored_at < 0 and size > 0:
                size -= 1
            start = total
            total = _fill_slot(
                page, start, size, slot, generator, order, rows[u], generators[u], scores[u], brands, used, brand_cap
            )
            if total - start < min_items:
                for j in range(start, total):
                    used[page[j].candidate] = False
                total = start
            elif explore and explored_at < 0:
                explored_at = total
                total += 1  # reserved: the draw comes last
        if explored_at >= 0 and not _place_explored(
            page, explored_at, seeds[u], n, rows[u], generators[u], scores[u], brands, used, brand_cap
        ):
            for j in range(explored_at, total - 1):
                page[j] = page[j + 1]
            total -= 1
        placed_count[u] = total
        _normalise_scores(page, total)


def assemble(
    candidates: Candidates, scores: F32, personal: Bools, seeds: I64, catalog: Catalog, rules: PageRules
) -> Placements:
    """Fill the slots of U pages; each item appears once on a page.

    scores (U, C) are P(C|U); personal (U,) selects the layout; seeds (U,) determine the exploring draws.
    Every position but one takes the best candidate left; its propensity is 1 given the page's other items. The last
    position of the first slot explores. It draws from all eligible candidates that no other position shows: uniformly
    with probability UNIFORM_SHARE, otherwise in proportion to P(C|U). Its propensity is the chance of that draw.
    """
    placed = np.zeros((len(personal), MAX_PAGE_ITEMS), PLACED)
    count = np.zeros(len(personal), np.int32)
    _assemble(
        candidates.rows, candidates.generators, candidates.count, scores, personal, seeds, catalog.items, _LAYOUT,
        rules.brand_cap, rules.explore, placed, count,
    )  # fmt: skip
    return Placements(placed, count)


@njit
def _select_lead_items(placed: Rows, count: I32, items: Rows, interest: I32, named: I8, out: I32) -> None:
    """Kernel of `select_lead_items`: fills out (U, slots). Oracle: tests/unit/agents/page/test_item_headlines.py."""
    for u in range(placed.shape[0]):
        out[u, :] = -1
        slot = -1
        for j in range(count[u]):
            if placed[u, j].slot != slot:
                slot, row = placed[u, j].slot, placed[u, j].row
                if named[slot] == 1 or (named[slot] == 2 and interest[u] != 0 and items[row].category == interest[u]):
                    out[u, slot] = row


def select_lead_items(placements: Placements, interest: I32, named: I8, catalog: Catalog) -> I32:
    """First item of each slot, if the slot's headline may name it: (U, slots) rows of the catalogue, otherwise -1.

    interest (U,): key32 of the category that the page's headlines are about, 0 for none. named (slots,): 0 if the
    headline of a slot may name no item, 1 if any item, 2 if only an item of the category of interest.
    """
    out = np.empty((len(interest), len(SLOTS)), np.int32)
    _select_lead_items(placements.placed, placements.count, catalog.items, interest, named, out)
    return out
