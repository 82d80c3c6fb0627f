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

from tests.harness.events import NOW

Pair = tuple[bytes, bytes | None]  # key, value


def consumed(key: bytes | None, value: bytes | None, headers: Any = (), partition: int = 2, offset: int = 55) -> Any:
    """A record as aiokafka's consumer returns it."""
    return SimpleNamespace(
        key=key, value=value, headers=tuple(headers), partition=partition, offset=offset, timestamp=NOW * 1000
    )


def encode_batch(pairs: Sequence[Pair], base: int, codec: int = 0, headers: Any = ()) -> bytes:
    """A record batch as a broker stores it, with its first record at offset `base`."""
    builder = DefaultRecordBatchBuilder(
        2, codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 20
    )
    for index, (key, value) in enumerate(pairs):
        assert builder.append(index, 1_700_000_000_000 + index, key, value, list(headers)) is not None
    encoded = bytearray(builder.build())
    encoded[:8] = base.to_bytes(8, "big")
    return bytes(encoded)


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
