"""Choices among what pages showed, as the topic of impressions keeps them, joined with the clicks on them.

A page that nobody clicked on says nothing of which item is better, and is not read. Neither is weighting by the recorded
propensities called for: the shopper chose among what she saw, and that is what the softmax is over (McFadden's conditional
logit needs no correction where the choice set is the one that was faced). What propensities are for, an item that stands
where chance put it, is in the data of itself: see `models.train.ranker.fit` for how examination is told from relevance.
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
from models.train.ranker.fit import HELD, Choices
from stream.codes import SLOTS
from stream.events import (
    EARLIEST,
    ERASE,
    FUTURE_TOLERANCE,
    KINDS,
    LATEST,
    Event,
    EventError,
    locale_code,
    shopper_key,
)
from stream.page.json_kernels import POSITIONS, Impression, unpacked_phi

# Of a choice: code of the slot that the item stood in, of the shopper's locale, whether the item was drawn by chance.
ABOUT = np.dtype([("slot", "i1"), ("locale", "i1"), ("explored", "i1")])
MOST = 200_000  # clicks, the newest, that are learnt from: 5 kB each
ERASED = "their shoppers asked to be erased"  # why clicks are left out
_decoder = msgspec.json.Decoder(Impression)
_SLOT_OF = {name: code for code, name in enumerate(SLOTS)}


class PageClick(NamedTuple):
    """A click on an item of a page."""

    time: float  # s since the epoch
    page: str
    shopper: str
    item: str
    locale: int  # code of stream.events
    erased: float = 0.0  # s; until when nothing is to be learnt of the shopper


class Joined(NamedTuple):
    """N choices in order of time, of which the newest tenth is held out."""

    choices: Choices
    time: npt.NDArray[np.float64]  # (N,) s, of the click
    lost: Counter[str]  # clicks of pages that are not among them, by reason


class _Page(NamedTuple):
    """What is kept of an impression. n items."""

    time: float  # s, of the event that the page answered
    shopper: str
    items: list[str]
    phi: npt.NDArray[np.float16]  # (n, F)
    slots: list[int]
    explored: list[bool]


class PageClicks:
    """The clicks on items of pages among events in any order, each pair of page and item once.

    A click is a select_item, or the view_item of a shop that sends no other, whose attribution names the page.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], PageClick] = {}
        self._says: dict[str, tuple[float, bool]] = {}  # by shopper: when she last spoke of consent, and if she refused
        self._erased: dict[str, float] = {}  # by shopper: when she last asked to be erased, s
        self._nowhere = 0

    def add(self, event: Event, arrived: float = np.inf) -> None:
        """arrived: s; as in serving an event comes at most FUTURE_TOLERANCE after it. Raises EventError for a time that cannot be."""
        data, shopper = event.data, shopper_key(event)
        time = min(event.time.timestamp(), arrived + FUTURE_TOLERANCE)
        if not EARLIEST <= time <= LATEST:
            raise EventError(
                "out_of_range", "time", f"time is {event.time.isoformat()}, expected one from 2000 to 2038"
            )
        if data.consent is not None and data.consent.personalization is not None:
            self._says[shopper] = max(self._says.get(shopper, (0.0, False)), (time, not data.consent.personalization))
        if event.type == KINDS[ERASE]:
            self._erased[shopper] = max(self._erased.get(shopper, 0.0), time)
        if event.type not in ("select_item", "view_item") or not data.items:
            return
        page = data.attribution.page_id if data.attribution is not None else None
        if page is None:
            self._nowhere += event.type == "select_item"
            return
        click = PageClick(time, page, shopper, data.items[0].item_id, locale_code(data.locale))
        key = page, click.item
        self._found[key] = min(click, self._found.get(key, click))

    def taken(self) -> tuple[list[PageClick], Counter[str]]:
        """The newest MOST in order of time; how many clicks are left out, by reason."""
        allowed = [click for click in self._found.values() if not self._says.get(click.shopper, (0.0, False))[1]]
        dated = (click._replace(erased=self._erased.get(click.shopper, 0.0)) for click in allowed)
        kept = sorted(click for click in dated if click.time > click.erased)
        lost = Counter(
            {
                "they name no page": self._nowhere,
                "consent was refused": len(self._found) - len(allowed),
                ERASED: len(allowed) - len(kept),
                f"older than the newest {MOST:,}": max(0, len(kept) - MOST),
            }
        )
        return kept[-MOST:], +lost


