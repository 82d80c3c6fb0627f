"""Events for tests: EVENT rows, records as a storefront sends them, and packed rows in their plain form."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
from hypothesis import strategies as st

from stream.events.decode import ADD, BUY, CLICK, EVENT, HIDE, HOME, REMOVE, SEARCH, VIEW
from stream.ids import key32, key64
from stream.profile.fold import fold
from stream.profile.row import blank_profiles
from stream.row_codec import max_packed_bytes, pack_plain, words_of

NOW = 1_767_225_600.0  # 2026-01-01


def row(kind: int = CLICK, item: str = "", time: float = NOW, id: str = "", **more: Any) -> np.ndarray:
    """One EVENT row. Names of items, categories, brands and words become their keys."""
    made = np.zeros(1, EVENT)
    made["shopper"], made["kind"], made["time"] = key64(more.pop("shopper", "u1")), kind, time
    made["id"] = key64(id or f"{kind}{item}{time}{sorted(more.items())}")
    made["item"] = key64(item) if item else 0
    made["quantity"] = 1
    for name, value in more.items():
        made[name] = key32(value) if isinstance(value, str) else value
    return made


def rows(*parts: np.ndarray) -> np.ndarray:
    """EVENT rows, concatenated."""
    return np.concatenate(parts) if parts else np.zeros(0, EVENT)


def folded(events: np.ndarray, splits: tuple[int, ...] = ()) -> Any:
    """Profile of one shopper. The events are folded in runs that end at `splits`."""
    profile = blank_profiles(1)
    for part in np.split(events, splits):
        fold(profile, np.zeros(len(part), np.int32), part)
    return profile[0]


def golden_events() -> np.ndarray:
    """Events of the profile in the golden files."""
    return rows(
        row(VIEW, "lamp", NOW, category="lighting", brand="Lumora", price=49.9, locale=2, channel=1),
        row(SEARCH, time=NOW + 60, word="brass"),
        row(ADD, "lamp", NOW + 120, quantity=2, price=49.9),
        row(BUY, "mug", NOW + 300, category="tableware", price=12.0),
        row(HIDE, "rug", NOW + 400),
    )


def record(
    type: str = "select_item", user: str = "u1", id: str = "e1", time: float = NOW, **data: Any
) -> tuple[bytes, bytes]:
    """Key and value of an event record."""
    body = {"user_id": user, **data}
    if "item" in body:
        body["items"] = [{"item_id": body.pop("item")}]
    event = {"specversion": "1.0", "id": id, "source": "/test", "type": type,
             "time": datetime.fromtimestamp(time, UTC).isoformat(), "data": body}  # fmt: skip
    return user.encode(), json.dumps(event).encode()


@st.composite
def shopper_events(draw: Any, max_size: int = 60, span: float = 30 * 86_400.0) -> np.ndarray:
    """EVENT rows (n,) of one shopper with distinct ids and few items, categories, brands and words."""
    n = draw(st.integers(1, max_size))
    made: list[np.ndarray] = []
    for i in range(n):
        kind = draw(st.sampled_from((VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, HIDE, BUY)))
        time = NOW + draw(st.integers(0, int(span * 4))) / 4
        more: dict[str, Any] = {"locale": draw(st.integers(0, 2)), "channel": draw(st.integers(0, 3))}
        item = ""
        if kind == SEARCH:
            more["word"] = draw(st.sampled_from(("red", "blue", "lamp")))
        elif kind != HOME:
            item = f"i{draw(st.integers(0, 12))}"
            more |= {"category": f"c{draw(st.integers(0, 4))}", "brand": f"b{draw(st.integers(0, 4))}",
                     "price": draw(st.sampled_from((0.0, 9.9, 120.0))),
                     "quantity": draw(st.integers(1, 3))}  # fmt: skip
        made.append(row(kind, item, time, id=f"id{i}", **more))
    return np.concatenate(made)


def plain(rows: np.ndarray, version: int) -> list[bytes]:
    """Packed rows in the plain form, the only form of earlier releases."""
    out = np.empty(max_packed_bytes(rows.dtype), np.uint8)
    return [out[: pack_plain(words, version, out, 0)].tobytes() for words in words_of(rows)]
