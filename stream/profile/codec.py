"""Values of the profile changelog: a profile and its serving state in one value.

Layout: length of the packed profile (u16, little-endian), the packed profile, the packed serving state.
`row_codec` documents packed rows.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from stream.jit import njit
from stream.profile.exposure import OLD_SERVING_DTYPES, SERVING, SERVING_VERSION
from stream.profile.row import OLD_PROFILE_DTYPES, PROFILE, PROFILE_VERSION
from stream.row_codec import (
    COMPACT,
    blank_rows,
    field_position,
    join_blobs,
    max_packed_bytes,
    pack_row,
    pack_slack,
    presence_bytes,
    scratch_for,
    split_blobs,
    unpack,
    unpack_row,
    value_kinds,
    words_of,
)
from stream.types import F64, I32, I64, U8, Rows

_KINDS, _SERVING_KINDS = value_kinds(np.dtype(PROFILE)), value_kinds(np.dtype(SERVING))


@njit
def _encode_records(profiles: I32, serving: I32, kinds: U8, serving_kinds: U8, out: U8, ends: I64) -> None:
    """Pack pairs of rows, given as words (S, W), into out one after the other. Fills ends (S + 1,)."""
    scratch, serving_scratch = scratch_for(kinds), scratch_for(serving_kinds)
    at = 0
    for i in range(profiles.shape[0]):
        ends[i] = at
        middle = pack_row(profiles[i], kinds, scratch, PROFILE_VERSION, out, at + 2)
        out[at], out[at + 1] = (middle - at - 2) & 255, (middle - at - 2) >> 8
        at = pack_row(serving[i], serving_kinds, serving_scratch, SERVING_VERSION, out, middle)
    ends[profiles.shape[0]] = at


def encode_records(profiles: Rows, serving: Rows) -> list[bytes]:
    """Changelog values of profiles (S,) PROFILE and serving (S,) SERVING."""
    ends = np.empty(len(profiles) + 1, np.int64)
    record_bytes = 2 + max_packed_bytes(PROFILE) + max_packed_bytes(SERVING)
    out = np.empty(len(profiles) * record_bytes + pack_slack(PROFILE), np.uint8)
    _encode_records(words_of(profiles), words_of(serving), _KINDS, _SERVING_KINDS, out, ends)
    return split_blobs(out, ends)


@njit
def _decode_records(data: U8, ends: I64, kinds: U8, serving_kinds: U8, profiles: I32, serving: I32) -> bool:
    """Unpack changelog values into words (S, W). Return False if a value is torn or of another version."""
    scratch, serving_scratch = scratch_for(kinds), scratch_for(serving_kinds)
    for i in range(profiles.shape[0]):
        at, end = ends[i], ends[i + 1]
        if at == end:
            continue
        if end - at < 3:
            return False
        middle = at + 2 + np.int64(data[at]) + (np.int64(data[at + 1]) << 8)
        if middle >= end or data[at + 2] & ~COMPACT != PROFILE_VERSION or data[middle] & ~COMPACT != SERVING_VERSION:
            return False
        if not unpack_row(data, at + 2, middle, kinds, scratch, profiles[i]):
            return False
        if not unpack_row(data, middle, end, serving_kinds, serving_scratch, serving[i]):
            return False
    return True


def decode_records(values: Sequence[bytes | None]) -> tuple[Rows, Rows]:
    """Profiles (S,) PROFILE and serving state (S,) SERVING of changelog values; blank rows for None.

    Raises ValueError as `unpack` does.
    """
    profiles, serving = blank_rows(len(values), PROFILE), blank_rows(len(values), SERVING)
    data, ends = join_blobs([value or b"" for value in values])
    if b"" not in values and _decode_records(data, ends, _KINDS, _SERVING_KINDS, words_of(profiles), words_of(serving)):
        return profiles, serving
    # The slow path reads values of earlier versions and raises for torn ones.
    known = [at for at, value in enumerate(values) if value is not None]
    pairs = [decode_record(value) for value in values if value is not None]
    profiles, serving = blank_rows(len(values), PROFILE), blank_rows(len(values), SERVING)
    words_of(profiles)[known] = words_of(unpack_profiles([pair[0] for pair in pairs]))
    unpacked = unpack([pair[1] for pair in pairs], SERVING, SERVING_VERSION, OLD_SERVING_DTYPES)
    words_of(serving)[known] = words_of(unpacked)
    return profiles, serving


def unpack_profiles(blobs: Sequence[bytes]) -> Rows:
    """Profiles (n,) PROFILE of packed rows, of earlier versions too. Raises ValueError as `unpack` does.

    Rows of version 1 have no times of consent. A refusal counts as stated at the newest event known, a grant at the
    oldest: in doubt the refusal wins.
    """
    profiles = unpack(blobs, PROFILE, PROFILE_VERSION, OLD_PROFILE_DTYPES)
    old = [at for at, blob in enumerate(blobs) if blob[0] & ~COMPACT == 1]
    if old:
        consent, oldest = profiles["consent"][old], profiles["first_seen"][old]
        newest = profiles["id_time"][old].max(axis=1).astype(np.float64)
        refused = np.where(consent < 0, newest, 0.0)
        granted = np.where(consent > 0, np.where(oldest > 0, oldest, newest), 0.0)
        profiles["consent_time"][old] = refused + granted
        profiles["refused_time"][old], profiles["granted_time"][old] = refused, granted
    return profiles


def decode_record(value: bytes) -> tuple[bytes, bytes]:
    """Packed profile and packed serving state of one changelog value. Raises ValueError if the value is cut short."""
    end = 2 + int.from_bytes(value[:2], "little")
    if len(value) < end:
        raise ValueError(f"a changelog value of {len(value)} bytes says that its profile ends at {end}")
    return value[2:end], value[end:]


_OWED_WORD, _OWED_VALUE = field_position(SERVING, "owed_time")
_BITMAP = 1 + presence_bytes(SERVING)  # offset of the bitmap of a compact row
assert _OWED_WORD % 2 == 0 and max(_OWED_WORD, _OWED_VALUE) < 8, "owed_time must be in the first byte of the bitmap"


def owing_pages(rows: Mapping[bytes, bytes | None]) -> set[bytes]:
    """Keys of the changelog values whose shopper is owed a page: `owed_time` is not zero.

    Recovery checks every row, even a million. One loop therefore tests a few bits (`row_codec`) and unpacks nothing.
    Values that are cut short are skipped; `decode_record` reports them.
    """
    return {
        key
        for key, row in rows.items()
        if row is not None
        and (at := 2 + row[0] + (row[1] << 8) if len(row) > 1 else 0) + _BITMAP < len(row)
        and (
            row[at + 1] & row[at + _BITMAP] >> _OWED_VALUE & 1
            if row[at] == COMPACT | SERVING_VERSION
            else row[at] == SERVING_VERSION and row[at + 1] >> _OWED_WORD & 3
        )
    }


_TOUCHED_WORD = field_position(SERVING, "touched")[0]


@njit
def _touched_at(data: U8, ends: I64, kinds: U8, words: I32, touched: F64) -> None:
    """Fill touched (S,): NaN for values of other versions, 0 for torn ones. words (W,) is scratch for one row."""
    scratch = scratch_for(kinds)
    for i in range(touched.shape[0]):
        at, end = ends[i], ends[i + 1]
        start = at + 2 + np.int64(data[at]) + (np.int64(data[at + 1]) << 8) if end - at > 2 else end
        touched[i] = 0.0
        if start < end and data[start] & ~COMPACT != SERVING_VERSION:
            touched[i] = np.nan
        elif start < end:
            words[:] = 0
            if unpack_row(data, start, end, kinds, scratch, words):
                touched[i] = words[_TOUCHED_WORD]


def touched_at(values: Sequence[bytes]) -> list[float]:
    """When each shopper was last seen, in event time of their partition, s; 0 for a profile that never expires.

    The sweep calls this for every row, so that only the serving state is unpacked. Torn values give 0; they are
    reported when they are read. Rows older than version 3 give the time of the shopper's newest event.
    """
    touched = np.empty(len(values))
    _touched_at(*join_blobs(values), _SERVING_KINDS, np.empty(SERVING.itemsize // 4, np.int32), touched)
    old = np.flatnonzero(np.isnan(touched)).tolist()
    if old:
        profiles = unpack_profiles([decode_record(values[at])[0] for at in old])
        touched[old] = profiles["last_seen"]
    found: list[float] = touched.tolist()
    return found
