"""The kernels of phi(U, C): each fills one group of columns for the candidates of one shopper.

`fill_features` first reads what the shopper did (`session_facts` and the small hash tables), then adds up the signals
of the shopper's items (`neighbour_sums`), then fills the columns group by group. Statistics that pay in next-click
benchmarks come first (transitions, co-visits, repeats, decayed popularity and its support). The others use what a shop
knows besides clicks: categories, brands, prices, words, the cart, purchases, and items shown in vain.

Rows of phi are float32 and intermediate values float64. Oracle of all kernels: `phi_in_words` in
tests/unit/models/ranker/test_features.py.
"""

from typing import NamedTuple

import numpy as np

from models.ranker import columns as col
from stream.codes import GEN_CATEGORY, GEN_FRESH, GEN_POPULAR
from stream.decay import decay_factor
from stream.events.decode import ADD
from stream.ids import find
from stream.items.catalog import ITEM
from stream.items.signals import SIGNAL_SUMMARY
from stream.jit import njit
from stream.page.candidates import MAX_CANDIDATES, RECENT_ITEMS, distinct_recent, row_slot
from stream.profile.exposure import FATIGUE_HALF_LIFE_S
from stream.profile.row import HALF_LIVES, TOP_KEYS, WORD_HALF_LIFE_S
from stream.types import F32, F64, I8, I32, I64, U8, Bools, Row, Rows

_HALF_LIVES_S = np.array(HALF_LIVES)
_DAY_S = 86_400.0
_SESSION_S = 1800.0
_WEEK_DAYS = 7.0

# Logarithms of shares are log((share + floor) / floor).
_NEXT_FLOOR, _TOGETHER_FLOOR, _HISTORY_FLOOR = 3e-4, 3e-3, 1e-5
_HOP_SHARE = 0.02  # a neighbour with a smaller share of the transitions is not followed a second step
_DOUBT = 0.5  # a little taste of long ago is not a whole taste: half an interaction of doubt is added
# Few prices give no reliable spread: half a price of doubt at a common spread of 0.7, and a smallest spread.
_PRICE_DOUBT, _COMMON_SPREAD, _COMMON_VARIANCE, _SMALLEST_SPREAD = 0.5, 0.7, 0.49, 0.1

_WORD_SLOTS = 128  # hash of the recent items' title words
_ROW_SLOTS = 1024  # hash of the candidates' catalogue rows
assert _ROW_SLOTS > 2 * MAX_CANDIDATES
_SIEVE_SLOTS = 1024
# Bits of the sieve: the lists of the shopper in which a key may be.
_RECENT, _CART, _BOUGHT, _TIRED, _CATEGORY, _BRAND = 1, 2, 4, 8, 16, 32

# Columns of the sums that `neighbour_sums` collects for each candidate.
(
    _NEXT_LAST, _NEXT_STRICT, _NEXT_SUM, _NEXT_SECOND, _TOGETHER_LAST, _TOGETHER_SECOND, _TOGETHER_SUM, _TWO_HOP,
    _TOGETHER_CART, _STRICT_COUNT,
) = range(10)  # fmt: skip
_SUMS = 10


class CatalogView(NamedTuple):
    """Arrays of a `Catalog`."""

    index_keys: I64
    index_rows: I32
    items: Rows  # (capacity,) ITEM


class SignalsView(NamedTuple):
    """Arrays of `Signals`, all of the catalogue's capacity."""

    rows: Rows  # (capacity,) SIGNAL
    neighbour_rows: I32  # (capacity, neighbours) catalogue rows, -1 absent
    summaries: Rows  # (capacity,) SIGNAL_SUMMARY
    seen: F32  # (capacity,) sessions
    half_lives: F64  # (4,) s
    clock: float  # s, newest event time counted


class RecentItems(NamedTuple):
    """The shopper's last distinct items, newest first. (RECENT_ITEMS,) each."""

    row: I32  # of the catalogue
    weight: F64  # 1 / (a + 1)
    category: I32
    brand: I32


class CandidateIndex(NamedTuple):
    """Open-addressing hash from catalogue row to candidate. (_ROW_SLOTS,) each."""

    keys: I32  # catalogue rows, -1 free
    candidates: I32


