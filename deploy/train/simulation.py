"""Simulated shoppers in a simulated shop, through the path that serves: what they chose, and all that they touched.

Off-line: the simulator of the demo with other seeds, and pages sampled from the model so that what it would not show is
seen too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from agents.page.headline_cache import HeadlineCache
from agents.page.path import PagePath, Policy
from deploy.demo.shop import generate_shop
from deploy.demo.shoppers import Shelves, Shopper, topic_of
from models.history.model import History
from models.ranker.features import FEATURES, F
from models.ranker.model import Scorer
from models.train.history.sequences import InteractionSequences
from models.train.ranker.fit import Choices
from models.train.ranker.impressions import ABOUT
from stream.codes import SLOTS
from stream.events import ADD, BUY, CLICK, LOCALES, VIEW, decode_run
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
START = 1_767_225_600.0  # 2026-01-01: simulated time, the same for the same seed
PAUSE = 40.0  # s between the looks of a shopper
WORTH_A_TRY = 1.0  # of the noise that samples pages; 0 would show only what is best already
TOUCHED = (VIEW, CLICK, ADD, BUY)  # kinds of interactions with an item


class Uniform:
    """A content model that knows nothing."""

    version = "sha256:uniform"
    theta: Floats = np.zeros((len(FEATURES), 1), np.float32)

    def room(self, shoppers: int) -> Floats | None:
        return None

    def works(self) -> bool:
        return True

    def score(self, phi: Floats, count: npt.NDArray[np.int32]) -> Floats:
        offered = np.arange(phi.shape[1])[None, :] < count[:, None]
        shares: Floats = (offered / np.maximum(count, 1)[:, None]).astype(np.float32)
        return shares


class Sampled:
    """Another's probabilities with Gumbel noise on their logarithms: the page is a sample without replacement."""

    def __init__(self, scorer: Scorer, seed: int) -> None:
        self._scorer = scorer
        self.version, self.theta = scorer.version, scorer.theta
        self._rng = np.random.default_rng(seed)

    def room(self, shoppers: int) -> Floats | None:
        return None

    def works(self) -> bool:
        return self._scorer.works()

    def score(self, phi: Floats, count: npt.NDArray[np.int32]) -> Floats:
        shares = self._scorer.score(phi, count)
        logits = np.log(shares + 1e-12) + WORTH_A_TRY * self._rng.gumbel(size=shares.shape)
        shares = np.where(np.arange(phi.shape[1])[None, :] < count[:, None], np.exp(logits), 0.0)
        shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-30)
        return shares.astype(np.float32)  # type: ignore[no-any-return]


class Simulated(NamedTuple):
    choices: Choices  # among what pages showed
    items: Rows  # (V,) ITEM of the shop
    behaviour: InteractionSequences  # of the shoppers
    looks: int  # at a page that was there
    clicked: int  # looks with a click
    events: list[bytes]  # all that was sent, JSON, in order of time
    rows: Rows  # (n,) EVENT, the same decoded, topic by topic
    impressions: list[bytes]  # of all pages that were made, schema impression/1


def simulate(
    scorer: Scorer, shoppers: int, looks: int, seed: int, *, history: Path | None = None, sampled: bool = True
) -> Simulated:
    """So many looks of so many shoppers; `sampled`: at pages that are a sample of what the scorer would show."""
    shop = generate_shop(seed, now=START)
    shelves = Shelves(shop)
    people = [Shopper(seed, number, shelves) for number in range(shoppers)]
    catalog = Catalog()
    catalog.apply([(item["item_id"].encode(), json.dumps(item).encode()) for item in shop])
    signals, table = Signals(catalog), ItemTable()
    path = PagePath(
        catalog, signals, Sampled(scorer, seed) if sampled else scorer, HeadlineCache(), Policy(copy=False),
        None if history is None else History(history, catalog),
    )  # fmt: skip
    stored: dict[bytes, bytes] = {}
    pages: dict[bytes, tuple[dict[str, Any], Floats]] = {}
    made: list[tuple[Floats, list[int], list[tuple[int, int, bool]]]] = []
    rows: list[Rows] = []
    told: list[bytes] = []
    impressions: list[bytes] = []
    offset = looked = clicked = 0
    for turn in range(looks):
        now = START + turn * PAUSE
        sent: dict[str, list[tuple[bytes, bytes, float]]] = {"clicks": [], "purchases": []}
        for number, person in enumerate(people):
            key = person.key.encode()
            page, phi = pages.get(key, (None, None))
            events = person.visit(page, now + PAUSE * number / shoppers)
            for event in events:
                told.append(msgspec.json.encode(event))
                sent[topic_of(event)].append((key, told[-1], now + PAUSE))
            if page is not None and phi is not None:
                looked += 1
                shown = [(SLOTS.index(s["slot"]), i) for s in page["slots"] for i in s["items"]]
                order = {item["item_id"]: k for k, (_, item) in enumerate(shown)}
                taken = [order[e["data"]["items"][0]["item_id"]] for e in events if e["type"] == "select_item"]
                clicked += bool(taken)
                if taken:
                    locale = LOCALES.index(person.locale)
                    about = [(shown[at][0], locale, shown[at][1]["explored"]) for at in taken]
                    made.append((phi, taken, about))
        for topic, records in sent.items():
            if not records:
                continue
            decoded = decode_run(
                [v for _, v, _ in records], [k for k, _, _ in records], [t for _, _, t in records], topic
            )
            assert not decoded.rejects, decoded.rejects[0]
            offsets = np.arange(offset, offset + len(records))
            offset += len(records)
            rows.append(decoded.rows)
            step = path.step(stored, decoded, offsets, now + PAUSE)
            stored.update((key, value) for key, value in step.changelog if value is not None)
            impressions.extend(value for _, value in step.impressions)
            for (key, value), phi in zip(step.pages, step.phi, strict=True):
                pages[key] = json.loads(value), phi
            signals.apply(table.records(table.fold(topic, 0, step.activity)))
    done = np.concatenate(rows)
    touched = done[np.isin(done["kind"], TOUCHED) & (done["item"] != 0)]
    return Simulated(
        _choices(made), catalog.items[: len(catalog)].copy(), _behaviour(touched, catalog), looked, clicked, told, done,
        impressions,
    )  # fmt: skip


def _choices(made: list[tuple[Floats, list[int], list[tuple[int, int, bool]]]]) -> Choices:
    """made: phi (count, F) of what a page showed, which of it was clicked, and of each click what ABOUT says."""
    pairs = [(phi, column) for phi, taken, _ in made for column in taken]
    return Choices(
        np.concatenate([np.zeros((0, F), np.float32), *(phi for phi, _ in pairs)]),
        np.cumsum([len(phi) for phi, _ in pairs], dtype=np.int64),
        np.array([column for _, column in pairs], np.int32),
        np.concatenate([np.zeros(0, np.int32), *(np.arange(len(phi), dtype=np.int32) for phi, _ in pairs)]),
        about=np.array([row for _, _, about in made for row in about], ABOUT),
    )


def _behaviour(events: Rows, catalog: Catalog) -> InteractionSequences:
    """(n,) EVENT, shopper by shopper in order of time."""
    events = events[np.lexsort((events["time"], events["shopper"]))]
    ends = np.flatnonzero(np.diff(events["shopper"], append=events["shopper"][-1:] + 1)) + 1
    items = catalog.rows_of(np.ascontiguousarray(events["item"]))
    return InteractionSequences(ends, items, events["time"].copy(), events["kind"].astype(np.int8))
