"""Cache of the generated headlines, of the requests for them, and of the pages that wait for one.

A slot's title is the best of three:

1. an *item headline*, which names the item that leads the slot;
2. a *segment headline*, shared by all shoppers with the same locale, slot and interest;
3. a template.

There are far more items than segments. So an item headline is requested only once the segment headline exists, a few a
second, and no page is regenerated for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import msgspec

from stream.codes import (
    SLOT_BECAUSE_VIEWED,
    SLOT_BUY_AGAIN,
    SLOT_CATEGORIES,
    SLOT_FOR_YOU,
    SLOT_FRESH,
    SLOT_TRENDING,
    SLOTS,
)
from stream.locales import LOCALES, choose_locale
from stream.page.encode import slot_head

T = TypeVar("T")
# Slots whose headline mentions the shopper's interest.
CATEGORY_SLOTS = frozenset((SLOT_FOR_YOU, SLOT_BECAUSE_VIEWED, SLOT_CATEGORIES))
# Slots whose headline may name their leading item. In "buy it again" the shopper knows the item already.
ITEM_HEADLINE_SLOTS = frozenset((SLOT_FOR_YOU, SLOT_BECAUSE_VIEWED, SLOT_TRENDING, SLOT_CATEGORIES, SLOT_FRESH))
TEMPLATES = {
    "en": {
        SLOT_FOR_YOU: "Picked for you",
        SLOT_BECAUSE_VIEWED: "Because of what you viewed",
        SLOT_TRENDING: "Popular right now",
        SLOT_CATEGORIES: "More of what you like",
        SLOT_FRESH: "New in the shop",
        SLOT_BUY_AGAIN: "Buy it again",
    },
    "zh": {
        SLOT_FOR_YOU: "为你精选",
        SLOT_BECAUSE_VIEWED: "看过的人也喜欢",
        SLOT_TRENDING: "大家都在看",
        SLOT_CATEGORIES: "你感兴趣的好物",
        SLOT_FRESH: "新品上架",
        SLOT_BUY_AGAIN: "再次购买",
    },
}


def template_of(locale: str, slot: int) -> str:
    """Template of a slot's title in the language that fits `locale`, or else in English."""
    return TEMPLATES[choose_locale(locale, "en", TEMPLATES)][slot]


_TEMPLATE_HEADS = {
    (locale, slot): slot_head(slot, template_of(locale, slot), "template")
    for locale in LOCALES[1:]
    for slot in range(1, len(SLOTS))
}
REQUEST_TIMEOUT_S = 60.0  # an unanswered headline request is sent again after this
# A copywriter writes about 34 headlines a second. More than it can answer within the timeout are not requested.
MAX_PENDING_REQUESTS = 1024
# About 200 bytes each; the bound holds for segment headlines and for item headlines apart. If there are more segments
# (locales x slots x categories), the newest headlines are kept.
MAX_HEADLINES = 16_384
# Item headlines are bounded three ways: requests a second of a worker (a setting), requests at one moment, and
# headlines held. So whatever the number of items, they cost the copywriters of a cluster at most MAX_HEADLINES
# headlines in COPY_TTL: about eight minutes of one core an hour.
MAX_PENDING_FOR_ITEM_REQUEST = 32  # with more pending requests of either kind, no item headline is requested
ITEM_REQUEST_BURST = 16
ITEM_REQUESTS_PER_S = 10.0  # the default
# All pages that wait for a headline are regenerated at once when it arrives: 2,000 take a worker a second or two.
MAX_WAITERS_PER_HEADLINE = 2048  # the latest are kept
MAX_WAITERS = 65_536  # in all, about 250 bytes each
MAX_WAIT_S = 600.0  # an older page is not regenerated


class HeadlineRequest(msgspec.Struct, frozen=True):
    """A request to write a headline: the value of `copy-requests`; its key is the segment."""

    segment: str
    locale: str
    slot: str
    category: str
    titles: list[str]  # the title of `item`, or empty
    item: str = ""  # id of the slot's leading item, if the headline is to name it


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """A generated headline, or the result that none passed the guard (text null): the value of `copy`."""

    segment: str
    locale: str
    slot: str
    category: str
    text: str | None
    created: float  # s since the epoch
    ttl: float  # s
    copywriter: str
    logprob: float | None = None
    item: str = ""  # id of the item that it names; it may only title a slot that this item leads
    title: str = ""  # that item's title when the headline was written


class RefreshRequest(msgspec.Struct, frozen=True):
    """Request to regenerate a page because its headline is now available: the value of `refreshes`.

    An empty segment asks for a deferred page that is due; its trigger is then in the shopper's row.
    """

    segment: str
    event_id: str
    event_time: float  # s since the epoch


