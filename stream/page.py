"""The page: slots filled from scored candidates, and its bytes."""

import numpy as np

# Position is the code; append only.
SLOTS = ("", "for_you", "because_you_viewed", "trending", "in_your_categories", "fresh", "buy_again")
FOR_YOU, BECAUSE, TRENDING, CATEGORIES, FRESH, AGAIN = range(1, len(SLOTS))
MODES = ("full", "cached_copy", "popular", "static")
REASONS = (
    "POPULAR",
    "VIEWED_TOGETHER",
    "VIEWED_NEXT",
    "VIEWED_BEFORE",
    "YOUR_CATEGORY",
    "YOUR_BRAND",
    "YOUR_PRICE",
    "YOUR_SEARCH",
    "BOUGHT_BEFORE",
    "IN_YOUR_CART",
    "NEW",
    "EXPLORING",
)
POPULAR, TOGETHER, NEXT, BEFORE, CATEGORY, BRAND, PRICE, WORD, AGAIN_BOUGHT, IN_CART, NEW, EXPLORING = range(len(REASONS))

POSITIONS = 40  # items of a page, at most
# Generators that proposed a candidate, one bit each.
GEN_NEXT, GEN_TOGETHER, GEN_POPULAR, GEN_CATEGORY, GEN_FRESH, GEN_BOUGHT, GEN_CART, GEN_RECENT, GEN_ANCHOR = (
    1 << bit for bit in range(9)
)  # ANCHOR: a neighbour of the very last item

PLACED = np.dtype(
    [
        ("row", "i4"),  # the item's row in the catalogue
        ("candidate", "i4"),  # its column among the shopper's candidates
        ("score", "f4"),  # softmax among the items shown in its slot: sums to 1 over the slot
        ("propensity", "f4"),  # chance that the policy shows this item at this position, given the positions before it
        ("weight", "f4"),  # of the reason
        ("reason_row", "i4"),  # the item that the reason speaks of; -1 none
        ("slot", "i1"),
        ("position", "i1"),  # 1-based within the slot
        ("explored", "i1"),
        ("reason", "i1"),
    ]
)
