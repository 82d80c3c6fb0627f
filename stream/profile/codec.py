"""Records of the changelog: a profile and what was served to its shopper, in one value.

Length of the profile (u16, little-endian), the profile, what was served, each a row at rest (rows.py).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stream.jit import njit
from stream.profile.exposure import SERVING, SERVING_BEFORE, SERVING_VERSION
from stream.profile.fold import PROFILE, PROFILE_VERSION
from stream.row_codec import (
    COMPACT,
    blank_rows,
    cut,
    joined,
    kinds_of,
    longest,
    pack_row,
    place,
    room_for,
    slack,
    tops,
    unpack,
    unpack_row,
    words_of,
)

Rows = npt.NDArray[np.void]

_KINDS, _SERVING_KINDS = kinds_of(np.dtype(PROFILE)), kinds_of(np.dtype(SERVING))


@njit
def _encode_records(profiles, serving, kinds, serving_kinds, out, ends):  # type: ignore[no-untyped-def]
    room, serving_room = room_for(kinds), room_for(serving_kinds)
    at = 0
    for i in range(profiles.shape[0]):
        ends[i] = at
        middle = pack_row(profiles[i], kinds, room, PROFILE_VERSION, out, at + 2)
        out[at], out[at + 1] = (middle - at - 2) & 255, (middle - at - 2) >> 8
        at = pack_row(serving[i], serving_kinds, serving_room, SERVING_VERSION, out, middle)
    ends[profiles.shape[0]] = at


def encode_records(profiles: Rows, serving: Rows) -> list[bytes]:
    """Values of the changelog. profiles (S,) PROFILE; serving (S,) SERVING."""
    ends = np.empty(len(profiles) + 1, np.int64)
    out = np.empty(len(profiles) * (2 + longest(PROFILE) + longest(SERVING)) + slack(PROFILE), np.uint8)
    _encode_records(words_of(profiles), words_of(serving), _KINDS, _SERVING_KINDS, out, ends)
    return cut(out, ends)


@njit
def _decode_records(data, ends, kinds, serving_kinds, profiles, serving):  # type: ignore[no-untyped-def]
    """-> False where a value is torn or of another version."""
    room, serving_room = room_for(kinds), room_for(serving_kinds)
    for i in range(profiles.shape[0]):
        at, end = ends[i], ends[i + 1]
        if at == end:
            continue
        if end - at < 3:
            return False
        middle = at + 2 + np.int64(data[at]) + (np.int64(data[at + 1]) << 8)
        if middle >= end or data[at + 2] & ~COMPACT != PROFILE_VERSION or data[middle] & ~COMPACT != SERVING_VERSION:
            return False
        if not unpack_row(data, at + 2, middle, kinds, room, profiles[i]):
            return False
        if not unpack_row(data, middle, end, serving_kinds, serving_room, serving[i]):
            return False
    return True


def decode_records(values: Sequence[bytes | None]) -> tuple[Rows, Rows]:
    """Profiles (S,) PROFILE and what was served (S,) SERVING, blank for None. Raises ValueError as `unpack`."""
    profiles, serving = blank_rows(len(values), PROFILE), blank_rows(len(values), SERVING)
    data, ends = joined([value or b"" for value in values])
    if b"" not in values and _decode_records(data, ends, _KINDS, _SERVING_KINDS, words_of(profiles), words_of(serving)):
        return profiles, serving
    # One of them was written by an earlier version, or says what is wrong with it.
    known = [at for at, value in enumerate(values) if value is not None]
    pairs = [decode_record(value) for value in values if value is not None]
    profiles, serving = np.zeros(len(values), PROFILE), np.zeros(len(values), SERVING)
    profiles[known] = unpack([pair[0] for pair in pairs], PROFILE, PROFILE_VERSION)
    serving[known] = unpack([pair[1] for pair in pairs], SERVING, SERVING_VERSION, SERVING_BEFORE)
    return profiles, serving


def decode_record(value: bytes) -> tuple[bytes, bytes]:
    """-> profile blob, serving blob. Raises ValueError where the value is too short for what it says."""
    end = 2 + int.from_bytes(value[:2], "little")
    if len(value) < end:
        raise ValueError(f"a changelog value of {len(value)} bytes says that its profile ends at {end}")
    return value[2:end], value[end:]


_OWED_WORD, _OWED_VALUE = place(SERVING, "owed_time")
_MAP = 1 + tops(SERVING)  # where the bitmap of a compact row begins
assert _OWED_WORD % 2 == 0 and max(_OWED_WORD, _OWED_VALUE) < 8, "in the first byte of the bitmap"


def owing_pages(rows: Mapping[bytes, bytes | None]) -> set[bytes]:
    """Keys of the changelog values that say that a page is owed.

    Unpacks nothing but a few bits (rows.py), in one loop: every row is asked, also when a million are recovered. (Values
    that are too short for what they say are left to `decode_record`.)
    """
    return {
        key
        for key, row in rows.items()
        if row is not None
        and (at := 2 + row[0] + (row[1] << 8) if len(row) > 1 else 0) + _MAP < len(row)
        and (
            row[at + 1] & row[at + _MAP] >> _OWED_VALUE & 1
            if row[at] == COMPACT | SERVING_VERSION
            else row[at] == SERVING_VERSION and row[at + 1] >> _OWED_WORD & 3
        )
    }


_TOUCHED_WORD = place(SERVING, "touched")[0]


@njit
def _touched(data, ends, kinds, words, touched):  # type: ignore[no-untyped-def]
    """NaN for rows of older versions, 0 for torn ones. Room for one row: words (W,) int32."""
    room = room_for(kinds)
    for i in range(touched.shape[0]):
        at, end = ends[i], ends[i + 1]
        start = at + 2 + np.int64(data[at]) + (np.int64(data[at + 1]) << 8) if end - at > 2 else end
        touched[i] = 0.0
        if start < end and data[start] & ~COMPACT != SERVING_VERSION:
            touched[i] = np.nan
        elif start < end:
            words[:] = 0
            if unpack_row(data, start, end, kinds, room, words):
                touched[i] = words[_TOUCHED_WORD]


def touched_at(values: Sequence[bytes]) -> list[float]:
    """When the shopper of each changelog record was last seen, by her partition's event time (s); 0 for one who stays.

    Unpacks the smaller part alone: the sweep asks it of every row. What is torn is left to whoever reads it. Rows of before
    version 3 have the time of her newest event.
    """
    touched = np.empty(len(values))
    _touched(*joined(values), _SERVING_KINDS, np.empty(SERVING.itemsize // 4, np.int32), touched)
    before = np.flatnonzero(np.isnan(touched)).tolist()
    if before:
        profiles = unpack([decode_record(values[at])[0] for at in before], PROFILE, PROFILE_VERSION)
        touched[before] = profiles["last_seen"]
    found: list[float] = touched.tolist()
    return found
