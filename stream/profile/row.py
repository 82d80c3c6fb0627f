"""The profile of one shopper as one record of fixed size, and its description as JSON."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from stream.events.decode import CHANNELS, KINDS
from stream.locales import LOCALES
from stream.types import Rows

HALF_LIVES = (1800.0, 86_400.0, 2_592_000.0)  # seconds: 30 minutes, 1 day, 30 days
HALF_HOUR, DAY, MONTH = range(len(HALF_LIVES))  # columns of the tables of decayed counters
WORD_HALF_LIFE_S, PRICE_HALF_LIFE_S = HALF_LIVES[DAY], HALF_LIVES[MONTH]

# Entries of the rings and tables of a profile.
RECENT_ITEMS, BOUGHT_ITEMS, CART_ITEMS, HIDDEN_ITEMS = 32, 32, 16, 20
SEARCH_WORDS, TOP_KEYS, EVENT_IDS, TRANSACTIONS = 12, 16, 128, 64
OVERFLOW_BYTES = 64
ACTIVITIES = ("view", "click", "search", "cart", "purchase")  # rows of `activity`

PROFILE_VERSION = 3


class Field(NamedTuple):
    name: str
    type: str  # as NumPy writes it
    shape: tuple[int, ...]
    meaning: str  # with its unit; times are event times in seconds since the epoch
    zero: str  # meaning of zero


_DECAYED = len(HALF_LIVES)
# Fields from wide to narrow, so that each is aligned. Rings are sorted by (time, id), the newest entry last. Their
# contents therefore do not depend on the order of arrival. Tables have no order; an entry with key 0 is empty.
PROFILE_FIELDS = (
    Field("first_seen", "f8", (), "time of the oldest event", "no event"),
    Field("last_seen", "f8", (), "time of the newest event", "no event"),
    Field("locale_time", "f8", (), "time of the event that set `locale`", "never set"),
    Field("channel_time", "f8", (), "time of the event that set `channel`", "never set"),
    Field("consent_time", "f8", (), "time of the newest statement on consent", "never stated"),
    Field("refused_time", "f8", (), "time of the newest refusal of consent", "never refused"),
    Field("granted_time", "f8", (), "time of the oldest known grant after `refused_time`", "no such grant"),
    Field("activity_at", "f8", (), "time that `activity` is decayed to", "no activity"),
    Field("activity", "f8", (len(ACTIVITIES), _DECAYED), "decayed events per activity and half-life", "none"),
    Field("category_at", "f8", (), "time that `category_weight` is decayed to", "no category"),
    Field("category_weight", "f8", (TOP_KEYS, _DECAYED), "decayed interest per category and half-life", "none"),
    Field("brand_at", "f8", (), "time that `brand_weight` is decayed to", "no brand"),
    Field("brand_weight", "f8", (TOP_KEYS, _DECAYED), "decayed interest per brand and half-life", "none"),
    Field("price_at", "f8", (), "time that the price moments are decayed to; half-life 30 days", "no price"),
    Field("price_weight", "f8", (), "decayed count of prices", "no price"),
    Field("price_sum", "f8", (), "decayed sum of log prices", "no price"),
    Field("price_square", "f8", (), "decayed sum of squared log prices", "no price"),
    Field("recent_item", "i8", (RECENT_ITEMS,), "ring: key64 of items viewed, clicked, added or bought", "empty"),
    Field("recent_time", "f8", (RECENT_ITEMS,), "ring: times of these", "empty"),
    Field("bought_item", "i8", (BOUGHT_ITEMS,), "ring: key64 of purchased items", "empty"),
    Field("transaction", "i8", (TRANSACTIONS,), "ring: key64 of purchases and refunds, to detect retries", "empty"),
    Field("cart_item", "i8", (CART_ITEMS,), "table: key64 of items added or removed", "empty"),
    Field("cart_time", "f8", (CART_ITEMS,), "table: time of the last change of each", "empty"),
    Field("word_at", "f8", (), "time that `word_weight` is decayed to", "no search"),
    Field("word_weight", "f8", (SEARCH_WORDS,), "decayed searches per word; half-life 1 day", "none"),
    Field("events", "i4", (), "events counted", "none"),
    Field("kinds", "i4", (len(KINDS),), "events counted per kind", "none"),
    Field("category", "i4", (TOP_KEYS,), "table: key32 of categories", "empty"),
    Field("brand", "i4", (TOP_KEYS,), "table: key32 of brands", "empty"),
    Field("word", "i4", (SEARCH_WORDS,), "table: key32 of search words", "empty"),
    Field("bought_time", "i4", (BOUGHT_ITEMS,), "ring: times of purchases, whole seconds", "empty"),
    Field("hidden_item", "i4", (HIDDEN_ITEMS,), "table: low 32 bits of key64 of hidden items", "empty"),
    Field("hidden_time", "i4", (HIDDEN_ITEMS,), "table: times of hiding, whole seconds", "empty"),
    Field("transaction_time", "i4", (TRANSACTIONS,), "ring: times of these, whole seconds", "empty"),
    Field("id_time", "i4", (EVENT_IDS,), "ring: times of the event ids, whole seconds", "empty"),
    Field("id_low", "i4", (EVENT_IDS,), "ring: bits 0 to 31 of event ids", "empty"),
    Field("id_high", "i2", (EVENT_IDS,), "ring: bits 32 to 47 of event ids", "empty"),
    # A removed item keeps its entry, so that a late addition does not bring it back.
    Field("cart_quantity", "i2", (CART_ITEMS,), "table: quantity in the cart", "empty, or removed at `cart_time`"),
    Field("overflow_day", "i2", (), "newest day since the epoch, UTC, of interactions outside of the ring", "none"),
    Field("recent_kind", "i1", (RECENT_ITEMS,), "ring: kinds of the interactions", "empty"),
    Field("overflow", "u1", (OVERFLOW_BYTES,), "bits: interactions of `overflow_day` outside of the ring", "none"),
    Field("locale", "i1", (), "position in LOCALES", "unknown"),
    Field("channel", "i1", (), "position in CHANNELS", "unknown"),
    Field("consent", "i1", (), "1 granted, -1 refused, as of `consent_time`", "never stated"),
    Field("pad", "i1", (3,), "unused", "always"),
)
PROFILE = np.dtype([(field.name, field.type, field.shape) for field in PROFILE_FIELDS])


_ADDED_BY_VERSION_2 = {
    "locale_time", "channel_time", "consent_time", "refused_time", "granted_time", "transaction", "transaction_time"
}  # fmt: skip
_ADDED_BY_VERSION_3 = {"overflow_day", "overflow"}


def _fields_without(added: set[str]) -> list[Any]:
    """The fields of rows before version 3, without those that were added later."""
    fields: list[Any] = [(field.name, field.type, field.shape) for field in PROFILE_FIELDS if field.name not in added]
    return [*fields[:-1], ("pad", "i1", (5,))]


def _dtype_of_version_1() -> np.dtype[Any]:
    """PROFILE without transactions and times of consent; times of locale and channel are whole seconds."""
    fields = _fields_without(_ADDED_BY_VERSION_2 | _ADDED_BY_VERSION_3)
    at = [name for name, *_ in fields].index("id_time")
    return np.dtype([*fields[:at], ("locale_time", "i4"), ("channel_time", "i4"), *fields[at:]])


# Dtypes of rows that earlier releases wrote, by version. `codec.unpack_profiles` reads them.
OLD_PROFILE_DTYPES = {1: _dtype_of_version_1(), 2: np.dtype(_fields_without(_ADDED_BY_VERSION_3))}


def blank_profiles(n: int) -> Rows:
    """Profiles of n shoppers without events. (n,) PROFILE."""
    return np.zeros(n, PROFILE)


def describe(row: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """The contents of a profile as JSON values. Hashes become their `names` if known.

    The description depends on the events alone, neither on their batches nor on a clock.
    """

    def name(key: int) -> str:
        return names.get(int(key), f"#{int(key) & (2**64 - 1):016x}")

    def table(keys: Any, weights: Any) -> dict[str, list[float]]:
        entries = sorted(zip(keys, weights, strict=True), key=lambda entry: int(entry[0]))
        return {name(key): [float(weight) for weight in row_weights] for key, row_weights in entries if key}

    words = sorted(zip(row["word"], row["word_weight"], strict=True))
    recent = zip(row["recent_item"], row["recent_kind"], row["recent_time"], strict=True)
    bought = zip(row["bought_item"], row["bought_time"], strict=True)
    cart = sorted(
        (int(time), int(item), int(quantity))
        for time, item, quantity in zip(row["cart_time"], row["cart_item"], row["cart_quantity"], strict=True)
        if item and quantity
    )
    return {
        "events": int(row["events"]),
        "kinds": {KINDS[kind]: int(count) for kind, count in enumerate(row["kinds"]) if count},
        "first_seen": float(row["first_seen"]),
        "last_seen": float(row["last_seen"]),
        "locale": LOCALES[row["locale"]],
        "channel": CHANNELS[row["channel"]],
        "consent": int(row["consent"]),
        "consent_time": float(row["consent_time"]),
        "event_ids": int(np.count_nonzero(row["id_time"])),
        "transactions": int(np.count_nonzero(row["transaction"])),
        "activity_at": float(row["activity_at"]),
        "activity": {activity: [float(count) for count in row["activity"][i]] for i, activity in enumerate(ACTIVITIES)},
        "categories_at": float(row["category_at"]),
        "categories": table(row["category"], row["category_weight"]),
        "brands_at": float(row["brand_at"]),
        "brands": table(row["brand"], row["brand_weight"]),
        "price": {field: float(row[f"price_{field}"]) for field in ("at", "weight", "sum", "square")},
        "words_at": float(row["word_at"]),
        "words": {name(word): float(weight) for word, weight in words if word},
        "recent": [[name(item), KINDS[kind], float(time)] for item, kind, time in recent if item],
        "bought": [[name(item), int(time)] for item, time in bought if item],
        "cart": [[name(item), quantity, time] for time, item, quantity in cart],
        "hidden": sorted(f"#{int(item) & (2**32 - 1):08x}" for item in row["hidden_item"] if item),
    }
