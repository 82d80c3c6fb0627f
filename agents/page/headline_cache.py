"""The headlines that are there: generated ones by segment, a template where there is none, and who waits for which.

Of a slot there are up to three, the best that is there holds: one that names the item which leads the slot, one of the
segment (everybody of one language, slot and interest), a template. The first is asked for only where the second is there,
a few a second, and no page is made anew for it: there are far more items than segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import msgspec

from stream.codes import SLOT_BUY_AGAIN, SLOT_BECAUSE, SLOT_CATEGORIES, SLOT_FOR_YOU, SLOT_FRESH, SLOTS, SLOT_TRENDING
from stream.page.encode import slot_head

T = TypeVar("T")
ABOUT_A_CATEGORY = frozenset((SLOT_FOR_YOU, SLOT_BECAUSE, SLOT_CATEGORIES))  # slots whose headline speaks of the shopper's interest
# Slots whose headline may name the item that leads them. Who buys again knows what.
NAMES_ITS_LEAD = frozenset((SLOT_FOR_YOU, SLOT_BECAUSE, SLOT_TRENDING, SLOT_CATEGORIES, SLOT_FRESH))
TEMPLATES = {
    "en": {
        SLOT_FOR_YOU: "Picked for you",
        SLOT_BECAUSE: "Because of what you viewed",
        SLOT_TRENDING: "Popular right now",
        SLOT_CATEGORIES: "More of what you like",
        SLOT_FRESH: "New in the shop",
        SLOT_BUY_AGAIN: "Buy it again",
    },
    "zh": {
        SLOT_FOR_YOU: "为你精选",
        SLOT_BECAUSE: "看过的人也喜欢",
        SLOT_TRENDING: "大家都在看",
        SLOT_CATEGORIES: "你感兴趣的好物",
        SLOT_FRESH: "新品上架",
        SLOT_BUY_AGAIN: "再次购买",
    },
}
_TEMPLATE_HEADS = {
    (locale, slot): slot_head(slot, text, "template") for locale, of in TEMPLATES.items() for slot, text in of.items()
}
PATIENCE = 60.0  # s after which an unanswered request is made again
# At most. A copywriter writes some 34 headlines a second: what it cannot answer within PATIENCE is not asked for.
UNANSWERED = 1024  # requests
# At most, of 200 bytes each, and as many that name an item. More segments than that (languages x slots x categories) share
# the room, the newest texts have it.
TEXTS = 16_384
# Headlines that name an item are bounded three ways: so many in a second are asked for by a worker (a setting), so many at
# once, and none while all that there is room for hold. So whatever the number of items, they cost the copywriters of a
# cluster TEXTS headlines in COPY_TTL, some eight minutes of one core in an hour.
NAMING_UNANSWERED = 32  # requests of either kind above which none is made that names an item
NAMING_BURST = 16  # requests that may come at one moment
NAMING_RATE = 10.0  # a second, unless set
# Who waits is a page to be made once more, at a stroke when the headline comes: 2,000 take a worker a second or two.
WAITERS_OF_ONE = 2048  # pages that wait for one headline; the latest
WAITERS = 65_536  # pages in all, of some 250 bytes
WORTH_WAITING = 600.0  # s; a page that is older is left as it is


class HeadlineRequest(msgspec.Struct, frozen=True):
    """What a headline is to be about: the value of `copy-requests`; its key is the segment."""

    segment: str
    locale: str
    slot: str
    category: str
    titles: list[str]  # what it is to name: the title of `item`, or nothing
    item: str = ""  # id of the item that leads the slot, where it is to be named


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """A headline of GPT-2, or the news that none passed the guard (text null): the value of `copy`."""

    segment: str
    locale: str
    slot: str
    category: str
    text: str | None
    created: float  # s since the epoch
    ttl: float  # s
    copywriter: str
    logprob: float | None = None
    item: str = ""  # id of the item that it names: it may stand above nothing but a slot that this item leads
    title: str = ""  # of that item, as it is named


class Refresh(msgspec.Struct, frozen=True):
    """A page to be made once more for the same trigger, its headline has come: the value of `refreshes`.

    Or one that was put off and is due: its segment is empty, its trigger is in the shopper's row.
    """

    segment: str
    event_id: str
    event_time: float  # s since the epoch


def segment_of(locale: str, slot: int, category: str) -> str:
    """Who shares a headline: readers of one language, of one slot, with one interest."""
    return f"{locale}|{SLOTS[slot]}|{category if slot in ABOUT_A_CATEGORY else ''}"


def naming_segment_of(locale: str, slot: int, item: str) -> str:
    """Who shares a headline that names an item: readers of one language, of one slot that the item leads.

    No segment without an item reads so, whatever its category is called.
    """
    return f"{locale}|{SLOTS[slot]}:{item}"


class Title(NamedTuple):
    head: bytes  # the JSON of the slot up to its items
    missing: bool  # no headline of GPT-2 is there, and none was found impossible


NOT_WRITTEN = Title(b"", True)


class _Naming(NamedTuple):
    """A headline that names an item, and what it was written from: where that has changed, it is none."""

    until: float  # s
    title: str
    category: str
    found: Title  # its head is empty where none passed the guard


class _Waiting(NamedTuple):
    """Who waits for the headline of a segment, the latest last."""

    since: float  # s
    shoppers: dict[bytes, tuple[str, float]]  # and the trigger of the page that has a template


class HeadlineCache:
    """Headlines by segment, kept as the JSON heads of their slots. Everything that it holds is bounded, see above."""

    def __init__(self, naming_rate: float = NAMING_RATE) -> None:
        """naming_rate: headlines that name an item asked for in a second, at most; 0: none at all."""
        self.writer: str | None = None  # version of the copywriter that wrote the newest text
        # Each in the order of time, the oldest first, so that what is too old or too much is found at its front.
        self._texts: dict[str, tuple[float, bytes | None]] = {}  # segment -> until when, head (None: template)
        self._naming: dict[str, _Naming] = {}  # by segment with an item
        self._asked: dict[str, float] = {}  # segment -> when it was asked for
        self._asked_naming: dict[str, float] = {}  # the same of segments with an item
        self._naming_rate, self._burst = naming_rate, float(NAMING_BURST) if naming_rate else 0.0
        self._allowed, self._allowed_at = self._burst, 0.0  # so many of those requests at that time (s)
        self._waiting: dict[str, _Waiting] = {}  # by segment
        self._waiters = 0

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def naming(self) -> int:
        """Headlines that name an item, and news that there is none."""
        return len(self._naming)

    @property
    def unanswered(self) -> int:
        """Headlines that were asked for and have not come."""
        return len(self._asked) + len(self._asked_naming)

    @property
    def waiters(self) -> int:
        """Pages that wait for a headline."""
        return self._waiters

    def title(self, locale: str, slot: int, category: str, now: float) -> Title:
        """The best headline there is at `now` (s): of GPT-2 for the segment, else a template."""
        until, head = self._texts.get(segment_of(locale, slot, category), (0.0, None))
        if now < until and head is not None:
            return Title(head, False)
        return Title(_TEMPLATE_HEADS[locale, slot], now >= until)

    def naming_title(self, segment: str, category: str, title: str, now: float) -> Title:
        """The headline of a segment with an item that names it by `title`, and speaks of `category`, at `now` (s).

        Its head is empty where there is none. Whoever asks sees to it that the item leads the slot.
        """
        naming = self._naming.get(segment)
        if naming is None or naming.title != title or naming.category != category or now >= naming.until:
            return NOT_WRITTEN
        return naming.found

    def naming_room(self, now: float) -> int:
        """How many headlines that name an item may be asked for at `now` (s); none where too many are unanswered."""
        free = min(NAMING_UNANSWERED - self.unanswered, TEXTS - len(self._naming), int(self._allowance(now)))
        return max(0, free)

    def _allowance(self, now: float) -> float:
        # Where the clock has been set back, it begins anew there.
        return min(self._burst, self._allowed + max(0.0, now - self._allowed_at) * self._naming_rate)

    def wants_naming(self, segment: str, now: float) -> bool:
        """True where a headline that names an item has not been asked for a while ago."""
        return not 0 <= now - self._asked_naming.get(segment, -PATIENCE) < PATIENCE

    def wants(self, segment: str, now: float, more: int = 0) -> bool:
        """True where a headline that is missing is to be asked for; `more` are about to be.

        Not where it has been asked for a while ago, nor where too many are unanswered: the copywriter is slow, or gone.
        """
        return len(self._asked) + more < UNANSWERED and not 0 <= now - self._asked.get(segment, -PATIENCE) < PATIENCE

    def asked(self, segment: str, now: float, naming: bool = False) -> None:
        """Note that the segment has been asked for; `naming`: that it has an item."""
        asked = self._asked_naming if naming else self._asked
        if naming:
            self._allowed, self._allowed_at = self._allowance(now) - 1.0, now
        asked.pop(segment, None)
        asked[segment] = now

    def waits(self, segment: str, shopper: bytes, trigger: tuple[str, float], now: float) -> None:
        """Note that a shopper's page, made for `trigger`, has a template for want of a headline."""
        waiting = self._waiting.get(segment)
        if waiting is None:
            waiting = self._waiting[segment] = _Waiting(now, {})
        before = len(waiting.shoppers)
        waiting.shoppers.pop(shopper, None)
        waiting.shoppers[shopper] = trigger
        if len(waiting.shoppers) > WAITERS_OF_ONE:
            del waiting.shoppers[next(iter(waiting.shoppers))]
        self._waiters += len(waiting.shoppers) - before

    def forget(self, now: float) -> None:
        """Drop what is too old at `now` (s), or too much: requests nobody answered, pages that waited in vain, old texts."""
        for asked in (self._asked, self._asked_naming):
            # A clock that has been set back leaves times that are yet to come: they are too old as well.
            _drop_first(asked, lambda since: not 0 <= now - since < PATIENCE)
        while self._waiting and (
            self._waiters > WAITERS or not 0 <= now - self._waiting[next(iter(self._waiting))].since < WORTH_WAITING
        ):
            self._served(next(iter(self._waiting)))
        _drop_first(self._texts, lambda text: now >= text[0])
        _drop_first(self._naming, lambda naming: now >= naming.until)

    def _served(self, segment: str) -> dict[bytes, tuple[str, float]]:
        """Who waited for the segment, who does no more."""
        waiting = self._waiting.pop(segment, None)
        if waiting is None:
            return {}
        self._waiters -= len(waiting.shoppers)
        return waiting.shoppers

    def apply(self, records: Iterable[tuple[bytes, bytes | None]], now: float = 0.0) -> dict[bytes, Refresh]:
        """Take in records of `copy`. -> of the shoppers who waited for a text that has come, what is to be refreshed.

        A record that is no CopyText is left out, for another version of the copy agent may write more; so is a text whose
        time is over at `now` (s).
        """
        served: dict[bytes, Refresh] = {}
        for key, value in records:
            segment = key.decode("utf-8", "replace")
            try:
                copy = msgspec.json.decode(value, type=Headline) if value is not None else None
                slot = SLOTS.index(copy.slot) if copy is not None else 0
            except (msgspec.MsgspecError, ValueError):
                continue
            for texts in (self._asked, self._asked_naming, self._texts, self._naming):
                texts.pop(segment, None)
            waiting = self._served(segment)
            if copy is None or copy.created + copy.ttl <= now:
                continue
            self.writer = copy.copywriter
            until, head = copy.created + copy.ttl, None if copy.text is None else slot_head(slot, copy.text, "gpt2")
            if copy.item:
                self._naming[segment] = _Naming(until, copy.title, copy.category, Title(head or b"", False))
                _drop_first(self._naming, lambda _: len(self._naming) > TEXTS)
                continue
            self._texts[segment] = until, head
            _drop_first(self._texts, lambda _: len(self._texts) > TEXTS)
            if head is not None:
                served.update((shopper, Refresh(segment, *trigger)) for shopper, trigger in waiting.items())
        return served


def _drop_first(held: dict[str, T], over: Callable[[T], bool]) -> None:
    """Drop the first of `held`, the oldest, while it is `over`."""
    while held and over(held[first := next(iter(held))]):
        del held[first]