def segment_of(locale: str, slot: int, category: str) -> str:
    """Cache key of a segment headline: locale, slot and interest."""
    return f"{locale}|{SLOTS[slot]}|{category if slot in CATEGORY_SLOTS else ''}"


def item_segment_of(locale: str, slot: int, item: str) -> str:
    """Cache key of an item headline: locale, slot and leading item. It differs from every `segment_of`."""
    return f"{locale}|{SLOTS[slot]}:{item}"


class SlotTitle(NamedTuple):
    """The title of a slot."""

    head: bytes  # JSON of the slot up to its items; empty if there is no such headline
    is_missing: bool  # True if no headline is known, nor that none can be written


NO_HEADLINE = SlotTitle(b"", True)


class _ItemHeadline(NamedTuple):
    """An item headline, and the facts that it was written from: it is void once they change."""

    expires_at: float  # s
    item_title: str
    category: str
    title: SlotTitle  # its head is empty if none passed the guard


class _Waiters(NamedTuple):
    """Shoppers whose page waits for a headline, the latest last."""

    since: float  # s
    triggers: dict[bytes, tuple[str, float]]  # by shopper key, (event id, event time) of the page that has a template


class HeadlineCache:
    """Headlines by segment, stored as the JSON heads of their slots. Everything in it is bounded, see the constants."""

    def __init__(self, item_requests_per_s: float = ITEM_REQUESTS_PER_S) -> None:
        """item_requests_per_s: rate limit of item headline requests; 0 disables them."""
        self.copywriter_version: str | None = None  # of the newest headline
        # All of these are ordered by time, the oldest first, so that eviction looks at the front only.
        self._segment_heads: dict[str, tuple[float, bytes | None]] = {}  # segment -> expiry, head (None: none passed)
        self._item_headlines: dict[str, _ItemHeadline] = {}  # by item segment
        self._segment_requests: dict[str, float] = {}  # segment -> request time
        self._item_requests: dict[str, float] = {}  # item segment -> request time
        # Token bucket of the item requests.
        self._item_rate, self._item_burst = (
            item_requests_per_s,
            float(ITEM_REQUEST_BURST) if item_requests_per_s else 0.0,
        )
        self._item_tokens, self._item_tokens_at = self._item_burst, 0.0
        self._waiting: dict[str, _Waiters] = {}  # by segment
        self._waiters = 0

    def __len__(self) -> int:
        """Number of segment headlines."""
        return len(self._segment_heads)

    @property
    def item_headlines(self) -> int:
        """Number of item headlines, the items included for which none can be written."""
        return len(self._item_headlines)

    @property
    def pending_requests(self) -> int:
        """Number of requests without an answer so far."""
        return len(self._segment_requests) + len(self._item_requests)

    @property
    def waiters(self) -> int:
        """Number of pages that wait for a headline."""
        return self._waiters

    def segment_title(self, locale: str, slot: int, category: str, now: float) -> SlotTitle:
        """The segment headline at `now` (s), or else the template."""
        expires_at, head = self._segment_heads.get(segment_of(locale, slot, category), (0.0, None))
        if now < expires_at and head is not None:
            return SlotTitle(head, False)
        return SlotTitle(_TEMPLATE_HEADS[locale, slot], now >= expires_at)

    def item_title(self, segment: str, category: str, item_title: str, now: float) -> SlotTitle:
        """The item headline written for `item_title` and `category` at `now` (s); its head is empty if there is none.

        The caller ensures that the item leads the slot.
        """
        found = self._item_headlines.get(segment)
        if found is None or found.item_title != item_title or found.category != category or now >= found.expires_at:
            return NO_HEADLINE
        return found.title

    def item_request_quota(self, now: float) -> int:
        """Number of item headlines that may be requested at `now` (s)."""
        quota = min(
            MAX_PENDING_FOR_ITEM_REQUEST - self.pending_requests,
            MAX_HEADLINES - len(self._item_headlines),
            int(self._tokens(now)),
        )
        return max(0, quota)

    def _tokens(self, now: float) -> float:
        # If the clock has been set back, no token is lost.
        return min(self._item_burst, self._item_tokens + max(0.0, now - self._item_tokens_at) * self._item_rate)

    def may_request_item(self, segment: str, now: float) -> bool:
        """True unless the item headline was requested within the timeout."""
        return not 0 <= now - self._item_requests.get(segment, -REQUEST_TIMEOUT_S) < REQUEST_TIMEOUT_S

    def may_request(self, segment: str, now: float, about_to_request: int = 0) -> bool:
        """True if a missing segment headline may be requested, beside `about_to_request` others.

        False if it was requested within the timeout, or if too many are pending: the copywriter is slow or down.
        """
        return (
            len(self._segment_requests) + about_to_request < MAX_PENDING_REQUESTS
            and not 0 <= now - self._segment_requests.get(segment, -REQUEST_TIMEOUT_S) < REQUEST_TIMEOUT_S
        )

    def record_request(self, segment: str, now: float, for_item: bool = False) -> None:
        """Record that the headline was requested at `now` (s)."""
        requests = self._item_requests if for_item else self._segment_requests
        if for_item:
            self._item_tokens, self._item_tokens_at = self._tokens(now) - 1.0, now
        requests.pop(segment, None)
        requests[segment] = now

    def add_waiter(self, segment: str, shopper: bytes, trigger: tuple[str, float], now: float) -> None:
        """Record that a shopper's page, made for `trigger`, has a template because the headline is missing."""
        waiting = self._waiting.get(segment)
        if waiting is None:
            waiting = self._waiting[segment] = _Waiters(now, {})
        size_before = len(waiting.triggers)
        waiting.triggers.pop(shopper, None)
        waiting.triggers[shopper] = trigger
        if len(waiting.triggers) > MAX_WAITERS_PER_HEADLINE:
            del waiting.triggers[next(iter(waiting.triggers))]
        self._waiters += len(waiting.triggers) - size_before

    def evict(self, now: float) -> None:
        """Drop what is too old at `now` (s) or over its bound: unanswered requests, waiters and expired headlines."""
        for requests in (self._segment_requests, self._item_requests):
            # After the clock has been set back, request times may be in the future. Drop those too.
            _drop_oldest(requests, lambda since: not 0 <= now - since < REQUEST_TIMEOUT_S)
        while self._waiting and (
            self._waiters > MAX_WAITERS or not 0 <= now - self._waiting[next(iter(self._waiting))].since < MAX_WAIT_S
        ):
            self._remove_waiters(next(iter(self._waiting)))
        _drop_oldest(self._segment_heads, lambda entry: now >= entry[0])
        _drop_oldest(self._item_headlines, lambda entry: now >= entry.expires_at)

    def _remove_waiters(self, segment: str) -> dict[bytes, tuple[str, float]]:
        """Remove the waiters of a segment and return their triggers by shopper key."""
        waiting = self._waiting.pop(segment, None)
        if waiting is None:
            return {}
        self._waiters -= len(waiting.triggers)
        return waiting.triggers

    def apply(self, records: Iterable[tuple[bytes, bytes | None]], now: float = 0.0) -> dict[bytes, RefreshRequest]:
        """Apply records of `copy`. Return a refresh request for each shopper whose page waited for one of them.

        A record that is not a `Headline` is skipped, because a later version of the headline agent may write others.
        So is a headline that has expired at `now` (s).
        """
        refreshes: dict[bytes, RefreshRequest] = {}
        for key, value in records:
            segment = key.decode("utf-8", "replace")
            try:
                headline = msgspec.json.decode(value, type=Headline) if value is not None else None
                slot = SLOTS.index(headline.slot) if headline is not None else 0
            except (msgspec.MsgspecError, ValueError):
                continue
            for entries in (self._segment_requests, self._item_requests, self._segment_heads, self._item_headlines):
                entries.pop(segment, None)
            waiting = self._remove_waiters(segment)
            if headline is None or headline.created + headline.ttl <= now:
                continue
            self.copywriter_version = headline.copywriter
            expires_at = headline.created + headline.ttl
            head = None if headline.text is None else slot_head(slot, headline.text, "gpt2")
            if headline.item:
                title = SlotTitle(head or b"", False)
                self._item_headlines[segment] = _ItemHeadline(expires_at, headline.title, headline.category, title)
                _drop_oldest(self._item_headlines, lambda _: len(self._item_headlines) > MAX_HEADLINES)
                continue
            self._segment_heads[segment] = expires_at, head
            _drop_oldest(self._segment_heads, lambda _: len(self._segment_heads) > MAX_HEADLINES)
            if head is not None:
                refreshes.update((shopper, RefreshRequest(segment, *trigger)) for shopper, trigger in waiting.items())
        return refreshes


def _drop_oldest(entries: dict[str, T], is_over: Callable[[T], bool]) -> None:
    """Drop the first entry while `is_over` holds for it."""
    while entries and is_over(entries[first := next(iter(entries))]):
        del entries[first]
