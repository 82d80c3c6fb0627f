"""Pages with a history model: it proposes candidates, the page names it, and a failure costs no page."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.page.headline_cache import HeadlineCache
from agents.page.path import PagePath, Policy
from models.history.model import History
from models.ranker.columns import FEATURES, FORESEEN, F
from models.ranker.model import Ranker
from models.train.ranker.fit import Fit, export
from stream.codes import GEN_HISTORY
from stream.degradation import Degradation
from stream.events.decode import Decoded
from stream.metrics import STAGES
from stream.page.candidates import retrieve
from tests.harness.events import NOW, record
from tests.harness.history_model import random_profiles, write_history_folder
from tests.harness.page_path import decoded, views
from tests.harness.shop import catalog_of, signals_of

SESSIONS = [[f"i{(s + k) % 60}" for k in range(4)] for s in range(40)]


def path_of(folder: Path) -> PagePath:
    """A path whose ranker scores by the history model alone."""
    theta = np.zeros((F, 1), np.float32)
    theta[FORESEEN] = 1.0
    export(folder / "ranker", Fit(theta, 1.0, 2.0, 0.5), "a test", "", {})
    catalog = catalog_of(300)
    signals, history = signals_of(catalog, SESSIONS), History(write_history_folder(folder / "history"), catalog)
    return PagePath(catalog, signals, Ranker(folder / "ranker"), HeadlineCache(), Policy(copy=False), history)


def pages_of(path: PagePath, run: tuple[Decoded, Any]) -> dict[bytes, dict[str, Any]]:
    return {page.key: json.loads(page.value) for page in path.refresh_partition({}, *run, NOW + 50).pages}


def test_history_proposals_become_candidates_unless_unavailable() -> None:
    catalog = catalog_of(200)
    catalog.apply([(b"i150", json.dumps({"item_id": "i150", "title": "x", "available": False}).encode())])
    signals, profiles = signals_of(catalog, SESSIONS), random_profiles(2, seed=1)
    now = np.full(2, NOW)
    proposals = np.array([[150, 151, 152, -1], [-1, -1, -1, -1]], np.int32)
    found = retrieve(profiles, now, catalog, signals, signals.trending(NOW), proposals=proposals)
    proposed = [
        set(rows[(g & GEN_HISTORY) != 0].tolist()) for rows, g in zip(found.rows, found.generators, strict=True)
    ]
    assert proposed == [{151, 152}, set()]


@pytest.mark.slow
def test_a_page_shows_history_items_and_names_the_model(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    assert path.history is not None
    run = decoded(*views(6, 5))
    for page in pages_of(path, run).values():
        assert page["serving"]["history"] == path.history.version
        reasons = [i["reason"]["code"] for s in page["slots"] if s["slot"] == "for_you" for i in s["items"]]
        assert "FITS_YOUR_HISTORY" in reasons
    result = path.refresh_partition({}, *run, NOW + 50)
    assert set(result.seconds) <= set(STAGES) and "history" in result.seconds, "each stage has its metric"
    phi = np.concatenate([page.phi for page in result.pages])
    assert (phi[:, FORESEEN] > 0).any() and (phi[:, FEATURES.index("foreseen_behind")] <= 0).all()


def test_a_page_with_history_is_the_same_alone_and_in_any_batch(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    together = pages_of(path, decoded(*views(70, 3)))
    for user in ("u0", "u33", "u69"):
        alone = pages_of(path, decoded(*(r for r in views(70, 3) if r[0] == user.encode())))
        assert alone[user.encode()]["slots"] == together[user.encode()]["slots"]


def test_the_history_model_is_skipped_under_overload_and_for_newcomers(tmp_path: Path) -> None:
    path = path_of(tmp_path)
    path.degradation = Degradation(sheds_exploration=True)
    assert {p["serving"]["history"] for p in pages_of(path, decoded(*views(2, 3))).values()} == {None}
    path.degradation = Degradation()
    page = pages_of(path, decoded(record("view_homepage", "new", "e1", NOW)))[b"new"]
    assert page["serving"] == {**page["serving"], "mode": "popular", "history": None}


def test_a_failing_history_model_costs_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = path_of(tmp_path)

    def broken(*_: Any) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(History, "predict", broken)
    with caplog.at_level(logging.ERROR):
        pages = pages_of(path, decoded(*views(3, 4)))
    assert len(pages) == 3 and all(p["serving"]["history"] is None and p["slots"] for p in pages.values())
    assert "history model failed" in caplog.text and "no such kernel" in caplog.text
    assert path.history is None, "it stays disabled"
