"""What we use of the internals of Faust, mode and aiokafka: an upgrade that changes any of it fails here.

Each entry has a place, the signature if we call or override it, and what we need of it. If a test fails after an
upgrade, read the new code with that need in mind, and only then change the entry.
"""

import ast
import asyncio
import importlib
import inspect
import logging
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import faust
import pytest
from aiokafka import AIOKafkaConsumer, conn
from aiokafka.consumer import fetcher as aiokafka_fetcher
from aiokafka.partitioner import murmur2
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream.kafka import app, global_topics
from stream.kafka import consumer as transport
from stream.kafka.app import make_app
from stream.kafka.client import consumer_records
from stream.kafka.client import fetcher as fetch
from stream.kafka.client import producer as produce
from stream.kafka.commit import Batch
from stream.kafka.tables import recovery, table
from tests.harness.counting import settings_for

EDGE = Path(transport.__file__).parent
DRIVER, CONSUMER = "faust.transport.drivers.aiokafka", "faust.transport.consumer"
RECOVERY, MANAGER = "faust.tables.recovery:Recovery", "faust.tables.manager:TableManager"
FETCHER, RECORDS = "aiokafka.consumer.fetcher:Fetcher", "aiokafka.consumer.fetcher:PartitionRecords"


class Need(NamedTuple):
    where: str  # module:class
    name: str
    signature: str | None  # names of the parameters after self; None for an attribute
    why: str


