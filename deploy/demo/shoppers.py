"""Simulated shoppers: hidden tastes and a choice model that knows nothing of our features.

A shopper sees a page, her own language, and the shop's shelves; she never sees a profile, a score or a feature.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deploy.demo.shop import STYLES, TAXONOMY, Item, rfc3339, style_of

Event = dict[str, Any]
NAMES = (
    "Anna", "Ben", "Carla", "David", "Emma", "Finn", "Greta", "Hugo", "Ida", "Jonas", "Klara", "Leo", "Mara", "Nils",
    "Mei", "Wei", "Li Na", "Jun", "Xiao", "Yan", "Hao", "Ting", "Fang", "Bo", "Jing", "Lei", "Qi", "Min",
)  # fmt: skip
# Utilities, in logits. An item of no interest stands at -RELUCTANCE: most looks at most items end there.
RELUCTANCE = 6.0
MISSION, FAVOURITE, SECOND, STYLE, BRAND, PRICE, TIRED, OWNED = 2.6, 2.1, 1.3, 1.5, 0.7, 0.7, 0.35, 2.5
EYES = 0.05  # each further position is looked at less: 1 / (1 + EYES i)
SHELF = 60  # items that she sees when she browses by herself


class Shelves:
    """The shop's items as arrays, for all shoppers."""

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
        self.until = np.array([_time(item["expires_at"]) for item in items])
        self.available = np.array([item["available"] for item in items])
        # How dear an item is among its like: tastes in price are relative.
        self.dear = np.zeros(len(items))
        for c in range(len(categories)):
            mine = self.category == c
            if mine.any():
                self.dear[mine] = (self.log_price[mine] - self.log_price[mine].mean()) / (
                    self.log_price[mine].std() + 1e-9
                )


def _time(text: str | None) -> float:
    return np.inf if text is None else datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Shopper:
    """One shopper; the same for the same seed and number."""

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
        self._interest = np.zeros(len(TAXONOMY))  # by category
        self._interest[self._favourites] = SECOND
        self._interest[self._favourites[0]] = FAVOURITE
        self._liked_brand = np.zeros(len(shelves.brands), np.bool_)
        self._liked_brand[brands] = True
        self._dear = rng.normal(0.0, 0.8)
        self._mission = int(self._favourites[0])
        self._tired = np.zeros(len(shelves.items), np.int16)
        self._owned = np.zeros(len(shelves.items), np.bool_)
        self._cart: list[int] = []
        self._looks = self._sent = 0

    def utility(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """What the items are worth to her now, in logits. (n,) -> (n,)."""
        s = self._shelves
        category = s.category[rows]
        interest = np.maximum(self._interest[category], np.where(category == self._mission, MISSION, 0.0))
        worth = interest + STYLE * (s.style[rows] == self._style) + BRAND * self._liked_brand[s.brand[rows]]
        worth -= PRICE * np.minimum(2.0, np.abs(s.dear[rows] - self._dear)) + TIRED * np.minimum(self._tired[rows], 6)
        return worth - OWNED * self._owned[rows] - RELUCTANCE  # type: ignore[no-any-return]

    def visit(self, page: dict[str, Any] | None, time: float) -> list[Event]:
        """Look at the homepage (None: none was ever published), act on it, browse. -> events in order, from `time` (s) on."""
        rng = self._rng
        self._looks += 1
        if rng.random() < 0.12:  # something else is on her mind now
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
            self._consider(row, act)
        if not clicked and (page is None or rng.random() < 0.45):
            self._browse(clock[0], act)
        if self._cart and rng.random() < 0.3:
            act("purchase", self._cart, transaction_id=f"t{self.key}-{self._looks}")
            self._owned[self._cart] = True
            self._cart = []
        elif self._cart and rng.random() < 0.05:
            act("remove_from_cart", [self._cart.pop()])
        return events

    def _click(self, page: dict[str, Any], act: Any) -> list[int]:
        shown = [
            (self._shelves.row[item["item_id"]], slot["slot"], item["position"])
            for slot in page["slots"]
            for item in slot["items"]
            if item["item_id"] in self._shelves.row
        ]
        if not shown:
            return []
        rows = np.array([row for row, _, _ in shown])
        worth = self.utility(rows)
        chance = 1.0 / (1.0 + EYES * np.arange(len(rows))) / (1.0 + np.exp(-worth))
        taken = np.flatnonzero(self._rng.random(len(rows)) < chance)[:2]
        self._tired[rows] += 1
        for at in taken.tolist():
            row, slot, position = shown[at]
            self._tired[row] = 0
            act("select_item", [row], attribution={"page_id": page["page_id"], "slot": slot, "position": position})
        if not len(taken) and self._rng.random() < 0.02:
            act("hide_item", [int(rows[worth.argmin()])])
        return [shown[at][0] for at in taken.tolist()]

    def _consider(self, row: int, act: Any) -> None:
        if row not in self._cart and len(self._cart) < 8 and self._rng.random() < 0.25:
            self._cart.append(row)
            act("add_to_cart", [row])

    def _browse(self, now: float, act: Any) -> None:
        """Find something by herself: on the shelf of what is on her mind."""
        rng, s = self._rng, self._shelves
        shelf = np.flatnonzero((s.category == self._mission) & s.available & (s.until > now))
        if not len(shelf):
            return
        shelf = rng.choice(shelf, min(SHELF, len(shelf)), replace=False)
        worth = self.utility(shelf) + rng.gumbel(size=len(shelf))
        found = shelf[np.argsort(-worth)[: int(rng.integers(1, 4))]].tolist()
        if rng.random() < 0.3:
            title = s.items[found[0]]["title"][self.locale]
            act("search", search_term=title.split()[-1] if self.locale == "en" else title[-2:])
        for row in found:
            act("view_item", [row])
            self._consider(row, act)

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
            "time": rfc3339(time),
            "data": body,
        }


def topic_of(event: Event) -> str:
    return "purchases" if event["type"] in ("purchase", "refund") else "clicks"


class Malformed(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    error: str  # the reason that dead-letters must give


def malformed(rng: np.random.Generator, shopper: Shopper, time: float, number: int) -> Malformed:
    """A record as broken storefronts send them, distinct for distinct numbers."""
    event = shopper._event("view_item", time, [int(rng.integers(len(shopper._shelves.items)))], {})
    event["id"] = f"bad-{number}"
    key, topic, error = shopper.key.encode(), "clicks", ""
    match int(rng.integers(8)):
        case 0:
            return Malformed(topic, key, json.dumps(event).encode()[:-9] + b"%d" % number, "not_json")
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
            return Malformed(topic, key, b"\xff\xfe%d" % number, "not_json")
    return Malformed(topic, key, json.dumps(event).encode(), error)
