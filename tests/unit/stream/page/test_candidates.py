"""Retrieval: candidates are showable, distinct, in the shopper's language, and keep their generators."""

import numpy as np
import pytest

from stream.events.decode import CLICK, HIDE
from stream.ids import key64
from stream.items.catalog import Catalog
from stream.page.candidates import retrieve, retrieve_popular
from stream.profile.fold import fold
from stream.profile.row import blank_profiles
from tests.harness.events import NOW, row, rows
from tests.harness.shop import catalog_of, item, signals_of


def test_candidates_are_showable_distinct_and_keep_their_generators() -> None:
    catalog = catalog_of(40)
    signals = signals_of(catalog, [["i1", "i2", "i3"]] * 4 + [["i1", "i6"]] * 3 + [[f"i{k}"] for k in range(40)])
    catalog.apply([item("i2", available=False), item("i4", expires_at="2025-01-01T00:00:00Z"), (b"i5", None)])
    profile = blank_profiles(1)
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
        profile = blank_profiles(1)
        profile["locale"] = locale
        found = retrieve(profile, np.array([NOW]), catalog, signals, signals.trending(NOW))
        assert {catalog.item_id(r) for r in found.rows[0, : found.count[0]]} == expected
