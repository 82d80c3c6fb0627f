"""Times as text: seconds since the epoch to RFC 3339 and back."""

from datetime import UTC, datetime
from functools import lru_cache


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
