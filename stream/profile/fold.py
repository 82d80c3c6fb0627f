"""Fold events into profiles: the only code that turns events into phi(U), in serving, replay and training.

A decayed counter follows c(t) = c(t0) * 2 ** -((t - t0) / half_life). A late event is weighted by its own age, so that
the order of arrival does not matter, up to rounding. Rings are sorted by event time for the same reason.
Oracle of the kernels: tests/unit/stream/profile/test_fold.py.
"""

import numpy as np

from stream.decay import decay_factor
from stream.events.decode import ADD, BUY, CLICK, CONSENT, HIDE, KINDS, REFUND, REMOVE, SEARCH, VIEW
from stream.jit import njit
from stream.profile.repeats import DAY_S, add_to_overflow
from stream.profile.row import HALF_HOUR, HALF_LIVES, MONTH, PRICE_HALF_LIFE_S, WORD_HALF_LIFE_S
from stream.types import F64, I32, I64, Bools, Row, Rows

# Weight of an interaction as a sign of interest: a purchase counts more than a view.
INTEREST = np.array([{VIEW: 1.0, CLICK: 1.0, ADD: 2.0, BUY: 3.0}.get(kind, 0.0) for kind in range(len(KINDS))])
# Row of `activity` that counts each kind; -1 if no row does.
ACTIVITY_OF = np.array([{VIEW: 0, CLICK: 1, SEARCH: 2, ADD: 3, BUY: 4}.get(kind, -1) for kind in range(len(KINDS))])
_HALF_LIVES = np.array(HALF_LIVES)

# What became of an event: DUPLICATE, TOO_LATE, or FOLDED, perhaps together with TRANSACTION_FORGOTTEN, if a full ring
# of transactions lost one.
DUPLICATE, FOLDED, TOO_LATE, TRANSACTION_FORGOTTEN = 0, 1, 2, 4


# Decayed counters.


@njit
def _count(weights: F64, at: float, time: float, amount: float) -> None:
    """Add `amount` of time `time` to counters (half-lives,) that are decayed to `at` >= `time`. Mutates weights."""
    for life in range(weights.shape[0]):
        weights[life] += amount * decay_factor(at - time, _HALF_LIVES[life])


@njit
def _decay_table(weights: F64, elapsed_s: float) -> None:
    """Decay all counters (T, half-lives) by `elapsed_s` seconds. Mutates weights."""
    for life in range(weights.shape[1]):
        factor = decay_factor(elapsed_s, _HALF_LIVES[life])
        for j in range(weights.shape[0]):
            weights[j, life] *= factor


@njit
def _find_or_evict(keys: I64, ranks: F64, key: int) -> int:
    """Slot of `key` in a table, or else the slot to evict: the first empty one, or the lowest (rank, key).

    keys (T,) with 0 for empty; ranks (T,). The caller compares keys[slot] to `key` to tell the two cases apart.
    """
    evicted = 0
    for j in range(keys.shape[0]):
        if keys[j] == key:
            return j
        if keys[evicted] != 0 and (
            keys[j] == 0 or ranks[j] < ranks[evicted] or (ranks[j] == ranks[evicted] and keys[j] < keys[evicted])
        ):
            evicted = j
    return evicted


@njit
def _add_to_table(keys: I32, weights: F64, at: float, time: float, key: int, amount: float) -> float:
    """Add `amount` to `key` in a table of the strongest keys. Return the time that the table is now decayed to.

    keys (T,), weights (T, half-lives) as of `at`; both are mutated. A full table evicts the key with the lowest
    30-day weight, and of equal weights the lowest key.
    """
    if time > at:
        _decay_table(weights, time - at)
        at = time
    slot = _find_or_evict(keys, weights[:, MONTH], key)
    if keys[slot] != key:
        keys[slot] = key
        weights[slot, :] = 0.0
    _count(weights[slot], at, time, amount)
    return at


