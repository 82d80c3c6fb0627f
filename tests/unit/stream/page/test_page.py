"""Pages: eligible items, page rules, exact propensities, and bytes that equal the payload types."""

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.codes import GEN_ANCHOR, GEN_POPULAR, MAX_PAGE_ITEMS, REASONS, SLOT_BECAUSE, SLOT_FOR_YOU, SLOTS
from stream.events import CLICK, HIDE
from stream.ids import key64
from stream.items.catalog import Catalog
from stream.page.assembly import UNIFORM_SHARE, PageRules, Placements, assemble, uniform
from stream.page.candidates import Candidates, retrieve, retrieve_popular
from stream.page.encode import PageHead, encode_impressions, encode_pages, page_id, slot_head, unpack_phi
from stream.page.json_kernels import float16_bits
from stream.page.schemas import Homepage, Impression, schemas
from stream.profile.fold import blank, fold
from tests.harness.events import NOW, plain, row, rows
from tests.harness.shop import catalog_of, item, signals_of

GOLDEN = Path(__file__).parents[2] / "golden"


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


@given(st.integers(0, 2**32), st.integers(0, 120), st.booleans(), st.booleans(), st.integers(1, 4))
@settings(max_examples=120, deadline=None)
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


def test_candidates_are_showable_distinct_and_keep_their_generators() -> None:
    catalog = catalog_of(40)
    signals = signals_of(catalog, [["i1", "i2", "i3"]] * 4 + [["i1", "i6"]] * 3 + [[f"i{k}"] for k in range(40)])
    catalog.apply([item("i2", available=False), item("i4", expires_at="2025-01-01T00:00:00Z"), (b"i5", None)])
    profile = blank(1)
    fold(profile, np.zeros(2, np.int32), rows(row(CLICK, "i1", NOW), row(HIDE, "i6", NOW)))
    found = retrieve(profile, np.array([NOW]), catalog, signals, signals.trending(NOW))
    names = [catalog.item_id(r) for r in found.rows[0, : found.count[0]]]
    assert len(set(names)) == len(names) == 36
    assert not {"i2", "i4", "i5", "i6"} & set(names), "sold out, expired, deleted, hidden"
    assert names[0] == "i1" and names[1] == "i3", "the last item, then its neighbour"
    assert (found.rows[0, found.count[0] :] == -1).all()
    assert (found.generators[0, : found.count[0]] > 0).all()
    common, share = retrieve_popular(profile, np.array([NOW]), catalog, signals.trending(NOW))
    assert share.sum() == pytest.approx(1.0, abs=1e-5)
    assert key64("i6") not in catalog.items["id"][common.rows[0, : common.count[0]]]


def test_candidates_have_a_title_in_the_shoppers_language() -> None:
    catalog = Catalog()
    catalog.apply([item("both"), item("en", title={"en": "x"}), item("zh", title={"zh": "物"}), item("any", title="x")])
    signals = signals_of(catalog, [["both", "en", "zh", "any"]])
    for locale, expected in ((1, {"both", "en", "any"}), (2, {"both", "zh", "any"}), (0, {"both", "en", "any"})):
        profile = blank(1)
        profile["locale"] = locale
        found = retrieve(profile, np.array([NOW]), catalog, signals, signals.trending(NOW))
        assert {catalog.item_id(r) for r in found.rows[0, : found.count[0]]} == expected


def encoded_pages(seed: int = 1, n: int = 90) -> tuple[list[bytes], Any, list[PageHead], Catalog]:
    catalog = catalog_of(130)
    candidates, scores = candidates_of(np.random.default_rng(seed), catalog, 3, n)
    placements = assemble(candidates, scores, np.array([True, False, True]), np.arange(3), catalog, PageRules())
    placements.placed["weight"] = np.random.default_rng(seed).normal(0, 3, placements.placed.shape)
    placements.placed["reason_row"][:, ::3] = 7
    placements.placed["reason_row"][:, 1::3] = catalog.row(key64("known to the signals only"))
    heads = [PageHead(f'u"{k}台', 40 + k, NOW + k, NOW + 3600, f"e{k}", NOW - 1.5, "full") for k in range(3)]
    slots = [slot_head(k, f'T{k} "台"', "gpt2" if k % 2 else "template") for k in range(1, len(SLOTS))]
    slot_of = np.tile(np.arange(-1, len(SLOTS) - 1, dtype=np.int32), (3, 1))
    pages = encode_pages(
        placements.placed, placements.count, heads, slots, slot_of, catalog, "sha256:r", None, None, ["brand_cap:2"]
    )
    return pages, placements, heads, catalog


