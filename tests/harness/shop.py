"""A small shop as tests need it: a catalogue, signals folded from sessions, and pages made of them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from stream.items.activity import fold_with_activity
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals
from stream.profile.row import blank_profiles
from tests.harness.events import NOW, row, rows


def item(id: str, **fields: Any) -> tuple[bytes, bytes]:
    """A record of the catalogue."""
    body = {
        "item_id": id,
        "title": {"en": f"{id} thing", "zh": f"{id}物"},
        "category": "c0",
        "brand": f"b-{id}",
        "price": 10.0,
    }
    return id.encode(), json.dumps(body | fields).encode()


def catalog_of(n: int, **fields: Any) -> Catalog:
    catalog = Catalog()
    assert not catalog.apply([item(f"i{k}", category=f"c{k % 5}", brand=f"b{k % 17}", **fields) for k in range(n)])
    return catalog


def signals_of(catalog: Catalog, sessions: Sequence[Sequence[str]], start: float = NOW - 86_400.0) -> Signals:
    """Signals of sessions of item ids, one shopper each, a click every 10 s."""
    table = ItemTable()
    changed: set[int] = set()
    for s, session in enumerate(sessions):
        events = rows(*(row(1, name, start + 60 * s + 10 * k, id=f"{s}-{k}") for k, name in enumerate(session)))
        events["record"] = np.arange(len(events))
        offsets = np.arange(len(events)) + 1000 * s
        _, activity = fold_with_activity(blank_profiles(1), np.zeros(len(events), np.int32), events, offsets)
        changed |= table.fold("clicks", 0, activity)
    signals = Signals(catalog)
    signals.apply(table.records(changed))
    return signals
