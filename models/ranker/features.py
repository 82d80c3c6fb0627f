"""phi(U, C): what the softmax knows of a shopper and a candidate, in named features. One phi for serving and training.

The statistics are those that pay in next-click benchmarks (transitions and co-visits of the last items, repeats,
decayed popularity, support interactions), and beside them what a shop knows besides clicks: categories, brands, prices,
words, the cart, purchases, what was shown in vain. Logarithms are shifted so that absence is zero.
"""

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stream.events import ADD
from stream.ids import find
from stream.items.catalog import Catalog
from stream.items.signals import Signals
from stream.jit import njit
from stream.page.candidates import MAX_CANDIDATES, RECENT_ITEMS, Candidates, distinct_recent, row_slot
from stream.codes import REASON_AGAIN_BOUGHT
from stream.codes import REASON_FITS
from stream.codes import REASON_NEW
from stream.codes import REASON_IN_CART
from stream.codes import REASON_WORD
from stream.codes import REASON_PRICE
from stream.codes import REASON_BRAND
from stream.codes import REASON_CATEGORY
from stream.codes import REASON_BEFORE
from stream.codes import REASON_NEXT
from stream.codes import REASON_TOGETHER
from stream.codes import REASON_POPULAR
from stream.codes import GEN_FRESH
from stream.codes import GEN_CATEGORY
from stream.codes import GEN_POPULAR
from stream.profile.exposure import FATIGUE_HALF_LIFE
from stream.profile.fold import HALF_LIVES, TOP

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]