class TitleWords(NamedTuple):
    """Open-addressing hash of the recent items' title words. (_WORD_SLOTS,) each."""

    word: I32  # 0 free
    in_last: F64  # 1 if the last item's title has it
    weight: F64  # sum of the weights of the recent items whose titles have it


class Gathered(NamedTuple):
    """What the catalogue and the signals hold of the candidates, copied side by side. (C,) each."""

    items: Rows  # ITEM
    summaries: Rows  # SIGNAL_SUMMARY
    leads_back: Bools  # whether the last item is among the candidate's neighbours


class Session(NamedTuple):
    """Facts of the shopper that are equal for all candidates."""

    time: float  # s, the shopper's own newest event time
    last_row: int  # catalogue row of the last item, -1 without one
    recent_count: int  # distinct recent items
    weight_sum: float  # of the recent items
    support: float
    visits: float
    log_length: float
    log_items: float
    log_gap: float
    activity: float  # log1p of the half hour's activity


@njit
def _log1p(value: float) -> float:
    """Natural log of 1 + value: twice as fast as np.log1p, and as good when rounded to 32 bits."""
    return np.log(1.0 + value)  # type: ignore[no-any-return]


@njit
def _log_share(value: float, floor: float) -> float:
    """Log of a share, shifted so that a share of zero gives zero."""
    return np.log((value + floor) / floor)  # type: ignore[no-any-return]


@njit
def _cosine(together: float, seen_here: float, seen_there: float) -> float:
    """Cosine of co-visits: visits with both items over the geometric mean of the visits with each."""
    return together / np.sqrt(max(np.float64(seen_here) * seen_there, 1e-9))  # type: ignore[no-any-return]


@njit
def _word_slot(words: I32, word: int) -> int:
    """Slot of `word` in the hash of title words, or the free slot where it belongs."""
    at = word & (_WORD_SLOTS - 1)
    while words[at] != 0 and words[at] != word:
        at = (at + 1) & (_WORD_SLOTS - 1)
    return at


@njit
def _mark(sieve: U8, key: int, list_bit: int) -> None:
    """Note in the sieve that `key` may be in a list of the shopper. Most candidates are in none."""
    sieve[key & (_SIEVE_SLOTS - 1)] |= list_bit


@njit
def _index_candidates(rows: I32, n: int, index: CandidateIndex) -> None:
    """Fill the hash with the first n of the candidates' rows (C,)."""
    keys, candidates = index
    keys[:] = -1
    for c in range(n):
        slot = row_slot(keys, rows[c])
        keys[slot] = rows[c]
        candidates[slot] = c


@njit
def _read_recent(p: Row, catalog: CatalogView, recent: RecentItems) -> int:
    """Fill `recent` from a PROFILE row and return the number of items."""
    rows, weights, categories, brands = recent
    count = distinct_recent(p, catalog.index_keys, catalog.index_rows, rows)
    items = catalog.items
    for a in range(count):
        weights[a] = 1.0 / (a + 1.0)
        categories[a], brands[a] = items[rows[a]].category, items[rows[a]].brand
    return count  # type: ignore[no-any-return]


@njit
def _read_title_words(items: Rows, recent: RecentItems, count: int, words: TitleWords) -> None:
    """Fill the hash with the title words of the first `count` recent items."""
    slots, in_last, weights = words
    slots[:] = 0
    for a in range(count):
        item = items[recent.row[a]]
        for j in range(item.word.shape[0]):
            word = item.word[j]
            if word == 0:
                break
            at = _word_slot(slots, word)
            if slots[at] == 0:
                slots[at] = word
                in_last[at] = weights[at] = 0.0
            if a == 0:
                in_last[at] = 1.0
            weights[at] += recent.weight[a]


