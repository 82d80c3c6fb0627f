"""Encoded pages and impressions equal their payload types, and golden payloads stay readable."""

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest

from stream.codes import REASONS, SLOTS
from stream.events.decode import decode
from stream.ids import key64
from stream.items.catalog import Catalog, decode_item
from stream.page.assembly import PageRules, assemble
from stream.page.encode import Models, PageHead, encode_impressions, encode_pages, page_id, slot_head, unpack_phi
from stream.page.json_kernels import float16_bits
from stream.page.schemas import Homepage, Impression, Serving, schemas
from tests.harness.events import NOW, plain
from tests.harness.shop import candidates_of, catalog_of, shown

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = Models("sha256:r", "mlp", "sha256:h")


def encoded_pages(seed: int = 1, n: int = 90) -> tuple[list[bytes], Any, list[PageHead], Catalog]:
    catalog = catalog_of(130)
    candidates, scores = candidates_of(np.random.default_rng(seed), catalog, 3, n)
    placements = assemble(candidates, scores, np.array([True, False, True]), np.arange(3), catalog, PageRules())
    placements.placed["weight"] = np.random.default_rng(seed).normal(0, 3, placements.placed.shape)
    placements.placed["reason_row"][:, ::3] = 7
    placements.placed["reason_row"][:, 1::3] = catalog.row(key64("known to the signals only"))
    heads = [PageHead(f'u"{k}台', 40 + k, NOW + k, NOW + 3600, f"e{k}", NOW - 1.5, "full", "zh") for k in range(3)]
    slots = [slot_head(k, f'T{k} "台"', "gpt2" if k % 2 else "template") for k in range(1, len(SLOTS))]
    slot_of = np.tile(np.arange(-1, len(SLOTS) - 1, dtype=np.int32), (3, 1))
    pages = encode_pages(placements.placed, placements.count, heads, slots, slot_of, catalog, MODELS, ["brand_cap:2"])
    return pages, placements, heads, catalog


@pytest.mark.parametrize(("seed", "n"), [(1, 90), (2, 5), (3, 0)])
def test_encoded_pages_decode_to_the_payload_types(seed: int, n: int) -> None:
    pages, placements, heads, catalog = encoded_pages(seed, n)
    for u, page in enumerate(pages):
        decoded = msgspec.json.decode(page, type=Homepage)
        assert (decoded.user_key, decoded.version) == (heads[u].user_key, 40 + u)
        assert decoded.locale == "zh"
        assert decoded.page_id == page_id(heads[u].user_key, 40 + u)
        assert decoded.serving == Serving("full", "sha256:r", "sha256:h", None, "mlp")
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
    values = encode_impressions(placements.placed, placements.count, heads, joint, catalog, MODELS, "h")
    for u, value in enumerate(values):
        decoded = msgspec.json.decode(value, type=Impression)
        assert (decoded.ranker, decoded.head, decoded.history) == ("sha256:r", "mlp", "sha256:h")
        jsonschema.validate(json.loads(value), schemas()["impression/1"])
        assert [i.item_id for i in decoded.items] == [catalog.item_id(r) for r in shown(placements, u)["row"]]
        np.testing.assert_allclose(unpack_phi(base64.b64decode(decoded.phi), 61), phi[u], atol=1e-3)
        halves = np.pad(phi[u], ((0, 0), (0, 1))).astype("<f2")
        packed = plain(halves.view(np.dtype([("words", "<i4", 31)]))[:, 0], 1)
        assert decoded.phi == base64.b64encode(b"".join(packed)).decode()
    with pytest.raises(ValueError):
        unpack_phi(base64.b64decode(decoded.phi)[:-1], 61)


@pytest.mark.slow
def test_float16_conversion_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    edges = [(top << 13) + d for top in range(0, 1 << 19, 7) for d in (-1, 0, 1, 0xFFF, 0x1000, 0x1001)]
    bits = np.array([*edges, *rng.integers(-(2**31), 2**31, 20_000)], np.int64).astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = bits.view(np.float32).astype(np.float16).view(np.uint16)
    found = np.array([float16_bits(np.int64(b)) for b in bits])
    wrong = np.flatnonzero(found != expected)
    assert not len(wrong), [(hex(bits[k]), hex(found[k]), hex(expected[k])) for k in wrong[:5]]


@pytest.mark.parametrize("name", ["homepage-1", "homepage-1-locale", "impression-1", "event-1", "item-1"])
def test_stored_golden_payloads_are_still_readable(name: str) -> None:
    value = (GOLDEN / f"{name}.json").read_bytes()
    schema = schemas()[name.removesuffix("-locale").replace("-", "/")]
    jsonschema.validate(json.loads(value), schema)
    match name:
        case "homepage-1":
            page = msgspec.json.decode(value, type=Homepage)
            assert (page.version, page.locale) == (42, msgspec.UNSET), "earlier workers wrote no locale"
        case "homepage-1-locale":
            assert msgspec.json.decode(value, type=Homepage).locale == "zh"
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