NEEDS = [
    # Faust's app.
    Need("faust.app.base:App", "_new_transport", "", "creates app.transport: we return ours"),
    Need("faust.app.base:App", "_create_directories", "", "is the only access to the disk at the start"),
    Need("faust.app.base:App", "_assignment", None, "what the group gave us; None before the first assignment"),
    Need("faust.app.base:App", "_crashed", None, "an Event that crash() sets"),
    Need("faust.app.base:App", "crash", "reason", "sets _crashed, so that serve() ends"),
    Need("faust.app.base:App", "crash_reason", None, "the argument of crash(): serve() raises it"),
    Need("faust.app.base:App", "rebalancing", None, "True from the revocation until the new assignment is in effect"),
    Need("faust.app.base:App", "consumer_generation_id", None,
         "the group's generation: a run of an older one is discarded"),
    Need("mode.services:Service", "_crash", "reason", "sets crash_reason, here and in the services below"),
    # Faust's consumer, over all drivers.
    Need(f"{CONSUMER}:Consumer", "_reset_state", "", "runs at construction and before each restart"),
    Need(f"{CONSUMER}:Consumer", "_get_active_partitions", "",
         "the live set of partitions that are assigned and not paused"),
    Need(f"{CONSUMER}:Consumer", "_drain_messages", "fetcher", "the loop of the fetcher service: we replace it"),
    Need(f"{CONSUMER}:Consumer", "_read_offset", None,
         "the position of each partition after the seek to the committed offsets"),
    Need(f"{CONSUMER}:Consumer", "_filter_tps_with_pending_acks", "topics",
         "called at a commit for the partitions to commit"),
    Need(f"{CONSUMER}:Consumer", "_new_offset", "tp", "called at a commit for the offset to commit"),
    Need(f"{CONSUMER}:Consumer", "on_partitions_revoked", "revoked", "runs before the group revokes the partitions"),
    Need(f"{CONSUMER}:Consumer", "perform_seek", "", "seeks to the committed offsets and fills _read_offset"),
    Need(f"{CONSUMER}:Consumer", "resume_partitions", "tps", "called after recovery, before perform_seek"),
    Need(f"{CONSUMER}:Consumer", "pause_partitions", "tps", "removes partitions from the active set"),
    Need(f"{CONSUMER}:Consumer", "resume_flow", "", "called after perform_seek: only then do we resume"),
    Need(f"{CONSUMER}:Consumer", "stop_flow", "", "makes flow_active false and fetches nothing more"),
    Need(f"{CONSUMER}:Consumer", "flow_active", None, "False while nothing may be delivered"),
    Need(f"{CONSUMER}:Consumer", "maybe_wait_for_commit_to_finish", "", "waits for a commit under way"),
    Need(f"{CONSUMER}:Consumer", "commit", "topics, start_new_transaction",
         "commits what the two methods above return, at once"),
    Need(f"{CONSUMER}:Consumer", "verify_all_partitions_active", "",
         "the check of its livelock detector: logs an error for each partition without a fetch of aiokafka's consumer"),
    Need(f"{CONSUMER}:Consumer", "verify_recovery_event_path", "now, tp", "the same during a recovery"),
    Need(f"{CONSUMER}:ThreadDelegateConsumer", "_new_consumer_thread", "", "creates the thread: we return ours"),
    Need(f"{CONSUMER}:ThreadDelegateConsumer", "_thread", None, "that thread's service"),
    # Its aiokafka driver.
    Need(f"{DRIVER}:Transport", "Consumer", None, "the class that create_consumer() instantiates"),
    Need(f"{DRIVER}:Producer", "_ensure_producer", "", "aiokafka's producer, for its client"),
    Need(f"{DRIVER}:AIOKafkaConsumerThread", "_ensure_consumer", "", "aiokafka's consumer"),
    Need(f"{DRIVER}:AIOKafkaConsumerThread", "on_start", "",
         "has created and started aiokafka's consumer when it returns"),
    Need(f"{DRIVER}:AIOKafkaConsumerThread", "on_partitions_assigned", "assigned, generation_id",
         "runs in the thread at an assignment"),
    # Faust's tables.
    Need(f"{MANAGER}", "_update_channels", "", "connects tables and changelogs: the part of on_start that is needed"),
    Need(f"{MANAGER}", "on_start", "", "calls that, sleeps for a second, and calls recovery.start()"),
    Need(f"{MANAGER}", "on_actives_ready", "", "called when an assignment is recovered, or has nothing to recover"),
    Need(f"{MANAGER}", "actives_ready", None, "True from then on, until the next rebalance"),
    Need(f"{MANAGER}", "recovery", None, "the property that creates the recovery: we return ours"),
    Need(f"{MANAGER}", "_recovery", None, "where that property stores it"),
    Need(RECOVERY, "_slurp_changelogs", "", "the reader that takes one event at a time: ours replaces it"),
    Need(RECOVERY, "_build_offsets", "consumer, tps, destination, title",
         "fills active_offsets (title 'active', after active_highwaters) or standby_offsets: now we may read"),
    Need(RECOVERY, "_seek_offsets", "consumer, tps, offsets, title",
         "moves the group's consumer, which does not read changelogs"),
    Need(RECOVERY, "on_rebalance", "assigned, revoked, newly_assigned, generation_id",
         "fills active_tps and standby_tps from the assignment, offsets from persisted_offset()"),
    Need(RECOVERY, "_set_recovery_started", "", "marks the start of a recovery"),
    Need(RECOVERY, "_set_recovery_ended", "", "marks its end"),
    Need(RECOVERY, "signal_recovery_end", None, "the Event that the restart loop waits for"),
    Need(RECOVERY, "in_recovery", None, "True in between"),
    Need(RECOVERY, "need_recovery", "", "True while a changelog is not read to its end"),
    Need(RECOVERY, "active_remaining", "", "{TP: offsets to read} from active_highwaters and active_offsets"),
    Need(RECOVERY, "active_tps", None, "changelog partitions that are ours"),
    Need(RECOVERY, "active_offsets", None, "{TP: offset of the last record that was applied}"),
    Need(RECOVERY, "active_highwaters", None, "{TP: offset of the last record in the changelog}"),
    Need(RECOVERY, "standby_offsets", None, "the same for standby copies"),
    Need(RECOVERY, "standby_highwaters", None,
         "{TP: offset of their last record at the assignment, -1 if there was none}"),
    Need(RECOVERY, "actives_for_table", None, "{table: its changelog partitions that are ours}"),
    Need(RECOVERY, "tp_to_table", None, "{TP: table}"),
    Need(RECOVERY, "revoke", "tp", "forgets how far a partition was read"),
    Need("faust.tables.base:Collection", "on_start", "", "opens a store and declares the changelog: we do neither"),
    Need("faust.tables.base:Collection", "persisted_offset", "tp",
         "called at each assignment: what need not be read again"),
    Need("faust.tables.base:Collection", "on_rebalance", "assigned, revoked, newly_assigned, generation_id",
         "runs before the recovery of an assignment"),
    # mode.
    Need("mode.services:Service", "should_stop", None, "True once stop() is called or the service has crashed"),
    Need("mode.services:Service", "started", None, "True from start() on"),
    # aiokafka.
    Need("aiokafka:AIOKafkaConsumer", "_fetcher", None, "the fetcher, after start()"),
    Need("aiokafka:AIOKafkaConsumer", "_coordinator", None, "the group's coordinator, after start()"),
    Need("aiokafka:AIOKafkaConsumer", "_subscription", None, "what the member is subscribed to"),
    Need("aiokafka:AIOKafkaConsumer", "getmany", "partitions, timeout_ms, max_records",
         "the records that wait: ours leaves out batches that cannot be read"),
    Need(RECORDS, "_unpack_records", "", "the generator of a partition's records in a fetch: we replace it"),
    Need(RECORDS, "_records", None, "the batches, as the class that replaces MemoryRecords"),
    Need(RECORDS, "_aborted_transactions", None, "(producer id, first offset) of each; empty if read uncommitted"),
    Need(RECORDS, "_tp", None, "the partition"),
    Need(RECORDS, "_value_deserializer", None, "the consumer's"),
    Need(RECORDS, "_consumer_record", "tp, record", "the record as consumers return it"),
    Need(RECORDS, "next_fetch_offset", None, "the position: aiokafka reads it after each record and at the end"),
    Need(FETCHER, "_fetch_task", None,
         "the task that fetches: when it is cancelled, the rest of the consumer continues"),
    Need("aiokafka.consumer.subscription_state:SubscriptionState", "_fetch_count", None,
         "fetches in flight: while there is one, the member does not count as stuck"),
    Need(f"{CONSUMER}:ThreadDelegateConsumer", "earliest_offsets", "partitions", "the first offset of each log"),
    Need(f"{CONSUMER}:ThreadDelegateConsumer", "highwater", "tp", "called by sensors: we know it from our fetches"),
    Need("aiokafka:AIOKafkaConsumer", "_client", None, "the client below it"),
    Need("aiokafka.client:AIOKafkaClient", "_conns", None, "connections by (node, group)"),
    Need("aiokafka.client:AIOKafkaClient", "ready", "node_id, group", "True once it is connected to the node"),
    Need("aiokafka.conn:AIOKafkaConnection", "_writer", None, "its StreamWriter, whose transport has the protocol"),
    Need("aiokafka.conn:AIOKafkaConnection", "_protocol", None, "the protocol that it was created with"),
    Need("aiokafka.conn:AIOKafkaConnection", "_requests", None, "requests without an answer yet"),
    Need("aiokafka.conn:AIOKafkaConnection", "_handle_frame", "resp", "takes a complete answer, without its length"),
    Need("aiokafka.conn:AIOKafkaConnection", "authenticator_oauth", "",
         "creates conn.OAuthAuthenticator, which we replace, for each login"),
    Need("aiokafka.conn:AIOKafkaConnection", "authenticator_gssapi", "", "the same for conn.SaslGSSAPIAuthenticator"),
    Need("aiokafka.conn:OAuthAuthenticator", "step", "payload",
         "the next message to the broker, None after the last; payload: its answer to the previous one"),
    Need("aiokafka.conn:SaslGSSAPIAuthenticator", "step", "payload", "the same"),
    Need("aiokafka.client:AIOKafkaClient", "fetch_all_metadata", "", "requests all topics; creates none"),
    Need("aiokafka.consumer.group_coordinator:GroupCoordinator", "_do_heartbeat", "",
         "one heartbeat; True if the coordinator answered that we are a member"),
    Need("aiokafka.consumer.group_coordinator:GroupCoordinator", "generation", None, "the group's generation"),
    Need(f"{DRIVER}:Producer", "on_start", "", "has created and started aiokafka's producer when it returns"),
    Need(f"{DRIVER}:Producer", "on_stop", "", "stops aiokafka's producer, and its client with it"),
    Need("aiokafka.producer.message_accumulator:BatchBuilder", "_build", "", "the bytes of the complete batch"),
    Need("aiokafka.producer.message_accumulator:BatchBuilder", "_builder", None,
         "the C builder: append(offset, timestamp, key, value, headers), None if the record does not fit"),
    Need("aiokafka.producer.message_accumulator:BatchBuilder", "_relative_offset", None, "records so far"),
    Need("aiokafka.producer.message_accumulator:BatchBuilder", "size", "", "bytes so far"),
    Need("aiokafka.producer.message_accumulator:BatchBuilder", "record_count", "", "records so far"),
]  # fmt: skip

