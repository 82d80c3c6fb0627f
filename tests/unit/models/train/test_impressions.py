"""Training on impressions: clicks are joined with their pages, and position bias is separated from taste."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from deploy.io.files import InputError
from deploy.train.impressions import from_files, history_of_pages
from deploy.train.simulation import UniformScorer, simulate
from models.evaluation.metrics import RIDGE, HeldOutChoices, fit_position_weights, next_figures, page_figures
from models.ranker.columns import F, features_hash
from models.train.ranker.fit import Choices, examination, fit, position_features
from models.train.ranker.heads import fit_heads
from models.train.ranker.impressions import ERASED, UNKNOWN_HISTORY, ClickJoin, PageClick, PageClicks
from models.train.step_cache import StepCache
from stream.events.decode import FUTURE_TOLERANCE_S, Event
from stream.events.errors import EventError
from stream.name_patterns import NamePatterns
from tests.harness.events import NOW, record
from tests.harness.training import ignore_line

SLOPE = 0.3  # of the synthetic examination: logits a position


def event(*args: Any, **more: Any) -> Event:
    return msgspec.json.decode(record(*args, **more)[1], type=Event)


def on_page(page: str, **more: Any) -> dict[str, Any]:
    """Data of an event with an attribution to a page."""
    return {"attribution": {"page_id": page, "slot": "for_you", "position": 1}, **more}


@pytest.mark.slow
def test_impressions_and_simulated_pages_give_the_same_choices(tmp_path: Path) -> None:
    simulation = simulate(UniformScorer(), 12, 8, seed=3)
    pages, events = tmp_path / "pages.jsonl", tmp_path / "events.jsonl"
    pages.write_bytes(b"\n".join([*simulation.impressions, b'{"schema":"impression/1", torn']))
    events.write_bytes(b"\n".join([*simulation.events, b"{", simulation.events[0]]))
    log: list[str] = []
    joined = from_files([pages, events], log.append)
    choices, expected = joined.choices, simulation.choices
    assert len(choices.chosen) == len(expected.chosen) > 20 and not joined.left_out
    assert (np.diff(joined.time) >= 0).all()

    def contents(choices: Choices) -> Counter[bytes]:
        assert choices.position is not None and choices.about is not None
        starts = choices.ends - np.diff(choices.ends, prepend=0)
        return Counter(
            choices.phi[start:end].astype(np.float16).tobytes() + choices.position[start:end].tobytes()
            + bytes([chosen]) + about.tobytes()
            for start, end, chosen, about in zip(starts, choices.ends, choices.chosen, choices.about, strict=True)
        )  # fmt: skip

    assert contents(choices) == contents(expected)
    assert choices.held is not None and choices.held.any() and not choices.held.all()
    assert joined.time[choices.held].min() > joined.time[~choices.held].max(), "the newest are held out"
    text = "\n".join(log)
    assert (
        f"{pages} line {len(simulation.impressions) + 1}: not an impression" in text and "2 lines were refused" in text
    )
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_bytes(b"\n".join([*simulation.events[::-1], *simulation.impressions[::-1]]))
    again = from_files([backwards], log.append).choices.arrays()
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in choices.arrays().items()}


def impression(page: str, user: str = "u1", **more: Any) -> bytes:
    phi = np.ones((2, F), np.float16)
    words = -(-F // 2)
    rows = [
        b"\x01" + b"\xff" * (words // 8) + (bytes([(1 << words % 8) - 1]) if words % 8 else b"")
        + np.resize(row, 2 * words).astype("<f2").tobytes()
        for row in phi
    ]  # fmt: skip
    shown = [
        {"item_id": f"i{k}", "kind": "product", "slot": "for_you", "position": k + 1, "score": 0.5, "propensity": 1.0,
         "explored": k == 1}
        for k in range(2)
    ]  # fmt: skip
    body = {
        "schema": "impression/1", "page_id": page, "user_key": user, "version": 1, "time": "2026-01-01T00:00:00.000Z",
        "ranker": "sha256:r", "features_hash": features_hash(), "phi": base64.b64encode(b"".join(rows)).decode(),
        "items": shown, **more,
    }  # fmt: skip
    return json.dumps(body).encode()


def test_clicks_without_their_page_are_counted_by_reason() -> None:
    page_clicks = PageClicks()
    for n, (user, page, item) in enumerate(
        [("u1", "p1", "i0"), ("u1", "p1", "i0"), ("u2", "p1", "i1"), ("u1", "p1", "i9"), ("u1", "p2", "i0"),
         ("u1", "p3", "i0"), ("u3", "p4", "i0"), ("u1", "p5", "i0")]
    ):  # fmt: skip
        page_clicks.add(event(user=user, id=str(n), item=item, time=NOW + n, **on_page(page)))
    page_clicks.add(event(id="none", item="i0"))
    page_clicks.add(event("view_homepage", user="u3", id="no", time=NOW + 99, consent={"personalization": False}))
    clicks, left_out = page_clicks.newest()
    assert left_out == {"they name no page": 1, "consent was refused": 1}
    assert clicks[0] == PageClick(NOW, "p1", "u1", "i0", 0), "the first of two clicks on the same item"
    refused: list[tuple[str, str]] = []
    join = ClickJoin(clicks, lambda place, reason: refused.append((place, reason)))
    join.add("1", impression("p1"))
    join.add("2", impression("p2", features_hash="sha256:other"))
    join.add("3", impression("p5", phi="AAAA"))
    join.add("4", impression("p9"))
    join.add("5", None)
    joined = join.joined()
    assert [place for place, _ in refused] == ["3", "5"] and "phi is 'AAAA'" in refused[0][1]
    assert len(joined.time) == 1 and joined.choices.phi.shape == (2, F) and (joined.choices.phi == 1).all()
    assert sum(joined.left_out.values()) == 5
    reasons = "\n".join(sorted(joined.left_out))
    for reason in ("another shopper's", "does not show the item", "is missing", "features_hash sha256:other"):
        assert reason in reasons


def test_a_ranker_is_fitted_with_the_history_model_of_its_pages() -> None:
    log: list[str] = []
    assert history_of_pages(["", "sha256:a", "", "sha256:a"], log.append) == "sha256:a", "pages under load had none"
    assert history_of_pages(["", ""], log.append) is None
    assert history_of_pages(["", UNKNOWN_HISTORY], log.append) is msgspec.UNSET
    assert not log
    assert history_of_pages(["sha256:a", "sha256:b", "sha256:b"], log.append) == "sha256:b"
    assert "several history models: sha256:b (2 clicks), sha256:a (1 clicks)" in log[0]


def test_impressions_of_earlier_releases_do_not_name_a_history_model() -> None:
    clicks = [PageClick(NOW + n, f"p{n}", "u1", "i0", 0) for n in range(3)]
    join = ClickJoin(clicks, lambda place, reason: None)
    stated: list[dict[str, Any]] = [{}, {"history": None}, {"history": "sha256:a"}]
    for n, more in enumerate(stated):
        join.add(str(n), impression(f"p{n}", **more))
    assert join.joined().histories == [UNKNOWN_HISTORY, "", "sha256:a"]


def test_clicks_of_excluded_shoppers_are_not_learnt_from() -> None:
    page_clicks = PageClicks(NamePatterns(["monitor-*"]))
    for user in ("u1", "monitor-1"):
        page_clicks.add(event(user=user, id=user, item="i0", **on_page("p1")))
    clicks, left_out = page_clicks.newest()
    assert [click.shopper for click in clicks] == ["u1"]
    assert left_out == {"SHOPWINDOW_EXCLUDE_SHOPPERS lists their shoppers": 1}


def test_clicks_and_pages_before_an_erasure_are_not_learnt_from() -> None:
    page_clicks = PageClicks()
    for user, page, time in (("u1", "p1", NOW), ("u1", "p2", NOW + 20), ("u1", "p3", NOW + 30), ("u2", "p4", NOW)):
        page_clicks.add(event(user=user, id=page, item="i0", time=time, **on_page(page)))
    page_clicks.add(event("erase", id="e", time=NOW + 10))
    page_clicks.add(event("erase", id="long ago", time=NOW - 10))
    clicks, left_out = page_clicks.newest()
    assert [click.page for click in clicks] == ["p4", "p2", "p3"] and left_out == {ERASED: 1}
    join = ClickJoin(clicks, lambda place, reason: pytest.fail(reason))
    for page, second, user in (("p2", 9, "u1"), ("p3", 25, "u1"), ("p4", 0, "u2")):
        join.add(page, impression(page, user, time=f"2026-01-01T00:00:{second:02}.000Z"))
    joined = join.joined()
    assert joined.time.tolist() == [NOW, NOW + 30] and joined.left_out == {ERASED: 1}


def test_invalid_times_are_refused_and_future_times_are_bounded_by_arrival() -> None:
    page_clicks = PageClicks()
    for year in ("0001", "1999", "2039", "9999"):
        wrong = json.loads(record(item="i0", **on_page("p1"))[1]) | {"time": f"{year}-12-31T00:00:00Z"}
        with pytest.raises(EventError, match=f"time is {year}"):
            page_clicks.add(msgspec.json.decode(json.dumps(wrong), type=Event))
    page_clicks.add(event(item="i0", time=NOW + 9e6, **on_page("p1")), arrived=NOW)
    assert [click.time for click in page_clicks.newest()[0]] == [NOW + FUTURE_TOLERANCE_S]
    reasons: list[str] = []
    join = ClickJoin(page_clicks.newest()[0], lambda place, reason: reasons.append(reason))
    for time in ("yesterday", "2026-01-01T00:00:00"):
        join.add("1", impression("p1", time=time))
    assert len(reasons) == 2 and "yesterday" in reasons[0] and "a zone" in reasons[1]


def test_a_tenth_is_held_out_even_if_all_times_are_equal() -> None:
    page_clicks = PageClicks()
    for k in range(50):
        page_clicks.add(event(user=f"u{k}", id=str(k), item="i0", **on_page(f"p{k}")))
    join = ClickJoin(page_clicks.newest()[0], lambda place, reason: pytest.fail(reason))
    for k in range(50):
        join.add(str(k), impression(f"p{k}", f"u{k}"))
    held = join.joined().choices.held
    assert held is not None and held.sum() == 5 and held[-5:].all()


def test_data_without_clicks_on_pages_are_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b"\n".join([impression("p1"), record(item="i0")[1]]))
    with pytest.raises(InputError, match=r"1 clicks: they name no page.*attribution\.page_id"):
        from_files([path], ignore_line)


def biased(n: int, seed: int, logged: np.ndarray, true: np.ndarray) -> Choices:
    """n clicks on pages of 20 items. Pages are ordered by `logged` . phi; shoppers choose by `true` . phi - SLOPE k.

    k is the position, so its examination is exp(-SLOPE k).
    """
    rng = np.random.default_rng(seed)
    phi = np.zeros((n, 20, F), np.float32)
    phi[:, :, :6] = rng.normal(size=(n, 20, 6))
    by_score = np.argsort(-(phi @ logged)[:, :, 0], axis=1)
    # The item at the sixth position is random, as pages explore.
    drawn = rng.integers(5, 20, n)
    page = np.arange(n)
    by_score[page, 5], by_score[page, drawn] = by_score[page, drawn], by_score[page, 5]
    phi = phi[page[:, None], by_score]
    utility = (phi @ true)[:, :, 0] - SLOPE * np.arange(20) + rng.gumbel(size=(n, 20))
    newest = np.zeros(n, np.bool_)
    newest[-n // 10 :] = True
    return Choices(
        phi.reshape(-1, F), np.arange(1, n + 1, dtype=np.int64) * 20, utility.argmax(axis=1).astype(np.int32),
        np.tile(np.arange(20, dtype=np.int32), n), held=newest,
    )  # fmt: skip


@pytest.mark.slow
def test_position_bias_is_separated_from_taste() -> None:
    logged, true = np.zeros((F, 1), np.float32), np.zeros((F, 1), np.float32)
    logged[:6, 0] = (1.5, 0.2, -0.5, 0.0, 0.8, 0.0)
    true[:6, 0] = (0.5, 1.0, -0.5, 0.5, 0.0, -1.0)
    choices = biased(12_000, 1, logged, true)
    fitted, naive = fit(choices, seed=1), fit(choices._replace(position=None), seed=1)
    naive_error, error = (np.abs(one.theta[:6, 0] - true[:6, 0]) for one in (naive, fitted))
    # Without positions, the features that put items on top look better than they are.
    assert naive_error.max() > 0.35 and naive.theta[4, 0] > 0.15, naive.theta[:6, 0]
    assert error.max() < 0.08, fitted.theta[:6, 0]
    assert examination(fitted.position_weights, 20) == pytest.approx(np.exp(-SLOPE * np.arange(20)), abs=0.15)

    def share_right(scores: np.ndarray) -> float:
        """Share of pages whose top item is the one the shopper likes best."""
        best = (choices.phi @ true).reshape(-1, 20).argmax(axis=1)
        return float((scores.reshape(-1, 20).argmax(axis=1) == best).mean())

    assert share_right(choices.phi @ fitted.theta) > share_right(choices.phi @ naive.theta) + 0.1
    assert fitted.loss < naive.loss - 0.05


@pytest.mark.slow
def test_the_serving_ranker_is_evaluated_with_its_own_examination() -> None:
    logged, true = np.zeros((F, 1), np.float32), np.zeros((F, 1), np.float32)
    logged[:3, 0], true[:3, 0] = (1.5, 0.2, -0.5), (0.5, 1.0, -0.5)
    choices = biased(4_000, 2, logged, true)
    assert choices.held is not None
    exact = (choices.phi @ true)[:, 0]
    weights = fit_position_weights(exact, choices, ~choices.held)
    assert examination(weights, 20) == pytest.approx(np.exp(-SLOPE * np.arange(20)), abs=0.15)
    new = fit(choices, seed=1)
    figures = page_figures(choices, new, None, (choices.phi @ logged)[:, 0])
    assert figures["held_out"] == 400 and figures["loss"] == pytest.approx(new.loss, abs=1e-3)
    assert figures["loss"] < figures["served_loss"] - 0.1
    assert figures["unbiased_MRR"] > figures["served_unbiased_MRR"] + 0.05
    # Items at the top are clicked more often because of their position. So, without weights, the serving order looks
    # better than it is.
    gain = figures["unbiased_MRR"] - figures["served_unbiased_MRR"]
    assert gain > figures["shown_MRR"] - figures["served_shown_MRR"]
    evaluation = HeldOutChoices(choices, choices.held, None)
    exact_error, sharp_error = (
        evaluation.calibration_error(evaluation.probabilities(scores, weights)) for scores in (exact, 4 * exact)
    )
    assert exact_error < 0.06 < sharp_error


@pytest.mark.parametrize("factor", [1.0, 10.0, 40.0])
def test_position_weights_reach_the_minimum_with_overconfident_scores(factor: float) -> None:
    rng = np.random.default_rng(3)
    scores = factor * rng.normal(size=(300, 20))
    clicked = (rng.gumbel(size=(300, 20)) - SLOPE * np.arange(20)).argmax(axis=1)
    choices = Choices(
        np.zeros((6000, F), np.float16), np.arange(1, 301) * 20, clicked.astype(np.int32),
        np.tile(np.arange(20, dtype=np.int32), 300),
    )  # fmt: skip
    fitted = fit_position_weights(scores.reshape(-1), choices, np.ones(300, np.bool_))

    def loss(weights: np.ndarray) -> float:
        logits = scores + position_features(np.arange(20, dtype=np.int32)).astype(np.float64) @ weights
        top = logits.max(axis=1)
        own = logits[np.arange(300), clicked]
        losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - own
        return float(losses.mean() + RIDGE * weights @ weights / 2)

    least = loss(fitted.astype(np.float64))
    assert least < loss(np.zeros(4)) - 0.1
    for direction in (*np.eye(4), *-np.eye(4)):
        assert loss(fitted + 0.05 * direction) > least - 1e-5, (fitted, direction)


@pytest.mark.slow
def test_figures_and_fit_need_choices() -> None:
    none = simulate(UniformScorer(), 1, 1, seed=1).choices
    assert len(none.chosen) == 0
    with pytest.raises(ValueError, match="give more --shoppers or --looks"):
        next_figures(none)
    with pytest.raises(ValueError, match="0 choices are too few"):
        fit(none)


def test_fitted_heads_are_read_from_the_cache(tmp_path: Path) -> None:
    choices = biased(300, 3, np.ones((F, 1), np.float32), np.ones((F, 1), np.float32))
    log: list[str] = []
    first, _ = fit_heads(choices, log.append, seed=1, cache=StepCache(tmp_path, "x", log.append))
    assert any("s left" in line and "held-out loss" in line for line in log)
    again, _ = fit_heads(choices, log.append, seed=1, cache=StepCache(tmp_path, "x", log.append))
    assert "heads-logit was finished before" in log
    assert again.theta.tobytes() == first.theta.tobytes() and again.loss == first.loss