@njit
def _add_word(p: Row, time: float, key: int) -> None:
    """Count a search word. A full table evicts the word with the lowest weight. Mutates p."""
    if time > p.word_at:
        factor = decay_factor(time - p.word_at, WORD_HALF_LIFE_S)
        for j in range(p.word.shape[0]):
            p.word_weight[j] *= factor
        p.word_at = time
    slot = _find_or_evict(p.word, p.word_weight, key)
    if p.word[slot] != key:
        p.word[slot] = key
        p.word_weight[slot] = 0.0
    p.word_weight[slot] += decay_factor(p.word_at - time, WORD_HALF_LIFE_S)


@njit
def _add_price(p: Row, time: float, price: float) -> None:
    """Add a price to the decayed moments of log price. Mutates p."""
    if time > p.price_at:
        factor = decay_factor(time - p.price_at, PRICE_HALF_LIFE_S)
        p.price_weight *= factor
        p.price_sum *= factor
        p.price_square *= factor
        p.price_at = time
    weight = decay_factor(p.price_at - time, PRICE_HALF_LIFE_S)
    level = np.log(np.float64(price))
    p.price_weight += weight
    p.price_sum += weight * level
    p.price_square += weight * level * level


# Rings and tables of items.


@njit
def _remember(p: Row, item: int, time: float, kind: int) -> None:
    """Insert an interaction into the ring, sorted by (time, item, kind). A full ring loses its oldest. Mutates p."""
    j = 0
    last = p.recent_item.shape[0] - 1
    if p.recent_item[0] != 0:
        if (time, item, kind) <= (p.recent_time[0], p.recent_item[0], p.recent_kind[0]):
            add_to_overflow(p, item, time, kind)
            return
        add_to_overflow(p, p.recent_item[0], p.recent_time[0], p.recent_kind[0])
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
def _insert_sorted(keys: I64, times: I32, key: int, second: int) -> None:
    """Insert into a ring that is sorted by (second, key). A full ring loses its oldest, or does not take an older one.

    keys (n,), 0 where the ring is empty; times (n,), whole seconds. Mutates both.
    """
    if keys[0] != 0 and (second, key) <= (times[0], keys[0]):
        return
    j, last = 0, keys.shape[0] - 1
    while j < last and (keys[j + 1] == 0 or (times[j + 1], keys[j + 1]) < (second, key)):
        keys[j] = keys[j + 1]
        times[j] = times[j + 1]
        j += 1
    keys[j] = key
    times[j] = second


@njit
def _undo_purchase(p: Row, item: int) -> None:
    """Remove the newest purchase of `item` from the ring, if there is one. Mutates p."""
    for j in range(p.bought_item.shape[0] - 1, -1, -1):
        if p.bought_item[j] == item:
            for k in range(j, 0, -1):
                p.bought_item[k] = p.bought_item[k - 1]
                p.bought_time[k] = p.bought_time[k - 1]
            p.bought_item[0] = 0
            p.bought_time[0] = 0
            return


@njit
def _put_in_cart(p: Row, item: int, time: float, quantity: int) -> None:
    """Set the quantity of an item in the cart; 0 removes it. Mutates p.

    The change with the newest time wins. Of two changes at the same time a removal wins, then the larger quantity.
    """
    slot = _find_or_evict(p.cart_item, p.cart_time, item)
    if p.cart_item[slot] == item:
        current = p.cart_quantity[slot]
        if time < p.cart_time[slot] or (
            time == p.cart_time[slot] and (current == 0 or (quantity != 0 and quantity <= current))
        ):
            return
    elif p.cart_item[slot] != 0 and (time, item) < (p.cart_time[slot], p.cart_item[slot]):
        return
    p.cart_item[slot] = item
    p.cart_time[slot] = time
    p.cart_quantity[slot] = quantity


