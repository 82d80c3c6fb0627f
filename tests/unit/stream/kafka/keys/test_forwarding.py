"""Records in a wrong partition are forwarded once, skipped when they are forwarded again, and never in a loop."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from stream.events.decode import Reject
from stream.kafka.client.connection import partition_of
from stream.kafka.commit import Batch, Output, _RecordGroup
from stream.kafka.dead_letters import decode_dead_letter, encode_dead_letter
from stream.kafka.keys.forwarding import (
    FORWARDED,
    Origin,
    forward,
    origin_of,
    route,
    stranded,
    too_large,
)
from stream.kafka.redrive import redrive_headers
from stream.profile.codec import owing_pages, touched_at
from stream.profile.store import CLOCK_KEY, MemoryProfileStore, forwarded_key
from tests.harness.kafka_parts import consumed

PARTITIONS = 4
KEYS = [[b"k%d" % n for n in range(100) if partition_of(b"k%d" % n, PARTITIONS) == p] for p in range(PARTITIONS)]


def at(offset: int, key: bytes | None, *headers: tuple[str, bytes]) -> Any:
    return consumed(key, b"v%d" % offset, headers, offset=offset)


def from_origin(partition: int, offset: int, topic: str = "clicks") -> tuple[str, bytes]:
    return FORWARDED, b"%s/%d/%d" % (topic.encode(), partition, offset)


def test_a_run_in_its_partition_is_left_as_it_is() -> None:
    records = [at(0, KEYS[2][0]), at(1, None), at(2, b""), at(3, b"\xff"), at(4, KEYS[2][1], ("trace", b"x"))]
    assert route("clicks", 2, records, PARTITIONS, {}).own is None


def test_misplaced_records_go_to_their_owner_with_everything_they_had() -> None:
    records = [at(7, KEYS[2][0]), at(8, KEYS[1][0], ("trace", b"\xff")), at(9, KEYS[3][0]), at(10, KEYS[1][1])]
    routed = route("clicks", 2, records, PARTITIONS, {})
    assert (routed.own, dict(routed.misplaced), routed.row) == ([0], {1: 1, 2: 3, 3: 1}, None)
    time = records[0].timestamp
    assert sorted(forward("clicks", 2, records, routed.misplaced)) == [
        Output(
            "clicks", 1, [(KEYS[1][0], b"v8"), (KEYS[1][1], b"v10")],
            [[("trace", b"\xff"), from_origin(2, 8)], [from_origin(2, 10)]], [time, time],
        ),
        Output("clicks", 3, [(KEYS[3][0], b"v9")], [[from_origin(2, 9)]], [time]),
    ]  # fmt: skip


def test_forwarded_records_are_taken_once_for_each_topic_and_origin() -> None:
    key = KEYS[2][0]
    stored: dict[bytes, bytes] = {}
    first = route("clicks", 2, [at(0, key, from_origin(1, 5)), at(1, key, from_origin(1, 5))], PARTITIONS, stored)
    assert (first.own, first.arrived, first.duplicates) == ([0], 2, 1)
    assert first.row is not None
    stored.update([first.row])
    again = route("clicks", 2, [at(2, key, from_origin(1, n)) for n in (4, 5)], PARTITIONS, stored)
    assert (again.own, again.duplicates, again.row) == ([], 2, None)
    others = [from_origin(1, 6), from_origin(3, 0)]
    more = route("clicks", 2, [at(n, key, other) for n, other in enumerate(others)], PARTITIONS, stored)
    assert (more.own, more.duplicates) == ([0, 1], 0)
    other_topic = route("purchases", 2, [at(0, key, from_origin(1, 5, "purchases"))], PARTITIONS, stored)
    assert other_topic.own == [0]
    assert other_topic.row is not None and other_topic.row[0] == forwarded_key("purchases")


@pytest.mark.parametrize(
    "value", [b"", b"clicks/1", b"clicks/1/x", b"purchases/1/5", b"clicks/2/5", b"clicks/-1/5", b"clicks/1/5/6"]
)
def test_a_foreign_header_with_our_name_is_ignored(value: bytes) -> None:
    routed = route("clicks", 2, [at(0, KEYS[2][0], (FORWARDED, value))], PARTITIONS, {})
    assert routed.own is None
    misplaced = route("clicks", 2, [at(0, KEYS[1][0], (FORWARDED, value))], PARTITIONS, {})
    [output] = forward("clicks", 2, [at(0, KEYS[1][0], (FORWARDED, value))], misplaced.misplaced)
    assert output.headers is not None and origin_of(output.headers[0], "clicks") == Origin("clicks", 2, 0)


def test_a_forwarded_record_in_a_wrong_partition_is_refused_and_may_be_redriven() -> None:
    record = at(3, KEYS[1][0], ("trace", b"x"), from_origin(0, 77))
    routed = route("clicks", 2, [record], PARTITIONS, {})
    assert (routed.own, routed.misplaced, dict(routed.stranded)) == ([], {}, {0: 1})
    [reject] = stranded("clicks", 2, [record], routed)
    assert (reject.code, reject.field) == ("misplaced", "key") and "from partition 0 to 2" in reject.message
    (key, value), headers = encode_dead_letter("clicks", 2, record, reject)
    letter = decode_dead_letter(consumed(key, value, headers))
    assert (letter.partition, letter.offset, letter.headers) == (0, 77, (("trace", b"x"),))
    assert origin_of(redrive_headers(letter), "clicks") is None, "a redriven record is a new one"


def test_a_record_that_is_too_large_for_our_header_is_refused() -> None:
    records = [consumed(KEYS[1][0], b"x", [("h", bytes(size))]) for size in (199_000, 100)]
    [reject] = too_large(records, {0: 1, 1: 1}, 200_000)
    assert reject == Reject(0, "too_large", "headers", reject.message)
    assert "records of at most 198976 bytes are forwarded" in reject.message
    assert "max.message.bytes is 200000" in reject.message


def test_the_rows_of_next_offsets_are_no_profiles() -> None:
    routed = route("clicks", 2, [at(0, KEYS[2][0], from_origin(1, 5))], PARTITIONS, {})
    assert routed.row is not None
    store = MemoryProfileStore()
    store.serve([2], 0.0)
    store.apply(2, [routed.row, (CLOCK_KEY, b"5.0")])
    assert store.count() == 0 and store.sweep(2, 1e12, 1.0, ()) == []
    # Earlier versions of the worker look at the rows of all keys but CLOCK_KEY.
    assert touched_at([routed.row[1]]) == [0.0] and owing_pages(dict([routed.row])) == set()


def test_batches_keep_the_timestamp_of_each_record() -> None:
    group = _RecordGroup([], [], [])
    group.add([(b"a", b"1")], None)
    group.add([(b"b", b"2"), (b"c", b"3")], None, [5, 3])
    group.add([(b"d", b"4")], [[("h", b"x")]])
    assert group.timestamps[1:3] == [5, 3] and len(group.timestamps) == len(group.headers) == 4
    batch = Batch(10_000)
    assert batch.extend(group.records, group.headers, 0, group.timestamps) == 4


class Partition:
    """The log of a partition, and what its owner has durably counted of it."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.watermark = 0
        self.rows: dict[bytes, bytes] = {}
        self.counted: list[bytes] = []


