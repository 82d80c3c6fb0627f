"""Producers that choose partitions as other clients do, and the profiles that they should lead to."""

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer

from stream.kafka.client.connection import client_options, partition_of
from stream.kafka.partitioner import fnv1a
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


def assert_same_profiles(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that PROFILE rows are equal, by shopper. Sums of floats may differ in their last bits by their order."""
    assert found.keys() == expected.keys()
    for shopper, row in expected.items():
        for name in row.dtype.names:
            one, other = found[shopper][name], row[name]
            if np.issubdtype(one.dtype, np.floating):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=f"{shopper} {name}")
            else:
                np.testing.assert_array_equal(one, other, err_msg=f"{shopper} {name}")