@njit
def _mark_lists(p: Row, served: Row, recent: RecentItems, count: int, sieve: U8) -> None:
    """Mark every key of the shopper's lists in the sieve (_SIEVE_SLOTS,)."""
    sieve[:] = 0
    categories, brands = recent.category, recent.brand
    for j in range(p.cart_item.shape[0]):
        if p.cart_item[j] != 0 and p.cart_quantity[j] != 0:
            _mark(sieve, p.cart_item[j], _CART)
    for j in range(p.recent_item.shape[0]):
        if p.recent_item[j] != 0:
            _mark(sieve, p.recent_item[j], _RECENT)
    for j in range(p.bought_item.shape[0]):
        if p.bought_item[j] != 0:
            _mark(sieve, p.bought_item[j], _BOUGHT)
    for j in range(served.fatigue_item.shape[0]):
        if served.fatigue_item[j] != 0:
            _mark(sieve, served.fatigue_item[j], _TIRED)
    for j in range(p.category.shape[0]):
        _mark(sieve, p.category[j], _CATEGORY)
    for j in range(p.brand.shape[0]):
        _mark(sieve, p.brand[j], _BRAND)
    for a in range(count):
        _mark(sieve, categories[a], _CATEGORY)
        _mark(sieve, brands[a], _BRAND)


@njit
def _session_facts(p: Row, time: float, recent: RecentItems, count: int, signals: SignalsView) -> Session:
    """Facts of a PROFILE row at `time` (s)."""
    support = visits = weight_sum = 0.0
    weights = recent.weight
    for a in range(count):
        weight_sum += weights[a]
    last_row = -1
    if count > 0:
        last_row = recent.row[0]
        s = signals.rows[last_row]
        if s.item != 0:
            support = _log1p(np.float64(s.strict_out)) / 5.0
            visits = _log1p(np.float64(s.seen)) / 5.0
    length = 0
    for j in range(p.recent_item.shape[0] - 1, -1, -1):
        if p.recent_item[j] == 0 or time - p.recent_time[j] > _SESSION_S:
            break
        length += 1
    log_gap, newest = 0.0, p.recent_item.shape[0] - 1
    if p.recent_item[newest - 1] != 0:
        log_gap = _log1p(max(0.0, p.recent_time[newest] - p.recent_time[newest - 1]) / 60.0)
    activity = 0.0
    for j in range(p.activity.shape[0]):
        activity += p.activity[j, 0]
    activity = _log1p(activity * decay_factor(max(0.0, time - p.activity_at), _HALF_LIVES_S[0]))
    log_length, log_items = _log1p(np.float64(length)), _log1p(np.float64(count))
    return Session(time, last_row, count, weight_sum, support, visits, log_length, log_items, log_gap, activity)


@njit
def _add_second_step(row: int, share: float, signals: SignalsView, index: CandidateIndex, sums: F64) -> None:
    """Add to the candidates' _TWO_HOP the shares of the neighbours of `row`, itself reached with `share`."""
    neighbour_rows, (keys, candidates) = signals.neighbour_rows, index
    s = signals.rows[row]
    next_out = max(s.next_out, np.float32(1e-9))
    for j in range(neighbour_rows.shape[1]):
        hop = neighbour_rows[row, j]
        if hop < 0:
            continue
        slot = row_slot(keys, hop)
        if keys[slot] == hop:
            sums[candidates[slot], _TWO_HOP] += share * s.near_next[j] / next_out


@njit
def _add_recent(recent: RecentItems, a: int, signals: SignalsView, index: CandidateIndex, sums: F64) -> None:
    """Add the neighbours of recent item a to the candidates' sums (C, _SUMS)."""
    source, weight = recent.row[a], recent.weight[a]
    neighbour_rows, seen, (keys, candidates) = signals.neighbour_rows, signals.seen, index
    s = signals.rows[source]
    if s.item == 0:
        return
    next_out = max(s.next_out, np.float32(1e-9))
    for j in range(neighbour_rows.shape[1]):
        row = neighbour_rows[source, j]
        if row < 0:
            continue
        slot = row_slot(keys, row)
        c = candidates[slot] if keys[slot] == row else -1
        share = s.near_next[j] / next_out
        if a == 0 and share > _HOP_SHARE:
            _add_second_step(row, share, signals, index, sums)
        if c < 0:
            continue
        together = _cosine(s.near_visit[j], s.seen, seen[row])
        if a == 0:
            sums[c, _NEXT_LAST] = share
            sums[c, _NEXT_STRICT] = s.near_strict[j] / max(s.strict_out, np.float32(1e-9))
            sums[c, _STRICT_COUNT] = s.near_strict[j]
            sums[c, _TOGETHER_LAST] = together
        elif a == 1:
            sums[c, _NEXT_SECOND] = share
            sums[c, _TOGETHER_SECOND] = together
        sums[c, _NEXT_SUM] += weight * share
        sums[c, _TOGETHER_SUM] += weight * together


