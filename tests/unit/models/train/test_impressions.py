"""The ranker learns from what pages showed: the clicks find their pages, and the eye's bias is told from taste."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from deploy.io.files import InputError
from deploy.train.impressions import from_files
from deploy.train.simulation import Uniform, simulate
from models.evaluation.metrics import RIDGE, Judged, fit_place, next_figures, page_figures
from models.ranker.columns import F, features_hash
from models.train.ranker.fit import Choices, examination, fit, position_features
from models.train.ranker.heads import fit_heads
from models.train.ranker.impressions import ERASED, Join, PageClick, PageClicks
from stream.events import FUTURE_TOLERANCE, Event, EventError
from tests.harness.events import NOW, record

SLOPE = 0.3  # of the synthetic eye, in logits a position


def event(*args: Any, **more: Any) -> Event:
    return msgspec.json.decode(record(*args, **more)[1], type=Event)


def on(page: str, **more: Any) -> dict[str, Any]:
    return {"attribution": {"page_id": page, "slot": "for_you", "position": 1}, **more}


def test_the_choices_of_impressions_are_those_that_pages_led_to(tmp_path: Path) -> None:
    one = simulate(Uniform(), 12, 8, seed=3)
    pages, events = tmp_path / "pages.jsonl", tmp_path / "events.jsonl"
    pages.write_bytes(b"\n".join([*one.impressions, b'{"schema":"impression/1", torn']))
    events.write_bytes(b"\n".join([*one.events, b"{", one.events[0]]))
    said: list[str] = []
    joined = from_files([pages, events], said.append)
    mine, theirs = joined.choices, one.choices
    assert len(mine.chosen) == len(theirs.chosen) > 20 and not joined.lost
    assert (np.diff(joined.time) >= 0).all()

    def told(choices: Choices) -> Counter[bytes]:
        assert choices.position is not None and choices.about is not None
        starts = choices.ends - np.diff(choices.ends, prepend=0)
        return Counter(
            choices.phi[start:end].astype(np.float16).tobytes() + choices.position[start:end].tobytes()
            + bytes([chosen]) + about.tobytes()
            for start, end, chosen, about in zip(starts, choices.ends, choices.chosen, choices.about, strict=True)
        )  # fmt: skip

    assert told(mine) == told(theirs)
    assert mine.held is not None and mine.held.any() and not mine.held.all()
    assert joined.time[mine.held].min() > joined.time[~mine.held].max(), "the newest are held out"
    text = "\n".join(said)
    assert f"{pages} line {len(one.impressions) + 1}: no impression" in text and "2 lines were refused" in text
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_bytes(b"\n".join([*one.events[::-1], *one.impressions[::-1]]))
    again = from_files([backwards], said.append).choices.arrays()
    assert {k: v.tobytes() for k, v in again.items()} == {k: v.tobytes() for k, v in mine.arrays().items()}


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
    found = PageClicks()
    for n, (user, page, item) in enumerate(
        [("u1", "p1", "i0"), ("u1", "p1", "i0"), ("u2", "p1", "i1"), ("u1", "p1", "i9"), ("u1", "p2", "i0"),
         ("u1", "p3", "i0"), ("u3", "p4", "i0"), ("u1", "p5", "i0")]
    ):  # fmt: skip
        found.add(event(user=user, id=str(n), item=item, time=NOW + n, **on(page)))
    found.add(event(id="none", item="i0"))
    found.add(event("view_homepage", user="u3", id="no", time=NOW + 99, consent={"personalization": False}))
    clicks, lost = found.taken()
    assert lost == {"they name no page": 1, "consent was refused": 1}
    assert clicks[0] == PageClick(NOW, "p1", "u1", "i0", 0), "the first of two clicks on the same item"
    bad: list[tuple[str, str]] = []
    join = Join(clicks, lambda where, why: bad.append((where, why)))
    join.add("1", impression("p1"))
    join.add("2", impression("p2", features_hash="sha256:other"))
    join.add("3", impression("p5", phi="AAAA"))
    join.add("4", impression("p9"))
    join.add("5", None)
    joined = join.joined()
    assert [where for where, _ in bad] == ["3", "5"] and "phi is 'AAAA'" in bad[0][1]
    assert len(joined.time) == 1 and joined.choices.phi.shape == (2, F) and (joined.choices.phi == 1).all()
    assert sum(joined.lost.values()) == 5
    told = "\n".join(sorted(joined.lost))
    for why in ("another shopper's", "does not show the item", "is not there", "features_hash sha256:other"):
        assert why in told


def test_of_whoever_asked_to_be_erased_neither_clicks_nor_pages_of_before_are_learnt_from() -> None:
    found = PageClicks()
    for user, page, time in (("u1", "p1", NOW), ("u1", "p2", NOW + 20), ("u1", "p3", NOW + 30), ("u2", "p4", NOW)):
        found.add(event(user=user, id=page, item="i0", time=time, **on(page)))
    found.add(event("erase", id="e", time=NOW + 10))
    found.add(event("erase", id="long ago", time=NOW - 10))
    clicks, lost = found.taken()
    assert [click.page for click in clicks] == ["p4", "p2", "p3"] and lost == {ERASED: 1}
    join = Join(clicks, lambda where, why: pytest.fail(why))
    for page, second, user in (("p2", 9, "u1"), ("p3", 25, "u1"), ("p4", 0, "u2")):
        join.add(page, impression(page, user, time=f"2026-01-01T00:00:{second:02}.000Z"))
    joined = join.joined()
    assert joined.time.tolist() == [NOW, NOW + 30] and joined.lost == {ERASED: 1}


def test_times_that_cannot_be_are_refused_and_the_future_is_what_came_next() -> None:
    found = PageClicks()
    for year in ("0001", "1999", "2039", "9999"):
        odd = json.loads(record(item="i0", **on("p1"))[1]) | {"time": f"{year}-12-31T00:00:00Z"}
        with pytest.raises(EventError, match=f"time is {year}"):
            found.add(msgspec.json.decode(json.dumps(odd), type=Event))
    found.add(event(item="i0", time=NOW + 9e6, **on("p1")), arrived=NOW)
    assert [click.time for click in found.taken()[0]] == [NOW + FUTURE_TOLERANCE]
    bad: list[str] = []
    join = Join(found.taken()[0], lambda where, why: bad.append(why))
    for time in ("yesterday", "2026-01-01T00:00:00"):
        join.add("1", impression("p1", time=time))
    assert len(bad) == 2 and "yesterday" in bad[0] and "a zone" in bad[1]


def test_a_tenth_is_held_out_though_all_clicks_are_of_one_moment() -> None:
    found = PageClicks()
    for k in range(50):
        found.add(event(user=f"u{k}", id=str(k), item="i0", **on(f"p{k}")))
    join = Join(found.taken()[0], lambda where, why: pytest.fail(why))
    for k in range(50):
        join.add(str(k), impression(f"p{k}", f"u{k}"))
    held = join.joined().choices.held
    assert held is not None and held.sum() == 5 and held[-5:].all()


def test_without_a_click_on_a_page_it_says_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b"\n".join([impression("p1"), record(item="i0")[1]]))
    with pytest.raises(InputError, match=r"1 clicks: they name no page.*attribution\.page_id"):
        from_files([path], lambda line: None)


def biased(n: int, seed: int, logged: np.ndarray, true: np.ndarray) -> Choices:
    """Pages of 20 items in the order of `logged` . phi, clicked by `true` . phi and an eye that comes to place k by exp(-SLOPE k)."""
    rng = np.random.default_rng(seed)
    phi = np.zeros((n, 20, F), np.float32)
    phi[:, :, :6] = rng.normal(size=(n, 20, 6))
    by_score = np.argsort(-(phi @ logged)[:, :, 0], axis=1)
    # The last of the first six places is drawn by chance, as pages explore.
    drawn = rng.integers(5, 20, n)
    who = np.arange(n)
    by_score[who, 5], by_score[who, drawn] = by_score[who, drawn], by_score[who, 5]
    phi = phi[who[:, None], by_score]
    worth = (phi @ true)[:, :, 0] - SLOPE * np.arange(20) + rng.gumbel(size=(n, 20))
    newest = np.zeros(n, np.bool_)
    newest[-n // 10 :] = True
    return Choices(
        phi.reshape(-1, F), np.arange(1, n + 1, dtype=np.int64) * 20, worth.argmax(axis=1).astype(np.int32),
        np.tile(np.arange(20, dtype=np.int32), n), held=newest,
    )  # fmt: skip


def test_the_bias_of_the_eye_is_told_from_taste() -> None:
    logged, true = np.zeros((F, 1), np.float32), np.zeros((F, 1), np.float32)
    logged[:6, 0] = (1.5, 0.2, -0.5, 0.0, 0.8, 0.0)
    true[:6, 0] = (0.5, 1.0, -0.5, 0.5, 0.0, -1.0)
    choices = biased(12_000, 1, logged, true)
    ours, naive = fit(choices, seed=1), fit(choices._replace(position=None), seed=1)
    wrong, left = (np.abs(one.theta[:6, 0] - true[:6, 0]) for one in (naive, ours))
    # What put items on top looks better than it is.
    assert wrong.max() > 0.35 and naive.theta[4, 0] > 0.15, naive.theta[:6, 0]
    assert left.max() < 0.08, ours.theta[:6, 0]
    assert examination(ours.place, 20) == pytest.approx(np.exp(-SLOPE * np.arange(20)), abs=0.15)

    def truth(scores: np.ndarray) -> float:
        """How often the favourite of a page is what she likes best."""
        best = (choices.phi @ true).reshape(-1, 20).argmax(axis=1)
        return float((scores.reshape(-1, 20).argmax(axis=1) == best).mean())

    assert truth(choices.phi @ ours.theta) > truth(choices.phi @ naive.theta) + 0.1
    assert ours.loss < naive.loss - 0.05


def test_what_serves_is_judged_beside_the_new_one_with_an_eye_of_its_own() -> None:
    logged, true = np.zeros((F, 1), np.float32), np.zeros((F, 1), np.float32)
    logged[:3, 0], true[:3, 0] = (1.5, 0.2, -0.5), (0.5, 1.0, -0.5)
    choices = biased(4_000, 2, logged, true)
    assert choices.held is not None
    exact = (choices.phi @ true)[:, 0]
    place = fit_place(exact, choices, ~choices.held)
    assert examination(place, 20) == pytest.approx(np.exp(-SLOPE * np.arange(20)), abs=0.15)
    new = fit(choices, seed=1)
    figures = page_figures(choices, new, None, (choices.phi @ logged)[:, 0])
    assert figures["held_out"] == 400 and figures["loss"] == pytest.approx(new.loss, abs=1e-3)
    assert figures["loss"] < figures["served_loss"] - 0.1
    assert figures["unbiased_MRR"] > figures["served_unbiased_MRR"] + 0.05
    # What was clicked is near the top in part because it was: unweighted, the order of before looks better than it is.
    gain = figures["unbiased_MRR"] - figures["served_unbiased_MRR"]
    assert gain > figures["shown_MRR"] - figures["served_shown_MRR"]
    judged = Judged(choices, choices.held, None)
    sure = judged.shares(exact, place)
    assert judged.calibration_error(sure) < 0.06 < judged.calibration_error(judged.shares(4 * exact, place))


@pytest.mark.parametrize("sure", [1.0, 10.0, 40.0])
def test_the_eye_is_found_beside_a_ranker_that_is_surer_than_it_may_be(sure: float) -> None:
    rng = np.random.default_rng(3)
    scores = sure * rng.normal(size=(300, 20))
    clicked = (rng.gumbel(size=(300, 20)) - SLOPE * np.arange(20)).argmax(axis=1)
    choices = Choices(
        np.zeros((6000, F), np.float16), np.arange(1, 301) * 20, clicked.astype(np.int32),
        np.tile(np.arange(20, dtype=np.int32), 300),
    )  # fmt: skip
    place = fit_place(scores.reshape(-1), choices, np.ones(300, np.bool_))

    def loss(weights: np.ndarray) -> float:
        of = scores + position_features(np.arange(20, dtype=np.int32)).astype(np.float64) @ weights
        top = of.max(axis=1)
        own = of[np.arange(300), clicked]
        return float((np.log(np.exp(of - top[:, None]).sum(axis=1)) + top - own).mean() + RIDGE * weights @ weights / 2)

    least = loss(place.astype(np.float64))
    assert least < loss(np.zeros(4)) - 0.1
    for aside in (*np.eye(4), *-np.eye(4)):
        assert loss(place + 0.05 * aside) > least - 1e-5, (place, aside)


def test_without_a_choice_there_is_nothing_to_judge_by() -> None:
    none = simulate(Uniform(), 1, 1, seed=1).choices
    assert len(none.chosen) == 0
    with pytest.raises(ValueError, match="give more --shoppers or --looks"):
        next_figures(none)
    with pytest.raises(ValueError, match="0 choices are too few"):
        fit(none)


def test_both_heads_are_kept(tmp_path: Path) -> None:
    from models.train.step_cache import StepCache

    choices = biased(300, 3, np.ones((F, 1), np.float32), np.ones((F, 1), np.float32))
    said: list[str] = []
    first, _ = fit_heads(choices, said.append, seed=1, finished=StepCache(tmp_path, "x", said.append))
    assert any("s left" in line and "held-out loss" in line for line in said)
    again, _ = fit_heads(choices, said.append, seed=1, finished=StepCache(tmp_path, "x", said.append))
    assert "heads-logit was finished before" in said
    assert again.theta.tobytes() == first.theta.tobytes() and again.loss == first.loss