# Our classes, each with the class that it extends.
OURS = [
    (app.BatchApp, faust.App),
    (transport.BatchTransport, importlib.import_module(DRIVER).Transport),
    (produce.BatchProducer, importlib.import_module(DRIVER).Producer),
    (transport.BatchConsumer, importlib.import_module(DRIVER).Consumer),
    (fetch.BatchConsumerThread, importlib.import_module(DRIVER).AIOKafkaConsumerThread),
    (global_topics.TopicReader, AIOKafkaConsumer),
    (consumer_records.ParsedPartition, consumer_records.ParsedPartition.__bases__[0]),
    (table.ExactTable, faust.Table),
    (recovery.BatchRecovery, importlib.import_module("faust.tables.recovery").Recovery),
    (recovery.BatchTableManager, importlib.import_module("faust.tables.manager").TableManager),
]


def class_of(need: Need) -> Any:
    module, _, name = need.where.partition(":")
    return getattr(importlib.import_module(module), name)


def assigns(cls: type, name: str) -> bool:
    """True if the class or one of its bases sets `self.name`."""
    for base in cls.__mro__[:-1]:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        if any(
            isinstance(n, ast.Attribute) and n.attr == name and isinstance(n.ctx, ast.Store) for n in ast.walk(tree)
        ):
            return True
    return False


