"""What every test may ask for: one embedded Kafka for the session, and topics of its own."""

import asyncio
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from deploy.broker.embedded import Broker

DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("short", "long"), default="short", help="how much the fault tests do")
    parser.addoption("--seed", type=int, help="of the fault tests' random moments; each prints the one it took")


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Chooses between how much a test does in its short form and in its long one."""
    long = request.config.getoption("--faults") == "long"
    return lambda short, lengthy: lengthy if long else short


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Whatever a test leaves to chance; the seed that it prints does the same again."""
    seed = request.config.getoption("--seed")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 31)
    print(f"\n--seed {seed}", file=sys.stderr, flush=True)
    return random.Random(seed)


@pytest.fixture
def progress(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says how far a long test is; seen at once with -s, and where the test fails."""
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"  {time.monotonic() - start:6.1f} s  {line}", file=sys.stderr, flush=True)

    return say


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
