"""The parser of fetches: its checksums and transactions against aiokafka's, its offsets, and what it leaves out."""

from itertools import cycle
from typing import Any, ClassVar, NamedTuple

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import CorruptRecordException
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.kafka.client import consumer_records, record_batch
from stream.kafka.client.brokers import FrameReader
from stream.kafka.client.record_batch import UnreadableBatch, parse_records
from stream.kafka.tables.changelog_reader import UnreadableChangelog, parse_changelog
from tests.harness.kafka_parts import ATTRIBUTES, Pair, encode_batch, encode_marker, with_checksum

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
TABLE = TP("profiles", 3)
PAIRS = st.lists(st.tuples(st.binary(max_size=300), st.none() | st.binary(max_size=5000)), max_size=20)


class Parsed(NamedTuple):
    records: list[tuple[bytes | None, bytes | None]]
    next_offset: int


def parse(data: bytes, start: int) -> Parsed:
    records, next_offset, unreadable = parse_records(data, start)
    assert unreadable is None
    return Parsed([(record.key, record.value) for record in records], next_offset)


@settings(deadline=None)
@given(st.lists(PAIRS.filter(bool), max_size=4), st.integers(0, 2**40), st.integers(0, 30))
def test_records_from_the_wanted_offset_on_are_returned(batches: list[list[Pair]], base: int, skip: int) -> None:
    data, sent, following = b"", [], base
    for pairs in batches:
        data += encode_batch(pairs, following)
        sent += [(following + n, pair) for n, pair in enumerate(pairs)]
        following += len(pairs) + 3  # compaction leaves gaps
    fetched = parse(data, base + skip)
    assert list(fetched.records) == [pair for offset, pair in sent if offset >= base + skip]
    assert fetched.next_offset == max(base + skip, sent[-1][0] + 1 if sent else 0)


@settings(deadline=None)
@given(PAIRS.filter(bool), st.integers(1, 200))
def test_a_batch_that_is_cut_off_is_left_for_the_next_fetch(pairs: list[Pair], missing: int) -> None:
    whole, torn = encode_batch([(b"k", b"v")], 5), encode_batch(pairs, 6)
    fetched = parse(whole + torn[: max(0, len(torn) - missing)], 5)
    assert (list(fetched.records), fetched.next_offset) == ([(b"k", b"v")], 6)
    assert parse(torn[:40], 6) == ([], 6)


def test_records_with_headers_keep_their_keys_and_values() -> None:
    pairs: list[Pair] = [(b"a", b"1"), (b"", None), (b"c", b"")]
    assert list(parse(encode_batch(pairs, 0, headers=[("h", b"x" * 100)]), 0).records) == pairs


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_batch_of_each_codec_is_parsed(codec: int) -> None:
    pairs: list[Pair] = [(b"k%d" % n, b"v" * 100) for n in range(50)]
    compressed = encode_batch(pairs, 100, codec)
    assert len(compressed) < 2000
    fetched = parse(encode_batch([(b"first", b"1")], 99) + compressed, 120)
    assert (fetched.records, fetched.next_offset) == (pairs[20:], 150)


def test_a_control_batch_has_no_record_and_moves_the_offset() -> None:
    assert parse(encode_marker(9, 7, is_commit=True), 7) == ([], 8)


def flipped(batch: bytes, at: int, bits: int = 0x10) -> bytes:
    data = bytearray(batch)
    data[at] ^= bits
    return bytes(data)


@pytest.mark.parametrize("by_processor", [True, False])
def test_a_flipped_bit_fails_the_checksum_of_its_batch(monkeypatch: pytest.MonkeyPatch, by_processor: bool) -> None:
    if by_processor and not record_batch.HAS_CRC32C:
        pytest.skip("the processor does not have the instruction")
    monkeypatch.setattr(record_batch, "HAS_CRC32C", by_processor)
    for size in range(20):  # every number of bytes after the last group of eight
        pairs: list[Pair] = [(b"k", b"v" * size)]
        good, wrong, later = (encode_batch(pairs, offset) for offset in (3, 4, 5))
        assert parse(good, 3).records == pairs
        for at in range(21, len(wrong), 5):
            data = flipped(wrong, at)
            assert not MemoryRecords(data).next_batch().validate_crc()
            records, next_offset, unreadable = parse_records(good + data + later, 3)
            assert [(record.key, record.value) for record in records] == pairs and next_offset == 5
            assert unreadable is not None and unreadable[:4] == (4, 4, data, "the checksum is wrong")


