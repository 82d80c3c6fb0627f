"""Choice of the signals' half-lives, by the loss of a quick ranker on the newest clicks.

What counts as recent depends on the shop's traffic: news for a shop with a million sessions a day is everything a shop
with a hundred has. So candidates are given in sessions, and become seconds by the data's rate of sessions.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from models.data.clickstream import Clicks
from models.data.event_log import EventLog
from models.data.replay import OfflineShop, replay_sessions
from models.train.clicks import choices_of
from models.train.progress import LogLine, progress_logger
from models.train.ranker.fit import cross_entropy, fit
from models.train.step_cache import StepCache
from stream.items.signals import HALF_LIVES, HalfLives

# Candidates, in sessions. The half-lives of popularity are chosen first, then that of transitions.
POPULARITY_SESSIONS = ((300, 1_500, 40_000), (1_500, 5_000, 40_000), (5_000, 20_000, 200_000))
TRANSITION_SESSIONS = (8_000, 40_000, 200_000)
# Positions of the newest sessions. A quick ranker is fitted on two thirds of them and evaluated on the last third.
QUERIES = 9_000
MIN_EVENTS = 1_000  # of the newest sessions; fewer decide nothing
EPOCHS = 12  # of the quick ranker
DAY_S = 86_400.0
ShopFactory = Callable[..., OfflineShop]  # takes half_lives


def choose(shop_with: ShopFactory, sessions: Clicks | EventLog, log: LogLine, queries: int = QUERIES) -> HalfLives:
    """The half-lives with the lowest loss on the newest clicks; HALF_LIVES if there are too few clicks.

    queries: approximate number of positions that the quick ranker is fitted on and evaluated at.
    """
    first = sessions.first_of_newest(queries)
    span = float(sessions.time.max() - sessions.time.min()) if len(sessions.time) else 0.0
    if span <= 0.0 or first == 0 or len(sessions.item) - int(sessions.ends[first - 1]) < MIN_EVENTS:
        log("there are too few clicks to choose half-lives; the defaults are used")
        return HALF_LIVES
    session_s = span / len(sessions.ends)
    tried, total = 0, 1 + len(POPULARITY_SESSIONS) + len(TRANSITION_SESSIONS)

    def loss_with(half_lives: HalfLives) -> float:
        nonlocal tried
        tried += 1
        loss = _loss(shop_with, sessions, half_lives, first, log)
        popularity = ", ".join(f"{life / DAY_S:.2g}" for life in half_lives.popularity)
        days = f"{popularity} and {half_lives.transitions / DAY_S:.2g} days"
        log(f"half-lives, {tried} of {total}: {days}, loss {loss:.4f} nats")
        return loss

    best, least = HALF_LIVES, loss_with(HALF_LIVES)
    popularities = [HalfLives((a * session_s, b * session_s, c * session_s)) for a, b, c in POPULARITY_SESSIONS]
    for candidate in popularities:
        best, least = min((best, least), (candidate, loss_with(candidate)), key=itemgetter(1))
    for candidate in [best._replace(transitions=count * session_s) for count in TRANSITION_SESSIONS]:
        best, least = min((best, least), (candidate, loss_with(candidate)), key=itemgetter(1))
    return best


def choose_once(shop_with: ShopFactory, sessions: Clicks | EventLog, log: LogLine, cache: StepCache) -> HalfLives:
    """The result of `choose`, kept in the cache: a resumed training does not choose again."""
    stored = cache.load_or_compute("half-lives", lambda: {"lives": choose(shop_with, sessions, log).array()})
    *popularity, transitions = stored["lives"].tolist()
    return HalfLives(tuple(popularity), transitions)


def _loss(
    shop_with: ShopFactory, sessions: Clicks | EventLog, half_lives: HalfLives, first: int, log: LogLine
) -> float:
    """Mean cross-entropy over the whole catalogue, in nats, of a quick ranker with these half-lives.

    first: of the newest sessions. A target that is not a candidate costs as much as a guess among all items.
    """
    shop = shop_with(half_lives=half_lives)
    evaluated = first + 2 * (len(sessions.ends) - first) // 3
    progress = progress_logger("sessions learnt", log)
    for _ in replay_sessions(shop, sessions, query=False, learn=True, last=first, progress=progress):
        pass
    no_popularity = np.zeros(len(shop.catalog), np.int64)
    fit_queries = replay_sessions(shop, sessions, query=True, learn=True, first=first, last=evaluated)
    fit_choices = choices_of(fit_queries, sessions, no_popularity)
    queries = replay_sessions(shop, sessions, query=True, learn=True, first=evaluated)
    choices = choices_of(queries, sessions, no_popularity)
    found, missed = len(choices.chosen), 0 if choices.missed is None else len(choices.missed)
    guess = float(np.log(len(shop.catalog)))
    if not found:
        return guess
    loss = cross_entropy(fit(fit_choices, epochs=EPOCHS).theta, choices)
    return float(np.average([loss, guess], weights=[found, missed]))
