"""Fixtures of all tests: one embedded Kafka per session, fresh topics per test, and options of the fault tests."""

import asyncio
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from hypothesis import settings

from deploy.broker.embedded import Broker

DATA = Path(__file__).parents[2] / "shared" / "data"
#: `make unit` tries fewer examples of each property.
settings.register_profile("quick", max_examples=10)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("short", "long"), default="short", help="how much work the fault tests do")
    parser.addoption("--seed", type=int, help="seed of the fault tests' random choices; each test prints its seed")


@pytest.fixture
def size(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """A function that returns its first argument in short runs (--faults=short), and its second in long ones."""
    long = request.config.getoption("--faults") == "long"
    return lambda short, lengthy: lengthy if long else short


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """The source of a test's random choices. It prints its seed, with which --seed repeats the run."""
    seed = request.config.getoption("--seed")
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 31)
    print(f"\n--seed {seed}", file=sys.stderr, flush=True)
    return random.Random(seed)


@pytest.fixture
def progress(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that prints the progress of a long test: immediately with -s, else if the test fails."""
    start = time.monotonic()

    def report(line: str) -> None:
        print(f"  {time.monotonic() - start:6.1f} s  {line}", file=sys.stderr, flush=True)

    return report


@pytest.fixture(scope="session")
def broker() -> Iterator[str]:
    """`host:port` of a Kafka that runs for the whole session."""
    with Broker(heap_mb=384) as kafka:
        yield kafka.bootstrap


@pytest.fixture
def topic_prefix(broker: str) -> Iterator[str]:
    """Prefix of the names of a test's topics. They are deleted afterwards: the broker has room for some thousand."""
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