@pytest.mark.parametrize(("seed", "n"), [(1, 90), (2, 5), (3, 0)])
def test_encoded_pages_decode_to_the_payload_types(seed: int, n: int) -> None:
    pages, placements, heads, catalog = encoded_pages(seed, n)
    for u, page in enumerate(pages):
        decoded = msgspec.json.decode(page, type=Homepage)
        assert (decoded.user_key, decoded.version) == (heads[u].user_key, 40 + u)
        assert decoded.page_id == page_id(heads[u].user_key, 40 + u)
        flat = [(SLOTS.index(slot.slot), i) for slot in decoded.slots for i in slot.items]
        assert len(flat) == placements.count[u]
        for (slot, got), put in zip(flat, shown(placements, u), strict=True):
            assert (got.item_id, slot, got.position) == (catalog.item_id(put["row"]), put["slot"], put["position"])
            assert got.score == pytest.approx(put["score"], abs=1e-8)
            assert got.propensity == pytest.approx(put["propensity"], abs=1e-8)
            assert got.reason.weight == pytest.approx(put["weight"], abs=1e-6)
            assert got.reason.code == REASONS[put["reason"]]
            assert got.reason.item_id == ("i7" if put["reason_row"] == 7 else None)
        assert json.loads(page) == msgspec.to_builtins(decoded) | {"slots": json.loads(page)["slots"]}
        jsonschema.validate(json.loads(page), schemas()["homepage/1"])


def test_impressions_hold_the_items_shown_and_their_phi() -> None:
    _, placements, heads, catalog = encoded_pages()
    rng = np.random.default_rng(0)
    phi = [(rng.random((c, 61)) * (rng.random((c, 61)) < 0.4)).astype(np.float32) for c in placements.count]
    joint = np.concatenate(phi)
    for u, value in enumerate(encode_impressions(placements.placed, placements.count, heads, joint, catalog, "r", "h")):
        decoded = msgspec.json.decode(value, type=Impression)
        jsonschema.validate(json.loads(value), schemas()["impression/1"])
        assert [i.item_id for i in decoded.items] == [catalog.item_id(r) for r in shown(placements, u)["row"]]
        np.testing.assert_allclose(unpack_phi(base64.b64decode(decoded.phi), 61), phi[u], atol=1e-3)
        halves = np.pad(phi[u], ((0, 0), (0, 1))).astype("<f2")
        packed = plain(halves.view(np.dtype([("words", "<i4", 31)]))[:, 0], 1)
        assert decoded.phi == base64.b64encode(b"".join(packed)).decode()
    with pytest.raises(ValueError):
        unpack_phi(base64.b64decode(decoded.phi)[:-1], 61)


def test_float16_conversion_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    edges = [(top << 13) + d for top in range(0, 1 << 19, 7) for d in (-1, 0, 1, 0xFFF, 0x1000, 0x1001)]
    bits = np.array([*edges, *rng.integers(-(2**31), 2**31, 20_000)], np.int64).astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = bits.view(np.float32).astype(np.float16).view(np.uint16)
    found = np.array([float16_bits(np.int64(b)) for b in bits])
    wrong = np.flatnonzero(found != expected)
    assert not len(wrong), [(hex(bits[k]), hex(found[k]), hex(expected[k])) for k in wrong[:5]]


def test_because_you_viewed_needs_two_items() -> None:
    catalog = catalog_of(30)
    candidates, scores = candidates_of(np.random.default_rng(1), catalog, 1, 30)
    candidates.generators[:] = GEN_POPULAR
    candidates.generators[0, 3] = GEN_ANCHOR
    page = shown(assemble(candidates, scores, np.array([True]), np.array([1]), catalog, PageRules()))
    assert page["slot"][0] == SLOT_FOR_YOU
    assert SLOT_BECAUSE not in page["slot"]


@pytest.mark.parametrize("name", ["homepage-1", "impression-1", "event-1", "item-1"])
def test_stored_golden_payloads_are_still_readable(name: str) -> None:
    from stream.events import decode
    from stream.items.catalog import decode_item

    value = (GOLDEN / f"{name}.json").read_bytes()
    schema = schemas()[name.replace("-", "/")]
    jsonschema.validate(json.loads(value), schema)
    match name:
        case "homepage-1":
            assert msgspec.json.decode(value, type=Homepage).version == 42
        case "impression-1":
            assert unpack_phi(base64.b64decode(msgspec.json.decode(value, type=Impression).phi), 3).shape == (1, 3)
        case "event-1":
            assert decode(value, b"u1", "clicks").type == "select_item"
        case _:
            assert decode_item(b"SKU1", value).price == 49.9


def test_schemas_reject_a_propensity_of_zero() -> None:
    page = json.loads((GOLDEN / "homepage-1.json").read_bytes())
    page["slots"][0]["items"][0]["propensity"] = 0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(page, schemas()["homepage/1"])
