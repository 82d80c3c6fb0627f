"""From scored candidates to the items of a page: which slots, how many, no brand too often, one position to explore."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stream.codes import AGAIN, BECAUSE, CATEGORIES, FOR_YOU, FRESH, SLOTS, TRENDING
from stream.items.catalog import Catalog
from stream.jit import njit
from stream.page.candidates import Candidates
from stream.page.json_kernels import (
    AGAIN_BOUGHT,
    EXPLORING,
    GEN_ANCHOR,
    GEN_BOUGHT,
    GEN_CATEGORY,
    GEN_FRESH,
    GEN_POPULAR,
    NEW,
    PLACED,
    POPULAR,
    POSITIONS,
)

Rows = npt.NDArray[np.void]

# In the order of the page. The generator that makes an item eligible (0: any), positions of a personal and of a popular
# page, the fewest items that make a slot worth its title.
_LAYOUT = np.array(
    [
        (FOR_YOU, 0, 12, 0, 1),
        (BECAUSE, GEN_ANCHOR, 8, 0, 2),
        (TRENDING, GEN_POPULAR, 6, 36, 1),
        (CATEGORIES, GEN_CATEGORY, 6, 0, 2),
        (FRESH, GEN_FRESH, 4, 4, 1),
        (AGAIN, GEN_BOUGHT, 4, 0, 1),
    ],
    np.int64,
)
assert _LAYOUT[:, 2].sum() <= POSITIONS and _LAYOUT[:, 3].sum() <= POSITIONS
UNIFORM_SHARE = 0.2  # of the exploring draw; the rest follows the model's own probabilities


class PageRules(NamedTuple):
    brand_cap: int = 2  # items of one brand in a slot, at most
    explore: bool = True

    def applied(self) -> list[str]:
        """As the page's `rules_applied` says them."""
        return [f"brand_cap:{self.brand_cap}", f"explore:{int(self.explore)}"]


@dataclass(frozen=True)
class Placements:
    placed: Rows  # (U, POSITIONS) PLACED, in the order of the page
    count: npt.NDArray[np.int32]  # (U,)


@njit
def uniform(seed):  # type: ignore[no-untyped-def]
    """A number in [0, 1) for the int64 `seed`, the same for ever: splitmix64 (Steele, Lea, Flood 2014)."""
    z = np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) * 2.0**-53


@njit
def _brand_full(placed, start, end, brands, candidate, cap):  # type: ignore[no-untyped-def]
    brand = brands[candidate]
    if brand == 0:
        return False
    same = 0
    for j in range(start, end):
        if brands[placed[j].candidate] == brand:
            same += 1
    return same >= cap


@njit
def _place(at, row, candidate, score, slot, position, reason):  # type: ignore[no-untyped-def]
    at.row, at.candidate, at.score, at.propensity = row, candidate, score, np.float32(1.0)
    at.reason_row, at.slot, at.position, at.explored, at.reason = -1, slot, position, 0, reason
    at.weight = 0.0


