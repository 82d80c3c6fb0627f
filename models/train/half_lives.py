"""Half-lives of the signals, chosen by how well the newest clicks are foreseen with each.

What is news in a shop of a million sessions a day is all that there is in one of a hundred, so most are given in sessions
and become seconds by the rate at which the data's came.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from models.clickstream import Clicks
from models.eventlog import EventLog
from models.train.clicks import offered
from models.train.ranker import cross_entropy, fit
from models.train.resume import Bench
from models.walk import Shop, walk
from stream.signals import HALF_LIVES, HalfLives

# In sessions. Those of popularity are chosen first, then that of transitions beside them.
POPULARITY = ((300, 1_500, 40_000), (1_500, 5_000, 40_000), (5_000, 20_000, 200_000))
TRANSITIONS = (8_000, 40_000, 200_000)
QUERIES = 9_000  # of the newest sessions; a quick ranker learns from two thirds of them and is judged by the last
FEWEST = 1_000  # positions: of fewer, nothing can be told
DAY = 86_400.0
Say = Callable[[str], None]
ShopWith = Callable[..., Shop]  # takes half_lives


def choose(shop_with: ShopWith, clicks: Clicks | EventLog, say: Say, queries: int = QUERIES) -> HalfLives:
    """Those by which a conditional logit foresees the newest clicks best; those of every shop where there are few clicks."""
    first = clicks.newest(queries)
    span = float(clicks.time.max() - clicks.time.min()) if len(clicks.time) else 0.0
    if span <= 0.0 or first == 0 or len(clicks.item) - int(clicks.ends[first - 1]) < FEWEST:
        return HALF_LIVES
    session = span / len(clicks.ends)  # s
    best, least = HALF_LIVES, _loss(shop_with, clicks, HALF_LIVES, first, say)
    popularities = [HalfLives((a * session, b * session, c * session)) for a, b, c in POPULARITY]
    for one in popularities:
        best, least = min((best, least), (one, _loss(shop_with, clicks, one, first, say)), key=itemgetter(1))
    for one in [best._replace(transitions=sessions * session) for sessions in TRANSITIONS]:
        best, least = min((best, least), (one, _loss(shop_with, clicks, one, first, say)), key=itemgetter(1))
    return best


def chosen(shop_with: ShopWith, clicks: Clicks | EventLog, say: Say, bench: Bench) -> HalfLives:
    """`choose`, once for all."""
    kept = bench.once("half-lives", lambda: {"lives": choose(shop_with, clicks, say).array()})
    hour, day, fortnight, transitions = kept["lives"].tolist()
    return HalfLives((hour, day, fortnight), transitions)


def _loss(shop_with: ShopWith, clicks: Clicks | EventLog, half_lives: HalfLives, first: int, say: Say) -> float:
    """Cross-entropy over the whole catalogue, nats: what is no candidate is one of all items."""
    shop = shop_with(half_lives=half_lives)
    judged = first + 2 * (len(clicks.ends) - first) // 3
    for _ in walk(shop, clicks, ask=False, learn=True, last=first):
        pass
    known = np.zeros(len(shop.catalog), np.int64)  # asks nobody
    seen = offered(walk(shop, clicks, ask=True, learn=True, first=first, last=judged), clicks, known)
    asked = offered(walk(shop, clicks, ask=True, learn=True, first=judged), clicks, known)
    loss = cross_entropy(fit(seen, epochs=12).theta, asked)
    missed = 0 if asked.missed is None else len(asked.missed)
    loss = float(np.average([loss, np.log(len(shop.catalog))], weights=[len(asked.chosen), missed]))
    popularity = ", ".join(f"{life / DAY:.2g}" for life in half_lives.popularity)
    say(f"half-lives of {popularity} and {half_lives.transitions / DAY:.2g} days: loss {loss:.4f} nats")
    return loss
