"""Recognize files in formats of other systems, so that an error can name the format and say what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec

from stream.items.catalog import Item

ITEM_FIELDS = frozenset(field.name for field in msgspec.structs.fields(Item))
# Fields of other catalogues, as `normalized` writes them, and the field of item/1 with that meaning.
FIELD_OF = {
    "id": "item_id", "sku": "item_id", "productid": "item_id", "variantsku": "item_id", "itemsku": "item_id",
    "offerid": "item_id", "name": "title", "productname": "title", "itemname": "title", "link": "url",
    "producturl": "url", "imagelink": "image", "imageurl": "image", "imagesrc": "image", "images": "image",
    "mainimageurl": "image", "availability": "available", "instock": "available",
    "producttype": "category", "googleproductcategory": "category", "categories": "category", "type": "category",
    "vendor": "brand", "brandname": "brand", "manufacturer": "brand", "variantprice": "price",
    "regularprice": "price", "standardprice": "price", "expirationdate": "expires_at", "createdat": "added_at",
    "bodyhtml": "description",
}  # fmt: skip
_GOOGLE_FIELDS = ("id", "title", "link", "image_link", "availability", "product_type", "expiration_date")
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
_AS_EVENTS = (
    "No command reads it yet. Write each event as a CloudEvent with id, type, time, data.user_id and data.items "
    "(`shopwindow kinds` lists the types, `shopwindow schemas` has event/1)"
)
_AS_VIEWS = "Each row then becomes a view"
_YOOCHOOSE = re.compile(r"\d+,\d{4}-\d\d-\d\dT[\d:.]+Z,\d+,\w+$")


class Format(NamedTuple):
    """A format of another system."""

    name: str  # completes "it looks like ..."
    advice: str  # sentences


def normalized(name: str) -> str:
    """Letters and digits of a field name, in lower case: "Image Link" and "imageLink" are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def feed_format(head: str, document: Any) -> Format | None:
    """Format of a catalogue that is not ours. head: its start; document: its first JSON value, None if it has none.

    The caller knows that it does not begin with a valid item.
    """
    if (container := _container(head)) is not None:
        return container
    start = head.lstrip()
    if start.startswith("<"):
        if "base.google.com/ns" in head:
            return Format("a Google Merchant feed in XML", _rename(_GOOGLE_FIELDS))
        return Format("XML", "Write each item as a line of JSON")
    if isinstance(document, dict):
        return _feed_of_json(document)
    first, separator, columns = _table(start)
    if separator is None or "\n{" in head:  # a bad line before JSON lines is no table
        return None
    return Format(
        f"{_feed_of_table(first, separator, columns)}, separated by {SEPARATORS[separator]}", _rename(columns)
    )


def _feed_of_table(first: str, separator: str, columns: Collection[str]) -> str:
    names = {normalized(column) for column in columns}
    if {"handle", "title"} <= names and any(name.startswith("variant") for name in names):
        return "a product export of Shopify"
    if "templatetype" in first.lower() or names & {"itemsku", "sellersku", "externalproductid"}:
        return "a flat file of Amazon"
    if {"sku", "regularprice"} <= names:
        return "a product export of WooCommerce"
    if {"sku", "attributesetcode"} <= names:
        return "a product export of Magento"
    if {"id", "title"} <= names and names & {"imagelink", "availability", "gtin"}:
        if any(name.startswith("fb") or name == "quantitytosellonfacebook" for name in names):
            return "a Facebook (Meta) catalogue"
        return "a Google Merchant feed" if separator == "\t" else "a Facebook (Meta) catalogue or Google Merchant feed"
    return "a table"


def _feed_of_json(document: dict[str, Any]) -> Format | None:
    if "@type" in document or "@context" in document or "@graph" in document:
        return Format(
            "JSON-LD of schema.org",
            "Write for each Product: sku as item_id, name as title, offers.price as price, offers.availability as "
            "available (true or false), brand.name as brand",
        )
    if "offerId" in document or str(document.get("kind", "")).startswith("content#product"):
        return Format("a product of Google's Content API", _rename(("offerId", *_GOOGLE_FIELDS[1:])))
    if {"handle", "variants"} <= document.keys():
        return Format("a product of Shopify's API", "Write an item for each of its variants, with sku as item_id")
    if {"before", "after", "op"} <= document.keys() or "payload" in document:
        return Format("change events of Debezium", "Write the row in `after` as an item; delete what is null there")
    for name, held in document.items():
        if isinstance(held, list) and held and isinstance(held[0], dict) and name not in ITEM_FIELDS:
            return Format(f"one JSON object with a list '{name}'", f"Write one item a line: jq -c '.{name}[]' FILE")
    return None


