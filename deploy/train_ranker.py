"""Fit the ranker on simulated shoppers, through the same fold, candidates and phi that serve.

Off-line: the simulator of the demo with other seeds, and pages sampled from the model so that what it would not show is
seen too. Round after round the model of the last one fills the pages.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.demo.shop import generate_shop
from deploy.demo.shoppers import Shelves, Shopper, topic_of
from models.copybook import CopyBook
from models.path import PagePath, Policy
from models.phi import FEATURES
from models.train.ranker import Choices, Fit, export, fit
from stream.catalog import Catalog
from stream.events import decode_run
from stream.signals import ItemTable, Signals

Floats = npt.NDArray[np.float32]
ROUNDS = 3
START = 1_767_225_600.0  # 2026-01-01: simulated time, the same for the same seed
PAUSE = 40.0  # s between the looks of a shopper
WORTH_A_TRY = 1.0  # of the noise that samples pages; 0 would show only what is best already


class Sampled:
    """A ranker for gathering choices: the softmax of theta . phi plus Gumbel noise is a sample without replacement."""

    version = "sha256:simulation"

    def __init__(self, theta: Floats, seed: int) -> None:
        self.theta = theta
        self._rng = np.random.default_rng(seed)

    def room(self, shoppers: int) -> Floats | None:
        return None

    def works(self) -> bool:
        return True

    def score(self, phi: Floats, count: npt.NDArray[np.int32]) -> Floats:
        logits = (phi @ self.theta)[..., 0] + WORTH_A_TRY * self._rng.gumbel(size=phi.shape[:2])
        logits = np.where(np.arange(phi.shape[1])[None, :] < count[:, None], logits, -1e9)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]


def simulate(theta: Floats, shoppers: int, looks: int, seed: int) -> tuple[Choices, float]:
    """Choices among what pages showed, and the share of looks with a click."""
    shop = generate_shop(seed, now=START)
    shelves = Shelves(shop)
    people = [Shopper(seed, number, shelves) for number in range(shoppers)]
    catalog = Catalog()
    catalog.apply([(item["item_id"].encode(), json.dumps(item).encode()) for item in shop])
    signals, table = Signals(catalog), ItemTable()
    path = PagePath(catalog, signals, Sampled(theta, seed), CopyBook(), Policy(copy=False))
    stored: dict[bytes, bytes] = {}
    pages: dict[bytes, tuple[dict[str, Any], Floats]] = {}
    made: list[tuple[Floats, list[int]]] = []
    offset = looked = clicked = 0
    for turn in range(looks):
        now = START + turn * PAUSE
        sent: dict[str, list[tuple[bytes, bytes, float]]] = {"clicks": [], "purchases": []}
        for number, person in enumerate(people):
            key = person.key.encode()
            page, phi = pages.get(key, (None, None))
            events = person.look(page, now + PAUSE * number / shoppers)
            for event in events:
                sent[topic_of(event)].append((key, msgspec.json.encode(event), now + PAUSE))
            if page is not None and phi is not None:
                looked += 1
                order = {i["item_id"]: k for k, i in enumerate(i for s in page["slots"] for i in s["items"])}
                taken = [order[e["data"]["items"][0]["item_id"]] for e in events if e["type"] == "select_item"]
                clicked += bool(taken)
                if taken:
                    made.append((phi, taken))
        for topic, records in sent.items():
            if not records:
                continue
            decoded = decode_run(
                [v for _, v, _ in records], [k for k, _, _ in records], [t for _, _, t in records], topic
            )
            assert not decoded.rejects, decoded.rejects[0]
            offsets = np.arange(offset, offset + len(records))
            offset += len(records)
            step = path.step(stored, decoded, offsets, now + PAUSE)
            stored.update((key, value) for key, value in step.changelog if value is not None)
            for (key, value), phi in zip(step.pages, step.phi, strict=True):
                pages[key] = json.loads(value), phi
            signals.apply(table.records(table.fold(topic, 0, step.activity)))
    return _choices(made), clicked / max(1, looked)


def _choices(made: list[tuple[Floats, list[int]]]) -> Choices:
    """made: phi (count, F) of what a page showed, and which of it was clicked."""
    pairs = [(phi, column) for phi, taken in made for column in taken]
    return Choices(
        np.concatenate([phi for phi, _ in pairs]),
        np.cumsum([len(phi) for phi, _ in pairs], dtype=np.int64),
        np.array([column for _, column in pairs], np.int32),
        np.concatenate([np.arange(len(phi), dtype=np.int32) for phi, _ in pairs]),
    )


def train(out: Path, shoppers: int, looks: int, seed: int) -> int:
    """Simulate, fit, and write the ranker into `out`; progress on stderr. -> exit status."""
    theta: Floats = np.zeros((len(FEATURES), 1), np.float32)
    gathered: list[Choices] = []
    rate, fitted = 0.0, Fit(theta, 0.0, 0.0, 0.0)
    for turn in range(ROUNDS):
        choices, rate = simulate(theta, shoppers, looks, seed + turn)
        gathered.append(choices)
        fitted = fit(Choices.joined(gathered), seed=seed)
        theta = fitted.theta
        print(
            f"round {turn + 1} of {ROUNDS}: {len(choices.chosen)} choices, {rate:.1%} of looks clicked, "
            f"held-out loss {fitted.loss:.3f} (uniform {fitted.uniform:.3f}), first choice found {fitted.top1:.1%}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    n = sum(len(choices.chosen) for choices in gathered)
    made = export(
        out, fitted,
        f"{n} clicks of {shoppers} simulated shoppers in {ROUNDS} shops of the demo, seeds {seed} to {seed + ROUNDS - 1}",
        datetime.now(UTC).isoformat(timespec="seconds"), {"choices": float(n), "looks_clicked_last_round": rate},
    )  # fmt: skip
    print(f"wrote {made.version} to {out}", file=sys.stderr)
    return 0
