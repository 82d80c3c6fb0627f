"""Times as text: seconds since the epoch to RFC 3339 and back. Times as numbers of several units."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache

# Range of event times: from 2000-01-01 to the end of the 32-bit seconds that profiles store.
EARLIEST_S, LATEST_S = 946_684_800, 2_147_483_000
# Units of a time since the epoch, per second: s, ms, us. Within the range, no number is a time in two of them.
EPOCH_UNITS = (1, 1_000, 1_000_000)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def from_epoch(number: float) -> datetime | None:
    """Time of a number of s, ms or us since the epoch; None if it is outside of the range of event times in all."""
    for unit in EPOCH_UNITS:
        if EARLIEST_S * unit <= number <= LATEST_S * unit:
            # Whole numbers stay exact.
            micros = number * (1_000_000 // unit)
            return _EPOCH + timedelta(microseconds=micros if isinstance(number, int) else round(micros))
    return None


def record_seconds(timestamp_s: float) -> float | None:
    """Timestamp of a Kafka record, in s, of a producer that may have written s or us instead of ms.

    timestamp_s: the record's timestamp as ms, in s. None if it is no event time in any of these units.
    """
    for factor in (1.0, 1_000.0, 0.001):
        if EARLIEST_S <= timestamp_s * factor <= LATEST_S:
            return timestamp_s * factor
    return None


@lru_cache(1024)  # the pages and impressions of one step repeat the same few times
def rfc3339(epoch_s: float) -> str:
    """Time in UTC with milliseconds, rounded: 2026-11-29T22:17:05.123Z."""
    return datetime.fromtimestamp(round(epoch_s * 1000) / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def rfc3339_us(epoch_s: float) -> str:
    """Time in UTC with microseconds: 2026-11-29T22:17:05.123456Z."""
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> float:
    """Seconds since the epoch of a time with a zone. Raises ValueError for other text."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
