"""Records as aiokafka's consumer returns them."""

from types import SimpleNamespace
from typing import Any

from tests.harness.events import NOW


def consumed(key: bytes | None, value: bytes | None, headers: Any = (), partition: int = 2, offset: int = 55) -> Any:
    return SimpleNamespace(
        key=key, value=value, headers=tuple(headers), partition=partition, offset=offset, timestamp=NOW * 1000
    )