# Name and the reason that a positive theta_i phi_i gives; None: it explains nothing to a shopper.
_NAMED: tuple[tuple[str, int | None], ...] = (
    ("next_last", REASON_NEXT),  # log T[l, c] / O[l]: transitions from the last item, weight 1 / step
    ("next_strict", REASON_NEXT),  # log M[l, c] / m[l]: of one step
    ("next_sum", REASON_NEXT),  # log of the sum over the last items a of T / O / (a + 1)
    ("next_second", REASON_NEXT),
    ("next_last_support", REASON_NEXT),  # times log1p(m[l]) / 5: a rate from many cases says more
    ("next_sum_length", REASON_NEXT),  # times log of the session's length
    ("together_last", REASON_TOGETHER),  # log cosine of co-visits with the last item
    ("together_second", REASON_TOGETHER),
    ("together_sum", REASON_TOGETHER),
    ("together_last_support", REASON_TOGETHER),
    ("back_last", REASON_TOGETHER),  # log T[c, l] / O[c]: the last item after the candidate
    ("two_hop", REASON_TOGETHER),  # over the strongest neighbours of the last item
    ("together_cart", REASON_IN_CART),
    ("popular_hour", REASON_POPULAR),
    ("popular_day", REASON_POPULAR),
    ("popular_fortnight", REASON_POPULAR),
    ("popular_newcomer", REASON_POPULAR),  # popularity of the day / (1 + events of the shopper)
    ("bought_by_many", REASON_POPULAR),
    ("carted_by_many", REASON_POPULAR),
    ("buy_rate", REASON_POPULAR),
    ("is_last", REASON_BEFORE),
    ("is_recent", REASON_BEFORE),
    ("recent_steps", REASON_BEFORE),  # 1 / (1 + steps back)
    ("recent_count", REASON_BEFORE),  # log1p times in the ring
    ("recent_age", REASON_BEFORE),  # log1p minutes since
    ("repeat_rate_last", REASON_BEFORE),  # M[c, c] / m[c] where it is the last item
    ("repeat_rate_recent", REASON_BEFORE),
    ("carted_before", REASON_BEFORE),
    ("in_cart", REASON_IN_CART),
    ("bought", REASON_AGAIN_BOUGHT),
    ("bought_age", REASON_AGAIN_BOUGHT),  # log1p days since
    ("category_half_hour", REASON_CATEGORY),  # share of the taste, at three half-lives
    ("category_day", REASON_CATEGORY),
    ("category_month", REASON_CATEGORY),
    ("category_last", REASON_CATEGORY),  # same as the last item's
    ("category_recent", REASON_CATEGORY),  # share of the last items, weight 1 / (a + 1)
    ("brand_half_hour", REASON_BRAND),
    ("brand_day", REASON_BRAND),
    ("brand_month", REASON_BRAND),
    ("brand_last", REASON_BRAND),
    ("brand_recent", REASON_BRAND),
    ("category_and_brand", REASON_BRAND),
    ("price_distance", REASON_PRICE),  # |log price - mean| of the shopper's
    ("price_square", REASON_PRICE),
    ("price_above", REASON_PRICE),
    ("price_below", REASON_PRICE),
    ("price_last", REASON_PRICE),  # |log price - the last item's|
    ("searched", REASON_WORD),  # decayed weight of the shopper's search words in the title
    ("searched_any", REASON_WORD),
    ("title_last", REASON_CATEGORY),  # share of title words that the last item has too
    ("title_recent", REASON_CATEGORY),  # weight 1 / (a + 1) over the last items
    ("title_category", REASON_CATEGORY),  # title_recent times category_recent
    ("age", REASON_NEW),  # log1p days since it came
    ("is_new", REASON_NEW),  # came within 7 days
    ("expires_soon", None),  # within a day
    ("shown_in_vain", None),  # log1p of the decayed number of showings
    ("shown_in_vain_popular", None),
    ("from_categories", None),
    ("from_fresh", None),
    ("from_popular", None),
    ("has_signals", None),
    ("category_activity", REASON_CATEGORY),  # category_half_hour times log1p of the half hour's activity
    ("foreseen", REASON_FITS),  # log of the history model's share; it and its products are zero where there is no such model
    ("foreseen_support", REASON_FITS),  # times log1p(m[l]) / 5
    ("foreseen_length", REASON_FITS),  # times log of the session's length
    ("foreseen_behind", None),  # log of the share over the best candidate's
    ("foreseen_unknown", None),  # the model has never seen the item: its share is that of its attributes
    ("led_there", REASON_NEXT),  # log1p M[l, c]: how often one step led from the last item there
    ("support", None),  # log1p(m[c]) / 5
    ("touched_age", None),  # log1p hours since anybody touched it
    # Alike for all candidates, so that they say nothing by themselves: an MLP weighs the others by them.
    ("session_length", None),  # log1p interactions of the last half hour
    ("session_items", None),  # log1p distinct items among the last
    ("session_gap", None),  # log1p minutes between the last two interactions
    ("last_support", None),  # log1p(m[l]) / 5
    ("last_visits", None),  # log1p(n[l]) / 5
)
FEATURES = tuple(name for name, _ in _NAMED)
F = len(FEATURES)
REASON_OF = np.array([-1 if reason is None else reason for _, reason in _NAMED], np.int8)  # (F,)
_AT = {name: at for at, name in enumerate(FEATURES)}
_LIVES = np.array(HALF_LIVES)
_WORDS = 128  # slots of the hash of the last items' title words
_PLACES = 1024  # slots of the hash of the candidates' rows
assert _PLACES > 2 * MAX_CANDIDATES
_MARKS = 1024  # slots of the sieve of items that a shopper has to do with
_RECENT, _CART, _BOUGHT, _TIRED, _CATEGORY, _BRAND = 1, 2, 4, 8, 16, 32


def features_hash() -> str:
    """sha256 of the names, in order: what a ranker's manifest must repeat."""
    return "sha256:" + hashlib.sha256("\n".join(FEATURES).encode()).hexdigest()


NEXT_LAST, NEXT_SUM, TOGETHER_LAST, TOGETHER_CART = (
    _AT[n] for n in ("next_last", "next_sum", "together_last", "together_cart")
)
POPULAR_HOUR, BOUGHT_BY_MANY, IS_LAST, IN_THE_CART = (
    _AT[n] for n in ("popular_hour", "bought_by_many", "is_last", "in_cart")
)
CATEGORY_0, BRAND_0, PRICE_0, SEARCHED = (
    _AT[n] for n in ("category_half_hour", "brand_half_hour", "price_distance", "searched")
)
TITLE_LAST, AGE, FORESEEN, LED_THERE = (_AT[n] for n in ("title_last", "age", "foreseen", "led_there"))


