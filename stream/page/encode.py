"""Bytes of pages and impressions: heads as text, items by the kernels of `json_kernels`."""

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
import numpy as np

from stream.codes import SLOTS
from stream.items.catalog import Catalog
from stream.page.json_kernels import PHI_VERSION, write_impressions, write_pages
from stream.row_codec import join_blobs, max_packed_bytes, split_blobs, unpack
from stream.times import rfc3339
from stream.types import F32, I32, Rows

CHANNEL_CARDS = {"app": 8, "social": 4}  # items that a channel with little space shows
_json = msgspec.json.Encoder().encode
_CARDS_JSON = _json(CHANNEL_CARDS)
# Upper bounds in JSON: the figures and the reason of an item, the tokens after a slot, an impression's tokens.
_ITEM_BYTES, _SLOT_END_BYTES, _IMPRESSION_END_BYTES = 260, 4, 20


class Models(NamedTuple):
    """The models that made a page."""

    ranker: str  # version
    head: str  # of the ranker, one of `stream.settings.HEADS`
    history: str | None = None  # version; None if it was not used
    copywriter: str | None = None  # version


class PageHead(NamedTuple):
    """The part of a page before its slots."""

    user_key: str
    version: int
    generated_at: float  # s since the epoch
    expires_at: float
    event_id: str  # of the event that triggered the page
    event_time: float
    mode: str
    locale: str  # of the titles of its slots


@lru_cache(1024)
def page_id(user_key: str, version: int) -> str:
    """Id of a page, derived from its shopper and version: a page that is regenerated keeps its id."""
    return blake2b(f"{user_key}\0{version}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def slot_head(slot: int, title: str, source: str) -> bytes:
    """JSON of a slot up to its items."""
    return b'{"slot":"%s","title":%s,"title_source":"%s","items":[' % (
        SLOTS[slot].encode(), msgspec.json.encode(title), source.encode(),
    )  # fmt: skip


def _items_bytes(count: I32, catalog: Catalog) -> int:
    """Upper bound of the JSON size of all items on the pages: each has its own id, its reason's id, and figures."""
    items: int = sum(count.tolist())
    return items * (2 * catalog.longest_fragment + _ITEM_BYTES)


def encode_pages(
    placed: Rows,
    count: I32,
    heads: Sequence[PageHead],
    slot_heads: Sequence[bytes],
    slot_of: I32,
    catalog: Catalog,
    models: Models,
    rules_applied: Sequence[str],
) -> list[bytes]:
    """U pages as JSON of schema homepage/1.

    placed (U, MAX_PAGE_ITEMS) PLACED; count (U,). slot_heads are outputs of `slot_head`; slot_of (U, slots) has the
    index into them for each slot of each page.
    """
    made_by = b'"ranker":%s,"head":%s,"history":%s,"copywriter":%s}' % (
        _json(models.ranker), _json(models.head), _json(models.history), _json(models.copywriter),
    )  # fmt: skip
    rest = b',"rules_applied":%s,"slots":[' % _json(list(rules_applied))
    texts = [
        b'{"schema":"homepage/1","page_id":"%s","user_key":%s,"version":%d,"locale":"%s","generated_at":"%s",'
        b'"expires_at":"%s","trigger":{"event_id":%s,"event_time":"%s"},"channel_cards":%s,"serving":{"mode":"%s",%s%s'
        % (
            page_id(head.user_key, head.version).encode(), _json(head.user_key), head.version,
            head.locale.encode(), rfc3339(head.generated_at).encode(), rfc3339(head.expires_at).encode(),
            _json(head.event_id), rfc3339(head.event_time).encode(), _CARDS_JSON, head.mode.encode(), made_by, rest,
        )
        for head in heads
    ]  # fmt: skip
    longest_slot_head = max(map(len, slot_heads), default=0)
    page_end = len(SLOTS) * (longest_slot_head + _SLOT_END_BYTES) + _SLOT_END_BYTES
    size = sum(map(len, texts)) + len(heads) * page_end
    out = np.empty(size + _items_bytes(count, catalog), np.uint8)
    ends = np.empty(len(heads) + 1, np.int64)
    write_pages(
        placed, count, *join_blobs([*texts, *slot_heads]), slot_of, catalog.fragments, catalog.fragment_at, out, ends
    )
    return split_blobs(out, ends)


def encode_impressions(
    placed: Rows,
    count: I32,
    heads: Sequence[PageHead],
    phi: F32,
    catalog: Catalog,
    models: Models,
    features_hash: str,
) -> list[bytes]:
    """What U pages showed, as JSON of schema impression/1.

    placed (U, MAX_PAGE_ITEMS) PLACED; count (U,); phi (count.sum(), F) has a row for each item shown, in page order.
    """
    made_by = b'"ranker":%s,"head":%s,"history":%s,"features_hash":%s' % (
        _json(models.ranker), _json(models.head), _json(models.history), _json(features_hash),
    )  # fmt: skip
    texts = [
        b'{"schema":"impression/1","page_id":"%s","user_key":%s,"version":%d,"time":"%s",%s,"phi":"'
        % (
            page_id(head.user_key, head.version).encode(),
            _json(head.user_key),
            head.version,
            rfc3339(head.event_time).encode(),
            made_by,
        )
        for head in heads
    ]
    phi_bytes = 4 + len(phi) * (4 * max_packed_bytes(_words_dtype((phi.shape[1] + 1) // 2)) // 3 + 1)
    size = sum(map(len, texts)) + len(heads) * _IMPRESSION_END_BYTES + phi_bytes
    out = np.empty(size + _items_bytes(count, catalog), np.uint8)
    ends = np.empty(len(heads) + 1, np.int64)
    write_impressions(
        placed, count, *join_blobs(texts), phi.view(np.int32), catalog.fragments, catalog.fragment_at, out, ends
    )
    return split_blobs(out, ends)


@lru_cache(8)
def _words_dtype(n: int) -> np.dtype[Any]:
    """Row of n 4-byte words."""
    return np.dtype([("words", "<i4", n)])


def unpack_phi(data: bytes, features: int) -> F32:
    """(n, features) float32 of an impression's decoded phi: rows of little-endian float16, packed by `pack_plain`.

    Raises ValueError for truncated bytes.
    """
    words = (features + 1) // 2
    blobs, at, bitmap = [], 0, (words + 7) // 8
    while at < len(data):
        end = at + 1 + bitmap + 4 * int.from_bytes(data[at + 1 : at + 1 + bitmap], "little").bit_count()
        blobs.append(data[at:end])
        at = end
    rows = unpack(blobs, _words_dtype(words), PHI_VERSION)
    return rows.view("<f2").reshape(len(blobs), 2 * words)[:, :features].astype(np.float32)
