"""Simulated shoppers: hidden tastes, and a choice model that shares nothing with our features.

A shopper sees a page, their own language and the shop's shelves, but never a profile, a score or a feature.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

import numpy as np

from deploy.demo.shop import STYLES, TAXONOMY, Item, style_of
from stream.times import parse_rfc3339, rfc3339_us
from stream.types import F64, I64

Event = dict[str, Any]
NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Finn", "Greta", "Hugo", "Ida", "Jonas", "Klara", "Leo", "Mara", "Nils",
    "Mei", "Wei", "Li Na", "Jun", "Xiao", "Yan", "Hao", "Ting", "Fang", "Bo", "Jing", "Lei", "Qi", "Min",
)  # fmt: skip
# Utilities, in logits. An item without any appeal has BASE_UTILITY, so most shown items are not clicked.
BASE_UTILITY = -6.0
MISSION_BONUS, FAVOURITE_BONUS, LIKED_CATEGORY_BONUS = 2.6, 2.1, 1.3
STYLE_BONUS, BRAND_BONUS = 1.5, 0.7
PRICE_PENALTY, FATIGUE_PENALTY, OWNED_PENALTY = 0.7, 0.35, 2.5
POSITION_DECAY = 0.05  # the chance to examine position i is 1 / (1 + POSITION_DECAY i)
SHELF_ITEMS = 60  # items that a shopper sees when they browse without the page


class Shelves:
    """The shop's items as arrays, shared by all shoppers."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items
        self.row = {item["item_id"]: k for k, item in enumerate(items)}
        categories = [category.id for category in TAXONOMY]
        styles = list(STYLES)
        self.brands = sorted({item["brand"] for item in items})
        self.category = np.array([categories.index(item["category"]) for item in items])
        self.style = np.array([styles.index(style_of(item)) for item in items])
        self.brand = np.array([self.brands.index(item["brand"]) for item in items])
        self.log_price = np.log([item["price"] for item in items])
        self.expires = np.array([_expiry(item["expires_at"]) for item in items])  # s since the epoch
        self.available = np.array([item["available"] for item in items])
        # Standardised log price within the category: price tastes are relative to similar items.
        self.relative_price = np.zeros(len(items))
        for c in range(len(categories)):
            own = self.category == c
            if own.any():
                self.relative_price[own] = (self.log_price[own] - self.log_price[own].mean()) / (
                    self.log_price[own].std() + 1e-9
                )


def _expiry(text: str | None) -> float:
    return np.inf if text is None else parse_rfc3339(text)


class _Act(Protocol):
    """Append one event of `kind` about the items at `rows` to the current visit."""

    def __call__(self, kind: str, rows: list[int] | None = None, **data: Any) -> None: ...


