"""Simulated shoppers in a simulated shop, through the page path that serves: their choices and interactions.

Offline, with the demo's simulator and other seeds. Pages can be sampled from the model's probabilities, so that items
that it would not show are seen too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from agents.page.headline_cache import HeadlineCache
from agents.page.path import PagePath, Policy
from deploy.demo.shop import generate_shop
from deploy.demo.shoppers import Shelves, Shopper, topic_of
from models.history.model import History
from models.ranker.columns import FEATURES, F
from models.ranker.model import Scorer
from models.train.history.sequences import InteractionSequences
from models.train.ranker.fit import Choices
from models.train.ranker.impressions import GROUP_FIELDS
from stream.codes import SLOTS
from stream.events.decode import ADD, BUY, CLICK, VIEW, decode_run
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals
from stream.locales import LOCALES
from stream.types import F32, I32, Rows

START_S = 1_767_225_600.0  # 2026-01-01: simulated time starts here, so that the same seed gives the same events
PAUSE_S = 40.0  # between two looks of a shopper
SAMPLING_NOISE = 1.0  # scale of the Gumbel noise that samples pages; 0 would show only the best items
INTERACTION_KINDS = (VIEW, CLICK, ADD, BUY)


class UniformScorer:
    """A ranker that gives every candidate the same probability."""

    version, head = "sha256:uniform", "logit"
    theta: F32 = np.zeros((len(FEATURES), 1), np.float32)

    def phi_buffer(self, shoppers: int) -> F32 | None:
        return None

    def works(self) -> bool:
        return True

    def score(self, phi: F32, count: I32) -> F32:
        is_candidate = np.arange(phi.shape[1])[None, :] < count[:, None]
        probability: F32 = (is_candidate / np.maximum(count, 1)[:, None]).astype(np.float32)
        return probability


class SamplingScorer:
    """Another ranker's log probabilities with Gumbel noise: a page is a sample of its items without replacement."""

    def __init__(self, scorer: Scorer, seed: int) -> None:
        self._scorer = scorer
        self.version, self.head, self.theta = scorer.version, scorer.head, scorer.theta
        self._rng = np.random.default_rng(seed)

    def phi_buffer(self, shoppers: int) -> F32 | None:
        return None

    def works(self) -> bool:
        return self._scorer.works()

    def score(self, phi: F32, count: I32) -> F32:
        probability = self._scorer.score(phi, count)
        logits = np.log(probability + 1e-12) + SAMPLING_NOISE * self._rng.gumbel(size=probability.shape)
        is_candidate = np.arange(phi.shape[1])[None, :] < count[:, None]
        weights = np.where(is_candidate, np.exp(logits), 0.0)
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-30)
        return weights.astype(np.float32)  # type: ignore[no-any-return]


class Simulation(NamedTuple):
    """The outcome of a simulation."""

    choices: Choices  # among the items of pages
    items: Rows  # (V,) ITEM of the shop
    sequences: InteractionSequences  # one for each shopper
    looks: int  # at a page that had been published
    looks_with_click: int
    events: list[bytes]  # all events as JSON, in order of time
    rows: Rows  # (n,) EVENT, the same events decoded, topic by topic
    impressions: list[bytes]  # of all pages, schema impression/1


class _Page(NamedTuple):
    """A published page and the features of its items."""

    body: dict[str, Any]
    phi: F32  # (items, F)


class _PageChoice(NamedTuple):
    """A click on an item of a page."""

    phi: F32  # (items, F) of the page
    position: int  # of the item on the page, from 0
    slot: int  # code of the item's slot
    locale: int  # code of the shopper's locale
    explored: bool


class _Worker:
    """The parts of a worker that answer events, in this process and without a broker."""

    def __init__(self, catalog: Catalog, scorer: Scorer, history: History | None) -> None:
        self._signals, self._table = Signals(catalog), ItemTable()
        self._path = PagePath(catalog, self._signals, scorer, HeadlineCache(), Policy(copy=False), history)
        self._profiles: dict[bytes, bytes] = {}
        self._offset = 0
        self.pages: dict[bytes, _Page] = {}  # newest page by shopper
        self.rows: list[Rows] = []
        self.impressions: list[bytes] = []

    def answer(self, topic: str, records: list[tuple[bytes, bytes]], now: float) -> None:
        """Fold records (key, value) of a topic that arrive at `now`, and keep the pages that answer them."""
        if not records:
            return
        keys, values = [key for key, _ in records], [value for _, value in records]
        decoded = decode_run(values, keys, [now] * len(records), topic)
        assert not decoded.rejects, decoded.rejects[0]
        # Exploration is seeded by the version. While versions count pages, the shipped models stay reproducible.
        decoded = decoded._replace(timestamps=())
        offsets = np.arange(self._offset, self._offset + len(records))
        self._offset += len(records)
        self.rows.append(decoded.rows)
        result = self._path.refresh_partition(self._profiles, decoded, offsets, now)
        self._profiles.update((key, value) for key, value in result.changelog if value is not None)
        for page in result.pages:
            self.impressions.append(page.impression)
            self.pages[page.key] = _Page(json.loads(page.value), page.phi)
        self._signals.apply(self._table.records(self._table.fold(topic, 0, result.activity)))


