"""The live figures of a demo: counts events and pages as they pass, and follows one shopper."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from agents.page.path import is_in_popular_group
from deploy.demo.screen import View
from deploy.demo.shop import Item
from deploy.demo.shoppers import Shopper
from deploy.rate import Rate
from stream.times import parse_rfc3339

POPULAR_SHARE = 0.5  # of the shoppers, who get the popular page as a control group
RECENT_PAGES = 1000  # pages over which the live freshness is computed
RATE_SAMPLES = 8  # samples over which events/s and pages/s are computed


def group_of(key: bytes) -> str:
    return "popular" if is_in_popular_group(key, POPULAR_SHARE) else "personal"


class DemoFigures:
    """Counts what was sent and received, keeps each shopper's newest page, and fills in the `View`."""

    def __init__(self, shop: list[Item], followed: Shopper, seconds: float | None) -> None:
        self._titles = {item["item_id"]: item["title"] for item in shop}
        self._followed = followed
        self._view = View(seconds=seconds, shopper=followed.name)
        self._samples: deque[tuple[float, int, int]] = deque([(time.time(), 0, 0)], maxlen=RATE_SAMPLES)
        self._views: dict[str, set[tuple[str, str]]] = {"personal": set(), "popular": set()}  # (shopper, page id)
        self._clicks: dict[str, set[tuple[str, str]]] = {"personal": set(), "popular": set()}
        self._recent: deque[float] = deque(maxlen=RECENT_PAGES)  # latencies, s
        self._last_trigger: dict[str, str] = {}  # shopper -> event id of their newest page
        self.newest_page: dict[str, dict[str, Any]] = {}  # by shopper
        self.latencies: list[float] = []  # s, from an event's time to the first page that answers it
        self.sent = self.pages = self.dead_letters = self.headlines = 0

    def record_sent(self, event: Mapping[str, Any] | None) -> None:
        """Count a sent record, its page view or click, and note what the followed shopper did. None: malformed."""
        self.sent += 1
        if event is None:
            return
        kind, data = event["type"], event["data"]
        user, page = data["user_id"], data.get("attribution", {}).get("page_id")
        if page and kind in ("view_homepage", "select_item"):
            counted = self._views if kind == "view_homepage" else self._clicks
            counted[group_of(user.encode())].add((user, page))
        if user != self._followed.key or kind == "view_homepage":
            return
        items = data.get("items")
        subject = self._title(items[0]["item_id"]) if items else data.get("search_term", "")
        self._view.last_action = f"{kind.replace('_', ' ')}: {subject}"
        self._view.page_changes = []

    def record_page(self, page: dict[str, Any], now: float) -> None:
        """Count a page, measure its freshness, and note how the followed shopper's page changed."""
        self.pages += 1
        user, trigger = page["user_key"], page["trigger"]
        previous = self.newest_page.get(user)
        self.newest_page[user] = page
        # A page regenerated for a new headline has the trigger of the page before it; its freshness is not counted.
        if self._last_trigger.get(user) != trigger["event_id"]:
            self._last_trigger[user] = trigger["event_id"]
            latency = now - parse_rfc3339(trigger["event_time"])
            self.latencies.append(latency)
            self._recent.append(latency)
        if user == self._followed.key:
            self._note_changes(previous, page)

    def _note_changes(self, previous: dict[str, Any] | None, page: dict[str, Any]) -> None:
        for slot in page["slots"]:
            if slot["title_source"] == "gpt2":
                self._view.headline = slot["title"]
                break
        if previous is None:
            return
        old = {item["item_id"] for slot in previous["slots"] for item in slot["items"]}
        new = [item for slot in page["slots"] for item in slot["items"] if item["item_id"] not in old]
        if new:
            changes = [
                f"+ {self._title(item['item_id'])}  ({item['reason']['code'].lower().replace('_', ' ')})"
                for item in new[:3]
            ]
            if len(new) > 3:
                changes.append(f"  and {len(new) - 3} more items are new on the page")
            self._view.page_changes = changes

    def _title(self, item_id: str) -> str:
        titles = self._titles.get(item_id)
        return str(titles[self._followed.locale]) if titles else item_id

    def view(self, start: float, now: float) -> View:
        """Return the current view; events/s and pages/s are over the last RATE_SAMPLES calls."""
        view = self._view
        then, sent, pages = self._samples[0]
        span = max(now - then, 1e-3)
        view.elapsed, view.events, view.pages = now - start, self.sent, self.pages
        view.events_per_second, view.pages_per_second = (self.sent - sent) / span, (self.pages - pages) / span
        if self._recent:
            p50, p99 = np.percentile(list(self._recent), [50, 99]) * 1000
            view.freshness = float(p50), float(p99)
        view.dead_letters, view.headlines = self.dead_letters, self.headlines
        view.rates = {group: Rate(len(self._clicks[group] & views), len(views)) for group, views in self._views.items()}
        self._samples.append((now, self.sent, self.pages))
        return view
