"""The parser of fetches: its checksums against aiokafka's, where it starts, and what it leaves out."""

from itertools import cycle
from typing import ClassVar

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.kafka.client import record_batch
from stream.kafka.client.brokers import FrameReader
from stream.kafka.tables.changelog_reader import parse_changelog
from tests.harness.kafka_parts import Pair, encode_batch

PAIRS = st.lists(st.tuples(st.binary(max_size=300), st.none() | st.binary(max_size=5000)), max_size=20)


@settings(deadline=None)
@given(st.lists(PAIRS.filter(bool), max_size=4), st.integers(0, 2**40), st.integers(0, 30))
def test_records_from_the_wanted_offset_on_are_returned(batches: list[list[Pair]], base: int, skip: int) -> None:
    data, sent, following = b"", [], base
    for pairs in batches:
        data += encode_batch(pairs, following)
        sent += [(following + n, pair) for n, pair in enumerate(pairs)]
        following += len(pairs) + 3  # compaction leaves gaps
    fetched = parse_changelog(data, base + skip)
    assert list(fetched.records) == [pair for offset, pair in sent if offset >= base + skip]
    assert fetched.next_offset == max(base + skip, sent[-1][0] + 1 if sent else 0)


@settings(deadline=None)
@given(PAIRS.filter(bool), st.integers(1, 200))
def test_a_batch_that_is_cut_off_is_left_for_the_next_fetch(pairs: list[Pair], missing: int) -> None:
    whole, torn = encode_batch([(b"k", b"v")], 5), encode_batch(pairs, 6)
    fetched = parse_changelog(whole + torn[: max(0, len(torn) - missing)], 5)
    assert (list(fetched.records), fetched.next_offset) == ([(b"k", b"v")], 6)
    assert parse_changelog(torn[:40], 6) == ([], 6)


def test_records_with_headers_keep_their_keys_and_values() -> None:
    pairs: list[Pair] = [(b"a", b"1"), (b"", None), (b"c", b"")]
    assert list(parse_changelog(encode_batch(pairs, 0, headers=[("h", b"x" * 100)]), 0).records) == pairs


@pytest.mark.parametrize("codec", [1, 3])  # gzip, lz4 where it is installed
def test_a_compressed_changelog_is_parsed(codec: int) -> None:
    pairs: list[Pair] = [(b"k%d" % n, b"v" * 100) for n in range(50)]
    try:
        compressed = encode_batch(pairs, 100, codec)
    except RuntimeError:
        pytest.skip("the codec is not installed")
    fetched = parse_changelog(encode_batch([(b"first", b"1")], 99) + compressed, 120)
    assert (list(fetched.records), fetched.next_offset) == (pairs[20:], 150)


def test_a_control_batch_has_no_record_and_moves_the_offset() -> None:
    marker = bytearray(encode_batch([(b"\0\0\0\1", b"")], 7))
    marker[22] |= 0x20
    with pytest.raises(CorruptRecordException, match="before offset 8"):
        parse_changelog(bytes(marker), 7)
    marker[17:21] = calc_crc32c(bytes(marker[21:])).to_bytes(4, "big")
    assert parse_changelog(bytes(marker), 7) == ([], 8)


@pytest.mark.parametrize("by_processor", [True, False])
def test_a_flipped_bit_fails_the_checksum_of_its_batch(monkeypatch: pytest.MonkeyPatch, by_processor: bool) -> None:
    if by_processor and not record_batch.HAS_CRC32C:
        pytest.skip("the processor does not have the instruction")
    monkeypatch.setattr(record_batch, "HAS_CRC32C", by_processor)
    for size in range(20):  # every number of bytes after the last group of eight
        pairs: list[Pair] = [(b"k", b"v" * size)]
        good = encode_batch(pairs, 3)
        assert list(parse_changelog(good, 3).records) == pairs
        for at in range(21, len(good), 5):
            data = bytearray(good)
            data[at] ^= 0x10
            assert not MemoryRecords(bytes(data)).next_batch().validate_crc()
            with pytest.raises(CorruptRecordException, match="has a wrong checksum"):
                parse_changelog(good + bytes(data) + good, 3)


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
    fetched = parse_changelog(data, 0)
    assert fetched.next_offset == 500 and [key for key, _ in fetched.records] == [b"k%d" % n for n in range(500)]


def test_batches_of_earlier_formats_are_parsed() -> None:
    builder = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=1 << 20)
    for n in range(3):
        builder.append(7 + n, 1_767_225_600_000, b"k%d" % n, b"v")
    data = bytes(builder.build())
    assert parse_changelog(data, 8) == ([(b"k1", b"v"), (b"k2", b"v")], 10)
    with pytest.raises(CorruptRecordException, match="before offset 10"):
        parse_changelog(data[:-1] + b"w", 8)
