"""The catalogue: items as rows of 64 bytes for the kernels, and as pre-encoded JSON for the page writer."""

import numpy as np

AVAILABLE, PRODUCT, EN, ZH, SIGNAL_ONLY = 1, 2, 4, 8, 16  # bits of `flags`; EN, ZH: has a title in that locale
TITLE_WORDS = 6

# Row numbers are dense, in order of first sight, shared with the signals; `present` is 0 where only signals know the item.
ITEM = np.dtype(
    [
        ("id", "i8"),  # key64 of the item id
        ("expires", "f8"),  # s since the epoch; inf where it never does
        ("added", "f8"),  # s since the epoch; 0 unknown
        ("category", "i4"),  # key32
        ("brand", "i4"),  # key32
        ("log_price", "f4"),  # ln(price); 0 where there is none
        ("present", "i1"),
        ("flags", "i1"),
        ("pad", "i1", 2),
        ("word", "i4", TITLE_WORDS),  # key32 of title words of all locales
    ]
)
assert ITEM.itemsize == 64
