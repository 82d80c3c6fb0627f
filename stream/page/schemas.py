"""Types of the published payloads: the source of their JSON Schema, and the oracle of the encoders in tests."""

from typing import Annotated, Any, Literal

import msgspec

from stream.codes import MAX_PAGE_ITEMS, MODES, REASONS, SLOTS
from stream.events.schema import event_schema
from stream.items.catalog import Item
from stream.settings import HEADS


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    code: Literal[REASONS]  # type: ignore[valid-type]
    weight: float
    item_id: str | None = None  # the item that the reason refers to


class PageItem(msgspec.Struct, frozen=True):
    item_id: str
    kind: str
    position: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAGE_ITEMS)]
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    propensity: Annotated[float, msgspec.Meta(gt=0, le=1)]
    explored: bool
    reason: Reason


class Slot(msgspec.Struct, frozen=True):
    slot: Literal[SLOTS[1:]]  # type: ignore[valid-type]
    title: str
    title_source: Literal["gpt2", "template"]
    items: Annotated[list[PageItem], msgspec.Meta(min_length=1)]


class Trigger(msgspec.Struct, frozen=True):
    event_id: str
    event_time: str


class Serving(msgspec.Struct, frozen=True):
    mode: Literal[MODES]  # type: ignore[valid-type]
    ranker: str  # versions of the models, None for one that was not used
    history: str | None
    copywriter: str | None
    # Of the ranker. Pages of earlier releases have none.
    head: Literal[HEADS] | msgspec.UnsetType = msgspec.UNSET  # type: ignore[valid-type]


class Homepage(msgspec.Struct, frozen=True, kw_only=True):
    """What a storefront shows a shopper, schema `homepage/1`. The page with a shopper's highest version is current.

    `locale` is the language of the titles of its slots, a BCP 47 tag. Pages of earlier workers lack it.
    """

    schema: Literal["homepage/1"]
    page_id: str
    user_key: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    locale: str | msgspec.UnsetType = msgspec.UNSET
    generated_at: str
    expires_at: str
    trigger: Trigger
    channel_cards: dict[str, int]
    serving: Serving
    rules_applied: list[str]
    slots: list[Slot]


class ImpressionItem(msgspec.Struct, frozen=True):
    item_id: str
    kind: str
    slot: Literal[SLOTS[1:]]  # type: ignore[valid-type]
    position: int
    score: float
    propensity: float
    explored: bool


class Impression(msgspec.Struct, frozen=True):
    """What a page showed, for training: schema `impression/1`. `phi` is base64 of bytes that `unpack_phi` reads."""

    schema: Literal["impression/1"]
    page_id: str
    user_key: str
    version: int
    time: str
    ranker: str
    features_hash: str
    phi: str
    items: list[ImpressionItem]
    # Impressions of earlier releases lack these. `history` is the model that phi was computed with, None for none.
    head: Literal[HEADS] | msgspec.UnsetType = msgspec.UNSET  # type: ignore[valid-type]
    history: str | msgspec.UnsetType | None = msgspec.UNSET


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of every published payload, by `name/version`.

    `event/1` is what workers accept, `event-strict/1` what producers should send: the same without lenient forms.
    """
    types = {"item/1": Item, "homepage/1": Homepage, "impression/1": Impression}
    found = {"event/1": event_schema(), "event-strict/1": event_schema(strict=True)}
    found |= {name: msgspec.json.schema(kind) for name, kind in types.items()}
    return {name: {"$schema": "https://json-schema.org/draft/2020-12/schema", **found[name]} for name in found}