def simulate(
    scorer: Scorer, shoppers: int, looks: int, seed: int, *, history: Path | None = None, sampled: bool = True
) -> Simulation:
    """Simulate `shoppers` shoppers with `looks` looks each.

    sampled: pages are samples of the scorer's probabilities; otherwise they show the best items. history: folder of a
    history model.
    """
    shop = generate_shop(seed, now=START_S)
    shelves = Shelves(shop)
    people = [Shopper(seed, number, shelves) for number in range(shoppers)]
    catalog = Catalog()
    catalog.apply([(item["item_id"].encode(), json.dumps(item).encode()) for item in shop])
    worker = _Worker(
        catalog,
        SamplingScorer(scorer, seed) if sampled else scorer,
        None if history is None else History(history, catalog),
    )
    choices: list[_PageChoice] = []
    sent: list[bytes] = []
    page_looks = looks_with_click = 0
    for turn in range(looks):
        now = START_S + turn * PAUSE_S
        records: dict[str, list[tuple[bytes, bytes]]] = {"clicks": [], "purchases": []}
        for number, person in enumerate(people):
            key = person.key.encode()
            page = worker.pages.get(key)
            events = person.visit(None if page is None else page.body, now + PAUSE_S * number / shoppers)
            for event in events:
                sent.append(msgspec.json.encode(event))
                records[topic_of(event)].append((key, sent[-1]))
            if page is not None:
                page_looks += 1
                clicked = _page_choices(page, events, LOCALES.index(person.locale))
                looks_with_click += bool(clicked)
                choices += clicked
        for topic, of_topic in records.items():
            worker.answer(topic, of_topic, now + PAUSE_S)
    rows = np.concatenate(worker.rows)
    interactions = rows[np.isin(rows["kind"], INTERACTION_KINDS) & (rows["item"] != 0)]
    return Simulation(
        choices=_choices_of(choices),
        items=catalog.items[: len(catalog)].copy(),
        sequences=_sequences_of(interactions, catalog),
        looks=page_looks,
        looks_with_click=looks_with_click,
        events=sent,
        rows=rows,
        impressions=worker.impressions,
    )


def _page_choices(page: _Page, events: list[dict[str, Any]], locale: int) -> list[_PageChoice]:
    """The clicks among a shopper's events on items of the page they saw."""
    shown = [(SLOTS.index(slot["slot"]), item) for slot in page.body["slots"] for item in slot["items"]]
    position_of = {item["item_id"]: position for position, (_, item) in enumerate(shown)}
    clicked = [position_of[e["data"]["items"][0]["item_id"]] for e in events if e["type"] == "select_item"]
    return [
        _PageChoice(page.phi, position, shown[position][0], locale, shown[position][1]["explored"])
        for position in clicked
    ]


def _choices_of(clicks: list[_PageChoice]) -> Choices:
    return Choices(
        phi=np.concatenate([np.zeros((0, F), np.float32), *(click.phi for click in clicks)]),
        ends=np.cumsum([len(click.phi) for click in clicks], dtype=np.int64),
        chosen=np.array([click.position for click in clicks], np.int32),
        position=np.concatenate(
            [np.zeros(0, np.int32), *(np.arange(len(click.phi), dtype=np.int32) for click in clicks)]
        ),
        about=np.array([(click.slot, click.locale, click.explored) for click in clicks], GROUP_FIELDS),
    )


def _sequences_of(events: Rows, catalog: Catalog) -> InteractionSequences:
    """One sequence for each shopper. events: (n,) EVENT."""
    events = events[np.lexsort((events["time"], events["shopper"]))]
    ends = np.flatnonzero(np.diff(events["shopper"], append=events["shopper"][-1:] + 1)) + 1
    items = catalog.rows_of(np.ascontiguousarray(events["item"]))
    return InteractionSequences(ends, items, events["time"].copy(), events["kind"].astype(np.int8))
