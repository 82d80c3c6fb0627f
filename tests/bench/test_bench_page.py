"""The page benchmark runs end to end, and its workload is what it describes."""

import json

import numpy as np
import pytest

from deploy.bench import page
from deploy.bench.common import Plan
from deploy.bench.page_workload import catalog_of, history_lengths, records_of, shop_of
from stream.items.catalog import ITEM, Catalog
from stream.settings import Settings

STAGES = {"decode", "fold", "retrieve", "phi", "score", "assemble", "encode"}


def test_figures_have_every_batch_and_stage() -> None:
    figures = page.measure(
        Settings(), Plan(1.5, rounds=3), items=1000, shoppers=300, growth_items=(1000,), growth_events=(1, 10)
    )
    assert figures.keys() == {
        "batch", "loads_us", "cost_in_loads", "full", "full_batch", "stages", "full_stages", "pages_bytes",
        "candidates", "growth",
    }  # fmt: skip
    for name in ("batch", "cost_in_loads", "stages", "full", "full_batch", "full_stages"):
        assert figures[name].keys() == {"1", "32", "256"}
    assert all(stages.keys() == STAGES for stages in figures["stages"].values())
    assert all(stages.keys() == STAGES | {"history"} for stages in figures["full_stages"].values())
    assert 2_000 < figures["pages_bytes"] < 20_000
    assert 150 < figures["candidates"] <= 256
    assert figures["growth"]["items"].keys() == {"1000"} and figures["growth"]["events"].keys() == {"1", "10"}
    assert json.loads(json.dumps(figures)) == figures
    text = page.table(figures)
    assert "in loads" in text and "items in the catalogue   1,000: " in text


def test_catalogue_from_arrays_equals_catalogue_from_records() -> None:
    built, applied = catalog_of(1500), Catalog()
    assert applied.apply(records_of(1500)) == []
    assert built.items[:1500].tobytes() == applied.items[:1500].tobytes()
    assert built.index.get_all(built.items["id"]).tolist() == list(range(1500))
    for row in (0, 1, 777, 1499):
        start, end = built.fragment_at[row]
        other_start, other_end = applied.fragment_at[row]
        assert built.fragments[start:end].tobytes() == applied.fragments[other_start:other_end].tobytes()
    for key in np.unique(built.items["category"]).tolist():
        assert built.names[key] == applied.names[key]


def test_every_item_has_a_full_list_of_distinct_neighbours() -> None:
    near = shop_of(1000).signals.neighbour_rows[:1000]
    assert (near >= 0).all() and (near < 1000).all()
    assert all(len(set(of)) == near.shape[1] and row not in of for row, of in enumerate(near.tolist()))


def test_histories_have_one_to_a_few_hundred_events() -> None:
    assert history_lengths(5000).min() == 1 and 100 < history_lengths(5000).max() <= 400


def test_two_rows_with_one_id_are_refused() -> None:
    rows = np.zeros(2, ITEM)
    rows["id"] = 5
    with pytest.raises(ValueError, match="2 items have 1 ids"):
        Catalog.from_rows(rows, [b"a", b"b"])
