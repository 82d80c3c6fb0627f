"""Read the profiles of all shoppers."""

from __future__ import annotations

from typing import Any

from stream.items.catalog import Catalog
from stream.kafka.global_topics import read_table
from stream.profile.codec import decode_record, unpack_profiles
from stream.profile.row import describe
from stream.settings import Settings


async def read_profiles(settings: Settings) -> list[dict[str, Any]]:
    """Return every profile of the changelog, sorted by shopper. The result depends on no clock and on no batches."""
    table = await read_table(settings, "profiles")
    catalog = Catalog()
    catalog.apply(sorted((await read_table(settings, "catalog")).items()))
    keys = sorted(table)
    rows = unpack_profiles([decode_record(table[key])[0] for key in keys])
    return [
        {"shopper": key.decode("utf-8", "replace"), **describe(row, catalog.names)}
        for key, row in zip(keys, rows, strict=True)
    ]