def event_format(line: str) -> Format | None:
    """Format of events that are not ours, by the first line that is not blank. The caller knows that it is no event."""
    if (container := _container(line)) is not None:
        return container
    line = line.strip()
    if line.startswith("["):
        return Format("a JSON array", "Write one event a line: jq -c '.[]' FILE > events.jsonl")
    if line == "{":
        return Format("JSON on several lines", "Write one event a line: jq -c . FILE > events.jsonl")
    if line.startswith("<"):
        return Format("XML", _AS_EVENTS)
    if line.startswith("{"):
        try:
            document = msgspec.json.decode(line.encode("utf-8", "surrogateescape"))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return _events_of_json(document, line)
    return _events_of_table(line)


def _events_of_json(document: dict[str, Any], line: str) -> Format | None:
    names = document.keys()
    if {"event_name", "event_timestamp"} <= names:
        return Format("a GA4 export from BigQuery", _AS_EVENTS)
    if {"client_id", "events"} <= names:
        return Format("requests of GA4's Measurement Protocol", _AS_EVENTS)
    if {"type", "messageId"} <= names or ({"type", "event"} <= names and names & {"anonymousId", "userId"}):
        return Format("calls of RudderStack" if "rudder" in line.lower() else "calls of Segment", _AS_EVENTS)
    if names & {"collector_tstamp", "etl_tstamp"} or str(document.get("schema", "")).startswith("iglu:"):
        return Format("events of Snowplow", _AS_EVENTS)
    if {"event", "properties"} <= names:
        return Format("events of Mixpanel or PostHog", _AS_EVENTS)
    if "event_type" in names and names & {"insert_id", "device_id", "user_id"}:
        return Format("events of Amplitude", _AS_EVENTS)
    if {"session", "events"} <= names:
        return Format(
            "sessions of OTTO",
            "`replay` takes them as a table: (echo SessionId,ItemId,Time; "
            "jq -r '.session as $s | .events[] | [$s, .aid, .ts] | @csv' FILE) > clicks.csv. " + _AS_VIEWS,
        )
    if "item_id" in names:
        return Format("items of the catalogue", "Load them: shopwindow catalog load FILE")
    return None


def _events_of_table(line: str) -> Format | None:
    if _YOOCHOOSE.match(line):
        return Format(
            "clicks of YooChoose",
            "`replay` takes them with a first line: sed '1i SessionId,Time,ItemId,Category' FILE > clicks.csv. "
            + _AS_VIEWS,
        )
    _, separator, columns = _table(line)
    names = {normalized(column) for column in columns}
    if {"timestamp", "visitorid", "event", "itemid"} <= names:
        return Format(
            "events of RetailRocket",
            "`replay` takes them with other names of columns: "
            "sed '1s/timestamp/Time/;1s/visitorid/SessionId/' FILE > clicks.csv. " + _AS_VIEWS,
        )
    if {"sessionid", "itemid", "eventdate"} <= names:
        return Format(
            "views of Diginetica",
            "`replay` takes them with another name of a column: sed '1s/eventdate/Time/' FILE > clicks.csv. "
            + _AS_VIEWS,
        )
    if len(columns) > 100 and separator == "\t":
        return Format("enriched events of Snowplow", _AS_EVENTS)
    return None


def table_format(line: str) -> Format | None:
    """Format of a table of events, by its first line; None if the line has no columns."""
    _, separator, columns = _table(line.strip())
    if separator is None:
        return None
    if {"sessionid", "itemid", "time"} <= {normalized(column) for column in columns}:
        return Format("a clickstream", "`shopwindow replay FILE` sends it")
    return Format(
        f"a table separated by {SEPARATORS[separator]}",
        "`replay` takes one whose first line names the columns SessionId, ItemId and Time",
    )


def _container(head: str) -> Format | None:
    """Format of a file that is not text in UTF-8, by its first bytes."""
    for magic, name in (("PK\x03\x04", "a zip or Excel file"), ("PAR1", "a Parquet file"), ("Obj\x01", "an Avro file")):
        if head.startswith(magic):
            return Format(name, "Export it as JSON lines")
    if head[:2] in ("\udcff\udcfe", "\udcfe\udcff") or "\0" in head[:64]:
        return Format("text in UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 FILE")
    return None


def _table(text: str) -> tuple[str, str | None, list[str]]:
    """First line of a table, the separator of its columns, and their names; the separator is None if it has none."""
    first = text.split("\n", 1)[0].strip("\r")
    separator = max(SEPARATORS, key=first.count)
    if first.count(separator) == 0 or first.startswith(("{", "[")):
        return first, None, []
    return first, separator, [column.strip().strip('"') for column in first.split(separator)]


def _rename(columns: Iterable[str]) -> str:
    """Sentence on the columns that have another name in item/1. Of two with one meaning, the last is named."""
    column_of = {FIELD_OF[key]: column for column in columns if (key := normalized(column)) in FIELD_OF}
    if not column_of:
        return "Write one item a line, with at least item_id and title"
    pairs = [
        f"{column} as {field}{' (true or false)' if field == 'available' else ''}"
        for field, column in column_of.items()
    ]
    return f"Write one item a line, with {', '.join(pairs)}"
