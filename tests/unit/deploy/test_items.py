"""Files of items: bad items, unknown fields, duplicates, and feeds of other systems."""

from pathlib import Path

import pytest

from deploy.io.files import InputError
from deploy.io.items import ItemFile, nearest_field, read_ids, read_items

GOOD, BAD = '{"item_id":"a","title":"A"}', '{"item_id":"b"}'
GOOGLE_XML = """<?xml version="1.0"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><item><g:id>a</g:id></item></channel></rss>"""


def items_of(folder: Path, text: str) -> ItemFile:
    path = folder / "items"
    path.write_text(text)
    return read_items(str(path))


def test_bad_items_are_named_by_line_or_by_place_in_the_array(tmp_path: Path) -> None:
    found = items_of(tmp_path, f"{GOOD}\n\n{BAD}\n")
    assert len(found.records) == 1 and found.problems[0].startswith("line 3: ") and "title" in found.problems[0]
    found = items_of(tmp_path, f"[{GOOD},{BAD}]")
    assert len(found.records) == 1 and found.problems[0].startswith("item 2: ")
    with pytest.raises(InputError, match="not a valid JSON array"):
        items_of(tmp_path, f"[{GOOD}")


@pytest.mark.parametrize("text", ["", "\n \n", "[]"])
def test_a_file_without_items_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="has no items"):
        items_of(tmp_path, text)


def test_of_items_with_one_id_the_last_counts(tmp_path: Path) -> None:
    found = items_of(tmp_path, f'{GOOD}\n{{"item_id":"b","title":"B"}}\n{{"item_id":"a","title":"New"}}\n')
    assert {record.key: record.value for record in found.records} == {
        b"a": b'{"item_id":"a","title":"New"}',
        b"b": b'{"item_id":"b","title":"B"}',
    }
    assert found.duplicates == ["'a' on line 3"]


def test_unknown_fields_are_counted_with_the_nearest_known_one(tmp_path: Path) -> None:
    item = '{"item_id":"%d","title":"A","avaliable":false,"availability":"out of stock","tags":[],"colour":"red"}'
    found = items_of(tmp_path, "\n".join(item % k for k in range(3)) + "\n" + GOOD)
    assert not found.problems and len(found.records) == 4
    assert found.unknown_fields == [
        "'availability' in 3 items is not a field of item/1 and is not read; did you mean 'available', true or false?",
        "'avaliable' in 3 items is not a field of item/1 and is not read; did you mean 'available', true or false?",
        "not fields of item/1, and not read: 'colour', 'tags'",
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("avaliable", "available"),
        ("Availability", "available"),
        ("imageLink", "image"),
        ("image_url", "image"),
        ("Titel", "title"),
        ("expiresAt", "expires_at"),
        ("added", "added_at"),
        ("sku", "item_id"),
        ("itemid", "item_id"),
        ("colour", None),
        ("", None),
        ("价格", None),
    ],
)
def test_a_misspelt_or_foreign_field_finds_its_meaning(name: str, meant: str | None) -> None:
    assert nearest_field(name) == meant


@pytest.mark.parametrize(
    ("text", "name", "advice"),
    [
        ("id\ttitle\tlink\timage link\tavailability\tprice\na\tA\thttp://a\t\tin stock\t1 USD\n",
         "a Google Merchant feed, separated by tabs", "id as item_id, link as url, image link as image, availability"),
        (GOOGLE_XML, "a Google Merchant feed in XML", "id as item_id"),
        ("<items><item/></items>", "XML", "a line of JSON"),
        ("Handle,Title,Body (HTML),Vendor,Type,Variant SKU,Variant Price\na,A,,V,T,s,1\n",
         "a product export of Shopify, separated by commas", "Variant SKU as item_id"),
        ("id,title,description,availability,condition,price,link,image_link,brand,quantity_to_sell_on_facebook\n",
         "a Facebook (Meta) catalogue", "availability as available (true or false)"),
        ('# Required,\n"id","title"\n', "a table, separated by commas", "at least item_id and title"),
        ("TemplateType=fptcustom\tVersion=2021\titem\nitem_sku\titem_name\n", "a flat file of Amazon", "item_id"),
        ("ID,Type,SKU,Name,Published,Regular price\n", "a product export of WooCommerce",
         "with SKU as item_id, Type as category, Name as title"),
        ('{"@context":"https://schema.org","@type":"Product","sku":"a","name":"A"}\n', "JSON-LD of schema.org", "sku"),
        ('[{"@type":"Product","name":"A"}]', "JSON-LD of schema.org", "offers.price"),
        ('{"products":[{"id":1,"title":"A"}]}', "one JSON object with a list 'products'", "jq -c '.products[]'"),
        ('{\n "products": [\n  {"id": 1}\n ]\n}\n', "one JSON object with a list 'products'", "jq"),
        ('{"before":null,"after":{"id":1},"op":"c"}', "change events of Debezium", "after"),
        ("PK\x03\x04...", "a zip or Excel file", "JSON lines"),
    ],
)  # fmt: skip
def test_a_feed_of_another_system_is_named(tmp_path: Path, text: str, name: str, advice: str) -> None:
    with pytest.raises(InputError) as error:
        items_of(tmp_path, text)
    message = str(error.value)
    assert f"looks like {name}" in message and "items are read from JSON lines" in message, message
    assert advice in message, message


def test_a_feed_in_utf_16_is_named(tmp_path: Path) -> None:
    (tmp_path / "feed").write_text("id\ttitle\n", "utf-16")
    with pytest.raises(InputError, match="iconv -f UTF-16"):
        read_items(str(tmp_path / "feed"))


def test_json_on_several_lines_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="JSON on several lines"):
        items_of(tmp_path, '{\n "item_id": "a",\n "title": "A"\n}\n')


@pytest.mark.parametrize("first", ['{"item_id":"x","variants":[{"id":1}],"@type":"Product"}', "id, title", "{half"])
def test_a_bad_first_line_is_one_problem_among_good_items(tmp_path: Path, first: str) -> None:
    found = items_of(tmp_path, f"{first}\n{GOOD}\n")
    assert len(found.problems) == 1 and len(found.records) == 1


def test_a_bad_first_item_does_not_make_a_file_foreign(tmp_path: Path) -> None:
    found = items_of(tmp_path, f'{{"id":"x","title":"X"}}\n{GOOD}\n')
    assert len(found.problems) == 1 and len(found.records) == 1
    assert found.unknown_fields == ["'id' in 1 item is not a field of item/1 and is not read; did you mean 'item_id'?"]


def test_ids_are_read_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("a\n\n b \r\nc")
    assert read_ids(str(tmp_path / "ids")) == ["a", "b", "c"]