class Shopper:
    """One shopper; the same for the same seed and number.

    The order of random draws is part of the behaviour: trained models and tests depend on it.
    """

    def __init__(self, seed: int, number: int, shelves: Shelves) -> None:
        self._rng = rng = np.random.default_rng([seed, 7, number])
        self._shelves = shelves
        self.locale = "zh" if NAMES.index("Mei") <= number % len(NAMES) else "en"
        self.name = f"{NAMES[number % len(NAMES)]} {number:04d}"
        self.key = f"demo-{seed}-{number:05d}"
        self._channel = str(rng.choice(["web", "app", "social"], p=[0.5, 0.4, 0.1]))
        self._favourites = rng.choice(len(TAXONOMY), 3, replace=False)
        self._style = int(rng.integers(len(STYLES)))
        brands = rng.choice(len(shelves.brands), 5, replace=False)
        self._category_taste = np.zeros(len(TAXONOMY))
        self._category_taste[self._favourites] = LIKED_CATEGORY_BONUS
        self._category_taste[self._favourites[0]] = FAVOURITE_BONUS
        self._likes_brand = np.zeros(len(shelves.brands), np.bool_)
        self._likes_brand[brands] = True
        self._price_taste = rng.normal(0.0, 0.8)
        self._mission = int(self._favourites[0])  # the category that the shopper looks for now
        self._ignored = np.zeros(len(shelves.items), np.int16)  # views of each item since it was last clicked
        self._owned = np.zeros(len(shelves.items), np.bool_)
        self._cart: list[int] = []
        self._visits = self._sent = 0

    def utility(self, rows: I64) -> F64:
        """Utility of the items at `rows` for this shopper now, in logits. (n,) -> (n,)."""
        s = self._shelves
        category = s.category[rows]
        taste = np.maximum(self._category_taste[category], np.where(category == self._mission, MISSION_BONUS, 0.0))
        utility = taste + STYLE_BONUS * (s.style[rows] == self._style) + BRAND_BONUS * self._likes_brand[s.brand[rows]]
        price_distance = np.minimum(2.0, np.abs(s.relative_price[rows] - self._price_taste))
        utility -= PRICE_PENALTY * price_distance + FATIGUE_PENALTY * np.minimum(self._ignored[rows], 6)
        return utility - OWNED_PENALTY * self._owned[rows] + BASE_UTILITY  # type: ignore[no-any-return]

    def visit(self, page: dict[str, Any] | None, time: float) -> list[Event]:
        """Look at the homepage (None: none has been published), act on it, browse, and maybe buy.

        Return the events in order of time, the first at `time` (s since the epoch).
        """
        rng = self._rng
        self._visits += 1
        if rng.random() < 0.12:  # the mission changes
            self._mission = (
                int(rng.choice(self._favourites)) if rng.random() < 0.7 else int(rng.integers(len(TAXONOMY)))
            )
        events: list[Event] = []
        clock = [time]

        def act(kind: str, rows: list[int] | None = None, **data: Any) -> None:
            events.append(self._event(kind, clock[0], rows or [], data))
            clock[0] += float(rng.uniform(0.05, 0.4))

        act("view_homepage", attribution={"page_id": page["page_id"]} if page else None)
        clicked = self._click(page, act) if page else []
        for row in clicked:
            act("view_item", [row])
            self._maybe_add_to_cart(row, act)
        if not clicked and (page is None or rng.random() < 0.45):
            self._browse(clock[0], act)
        if self._cart and rng.random() < 0.3:
            act("purchase", self._cart, transaction_id=f"t{self.key}-{self._visits}")
            self._owned[self._cart] = True
            self._cart = []
        elif self._cart and rng.random() < 0.05:
            act("remove_from_cart", [self._cart.pop()])
        return events

    def _click(self, page: dict[str, Any], act: _Act) -> list[int]:
        """Click at most two items of the page, or rarely hide the worst. Return the clicked rows."""
        shown = [
            (self._shelves.row[item["item_id"]], slot["slot"], item["position"])
            for slot in page["slots"]
            for item in slot["items"]
            if item["item_id"] in self._shelves.row
        ]
        if not shown:
            return []
        rows = np.array([row for row, _, _ in shown])
        utility = self.utility(rows)
        chance = 1.0 / (1.0 + POSITION_DECAY * np.arange(len(rows))) / (1.0 + np.exp(-utility))
        clicked = np.flatnonzero(self._rng.random(len(rows)) < chance)[:2]
        self._ignored[rows] += 1
        for at in clicked.tolist():
            row, slot, position = shown[at]
            self._ignored[row] = 0
            act("select_item", [row], attribution={"page_id": page["page_id"], "slot": slot, "position": position})
        if not len(clicked) and self._rng.random() < 0.02:
            act("hide_item", [int(rows[utility.argmin()])])
        return [shown[at][0] for at in clicked.tolist()]

    def _maybe_add_to_cart(self, row: int, act: _Act) -> None:
        if row not in self._cart and len(self._cart) < 8 and self._rng.random() < 0.25:
            self._cart.append(row)
            act("add_to_cart", [row])

    def _browse(self, now: float, act: _Act) -> None:
        """Find items without the page: on the shelf of the current mission."""
        rng, s = self._rng, self._shelves
        shelf = np.flatnonzero((s.category == self._mission) & s.available & (s.expires > now))
        if not len(shelf):
            return
        shelf = rng.choice(shelf, min(SHELF_ITEMS, len(shelf)), replace=False)
        utility = self.utility(shelf) + rng.gumbel(size=len(shelf))
        found = shelf[np.argsort(-utility)[: int(rng.integers(1, 4))]].tolist()
        if rng.random() < 0.3:
            title = s.items[found[0]]["title"][self.locale]
            act("search", search_term=title.split()[-1] if self.locale == "en" else title[-2:])
        for row in found:
            act("view_item", [row])
            self._maybe_add_to_cart(row, act)

    def _event(self, kind: str, time: float, rows: list[int], data: dict[str, Any]) -> Event:
        self._sent += 1
        body = {
            "user_id": self.key, "session_id": f"{self.key}-s", "channel": self._channel, "locale": self.locale,
            "consent": {"personalization": True}, **{name: value for name, value in data.items() if value is not None},
        }  # fmt: skip
        if rows:
            body["items"] = [
                {
                    "item_id": i["item_id"],
                    "price": i["price"],
                    "quantity": 1,
                    "item_category": i["category"],
                    "item_brand": i["brand"],
                }
                for i in (self._shelves.items[row] for row in rows)
            ]
            body["currency"] = "EUR"
        return {
            "specversion": "1.0",
            "id": f"{self.key}-{self._sent}",
            "source": "/demo",
            "type": kind,
            "time": rfc3339_us(time),
            "data": body,
        }

    def view_of_random_item(self, rng: np.random.Generator, time: float) -> Event:
        """Return a valid `view_item` event about an item drawn from `rng`."""
        return self._event("view_item", time, [int(rng.integers(len(self._shelves.items)))], {})


def topic_of(event: Event) -> str:
    return "purchases" if event["type"] in ("purchase", "refund") else "clicks"


class MalformedRecord(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    error: str  # the reason that dead-letters must give


def malformed_record(rng: np.random.Generator, shopper: Shopper, time: float, number: int) -> MalformedRecord:
    """Return a record with a fault that real storefronts produce; distinct for distinct numbers."""
    event = shopper.view_of_random_item(rng, time)
    event["id"] = f"bad-{number}"
    key, topic, error = shopper.key.encode(), "clicks", ""
    match int(rng.integers(8)):
        case 0:
            return MalformedRecord(topic, key, json.dumps(event).encode()[:-9] + b"%d" % number, "not_json")
        case 1:
            event["type"], error = f"view_thing_{number}", "unknown_type"
        case 2:
            del event["data"]["items"]
            error = "missing"
        case 3:
            event["time"], error = f"yesterday {number}", "invalid"
        case 4:
            key, error = b"somebody-else", "bad_key"
        case 5:
            event["data"]["items"][0]["price"], error = -float(number) - 1, "invalid"
        case 6:
            topic, error = "purchases", "wrong_topic"
        case _:
            return MalformedRecord(topic, key, b"\xff\xfe%d" % number, "not_json")
    return MalformedRecord(topic, key, json.dumps(event).encode(), error)