def deliver(partitions: list[Partition], output: Output, count: int) -> None:
    """Append the first `count` records of an output to the log of their partition."""
    assert output.partition is not None
    log = partitions[output.partition].log
    for (key, value), headers in list(zip(output.records, output.headers or (), strict=True))[:count]:
        log.append(SimpleNamespace(key=key, value=value, headers=tuple(headers), offset=len(log), timestamp=0))


def forward_and_die(partitions: list[Partition], number: int, chance: random.Random) -> None:
    """A worker forwards records and dies before its changelog batch, or has lost the partition without knowing it.

    It started at a watermark that was valid once.
    """
    mine = partitions[number]
    start = chance.choice([mine.watermark, chance.randint(0, mine.watermark)])
    records = mine.log[start : start + chance.randint(1, 30)]
    misplaced = route("clicks", number, records, PARTITIONS, {}).misplaced
    for output in forward("clicks", number, records, misplaced):
        deliver(partitions, output, chance.choice([0, len(output.records), chance.randint(0, len(output.records))]))


def process_run(partitions: list[Partition], number: int, length: int) -> None:
    """Process a run of a partition and commit it."""
    mine = partitions[number]
    records = mine.log[mine.watermark : mine.watermark + length]
    routed = route("clicks", number, records, PARTITIONS, mine.rows)
    assert not routed.stranded
    for output in forward("clicks", number, records, routed.misplaced):
        deliver(partitions, output, len(output.records))
    mine.watermark += len(records)
    own = range(len(records)) if routed.own is None else routed.own
    mine.counted += [records[index].value for index in own]
    if routed.row:
        mine.rows.update([routed.row])


@pytest.mark.parametrize("seed", range(40))
def test_every_record_is_counted_once_by_its_owner_whatever_dies(seed: int) -> None:
    chance, partitions = random.Random(seed), [Partition() for _ in range(PARTITIONS)]
    expected: list[list[bytes]] = [[] for _ in range(PARTITIONS)]

    def act() -> None:
        if chance.random() < 0.4:
            forward_and_die(partitions, chance.randrange(PARTITIONS), chance)
        else:
            process_run(partitions, chance.randrange(PARTITIONS), chance.randint(1, 30))

    for number in range(300):
        key, log = b"k%d" % chance.randrange(20), partitions[chance.randrange(PARTITIONS)].log
        log.append(SimpleNamespace(key=key, value=b"%d" % number, headers=(), offset=len(log), timestamp=0))
        expected[partition_of(key, PARTITIONS)].append(b"%d" % number)
        if chance.random() < 0.2:
            act()
    for _ in range(200):
        act()
    while any(one.watermark < len(one.log) for one in partitions):
        process_run(partitions, chance.randrange(PARTITIONS), chance.randint(1, 30))
    assert [sorted(one.counted) for one in partitions] == [sorted(values) for values in expected]
