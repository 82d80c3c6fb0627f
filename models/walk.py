"""A clickstream click by click through the fold, the candidates and phi that serve: what is known before each click."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.clickstream import Clicks
from models.history import History
from models.phi import NOT_FORESEEN, joint_features
from stream.activity import fold_with_activity
from stream.catalog import AVAILABLE, EN, ITEM, PRODUCT, ZH, Catalog, fragment_of
from stream.events import CLICK, EVENT
from stream.ids import key64
from stream.profile import blank
from stream.retrieval import NO_PROPOSALS, Candidates, retrieve
from stream.rows import rows_at
from stream.serving import SERVING
from stream.signals import HALF_LIVES, HalfLives, ItemTable, Signals

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
BLOCK = 64  # sessions that are ranked before the signals learn from them
AT_ONCE = 4096  # sessions that are learnt from at once where none is ranked


class Shop:
    """A shop of which only clicks are known: items without texts by their number, and what signals have learnt."""

    def __init__(self, items: Sequence[str], half_lives: HalfLives = HALF_LIVES) -> None:
        rows: Any = np.zeros(len(items), ITEM)
        rows["id"] = [key64(id) for id in items]
        rows["expires"], rows["present"], rows["flags"] = np.inf, 1, PRODUCT | AVAILABLE | EN | ZH
        self.catalog = Catalog.of_rows(rows, [fragment_of(id) for id in items])
        self.half_lives = half_lives
        self.signals = Signals(self.catalog, half_lives)
        self.history: History | None = None
        self._table = ItemTable(half_lives)
        self._counted = 0  # rows of activity

    def learn(self, activity: Rows) -> None:
        """Count activity, in order of time whatever its own."""
        activity = rows_at(activity, np.argsort(activity["time"], kind="stable"))
        activity["offset"] = np.arange(self._counted, self._counted + len(activity))
        self._counted += len(activity)
        self.signals.set(self._table.rows_of(self._table.fold("clicks", 0, activity)))


class Asked(NamedTuple):
    """Positions of U sessions, and what the page would be made of."""

    click: npt.NDArray[np.int64]  # (U,) the one that is to be foreseen
    before: npt.NDArray[np.int64]  # (U,) clicks of the session before it
    candidates: Candidates
    phi: Floats  # (U, C, F)

    def targets(self, clicks: Clicks) -> npt.NDArray[np.int64]:
        """(U,) which candidate was clicked next; -1 where it is none."""
        hit = self.candidates.rows == clicks.item[self.click][:, None]  # beyond the count rows are -1
        return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def walk(
    shop: Shop, clicks: Clicks, *, ask: bool, learn: bool, first: int = 0, last: int | None = None
) -> Iterator[Asked]:
    """Sessions `first` to `last` click by click, a block of them at a time; with `ask`, what is known at each position.

    With `learn` the signals learn from a block once it has been walked through.
    """
    last = len(clicks.ends) if last is None else last
    block = BLOCK if ask else AT_ONCE
    for start in range(first, last, block):
        part = clicks.part(start, min(start + block, last))
        begins, lengths = part.starts, np.diff(part.ends, prepend=0)
        number = clicks.ends[start - 1] if start else 0  # of the block's first click
        profiles = blank(len(lengths))
        activity = []
        for k in range(lengths.max()):
            who = np.flatnonzero(lengths > k)
            at = begins[who] + k
            events: Any = np.zeros(len(who), EVENT)
            events["id"], events["kind"], events["quantity"] = at + 1, CLICK, 1
            events["item"], events["time"] = shop.catalog.items["id"][part.item[at]], part.time[at]
            events["record"] = np.arange(len(who))
            _, caused = fold_with_activity(profiles, who.astype(np.int32), events, at)
            activity.append(caused)
            asked = who[lengths[who] > k + 1]
            if ask and len(asked):
                yield _ask(shop, rows_at(profiles, asked), number + begins[asked] + k + 1, k + 1)
        if learn:
            shop.learn(np.concatenate(activity))


def _ask(shop: Shop, profiles: Rows, click: npt.NDArray[np.int64], before: int) -> Asked:
    now = profiles["last_seen"].copy()
    leaders, history = shop.signals.leaders(float(now.max())), shop.history
    foresight = history.foresee(profiles) if history is not None else None
    proposals = NO_PROPOSALS if foresight is None else foresight.rows
    candidates = retrieve(profiles, now, shop.catalog, shop.signals, leaders, proposals=proposals)
    foreseen = NOT_FORESEEN if history is None or foresight is None else history.judge(foresight, candidates)
    phi = joint_features(
        profiles, np.zeros(len(now), SERVING), now, candidates, shop.catalog, shop.signals, foreseen=foreseen
    )
    return Asked(click, np.full(len(now), before), candidates, phi)
