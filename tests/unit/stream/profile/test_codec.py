"""Changelog values: profiles and serving state come back bit for bit, also from earlier releases."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.events.decode import CLICK, CONSENT
from stream.ids import key32
from stream.profile.codec import decode_record, decode_records, encode_records, owing_pages, touched_at, unpack_profiles
from stream.profile.exposure import OLD_SERVING_DTYPES, SERVING, SERVING_VERSION
from stream.profile.fold import fold
from stream.profile.row import OLD_PROFILE_DTYPES, PROFILE, PROFILE_VERSION, RECENT_ITEMS, blank_profiles
from stream.row_codec import COMPACT, pack, unpack
from tests.harness.events import NOW, folded, golden_events, row, shopper_events

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.slow
@given(shopper_events())
@settings(deadline=None)
def test_a_packed_profile_is_at_most_5_kb_and_unpacks_bit_for_bit(events: np.ndarray) -> None:
    profiles = np.array([folded(events), blank_profiles(1)[0], folded(events[:1])])
    blobs = pack(profiles, PROFILE_VERSION)
    assert unpack(blobs, PROFILE, PROFILE_VERSION).tobytes() == profiles.tobytes()
    assert max(map(len, blobs)) <= 5000


def test_the_largest_profile_fits_into_5_kb() -> None:
    full = np.random.default_rng(1).integers(1, 256, PROFILE.itemsize, np.uint8).view(PROFILE)
    assert len(pack(full, 1)[0]) <= 5000


def test_packing_no_rows_gives_no_bytes() -> None:
    assert pack(blank_profiles(0), PROFILE_VERSION) == []
    assert len(unpack([], PROFILE, PROFILE_VERSION)) == 0


def test_rows_of_another_version_and_torn_rows_raise_clear_errors() -> None:
    blob = pack(blank_profiles(1), PROFILE_VERSION)[0]
    with pytest.raises(ValueError, match="version 9"):
        unpack([b"\x09" + blob[1:]], PROFILE, PROFILE_VERSION)
    for torn in (blob[:-1], blob + b"\0", blob[:1]):
        with pytest.raises(ValueError, match="torn"):
            unpack([torn], PROFILE, PROFILE_VERSION)
    with pytest.raises(ValueError, match="none"):
        unpack([b""], PROFILE, PROFILE_VERSION)
    with pytest.raises(ValueError, match="says that its profile ends"):
        decode_record(b"\xff\xff12")


@pytest.mark.slow
@given(st.lists(shopper_events(), max_size=3), st.integers(1, 2**40))
@settings(deadline=None)
def test_a_changelog_value_is_a_length_a_profile_and_serving_state(histories: list[np.ndarray], version: int) -> None:
    profiles, serving = np.array([*map(folded, histories)], PROFILE), np.zeros(len(histories), SERVING)
    serving["version"], serving["fatigue_time"] = version, 3
    values = encode_records(profiles, serving)
    for value, one, other in zip(values, pack(profiles, PROFILE_VERSION), pack(serving, SERVING_VERSION), strict=True):
        assert value == len(one).to_bytes(2, "little") + one + other
        assert decode_record(value) == (one, other)
    read = decode_records([None, *values])
    assert read[0].tobytes() == blank_profiles(1).tobytes() + profiles.tobytes()
    assert read[1].tobytes() == bytes(SERVING.itemsize) + serving.tobytes()


def test_values_of_earlier_versions_are_read_and_torn_values_raise() -> None:
    serving = np.zeros(1, SERVING)
    serving["version"] = 9
    [value] = encode_records(blank_profiles(1), serving)
    profile_blob, serving_blob = decode_record(value)
    before = np.zeros(1, OLD_SERVING_DTYPES[1])
    before["version"] = 8
    old = value[: -len(serving_blob)] + pack(before, 1)[0]
    assert decode_records([value, None, old])[1]["version"].tolist() == [9, 0, 8]
    for torn, why in (
        (value[:-1], "torn"),
        (value[:2] + b"\x09" + value[3:], "version 9"),
        (value[:1], "says that its profile ends"),
        (b"", "says that its profile ends"),
        (value[: 2 + len(profile_blob)], "version none"),
    ):
        with pytest.raises(ValueError, match=why):
            decode_records([value, torn])


def test_current_code_reads_rows_of_version_1() -> None:
    path = GOLDEN / "profile-1.bin"
    profile_blob, serving_blob = decode_record(path.read_bytes())
    profile = unpack_profiles([profile_blob])[0]
    assert profile.tobytes() == folded(golden_events()).tobytes()
    served = unpack([serving_blob], SERVING, SERVING_VERSION, OLD_SERVING_DTYPES)
    serving = served[0]
    assert (serving["version"], serving["shown_item"][0]) == (7, key32("lamp"))


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("form", ["plain", "compact"])
def test_current_code_reads_both_forms_of_versions_1_to_3(version: int, form: str) -> None:
    value = (GOLDEN / f"profile-{version}-serving-3-{form}.bin").read_bytes()
    profile_blob, serving_blob = decode_record(value)
    assert (profile_blob[0], serving_blob[0]) == ((version, 3) if form == "plain" else (COMPACT | version, COMPACT | 3))
    assert unpack_profiles([profile_blob])[0].tobytes() == folded(golden_events()).tobytes()
    assert decode_records([value, value])[0].tobytes() == 2 * folded(golden_events()).tobytes()
    serving = unpack([serving_blob], SERVING, SERVING_VERSION, OLD_SERVING_DTYPES)[0]
    assert (serving["version"], serving["touched"], serving["owed_time"]) == (7, NOW + 400, NOW + 400)
    assert serving["shown_item"][:3].tolist() == [key32("lamp"), key32("mug"), 0]
    assert (serving["fatigue_item"][0], serving["fatigue_count"][0]) == (key32("mug"), 1.5)
    assert owing_pages({b"u1": value}) == {b"u1"} and touched_at([value]) == [NOW + 400]


def test_current_code_reads_the_interactions_outside_of_the_ring() -> None:
    stored = unpack_profiles([(GOLDEN / "profile-3-overflow.bin").read_bytes()])
    expected = folded(np.concatenate([row(CLICK, f"i{k}", NOW + k) for k in range(RECENT_ITEMS + 8)]))
    assert stored[0].tobytes() == expected.tobytes()
    assert expected["overflow_day"] == NOW // 86_400 and np.unpackbits(expected["overflow"]).sum() == 8


def test_consent_in_rows_of_version_1_gets_a_time_by_which_refusals_win() -> None:
    granted, refused, unstated = (
        unpack_profiles([decode_record((GOLDEN / name).read_bytes())[0]])[0]
        for name in ("profile-1-granted.bin", "profile-1-refused.bin", "profile-1.bin")
    )
    assert [OLD_PROFILE_DTYPES[version].itemsize for version in (1, 2)] == [3968, 4768]
    fields = ["consent", "consent_time", "refused_time", "granted_time"]
    assert granted[fields].item() == (1, NOW, 0.0, NOW), "stated at the oldest event"
    assert refused[fields].item() == (-1, NOW + 400, NOW + 400, 0.0), "stated at the newest event"
    assert unstated[fields].item() == (0, 0.0, 0.0, 0.0)
    for profile, statement, consent in (
        (granted, row(CONSENT, time=NOW + 100, consent=-1), -1),
        (granted, row(CONSENT, time=NOW - 100, consent=-1), 1),
        (refused, row(CONSENT, time=NOW + 399, consent=1), -1),
        (refused, row(CONSENT, time=NOW + 401, consent=1), 1),
    ):
        profiles = np.array([profile])
        fold(profiles, np.zeros(1, np.int32), statement)
        assert profiles["consent"].tolist() == [consent]
    assert granted["recent_item"].any() and not refused["recent_item"].any()
