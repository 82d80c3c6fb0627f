"""Choose the title of each slot, and collect the headlines to request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from agents.page.headline_cache import (
    CATEGORY_SLOTS,
    ITEM_HEADLINE_SLOTS,
    HeadlineCache,
    HeadlineRequest,
    item_segment_of,
    segment_of,
)
from stream.codes import SLOTS
from stream.items.catalog import Catalog
from stream.locales import LOCALES
from stream.page.assembly import Placements, select_lead_items
from stream.types import I8, I32

# By slot: 0 if its headline never names an item, 1 if it may name any, 2 if only an item of the interest it mentions.
ITEM_HEADLINE_RULES = np.array(
    [(2 if slot in CATEGORY_SLOTS else 1) if slot in ITEM_HEADLINE_SLOTS else 0 for slot in range(len(SLOTS))], np.int8
)
_NO_LEADING_ROWS = [-1] * len(SLOTS)


class PageTitles(NamedTuple):
    """The titles of one page."""

    head_of: list[int]  # by slot code, the index among the heads; -1 for a slot that the page lacks
    missing_segments: list[str]  # segment headlines that the page goes without
    headline_requests: list[HeadlineRequest]


class TitleChooser:
    """Chooses the titles of all pages of one call, so that each missing headline is requested once.

    It changes nothing in the cache: the caller records the requests when the pages are published.
    """

    def __init__(self, headlines: HeadlineCache, catalog: Catalog, now: float, may_request: bool) -> None:
        self._headlines, self._catalog, self._now, self._may_request = headlines, catalog, now, may_request
        self._requested: set[str] = set()
        self._item_quota = headlines.item_request_quota(now) if may_request else 0

    def choose(self, placements: Placements, interest: I32, locales: I8) -> tuple[list[bytes], list[PageTitles]]:
        """Return the distinct slot heads, and the titles of each page, which refer to them.

        interest (U,): category key of each page, 0 if unknown or not personal; locales (U,): codes.
        """
        categories = [self._catalog.names.get(key, "") if key else "" for key in interest.tolist()]
        leading_rows: Iterable[list[int]] = repeat(_NO_LEADING_ROWS)
        if self._headlines.item_headlines or self._item_quota > 0:
            leading_rows = select_lead_items(placements, interest, ITEM_HEADLINE_RULES, self._catalog).tolist()
        heads: dict[bytes, int] = {}
        segment_heads: dict[tuple[int, int, str], tuple[int, bool]] = {}
        pages = [
            self._choose_page(dict.fromkeys(slots[:count]), category, locale, rows, heads, segment_heads)
            for category, slots, count, locale, rows in zip(
                categories, placements.placed["slot"].tolist(), placements.count.tolist(), locales.tolist(),
                leading_rows, strict=False,
            )
        ]  # fmt: skip
        return list(heads), pages

    def _choose_page(
        self, slots: Iterable[int], category: str, locale_code: int, leading_rows: Sequence[int],
        heads: dict[bytes, int], segment_heads: dict[tuple[int, int, str], tuple[int, bool]],
    ) -> PageTitles:  # fmt: skip
        """Titles of one page. `heads` and `segment_heads` (by locale, slot and category) are shared by the pages."""
        locale = LOCALES[locale_code]
        head_of = [-1] * len(SLOTS)
        missing: list[str] = []
        requests: list[HeadlineRequest] = []
        for slot in slots:
            about = category if slot in CATEGORY_SLOTS else ""
            found = segment_heads.get((locale_code, slot, about))
            if found is None:
                title = self._headlines.segment_title(locale, slot, category, self._now)
                found = heads.setdefault(title.head, len(heads)), title.is_missing
                segment_heads[locale_code, slot, about] = found
            head_of[slot], is_missing = found
            if leading_rows[slot] >= 0:
                item_head, request = self._item_headline(locale, slot, about, leading_rows[slot], not is_missing)
                if item_head:
                    head_of[slot] = heads.setdefault(item_head, len(heads))
                    continue
                if request is not None:
                    requests.append(request)
            if is_missing and self._may_request:
                segment = segment_of(locale, slot, category)
                missing.append(segment)
                if segment not in self._requested and self._headlines.may_request(
                    segment, self._now, len(self._requested)
                ):
                    self._requested.add(segment)
                    requests.append(HeadlineRequest(segment, locale, SLOTS[slot], about, []))
        return PageTitles(head_of, missing, requests)

    def _item_headline(
        self, locale: str, slot: int, category: str, leading_row: int, has_segment_headline: bool
    ) -> tuple[bytes, HeadlineRequest | None]:
        """Head of the slot's item headline, or else b"" and the request for it if one may be made.

        The segment headline comes first, because many pages share it.
        """
        item, name = self._catalog.id_and_title(leading_row, locale)
        segment = item_segment_of(locale, slot, item)
        title = self._headlines.item_title(segment, category, name, self._now)
        if title.head:
            return title.head, None
        if (
            title.is_missing
            and self._item_quota > 0
            and has_segment_headline
            and segment not in self._requested
            and self._headlines.may_request_item(segment, self._now)
        ):
            self._item_quota -= 1
            self._requested.add(segment)
            return b"", HeadlineRequest(segment, locale, SLOTS[slot], category, [name], item)
        return b"", None
