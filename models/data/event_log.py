"""Logs of events: what shoppers did, each kind as the fold takes it, in sessions as the signals cut them.

A choice to learn from is a click, view or purchase that begins a step of its session. As for the signals, a click and the
view that follows it, or a view and its addition to the cart, are one step. Additions to the cart, searches and the rest
are folded and not foreseen. What a shopper did until she asked to be erased is not looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.data.clickstream import EventBlock
from models.data.replay import bare_items
from stream.events import BUY, CLICK, CONSENT, ERASE, EVENT, VIEW
from stream.ids import IdIndex
from stream.items.activity import GAP_KINDS, SESSION_GAP
from stream.items.catalog import AVAILABLE, Catalog
from stream.jit import njit
from stream.row_codec import rows_at

Rows = npt.NDArray[np.void]
CHOSEN = (VIEW, CLICK, BUY)


@njit
def _steps(events, item, session, choice, before, refused):  # type: ignore[no-untyped-def]
    """events (n,) EVENT shopper by shopper in order of time; item (n,) -1 for none; the others (n,) are filled.

    A session ends where nothing was touched for SESSION_GAP; what a shopper does without an item then begins the next.
    """
    number, step, last_item, last_kind, last_time = -1, 0, -1, 0, 0.0
    known, known_before, consent = False, False, 0
    for i in range(events.shape[0]):
        e = events[i]
        if i == 0 or e.shopper != events[i - 1].shopper:
            number += 1
            step, last_item, last_kind, last_time = 0, -1, 0, e.time
            known, consent = False, 0
        if e.part == 0:
            if e.consent != 0:
                consent = e.consent
            if consent < 0:
                known, last_item = False, -1  # the profile forgets
            known_before = known
        if step > 0 and e.time - last_time > SESSION_GAP:
            number += 1
            step, last_item = 0, -1
        session[i], choice[i], before[i], refused[i] = number, False, step, consent < 0
        if consent < 0 or item[i] < 0 or e.kind not in GAP_KINDS:
            continue
        if item[i] != last_item or e.kind == last_kind:
            choice[i] = known_before and e.kind in CHOSEN
            step += 1
        last_item, last_kind, last_time, known = item[i], e.kind, e.time, True


class EventLog(NamedTuple):
    """n rows of events in S sessions, session by session in the order of their last events; each in order of time."""

    ends: npt.NDArray[np.int64]  # (S,) where the rows of each session end
    shopper: npt.NDArray[np.int64]  # (S,) number of whose session it is
    final: npt.NDArray[np.bool_]  # (S,) it is her last
    events: Rows  # (n,) EVENT, the parts of one event together
    item: npt.NDArray[np.int32]  # (n,) number of the item; -1 for none
    choice: npt.NDArray[np.bool_]  # (n,) to be foreseen: of a shopper who has touched an item before
    before: npt.NDArray[np.int64]  # (n,) steps of the session before it
    refused: npt.NDArray[np.bool_]  # (n,) done while consent was refused

    @classmethod
    def of_rows(cls, events: Rows, items: Rows) -> EventLog:
        """events (n,) EVENT in any order, but the parts of one event together and each event once; items (V,) ITEM, all there are."""
        index = IdIndex(len(items))
        index.add_all(np.ascontiguousarray(items["id"]))
        events = rows_at(events, np.lexsort((events["time"], events["shopper"])))  # stable: parts stay together
        n = len(events)
        item = index.get_all(np.ascontiguousarray(events["item"]))
        session, before = np.empty(n, np.int64), np.empty(n, np.int64)
        choice, refused = np.empty(n, np.bool_), np.empty(n, np.bool_)
        _steps(events, item, session, choice, before, refused)
        lengths = np.bincount(session)
        last = np.cumsum(lengths) - 1  # (S,) row of each session's last event
        order = np.argsort(events["time"][last], kind="stable")  # of a shopper's sessions none overtakes another
        _, shoppers = np.unique(events["shopper"][last], return_inverse=True)
        _, newest = np.unique(shoppers[order][::-1], return_index=True)
        final = np.zeros(len(order), np.bool_)
        final[len(order) - 1 - newest] = True
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        rows = np.argsort(rank[session], kind="stable")
        return cls(
            np.cumsum(lengths[order]), shoppers[order], final, rows_at(events, rows), item[rows], choice[rows], before[rows],
            refused[rows],
        )  # fmt: skip

    @property
    def time(self) -> npt.NDArray[np.float64]:
        """(n,) s since the epoch."""
        return self.events["time"]

    def newest(self, choices: int) -> int:
        """First of the newest sessions that have so many choices, as near as may be."""
        until = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.choice)])[self.ends]
        following = until[-1] - np.concatenate([np.zeros(1, np.int64), until[:-1]])  # (S,) from each session on
        return max(int((following >= choices).sum()) - 1, 0)

    def touched(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Rows of sessions `first` to `last` with an interaction with an item, shopper by shopper in order of time."""
        rows = self._rows(first, last)
        counts = (self.item[rows] >= 0) & np.isin(self.events["kind"][rows], GAP_KINDS) & ~self.refused[rows]
        rows = rows[counts]
        return rows[np.argsort(self.events["shopper"][rows], kind="stable")]

    def block(self, items: Rows, first: int, last: int) -> EventBlock:
        """Sessions `first` to `last`. items is not asked: events name their items themselves."""
        rows = self._rows(first, last)
        lengths = np.diff(self.ends[first:last], prepend=self.ends[first - 1] if first else 0)
        of = np.repeat(self.shopper[first:last], lengths)  # (n,)
        order = np.argsort(of, kind="stable")
        rows, of = rows[order], of[order]
        shopper, who = np.unique(of, return_inverse=True)
        head = self.events["part"][rows] == 0
        # Parts of one event come together.
        began = np.cumsum(head)
        start = np.searchsorted(who, np.arange(len(shopper)))
        wave = began - began[start][who]
        over = self.shopper[first:last][self.final[first:last]]
        return EventBlock(
            shopper, who.astype(np.int32), wave.astype(np.int32), rows, rows_at(self.events, rows), self.choice[rows],
            self.before[rows], ~np.isin(shopper, over),
        )  # fmt: skip

    def _rows(self, first: int, last: int) -> npt.NDArray[np.int64]:
        return np.arange(self.ends[first - 1] if first else 0, self.ends[last - 1] if last else 0)


