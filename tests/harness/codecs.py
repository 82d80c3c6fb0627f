"""Codecs of record batches, as the broker stores them."""

from typing import Any

from aiokafka.record.memory_records import MemoryRecords
from faust.types import TP

from stream.kafka.client.brokers import connect_client, fetch_partitions

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


async def stored_codecs(settings: Any, topic: str) -> set[int]:
    """The codecs of the topic's record batches, as the broker stores them."""
    client = await connect_client(settings)
    try:
        name, found = settings.prefix + topic, set()
        await client.set_topics([name])
        wanted = {TP(name, partition): 0 for partition in range(settings.partitions)}
        (leader,) = {client.cluster.leader_for_partition(tp) for tp in wanted}
        for partition in await fetch_partitions(client, leader, wanted, 100, settings.isolation) or ():
            batches = MemoryRecords(partition.data)
            while batches.has_next():
                batch: Any = batches.next_batch()
                found.add(batch.compression_type)
        return found
    finally:
        await client.close()
