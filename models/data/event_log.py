"""Event logs as training data: events as the fold takes them, in the sessions and steps that the signals use.

The targets are the clicks, views and purchases that start a step of their session. As in the signals, a click and the
view that follows it, or a view and its addition to the cart, are one step. Other events are folded but never predicted.
What shoppers did before they asked to be erased is not used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from models.data.clickstream import EventBlock
from models.data.replay import bare_items
from stream.events.decode import BUY, CLICK, CONSENT, ERASE, EVENT, VIEW
from stream.ids import IdIndex
from stream.items.catalog import AVAILABLE, Catalog
from stream.jit import njit
from stream.profile.repeats import SESSION_GAP_S, SESSION_KINDS
from stream.row_codec import rows_at
from stream.types import F64, I32, I64, Bools, Rows

TARGET_KINDS = (VIEW, CLICK, BUY)


@njit
def _find_steps(events: Rows, item: I32, session: I64, is_target: Bools, steps_before: I64, is_refused: Bools) -> None:
    """Cut events into sessions and steps. Tested case by case in tests/unit/models/data/test_event_log.py.

    events: (n,) EVENT by shopper, then by time; item: (n,), -1 for none. Fills session, is_target, steps_before and
    is_refused, all (n,). A session ends after SESSION_GAP seconds without an interaction with an item. Events without
    an item after such a pause belong to the next session.
    """
    number, step, last_item, last_kind, last_time = -1, 0, -1, 0, 0.0
    known, known_before, consent, refused_time = False, False, 0, 0.0
    for i in range(events.shape[0]):
        e: Any = events[i]
        if i == 0 or e.shopper != events[i - 1].shopper:
            number += 1
            step, last_item, last_kind, last_time = 0, -1, 0, e.time
            known, consent, refused_time = False, 0, 0.0
        if e.part == 0:
            # Of statements at the same time a refusal holds, as in the profile.
            if e.consent < 0:
                consent, refused_time = -1, e.time
            elif e.consent > 0 and e.time > refused_time:
                consent = 1
            if consent < 0:
                # The profile forgets all items when consent is refused.
                known, last_item = False, -1
            known_before = known
        if step > 0 and e.time - last_time > SESSION_GAP_S:
            number += 1
            step, last_item = 0, -1
        session[i], is_target[i], steps_before[i], is_refused[i] = number, False, step, consent < 0
        if consent < 0 or item[i] < 0 or e.kind not in SESSION_KINDS:
            continue
        if item[i] != last_item or e.kind == last_kind:
            is_target[i] = known_before and e.kind in TARGET_KINDS
            step += 1
        last_item, last_kind, last_time, known = item[i], e.kind, e.time, True


class EventLog(NamedTuple):
    """n event rows in S sessions. Sessions are ordered by their last event, the rows of each by time."""

    ends: I64  # (S,) end of each session's rows
    shopper: I64  # (S,) number of each session's shopper
    is_last: Bools  # (S,) sessions that are the last of their shopper
    events: Rows  # (n,) EVENT, the parts of an event adjacent
    item: I32  # (n,) item numbers; -1 for none
    is_target: Bools  # (n,) events to predict: the shopper has interacted with an item before
    steps_before: I64  # (n,) earlier steps of the session
    is_refused: Bools  # (n,) events while consent was refused

    @classmethod
    def of_rows(cls, events: Rows, items: Rows) -> EventLog:
        """Sort events into sessions.

        events: (n,) EVENT in any order, each event once and its parts adjacent. items: (V,) ITEM, all of the shop.
        """
        index = IdIndex(len(items))
        index.add_all(np.ascontiguousarray(items["id"]))
        # lexsort is stable: the parts of an event stay adjacent. Of events at the same time, refusals come first.
        events = rows_at(events, np.lexsort((events["consent"] >= 0, events["time"], events["shopper"])))
        n = len(events)
        item = index.get_all(np.ascontiguousarray(events["item"]))
        session, steps_before = np.empty(n, np.int64), np.empty(n, np.int64)
        is_target, is_refused = np.empty(n, np.bool_), np.empty(n, np.bool_)
        _find_steps(events, item, session, is_target, steps_before, is_refused)
        lengths = np.bincount(session)
        last_row = np.cumsum(lengths) - 1  # (S,)
        # A stable sort by the last event keeps the sessions of one shopper in order.
        order = np.argsort(events["time"][last_row], kind="stable")
        _, shopper = np.unique(events["shopper"][last_row], return_inverse=True)
        _, last_from_end = np.unique(shopper[order][::-1], return_index=True)
        is_last = np.zeros(len(order), np.bool_)
        is_last[len(order) - 1 - last_from_end] = True
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        rows = np.argsort(rank[session], kind="stable")
        return cls(
            ends=np.cumsum(lengths[order]),
            shopper=shopper[order],
            is_last=is_last,
            events=rows_at(events, rows),
            item=item[rows],
            is_target=is_target[rows],
            steps_before=steps_before[rows],
            is_refused=is_refused[rows],
        )

    @property
    def time(self) -> F64:
        """(n,) seconds since the epoch."""
        return self.events["time"]

    def first_of_newest(self, targets: int) -> int:
        """First of the newest sessions that together have about `targets` events to predict."""
        until = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.is_target)])[self.ends]
        # (S,) targets of each session and of all after it.
        from_here = until[-1] - np.concatenate([np.zeros(1, np.int64), until[:-1]])
        return max(int((from_here >= targets).sum()) - 1, 0)

    def interactions(self, first: int, last: int) -> I64:
        """Row numbers of interactions with items in sessions `first` to `last`, by shopper and then by time."""
        rows = self._rows(first, last)
        is_interaction = (self.item[rows] >= 0) & np.isin(self.events["kind"][rows], SESSION_KINDS)
        rows = rows[is_interaction & ~self.is_refused[rows]]
        return rows[np.argsort(self.events["shopper"][rows], kind="stable")]

    def block(self, items: Rows, first: int, last: int) -> EventBlock:
        """Sessions `first` to `last`, exclusive. items is not used: the events carry the ids of their items."""
        rows = self._rows(first, last)
        lengths = np.diff(self.ends[first:last], prepend=self.ends[first - 1] if first else 0)
        shopper_of = np.repeat(self.shopper[first:last], lengths)  # (n,)
        order = np.argsort(shopper_of, kind="stable")
        rows, shopper_of = rows[order], shopper_of[order]
        shopper, shopper_row = np.unique(shopper_of, return_inverse=True)
        # The parts of one event are folded in the same round.
        events_so_far = np.cumsum(self.events["part"][rows] == 0)
        start = np.searchsorted(shopper_row, np.arange(len(shopper)))
        ended = self.shopper[first:last][self.is_last[first:last]]
        return EventBlock(
            shopper=shopper,
            shopper_row=shopper_row.astype(np.int32),
            round=(events_so_far - events_so_far[start][shopper_row]).astype(np.int32),
            number=rows,
            events=rows_at(self.events, rows),
            is_target=self.is_target[rows],
            steps_before=self.steps_before[rows],
            returns=~np.isin(shopper, ended),
        )

    def _rows(self, first: int, last: int) -> I64:
        return np.arange(self.ends[first - 1] if first else 0, self.ends[last - 1] if last else 0)


def without_duplicates(events: Rows) -> Rows:
    """(n,) EVENT without repetitions: of one shopper and event id or transaction the first counts, as in a profile."""
    heads = np.flatnonzero(events["part"] == 0)
    pairs = np.stack([events["shopper"][heads], events["id"][heads]], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    is_kept = np.zeros(len(heads), np.bool_)
    is_kept[first] = True
    sold = heads[is_kept & (events["transaction"][heads] != 0)]
    pairs = np.stack([events["shopper"][sold], events["transaction"][sold]], axis=1)
    repeated = np.delete(sold, np.unique(pairs, axis=0, return_index=True)[1])
    is_kept[np.searchsorted(heads, repeated)] = False
    return rows_at(events, np.flatnonzero(np.repeat(is_kept, np.diff(heads, append=len(events)))))


class ErasureResult(NamedTuple):
    """Events without those of erased shoppers, and how many are left out."""

    rows: Rows  # (n,) EVENT
    events: int  # left out
    shoppers: int  # of the events left out


def without_erased(events: Rows) -> ErasureResult:
    """Leave out all events up to the last erasure request of their shopper, by event time.

    events: (n,) EVENT in any order, the parts of an event adjacent. A refusal of consent outlives the erasure: if the
    last word on consent among the erased events was a refusal, an event with nothing but that refusal is kept.
    """
    requests = events[events["kind"] == ERASE]
    if not len(requests):
        return ErasureResult(events, 0, 0)
    shoppers, shopper_of = np.unique(requests["shopper"], return_inverse=True)
    until = np.full(len(shoppers), -np.inf)  # (E,) seconds, of each shopper's last request
    np.maximum.at(until, shopper_of, requests["time"])
    place = np.minimum(np.searchsorted(shoppers, events["shopper"]), len(shoppers) - 1)
    is_erased = (shoppers[place] == events["shopper"]) & (events["time"] <= until[place])  # (n,)
    heads = is_erased & (events["part"] == 0)
    left_out = events[heads & (events["kind"] != ERASE)]
    refusals = _last_refusals(events[heads & (events["consent"] != 0)])
    kept = np.concatenate([rows_at(events, np.flatnonzero(~is_erased)), refusals])
    return ErasureResult(kept, len(left_out), len(np.unique(left_out["shopper"])))


def _last_refusals(events: Rows) -> Rows:
    """CONSENT events of the shoppers whose last of these events refused consent. events: (n,) EVENT with a consent.

    Of events at the same time, a refusal is the last.
    """
    newest_first = events[np.lexsort((events["consent"] < 0, events["time"]))[::-1]]
    _, last = np.unique(newest_first["shopper"], return_index=True)
    last = last[newest_first["consent"][last] < 0]
    refusals: Any = np.zeros(len(last), EVENT)
    for field in ("shopper", "id", "time", "consent"):
        refusals[field] = newest_first[field][last]
    refusals["kind"] = CONSENT
    return refusals  # type: ignore[no-any-return]


def collect_items(events: Rows, catalog: Catalog | None) -> Rows:
    """(V,) ITEM of the catalogue's items and of the items that only events name, with their newest attributes.

    An item that a shopper interacted with counts as available: it was for sale then, whatever the catalogue says today.
    """
    known = bare_items(np.zeros(0, np.int64)) if catalog is None else catalog.items[: len(catalog)].copy()
    known = known[known["present"] == 1]
    named = events[(events["item"] != 0) & np.isin(events["kind"], SESSION_KINDS)]
    known["flags"][np.isin(known["id"], named["item"])] |= AVAILABLE
    named = named[~np.isin(named["item"], known["id"])]
    ids = np.unique(named["item"])
    items = bare_items(ids)
    named = named[np.argsort(named["time"], kind="stable")]
    for field, event_field in (("category", "category"), ("brand", "brand"), ("log_price", "price")):
        given = named[named[event_field] != 0]
        place = np.searchsorted(ids, given["item"])
        # With repeated places the last assignment, that of the newest event, holds.
        items[field][place] = np.log(given["price"]) if event_field == "price" else given[event_field]
    return np.concatenate([known, items])
