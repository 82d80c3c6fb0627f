"""Half-lives of the signals, chosen by how well the newest clicks are foreseen with each.

What is news in a shop of a million sessions a day is all that there is in one of a hundred, so most are given in sessions
and become seconds by the rate at which the data's came.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from models.data.clickstream import Clicks
from models.data.event_log import EventLog
from models.data.replay import Shop, walk
from models.train.clicks import offered
from models.train.progress import Say, of_stretch
from models.train.ranker.fit import cross_entropy, fit
from models.train.step_cache import StepCache
from stream.items.signals import HALF_LIVES, HalfLives

# In sessions. Those of popularity are chosen first, then that of transitions beside them.
POPULARITY = ((300, 1_500, 40_000), (1_500, 5_000, 40_000), (5_000, 20_000, 200_000))
TRANSITIONS = (8_000, 40_000, 200_000)
QUERIES = 9_000  # of the newest sessions; a quick ranker learns from two thirds of them and is judged by the last
FEWEST = 1_000  # positions: of fewer, nothing can be told
EPOCHS = 12  # of the quick ranker
DAY = 86_400.0
ShopWith = Callable[..., Shop]  # takes half_lives


def choose(shop_with: ShopWith, clicks: Clicks | EventLog, say: Say, queries: int = QUERIES) -> HalfLives:
    """Those by which a conditional logit foresees the newest clicks best; those of every shop where there are few clicks.

    queries: positions of the newest sessions, about, that it is fitted on and judged by.
    """
    first = clicks.first_of_newest(queries)
    span = float(clicks.time.max() - clicks.time.min()) if len(clicks.time) else 0.0
    if span <= 0.0 or first == 0 or len(clicks.item) - int(clicks.ends[first - 1]) < FEWEST:
        say("half-lives are those of every shop: there are too few clicks to choose by")
        return HALF_LIVES
    session = span / len(clicks.ends)  # s
    tried, all_ = 0, 1 + len(POPULARITY) + len(TRANSITIONS)

    def loss_with(half_lives: HalfLives) -> float:
        nonlocal tried
        tried += 1
        loss = _loss(shop_with, clicks, half_lives, first, say)
        popularity = ", ".join(f"{life / DAY:.2g}" for life in half_lives.popularity)
        days = f"{popularity} and {half_lives.transitions / DAY:.2g} days"
        say(f"half-lives, {tried} of {all_}: {days}, loss {loss:.4f} nats")
        return loss

    best, least = HALF_LIVES, loss_with(HALF_LIVES)
    popularities = [HalfLives((a * session, b * session, c * session)) for a, b, c in POPULARITY]
    for one in popularities:
        best, least = min((best, least), (one, loss_with(one)), key=itemgetter(1))
    for one in [best._replace(transitions=sessions * session) for sessions in TRANSITIONS]:
        best, least = min((best, least), (one, loss_with(one)), key=itemgetter(1))
    return best


def choose_once(shop_with: ShopWith, clicks: Clicks | EventLog, say: Say, finished: StepCache) -> HalfLives:
    """What `choose` gives, kept among what is finished: a training that goes on does not choose again."""
    kept = finished.once("half-lives", lambda: {"lives": choose(shop_with, clicks, say).array()})
    *popularity, transitions = kept["lives"].tolist()
    return HalfLives(tuple(popularity), transitions)


def _loss(shop_with: ShopWith, clicks: Clicks | EventLog, half_lives: HalfLives, first: int, say: Say) -> float:
    """Cross-entropy over the whole catalogue, nats: what is no candidate is one of all items. first: of the newest sessions."""
    shop = shop_with(half_lives=half_lives)
    judged = first + 2 * (len(clicks.ends) - first) // 3
    for _ in walk(shop, clicks, ask=False, learn=True, last=first, progress=of_stretch("sessions learnt", say)):
        pass
    known = np.zeros(len(shop.catalog), np.int64)  # asks nobody
    seen = offered(walk(shop, clicks, ask=True, learn=True, first=first, last=judged), clicks, known)
    asked = offered(walk(shop, clicks, ask=True, learn=True, first=judged), clicks, known)
    found, missed = len(asked.chosen), 0 if asked.missed is None else len(asked.missed)
    guessed = float(np.log(len(shop.catalog)))
    if not found:
        return guessed
    loss = cross_entropy(fit(seen, epochs=EPOCHS).theta, asked)
    return float(np.average([loss, guessed], weights=[found, missed]))
