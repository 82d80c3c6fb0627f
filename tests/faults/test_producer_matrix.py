"""However a producer compresses, chooses partitions and uses transactions, its events lead to the same profiles."""

import asyncio
import itertools
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import confluent_kafka

from stream.kafka.client.connection import partition_of
from stream.settings import Settings
from tests.harness.codecs import CODECS, stored_codecs
from tests.harness.counting import scenario
from tests.harness.events import NOW, record
from tests.harness.partitioners import assert_same_profiles
from tests.harness.worker_process import (
    Record,
    open_shop,
    pages_of,
    profiles_of,
    read_all,
    settings_for,
    until_counted,
    worker,
)

PARTITIONERS = ("murmur2_random", "consistent_random", "fnv1a_random")  # consistent_random is CRC32, the default
SHOPPERS = 3  # of each producer
CLICKS, PURCHASES = 10, 3  # of each shopper
PER_SHOPPER = CLICKS + PURCHASES + 1
CONTROL = "control"
FLUSH_S = 30.0
Sent = tuple[str, Record]  # topic, record


class Kind(NamedTuple):
    """A kind of producer. Its name begins the names of its shoppers."""

    codec: str
    partitioner: str
    is_transactional: bool

    @property
    def name(self) -> str:
        return f"{self.codec}-{self.partitioner}-{'transactions' if self.is_transactional else 'plain'}"


KINDS = [Kind(*one) for one in itertools.product(CODECS, PARTITIONERS, (False, True))]
NAMES = [CONTROL, *(kind.name for kind in KINDS)]


def events_of(name: str) -> list[Sent]:
    """The events of a producer's shoppers by time. Only the shoppers' names differ from producer to producer."""
    sent: list[tuple[float, Sent]] = []
    for number in range(SHOPPERS):
        shopper, id = f"{name}-{number}", f"e{number}-"
        for k in range(CLICKS):
            kind = ("view_item", "select_item", "add_to_cart", "hide_item")[k % 4]
            time, item = NOW + 60 * k + number, f"i{(k * 7 + number) % 50}"
            sent.append((time, ("clicks", record(kind, shopper, f"{id}c{k}", time, item=item, locale="zh"))))
        for k in range(PURCHASES):
            time, bought = NOW + 200 * k + number, {"item": f"i{k}", "transaction_id": f"{id}t{k}"}
            sent.append((time, ("purchases", record("purchase", shopper, f"{id}p{k}", time, **bought))))
        consent = record("consent", shopper, f"{id}g", NOW + number, consent={"personalization": True})
        sent.append((NOW + number, ("privacy", consent)))
    return [one for _, one in sorted(sent, key=lambda pair: pair[0])]


def aborted_events(name: str, number: int) -> list[Sent]:
    """Events that are sent in a transaction and aborted. Each would change a profile."""
    shopper, id, time = f"{name}-{number % SHOPPERS}", f"aborted-{number}-", NOW + 5 * number
    return [
        ("clicks", record("view_item", shopper, id + "c", time, item="i44")),
        ("purchases", record("purchase", shopper, id + "p", time, item="i45", transaction_id=id + "t")),
        ("privacy", record("consent", shopper, id + "r", time + 9999, consent={"personalization": False})),
    ]


class Producer:
    """A producer with librdkafka. A transactional one aborts a transaction after each that it commits."""

    def __init__(self, settings: Settings, name: str, options: dict[str, Any], is_transactional: bool = False) -> None:
        self._prefix, self._name, self._is_transactional = settings.prefix, name, is_transactional
        broker = str(settings.broker).removeprefix("kafka://")
        # A producer logs each lost connection, also when the broker of the tests has stopped.
        quiet = {"log_level": 2}
        self._producer = confluent_kafka.Producer({"bootstrap.servers": broker, "linger.ms": 20, **quiet, **options})
        self._aborted = 0
        if is_transactional:
            self._producer.init_transactions(FLUSH_S)

    def send(self, events: Sequence[Sent]) -> None:
        """Send the events and wait until they are acknowledged."""
        if not self._is_transactional:
            self._produce(events)
            return
        middle = len(events) // 2
        for part in (events[:middle], events[middle:]):
            self._producer.begin_transaction()
            self._produce(part)
            self._producer.commit_transaction(FLUSH_S)
            self._producer.begin_transaction()
            self._produce(aborted_events(self._name, self._aborted))
            self._aborted += 1
            self._producer.abort_transaction(FLUSH_S)

    def _produce(self, events: Sequence[Sent]) -> None:
        for topic, (key, value) in events:
            self._producer.produce(self._prefix + topic, value, key)
        assert self._producer.flush(FLUSH_S) == 0


def producer_of(settings: Settings, kind: Kind) -> Producer:
    options = {"compression.codec": kind.codec, "partitioner": kind.partitioner}
    if kind.is_transactional:
        options["transactional.id"] = settings.prefix + kind.name
    return Producer(settings, kind.name, options, kind.is_transactional)


@scenario
async def test_every_kind_of_producer_gives_the_same_profiles_despite_a_kill(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, run_records=50)
    await open_shop(settings)
    producers = {CONTROL: Producer(settings, CONTROL, {"partitioner": "murmur2_random"})}
    for kind in KINDS:
        producers[kind.name] = await asyncio.to_thread(producer_of, settings, kind)
    middle = PER_SHOPPER * SHOPPERS // 2

    async def send_all(part: slice) -> None:
        for name, producer in producers.items():
            await asyncio.to_thread(producer.send, events_of(name)[part])

    with worker(settings) as process:
        await process.ready()
        sending = asyncio.create_task(send_all(slice(middle)))
        while len(await profiles_of(settings)) < len(NAMES):  # a third of the shoppers
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        await sending
    with worker(settings):
        await send_all(slice(middle, None))
        profiles = await until_counted(settings, len(NAMES) * SHOPPERS * PER_SHOPPER, 120.0)
        pages = await read_all(settings, "homepages")
    assert len(profiles) == len(NAMES) * SHOPPERS
    for name in NAMES:
        own = {str(number): profiles[f"{name}-{number}"] for number in range(SHOPPERS)}
        assert_same_profiles(own, {str(number): profiles[f"{CONTROL}-{number}"] for number in range(SHOPPERS)})
    for page in pages:
        assert page.partition == partition_of(page.key, settings.partitions)
    for shopper, made in pages_of(pages).items():
        assert made[-1]["version"] == max(page["version"] for page in made), shopper
    assert await stored_codecs(settings, "clicks") >= set(CODECS.values())
    assert not await read_all(settings, "dead-letters")
