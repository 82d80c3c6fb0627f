"""Profiles: the rolling features phi(U) of one shopper, one bounded record row, folded from events alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stream.events import (
    ADD,
    BUY,
    CHANNELS,
    CLICK,
    HIDE,
    KINDS,
    LOCALES,
    REFUND,
    REMOVE,
    SEARCH,
    VIEW,
)
from stream.jit import njit

Rows = npt.NDArray[np.void]

HALF_LIVES = (1800.0, 86_400.0, 2_592_000.0)  # s: 30 minutes, 1 day, 30 days
RECENT, BOUGHT, CART, WORDS, HIDDEN, TOP, SEEN_IDS = 32, 32, 16, 12, 20, 16, 128
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
        ("events", "i4"),
        ("kinds", "i4", len(KINDS)),
        ("category", "i4", TOP),
        ("brand", "i4", TOP),
        ("word", "i4", WORDS),
        ("bought_time", "i4", BOUGHT),  # s
        ("hidden_item", "i4", HIDDEN),  # low half of the item id: twenty fit
        ("hidden_time", "i4", HIDDEN),
        ("locale_time", "i4"),  # s; of the event that said it
        ("channel_time", "i4"),
        ("id_time", "i4", SEEN_IDS),  # s; the ring of event ids, 48 bits each
        ("id_low", "i4", SEEN_IDS),
        ("id_high", "i2", SEEN_IDS),
        (
            "cart_quantity",
            "i2",
            CART,
        ),  # 0 with an item: removed at that time, kept so that a late addition stays removed
        ("recent_kind", "i1", RECENT),
        ("locale", "i1"),
        ("channel", "i1"),
        ("consent", "i1"),
        ("pad", "i1", 5),
    ]
)

# How much an interaction says of a taste: a purchase more than a look.
INTEREST = np.array([{VIEW: 1.0, CLICK: 1.0, ADD: 2.0, BUY: 3.0}.get(kind, 0.0) for kind in range(len(KINDS))])
# Row of `activity` that a kind counts in; -1 none.
ACTIVITY_OF = np.array([{VIEW: 0, CLICK: 1, SEARCH: 2, ADD: 3, BUY: 4}.get(kind, -1) for kind in range(len(KINDS))])
_LIVES = np.array(HALF_LIVES)
WORD_HALF_LIFE, PRICE_HALF_LIFE = HALF_LIVES[1], HALF_LIVES[2]


def blank(n: int) -> Rows:
    """Profiles of n shoppers who have done nothing. (n,) PROFILE."""
    return np.zeros(n, PROFILE)


@njit
def _count(weights, t0, time, amount):  # type: ignore[no-untyped-def]
    """Add `amount`, as of `time`, to one row of counters that are as of t0 >= time."""
    for life in range(weights.shape[0]):
        weights[life] += amount * 2.0 ** -((t0 - time) / _LIVES[life])


@njit
def _add_to_table(keys, weights, at, time, key, amount):  # type: ignore[no-untyped-def]
    """Count `key` in a table of the strongest (keys (T,), weights (T, lives), as of `at`). -> the new `at`.

    A table that is full gives up the key of the smallest 30-day weight, of equals the lowest key.
    """
    if time > at:
        for life in range(weights.shape[1]):
            factor = 2.0 ** -((time - at) / _LIVES[life])
            for j in range(keys.shape[0]):
                weights[j, life] *= factor
        at = time
    slot, smallest = -1, 0
    for j in range(keys.shape[0]):
        if keys[j] == key:
            slot = j
            break
        if keys[smallest] != 0 and (
            keys[j] == 0
            or weights[j, 2] < weights[smallest, 2]
            or (weights[j, 2] == weights[smallest, 2] and keys[j] < keys[smallest])
        ):
            smallest = j
    if slot < 0:
        slot = smallest
        keys[slot] = key
        weights[slot, :] = 0.0
    _count(weights[slot], at, time, amount)
    return at


@njit
def _add_word(p, time, key):  # type: ignore[no-untyped-def]
    if time > p.word_at:
        factor = 2.0 ** -((time - p.word_at) / WORD_HALF_LIFE)
        for j in range(p.word.shape[0]):
            p.word_weight[j] *= factor
        p.word_at = time
    slot, smallest = -1, 0
    for j in range(p.word.shape[0]):
        if p.word[j] == key:
            slot = j
            break
        if p.word[smallest] != 0 and (
            p.word[j] == 0
            or p.word_weight[j] < p.word_weight[smallest]
            or (p.word_weight[j] == p.word_weight[smallest] and p.word[j] < p.word[smallest])
        ):
            smallest = j
    if slot < 0:
        slot = smallest
        p.word[slot] = key
        p.word_weight[slot] = 0.0
    p.word_weight[slot] += 2.0 ** -((p.word_at - time) / WORD_HALF_LIFE)


@njit
def _remember(p, item, time, kind):  # type: ignore[no-untyped-def]
    """Insert into the ring of interactions, which is sorted by (time, item, kind) with the newest last."""
    j = 0
    last = p.recent_item.shape[0] - 1
    if p.recent_item[0] != 0 and (time, item, kind) <= (p.recent_time[0], p.recent_item[0], p.recent_kind[0]):
        return
    while j < last and (
        p.recent_item[j + 1] == 0
        or (p.recent_time[j + 1], p.recent_item[j + 1], p.recent_kind[j + 1]) < (time, item, kind)
    ):
        p.recent_item[j] = p.recent_item[j + 1]
        p.recent_time[j] = p.recent_time[j + 1]
        p.recent_kind[j] = p.recent_kind[j + 1]
        j += 1
    p.recent_item[j] = item
    p.recent_time[j] = time
    p.recent_kind[j] = kind


@njit
def _own(p, item, time):  # type: ignore[no-untyped-def]
    second = np.int32(time)
    j = 0
    last = p.bought_item.shape[0] - 1
    if p.bought_item[0] != 0 and (second, item) <= (p.bought_time[0], p.bought_item[0]):
        return
    while j < last and (p.bought_item[j + 1] == 0 or (p.bought_time[j + 1], p.bought_item[j + 1]) < (second, item)):
        p.bought_item[j] = p.bought_item[j + 1]
        p.bought_time[j] = p.bought_time[j + 1]
        j += 1
    p.bought_item[j] = item
    p.bought_time[j] = second


@njit
def _give_back(p, item):  # type: ignore[no-untyped-def]
    """Forget the newest purchase of `item`."""
    for j in range(p.bought_item.shape[0] - 1, -1, -1):
        if p.bought_item[j] == item:
            for k in range(j, 0, -1):
                p.bought_item[k] = p.bought_item[k - 1]
                p.bought_time[k] = p.bought_time[k - 1]
            p.bought_item[0] = 0
            p.bought_time[0] = 0
            return


@njit
def _put_in_cart(p, item, time, quantity):  # type: ignore[no-untyped-def]
    """The newest word on an item holds; a quantity of 0 takes it out, and of one moment the taking out holds."""
    slot, oldest = -1, 0
    for j in range(p.cart_item.shape[0]):
        if p.cart_item[j] == item:
            slot = j
            break
        if p.cart_item[oldest] != 0 and (
            p.cart_item[j] == 0 or (p.cart_time[j], p.cart_item[j]) < (p.cart_time[oldest], p.cart_item[oldest])
        ):
            oldest = j
    if slot >= 0:
        held = p.cart_quantity[slot]
        if time < p.cart_time[slot] or (
            time == p.cart_time[slot] and (held == 0 or (quantity != 0 and quantity <= held))
        ):
            return
    else:
        slot = oldest
        if p.cart_item[slot] != 0 and (time, item) < (p.cart_time[slot], p.cart_item[slot]):
            return
    p.cart_item[slot] = item
    p.cart_time[slot] = time
    p.cart_quantity[slot] = quantity


@njit
def _hide(p, item, time):  # type: ignore[no-untyped-def]
    key, second = np.int32(item), np.int32(time)
    slot, oldest = -1, 0
    for j in range(p.hidden_item.shape[0]):
        if p.hidden_item[j] == key:
            slot = j
            break
        if p.hidden_item[oldest] != 0 and (
            p.hidden_item[j] == 0
            or (p.hidden_time[j], p.hidden_item[j]) < (p.hidden_time[oldest], p.hidden_item[oldest])
        ):
            oldest = j
    if slot < 0:
        slot = oldest
        if p.hidden_item[slot] != 0 and (second, key) < (p.hidden_time[slot], p.hidden_item[slot]):
            return
        p.hidden_time[slot] = second
    p.hidden_item[slot] = key
    p.hidden_time[slot] = max(p.hidden_time[slot], second)


@njit
def interests(profiles, found):  # type: ignore[no-untyped-def]
    """Into found (S,): the category of the greatest weight of the last half hour, of equals the first; 0 where none is."""
    for s in range(profiles.shape[0]):
        p, best = profiles[s], 0
        for j in range(p.category.shape[0]):
            if p.category_weight[j, 0] > p.category_weight[best, 0]:
                best = j
        found[s] = p.category[best]


@njit
def is_hidden(p, item):  # type: ignore[no-untyped-def]
    key = np.int32(item)
    for j in range(p.hidden_item.shape[0]):
        if p.hidden_item[j] == key and key != 0:
            return True
    return False


@njit
def _is_new(p, event_id, time):  # type: ignore[no-untyped-def]
    """False where the id is in the ring; else it is put there, sorted by (time, id), unless older than a full ring."""
    low, high, second = np.int32(event_id), np.int16(event_id >> 32), np.int32(time)
    size = p.id_time.shape[0]
    for j in range(size - 1, -1, -1):
        if p.id_time[j] == 0:
            break
        if p.id_low[j] == low and p.id_high[j] == high:
            return False
    if p.id_time[0] != 0 and (second, high, low) <= (p.id_time[0], p.id_high[0], p.id_low[0]):
        return True
    j = 0
    while j < size - 1 and (
        p.id_time[j + 1] == 0 or (p.id_time[j + 1], p.id_high[j + 1], p.id_low[j + 1]) < (second, high, low)
    ):
        p.id_time[j] = p.id_time[j + 1]
        p.id_low[j] = p.id_low[j + 1]
        p.id_high[j] = p.id_high[j + 1]
        j += 1
    p.id_time[j] = second
    p.id_low[j] = low
    p.id_high[j] = high
    return True


@njit
def _forget_behaviour(p):  # type: ignore[no-untyped-def]
    """What stays without consent: the refusal itself, the language to answer in, the ids that tell duplicates."""
    p.first_seen = p.last_seen = p.activity_at = p.category_at = p.brand_at = p.word_at = 0.0
    p.price_at = p.price_weight = p.price_sum = p.price_square = 0.0
    p.activity[:, :] = 0.0
    p.category_weight[:, :] = 0.0
    p.brand_weight[:, :] = 0.0
    p.recent_item[:] = 0
    p.recent_time[:] = 0.0
    p.recent_kind[:] = 0
    p.bought_item[:] = 0
    p.bought_time[:] = 0
    p.cart_item[:] = 0
    p.cart_time[:] = 0.0
    p.cart_quantity[:] = 0
    p.word[:] = 0
    p.word_weight[:] = 0.0
    p.hidden_item[:] = 0
    p.hidden_time[:] = 0
    p.category[:] = 0
    p.brand[:] = 0
    p.kinds[:] = 0
    p.events = 0
    p.channel = 0
    p.channel_time = 0


@njit
def _fold_head(p, e):  # type: ignore[no-untyped-def]
    """What is counted once an event, however many items it has."""
    time, kind, second = e.time, e.kind, np.int32(e.time)
    p.events += 1
    p.kinds[kind] += 1
    if p.first_seen == 0.0 or time < p.first_seen:
        p.first_seen = time
    p.last_seen = max(p.last_seen, time)
    if e.channel != 0 and (second, e.channel) > (p.channel_time, p.channel):
        p.channel, p.channel_time = e.channel, second
    row = ACTIVITY_OF[kind]
    if row >= 0:
        if time > p.activity_at:
            for life in range(p.activity.shape[1]):
                factor = 2.0 ** -((time - p.activity_at) / _LIVES[life])
                for j in range(p.activity.shape[0]):
                    p.activity[j, life] *= factor
            p.activity_at = time
        _count(p.activity[row], p.activity_at, time, 1.0)


@njit
def _fold_part(p, e):  # type: ignore[no-untyped-def]
    """One item or one word of an event."""
    time, kind, item = e.time, e.kind, e.item
    interest = INTEREST[kind]
    if interest > 0.0 and item != 0:
        _remember(p, item, time, kind)
        if e.category != 0:
            p.category_at = _add_to_table(p.category, p.category_weight, p.category_at, time, e.category, interest)
        if e.brand != 0:
            p.brand_at = _add_to_table(p.brand, p.brand_weight, p.brand_at, time, e.brand, interest)
        if e.price > 0.0:
            if time > p.price_at:
                factor = 2.0 ** -((time - p.price_at) / PRICE_HALF_LIFE)
                p.price_weight *= factor
                p.price_sum *= factor
                p.price_square *= factor
                p.price_at = time
            weight = 2.0 ** -((p.price_at - time) / PRICE_HALF_LIFE)
            level = np.log(np.float64(e.price))
            p.price_weight += weight
            p.price_sum += weight * level
            p.price_square += weight * level * level
    if kind == ADD:
        _put_in_cart(p, item, time, max(1, e.quantity))
    elif kind == REMOVE:
        _put_in_cart(p, item, time, 0)
    elif kind == BUY:
        _own(p, item, time)
        _put_in_cart(p, item, time, 0)
    elif kind == REFUND:
        _give_back(p, item)
    elif kind == HIDE:
        _hide(p, item, time)
    elif kind == SEARCH and e.word != 0:
        _add_word(p, time, e.word)


@njit
def fold_event(p, e, head_is_fresh):  # type: ignore[no-untyped-def]
    """Fold one EVENT row into one PROFILE row. -> False for a duplicate, whose parts all change nothing.

    `head_is_fresh` is what the event's part 0 returned; it counts for later parts.
    """
    if e.part == 0:
        if not _is_new(p, e.id, e.time):
            return False
        if e.consent != 0:
            if e.consent < 0 and p.consent >= 0:
                _forget_behaviour(p)
            p.consent = e.consent
        if e.locale != 0 and (np.int32(e.time), e.locale) > (p.locale_time, p.locale):
            p.locale, p.locale_time = e.locale, np.int32(e.time)
    elif not head_is_fresh:
        return False
    if p.consent < 0:
        return True
    if e.part == 0:
        _fold_head(p, e)
    _fold_part(p, e)
    return True


@njit
def _fold(profiles, who, events, fresh):  # type: ignore[no-untyped-def]
    for i in range(events.shape[0]):
        fresh[i] = fold_event(profiles[who[i]], events[i], i > 0 and fresh[i - 1])


def fold(profiles: Rows, who: npt.NDArray[np.int32], events: Rows) -> npt.NDArray[np.bool_]:
    """Fold events into profiles, in place. The one fold from behaviour to phi(U): serving, replay and training use it.

    profiles (S,) PROFILE; events (n,) EVENT in any order, the parts of one event together; who (n,) int32 row of each.
    -> (n,) bool, False for duplicates.

    Counters decay by c(t) = c(t0) 2^-((t - t0) / h), so an event that comes late adds 2^-((t0 - t) / h) and the order of
    arrival does not matter, up to rounding; rings are sorted by event time. Exceptions: a table of categories, brands or
    words that overflows, a refund that comes before its purchase, and consent, which holds from its arrival on.
    While consent is refused nothing of behaviour is kept.
    """
    fresh = np.empty(len(events), np.bool_)
    _fold(profiles, who, events, fresh)
    return fresh


def describe(row: Any, names: Mapping[int, str]) -> dict[str, Any]:
    """A profile as plain JSON values: what it says of the shopper, hashes by their `names` where known.

    It depends on the events alone: neither on how they were batched nor on any clock.
    """

    def name(key: int) -> str:
        return names.get(int(key), f"#{int(key) & (2**64 - 1):016x}")

    def table(keys: Any, weights: Any) -> dict[str, list[float]]:
        return {
            name(k): [float(w) for w in ws]
            for k, ws in sorted(zip(keys, weights, strict=True), key=lambda x: int(x[0]))
            if k
        }

    held = sorted(
        (int(t), int(i), int(q))
        for t, i, q in zip(row["cart_time"], row["cart_item"], row["cart_quantity"], strict=True)
        if i and q
    )
    return {
        "events": int(row["events"]),
        "kinds": {KINDS[k]: int(n) for k, n in enumerate(row["kinds"]) if n},
        "first_seen": float(row["first_seen"]),
        "last_seen": float(row["last_seen"]),
        "locale": LOCALES[row["locale"]],
        "channel": CHANNELS[row["channel"]],
        "consent": int(row["consent"]),
        "event_ids": int(np.count_nonzero(row["id_time"])),
        "activity_at": float(row["activity_at"]),
        "activity": {a: [float(w) for w in row["activity"][i]] for i, a in enumerate(ACTIVITIES)},
        "categories_at": float(row["category_at"]),
        "categories": table(row["category"], row["category_weight"]),
        "brands_at": float(row["brand_at"]),
        "brands": table(row["brand"], row["brand_weight"]),
        "price": {field: float(row[f"price_{field}"]) for field in ("at", "weight", "sum", "square")},
        "words_at": float(row["word_at"]),
        "words": {name(k): float(w) for k, w in sorted(zip(row["word"], row["word_weight"], strict=True)) if k},
        "recent": [
            [name(i), KINDS[k], float(t)]
            for i, k, t in zip(row["recent_item"], row["recent_kind"], row["recent_time"], strict=True)
            if i
        ],
        "bought": [[name(i), int(t)] for i, t in zip(row["bought_item"], row["bought_time"], strict=True) if i],
        "cart": [[name(i), q, t] for t, i, q in held],
        "hidden": sorted(f"#{int(i) & (2**32 - 1):08x}" for i in row["hidden_item"] if i),
    }