@njit
def _add_cart(p: Row, catalog: CatalogView, signals: SignalsView, index: CandidateIndex, sums: F64) -> None:
    """Add the co-visit cosines of the items in the cart to the candidates' _TOGETHER_CART."""
    neighbour_rows, seen, (keys, candidates) = signals.neighbour_rows, signals.seen, index
    for i in range(p.cart_item.shape[0]):
        if p.cart_item[i] == 0 or p.cart_quantity[i] == 0:
            continue
        source = find(catalog.index_keys, catalog.index_rows, p.cart_item[i])
        if source < 0:
            continue
        s: Row = signals.rows[source]
        if s.item == 0:
            continue
        for j in range(neighbour_rows.shape[1]):
            row = neighbour_rows[source, j]
            if row < 0:
                continue
            slot = row_slot(keys, row)
            if keys[slot] == row:
                sums[candidates[slot], _TOGETHER_CART] += _cosine(s.near_visit[j], s.seen, seen[row])


@njit
def _neighbour_sums(
    p: Row,
    recent: RecentItems,
    count: int,
    catalog: CatalogView,
    signals: SignalsView,
    index: CandidateIndex,
    sums: F64,
) -> None:
    """Add to sums (C, _SUMS) the neighbours of the recent items and of the cart, before logarithms."""
    for a in range(count):
        _add_recent(recent, a, signals, index, sums)
    _add_cart(p, catalog, signals, index, sums)


@njit
def _gather_candidates(rows: I32, n: int, last_row: int, items: Rows, signals: SignalsView, gathered: Gathered) -> None:
    """Copy the ITEM and SIGNAL_SUMMARY records of the candidates' rows (C,) side by side into `gathered`.

    The records are scattered over memory. Short loops let the processor wait for many cache lines at once.
    """
    my_items, my_summaries, leads_back = gathered
    summaries, neighbour_rows = signals.summaries, signals.neighbour_rows
    for c in range(n):
        my_items[c] = items[rows[c]]
    for c in range(n):
        my_summaries[c] = summaries[rows[c]]
    for c in range(n):
        hits = np.int32(0)
        for j in range(neighbour_rows.shape[1]):
            hits += np.int32(neighbour_rows[rows[c], j] == last_row)
        leads_back[c] = hits > 0


@njit
def _neighbour_features(
    rows: I32, n: int, session: Session, signals: SignalsView, gathered: Gathered, sums: F64, phi: F32
) -> None:
    """Transitions and co-visits into phi (C, F); zero for candidates that no sum reached."""
    summaries, leads_back = gathered.summaries, gathered.leads_back
    neighbour_rows, signal_rows = signals.neighbour_rows, signals.rows
    for c in range(n):
        if sums[c, _NEXT_SUM] > 0.0:
            phi[c, col.NEXT_LAST] = _log_share(sums[c, _NEXT_LAST], _NEXT_FLOOR)
            phi[c, col.NEXT_STRICT] = _log_share(sums[c, _NEXT_STRICT], _NEXT_FLOOR)
            phi[c, col.NEXT_SUM] = _log_share(sums[c, _NEXT_SUM], _NEXT_FLOOR)
            phi[c, col.NEXT_SECOND] = _log_share(sums[c, _NEXT_SECOND], _NEXT_FLOOR)
            phi[c, col.NEXT_LAST_SUPPORT] = phi[c, col.NEXT_LAST] * session.support
            phi[c, col.NEXT_SUM_LENGTH] = phi[c, col.NEXT_SUM] * session.log_length
        if sums[c, _TOGETHER_SUM] > 0.0:
            phi[c, col.TOGETHER_LAST] = _log_share(sums[c, _TOGETHER_LAST], _TOGETHER_FLOOR)
            phi[c, col.TOGETHER_SECOND] = _log_share(sums[c, _TOGETHER_SECOND], _TOGETHER_FLOOR)
            phi[c, col.TOGETHER_SUM] = _log_share(sums[c, _TOGETHER_SUM], _TOGETHER_FLOOR)
            phi[c, col.TOGETHER_LAST_SUPPORT] = phi[c, col.TOGETHER_LAST] * session.visits
        s = summaries[c]
        if session.last_row >= 0 and s.known != 0 and leads_back[c]:
            for j in range(neighbour_rows.shape[1]):
                if neighbour_rows[rows[c], j] == session.last_row:
                    near_next = signal_rows[rows[c]].near_next[j]
                    share = np.float64(near_next / max(s.next_out, np.float32(1e-9)))
                    phi[c, col.BACK_LAST] = _log_share(share, _NEXT_FLOOR)
                    break
        if sums[c, _TWO_HOP] > 0.0:
            phi[c, col.TWO_HOP] = _log_share(sums[c, _TWO_HOP], _NEXT_FLOOR)
        if sums[c, _TOGETHER_CART] > 0.0:
            phi[c, col.TOGETHER_CART] = _log_share(sums[c, _TOGETHER_CART], _TOGETHER_FLOOR)
        if sums[c, _STRICT_COUNT] > 0.0:
            phi[c, col.LED_THERE] = _log1p(sums[c, _STRICT_COUNT])


