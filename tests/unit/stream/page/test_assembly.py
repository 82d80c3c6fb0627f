"""Page assembly: every page keeps its rules, and the exploring propensities are exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.codes import GEN_ANCHOR, GEN_POPULAR, MAX_PAGE_ITEMS, SLOT_BECAUSE_VIEWED, SLOT_FOR_YOU
from stream.page.assembly import UNIFORM_SHARE, PageRules, assemble, uniform
from stream.page.candidates import Candidates
from tests.harness.shop import candidates_of, catalog_of, shown


@pytest.mark.slow
@given(st.integers(0, 2**32), st.integers(0, 120), st.booleans(), st.booleans(), st.integers(1, 4))
@settings(deadline=None)
def test_every_page_keeps_the_rules(seed: int, n: int, personal: bool, explore: bool, cap: int) -> None:
    catalog = catalog_of(130)
    candidates, scores = candidates_of(np.random.default_rng(seed), catalog, 1, n)
    placements = assemble(candidates, scores, np.array([personal]), np.array([seed]), catalog, PageRules(cap, explore))
    page = shown(placements)
    assert len(page) <= MAX_PAGE_ITEMS
    assert len(set(page["row"])) == len(page), "an item appears twice"
    for slot in set(page["slot"].tolist()):
        items = page[page["slot"] == slot]
        assert items["position"].tolist() == list(range(1, len(items) + 1))
        assert items["score"].sum() == pytest.approx(1.0, abs=1e-5)
        brands = catalog.items["brand"][items["row"]]
        assert np.bincount(np.unique(brands, return_inverse=True)[1]).max() <= cap
    assert page["explored"].sum() == int(explore and len(page) > 0 and page["explored"].any())
    assert page["explored"].sum() <= 1
    assert (page["propensity"][page["explored"] == 0] == 1).all()
    assert ((page["propensity"] > 0) & (page["propensity"] <= 1)).all()
    assert (np.diff(page["slot"]) >= 0).all(), "slots are in page order"


def test_exploring_propensities_equal_simulated_frequencies() -> None:
    catalog = catalog_of(130)
    candidates, scores = candidates_of(np.random.default_rng(5), catalog, 1, 110)
    draws = 20_000
    many = Candidates(*(np.repeat(a, draws, 0) for a in (candidates.rows, candidates.generators, candidates.count)))
    placements = assemble(
        many, np.repeat(scores, draws, 0), np.ones(draws, bool), np.arange(draws), catalog, PageRules(brand_cap=40)
    )
    drawn = placements.placed[placements.placed["explored"] == 1]
    assert len(drawn) == draws
    others = [set(page[page["explored"] == 0]["row"].tolist()) for page in placements.placed[:50]]
    assert all(rows == others[0] for rows in others), "no other position depends on the draw"
    chances = {int(r): float(p) for r, p in zip(drawn["row"], drawn["propensity"], strict=True)}
    # Every item of the pool was drawn, so the propensities sum to one.
    assert sum(chances.values()) == pytest.approx(1.0, abs=1e-4)
    for r, chance in chances.items():
        frequency = (drawn["row"] == r).mean()
        assert abs(frequency - chance) < 5 * np.sqrt(chance * (1 - chance) / draws), (r, frequency, chance)
    assert min(chances.values()) >= UNIFORM_SHARE / len(chances) - 1e-6


def test_draws_are_uniform_and_stable_across_versions() -> None:
    draws = np.array([uniform(np.int64(seed)) for seed in range(-50_000, 50_000)])
    assert abs(draws.mean() - 0.5) < 0.005
    assert draws.min() >= 0 and draws.max() < 1
    assert uniform(np.int64(0)) == 0.8833108082136426


def test_because_you_viewed_needs_two_items() -> None:
    catalog = catalog_of(30)
    candidates, scores = candidates_of(np.random.default_rng(1), catalog, 1, 30)
    candidates.generators[:] = GEN_POPULAR
    candidates.generators[0, 3] = GEN_ANCHOR
    page = shown(assemble(candidates, scores, np.array([True]), np.array([1]), catalog, PageRules()))
    assert page["slot"][0] == SLOT_FOR_YOU
    assert SLOT_BECAUSE_VIEWED not in page["slot"]