@njit
def _hide(p: Row, item: int, time: float) -> None:
    """Add an item to the hidden ones. A full table evicts the item that was hidden first. Mutates p."""
    key, second = np.int32(item), np.int32(time)
    slot = _find_or_evict(p.hidden_item, p.hidden_time, key)
    if p.hidden_item[slot] != key:
        if p.hidden_item[slot] != 0 and (second, key) < (p.hidden_time[slot], p.hidden_item[slot]):
            return
        p.hidden_time[slot] = second
    p.hidden_item[slot] = key
    p.hidden_time[slot] = max(p.hidden_time[slot], second)


@njit
def is_hidden(p: Row, item: int) -> bool:
    """True if the shopper of PROFILE row p hid the item with key64 `item`."""
    key = np.int32(item)
    for j in range(p.hidden_item.shape[0]):
        if p.hidden_item[j] == key and key != 0:
            return True
    return False


@njit
def top_categories(profiles: Rows, found: I32) -> None:
    """Write to found (S,) the category with the highest 30-minute weight; of equal weights the first, 0 if none.

    profiles (S,) PROFILE.
    """
    for s in range(profiles.shape[0]):
        p, best = profiles[s], 0
        for j in range(p.category.shape[0]):
            if p.category_weight[j, HALF_HOUR] > p.category_weight[best, HALF_HOUR]:
                best = j
        found[s] = p.category[best]


# Events.


@njit
def _remember_id(p: Row, second: int, high: int, low: int) -> None:
    """Insert an event id into the ring, sorted by (second, id). A full ring loses its oldest. Mutates p."""
    j = 0
    last = p.id_time.shape[0] - 1
    while j < last and (
        p.id_time[j + 1] == 0 or (p.id_time[j + 1], p.id_high[j + 1], p.id_low[j + 1]) < (second, high, low)
    ):
        p.id_time[j] = p.id_time[j + 1]
        p.id_low[j] = p.id_low[j + 1]
        p.id_high[j] = p.id_high[j + 1]
        j += 1
    p.id_time[j] = second
    p.id_low[j] = low
    p.id_high[j] = high


@njit
def _contains(keys: I64, key: int) -> bool:
    for j in range(keys.shape[0]):
        if keys[j] == key:
            return True
    return False


@njit
def _could_be_redelivery(p: Row, e: Row, second: int) -> bool:
    """True if EVENT row e, older than everything in the full ring of ids of p, may have been folded before.

    A transaction newer than the oldest in its full ring, or in a ring with room, is certainly new. Statements on
    consent may be repeated.
    """
    if e.kind >= CONSENT or (e.consent != 0 and e.consent != p.consent):
        return False
    if e.transaction == 0:
        return True
    return p.transaction_time[0] != 0 and (second, e.transaction) <= (p.transaction_time[0], p.transaction[0])


@njit
def _admit(p: Row, e: Row, refuses_late: bool) -> int:
    """Outcome of an event's part 0, whose id and transaction are remembered if it is to be folded. Mutates p.

    An id that is older than everything in a full ring is not remembered.
    """
    low, high, second = np.int32(e.id), np.int16(e.id >> 32), np.int32(e.time)
    for j in range(p.id_time.shape[0] - 1, -1, -1):
        if p.id_time[j] == 0:
            break
        if p.id_low[j] == low and p.id_high[j] == high:
            return DUPLICATE
    if e.transaction != 0 and _contains(p.transaction, e.transaction):
        return DUPLICATE
    if p.id_time[0] == 0 or (second, high, low) > (p.id_time[0], p.id_high[0], p.id_low[0]):
        _remember_id(p, second, high, low)
    elif refuses_late and _could_be_redelivery(p, e, second):
        return TOO_LATE
    if e.transaction == 0:
        return FOLDED
    is_full = p.transaction_time[0] != 0
    _insert_sorted(p.transaction, p.transaction_time, e.transaction, second)
    return FOLDED | TRANSACTION_FORGOTTEN if is_full else FOLDED


@njit
def shortest_id_window(profiles: Rows) -> float:
    """Seconds from the oldest to the newest id of the full ring where they are least; infinity without a full ring.

    profiles (S,) PROFILE.
    """
    shortest = np.inf
    for s in range(profiles.shape[0]):
        p = profiles[s]
        if p.id_time[0] != 0:
            shortest = min(shortest, np.float64(p.id_time[p.id_time.shape[0] - 1] - p.id_time[0]))
    return shortest