@njit
def _popularity_features(p: Row, n: int, time: float, signals: SignalsView, gathered: Gathered, phi: F32) -> None:
    """Popularity of the candidates into phi (C, F).

    Signals fade until the newest event that they count, not until the shopper's own time: otherwise features would
    drift from those that theta was fitted on whenever nothing new is counted.
    """
    known_until = min(time, signals.clock)
    half_lives, summaries = signals.half_lives, gathered.summaries
    for c in range(n):
        s = summaries[c]
        if s.known == 0:
            continue
        gap = max(0.0, known_until - s.time)
        slow = 0.0
        for life in range(3):
            slow = decay_factor(gap, half_lives[life])
            phi[c, col.POPULAR_HOUR + life] = _log1p(np.float64(s.popular[life]) * slow)
        phi[c, col.POPULAR_NEWCOMER] = phi[c, col.POPULAR_DAY] / (1.0 + p.events)
        phi[c, col.BOUGHT_BY_MANY] = _log1p(np.float64(s.buys) * slow)
        phi[c, col.CARTED_BY_MANY] = _log1p(np.float64(s.carts) * slow)
        phi[c, col.BUY_RATE] = np.log((s.buys * slow + 1.0) / (s.popular[2] * slow + 20.0) * 20.0)
        phi[c, col.HAS_SIGNALS] = 1.0
        phi[c, col.SUPPORT] = _log1p(np.float64(s.strict_out)) / 5.0
        phi[c, col.TOUCHED_AGE] = _log1p(gap / 3600.0)


@njit
def _recent_columns(p: Row, time: float, is_last: bool, item: Row, s: Row, c: int, phi: F32) -> None:
    """The shopper's recent interactions with candidate c (ITEM and SIGNAL_SUMMARY rows) into phi (C, F)."""
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
        phi[c, col.IS_LAST] = 1.0 if is_last else 0.0
        phi[c, col.IS_RECENT] = 1.0
        phi[c, col.RECENT_STEPS] = 1.0 / (1.0 + back)
        phi[c, col.RECENT_COUNT] = _log1p(np.float64(times))
        phi[c, col.RECENT_AGE] = _log1p(max(0.0, since) / 60.0)
        phi[c, col.REPEAT_RATE_LAST] = rate * phi[c, col.IS_LAST]
        phi[c, col.REPEAT_RATE_RECENT] = rate
        phi[c, col.CARTED_BEFORE] = carted


