"""The headlines that are there: generated ones by segment, a template where there is none, and who waits for which."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from stream.page import AGAIN, BECAUSE, CATEGORIES, FOR_YOU, FRESH, SLOTS, TRENDING, slot_head

ABOUT_A_CATEGORY = frozenset((FOR_YOU, BECAUSE, CATEGORIES))  # slots whose headline speaks of the shopper's interest
TEMPLATES = {
    "en": {
        FOR_YOU: "Picked for you",
        BECAUSE: "Because of what you viewed",
        TRENDING: "Popular right now",
        CATEGORIES: "More of what you like",
        FRESH: "New in the shop",
        AGAIN: "Buy it again",
    },
    "zh": {
        FOR_YOU: "为你精选",
        BECAUSE: "看过的人也喜欢",
        TRENDING: "大家都在看",
        CATEGORIES: "你感兴趣的好物",
        FRESH: "新品上架",
        AGAIN: "再次购买",
    },
}
_TEMPLATE_HEADS = {
    (locale, slot): slot_head(slot, text, "template") for locale, of in TEMPLATES.items() for slot, text in of.items()
}
PATIENCE = 60.0  # s after which an unanswered request is made again


class CopyRequest(msgspec.Struct, frozen=True):
    """What a headline is to be about: the value of `copy-requests`; its key is the segment."""

    segment: str
    locale: str
    slot: str
    category: str
    titles: list[str]  # of the leading items


class CopyText(msgspec.Struct, frozen=True, kw_only=True):
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


class Title(NamedTuple):
    head: bytes  # the JSON of the slot up to its items
    missing: bool  # no headline of GPT-2 is there, and none was found impossible


class CopyBook:
    """Headlines by segment, kept as the JSON heads of their slots."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[float, bytes | None]] = {}  # segment -> until when, head (None: template)
        self._asked: dict[str, float] = {}  # segment -> when it was asked for
        # segment -> shoppers whose page has a template, and the trigger of that page
        self._waiting: dict[str, dict[bytes, tuple[str, float]]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def title(self, locale: str, slot: int, category: str, now: float) -> Title:
        """The best headline there is at `now` (s): of GPT-2 for the segment, else a template."""
        until, head = self._texts.get(segment_of(locale, slot, category), (0.0, None))
        if now < until and head is not None:
            return Title(head, False)
        return Title(_TEMPLATE_HEADS[locale, slot], now >= until)

    def wants(self, segment: str, now: float) -> bool:
        """True where a headline that is missing is to be asked for: it has not been, or for too long."""
        return now - self._asked.get(segment, -PATIENCE) >= PATIENCE

    def asked(self, segment: str, now: float) -> None:
        """Note that the segment has been asked for."""
        self._asked[segment] = now

    def waits(self, segment: str, shopper: bytes, trigger: tuple[str, float]) -> None:
        """Note that a shopper's page, made for `trigger`, has a template for want of a headline."""
        self._waiting.setdefault(segment, {})[shopper] = trigger

    def apply(self, records: Iterable[tuple[bytes, bytes | None]]) -> dict[bytes, Refresh]:
        """Take in records of `copy`. -> of the shoppers who waited for a text that has come, what is to be refreshed.

        A record that is no CopyText is left out: another version of the copy agent may write more.
        """
        served: dict[bytes, Refresh] = {}
        for key, value in records:
            segment = key.decode("utf-8", "replace")
            try:
                copy = msgspec.json.decode(value, type=CopyText) if value is not None else None
                slot = SLOTS.index(copy.slot) if copy is not None else 0
            except (msgspec.MsgspecError, ValueError):
                continue
            self._asked.pop(segment, None)
            waiting = self._waiting.pop(segment, {})
            if copy is None:
                self._texts.pop(segment, None)
                continue
            head = None if copy.text is None else slot_head(slot, copy.text, "gpt2")
            self._texts[segment] = (copy.created + copy.ttl, head)
            if head is not None:
                served.update((shopper, Refresh(segment, *trigger)) for shopper, trigger in waiting.items())
        return served