def _page(impression: Impression) -> _Page:
    """Raises ValueError where phi is not that of the items, or the time is none."""
    time = datetime.fromisoformat(impression.time)
    if time.tzinfo is None:
        raise ValueError(
            f"time is {impression.time[:40]!a}, expected one with a zone, such as 2026-01-01T00:00:00.000Z"
        )
    try:
        phi = unpacked_phi(base64.b64decode(impression.phi, validate=True), F)
    except (binascii.Error, ValueError, IndexError) as error:
        raise ValueError(f"phi is {impression.phi[:40]!a}: {error}") from None
    if len(phi) != len(impression.items) or not 1 < len(phi) <= POSITIONS:
        raise ValueError(
            f"phi has {len(phi)} rows, items has {len(impression.items)}, from 2 to {POSITIONS} are expected"
        )
    if not np.isfinite(phi).all():
        raise ValueError("phi holds numbers that are none")
    return _Page(
        time.timestamp(), impression.user_key, [item.item_id for item in impression.items], phi.astype(np.float16),
        [_SLOT_OF[item.slot] for item in impression.items], [item.explored for item in impression.items],
    )  # fmt: skip


class Join:
    """Clicks, and the impressions of their pages as they come; of a page that is told of twice the last holds."""

    def __init__(self, clicks: Sequence[PageClick], bad: Callable[[str, str], None]) -> None:
        """bad gets where an impression stands and why it is refused."""
        self._clicks, self._bad = clicks, bad
        self._wanted = {click.page for click in clicks}
        self._pages: dict[str, _Page] = {}
        self._foreign: dict[str, str] = {}  # page -> the hash of the features that it was made of
        self._mine = features_hash()

    def add(self, where: str, value: bytes | None) -> None:
        """value: of a record of the topic. One that is no impression goes to `bad`, one that nobody clicked on nowhere."""
        try:
            impression = _decoder.decode(value or b"")
            if impression.page_id not in self._wanted:
                return
            if impression.features_hash != self._mine:
                self._foreign[impression.page_id] = impression.features_hash
            else:
                self._pages[impression.page_id] = _page(impression)
        except (msgspec.DecodeError, RecursionError) as error:
            self._bad(where, f"no impression: {error} in {(value or b'')[:60]!a}")
        except ValueError as error:
            self._bad(where, str(error))

    def joined(self) -> Joined:
        """The clicks whose pages have come, and why the others are left out."""
        lost: Counter[str] = Counter()
        kept: list[tuple[PageClick, _Page, int]] = []
        for click in self._clicks:
            page = self._pages.get(click.page)
            if page is None:
                other = self._foreign.get(click.page)
                lost[
                    "the impression of its page is not there"
                    if other is None
                    else f"its page was made of other features (features_hash {other[:19]}, here {self._mine[:19]})"
                ] += 1
            elif page.time <= click.erased:
                lost[ERASED] += 1  # phi is made of what she did before
            elif page.shopper != click.shopper:
                lost["its page is another shopper's"] += 1
            elif click.item not in page.items:
                lost["its page does not show the item"] += 1
            else:
                kept.append((click, page, page.items.index(click.item)))
        return Joined(_choices(kept), np.array([click.time for click, _, _ in kept]), lost)


def _choices(kept: Sequence[tuple[PageClick, _Page, int]]) -> Choices:
    """Of clicks in order of time, each with its page and the place of its item there."""
    count = [len(page.items) for _, page, _ in kept]
    about: Any = np.zeros(len(kept), ABOUT)
    about["slot"] = [page.slots[at] for _, page, at in kept]
    about["locale"] = [click.locale for click, _, _ in kept]
    about["explored"] = [page.explored[at] for _, page, at in kept]
    return Choices(
        np.concatenate([np.zeros((0, F), np.float16), *(page.phi for _, page, _ in kept)]),
        np.cumsum(count, dtype=np.int64),
        np.array([at for _, _, at in kept], np.int32),
        np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in count)]),
        held=np.arange(len(kept)) >= int((1 - HELD) * len(kept)),
        about=about,
    )