@njit
def _log1p(value):  # type: ignore[no-untyped-def]
    """Half the time of np.log1p, and as good for what is rounded to 32 bits."""
    return np.log(1.0 + value)


@njit
def _log_share(value, floor):  # type: ignore[no-untyped-def]
    return np.log((value + floor) / floor)


@njit
def _table_shares(keys, weights, at, now, out):  # type: ignore[no-untyped-def]
    """Shares of each key of a profile's table, at three half-lives, in out (T, 3)."""
    for life in range(3):
        total = 1e-9
        for j in range(keys.shape[0]):
            total += weights[j, life]
        # A little taste, long ago, is not a whole taste: the half adds doubt.
        decay = 2.0 ** -(max(0.0, now - at) / _LIVES[life])
        for j in range(keys.shape[0]):
            out[j, life] = weights[j, life] * decay / (total * decay + 0.5)


@njit
def _alike(phi, i, k, wanted, keys, shares, recent_keys, weights, r, weight_sum):  # type: ignore[no-untyped-def]
    """Five features from phi[i, k] on: shares of `wanted` in a table, whether the last item has it, its share of the last r."""
    # Zero is no key. Of a key that stands there twice the later share holds.
    for j in range(keys.shape[0] - 1, -1, -1):
        if keys[j] == wanted:
            for life in range(3):
                phi[i, k + life] = shares[j, life]
            break
    for a in range(r):
        if recent_keys[a] == wanted:
            phi[i, k + 4] += weights[a] / weight_sum
            if a == 0:
                phi[i, k + 3] = 1.0


@njit
def _mark(marks, key, sign):  # type: ignore[no-untyped-def]
    """Note in a small sieve that `key` may be in the list of `sign` (a bit): most candidates are in none."""
    marks[key & (marks.shape[0] - 1)] |= sign