@njit
def _erase_counters(p: Row) -> None:
    """Clear the behaviour whose entries have no times of their own. Mutates p."""
    p.activity_at = p.category_at = p.brand_at = p.word_at = 0.0
    p.price_at = p.price_weight = p.price_sum = p.price_square = 0.0
    p.activity[:, :] = 0.0
    p.category[:] = 0
    p.category_weight[:, :] = 0.0
    p.brand[:] = 0
    p.brand_weight[:, :] = 0.0
    p.word[:] = 0
    p.word_weight[:] = 0.0
    p.kinds[:] = 0
    p.events = 0


@njit
def _erase_before(p: Row, since: float) -> None:
    """Clear the behaviour before `since`, in seconds; all of it for infinity. Mutates p.

    Entries with whole seconds are kept only if they are certainly not older. If anything is older, all counters are
    cleared. Consent, the locale of the pages and the event ids that detect duplicates remain.
    """
    if p.first_seen == 0.0 or p.first_seen >= since:
        return
    _erase_counters(p)
    for j in range(p.recent_item.shape[0]):
        if p.recent_time[j] < since:
            p.recent_item[j], p.recent_time[j], p.recent_kind[j] = 0, 0.0, 0
    for j in range(p.bought_item.shape[0]):
        if p.bought_time[j] < since:
            p.bought_item[j], p.bought_time[j] = 0, 0
    for j in range(p.cart_item.shape[0]):
        if p.cart_time[j] < since:
            p.cart_item[j], p.cart_time[j], p.cart_quantity[j] = 0, 0.0, 0
    for j in range(p.hidden_item.shape[0]):
        if p.hidden_time[j] < since:
            p.hidden_item[j], p.hidden_time[j] = 0, 0
    if p.channel_time < since:
        p.channel, p.channel_time = 0, 0.0
    if p.overflow_day * DAY_S < since:
        p.overflow[:] = 0
        p.overflow_day = 0
    if p.last_seen < since:
        p.first_seen = p.last_seen = 0.0
    else:
        p.first_seen = since


@njit
def _apply_consent(p: Row, time: float, consent: int) -> None:
    """Apply a statement on consent of `time`: 1 granted, -1 refused. Mutates p.

    The statement with the newest event time holds; of equal times a refusal.
    """
    if time <= p.refused_time:
        return
    if consent > 0:
        if p.granted_time == 0.0 or time < p.granted_time:
            p.granted_time = time
        if time > p.consent_time:
            p.consent, p.consent_time = 1, time
        return
    p.refused_time = time
    if time >= p.consent_time:
        p.consent, p.consent_time, p.granted_time = -1, time, 0.0
        _erase_before(p, np.inf)
        return
    # The refusal arrives after a newer grant. If there are several, the oldest of them is not known.
    if p.granted_time <= time:
        p.granted_time = p.consent_time
    _erase_before(p, p.granted_time)


@njit
def is_covered(p: Row, time: float) -> bool:
    """True if the consent of PROFILE row p covers behaviour of `time`, in seconds.

    A shopper who refused is covered again from their first grant after the newest refusal on.
    """
    return p.consent >= 0 and (p.refused_time == 0.0 or time >= p.granted_time)  # type: ignore[no-any-return]


@njit
def _fold_head(p: Row, e: Row) -> None:
    """Fold the parts of an event that count once, for any number of items. Mutates PROFILE row p."""
    time, kind = e.time, e.kind
    p.events += 1
    p.kinds[kind] += 1
    if p.first_seen == 0.0 or time < p.first_seen:
        p.first_seen = time
    p.last_seen = max(p.last_seen, time)
    if e.channel != 0 and (time, e.channel) > (p.channel_time, p.channel):
        p.channel, p.channel_time = e.channel, time
    row = ACTIVITY_OF[kind]
    if row >= 0:
        if time > p.activity_at:
            _decay_table(p.activity, time - p.activity_at)
            p.activity_at = time
        _count(p.activity[row], p.activity_at, time, 1.0)


