"""Events: what a shopper did, from the bytes of a record to rows that kernels read."""

import numpy as np

# Position is the code that rows and profiles store: append only.
KINDS = (
    "",
    "view_item",
    "select_item",
    "view_homepage",
    "search",
    "add_to_cart",
    "remove_from_cart",
    "hide_item",
    "purchase",
    "refund",
    "consent",
    "erase",
    "identify",
)
VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, HIDE, BUY, REFUND, CONSENT, ERASE, IDENTIFY = range(1, len(KINDS))
LOCALES = ("", "en", "zh")  # "en-GB" is "en"; others are 0, and read the default locale
CHANNELS = ("", "web", "app", "social")

TOPIC_KINDS = {
    "clicks": frozenset((VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, HIDE)),
    "purchases": frozenset((BUY, REFUND)),
    "privacy": frozenset((CONSENT, ERASE, IDENTIFY)),
}

# One row for each item (or search word) of an event: `part` counts them; part 0 is the head, the one that is counted.
EVENT = np.dtype(
    [
        ("shopper", "i8"),  # key64 of the shopper key
        ("id", "i8"),  # key64 of source + "\0" + id
        ("item", "i8"),  # key64 of the item id; 0 where the event has none
        ("time", "f8"),  # event time, s since the epoch, clamped to the record's timestamp + 300 s
        ("record", "i4"),  # index of the record in its run
        ("category", "i4"),  # key32 of the event's own item_category; 0 absent
        ("brand", "i4"),  # key32 of the event's own item_brand; 0 absent
        ("word", "i4"),  # key32 of one search word; 0 absent
        ("price", "f4"),  # 0 absent
        ("quantity", "i4"),
        ("part", "i2"),
        ("kind", "i1"),
        ("locale", "i1"),
        ("channel", "i1"),
        ("consent", "i1"),  # 1 granted, -1 denied, 0 not said
        ("pad", "i1", 2),
    ]
)