def parameters(method: Any) -> list[str]:
    return [name for name in inspect.signature(method).parameters if name != "self"]


@pytest.mark.slow
@pytest.mark.parametrize("need", NEEDS, ids=lambda need: f"{need.where.split(':')[1]}.{need.name}")
def test_each_internal_exists_with_the_expected_signature(need: Need) -> None:
    cls = class_of(need)
    there = getattr(cls, need.name, None)
    if need.signature is None:
        known = hasattr(cls, need.name) or any(need.name in getattr(c, "__annotations__", {}) for c in cls.__mro__)
        assert known or assigns(cls, need.name), f"{need.where} has no {need.name} any more. Needed because: {need.why}"
        return
    # Faust wraps what it runs as a task of a service.
    method = getattr(there, "fun", there)
    assert callable(method), f"{need.where} has no {need.name}() any more. Needed because: {need.why}"
    wanted = [name for name in need.signature.split(", ") if name]
    assert parameters(method) == wanted, (
        f"{need.where}.{need.name}() takes {parameters(method)} now, it took {wanted}. Needed because: {need.why}"
    )


def test_every_foreign_private_name_in_our_code_is_listed() -> None:
    ours, touched = set(), {}
    for path in EDGE.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                ours.add(node.name)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                    ours.add(node.attr)
                if EDGE in path.parents:
                    touched[node.attr] = f"{path.name}:{node.lineno}"
    listed = {need.name for need in NEEDS} | {"_exit", "_replace"}  # os._exit and namedtuple methods are documented
    missing = {name: place for name, place in touched.items() if name not in ours | listed}
    assert not missing, f"{missing} are not ours: add each to NEEDS"


@pytest.mark.parametrize(("ours", "theirs"), OURS, ids=lambda cls: cls.__name__)
def test_every_overridden_method_is_listed_and_keeps_its_parameters(ours: type, theirs: type) -> None:
    listed = {need.name for need in NEEDS}
    (written,) = ast.parse(inspect.getsource(ours)).body  # mode adds attributes to every class
    for node in ast.walk(written):
        name = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else ""
        method = vars(ours).get(name)
        if not name or name.startswith("__") or not hasattr(theirs, name):
            continue
        assert name in listed, f"{ours.__name__}.{name} overrides {theirs.__name__}.{name}: add it to NEEDS"
        original = getattr(theirs, name)
        if inspect.isfunction(method) and inspect.isfunction(original):
            kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()]
            open_ended = inspect.Parameter.VAR_POSITIONAL in kinds or inspect.Parameter.VAR_KEYWORD in kinds
            assert open_ended or parameters(method) == parameters(original), (
                f"{ours.__name__}.{name} and Faust's differ"
            )


