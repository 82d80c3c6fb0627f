"""Profiles: the rolling features phi(U) of one shopper, one bounded record row, folded from events alone."""

import numpy as np

from stream.events import KINDS

HALF_LIVES = (1800.0, 86_400.0, 2_592_000.0)  # s: 30 minutes, 1 day, 30 days
RECENT, BOUGHT, CART, WORDS, HIDDEN, TOP, SEEN_IDS = 32, 32, 16, 12, 12, 16, 128
# Rows of `activity`: views, clicks, searches, cart additions, purchases.
ACTIVITIES = ("view", "click", "search", "cart", "purchase")

PROFILE_VERSION = 1
# Fields from wide to narrow, so that every one is aligned. Zero means absent. Rings are sorted by (time, id), newest last
# (at the end of the array), so that what they hold does not depend on the order of arrival.
PROFILE = np.dtype(
    [
        ("first_seen", "f8"),  # s since the epoch, event time
        ("last_seen", "f8"),
        ("activity_at", "f8"),  # the time that the decayed counters of `activity` are as of
        ("activity", "f8", (len(ACTIVITIES), len(HALF_LIVES))),
        ("category_at", "f8"),
        ("category_weight", "f8", (TOP, len(HALF_LIVES))),
        ("brand_at", "f8"),
        ("brand_weight", "f8", (TOP, len(HALF_LIVES))),
        ("price_at", "f8"),  # decayed moments of log price, half-life 30 days
        ("price_weight", "f8"),
        ("price_sum", "f8"),
        ("price_square", "f8"),
        ("recent_item", "i8", RECENT),  # views, clicks, cart additions, purchases: one entry each
        ("recent_time", "f8", RECENT),
        ("bought_item", "i8", BOUGHT),
        ("cart_item", "i8", CART),
        ("cart_time", "f8", CART),
        ("word_at", "f8"),
        ("word_weight", "f8", WORDS),  # half-life 1 day
        ("hidden_item", "i8", HIDDEN),
        ("events", "i4"),
        ("kinds", "i4", len(KINDS)),
        ("category", "i4", TOP),
        ("brand", "i4", TOP),
        ("word", "i4", WORDS),
        ("bought_time", "i4", BOUGHT),  # s
        ("hidden_time", "i4", HIDDEN),
        ("id_time", "i4", SEEN_IDS),  # s; the ring of event ids, 48 bits each
        ("id_low", "i4", SEEN_IDS),
        ("id_high", "i2", SEEN_IDS),
        ("cart_quantity", "i2", CART),  # 0 with an item: removed at that time, kept so that a late addition stays removed
        ("recent_kind", "i1", RECENT),
        ("locale", "i1"),
        ("channel", "i1"),
        ("consent", "i1"),
        ("pad", "i1", 5),
    ]
)

SHOWN, FATIGUE = 40, 24
SERVING_VERSION = 1
# What was served to the shopper. It depends on how events were batched, so it lives beside the profile, not in it.
SERVING = np.dtype(
    [
        ("version", "i8"),  # of the last page published
        ("shown_item", "i8", SHOWN),  # items of that page
        ("fatigue_item", "i8", FATIGUE),  # shown at a view of the homepage and not taken since
        ("fatigue_count", "f4", FATIGUE),
        ("fatigue_time", "i4", FATIGUE),
    ]
)
