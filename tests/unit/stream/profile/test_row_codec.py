"""Packed rows come back bit for bit, in the fewest bytes that their form allows."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.profile.exposure import SERVING
from stream.profile.row import PROFILE
from stream.row_codec import COMPACT, field_position, pack, presence_bytes, unpack
from tests.harness.events import NOW, plain

ROW = np.dtype(
    [
        ("version", "i8"),
        ("small", "i4", 9),
        ("time", "f8", 5),
        ("item", "i8", 5),
        ("short", "i2", 4),
        ("weight", "f8", 3),
    ]
)
LONG = np.dtype([("word", "i4", 700)])
TIMES = st.builds(lambda s, us: NOW + s + us / 1e6, st.integers(-4_000_000, 4_000_000), st.integers(0, 999_999))
FLOATS = TIMES | st.floats() | st.sampled_from([0.0, -0.0, 1.0, 2.0, NOW + 0.125, NOW + 60.004, 1e300])
INTEGERS = st.sampled_from([0, 0, 1, 2**62 + 5, -(2**63)]) | st.integers(-300, 300) | st.integers(-(2**63), 2**63 - 1)
WORDS = st.sampled_from([0, 0, 7, 2**31 - 1, -(2**31)]) | st.integers(-40_000, 40_000)


@st.composite
def rows_of(draw: st.DrawFn) -> np.ndarray:
    rows = np.zeros(draw(st.integers(1, 3)), ROW)
    for row in rows:
        for name, strategy in (("version", INTEGERS), ("small", WORDS), ("time", FLOATS), ("item", INTEGERS),
                           ("short", st.integers(-(2**15), 2**15 - 1)), ("weight", FLOATS)):  # fmt: skip
            shape = ROW[name].shape
            row[name] = draw(st.lists(strategy, min_size=shape[0], max_size=shape[0])) if shape else draw(strategy)
    return rows


def as_documented(blob: bytes) -> bytes:
    """Oracle: bytes of a compact ROW, decoded one value at a time as the docstring of row_codec says."""
    widths = "q" + "i" * 9 + "d" * 5 + "q" * 5 + "i" * 2 + "d" * 3
    present, at = [], 2
    for m in range((len(widths) + 7) // 8):
        bits = 0
        if blob[1] >> m & 1:
            bits, at = blob[at], at + 1
        present += [bits >> k & 1 for k in range(8)]
    n = sum(present)
    tags = [blob[at + k // 4] >> 2 * (k % 4) & 3 for k in range(n)]
    at += (n + 3) // 4
    sizes = {"i": (1, 1, 2, 4), "q": (1, 1, 4, 8), "d": (1, 3, 5, 8)}
    known: list[int] = []
    last = {"i": 0, "q": 0, "d": 0}
    made = b""
    for width, is_present in zip(widths, present, strict=False):
        value = 0
        if is_present:
            tag = tags.pop(0)
            size = sizes[width][tag]
            value = int.from_bytes(blob[at : at + size], "little", signed=True)
            at += size
            if tag == 0:
                value = known[-1 - value % 256]
            elif tag != 3 and width == "d":
                last["d"] += value * (1000 if tag == 1 else 1)
                value = int.from_bytes(struct.pack("<d", last["d"] / 1e6), "little", signed=True)
            elif tag != 3:
                value += last[width]
            if width != "d":
                last[width] = value
            elif tag in (0, 3):
                [time] = struct.unpack("<d", (value % 2**64).to_bytes(8, "little"))
                if 2**32 < time * 1e6 < 2**53 and round(time * 1e6) / 1e6 == time:
                    last["d"] = round(time * 1e6)
            if size > 1:
                known.append(value)
        size = struct.calcsize(width)
        made += (value % 2 ** (8 * size)).to_bytes(size, "little")
    assert at == len(blob)
    return made


@pytest.mark.slow
@given(rows_of())
@settings(deadline=None, max_examples=300)
def test_a_row_unpacks_bit_for_bit_and_matches_the_documented_form(rows: np.ndarray) -> None:
    blobs = pack(rows, 5)
    assert unpack(blobs, ROW, 5).tobytes() == rows.tobytes()
    for row, blob, long in zip(rows, blobs, plain(rows, 5), strict=True):
        assert len(blob) <= len(long), "never longer than the plain form"
        assert as_documented(blob) == row.tobytes() if blob[0] & COMPACT else blob == long


@pytest.mark.slow
@given(rows_of())
@settings(deadline=None)
def test_plain_rows_unpack_among_compact_rows(rows: np.ndarray) -> None:
    old = plain(rows, 5)
    assert {blob[0] for blob in old} == {5}
    assert unpack([*pack(rows, 5), *old], ROW, 5).tobytes() == 2 * rows.tobytes()


def size_of(**fields: object) -> int:
    """Bytes of the values of a compact ROW."""
    row = np.zeros(1, ROW)
    for name, values in fields.items():
        row[name] = values
    [blob] = pack(row, 5)
    assert blob[0] == COMPACT | 5
    maps = blob[1].bit_count()
    n = int.from_bytes(blob[2 : 2 + maps], "little").bit_count()
    return len(blob) - 2 - maps - (n + 3) // 4


def test_values_near_or_equal_to_earlier_values_take_few_bytes() -> None:
    item = 2**61 + 12345
    assert size_of(version=7) == 1
    assert size_of(version=100_000) == 4
    assert size_of(item=[item, 0, 0, 0, 0]) == 8
    assert size_of(item=[item, 0, item - 3 * 2**40, item, 0]) == 8 + 8 + 1, "a repeated item"
    assert size_of(small=[2**30, 2**30 + 100, 2**30 + 40_000, 0, 2**30 + 20_000, 5, 6, 7, 8]) == 4 + 1 + 4 + 2 + 4 + 3
    assert size_of(time=[NOW, NOW + 0.004, NOW + 8_000, NOW + 10, 0]) == 8 + 3 * 3, (
        "times in milliseconds, within a visit"
    )
    assert size_of(time=[NOW, NOW + 0.004001, NOW + 400_000, 0, NOW]) == 8 + 5 + 5 + 1, (
        "times in microseconds, within days"
    )
    assert size_of(time=[NOW, NOW + 600_000, 0, 0, 0]) == 8 + 8, "times further apart"
    assert size_of(time=[NOW, 0.1, 1.0, 2.0, NOW + 1], weight=[1.0, 0, 2.0]) == 8 * 4 + 3 + 2, "weights are not times"


def test_a_reference_reaches_back_256_values() -> None:
    for apart, size in ((256, 1), (257, 4)):
        row = np.zeros(1, LONG)
        row["word"][0, : apart + 1] = np.arange(1, apart + 2) * 1_000_003
        row["word"][0, apart] = row["word"][0, 0]
        row["word"][0, 400:] = 5  # makes the compact form the shorter one
        [blob] = pack(row, 1)
        before = np.array(row)
        before["word"][0, apart] = 0
        assert len(blob) - len(pack(before, 1)[0]) - size in (0, 1, 2), (
            "the bitmap and the tags may take one more byte each"
        )
        assert unpack([blob], LONG, 1).tobytes() == row.tobytes()


def test_a_row_stays_plain_if_the_compact_form_is_longer() -> None:
    rng = np.random.default_rng(3)
    for dtype in (PROFILE, SERVING, LONG):
        noise = rng.integers(1, 256, (2, dtype.itemsize), np.uint8).view(dtype).reshape(2)
        assert pack(noise, 9) == plain(noise, 9)
        assert unpack(pack(noise, 9), dtype, 9).tobytes() == noise.tobytes()


def test_torn_rows_raise_and_mangled_rows_never_crash() -> None:
    row = np.zeros(1, ROW)
    row["version"], row["small"], row["item"], row["time"] = 300, range(9), 2**60, [NOW, NOW + 1, NOW, 1.5, 0]
    [blob] = pack(row, 5)
    for torn in (*(blob[:cut] for cut in range(1, len(blob))), blob + b"\0"):
        with pytest.raises(ValueError, match=f"torn: {len(torn)} bytes"):
            unpack([blob, torn, blob], ROW, 5)
    first = bytes([COMPACT | 5, 1, 1, 0, 0])
    with pytest.raises(ValueError, match="torn"):
        unpack([first], ROW, 5)  # its first value is a reference, but there is no earlier value
    for at in range(1, len(blob)):
        for bit in range(8):
            mangled = blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :]
            try:
                assert len(unpack([mangled], ROW, 5)) == 1
            except ValueError as error:
                assert "torn" in str(error)


def test_field_positions_match_the_bitmaps_of_both_forms() -> None:
    assert [field_position(ROW, name) for name in ROW.names or ()] == [
        (0, 0),
        (2, 1),
        (11, 10),
        (21, 15),
        (31, 20),
        (33, 22),
    ]
    assert (presence_bytes(ROW), presence_bytes(LONG)) == (1, 11)
    for name in ("small", "time", "weight"):
        row = np.zeros(1, ROW)
        row[name].flat[0] = 3 if name == "small" else 0.1
        value = field_position(ROW, name)[1]
        assert pack(row, 5)[0][1:3] == bytes([1 << value // 8, 1 << value % 8])
