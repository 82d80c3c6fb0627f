"""Parts of Kafka for tests without a broker.

Records, record batches, connections, and an event loop in virtual time.
"""

import asyncio
import selectors
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka.client import ConnectionGroup
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from tests.harness.events import NOW

Pair = tuple[bytes, bytes | None]  # key, value
ATTRIBUTES = 22  # index of the byte of a record batch with its codec (the lowest three bits) and its flags
CONTROL = 0x20  # flag of a control batch


def consumed(key: bytes | None, value: bytes | None, headers: Any = (), partition: int = 2, offset: int = 55) -> Any:
    """A record as aiokafka's consumer returns it."""
    return SimpleNamespace(
        key=key, value=value, headers=tuple(headers), partition=partition, offset=offset, timestamp=NOW * 1000
    )


def encode_batch(
    pairs: Sequence[Pair], base: int, codec: int = 0, headers: Any = (), producer: int | None = None
) -> bytes:
    """A record batch as a broker stores it, with its first record at offset `base`.

    With a `producer` (id), it belongs to a transaction.
    """
    builder = DefaultRecordBatchBuilder(
        2, codec, is_transactional=int(producer is not None), producer_id=-1 if producer is None else producer,
        producer_epoch=-1, base_sequence=-1, batch_size=1 << 20,
    )  # fmt: skip
    for index, (key, value) in enumerate(pairs):
        assert builder.append(index, 1_700_000_000_000 + index, key, value, list(headers)) is not None
    encoded = bytearray(builder.build())
    encoded[:8] = base.to_bytes(8, "big")
    return bytes(encoded)


def encode_marker(producer: int, base: int, is_commit: bool) -> bytes:
    """The control batch that ends a transaction of a producer."""
    marker = bytearray(encode_batch([(b"\0\0\0" + bytes([is_commit]), b"")], base, producer=producer))
    marker[ATTRIBUTES] |= CONTROL
    return with_checksum(marker)


def with_checksum(batch: bytearray) -> bytes:
    """The batch with the checksum of its bytes."""
    batch[17:21] = calc_crc32c(bytes(batch[21:])).to_bytes(4, "big")
    return bytes(batch)


def idle_connections(*leaders: int) -> dict[tuple[int, ConnectionGroup], Any]:
    """aiokafka's connections by (leader, group), without a network."""
    transport = SimpleNamespace(get_protocol=lambda: None, set_protocol=lambda protocol: None)
    connection = SimpleNamespace(_writer=SimpleNamespace(transport=transport), _requests=[], _protocol=None)
    return {(leader, ConnectionGroup.DEFAULT): connection for leader in leaders}


class _VirtualSelector(selectors.SelectSelector):
    """Returns at once, and counts the seconds that it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose sleeps take no real time; `time` starts at 0. For coroutines without input or output."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now