@njit
def _joint_features(profiles, serving, now, rows, generators, count, index_keys, index_rows, items, signals,  # type: ignore[no-untyped-def]
                    near_row, figures, seen_of, lives, clock, shares, unknown, phi):  # fmt: skip
    recent = np.empty(RECENT_ITEMS, np.int32)
    weights = np.empty(RECENT_ITEMS)
    recent_category, recent_brand = np.empty(RECENT_ITEMS, np.int32), np.empty(RECENT_ITEMS, np.int32)
    words = np.zeros(_WORDS, np.int32)
    word_last, word_recent = np.zeros(_WORDS), np.zeros(_WORDS)
    category_shares, brand_shares = np.zeros((TOP, 3)), np.zeros((TOP, 3))
    marks = np.empty(_MARKS, np.uint8)
    limit = rows.shape[1]
    keys, places = np.empty(_PLACES, np.int32), np.empty(_PLACES, np.int32)
    # Sums over the walk, before their logarithms: next last, strict, sum, second; together last, second, sum; hop, cart;
    # strict uncut.
    raw = np.zeros((limit, 10))
    its, figs, leads_back = np.empty(limit, items.dtype), np.empty(limit, figures.dtype), np.empty(limit, np.bool_)
    for u in range(rows.shape[0]):
        p, served, time, n = profiles[u], serving[u], now[u], count[u]
        known_until = min(time, clock)
        keys[:] = -1
        for c in range(n):
            slot = row_slot(keys, rows[u, c])
            keys[slot] = rows[u, c]
            places[slot] = c
            raw[c, :] = 0.0
        r = distinct_recent(p, index_keys, index_rows, recent)
        support = visits = weight_sum = 0.0
        for a in range(r):
            weights[a] = 1.0 / (a + 1.0)
            weight_sum += weights[a]
            recent_category[a], recent_brand[a] = items[recent[a]].category, items[recent[a]].brand
            s = signals[recent[a]]
            if s.item == 0:
                continue
            weight = weights[a]
            if a == 0:
                support = _log1p(np.float64(s.strict_out)) / 5.0
                visits = _log1p(np.float64(s.seen)) / 5.0
            out = max(s.next_out, np.float32(1e-9))
            for j in range(near_row.shape[1]):
                row = near_row[recent[a], j]
                if row < 0:
                    continue
                slot = row_slot(keys, row)
                at = places[slot] if keys[slot] == row else -1
                follows = s.near_next[j] / out
                if a == 0 and follows > 0.02:
                    o = signals[row]
                    hop_out = max(o.next_out, np.float32(1e-9))
                    for k in range(near_row.shape[1]):
                        hop = near_row[row, k]
                        if hop < 0:
                            continue
                        slot = row_slot(keys, hop)
                        if keys[slot] == hop:
                            raw[places[slot], 7] += follows * o.near_next[k] / hop_out
                if at < 0:
                    continue
                together = s.near_visit[j] / np.sqrt(max(np.float64(s.seen) * seen_of[row], 1e-9))
                if a == 0:
                    raw[at, 0] = follows
                    raw[at, 1] = s.near_strict[j] / max(s.strict_out, np.float32(1e-9))
                    raw[at, 9] = s.near_strict[j]
                    raw[at, 4] = together
                elif a == 1:
                    raw[at, 3] = follows
                    raw[at, 5] = together
                raw[at, 2] += weight * follows
                raw[at, 6] += weight * together
        marks[:] = 0
        for i in range(p.cart_item.shape[0]):
            if p.cart_item[i] == 0 or p.cart_quantity[i] == 0:
                continue
            _mark(marks, p.cart_item[i], _CART)
            source = find(index_keys, index_rows, p.cart_item[i])
            if source < 0 or signals[source].item == 0:
                continue
            s = signals[source]
            for j in range(near_row.shape[1]):
                row = near_row[source, j]
                if row < 0:
                    continue
                slot = row_slot(keys, row)
                if keys[slot] == row:
                    raw[places[slot], 8] += s.near_visit[j] / np.sqrt(max(np.float64(s.seen) * seen_of[row], 1e-9))
        for j in range(p.recent_item.shape[0]):
            if p.recent_item[j] != 0:
                _mark(marks, p.recent_item[j], _RECENT)
        for j in range(p.bought_item.shape[0]):
            if p.bought_item[j] != 0:
                _mark(marks, p.bought_item[j], _BOUGHT)
        for j in range(served.fatigue_item.shape[0]):
            if served.fatigue_item[j] != 0:
                _mark(marks, served.fatigue_item[j], _TIRED)
        for j in range(p.category.shape[0]):
            _mark(marks, p.category[j], _CATEGORY)
        for j in range(p.brand.shape[0]):
            _mark(marks, p.brand[j], _BRAND)
        for a in range(r):
            _mark(marks, recent_category[a], _CATEGORY)
            _mark(marks, recent_brand[a], _BRAND)
        # Title words of the last items, hashed.
        words[:] = 0
        for a in range(r):
            for j in range(items[recent[a]].word.shape[0]):
                word = items[recent[a]].word[j]
                if word == 0:
                    break
                at = word & (_WORDS - 1)
                while words[at] != 0 and words[at] != word:
                    at = (at + 1) & (_WORDS - 1)
                if words[at] == 0:
                    words[at] = word
                    word_last[at] = word_recent[at] = 0.0
                if a == 0:
                    word_last[at] = 1.0
                word_recent[at] += weights[a]
        length = 0
        for j in range(p.recent_item.shape[0] - 1, -1, -1):
            if p.recent_item[j] == 0 or time - p.recent_time[j] > 1800.0:
                break
            length += 1
        log_length, log_items, log_gap = _log1p(np.float64(length)), _log1p(np.float64(r)), 0.0
        newest = p.recent_item.shape[0] - 1
        if p.recent_item[newest - 1] != 0:
            log_gap = _log1p(max(0.0, p.recent_time[newest] - p.recent_time[newest - 1]) / 60.0)
        activity = 0.0
        for j in range(p.activity.shape[0]):
            activity += p.activity[j, 0]
        activity = _log1p(activity * 2.0 ** -(max(0.0, time - p.activity_at) / _LIVES[0]))
        mean, priced = 0.0, p.price_weight > 0.0
        spread = 0.7
        if priced:
            mean = p.price_sum / p.price_weight
            variance = max(0.0, p.price_square / p.price_weight - mean * mean)
            # A few prices say little of the spread: half a price of doubt at a common spread of .7.
            spread = np.sqrt((variance * p.price_weight + 0.5 * 0.49) / (p.price_weight + 0.5)) + 0.1
        word_decay = 2.0 ** -(max(0.0, time - p.word_at) / 86_400.0)
        searched_total, searches = 1e-9, False
        for j in range(p.word.shape[0]):
            searched_total = max(searched_total, p.word_weight[j])
            searches = searches or p.word[j] != 0
        _table_shares(p.category, p.category_weight, p.category_at, time, category_shares)
        _table_shares(p.brand, p.brand_weight, p.brand_at, time, brand_shares)
        last, last_price = -1, np.float32(0.0)
        if r > 0:
            last, last_price = recent[0], items[recent[0]].log_price
        # Fetch what lies anywhere in memory in loops of their own, so short that the processor waits for many lines at once.
        for c in range(n):
            its[c] = items[rows[u, c]]
        for c in range(n):
            figs[c] = figures[rows[u, c]]
        for c in range(n):
            hits = np.int32(0)
            for j in range(near_row.shape[1]):
                hits += np.int32(near_row[rows[u, c], j] == last)
            leads_back[c] = hits > 0
        foresees, best_share = shares.shape[0] > 0, 0.0
        if foresees:
            for c in range(n):
                best_share = max(best_share, np.float64(shares[u, c]))
            foresees = best_share > 0.0
        phi[u * limit + n : (u + 1) * limit, :] = 0.0
        for c in range(n):
            row = rows[u, c]
            item, s, i = its[c], figs[c], u * limit + c
            phi[i, :] = 0.0
            k = NEXT_LAST
            if raw[c, 2] > 0.0:  # zero where the walk did not come by, as what is left out here
                phi[i, k] = _log_share(raw[c, 0], 3e-4)
                phi[i, k + 1] = _log_share(raw[c, 1], 3e-4)
                phi[i, k + 2] = _log_share(raw[c, 2], 3e-4)
                phi[i, k + 3] = _log_share(raw[c, 3], 3e-4)
                phi[i, k + 4] = phi[i, k] * support
                phi[i, k + 5] = phi[i, k + 2] * log_length
            if raw[c, 6] > 0.0:
                phi[i, k + 6] = _log_share(raw[c, 4], 3e-3)
                phi[i, k + 7] = _log_share(raw[c, 5], 3e-3)
                phi[i, k + 8] = _log_share(raw[c, 6], 3e-3)
                phi[i, k + 9] = phi[i, k + 6] * visits
            if last >= 0 and s.known != 0 and leads_back[c]:
                for j in range(near_row.shape[1]):
                    if near_row[row, j] == last:
                        follows = np.float64(signals[row].near_next[j] / max(s.next_out, np.float32(1e-9)))
                        phi[i, k + 10] = _log_share(follows, 3e-4)
                        break
            if raw[c, 7] > 0.0:
                phi[i, k + 11] = _log_share(raw[c, 7], 3e-4)
            if raw[c, 8] > 0.0:
                phi[i, TOGETHER_CART] = _log_share(raw[c, 8], 3e-3)
            if s.known != 0:
                gap = max(0.0, known_until - s.time)
                stock = 0.0
                for life in range(3):
                    stock = 2.0 ** -(gap / lives[life])
                    phi[i, POPULAR_HOUR + life] = _log1p(np.float64(s.popular[life]) * stock)
                phi[i, POPULAR_HOUR + 3] = phi[i, POPULAR_HOUR + 1] / (1.0 + p.events)
                k = BOUGHT_BY_MANY
                phi[i, k] = _log1p(np.float64(s.buys) * stock)
                phi[i, k + 1] = _log1p(np.float64(s.carts) * stock)
                phi[i, k + 2] = np.log((s.buys * stock + 1.0) / (s.popular[2] * stock + 20.0) * 20.0)
            mark = marks[item.id & (_MARKS - 1)]
            if mark & _RECENT:
                k = IS_LAST
                times, back, since, carted = 0, -1, 0.0, 0.0
                for j in range(p.recent_item.shape[0] - 1, -1, -1):
                    if p.recent_item[j] == item.id:
                        times += 1
                        if back < 0:
                            back = p.recent_item.shape[0] - 1 - j
                            since = time - p.recent_time[j]
                        if p.recent_kind[j] == ADD:
                            carted = 1.0
                if times > 0:
                    rate = s.repeat / max(s.strict_out, np.float32(1.0))
                    phi[i, k] = 1.0 if last == row else 0.0
                    phi[i, k + 1] = 1.0
                    phi[i, k + 2] = 1.0 / (1.0 + back)
                    phi[i, k + 3] = _log1p(np.float64(times))
                    phi[i, k + 4] = _log1p(max(0.0, since) / 60.0)
                    phi[i, k + 5] = rate * phi[i, k]
                    phi[i, k + 6] = rate
                    phi[i, k + 7] = carted
            if mark & _CART:
                for j in range(p.cart_item.shape[0]):
                    if p.cart_item[j] == item.id and p.cart_quantity[j] > 0:
                        phi[i, IN_THE_CART] = 1.0
            if mark & _BOUGHT:
                for j in range(p.bought_item.shape[0] - 1, -1, -1):
                    if p.bought_item[j] == item.id:
                        phi[i, IN_THE_CART + 1] = 1.0
                        phi[i, IN_THE_CART + 2] = _log1p(max(0.0, time - p.bought_time[j]) / 86_400.0)
                        break
            if marks[item.category & (_MARKS - 1)] & _CATEGORY and item.category != 0:
                _alike(
                    phi,
                    i,
                    CATEGORY_0,
                    item.category,
                    p.category,
                    category_shares,
                    recent_category,
                    weights,
                    r,
                    weight_sum,
                )
            k = BRAND_0
            if marks[item.brand & (_MARKS - 1)] & _BRAND and item.brand != 0:
                _alike(phi, i, k, item.brand, p.brand, brand_shares, recent_brand, weights, r, weight_sum)
            phi[i, k + 5] = np.sqrt(phi[i, CATEGORY_0 + 4] * phi[i, BRAND_0 + 4])
            k = PRICE_0
            if item.log_price != 0.0:
                if priced:
                    far = (item.log_price - mean) / spread
                    phi[i, k] = min(abs(far), 6.0)
                    phi[i, k + 1] = min(far * far, 36.0) / 6.0
                    phi[i, k + 2] = min(max(far, 0.0), 6.0)
                    phi[i, k + 3] = min(max(-far, 0.0), 6.0)
                if last_price != 0.0:
                    phi[i, k + 4] = min(abs(item.log_price - last_price), 5.0)
            k = TITLE_LAST
            n_words = 0
            for j in range(item.word.shape[0]):
                word = item.word[j]
                if word == 0:
                    break
                n_words += 1
                if searches:
                    for m in range(p.word.shape[0]):
                        if p.word[m] == word:
                            phi[i, SEARCHED] += p.word_weight[m] * word_decay
                            phi[i, SEARCHED + 1] = max(phi[i, SEARCHED + 1], p.word_weight[m] / searched_total)
                at = word & (_WORDS - 1)
                while words[at] != 0 and words[at] != word:
                    at = (at + 1) & (_WORDS - 1)
                if words[at] == word:
                    phi[i, k] += word_last[at]
                    phi[i, k + 1] += word_recent[at]
            if n_words > 0:
                phi[i, k] /= n_words
                phi[i, k + 1] /= n_words * weight_sum if weight_sum > 0.0 else 1.0
            phi[i, k + 2] = phi[i, k + 1] * phi[i, CATEGORY_0 + 4]
            k = AGE
            if item.added > 0.0:
                days = max(0.0, time - item.added) / 86_400.0
                phi[i, k] = _log1p(days)
                phi[i, k + 1] = 1.0 if days < 7.0 else 0.0
            phi[i, k + 2] = 1.0 if item.expires - time < 86_400.0 else 0.0
            if mark & _TIRED:
                for j in range(served.fatigue_item.shape[0]):
                    if served.fatigue_item[j] == np.int32(item.id):
                        rest = 2.0 ** -(max(0.0, time - served.fatigue_time[j]) / FATIGUE_HALF_LIFE)
                        phi[i, k + 3] = _log1p(served.fatigue_count[j] * rest)
                        break
            phi[i, k + 4] = phi[i, k + 3] * phi[i, POPULAR_HOUR + 1]
            g = generators[u, c]
            phi[i, k + 5] = 1.0 if g & GEN_CATEGORY else 0.0
            phi[i, k + 6] = 1.0 if g & GEN_FRESH else 0.0
            phi[i, k + 7] = 1.0 if g & GEN_POPULAR else 0.0
            phi[i, k + 8] = 1.0 if s.known != 0 else 0.0
            phi[i, k + 9] = phi[i, CATEGORY_0] * activity
            if foresees:
                share = np.float64(shares[u, c])
                k = FORESEEN
                phi[i, k] = _log_share(share, 1e-5)
                phi[i, k + 1] = phi[i, k] * support
                phi[i, k + 2] = phi[i, k] * log_length
                phi[i, k + 3] = np.log((share + 1e-5) / (best_share + 1e-5))
                phi[i, k + 4] = np.float32(unknown[row])
            k = LED_THERE
            if raw[c, 9] > 0.0:
                phi[i, k] = _log1p(raw[c, 9])
            if s.known != 0:
                phi[i, k + 1] = _log1p(np.float64(s.strict_out)) / 5.0
                phi[i, k + 2] = _log1p(max(0.0, known_until - s.time) / 3600.0)
            phi[i, k + 3], phi[i, k + 4], phi[i, k + 5] = log_length, log_items, log_gap
            phi[i, k + 6], phi[i, k + 7] = support, visits


