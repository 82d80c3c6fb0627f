"""Choices among the items that pages showed: records of the impressions topic, joined with the clicks on them.

Pages without a click are not read: they do not show which item is better. The recorded propensities are not used as
weights. The shopper chose among the items of the page, and the softmax is over the same items; McFadden's conditional
logit needs no correction if the choice set is the one that was faced. What propensities are for, an item at a random
position, is in the data itself: `models.train.ranker.fit` explains how examination is separated from relevance.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from models.ranker.columns import F, features_hash
from models.train.ranker.fit import HELD_OUT_SHARE, Choices
from stream.codes import MAX_PAGE_ITEMS, SLOTS
from stream.events.decode import ERASE, KINDS, NO_ARRIVAL_S, Event, event_time, shopper_key
from stream.locales import locale_code
from stream.name_patterns import NO_NAMES, NamePatterns
from stream.page.encode import unpack_phi
from stream.page.schemas import Impression
from stream.types import F64

# Attributes that group choices: codes of the item's slot and of the shopper's locale; 1 if the item was explored.
GROUP_FIELDS = np.dtype([("slot", "i1"), ("locale", "i1"), ("explored", "i1")])
MAX_CLICKS = 200_000  # the newest are kept; each takes 5 kB
UNKNOWN_HISTORY = "?"
ERASED = "their shoppers asked to be erased"  # a reason why clicks are left out
_decoder = msgspec.json.Decoder(Impression)
_SLOT_CODES = {name: code for code, name in enumerate(SLOTS)}


class PageClick(NamedTuple):
    """A click on an item of a page. Times are in seconds since the epoch."""

    time: float
    page: str
    shopper: str
    item: str
    locale: int  # code of stream.events.decode
    erased: float = 0.0  # last erasure request of the shopper; nothing up to it is learnt from


class JoinedClicks(NamedTuple):
    """N choices in order of time. The newest tenth is held out."""

    choices: Choices
    time: F64  # (N,) seconds since the epoch, of the click
    left_out: Counter[str]  # number of other clicks on pages, by reason
    histories: list[str]  # (N,) version of the history model of each click's page; "" none, UNKNOWN_HISTORY not stated


class _Page(NamedTuple):
    """What is kept of an impression with n items."""

    time: float  # seconds since the epoch, of the event that the page answered
    shopper: str
    items: list[str]
    phi: npt.NDArray[np.float16]  # (n, F)
    slots: list[int]
    explored: list[bool]
    history: str  # as in JoinedClicks


class PageClicks:
    """Collects clicks on items of pages from events in any order; each pair of page and item counts once.

    A click is a select_item event, or a view_item event of a shop that sends no select_item, if its attribution names
    the page. Clicks of excluded shoppers are left out.
    """

    def __init__(self, excluded_shoppers: NamePatterns = NO_NAMES) -> None:
        self._excluded_shoppers = excluded_shoppers
        self._clicks: dict[tuple[str, str], PageClick] = {}  # by page and item
        self._consent: dict[str, tuple[float, bool]] = {}  # by shopper: time of the last statement, True for a refusal
        self._erased: dict[str, float] = {}  # by shopper: time of the last erasure request
        self._without_page = self._excluded = 0

    def add(self, event: Event, arrived: float = NO_ARRIVAL_S) -> None:
        """Add an event; `arrived` is the timestamp of its record in seconds since the epoch.

        As in serving, an event's time is at most FUTURE_TOLERANCE_S after its arrival. Raises EventError if the time
        is out of range.
        """
        data, shopper = event.data, shopper_key(event)
        time = event_time(event, arrived).seconds
        if data.consent is not None and data.consent.personalization is not None:
            statement = time, not data.consent.personalization
            self._consent[shopper] = max(self._consent.get(shopper, (0.0, False)), statement)
        if event.type == KINDS[ERASE]:
            self._erased[shopper] = max(self._erased.get(shopper, 0.0), time)
        if event.type not in ("select_item", "view_item") or not data.items:
            return
        page = data.attribution.page_id if data.attribution is not None else None
        if page is None:
            self._without_page += event.type == "select_item"
            return
        if self._excluded_shoppers.match(shopper) is not None:
            self._excluded += 1
            return
        click = PageClick(time, page, shopper, data.items[0].item_id, locale_code(data.locale))
        key = page, click.item
        self._clicks[key] = min(click, self._clicks.get(key, click))

    def newest(self) -> tuple[list[PageClick], Counter[str]]:
        """The newest MAX_CLICKS clicks in order of time; how many are left out, by reason."""
        allowed = [click for click in self._clicks.values() if not self._consent.get(click.shopper, (0.0, False))[1]]
        dated = (click._replace(erased=self._erased.get(click.shopper, 0.0)) for click in allowed)
        kept = sorted(click for click in dated if click.time > click.erased)
        left_out = Counter(
            {
                "they name no page": self._without_page,
                "SHOPWINDOW_EXCLUDE_SHOPPERS lists their shoppers": self._excluded,
                "consent was refused": len(self._clicks) - len(allowed),
                ERASED: len(allowed) - len(kept),
                f"older than the newest {MAX_CLICKS:,}": max(0, len(kept) - MAX_CLICKS),
            }
        )
        # The unary plus removes reasons without clicks.
        return kept[-MAX_CLICKS:], +left_out


def _page_of(impression: Impression) -> _Page:
    """Raises ValueError if phi does not fit the items, is not finite, or the time is invalid."""
    time = datetime.fromisoformat(impression.time)
    if time.tzinfo is None:
        raise ValueError(
            f"time is {impression.time[:40]!a}, expected one with a zone, such as 2026-01-01T00:00:00.000Z"
        )
    try:
        phi = unpack_phi(base64.b64decode(impression.phi, validate=True), F)
    except (binascii.Error, ValueError, IndexError) as error:
        raise ValueError(f"phi is {impression.phi[:40]!a}: {error}") from None
    if len(phi) != len(impression.items) or not 1 < len(phi) <= MAX_PAGE_ITEMS:
        raise ValueError(
            f"phi has {len(phi)} rows and items has {len(impression.items)}; both must have the same number, "
            f"from 2 to {MAX_PAGE_ITEMS}"
        )
    if not np.isfinite(phi).all():
        raise ValueError("phi has non-finite values")
    return _Page(
        time=time.timestamp(),
        shopper=impression.user_key,
        items=[item.item_id for item in impression.items],
        phi=phi.astype(np.float16),
        slots=[_SLOT_CODES[item.slot] for item in impression.items],
        explored=[item.explored for item in impression.items],
        history=UNKNOWN_HISTORY if impression.history is msgspec.UNSET else impression.history or "",
    )


class ClickJoin:
    """Joins clicks with the impressions of their pages. If a page comes twice, the last impression counts."""

    def __init__(self, clicks: Sequence[PageClick], on_refusal: Callable[[str, str], None]) -> None:
        """on_refusal: called with the place of an impression and the reason why it is refused."""
        self._clicks, self._on_refusal = clicks, on_refusal
        self._clicked_pages = {click.page for click in clicks}
        self._pages: dict[str, _Page] = {}
        self._other_features: dict[str, str] = {}  # features_hash by page, if it is not ours
        self._features_hash = features_hash()

    def add(self, place: str, value: bytes | None) -> None:
        """Add the value of an impressions record. Invalid ones are refused; pages without clicks are ignored."""
        try:
            impression = _decoder.decode(value or b"")
            if impression.page_id not in self._clicked_pages:
                return
            if impression.features_hash != self._features_hash:
                self._other_features[impression.page_id] = impression.features_hash
            else:
                self._pages[impression.page_id] = _page_of(impression)
        except (msgspec.DecodeError, RecursionError) as error:
            self._on_refusal(place, f"not an impression: {error} in {(value or b'')[:60]!a}")
        except ValueError as error:
            self._on_refusal(place, str(error))

    def joined(self) -> JoinedClicks:
        """The clicks whose pages were added, and the number of others by reason."""
        left_out: Counter[str] = Counter()
        kept: list[tuple[PageClick, _Page, int]] = []
        for click in self._clicks:
            page = self._pages.get(click.page)
            if page is None:
                left_out[self._why_missing(click.page)] += 1
            elif page.time <= click.erased:
                # phi contains what the shopper did before the erasure.
                left_out[ERASED] += 1
            elif page.shopper != click.shopper:
                left_out["its page is another shopper's"] += 1
            elif click.item not in page.items:
                left_out["its page does not show the item"] += 1
            else:
                kept.append((click, page, page.items.index(click.item)))
        times, histories = np.array([click.time for click, _, _ in kept]), [page.history for _, page, _ in kept]
        return JoinedClicks(_choices_of(kept), times, left_out, histories)

    def _why_missing(self, page: str) -> str:
        other = self._other_features.get(page)
        if other is None:
            return "the impression of its page is missing"
        return f"its page has other features (features_hash {other[:19]}, here {self._features_hash[:19]})"


def _choices_of(clicks: Sequence[tuple[PageClick, _Page, int]]) -> Choices:
    """Choices of clicks in order of time, each with its page and the position of its item there."""
    count = [len(page.items) for _, page, _ in clicks]
    groups: Any = np.zeros(len(clicks), GROUP_FIELDS)
    groups["slot"] = [page.slots[position] for _, page, position in clicks]
    groups["locale"] = [click.locale for click, _, _ in clicks]
    groups["explored"] = [page.explored[position] for _, page, position in clicks]
    return Choices(
        phi=np.concatenate([np.zeros((0, F), np.float16), *(page.phi for _, page, _ in clicks)]),
        ends=np.cumsum(count, dtype=np.int64),
        chosen=np.array([position for _, _, position in clicks], np.int32),
        position=np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in count)]),
        held=np.arange(len(clicks)) >= int((1 - HELD_OUT_SHARE) * len(clicks)),
        about=groups,
    )
