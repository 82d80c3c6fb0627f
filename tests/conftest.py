"""What every test may ask for: one embedded Kafka for the session, and topics of its own."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.broker import Broker

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """`host:port` of a Kafka that lives as long as the tests."""
    with Broker(heap_mb=384) as kafka:
        yield kafka.bootstrap


@pytest.fixture
def topic_prefix(broker: str) -> Iterator[str]:
    """Put before the names of a test's topics, which are deleted after it: a broker of this size holds some thousand."""
    prefix = f"t{uuid.uuid4().hex[:10]}-"
    yield prefix
    asyncio.run(_delete_topics(broker, prefix))


async def _delete_topics(broker: str, prefix: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name.startswith(prefix)]
        if names:
            await admin.delete_topics(names)
    finally:
        await admin.close()