class HistoryScores(NamedTuple):
    """What a history model says of U shoppers' candidates."""

    shares: Floats  # (U, C) softmax among them; a row of zeros: nothing. (0, 0) where there is no model
    unknown: npt.NDArray[np.int8]  # (capacity of the catalogue,) 1 for items that the model was not trained on


NO_HISTORY_SCORES = HistoryScores(np.empty((0, 0), np.float32), np.empty(0, np.int8))


def joint_features(
    profiles: Rows,
    serving: Rows,
    now: npt.NDArray[np.float64],
    candidates: Candidates,
    catalog: Catalog,
    signals: Signals,
    room: Floats | None = None,
    foreseen: HistoryScores = NO_HISTORY_SCORES,
) -> Floats:
    """phi of U shoppers and their candidates. (U, C, F) float32, zero beyond the count; in `room` where there is some.

    profiles (U,) PROFILE; serving (U,) SERVING; now (U,) s, each shopper's own newest event time: a shopper's features
    are the same to the bit alone and in any batch. foreseen: of a history model, where there is one.
    """
    phi = room if room is not None else np.empty((*candidates.rows.shape, F), np.float32)
    signals.grow_to_catalog()
    _joint_features(
        profiles, serving, now, candidates.rows, candidates.generators, candidates.count, catalog.index.keys,
        catalog.index.rows, catalog.items, signals.rows, signals.neighbour_rows, signals.summaries,
        signals.seen, signals.half_lives, signals.clock, foreseen.shares, foreseen.unknown, phi.reshape(-1, F),
    )  # fmt: skip
    return phi
