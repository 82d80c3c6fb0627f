"""Append-only code tables of pages: slots, page modes, reasons, candidate generators.

The position of a name in its table is its code. Codes are in stored rows and in published payloads, so a table may only
grow at its end. This module imports nothing: every command's `--help` loads it.
"""

SLOTS = ("", "for_you", "because_you_viewed", "trending", "in_your_categories", "fresh", "buy_again")
SLOT_FOR_YOU, SLOT_BECAUSE_VIEWED, SLOT_TRENDING, SLOT_CATEGORIES, SLOT_FRESH, SLOT_BUY_AGAIN = range(1, len(SLOTS))

MAX_PAGE_ITEMS = 40

# How a page was made: all models; all models but no new headlines; popularity only; no items at all.
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
    "FITS_YOUR_HISTORY",
)
(
    REASON_POPULAR,
    REASON_TOGETHER,
    REASON_NEXT,
    REASON_BEFORE,
    REASON_CATEGORY,
    REASON_BRAND,
    REASON_PRICE,
    REASON_SEARCH,
    REASON_BOUGHT_BEFORE,
    REASON_IN_CART,
    REASON_NEW,
    REASON_EXPLORING,
    REASON_FITS,
) = range(len(REASONS))

# Generators that proposed a candidate, one bit each. GEN_ANCHOR: a neighbour of the shopper's very last item.
(
    GEN_NEXT,
    GEN_TOGETHER,
    GEN_POPULAR,
    GEN_CATEGORY,
    GEN_FRESH,
    GEN_BOUGHT,
    GEN_CART,
    GEN_RECENT,
    GEN_ANCHOR,
    GEN_HISTORY,
) = (1 << bit for bit in range(10))
