"""The page path over a small shop, and events for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.page.headline_cache import HeadlineCache, HeadlineRequest
from agents.page.path import PagePath, PageResult, Policy
from models.ranker.model import Ranker
from stream.degradation import Degradation
from stream.events.decode import Decoded, decode_run
from stream.settings import SHIPPED_MODELS
from tests.harness.events import NOW, record
from tests.harness.shop import catalog_of, signals_of

SESSIONS = [[f"i{(7 * s + k) % 60}" for k in range(4)] for s in range(80)]
PACED = Degradation(sheds_headlines=True, sheds_exploration=True, page_interval_s=8.0)


ARRIVED = NOW + 9999  # s, timestamp of every record
FIRST_VERSION = int(ARRIVED * 1000)  # of a shopper's page


def path_of(**policy: Any) -> PagePath:
    """A page path with the shipped ranker, 80 items and signals of SESSIONS."""
    catalog = catalog_of(80)
    return PagePath(
        catalog, signals_of(catalog, SESSIONS), Ranker(SHIPPED_MODELS / "ranker"), HeadlineCache(), Policy(**policy)
    )


def decoded(*records: tuple[bytes, bytes]) -> tuple[Decoded, np.ndarray]:
    """The records of a run as the page path takes them, and their offsets."""
    run = decode_run([v for _, v in records], [k for k, _ in records], [ARRIVED] * len(records), "clicks")
    return run, np.arange(len(records))


def views(shoppers: int, each: int) -> list[tuple[bytes, bytes]]:
    """`each` views of every shopper, in turn; odd shoppers read Chinese."""
    return [
        record("view_item", f"u{s}", f"e{s}-{k}", NOW + k, item=f"i{(s * 3 + k) % 60}", locale=("en", "zh")[s % 2])
        for k in range(each)
        for s in range(shoppers)
    ]


def rows_of(result: PageResult) -> dict[bytes, bytes]:
    """The stored rows after a result."""
    return {key: value for key, value in result.changelog if value is not None}


def requests_of(result: PageResult) -> Sequence[HeadlineRequest]:
    """All headline requests of a result."""
    return [request for page in result.pages for request in page.headline_requests]