def test_a_batch_after_an_unreadable_one_is_left_to_the_next_fetch() -> None:
    wrong = flipped(encode_batch([(b"k%d" % n, b"v") for n in range(10)], 20), 70)
    data = encode_batch([(b"a", b"1")], 19) + wrong + encode_batch([(b"b", b"2")], 30)
    records, next_offset, unreadable = parse_records(data, 19)
    assert [record.key for record in records] == [b"a"] and next_offset == 30
    assert unreadable is not None and (unreadable.base_offset, unreadable.offset, unreadable.value) == (20, 29, wrong)
    assert parse(data[-len(encode_batch([(b"b", b"2")], 30)) :], next_offset) == ([(b"b", b"2")], 31)


def test_wrong_offsets_of_an_unreadable_batch_move_the_position_neither_back_nor_too_far() -> None:
    batch = encode_batch([(b"k", b"v")] * 10, 20)
    far, back = flipped(batch, 23, 0x40), flipped(batch, 23, 0x80)  # of the last offset's distance to the first
    following = encode_batch([(b"b", b"2")], 30)
    for data, start, end, expected in (
        (far + following, 20, 1000, 30), (far, 20, 30, 30), (back + following, 20, 1000, 21), (back, 25, None, 26),
        (flipped(flipped(batch, 1), 70), 20, 30, 30),
    ):  # fmt: skip
        _, next_offset, unreadable = parse_records(data, start, (), end)
        assert next_offset == expected
        assert unreadable is not None and start <= unreadable.offset == expected - 1
        assert 0 <= unreadable.base_offset <= unreadable.offset


