"""Producers that choose partitions as other clients do, and the profiles that they should lead to."""

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer

from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.keys.partitioner import fnv1a
from stream.settings import Settings
from tests.harness.worker_process import Record

Partitioner = Callable[[bytes], int]


def partitioners(partitions: int) -> dict[str, Partitioner]:
    """The partition of a key by the name of the partitioner; round robin ignores the key."""
    turn = itertools.count()
    return {
        "murmur2": lambda key: partition_of(key, partitions),
        "crc32": lambda key: zlib.crc32(key) % partitions,
        "fnv1a": lambda key: (fnv1a(key) & 0x7FFFFFFF) % partitions,
        "round_robin": lambda key: next(turn) % partitions,
    }


async def send_by(settings: Settings, topic: str, records: Sequence[Record], partitioner: Partitioner) -> None:
    """Send records to the partitions that a partitioner chooses, with a header. Return once all are acknowledged."""
    async with AIOKafkaProducer(**client_options(settings)) as producer:
        for key, value in records:
            await producer.send(
                settings.prefix + topic, value, key=key, partition=partitioner(key or b""), headers=[("trace", b"1")]
            )
        await producer.flush()


# The tables of a profile, with the columns that belong to each: their entries are in the order of arrival.
_TABLES = {
    "cart_item": ("cart_time", "cart_quantity"),
    "hidden_item": ("hidden_time",),
    "category": ("category_weight",),
    "brand": ("brand_weight",),
    "word": ("word_weight",),
}


def _sorted_tables(row: Any) -> dict[str, Any]:
    """The fields of a PROFILE row, with the entries of each table in the order of their keys."""
    fields = {name: row[name] for name in row.dtype.names}
    for key, columns in _TABLES.items():
        order = np.argsort(fields[key])
        fields |= {name: fields[name][order] for name in (key, *columns)}
    return fields


def assert_same_profiles(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that PROFILE rows are equal, by shopper, whatever the order in which events have arrived.

    Sums of floats may differ in their last bits.
    """
    assert found.keys() == expected.keys()
    for shopper, row in expected.items():
        fields = _sorted_tables(found[shopper])
        for name, other in _sorted_tables(row).items():
            one = fields[name]
            if np.issubdtype(one.dtype, np.floating):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=f"{shopper} {name}")
            else:
                np.testing.assert_array_equal(one, other, err_msg=f"{shopper} {name}")
