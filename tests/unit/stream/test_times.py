"""Times as numbers: the unit follows from the size."""

from datetime import UTC, datetime

import pytest

from stream.events.lenient import read_time
from stream.times import EARLIEST_S, LATEST_S, from_epoch, record_seconds

NOON = datetime(2026, 11, 30, 12, 0, 0, 250_000, UTC)
SECONDS = NOON.timestamp()


@pytest.mark.parametrize("written", [SECONDS, int(SECONDS * 1000), int(SECONDS * 1_000_000), f"{SECONDS * 1000:.0f}"])
def test_a_number_is_read_in_its_unit(written: float | str) -> None:
    assert read_time(written) == NOON


@pytest.mark.parametrize("written", [0, -1, 12_345, EARLIEST_S - 1, LATEST_S + 1, 1e30, "20261130", "noon", True, None])
def test_a_number_that_is_no_time_in_any_unit_is_not_read(written: object) -> None:
    assert read_time(written) is None


def test_no_number_is_a_time_in_two_units() -> None:
    assert LATEST_S < EARLIEST_S * 1_000 and LATEST_S * 1_000 < EARLIEST_S * 1_000_000
    assert [from_epoch(edge) is not None for edge in (EARLIEST_S, LATEST_S)] == [True, True]


@pytest.mark.parametrize("factor", [1.0, 0.001, 1000.0])
def test_a_record_timestamp_may_be_in_s_ms_or_us(factor: float) -> None:
    assert record_seconds(SECONDS * factor) == pytest.approx(SECONDS, abs=1e-3)
    assert record_seconds(-0.001) is None and record_seconds(0.0) is None