def distinct(events: Rows) -> Rows:
    """(n,) EVENT less those that came before: of one shopper and id the first counts, as in a profile."""
    heads = np.flatnonzero(events["part"] == 0)
    pairs = np.stack([events["shopper"][heads], events["id"][heads]], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    kept = np.zeros(len(heads), np.bool_)
    kept[first] = True
    return rows_at(events, np.flatnonzero(np.repeat(kept, np.diff(heads, append=len(events)))))


class Kept(NamedTuple):
    """What may be learnt from, and what may not."""

    rows: Rows  # (n,) EVENT
    events: int  # that are left out
    shoppers: int  # whose they were


def without_erased(events: Rows) -> Kept:
    """(n,) EVENT, the parts of one event together, less what shoppers did until they asked to be erased, by event time.

    That is all that they did under the id that asks, whatever the order of arrival. If what they said last of consent was
    a refusal, it stays, as an event of nothing else: it holds for what they do later.
    """
    asked = events[events["kind"] == ERASE]
    if not len(asked):
        return Kept(events, 0, 0)
    shoppers, of = np.unique(asked["shopper"], return_inverse=True)
    until = np.full(len(shoppers), -np.inf)  # (E,) s, of each shopper's last request
    np.maximum.at(until, of, asked["time"])
    place = np.minimum(np.searchsorted(shoppers, events["shopper"]), len(shoppers) - 1)
    gone = (shoppers[place] == events["shopper"]) & (events["time"] <= until[place])  # (n,)
    heads = gone & (events["part"] == 0)
    lost = events[heads & (events["kind"] != ERASE)]
    told = events[heads & (events["consent"] != 0)]
    told = told[np.argsort(told["time"], kind="stable")[::-1]]
    _, last = np.unique(told["shopper"], return_index=True)
    last = last[told["consent"][last] < 0]
    refusals: Any = np.zeros(len(last), EVENT)
    for field in ("shopper", "id", "time", "consent"):
        refusals[field] = told[field][last]
    refusals["kind"] = CONSENT
    return Kept(
        np.concatenate([rows_at(events, np.flatnonzero(~gone)), refusals]), len(lost), len(np.unique(lost["shopper"]))
    )


def items_of(events: Rows, catalog: Catalog | None) -> Rows:
    """(V,) ITEM of all items there are: those of the catalogue, and those that events name, with what the newest says of them.

    An item that somebody touched was for sale then, whatever the catalogue says today.
    """
    known = bare_items(np.zeros(0, np.int64)) if catalog is None else catalog.items[: len(catalog)].copy()
    known = known[known["present"] == 1]
    named = events[(events["item"] != 0) & np.isin(events["kind"], GAP_KINDS)]
    known["flags"][np.isin(known["id"], named["item"])] |= AVAILABLE
    named = named[~np.isin(named["item"], known["id"])]
    ids = np.unique(named["item"])
    items = bare_items(ids)
    named = named[np.argsort(named["time"], kind="stable")]
    for field, of in (("category", "category"), ("brand", "brand"), ("log_price", "price")):
        says = named[named[of] != 0]  # of several the last one stays
        place = np.searchsorted(ids, says["item"])
        items[field][place] = np.log(says["price"]) if of == "price" else says[of]
    return np.concatenate([known, items])