def test_every_option_of_the_app_is_a_faust_setting() -> None:
    made = make_app(settings_for("127.0.0.1:1", "contract-"))
    tree = ast.parse(textwrap.dedent(inspect.getsource(make_app)))
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "BatchApp")
    for keyword in call.keywords:
        assert keyword.arg and hasattr(made.conf, keyword.arg), f"Faust has no setting {keyword.arg} any more"
    assert isinstance(made.tables, recovery.BatchTableManager) and isinstance(made.transport, transport.BatchTransport)


def test_a_message_takes_its_fields_in_our_order() -> None:
    tp = TP("clicks", 3)
    message = ConsumerMessage("clicks", 3, 7, 1.5, 0, None, None, b"", None, 0, 0, tp, generation_id=9)
    assert (message.topic, message.partition, message.offset, message.timestamp) == ("clicks", 3, 7, 1.5)
    assert message.tp == tp and message.generation_id == 9


def test_a_batch_takes_records_up_to_its_size_and_parses_back() -> None:
    pairs = [(b"k%d" % n, b"v" * n) for n in range(100)]
    batch = Batch(1000)
    taken = batch.extend(pairs, [[("h", b"x")]] * 100)
    assert 10 < taken < 100 and batch.record_count() == taken and 0 < batch.size() <= 1000
    assert batch.extend(pairs, None, taken) == taken, "a full batch takes no more records"
    parsed = MemoryRecords(bytes(batch._build())).next_batch()
    assert parsed.validate_crc() and not parsed.is_control_batch and parsed.next_offset == taken
    records = list(parsed)
    assert [(r.offset, (r.key, r.value), r.headers) for r in records] == [
        (at, pair, [("h", b"x")]) for at, pair in enumerate(pairs[:taken])
    ]
    assert records[0].timestamp == records[-1].timestamp > 1.6e12


def test_an_empty_batch_takes_a_record_of_any_size_and_null_values() -> None:
    batch = Batch(100)
    assert batch.extend([(None, bytes(5000)), (b"k", None)]) == 1
    assert Batch(100).extend([(b"k", None)]) == 1


def test_consumers_of_aiokafka_use_our_parser() -> None:
    source = inspect.getsource(aiokafka_fetcher.Fetcher._proc_fetch_request)
    assert "records = MemoryRecords(part_data[-1])" in source and "partition_records = PartitionRecords(" in source
    assert "records.has_next()" in source and "records.size_in_bytes()" in source, "what our batches must have"
    assert aiokafka_fetcher.PartitionRecords is consumer_records.ParsedPartition


def test_fetches_are_new_enough_for_topics_with_zstd() -> None:
    versions = {1: (0, 99)}  # what the broker supports, by API key
    request = FetchRequest(0, 0, 0, 1, []).prepare(versions)
    assert request.API_VERSION >= 10, "an older fetch of such a topic is answered by UNSUPPORTED_COMPRESSION_TYPE"


def test_connections_use_our_buffer_size() -> None:
    assert "limit=READER_LIMIT" in inspect.getsource(conn), "aiokafka has moved its limit"


def test_keys_hash_as_in_kafkas_own_clients() -> None:
    # From Kafka's UtilsTest.
    known = {b"21": -973932308, b"foobar": -790332482, b"abc": 479470107}
    assert {key: murmur2(key) - (murmur2(key) >> 31 << 32) for key in known} == known


def test_a_failed_connection_is_logged_with_host_port_and_error() -> None:
    from aiokafka.client import AIOKafkaClient

    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    async def connect() -> None:
        client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
        try:
            await client.bootstrap()
        finally:
            await client.close()

    log, collector = logging.getLogger("aiokafka"), Collector()
    log.addHandler(collector)
    try:
        with pytest.raises(Exception, match="bootstrap"):
            asyncio.run(connect())
    finally:
        log.removeHandler(collector)
    args = records[0].args
    assert isinstance(args, tuple) and args[:2] == ("127.0.0.1", 1) and isinstance(args[2], ConnectionRefusedError)