@njit
def _repeat_features(
    p: Row, served: Row, rows: I32, n: int, session: Session, gathered: Gathered, sieve: U8, phi: F32
) -> None:
    """What the shopper did with the candidates before (recent, cart, bought, shown in vain) into phi (C, F)."""
    items, summaries = gathered.items, gathered.summaries
    for c in range(n):
        item = items[c]
        mark = sieve[item.id & (_SIEVE_SLOTS - 1)]
        if mark & _RECENT:
            _recent_columns(p, session.time, session.last_row == rows[c], item, summaries[c], c, phi)
        if mark & _CART:
            for j in range(p.cart_item.shape[0]):
                if p.cart_item[j] == item.id and p.cart_quantity[j] > 0:
                    phi[c, col.IN_CART] = 1.0
        if mark & _BOUGHT:
            for j in range(p.bought_item.shape[0] - 1, -1, -1):
                if p.bought_item[j] == item.id:
                    phi[c, col.BOUGHT] = 1.0
                    phi[c, col.BOUGHT_AGE] = _log1p(max(0.0, session.time - p.bought_time[j]) / _DAY_S)
                    break
        if mark & _TIRED:
            for j in range(served.fatigue_item.shape[0]):
                if served.fatigue_item[j] == np.int32(item.id):
                    factor = decay_factor(max(0.0, session.time - served.fatigue_time[j]), FATIGUE_HALF_LIFE_S)
                    phi[c, col.SHOWN_IN_VAIN] = _log1p(served.fatigue_count[j] * factor)
                    break
            phi[c, col.SHOWN_IN_VAIN_POPULAR] = phi[c, col.SHOWN_IN_VAIN] * phi[c, col.POPULAR_DAY]


@njit
def _taste_shares(weights: F64, updated_at: float, time: float, shares: F64) -> None:
    """Share of each key of a profile's table (T, 3) at three half-lives, into shares (T, 3)."""
    for life in range(3):
        total = 1e-9
        for j in range(weights.shape[0]):
            total += weights[j, life]
        decay = decay_factor(max(0.0, time - updated_at), _HALF_LIVES_S[life])
        for j in range(weights.shape[0]):
            shares[j, life] = weights[j, life] * decay / (total * decay + _DOUBT)


@njit
def _same_key(
    key: int, keys: I32, shares: F64, recent_keys: I32, weights: F64, session: Session, first: int, c: int, phi: F32
) -> None:
    """Five columns from `first` on, of candidate c's category or brand, into phi (C, F).

    Its shares of the taste, whether the last item has it, and its weighted share of the recent items.
    """
    # If a key is in the table twice, the later share counts.
    for j in range(keys.shape[0] - 1, -1, -1):
        if keys[j] == key:
            for life in range(3):
                phi[c, first + life] = shares[j, life]
            break
    for a in range(session.recent_count):
        if recent_keys[a] == key:
            phi[c, first + 4] += weights[a] / session.weight_sum
            if a == 0:
                phi[c, first + 3] = 1.0


@njit
def _taste_features(
    p: Row, n: int, session: Session, recent: RecentItems, gathered: Gathered, sieve: U8, shares: F64, phi: F32
) -> None:
    """The shopper's taste for the candidates' categories and brands into phi (C, F). Overwrites shares (2, TOP, 3)."""
    category_shares, brand_shares, items = shares[0], shares[1], gathered.items
    _taste_shares(p.category_weight, p.category_at, session.time, category_shares)
    _taste_shares(p.brand_weight, p.brand_at, session.time, brand_shares)
    _, weights, categories, brands = recent
    first_category, first_brand = col.CATEGORY_HALF_HOUR, col.BRAND_HALF_HOUR
    for c in range(n):
        key = items[c].category
        if key != 0 and sieve[key & (_SIEVE_SLOTS - 1)] & _CATEGORY:
            _same_key(key, p.category, category_shares, categories, weights, session, first_category, c, phi)
        key = items[c].brand
        if key != 0 and sieve[key & (_SIEVE_SLOTS - 1)] & _BRAND:
            _same_key(key, p.brand, brand_shares, brands, weights, session, first_brand, c, phi)
        phi[c, col.CATEGORY_AND_BRAND] = np.sqrt(phi[c, col.CATEGORY_RECENT] * phi[c, col.BRAND_RECENT])
        phi[c, col.CATEGORY_ACTIVITY] = phi[c, col.CATEGORY_HALF_HOUR] * session.activity


