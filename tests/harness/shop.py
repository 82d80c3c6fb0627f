"""A small shop for tests: catalogue records, a catalogue, and signals folded from sessions."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from stream.events.decode import VIEW
from stream.ids import key64
from stream.items.activity import ACTIVITY, INTERACTION, fold_with_activity
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals
from stream.page.assembly import Placements
from stream.page.candidates import Candidates
from stream.profile.row import blank_profiles
from tests.harness.events import NOW, row, rows


def item(id: str, **fields: Any) -> tuple[bytes, bytes]:
    """Key and value of a catalogue record; `fields` replace the defaults."""
    body = {
        "item_id": id,
        "title": {"en": f"{id} thing", "zh": f"{id}物"},
        "category": "c0",
        "brand": f"b-{id}",
        "price": 10.0,
    }
    return id.encode(), json.dumps(body | fields).encode()


def catalog_of(n: int, **fields: Any) -> Catalog:
    """Catalogue of the items i0 to i(n - 1), with five categories and 17 brands."""
    catalog = Catalog()
    assert not catalog.apply([item(f"i{k}", category=f"c{k % 5}", brand=f"b{k % 17}", **fields) for k in range(n)])
    return catalog


def signals_of(catalog: Catalog, sessions: Sequence[Sequence[str]], start: float = NOW - 86_400.0) -> Signals:
    """Signals of sessions of item ids: one shopper each, a click every 10 s."""
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


def view_activity(name: str, time: float, offset: int) -> np.ndarray:
    """ACTIVITY (1,) of a view of the item `name`, the first of its session."""
    activity = np.zeros(1, ACTIVITY)
    activity["item"], activity["time"], activity["offset"] = key64(name), time, offset
    activity["kind"], activity["event"], activity["first"] = INTERACTION, VIEW, 1
    return activity


def candidates_of(rng: np.random.Generator, catalog: Catalog, u: int, n: int) -> tuple[Candidates, np.ndarray]:
    """Random candidates of u shoppers, n each, and their scores (u, 256)."""
    item_rows, generators = np.full((u, 256), -1, np.int32), np.zeros((u, 256), np.int32)
    scores = np.zeros((u, 256), np.float32)
    for k in range(u):
        item_rows[k, :n] = rng.permutation(len(catalog))[:n]
        generators[k, :n] = rng.integers(0, 512, n)
        scores[k, :n] = rng.dirichlet(np.ones(n)) if n else 0.0
    return Candidates(item_rows, generators, np.full(u, n, np.int32)), scores


def shown(placements: Placements, u: int = 0) -> Any:
    """PLACED rows of page u."""
    return placements.placed[u][: placements.count[u]]