@njit
def _fold_part(p: Row, e: Row) -> None:
    """Fold one item or one search word of an event. Mutates PROFILE row p."""
    time, kind, item = e.time, e.kind, e.item
    interest = INTEREST[kind]
    if interest > 0.0 and item != 0:
        _remember(p, item, time, kind)
        if e.category != 0:
            p.category_at = _add_to_table(p.category, p.category_weight, p.category_at, time, e.category, interest)
        if e.brand != 0:
            p.brand_at = _add_to_table(p.brand, p.brand_weight, p.brand_at, time, e.brand, interest)
        if e.price > 0.0:
            _add_price(p, time, e.price)
    if kind == ADD:
        _put_in_cart(p, item, time, max(1, e.quantity))
    elif kind == REMOVE:
        _put_in_cart(p, item, time, 0)
    elif kind == BUY:
        _insert_sorted(p.bought_item, p.bought_time, item, np.int32(time))
        _put_in_cart(p, item, time, 0)
    elif kind == REFUND:
        _undo_purchase(p, item)
    elif kind == HIDE:
        _hide(p, item, time)
    elif kind == SEARCH and e.word != 0:
        _add_word(p, time, e.word)


@njit
def fold_event(p: Row, e: Row, head_outcome: int, refuses_late: bool) -> int:
    """Fold EVENT row e into PROFILE row p, in place, and return its outcome. Only a folded event changes anything.

    An event has a row for each of its parts. `head_outcome` is what part 0 returned; only later parts read it.
    refuses_late: whether an event that cannot be distinguished from a redelivery is refused, rather than folded.
    """
    if e.part == 0:
        outcome: int = _admit(p, e, refuses_late)
        if not outcome & FOLDED:
            return outcome
        if e.consent != 0:
            _apply_consent(p, e.time, e.consent)
        if e.locale != 0 and (e.time, e.locale) > (p.locale_time, p.locale):
            p.locale, p.locale_time = e.locale, e.time
    else:
        outcome = head_outcome & (FOLDED | TOO_LATE)
        if not outcome & FOLDED:
            return outcome
    if not is_covered(p, e.time):
        return outcome
    if e.part == 0:
        _fold_head(p, e)
    _fold_part(p, e)
    return outcome


@njit
def _fold(profiles: Rows, row_of: I32, events: Rows, fresh: Bools) -> None:
    """See `fold`. Mutates profiles and fills fresh (n,)."""
    outcome = DUPLICATE
    for i in range(events.shape[0]):
        outcome = fold_event(profiles[row_of[i]], events[i], outcome, False)
        fresh[i] = outcome & FOLDED != 0


def fold(profiles: Rows, row_of: I32, events: Rows) -> Bools:
    """Fold events into profiles, in place. Return (n,) bool, False for duplicates.

    profiles (S,) PROFILE; events (n,) EVENT in any order, with the parts of one event adjacent; row_of (n,) int32, the
    profile of each event. Consent, locale and channel are those of the newest event that states them; of equal times, a
    refusal and the larger code. Behaviour up to the newest refusal, and until the first grant after it, is not kept.

    The result does not depend on the order of arrival, with these exceptions:
    - a table of categories, brands or words that overflows;
    - a refund that arrives before its purchase;
    - events of one transaction that differ: the first to arrive counts;
    - an event that is older than everything in the full ring of ids: it may have been folded before;
    - an event that arrives while consent is refused: it is lost, even if an earlier grant arrives after it;
    - a refusal that arrives after events on both sides of it: the counters start from zero, and if several newer
      grants are known, behaviour is kept from the newest of them on.
    No order keeps behaviour that consent does not cover.
    """
    fresh = np.empty(len(events), np.bool_)
    _fold(profiles, row_of, events, fresh)
    return fresh
