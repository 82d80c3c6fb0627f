"""That the page benchmark makes the pages that it says it times."""

import numpy as np
import pytest

from deploy.bench import page
from deploy.bench.common import Plan
from stream.items.catalog import ITEM, Catalog
from stream.settings import Settings


def test_figures_have_every_batch_and_agree_with_each_other() -> None:
    figures = page.measure(Settings(), Plan(1.5, rounds=3), items=1000, shoppers=300, growth_items=(1000,), growth_events=(1, 10))  # fmt: skip
    batches = {"1", "32", "256"}
    assert set(figures["batch"]) == set(figures["cost_in_loads"]) == set(figures["stages"]) == batches
    assert 0.1 < figures["loads_us"] < 500
    for batch, pages in figures["batch"].items():
        assert pages > 0 and figures["cost_in_loads"][batch] > 1
        stages = figures["stages"][batch]
        assert set(stages) == {"decode", "fold", "retrieve", "phi", "score", "assemble", "encode"}
        assert all(us > 0 for us in stages.values())
        # Rounds differ, and so do their medians: no more than that they speak of the same thing.
        assert 0.3 < sum(stages.values()) * pages / 1e6 < 3
    assert 2_000 < figures["pages_bytes"] < 20_000
    assert 150 < figures["candidates"] <= 256
    assert set(figures["full"]) == set(figures["full_batch"]) == batches and min(figures["full"].values()) > 0
    assert all("history" in stages for stages in figures["full_stages"].values())
    growth = figures["growth"]
    assert set(growth["items"]) == {"1000"} and set(growth["events"]) == {"1", "10"}
    assert all(us > 0 for of in ("items", "events") for us in growth[of].values())
    told = page.table(figures)
    assert "in loads" in told and "items of the catalogue   1,000: " in told


def test_the_shop_made_of_arrays_is_what_its_records_come_to() -> None:
    made, applied = page.catalog_of(1500), Catalog()
    assert applied.apply(page.records_of(1500)) == []
    assert made.items[:1500].tobytes() == applied.items[:1500].tobytes()
    assert made.index.get_all(made.items["id"]).tolist() == list(range(1500))
    for row in (0, 1, 777, 1499):
        start, end = made.fragment_at[row]
        other, last = applied.fragment_at[row]
        assert made.fragments[start:end].tobytes() == applied.fragments[other:last].tobytes()
    for key in np.unique(made.items["category"]).tolist():
        assert made.names[key] == applied.names[key]


def test_every_item_of_the_shop_has_a_full_list_of_other_neighbours() -> None:
    near = page.shop_of(1000).signals.neighbour_rows[:1000]
    assert (near >= 0).all() and (near < 1000).all()
    assert all(len(set(of)) == near.shape[1] and row not in of for row, of in enumerate(near.tolist()))


def test_histories_reach_from_one_event_to_a_few_hundred() -> None:
    assert page.spread(5000).min() == 1 and 100 < page.spread(5000).max() <= 400


def test_two_rows_of_one_id_make_no_catalogue() -> None:
    rows = np.zeros(2, ITEM)
    rows["id"] = 5
    with pytest.raises(ValueError, match="2 items have 1 ids"):
        Catalog.from_rows(rows, [b"a", b"b"])