@njit
def _price_features(p: Row, n: int, last_price: float, gathered: Gathered, phi: F32) -> None:
    """Distance of the candidates' log prices from the shopper's mean and from the last item's, into phi (C, F)."""
    mean, spread, has_prices = 0.0, _COMMON_SPREAD, p.price_weight > 0.0
    if has_prices:
        mean = p.price_sum / p.price_weight
        variance = max(0.0, p.price_square / p.price_weight - mean * mean)
        variance = (variance * p.price_weight + _PRICE_DOUBT * _COMMON_VARIANCE) / (p.price_weight + _PRICE_DOUBT)
        spread = np.sqrt(variance) + _SMALLEST_SPREAD
    items = gathered.items
    for c in range(n):
        log_price = items[c].log_price
        if log_price == 0.0:
            continue
        if has_prices:
            distance = (log_price - mean) / spread
            phi[c, col.PRICE_DISTANCE] = min(abs(distance), 6.0)
            phi[c, col.PRICE_SQUARE] = min(distance * distance, 36.0) / 6.0
            phi[c, col.PRICE_ABOVE] = min(max(distance, 0.0), 6.0)
            phi[c, col.PRICE_BELOW] = min(max(-distance, 0.0), 6.0)
        if last_price != 0.0:
            phi[c, col.PRICE_LAST] = min(abs(log_price - last_price), 5.0)


@njit
def _title_features(p: Row, n: int, session: Session, words: TitleWords, gathered: Gathered, phi: F32) -> None:
    """Search words and the recent items' title words in the candidates' titles, into phi (C, F)."""
    decay = decay_factor(max(0.0, session.time - p.word_at), WORD_HALF_LIFE_S)
    largest, has_searched, weight_sum = 1e-9, False, session.weight_sum
    for j in range(p.word.shape[0]):
        largest = max(largest, p.word_weight[j])
        has_searched = has_searched or p.word[j] != 0
    items, (slots, in_last, weights) = gathered.items, words
    for c in range(n):
        item, count = items[c], 0
        for j in range(item.word.shape[0]):
            word = item.word[j]
            if word == 0:
                break
            count += 1
            if has_searched:
                for m in range(p.word.shape[0]):
                    if p.word[m] == word:
                        phi[c, col.SEARCHED] += p.word_weight[m] * decay
                        phi[c, col.SEARCHED_ANY] = max(phi[c, col.SEARCHED_ANY], p.word_weight[m] / largest)
            at = _word_slot(slots, word)
            if slots[at] == word:
                phi[c, col.TITLE_LAST] += in_last[at]
                phi[c, col.TITLE_RECENT] += weights[at]
        if count > 0:
            phi[c, col.TITLE_LAST] /= count
            phi[c, col.TITLE_RECENT] /= count * weight_sum if weight_sum > 0.0 else 1.0
        phi[c, col.TITLE_CATEGORY] = phi[c, col.TITLE_RECENT] * phi[c, col.CATEGORY_RECENT]


@njit
def _context_features(n: int, session: Session, generators: I32, gathered: Gathered, phi: F32) -> None:
    """Age of the candidates, their generators, and the session's facts, into phi (C, F)."""
    items = gathered.items
    for c in range(n):
        item, bits = items[c], generators[c]
        if item.added > 0.0:
            days = max(0.0, session.time - item.added) / _DAY_S
            phi[c, col.AGE] = _log1p(days)
            phi[c, col.IS_NEW] = 1.0 if days < _WEEK_DAYS else 0.0
        phi[c, col.EXPIRES_SOON] = 1.0 if item.expires - session.time < _DAY_S else 0.0
        phi[c, col.FROM_CATEGORIES] = 1.0 if bits & GEN_CATEGORY else 0.0
        phi[c, col.FROM_FRESH] = 1.0 if bits & GEN_FRESH else 0.0
        phi[c, col.FROM_POPULAR] = 1.0 if bits & GEN_POPULAR else 0.0
        phi[c, col.SESSION_LENGTH] = session.log_length
        phi[c, col.SESSION_ITEMS] = session.log_items
        phi[c, col.SESSION_GAP] = session.log_gap
        phi[c, col.LAST_SUPPORT] = session.support
        phi[c, col.LAST_VISITS] = session.visits


