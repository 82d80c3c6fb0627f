"""Catalogue records become rows and fragments; invalid records are rejected without side effects."""

import json
import random

import numpy as np
import pytest

from stream.ids import IdIndex, key32, key64
from stream.items.catalog import AVAILABLE, EN, ZH, Catalog, ItemError, decode_item
from tests.harness.shop import catalog_of, item


def test_an_item_record_fills_a_row() -> None:
    catalog = Catalog()
    catalog.apply([item("SKU1", title={"en": "Brass Lamp"}, price=20.0, added_at="2026-01-01T00:00:00Z")])
    row = catalog.items[catalog.index.get(key64("SKU1"))]
    assert (row["category"], row["present"], row["expires"]) == (key32("c0"), 1, np.inf)
    assert row["log_price"] == pytest.approx(np.log(20.0))
    assert row["flags"] & (AVAILABLE | EN | ZH) == AVAILABLE | EN
    assert row["word"].tolist()[:2] == [key32("brass"), key32("lamp")]
    assert catalog.names[key32("c0")] == "c0"
    assert "SKU1" in catalog


@pytest.mark.parametrize(
    ("title", "flags", "english", "chinese"),
    [
        ({"de-DE": "Lampe 15", "en-US": "Lamp 15", "zh-CN": "灯 15"}, EN | ZH, "Lamp 15", "灯 15"),
        ({"en_GB": "Lamp", "fr": "Lampe"}, EN, "Lamp", "Lamp"),
        ({"": "Lampe", "zh": "灯"}, EN | ZH, "Lampe", "灯"),
        ({"de": "Lampe", "fr": "La lampe"}, EN | ZH, "Lampe", "Lampe"),
        ("Lamp", EN | ZH, "Lamp", "Lamp"),
    ],
)
def test_flags_and_titles_use_the_same_look_up_of_languages(
    title: object, flags: int, english: str, chinese: str
) -> None:
    catalog = Catalog("en")
    catalog.apply([item("a", title=title)])
    assert catalog.items[0]["flags"] & (EN | ZH) == flags
    assert (catalog.title(0, "en"), catalog.title(0, "zh")) == (english, chinese)


def test_a_null_value_deletes_the_item_but_keeps_its_row() -> None:
    catalog = catalog_of(3)
    catalog.apply([(b"i1", None), (b"unknown", None)])
    assert "i1" not in catalog
    assert catalog.index.get(key64("i1")) == 1
    assert catalog.showable_count(0.0) == 2


def test_invalid_records_are_reported_and_valid_ones_applied() -> None:
    catalog = Catalog()
    records = [item("a"), (b"b", b"{"), item("c", price=-1), (b"other", item("d")[1]), (b"\xff", None), item("e")]
    rejects = catalog.apply(records)
    assert [(reject.record, reject.field) for reject in rejects] == [(1, "value"), (2, "price"), (3, "key"), (4, "key")]
    assert "a" in catalog and "e" in catalog and "c" not in catalog


@pytest.mark.parametrize("fields", [{"title": {}}, {"title": ""}, {"expires_at": "2026-01-01T00:00:00"}])
def test_an_item_without_title_or_time_zone_is_rejected(fields: dict[str, object]) -> None:
    with pytest.raises(ItemError):
        decode_item(*item("a", **fields))


def test_mangled_records_raise_only_item_error() -> None:
    rng = random.Random(3)
    seed = item("a", expires_at="2026-01-01T00:00:00Z", description={"en": "x"})[1]
    for _ in range(5000):
        value = bytearray(seed)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(value))
            value[at : at + rng.randint(0, 9)] = rng.choice([b"", b"\xff", b"[" * 1500, b"null", b"1e999", b'"'])
        try:
            decode_item(None, bytes(value))
        except ItemError as error:
            assert error.field and error.message


def test_an_id_with_the_hash_of_another_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.items.catalog.key64", lambda text: 7)
    rejects = (catalog := Catalog()).apply([item("a"), item("b")])
    assert [reject.record for reject in rejects] == [1]
    assert "same hash" in rejects[0].message
    assert catalog.item_id(0) == "a"


def test_rows_and_fragments_survive_growth() -> None:
    catalog = catalog_of(5000)
    for k in (0, 1023, 1024, 4999):
        row = catalog.index.get(key64(f"i{k}"))
        start, end = catalog.fragment_at[row]
        assert json.loads(catalog.fragments[start:end].tobytes() + b"}") == {"item_id": f"i{k}", "kind": "product"}
        assert catalog.item_id(row) == f"i{k}"


def test_an_index_finds_only_added_keys() -> None:
    index = IdIndex(4)
    keys = [key64(str(n)) for n in range(3000)]
    assert [index.add(key) for key in keys] == list(range(3000))
    assert [index.add(key) for key in keys] == list(range(3000))
    assert [index.get(key64(f"x{n}")) for n in range(100)] == [-1] * 100


def test_add_all_assigns_the_same_rows_as_add() -> None:
    keys = np.array([key64(str(n % 700)) for n in range(1000)])
    index, bulk = IdIndex(4), IdIndex(4)
    expected = [index.add(int(key)) for key in keys]
    assert bulk.add_all(keys[:300]).tolist() + bulk.add_all(keys[300:]).tolist() == expected
    assert len(bulk) == 700 and bulk.get_all(keys).tolist() == expected