@njit
def _assemble(rows, generators, count, scores, personal, seeds, items, layout, cap, explore, placed, placed_count):  # type: ignore[no-untyped-def]
    used = np.zeros(rows.shape[1], np.bool_)
    brands = np.empty(rows.shape[1], np.int32)
    for u in range(rows.shape[0]):
        n, out, total = count[u], placed[u], 0
        order = np.argsort(-scores[u, :n], kind="mergesort")
        used[:] = False
        for c in range(n):
            brands[c] = items[rows[u, c]].brand
        explored_end = -1  # where the item to explore goes: after the last of the first slot
        for s in range(layout.shape[0]):
            slot, generator, least = layout[s, 0], layout[s, 1], layout[s, 4]
            size = layout[s, 2] if personal[u] else layout[s, 3]
            if explore and explored_end < 0 and size > 0:
                size -= 1
            start = total
            for i in range(n):
                if total - start == size:
                    break
                c = order[i]
                g = generators[u, c]
                # What was bought is for its own slot: nobody wants yesterday's lamp among the new ideas.
                if used[c] or (generator != 0 and not g & generator) or (slot != AGAIN and g & GEN_BOUGHT):
                    continue
                if _brand_full(out, start, total, brands, c, cap):
                    continue
                reason = NEW if slot == FRESH else AGAIN_BOUGHT if slot == AGAIN else POPULAR
                _place(out[total], rows[u, c], c, scores[u, c], slot, total - start + 1, reason)
                used[c] = True
                total += 1
            if total - start < least:
                for j in range(start, total):
                    used[out[j].candidate] = False
                total = start
            elif explore and explored_end < 0:
                explored_end = total
                total += 1  # kept free for the draw, which comes last
        if explored_end >= 0:
            # The draw is among what is eligible and on no other position, so that nothing after it depends on it and
            # its chance is exact.
            first = out[explored_end - 1]
            start = explored_end - first.position
            pool, mass = 0, 0.0
            for c in range(n):
                if not used[c] and not generators[u, c] & GEN_BOUGHT and not _brand_full(out, start, explored_end, brands, c, cap):  # fmt: skip
                    pool += 1
                    mass += scores[u, c]
            if pool == 0:
                for j in range(explored_end, total - 1):
                    out[j] = out[j + 1]
                total -= 1
            else:
                left = uniform(seeds[u])
                for c in range(n):
                    if used[c] or generators[u, c] & GEN_BOUGHT or _brand_full(out, start, explored_end, brands, c, cap):  # fmt: skip
                        continue
                    chance = UNIFORM_SHARE / pool
                    chance += (1.0 - UNIFORM_SHARE) * (scores[u, c] / mass if mass > 0.0 else 1.0 / pool)
                    left -= chance
                    last = c
                    if left < 0.0:
                        break
                at = out[explored_end]
                _place(at, rows[u, last], last, scores[u, last], first.slot, first.position + 1, EXPLORING)
                at.propensity = chance
                at.explored = 1
        placed_count[u] = total
        # P(C|U) among what the slot shows.
        start = 0
        while start < total:
            end, mass = start, 0.0
            while end < total and out[end].slot == out[start].slot:
                mass += out[end].score
                end += 1
            for j in range(start, end):
                out[j].score = out[j].score / mass if mass > 0.0 else 1.0 / (end - start)
            start = end


def assemble(
    candidates: Candidates,
    scores: npt.NDArray[np.float32],
    personal: npt.NDArray[np.bool_],
    seeds: npt.NDArray[np.int64],
    catalog: Catalog,
    rules: PageRules,
) -> Placements:
    """Fill the slots of U pages, each item once.

    scores (U, C) float32 are P(C|U); personal (U,) bool chooses the layout; seeds (U,) int64 decide the exploring draw.
    Every position but one is the best that is left, its propensity 1 given the page's other items. The last position of
    the first slot explores: drawn from all eligible candidates that no other position shows, uniformly with probability
    UNIFORM_SHARE, else in proportion to P(C|U); its propensity is that chance.
    """
    placed = np.zeros((len(personal), POSITIONS), PLACED)
    count = np.zeros(len(personal), np.int32)
    _assemble(
        candidates.rows, candidates.generators, candidates.count, scores, personal, seeds, catalog.items, _LAYOUT,
        rules.brand_cap, rules.explore, placed, count,
    )  # fmt: skip
    return Placements(placed, count)


assert len(_LAYOUT) == len(SLOTS) - 1


@njit
def _leads(placed, count, items, interest, named, out):  # type: ignore[no-untyped-def]
    for u in range(placed.shape[0]):
        out[u, :] = -1
        slot = -1
        for j in range(count[u]):
            if placed[u, j].slot != slot:
                slot, row = placed[u, j].slot, placed[u, j].row
                if named[slot] == 1 or (named[slot] == 2 and interest[u] != 0 and items[row].category == interest[u]):
                    out[u, slot] = row


def leads(
    placements: Placements, interest: npt.NDArray[np.int32], named: npt.NDArray[np.int8], catalog: Catalog
) -> npt.NDArray[np.int32]:
    """The items that slots begin with and that may be named above them.

    interest (U,): key32 of the category that the page's headlines speak of, 0 for none; named (slots,): by slot 1 where
    any item may be named, 2 where one of that category, 0 where none.
    -> (U, slots) rows of the catalogue, -1 where the page has none.
    """
    out = np.empty((len(interest), len(SLOTS)), np.int32)
    _leads(placements.placed, placements.count, catalog.items, interest, named, out)
    return out
