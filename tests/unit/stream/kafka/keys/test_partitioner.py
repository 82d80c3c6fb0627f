"""The owner of each key against Kafka's own clients, and the guess which partitioner has placed keys elsewhere."""

import random
import zlib
from collections.abc import Callable

import pytest
from aiokafka.partitioner import murmur2
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.kafka.keys.partitioner import MAX_SAMPLE, MIN_SAMPLE, PARTITIONERS, MisplacedSample, find_misplaced, fnv1a

KEYS = st.lists(st.none() | st.binary(max_size=12) | st.text(max_size=40).map(str.encode), max_size=30)


def owner(key: bytes, partitions: int) -> int:
    return int(murmur2(key) & 0x7FFFFFFF) % partitions


@settings(deadline=None)
@given(KEYS, st.integers(1, 300), st.data())
def test_misplaced_keys_are_those_that_murmur2_puts_elsewhere(
    keys: list[bytes | None], partitions: int, data: st.DataObject
) -> None:
    partition = data.draw(st.integers(0, partitions - 1))
    expected = {
        index: owner(key, partitions)
        for index, key in enumerate(keys)
        if key and b"\xff" not in key and owner(key, partitions) != partition
    }
    assert find_misplaced(keys, partition, partitions) == expected


def test_every_length_of_a_key_is_hashed_as_in_java() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    java = {
        b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829, b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }  # fmt: skip
    for key, h in java.items():
        home = (h & 0x7FFFFFFF) % 4096
        assert find_misplaced([key], home, 4096) == {}
        assert find_misplaced([key], home + 1, 4096) == {0: home}


def test_crc32_and_fnv1a_equal_their_published_values() -> None:
    assert zlib.crc32(b"123456789") == 0xCBF43926
    assert [fnv1a(key) for key in (b"", b"a", b"foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


def signed(h: int) -> int:
    return h - (h >> 31 << 32)


# The partitioners of other clients, written from their sources.
CLIENTS: dict[str, Callable[[bytes, int], int]] = {
    "crc32 librdkafka consistent_random": lambda key, n: zlib.crc32(key) % n,
    "fnv1a librdkafka": lambda key, n: abs(signed(fnv1a(key))) % n,
    "fnv1a sarama": lambda key, n: abs(int(signed(fnv1a(key)) / n) * n - signed(fnv1a(key))),  # Go's remainder
    "fnv1a sarama reference": lambda key, n: (fnv1a(key) & 0x7FFFFFFF) % n,
    "fnv1a unsigned": lambda key, n: fnv1a(key) % n,
}


@pytest.mark.parametrize("partitions", [2, 3, 4, 8, 12, 100])
@pytest.mark.parametrize("client", CLIENTS)
def test_the_partitioner_of_other_clients_is_recognised(client: str, partitions: int) -> None:
    sample = MisplacedSample(partitions)
    for number in range(400):
        key = b"shopper-%d" % number
        place = CLIENTS[client](key, partitions)
        if place != owner(key, partitions):
            sample.add(key, place)
    assert sample.guess() == client.split()[0]
    assert len(sample) <= MAX_SAMPLE


@pytest.mark.parametrize("partitions", [4, 8])
def test_keys_in_several_partitions_are_placed_at_random(partitions: int) -> None:
    chance, sample = random.Random(5), MisplacedSample(partitions)
    for number in range(400):
        key, place = b"shopper-%d" % (number % 60), chance.randrange(partitions)
        if place != owner(key, partitions):
            sample.add(key, place)
    assert sample.guess() == "random"


def test_a_few_keys_or_an_unknown_hash_give_no_guess() -> None:
    sample = MisplacedSample(8)
    keys = [b"k%d" % number for number in range(1000)]
    for key in [key for key in keys if zlib.crc32(key) % 8 != owner(key, 8)][: MIN_SAMPLE - 1]:
        sample.add(key, zlib.crc32(key) % 8)
    assert sample.guess() == "unknown"
    sample = MisplacedSample(8)
    for key in keys:
        if (place := zlib.adler32(key) % 8) != owner(key, 8):
            sample.add(key, place)
    assert sample.guess() == "unknown"


def test_every_guess_has_advice_that_names_a_setting() -> None:
    assert PARTITIONERS.keys() == {"crc32", "fnv1a", "random", "unknown"}
    assert all("partitioner=murmur2_random" in advice for advice in PARTITIONERS.values())