@njit
def _history_features(rows: I32, n: int, session: Session, shares: F32, unknown: I8, phi: F32) -> None:
    """The history model's shares (C,) into phi (C, F); left at zero if all shares are zero."""
    best = 0.0
    for c in range(n):
        best = max(best, np.float64(shares[c]))
    if best <= 0.0:
        return
    for c in range(n):
        share = np.float64(shares[c])
        phi[c, col.FORESEEN] = _log_share(share, _HISTORY_FLOOR)
        phi[c, col.FORESEEN_SUPPORT] = phi[c, col.FORESEEN] * session.support
        phi[c, col.FORESEEN_LENGTH] = phi[c, col.FORESEEN] * session.log_length
        phi[c, col.FORESEEN_BEHIND] = np.log((share + _HISTORY_FLOOR) / (best + _HISTORY_FLOOR))
        phi[c, col.FORESEEN_UNKNOWN] = np.float32(unknown[rows[c]])


@njit
def fill_features(
    profiles: Rows,
    serving: Rows,
    now: F64,
    rows: I32,
    generators: I32,
    counts: I32,
    catalog: CatalogView,
    signals: SignalsView,
    history_shares: F32,
    history_unknown: I8,
    phi: F32,
) -> None:
    """Write every element of phi (U, C, F): all features of U shoppers and their candidates, zero beyond the count.

    profiles (U,) PROFILE; serving (U,) SERVING; now (U,) s; rows, generators (U, C); counts (U,); history_shares (U, C)
    or (0, 0) without a history model; history_unknown (capacity,).

    Groups depend on each other in this order: repeat features read popularity, title features read taste. One loop
    over the candidates for each group costs 1 to 4% of phi, about 1% of a page, compared with a single loop (paired
    micro benchmark of batches of 1, 32 and 256). Arrays are read from the tuples outside the loops: inside, reference
    counting costs another 5%.
    """
    limit = rows.shape[1]
    recent = RecentItems(
        np.empty(RECENT_ITEMS, np.int32), np.empty(RECENT_ITEMS), np.empty(RECENT_ITEMS, np.int32),
        np.empty(RECENT_ITEMS, np.int32),
    )  # fmt: skip
    index = CandidateIndex(np.empty(_ROW_SLOTS, np.int32), np.empty(_ROW_SLOTS, np.int32))
    words = TitleWords(np.zeros(_WORD_SLOTS, np.int32), np.zeros(_WORD_SLOTS), np.zeros(_WORD_SLOTS))
    gathered = Gathered(np.empty(limit, ITEM), np.empty(limit, SIGNAL_SUMMARY), np.empty(limit, np.bool_))
    sieve, taste_shares, sums = np.empty(_SIEVE_SLOTS, np.uint8), np.empty((2, TOP_KEYS, 3)), np.empty((limit, _SUMS))
    for u in range(rows.shape[0]):
        p, served, n, mine, x = profiles[u], serving[u], counts[u], rows[u], phi[u]
        count = _read_recent(p, catalog, recent)
        session = _session_facts(p, now[u], recent, count, signals)
        last_price = catalog.items[recent.row[0]].log_price if count > 0 else np.float32(0.0)
        _mark_lists(p, served, recent, count, sieve)
        _read_title_words(catalog.items, recent, count, words)
        _index_candidates(mine, n, index)
        sums[:n] = 0.0
        _neighbour_sums(p, recent, count, catalog, signals, index, sums)
        _gather_candidates(mine, n, session.last_row, catalog.items, signals, gathered)
        x[:] = 0.0
        _neighbour_features(mine, n, session, signals, gathered, sums, x)
        _popularity_features(p, n, session.time, signals, gathered, x)
        _repeat_features(p, served, mine, n, session, gathered, sieve, x)
        _taste_features(p, n, session, recent, gathered, sieve, taste_shares, x)
        _price_features(p, n, last_price, gathered, x)
        _title_features(p, n, session, words, gathered, x)
        _context_features(n, session, generators[u], gathered, x)
        if history_shares.shape[0] > 0:
            _history_features(mine, n, session, history_shares[u], history_unknown, x)
