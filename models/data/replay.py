"""Replay of recorded sessions through the fold, candidates and phi that serve.

Before each event to predict it yields what was known: the candidates and phi.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from models.data.clickstream import EventBlock
from models.featurize import featurize, retrieve_candidates
from models.history.model import History
from stream.ids import key64
from stream.items.activity import fold_with_activity
from stream.items.catalog import AVAILABLE, EN, ITEM, PRODUCT, ZH, Catalog, fragment_of
from stream.items.signals import HALF_LIVES, HalfLives, ItemTable, Signals
from stream.page.candidates import Candidates
from stream.profile.exposure import SERVING
from stream.profile.row import blank_profiles
from stream.row_codec import rows_at
from stream.types import F32, I32, I64, Rows

# Sessions of a block. Signals learn from a block only after all of its sessions were ranked.
RANKED_SESSIONS = 64
LEARNT_SESSIONS = 4096  # of a block that is not ranked


def bare_items(ids: I64) -> Rows:
    """(n,) ITEM rows of which only the ids (key64) are known."""
    rows: Any = np.zeros(len(ids), ITEM)
    rows["id"], rows["expires"], rows["present"], rows["flags"] = ids, np.inf, 1, PRODUCT | AVAILABLE | EN | ZH
    return rows  # type: ignore[no-any-return]


class OfflineShop:
    """The state of a worker, offline: catalogue, signals, history model, and profiles of shoppers who will return.

    items: ids by item number. rows: (n,) ITEM of the same items, if more is known of them than their ids.
    """

    def __init__(self, items: Sequence[str], rows: Rows | None = None, *, half_lives: HalfLives = HALF_LIVES) -> None:
        if rows is None:
            rows = bare_items(np.array([key64(id) for id in items], np.int64))
        self.catalog = Catalog.from_rows(rows, [fragment_of(id) for id in items])
        self.half_lives = half_lives
        self.signals = Signals(self.catalog, half_lives)
        self.history: History | None = None
        # (1,) PROFILE by shopper number, of shoppers with events in a later block.
        self.shoppers: dict[int, Rows] = {}
        self._table = ItemTable(half_lives)
        self._activity_rows = 0

    def learn(self, activity: Rows) -> None:
        """Add (n,) ACTIVITY rows, in any order, to the signals in order of time."""
        activity = rows_at(activity, np.argsort(activity["time"], kind="stable"))
        activity["offset"] = np.arange(self._activity_rows, self._activity_rows + len(activity))
        self._activity_rows += len(activity)
        self.signals.set_signals(self._table.rows_of(self._table.fold("clicks", 0, activity)))


class EventSource(Protocol):
    """Sessions that can be replayed, in the order of their last events."""

    @property
    def ends(self) -> I64:
        """(S,) end of each session's events."""

    @property
    def item(self) -> I32:
        """(n,) catalogue row of each event's item; -1 for none."""

    def block(self, items: Rows, first: int, last: int) -> EventBlock:
        """Sessions `first` to `last`, exclusive. items: (V,) ITEM of the shop."""


class RankingQuery(NamedTuple):
    """U positions to rank at, one for each of U sessions."""

    target_event: I64  # (U,) index of the event that has to be predicted
    steps_before: I64  # (U,) earlier steps of the session
    candidates: Candidates
    phi: F32  # (U, C, F)

    def target_columns(self, source: EventSource) -> I64:
        """(U,) column of the candidate that the target event names; -1 if it is not a candidate."""
        # Beyond the count, candidate rows are -1.
        hit = self.candidates.rows == source.item[self.target_event][:, None]
        return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def ignore_progress(done: int, total: int) -> None:
    """The default callback of `replay_sessions`."""


def replay_sessions(
    shop: OfflineShop, source: EventSource, *, query: bool, learn: bool, first: int = 0, last: int | None = None,
    progress: Callable[[int, int], None] = ignore_progress,
) -> Iterator[RankingQuery]:  # fmt: skip
    """Fold sessions `first` to `last`, exclusive, event by event; yield the queries for their target events.

    query: yield queries; without it nothing is yielded. learn: the signals learn from each block of sessions after the
    block was replayed. As in serving, shoppers who refuse consent are neither queried nor learnt from. progress is
    called with the numbers of finished sessions and of all.
    """
    last = len(source.ends) if last is None else last
    sessions = RANKED_SESSIONS if query else LEARNT_SESSIONS
    for start in range(first, last, sessions):
        progress(start - first, last - first)
        block = source.block(shop.catalog.items, start, min(start + sessions, last))
        profiles = _take_profiles(shop, block)
        activity = []
        order = np.argsort(block.round, kind="stable")
        ends = np.cumsum(np.bincount(block.round)).tolist()
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = order[begin:end]
            if query:
                targets = rows[block.is_target[rows]]
                targets = targets[profiles["consent"][block.shopper_row[targets]] >= 0]
                if len(targets):
                    candidates, phi = _candidates_and_phi(shop, rows_at(profiles, block.shopper_row[targets]))
                    yield RankingQuery(block.number[targets], block.steps_before[targets], candidates, phi)
            events = rows_at(block.events, rows)
            events["record"] = np.arange(len(rows))
            _, caused = fold_with_activity(profiles, block.shopper_row[rows], events, block.number[rows])
            activity.append(caused)
        for row in np.flatnonzero(block.returns).tolist():
            shop.shoppers[int(block.shopper[row])] = profiles[row : row + 1].copy()
        if learn:
            shop.learn(np.concatenate(activity))


def _take_profiles(shop: OfflineShop, block: EventBlock) -> Rows:
    """(U,) PROFILE of the block's shoppers: those of earlier blocks, which leave the shop, and blank ones."""
    profiles = blank_profiles(len(block.shopper))
    for row, shopper in enumerate(block.shopper.tolist()):
        if (known := shop.shoppers.pop(shopper, None)) is not None:
            profiles[row] = known
    return profiles


def _candidates_and_phi(shop: OfflineShop, profiles: Rows) -> tuple[Candidates, F32]:
    """Candidates and phi (U, C, F) of U profiles at the time of their last events, as a page would get them."""
    now = profiles["last_seen"].copy()
    catalog, signals, history = shop.catalog, shop.signals, shop.history
    prediction = history.predict(profiles) if history is not None else None
    candidates = retrieve_candidates(profiles, now, catalog, signals, signals.trending(float(now.max())), prediction)
    no_exposure = np.zeros(len(now), SERVING)
    return candidates, featurize(profiles, no_exposure, now, candidates, catalog, signals, history, prediction)
