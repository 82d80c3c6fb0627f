"""Records of one key in several partitions: the newest holds, in whatever order the partitions are read."""

import random
from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream.kafka.keys import partition_merge
from stream.kafka.keys.partition_merge import KeyValue, PartitionMerge

Written = tuple[int, int, bytes, bytes | None]  # partition, timestamp in ms, key, value
T0 = 1_767_225_600_000


def table(merge: PartitionMerge, written: list[Written]) -> dict[bytes, bytes | None]:
    """The values that hold after the records are read, one at a time."""
    found: dict[bytes, bytes | None] = {}
    for partition, timestamp, key, value in written:
        records: list[KeyValue] = [(key, value)]
        if merge.claims(records, partition, [timestamp])(0):
            found[key] = value
    return found


def test_the_newer_record_holds_whichever_partition_is_read_first() -> None:
    written: list[Written] = [
        (1, T0, b"sold-out", b"old"), (0, T0 + 5, b"sold-out", b"new"),
        (0, T0, b"deleted", b"old"), (2, T0 + 5, b"deleted", None),
        (0, T0, b"equal", b"low"), (3, T0, b"equal", b"high"),
        (1, T0 // 1000, b"in-seconds", b"old"), (0, T0 + 5, b"in-seconds", b"new"),
        (1, -1, b"undated", b"old"), (0, T0, b"undated", b"new"),
    ]  # fmt: skip
    expected = {b"sold-out": b"new", b"deleted": None, b"equal": b"high", b"in-seconds": b"new", b"undated": b"new"}
    for order in permutations(range(4)):
        read = sorted(written, key=lambda one: order.index(one[0]))
        assert table(PartitionMerge(), read) == expected, order


def test_within_a_partition_the_later_offset_holds_as_in_compaction() -> None:
    written: list[Written] = [(2, T0 + 5, b"k", b"fast clock"), (2, T0, b"k", b"later")]
    assert table(PartitionMerge(), written) == {b"k": b"later"}
    assert table(PartitionMerge(), [*written, (1, T0 + 1, b"k", b"newer")]) == {b"k": b"newer"}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from((b"a", b"b")), st.booleans()), max_size=30), st.randoms())
def test_any_order_of_partitions_gives_the_same_table(
    records: list[tuple[int, bytes, bool]], chance: random.Random
) -> None:
    """With timestamps that rise in each partition, as Kafka's clients write them."""
    written: list[Written] = [
        (partition, T0 + at // 2, key, b"%d" % at if is_set else None)
        for at, (partition, key, is_set) in enumerate(records)
    ]
    expected = table(PartitionMerge(), written)
    order = list(range(4))
    chance.shuffle(order)
    assert table(PartitionMerge(), sorted(written, key=lambda one: order.index(one[0]))) == expected


def test_a_record_that_is_not_claimed_leaves_no_trace() -> None:
    merge = PartitionMerge()
    merge.claims([(b"k", b"invalid")], 1, [T0 + 9])
    assert merge.claims([(b"k", b"valid")], 0, [T0])(0)


def test_space_is_bounded_and_the_newest_deletions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_merge, "PRUNE_KEYS", 1_000)
    merge = PartitionMerge(max_deleted=100)
    for start in range(0, 20_000, 500):
        numbers = range(start, start + 500)
        records: list[KeyValue] = [(b"k%d" % k, None if k % 10 else b"v") for k in numbers]
        claim = merge.claims(records, 1, [T0 + k for k in numbers])
        assert all(claim(at) for at in range(500))
    assert len(merge) < 5_000, "2,000 keys are present, 100 of the deleted ones are remembered"
    older: list[KeyValue] = [(b"k19999", b"old"), (b"k19990", b"old"), (b"k10", b"old")]
    claim = merge.claims(older, 0, [T0] * 3)
    assert [claim(at) for at in range(3)] == [False, False, False], "a deleted item, and two that are present"
    assert merge.claims([(b"k11", b"old")], 0, [T0])(0), "this deletion is forgotten"