WRONG_BODIES = {
    "unknown codec": (lambda batch: batch[:ATTRIBUTES] + b"\x07" + batch[ATTRIBUTES + 1 :],
                      "Unknown compression codec 0x07"),
    "not compressed": (lambda batch: batch[:ATTRIBUTES] + b"\x04" + batch[ATTRIBUTES + 1 :],
                       "the records cannot be decoded (DecompressionError)"),
    "cut record": (lambda batch: batch[:61] + b"\x7e" + batch[62:],
                   "the records cannot be decoded (CorruptRecordException)"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_a_batch_that_cannot_be_decoded_has_a_reason_without_its_data(damage: Any, reason: str) -> None:
    wrong = with_checksum(bytearray(damage(encode_batch([(b"secret", b"tweed")] * 5, 6))))
    records, next_offset, unreadable = parse_records(encode_batch([(b"a", b"1")], 5) + wrong, 5, (), 11)
    assert [record.key for record in records] == [b"a"] and next_offset == 11
    assert unreadable is not None and unreadable.reason == reason
    assert (unreadable.base_offset, unreadable.offset, unreadable.value) == (6, 10, wrong)


def test_formats_and_headers_that_do_not_exist_are_unreadable() -> None:
    batch = encode_batch([(b"k", b"v")], 6)
    newer = batch[:16] + b"\x03" + batch[17:]
    short = batch[:8] + (30 - 12).to_bytes(4, "big") + batch[12:30]
    for data, reason in ((newer, "message format 3 is unknown"), (short, "the header is incomplete")):
        _, next_offset, unreadable = parse_records(data, 6, (), 7)
        assert next_offset == 7 and unreadable is not None and unreadable.reason == reason


def test_an_impossible_length_is_an_error_once_what_came_before_is_read() -> None:
    good, torn = encode_batch([(b"k", b"v")], 6), bytes(7) + b"\x07" + bytes(60)
    assert parse(good + torn, 6) == ([(b"k", b"v")], 7)
    with pytest.raises(CorruptRecordException, match="the batch at offset 7 has an impossible length"):
        parse(torn, 7)


def test_a_changelog_that_cannot_be_read_is_named_with_what_to_do() -> None:
    wrong = flipped(encode_batch([(b"k", b"v")] * 3, 6), 70)
    with pytest.raises(UnreadableChangelog) as caught:
        parse_changelog(TABLE, encode_batch([(b"a", b"1")], 5) + wrong, 5)
    assert str(caught.value) == (
        "partition 3 of 'profiles': the record batch at offsets 6 to 8 cannot be read: the checksum is wrong, and "
        "without its rows the table would be wrong; let a replica with an intact copy lead the partition "
        "(kafka-leader-election), or restore the topic from a backup"
    )


class Step(NamedTuple):
    producer: int
    action: str  # send, commit or abort


STEPS = st.lists(st.builds(Step, st.integers(1, 3), st.sampled_from(("send", "send", "commit", "abort"))), max_size=30)


@settings(deadline=None)
@given(STEPS, st.sets(st.integers(1, 3), max_size=1), st.integers(0, 30))
def test_aborted_records_are_dropped_and_no_others(steps: list[Step], plain: set[int], skip: int) -> None:
    """Producers interleave; those in `plain` use no transactions. The oracle is aiokafka's own filter."""
    data, offset = b"", 100
    open_since: dict[int, int] = {}  # producer -> first offset of its transaction
    sent: dict[int, list[int]] = {1: [], 2: [], 3: []}  # offsets of the open transaction
    aborted: list[tuple[int, int]] = []
    committed: list[int] = []
    for producer, action in steps:
        if action == "send":
            transactional = None if producer in plain else producer
            data += encode_batch([(b"k", b"%d" % (offset + n)) for n in range(2)], offset, producer=transactional)
            if producer in plain:
                committed += [offset, offset + 1]
            else:
                open_since.setdefault(producer, offset)
                sent[producer] += [offset, offset + 1]
            offset += 2
        elif producer in open_since:
            data += encode_marker(producer, offset, action == "commit")
            if action == "commit":
                committed += sent[producer]
            else:
                aborted.append((producer, open_since[producer]))
            del open_since[producer]
            sent[producer] = []
            offset += 1
    committed += [at for offsets in sent.values() for at in offsets]  # of open transactions: the broker holds them back
    start = 100 + skip
    parsed = parse_records(data, start, aborted)
    assert [record.offset for record in parsed.records] == sorted(at for at in committed if at >= start)
    assert parsed.next_offset == max(start, offset) if data else parsed.next_offset == start

    original = consumer_records.ParsedPartition.__bases__[0]
    theirs = original(TopicPartition("clicks", 0), MemoryRecords(data), list(aborted), start, None, None, True, 1)
    assert [record.offset for record in theirs if record.offset >= start] == [
        record.offset for record in parsed.records
    ]


def test_a_transaction_that_began_before_the_fetch_is_dropped_to_its_marker() -> None:
    data = encode_batch([(b"a", b"1")], 10, producer=1) + encode_marker(1, 11, is_commit=False)
    data += encode_batch([(b"b", b"2")], 12, producer=1) + encode_marker(1, 13, is_commit=True)
    records, next_offset, _ = parse_records(data, 10, [(1, 5)])
    assert ([record.key for record in records], next_offset) == ([b"b"], 14)


def test_an_aborted_batch_of_an_unknown_codec_is_dropped_undecoded() -> None:
    wrong = bytearray(encode_batch([(b"a", b"1")], 10, producer=1))
    wrong[ATTRIBUTES] |= 7
    assert parse_records(with_checksum(wrong), 10, [(1, 10)]) == ([], 11, None)


def test_a_batch_that_cannot_be_read_takes_the_place_of_a_record() -> None:
    batch = UnreadableBatch(9, 5, b"raw", "the checksum is wrong", 1_700_000_000_000)
    assert (batch.key, batch.value, batch.headers, batch.timestamp_type) == (None, b"raw", (), 0)
    assert batch.describe() == "the record batch at offsets 5 to 9 cannot be read: the checksum is wrong"


@given(st.lists(st.binary(min_size=1, max_size=3_000), max_size=6), st.lists(st.integers(1, 4_000), min_size=1))
def test_answers_are_complete_however_they_are_received(answers: list[bytes], sizes: list[int]) -> None:
    class Connection:
        _protocol = None
        taken: ClassVar[list[bytes]] = []

        def _handle_frame(self, frame: bytes) -> None:
            self.taken.append(frame)

    Connection.taken = []
    frames, chances = FrameReader(Connection()), cycle(sizes)
    frames._buffer = bytearray(64)  # most answers are larger
    left = b"".join(len(answer).to_bytes(4, "big") + answer for answer in answers)
    while left:
        room = frames.get_buffer(-1)
        size = min(next(chances), len(room), len(left))
        room[:size] = left[:size]
        left = left[size:]
        frames.buffer_updated(size)
    assert Connection.taken == answers


def test_many_small_batches_are_all_found() -> None:
    data = b"".join(encode_batch([(b"k%d" % n, b"v")], n) for n in range(500))
    fetched = parse(data, 0)
    assert fetched.next_offset == 500 and [key for key, _ in fetched.records] == [b"k%d" % n for n in range(500)]


def test_batches_of_earlier_formats_are_parsed() -> None:
    builder = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=1 << 20)
    for n in range(3):
        builder.append(7 + n, 1_767_225_600_000, b"k%d" % n, b"v")
    data = bytes(builder.build())
    assert parse(data, 8) == ([(b"k1", b"v"), (b"k2", b"v")], 10)
    _, next_offset, unreadable = parse_records(data[:-1] + b"w", 8)
    assert unreadable is not None and unreadable.reason == "the checksum is wrong" and next_offset == 10
