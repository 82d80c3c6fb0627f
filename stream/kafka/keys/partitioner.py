"""The partition that owns a key, and the partitioner of producers that choose another one.

A shopper's records must lie in one partition, whose owner keeps the profile. Kafka's Java client, and those that follow
it, take murmur2 of the key. librdkafka takes CRC32 by default, Sarama FNV-1a, and some producers no key at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from stream.jit import njit
from stream.types import I32, U8

# Keys are joined for the kernel. This byte occurs in no UTF-8 text, hence in no key of a valid event.
SEPARATOR = b"\xff"
MIN_SAMPLE = 10  # misplaced keys from which a guess is made: a wrong one would fit all of them once in 2 ** 10 times
MAX_SAMPLE = 200  # distinct misplaced keys that are kept, for each topic
FITTING_SHARE = 0.9  # of the misplaced keys that a partitioner must explain
SCATTERED_SHARE = 0.1  # of the misplaced keys that lie in several partitions if the placement is random

_MULTIPLIER, _MASK, _SEED = np.uint64(0x5BD1E995), np.uint64(0xFFFFFFFF), np.uint64(0x9747B28C)
_SEPARATOR = SEPARATOR[0]
_8, _13, _15, _16, _24 = (np.uint64(bits) for bits in (8, 13, 15, 16, 24))


@njit
def _murmur2(data: U8, start: int, end: int) -> int:
    """murmur2 of data[start:end], as Kafka's Java client computes it. Oracle: aiokafka.partitioner.murmur2."""
    h = _SEED ^ np.uint64(end - start)
    at = start
    while at + 4 <= end:
        k = (
            np.uint64(data[at])
            | np.uint64(data[at + 1]) << _8
            | np.uint64(data[at + 2]) << _16
            | np.uint64(data[at + 3]) << _24
        )
        k = (k * _MULTIPLIER) & _MASK
        k ^= k >> _24
        k = (k * _MULTIPLIER) & _MASK
        h = ((h * _MULTIPLIER) & _MASK) ^ k
        at += 4
    if end - at == 3:
        h ^= np.uint64(data[at + 2]) << _16
    if end - at >= 2:
        h ^= np.uint64(data[at + 1]) << _8
    if end - at >= 1:
        h = ((h ^ np.uint64(data[at])) * _MULTIPLIER) & _MASK
    h ^= h >> _13
    h = (h * _MULTIPLIER) & _MASK
    return h ^ (h >> _15)  # type: ignore[return-value]


@njit
def _find_owners(keys: U8, partition: int, partitions: int, owners: I32) -> int:
    """Write the partition that owns each key to owners (n,). Return how many keys `partition` does not own.

    keys: n keys, joined by SEPARATOR. Returns -1 if there are not n keys, because one contains the separator.
    """
    start, n, elsewhere = 0, 0, 0
    for at in range(keys.shape[0] + 1):
        if at < keys.shape[0] and keys[at] != _SEPARATOR:
            continue
        if n == owners.shape[0]:
            return -1
        owner = np.int64(_murmur2(keys, start, at) & np.uint64(0x7FFFFFFF)) % partitions
        owners[n] = owner
        elsewhere += owner != partition
        n, start = n + 1, at + 1
    return elsewhere


def find_misplaced(keys: Sequence[bytes | None], partition: int, partitions: int) -> dict[int, int]:
    """Return the index of each key that lies in `partition` but belongs to another, and the partition that owns it.

    Keys that no shopper can have are left out: null, empty, or with a byte that is not UTF-8.
    """
    if not keys:
        return {}
    try:
        joined = SEPARATOR.join(keys)  # type: ignore[arg-type]
    except TypeError:  # a key is null
        joined = SEPARATOR.join([key or b"" for key in keys])
    owners = np.empty(len(keys), np.int32)
    elsewhere = _find_owners(np.frombuffer(joined, np.uint8), partition, partitions, owners)
    if not elsewhere:
        return {}
    if elsewhere < 0:
        keys = [None if key and SEPARATOR in key else key for key in keys]
        return find_misplaced(keys, partition, partitions)
    return {index: int(owners[index]) for index in np.flatnonzero(owners != partition).tolist() if keys[index]}


def warm() -> None:
    """Compile the kernel before the first click needs it."""
    find_misplaced([b""], 0, 1)


def fnv1a(key: bytes) -> int:
    """FNV-1a of 32 bits."""
    h = 0x811C9DC5
    for byte in key:
        h = ((h ^ byte) * 0x01000193) & 0xFFFFFFFF
    return h


def _absolute(h: int) -> int:
    """Absolute value of `h` as a signed number of 32 bits."""
    return h if h < 1 << 31 else (1 << 32) - h


# The partition that other partitioners choose for a key, before the remainder. FNV-1a has three variants: the absolute
# value (Sarama, kafka-go's Hash, librdkafka), the lower 31 bits (ReferenceHash), and all bits.
_CANDIDATES: tuple[tuple[str, Callable[[bytes], int]], ...] = (
    ("crc32", zlib.crc32),
    ("fnv1a", lambda key: _absolute(fnv1a(key))),
    ("fnv1a", lambda key: fnv1a(key) & 0x7FFFFFFF),
    ("fnv1a", fnv1a),
)

# What to say of producers by the guess.
PARTITIONERS: Mapping[str, str] = {
    "crc32": "CRC32, librdkafka's default (confluent-kafka and other bindings); set partitioner=murmur2_random there, "
    "or the hash function murmur2 in ruby-kafka",
    "fnv1a": "FNV-1a, Sarama's default and kafka-go's Hash; use kafka-go's Murmur2Balancer, a custom partitioner with "
    "murmur2 in Sarama, or partitioner=murmur2_random in librdkafka",
    "random": "no key: they place the records of a shopper at random or in turn; choose the partition by the key with "
    "murmur2, which is the default in Java, and partitioner=murmur2_random in librdkafka",
    "unknown": "a partitioner that is not recognised; choose the partition by the key with murmur2, which is the "
    "default in Java, and partitioner=murmur2_random in librdkafka",
}


class MisplacedSample:
    """Distinct misplaced keys of one topic, with a partition in which each was found."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions
        self._found: dict[bytes, int] = {}
        self._scattered: set[bytes] = set()  # keys found in several wrong partitions
        self._fits = [0] * len(_CANDIDATES)  # keys that each candidate explains

    def __len__(self) -> int:
        return len(self._found)

    def add(self, key: bytes, partition: int) -> None:
        """Add a key found in `partition`, which does not own it."""
        known = self._found.get(key)
        if known is not None:
            if known != partition:
                self._scattered.add(key)
        elif len(self._found) < MAX_SAMPLE:
            self._found[key] = partition
            for candidate, (_, hash_of) in enumerate(_CANDIDATES):
                self._fits[candidate] += hash_of(key) % self._partitions == partition

    def guess(self) -> str:
        """The partitioner that the producers seem to use: a key of PARTITIONERS."""
        if len(self._found) < MIN_SAMPLE:
            return "unknown"
        fitting = max(self._fits)
        if fitting >= FITTING_SHARE * len(self._found):
            return _CANDIDATES[self._fits.index(fitting)][0]
        return "random" if len(self._scattered) >= SCATTERED_SHARE * len(self._found) else "unknown"
