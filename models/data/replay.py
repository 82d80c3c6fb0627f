"""Clicks and other events one by one through the fold, the candidates and phi that serve: what is known before each click."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from models.data.clickstream import EventBlock
from models.history.model import History
from models.ranker.features import NO_HISTORY_SCORES, joint_features
from stream.ids import key64
from stream.items.activity import fold_with_activity
from stream.items.catalog import AVAILABLE, EN, ITEM, PRODUCT, ZH, Catalog, fragment_of
from stream.items.signals import HALF_LIVES, HalfLives, ItemTable, Signals
from stream.page.candidates import NO_PROPOSALS, Candidates, retrieve
from stream.profile.exposure import SERVING
from stream.profile.fold import blank
from stream.row_codec import rows_at

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
BLOCK = 64  # sessions that are ranked before the signals learn from them
AT_ONCE = 4096  # sessions that are learnt from at once where none is ranked


def bare_items(ids: npt.NDArray[np.int64]) -> Rows:
    """(n,) ITEM of which nothing is known but the ids (key64)."""
    rows: Any = np.zeros(len(ids), ITEM)
    rows["id"], rows["expires"], rows["present"], rows["flags"] = ids, np.inf, 1, PRODUCT | AVAILABLE | EN | ZH
    return rows  # type: ignore[no-any-return]


class Shop:
    """A shop as it was learnt of: items by their number, without texts; what signals have learnt; who was there before.

    rows: (n,) ITEM of the items, where more is known of them than their ids.
    """

    def __init__(self, items: Sequence[str], rows: Rows | None = None, *, half_lives: HalfLives = HALF_LIVES) -> None:
        if rows is None:
            rows = bare_items(np.array([key64(id) for id in items], np.int64))
        self.catalog = Catalog.of_rows(rows, [fragment_of(id) for id in items])
        self.half_lives = half_lives
        self.signals = Signals(self.catalog, half_lives)
        self.history: History | None = None
        self.shoppers: dict[int, Rows] = {}  # (1,) PROFILE by number, of those whom later sessions will see again
        self._table = ItemTable(half_lives)
        self._counted = 0  # rows of activity

    def learn(self, activity: Rows) -> None:
        """Count activity, in order of time whatever its own."""
        activity = rows_at(activity, np.argsort(activity["time"], kind="stable"))
        activity["offset"] = np.arange(self._counted, self._counted + len(activity))
        self._counted += len(activity)
        self.signals.set(self._table.rows_of(self._table.fold("clicks", 0, activity)))


class EventSource(Protocol):
    """What can be walked through: sessions in the order of their last events."""

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """(S,) where the events of each session end."""

    @property
    def item(self) -> npt.NDArray[np.int32]:
        """(n,) the shop's row of each event's item; -1 for none."""

    def block(self, items: Rows, first: int, last: int) -> EventBlock:
        """Sessions `first` to `last`, that one not included. items: (V,) ITEM of the shop."""


class RankingQuery(NamedTuple):
    """Positions of U sessions, and what the page would be made of."""

    click: npt.NDArray[np.int64]  # (U,) the one that is to be foreseen
    before: npt.NDArray[np.int64]  # (U,) clicks of the session before it
    candidates: Candidates
    phi: Floats  # (U, C, F)

    def targets(self, told: EventSource) -> npt.NDArray[np.int64]:
        """(U,) which candidate was clicked next; -1 where it is none."""
        hit = self.candidates.rows == told.item[self.click][:, None]  # beyond the count rows are -1
        return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def walk(
    shop: Shop, told: EventSource, *, ask: bool, learn: bool, first: int = 0, last: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[RankingQuery]:  # fmt: skip
    """Sessions `first` to `last` event by event, a block of them at a time; with `ask`, what is known at each position.

    With `learn` the signals learn from a block once it has been walked through. Whoever refuses consent is neither asked
    for nor learnt from, as in serving. progress gets how many sessions are done, and how many there are.
    """
    last = len(told.ends) if last is None else last
    at_once = BLOCK if ask else AT_ONCE
    for start in range(first, last, at_once):
        progress(start - first, last - first)
        block = told.block(shop.catalog.items, start, min(start + at_once, last))
        profiles = blank(len(block.shopper))
        for at, shopper in enumerate(block.shopper.tolist()):
            if (known := shop.shoppers.pop(shopper, None)) is not None:
                profiles[at] = known
        activity = []
        order = np.argsort(block.round, kind="stable")
        ends = np.cumsum(np.bincount(block.round)).tolist()
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = order[begin:end]
            asked = rows[block.is_target[rows]] if ask else rows[:0]
            asked = asked[profiles["consent"][block.shopper_row[asked]] >= 0]
            if len(asked):
                yield _ask(
                    shop, rows_at(profiles, block.shopper_row[asked]), block.number[asked], block.steps_before[asked]
                )
            events = rows_at(block.events, rows)
            events["record"] = np.arange(len(rows))
            _, caused = fold_with_activity(profiles, block.shopper_row[rows], events, block.number[rows])
            activity.append(caused)
        for at in np.flatnonzero(block.returns).tolist():
            shop.shoppers[int(block.shopper[at])] = profiles[at : at + 1].copy()
        if learn:
            shop.learn(np.concatenate(activity))


def _ask(shop: Shop, profiles: Rows, click: npt.NDArray[np.int64], before: npt.NDArray[np.int64]) -> RankingQuery:
    now = profiles["last_seen"].copy()
    leaders, history = shop.signals.leaders(float(now.max())), shop.history
    foresight = history.predict(profiles) if history is not None else None
    proposals = NO_PROPOSALS if foresight is None else foresight.rows
    candidates = retrieve(profiles, now, shop.catalog, shop.signals, leaders, proposals=proposals)
    foreseen = NO_HISTORY_SCORES if history is None or foresight is None else history.judge(foresight, candidates)
    phi = joint_features(
        profiles, np.zeros(len(now), SERVING), now, candidates, shop.catalog, shop.signals, foreseen=foreseen
    )
    return RankingQuery(click, before, candidates, phi)
