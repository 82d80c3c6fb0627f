"""Comparison of profiles that may have been folded in different orders."""

from typing import Any

import numpy as np

from stream.profile.row import PROFILE

COUNTERS = ("category", "brand", "word")  # tables of decayed weights by key
ITEM_TABLES = (("cart_item", "cart_time", "cart_quantity"), ("hidden_item", "hidden_time"))
ITEM_RINGS = ("recent_item", "recent_time", "recent_kind", "bought_item", "bought_time")


def assert_equal_profiles(one: Any, other: Any) -> None:
    """Two PROFILE rows have the same contents: counters up to rounding, tables in any order, the rest exactly."""
    for field in PROFILE.names or ():
        if field in COUNTERS or field.endswith("_weight") or field.startswith(("cart", "hidden")):
            continue  # tables have no order and are compared below
        if PROFILE.fields is not None and PROFILE.fields[field][0].base.kind == "f" and not field.endswith("_time"):
            np.testing.assert_allclose(other[field], one[field], rtol=1e-9, atol=1e-30, err_msg=field)
        else:
            np.testing.assert_array_equal(other[field], one[field], err_msg=field)
    for field in COUNTERS:
        pairs = [{int(k): w for k, w in zip(p[field], p[f"{field}_weight"], strict=True) if k} for p in (one, other)]
        assert pairs[0].keys() == pairs[1].keys()
        for key in pairs[0]:
            np.testing.assert_allclose(pairs[1][key], pairs[0][key], rtol=1e-9, atol=1e-30)
    assert item_tables(one) == item_tables(other)


def item_tables(profile: Any) -> list[list[tuple[Any, ...]]]:
    """Entries of the cart and of the hidden items, each sorted."""
    return [sorted(zip(*(profile[field].tolist() for field in fields), strict=True)) for fields in ITEM_TABLES]
