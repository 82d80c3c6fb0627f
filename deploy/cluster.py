"""The Kafka cluster that a command uses: the one that is set, or the embedded broker."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.broker.embedded import Broker, BrokerError, announce_broker, find_running_broker
from stream.logs import say
from stream.settings import Settings


def require_broker(settings: Settings) -> Settings:
    """Return the settings with a broker: the one that is set, or the embedded one that this user runs.

    Raises BrokerError if there is neither.
    """
    found = find_broker(settings)
    if found is None:
        raise BrokerError(
            "no broker: start `shopwindow broker` or `shopwindow worker`, or set SHOPWINDOW_BROKER "
            "(for instance kafka://127.0.0.1:9092)"
        )
    return found


def find_broker(settings: Settings) -> Settings | None:
    """Return the settings with a broker as `require_broker` does, or None if there is none."""
    if settings.broker:
        return settings
    bootstrap = find_running_broker(settings.data_dir)
    return None if bootstrap is None else _with_embedded(settings, bootstrap)


@contextmanager
def embedded_broker(settings: Settings, port: int | None, data: Path) -> Iterator[tuple[Broker, Settings]]:
    """Run Kafka with all topics until the block ends; yield it, and the settings to reach it.

    port: on 127.0.0.1; 0 for any free one, None for 9092 if it is free. data: its folder. Raises BrokerError.
    """
    from stream.kafka import topics

    with Broker(port, data, say, optimize_jvm=True) as broker, announce_broker(broker, settings.data_dir):
        settings = _with_embedded(settings, broker.bootstrap)
        if created := asyncio.run(topics.create(settings)):
            say(f"created {len(created)} topics with {settings.partitions} partitions each")
        yield broker, settings


def _with_embedded(settings: Settings, bootstrap: str) -> Settings:
    """Return the settings for the embedded broker: one replica, plain text on loopback, whatever else is set."""
    return dataclasses.replace(settings, broker=f"kafka://{bootstrap}", replication=1, security_protocol="PLAINTEXT")
