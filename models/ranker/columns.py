"""The columns of phi(U, C): name, reason code and meaning of each feature of a shopper and a candidate.

A new feature is a row at the end of `TABLE`, a constant at the end of the list below it, and a kernel in `kernels.py`.
The order is part of the ranker's format: `features_hash` changes with it, and the ranker must be fitted again.

Symbols: l is the last item, a counts the recent items from 0 (the last), c is the candidate. Of the signals, T are
transitions weighted by 1 / step, M transitions of one step, O = sum of T, m = sum of M, and n counts visits.
All logarithms are shifted so that absence is zero.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from stream.codes import (
    REASON_BEFORE,
    REASON_BOUGHT_BEFORE,
    REASON_BRAND,
    REASON_CATEGORY,
    REASON_FITS,
    REASON_IN_CART,
    REASON_NEW,
    REASON_NEXT,
    REASON_POPULAR,
    REASON_PRICE,
    REASON_SEARCH,
    REASON_TOGETHER,
)
from stream.items.signals import SIGNALS_MEANING, HalfLives

NO_REASON = -1


class Feature(NamedTuple):
    """One column of phi."""

    name: str
    reason: int  # code of the reason that a positive theta_i phi_i gives; NO_REASON: it explains nothing to a shopper
    meaning: str


TABLE = (
    Feature("next_last", REASON_NEXT, "log of T[l, c] / O[l]: share of the last item's transitions"),
    Feature("next_strict", REASON_NEXT, "log of M[l, c] / m[l]: the same for transitions of one step"),
    Feature("next_sum", REASON_NEXT, "log of the sum over recent items of T[a, c] / O[a] / (a + 1)"),
    Feature("next_second", REASON_NEXT, "log of T / O from the second last item"),
    Feature("next_last_support", REASON_NEXT, "next_last times last_support: a share of many cases is more certain"),
    Feature("next_sum_length", REASON_NEXT, "next_sum times session_length"),
    Feature("together_last", REASON_TOGETHER, "log of the co-visit cosine with the last item"),
    Feature("together_second", REASON_TOGETHER, "log of the co-visit cosine with the second last item"),
    Feature("together_sum", REASON_TOGETHER, "log of the sum over recent items of the co-visit cosine / (a + 1)"),
    Feature("together_last_support", REASON_TOGETHER, "together_last times last_visits"),
    Feature("back_last", REASON_TOGETHER, "log of T[c, l] / O[c]: transitions from the candidate to the last item"),
    Feature("two_hop", REASON_TOGETHER, "log of the two-step share through the last item's strongest neighbours"),
    Feature("together_cart", REASON_IN_CART, "log of the sum of co-visit cosines with the items in the cart"),
    Feature(
        "popular_hour", REASON_POPULAR, "log1p of interactions, decayed with the ranker's shortest half-life (an hour)"
    ),
    Feature("popular_day", REASON_POPULAR, "the same with its middle half-life (a day)"),
    Feature("popular_fortnight", REASON_POPULAR, "the same with its longest half-life (14 days)"),
    Feature("popular_newcomer", REASON_POPULAR, "popular_day / (1 + events of the shopper)"),
    Feature("bought_by_many", REASON_POPULAR, "log1p of purchases, decayed"),
    Feature("carted_by_many", REASON_POPULAR, "log1p of cart additions, decayed"),
    Feature("buy_rate", REASON_POPULAR, "log of purchases per interaction, smoothed with one in 20"),
    Feature("is_last", REASON_BEFORE, "1 if the candidate is the last item"),
    Feature("is_recent", REASON_BEFORE, "1 if the candidate is in the ring of recent interactions"),
    Feature("recent_steps", REASON_BEFORE, "1 / (1 + interactions since)"),
    Feature("recent_count", REASON_BEFORE, "log1p of its interactions in the ring"),
    Feature("recent_age", REASON_BEFORE, "log1p of minutes since its newest interaction"),
    Feature("repeat_rate_last", REASON_BEFORE, "M[c, c] / m[c] if the candidate is the last item"),
    Feature("repeat_rate_recent", REASON_BEFORE, "M[c, c] / m[c] if the candidate is in the ring"),
    Feature("carted_before", REASON_BEFORE, "1 if the shopper added it to the cart, as far as the ring remembers"),
    Feature("in_cart", REASON_IN_CART, "1 if the candidate is in the cart"),
    Feature("bought", REASON_BOUGHT_BEFORE, "1 if the shopper bought the candidate"),
    Feature("bought_age", REASON_BOUGHT_BEFORE, "log1p of days since the shopper last bought it"),
    Feature("category_half_hour", REASON_CATEGORY, "its category's share of the taste, with a half-life of 30 minutes"),
    Feature("category_day", REASON_CATEGORY, "the same with a half-life of a day"),
    Feature("category_month", REASON_CATEGORY, "the same with a half-life of 30 days"),
    Feature("category_last", REASON_CATEGORY, "1 if its category is that of the last item"),
    Feature("category_recent", REASON_CATEGORY, "share of recent items with its category, weighted by 1 / (a + 1)"),
    Feature("brand_half_hour", REASON_BRAND, "its brand's share of the taste, with a half-life of 30 minutes"),
    Feature("brand_day", REASON_BRAND, "the same with a half-life of a day"),
    Feature("brand_month", REASON_BRAND, "the same with a half-life of 30 days"),
    Feature("brand_last", REASON_BRAND, "1 if its brand is that of the last item"),
    Feature("brand_recent", REASON_BRAND, "share of recent items with its brand, weighted by 1 / (a + 1)"),
    Feature("category_and_brand", REASON_BRAND, "geometric mean of category_recent and brand_recent"),
    Feature("price_distance", REASON_PRICE, "standard deviations of log price from the shopper's mean, at most 6"),
    Feature("price_square", REASON_PRICE, "square of that distance, at most 36, divided by 6"),
    Feature("price_above", REASON_PRICE, "that distance if the candidate is more expensive"),
    Feature("price_below", REASON_PRICE, "that distance if the candidate is cheaper"),
    Feature("price_last", REASON_PRICE, "distance of log price from the last item's, at most 5"),
    Feature("searched", REASON_SEARCH, "sum of the decayed weights of the shopper's search words in the title"),
    Feature("searched_any", REASON_SEARCH, "largest weight of a search word in the title, over the shopper's largest"),
    Feature("title_last", REASON_CATEGORY, "share of title words that the last item's title has too"),
    Feature("title_recent", REASON_CATEGORY, "the same over recent items, weighted by 1 / (a + 1)"),
    Feature("title_category", REASON_CATEGORY, "title_recent times category_recent"),
    Feature("age", REASON_NEW, "log1p of days since the item was added"),
    Feature("is_new", REASON_NEW, "1 if the item was added within 7 days"),
    Feature("expires_soon", NO_REASON, "1 if the item expires within a day"),
    Feature("shown_in_vain", NO_REASON, "log1p of the decayed number of showings without a click"),
    Feature("shown_in_vain_popular", NO_REASON, "shown_in_vain times popular_day"),
    Feature("from_categories", NO_REASON, "1 if the category generator retrieved the candidate"),
    Feature("from_fresh", NO_REASON, "1 if the generator of new items retrieved it"),
    Feature("from_popular", NO_REASON, "1 if the popularity generator retrieved it"),
    Feature("has_signals", NO_REASON, "1 if there are signals of the candidate"),
    Feature("category_activity", REASON_CATEGORY, "category_half_hour times log1p of the half hour's activity"),
    # History model: zero without one.
    Feature("foreseen", REASON_FITS, "log of the history model's share for the candidate"),
    Feature("foreseen_support", REASON_FITS, "foreseen times last_support"),
    Feature("foreseen_length", REASON_FITS, "foreseen times session_length"),
    Feature("foreseen_behind", NO_REASON, "log of its share over the best candidate's share"),
    Feature("foreseen_unknown", NO_REASON, "1 if the history model was not trained on the item"),
    Feature("led_there", REASON_NEXT, "log1p of M[l, c]: how often one step led from the last item to the candidate"),
    Feature("support", NO_REASON, "log1p of m[c], divided by 5"),
    Feature("touched_age", NO_REASON, "log1p of hours since any shopper's last interaction with the candidate"),
    # Session: equal for all candidates, so theta cannot use them. The MLP weighs the other features by them.
    Feature("session_length", NO_REASON, "log1p of the shopper's interactions within 30 minutes"),
    Feature("session_items", NO_REASON, "log1p of distinct recent items"),
    Feature("session_gap", NO_REASON, "log1p of minutes between the last two interactions"),
    Feature("last_support", NO_REASON, "log1p of m[l], divided by 5"),
    Feature("last_visits", NO_REASON, "log1p of n[l], the last item's visits, divided by 5"),
)

# One constant for each row, in the same order: the feature's name in capitals. Append to both.
# fmt: off
(
    NEXT_LAST, NEXT_STRICT, NEXT_SUM, NEXT_SECOND, NEXT_LAST_SUPPORT, NEXT_SUM_LENGTH,
    TOGETHER_LAST, TOGETHER_SECOND, TOGETHER_SUM, TOGETHER_LAST_SUPPORT, BACK_LAST, TWO_HOP, TOGETHER_CART,
    POPULAR_HOUR, POPULAR_DAY, POPULAR_FORTNIGHT, POPULAR_NEWCOMER, BOUGHT_BY_MANY, CARTED_BY_MANY, BUY_RATE,
    IS_LAST, IS_RECENT, RECENT_STEPS, RECENT_COUNT, RECENT_AGE, REPEAT_RATE_LAST, REPEAT_RATE_RECENT, CARTED_BEFORE,
    IN_CART, BOUGHT, BOUGHT_AGE,
    CATEGORY_HALF_HOUR, CATEGORY_DAY, CATEGORY_MONTH, CATEGORY_LAST, CATEGORY_RECENT,
    BRAND_HALF_HOUR, BRAND_DAY, BRAND_MONTH, BRAND_LAST, BRAND_RECENT, CATEGORY_AND_BRAND,
    PRICE_DISTANCE, PRICE_SQUARE, PRICE_ABOVE, PRICE_BELOW, PRICE_LAST,
    SEARCHED, SEARCHED_ANY, TITLE_LAST, TITLE_RECENT, TITLE_CATEGORY,
    AGE, IS_NEW, EXPIRES_SOON, SHOWN_IN_VAIN, SHOWN_IN_VAIN_POPULAR, FROM_CATEGORIES, FROM_FRESH, FROM_POPULAR,
    HAS_SIGNALS, CATEGORY_ACTIVITY,
    FORESEEN, FORESEEN_SUPPORT, FORESEEN_LENGTH, FORESEEN_BEHIND, FORESEEN_UNKNOWN,
    LED_THERE, SUPPORT, TOUCHED_AGE,
    SESSION_LENGTH, SESSION_ITEMS, SESSION_GAP, LAST_SUPPORT, LAST_VISITS,
) = range(len(TABLE))
# fmt: on

FEATURES = tuple(feature.name for feature in TABLE)
F = len(FEATURES)
REASON_OF = np.array([feature.reason for feature in TABLE], np.int8)  # (F,)


def signals_hash(half_lives: HalfLives) -> str:
    """sha256 of what the item signals mean: their half-lives, and SIGNALS_MEANING. See `manifest.FittedWith`."""
    content = f"{SIGNALS_MEANING} {half_lives.array().tolist()}"
    return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def features_hash() -> str:
    """sha256 of the feature names in order. A ranker's manifest must have the same."""
    return "sha256:" + hashlib.sha256("\n".join(FEATURES).encode()).hexdigest()
