"""Half-lives: chosen by the data's rate, kept with the ranker that was fitted with them, used by the signals."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.data.clickstream import Clicks
from models.data.replay import OfflineShop
from models.manifest import ManifestError
from models.ranker.columns import F
from models.ranker.model import Ranker
from models.train.ranker import half_lives
from models.train.ranker.fit import Fit, export
from models.train.ranker.half_lives import choose, choose_once
from models.train.step_cache import StepCache
from stream.items.signals import HALF_LIVES, HalfLives, ItemTable, Signals
from tests.harness.shop import catalog_of, view_activity
from tests.harness.training import ignore_line

ITEMS = 40
SESSION_S = 600.0  # from the start of a session to that of the next
shop_with = partial(OfflineShop, [str(k) for k in range(ITEMS)])


def changing_clicks(sessions: int, lasting: int, seed: int = 1) -> Clicks:
    """Sessions of two clicks. The item that follows each item is drawn again every `lasting` sessions."""
    rng = np.random.default_rng(seed)
    follows = np.array([rng.permutation(ITEMS) for _ in range(-(-sessions // lasting))])
    first = rng.integers(0, ITEMS, sessions)
    item = np.stack([first, follows[np.arange(sessions) // lasting, first]], axis=1).reshape(-1)
    time = 1e9 + SESSION_S * np.repeat(np.arange(sessions), 2) + np.tile([0.0, 10.0], sessions)
    return Clicks(np.arange(2, 2 * sessions + 2, 2), item.astype(np.int32), time)


@pytest.mark.slow
@pytest.mark.parametrize(("lasting", "expected"), [(300, 100), (100_000, 100_000)])
def test_half_lives_follow_how_fast_the_data_change(
    lasting: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_lives, "TRANSITION_SESSIONS", (100, 100_000))
    monkeypatch.setattr(half_lives, "POPULARITY_SESSIONS", ())
    lines: list[str] = []
    found = choose(shop_with, changing_clicks(3000, lasting), lines.append, queries=1200)
    days = found.transitions / 86_400.0
    assert len(lines) == 3 and lines[-1].startswith("half-lives, 3 of 3: "), lines
    # If nothing ever changes, the longest half-life or one that is as good.
    assert days == pytest.approx(expected * SESSION_S / 86_400.0, rel=1e-3) or (expected > 100 and days >= 30), lines
    assert found.popularity == HALF_LIVES.popularity


def test_few_clicks_leave_the_default_half_lives() -> None:
    lines: list[str] = []
    assert choose(shop_with, changing_clicks(100, 10), lines.append) == HALF_LIVES
    assert "too few clicks" in lines[0]


@pytest.mark.slow
def test_without_hits_all_half_lives_have_the_loss_of_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    clicks = changing_clicks(3000, 1)
    # No item occurs twice.
    distinct = Clicks(clicks.ends, np.arange(len(clicks.item), dtype=np.int32), clicks.time)
    lines: list[str] = []
    large_shop = partial(OfflineShop, [str(k) for k in range(len(clicks.item))])
    assert choose(large_shop, distinct, lines.append, queries=1200) == HALF_LIVES
    assert len(lines) == 7 and lines[-1].startswith("half-lives, 7 of 7: ") and lines[-1].endswith("loss 8.6995 nats")


def test_a_resumed_training_does_not_choose_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_lives, "choose", lambda *a: HalfLives((1.0, 2.0, 3.0), 4.0))
    cache = StepCache(tmp_path, "inputs", ignore_line)
    assert choose_once(shop_with, changing_clicks(10, 1), ignore_line, cache) == HalfLives((1.0, 2.0, 3.0), 4.0)
    monkeypatch.setattr(half_lives, "choose", lambda *a: pytest.fail("chosen again"))
    assert choose_once(shop_with, changing_clicks(10, 1), ignore_line, cache) == HalfLives((1.0, 2.0, 3.0), 4.0)


def test_a_ranker_keeps_the_half_lives_it_was_fitted_with(tmp_path: Path) -> None:
    lives = HalfLives((60.0, 600.0, 6000.0), 7000.0)
    fitted = Fit(np.zeros((F, 1), np.float32), 1.0, 2.0, 0.5)
    export(tmp_path, fitted, "a test", "2026-01-01T00:00:00Z", {}, half_lives=lives)
    assert Ranker(tmp_path).half_lives == lives
    export(tmp_path, fitted, "a test", "2026-01-01T00:00:00Z", {}, half_lives=lives._replace(transitions=0.0))
    with pytest.raises(ManifestError, match=r"half_lives .* 0\.0.*expected seconds"):
        Ranker(tmp_path)


def test_counters_decay_by_the_half_lives() -> None:
    lives = HalfLives((10.0, 100.0, 1000.0), 50.0)
    table = ItemTable(lives)
    table.fold("clicks", 0, view_activity("i1", 1e9, 0))
    (row,) = table.rows_of(table.fold("clicks", 0, view_activity("i1", 1e9 + 50.0, 1)))
    assert row["popular"] == pytest.approx([1 + 2.0**-5, 1 + 2.0**-0.5, 1 + 2.0**-0.05])
    assert row["seen"] == pytest.approx(1.5)
    signals = Signals(catalog_of(3), lives)
    assert signals.half_lives.tolist() == [10.0, 100.0, 1000.0, 50.0]
    assert lives.retention_s == 10_000.0
