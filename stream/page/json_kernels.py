"""The page: slots filled from scored candidates, and its bytes."""

import string
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from stream.codes import SLOTS
from stream.events import Event
from stream.items.catalog import Catalog, Item
from stream.jit import njit
from stream.row_codec import join_blobs, max_packed_bytes, pack_plain, split_blobs, unpack

Rows = npt.NDArray[np.void]

# Position is the code; append only.
MODES = ("full", "cached_copy", "popular", "static")
REASONS = (
    "POPULAR",
    "VIEWED_TOGETHER",
    "VIEWED_NEXT",
    "VIEWED_BEFORE",
    "YOUR_CATEGORY",
    "YOUR_BRAND",
    "YOUR_PRICE",
    "YOUR_SEARCH",
    "BOUGHT_BEFORE",
    "IN_YOUR_CART",
    "NEW",
    "EXPLORING",
    "FITS_YOUR_HISTORY",
)
POPULAR, TOGETHER, NEXT, BEFORE, CATEGORY, BRAND, PRICE, WORD, AGAIN_BOUGHT, IN_CART, NEW, EXPLORING, FITS = range(
    len(REASONS)
)

POSITIONS = 40  # items of a page, at most
PHI_VERSION = 1
# Generators that proposed a candidate, one bit each.
(
    GEN_NEXT,
    GEN_TOGETHER,
    GEN_POPULAR,
    GEN_CATEGORY,
    GEN_FRESH,
    GEN_BOUGHT,
    GEN_CART,
    GEN_RECENT,
    GEN_ANCHOR,
    GEN_HISTORY,
) = (1 << bit for bit in range(10))  # ANCHOR: a neighbour of the very last item

PLACED = np.dtype(
    [
        ("row", "i4"),  # the item's row in the catalogue
        ("candidate", "i4"),  # its column among the shopper's candidates
        ("score", "f4"),  # softmax among the items shown in its slot: sums to 1 over the slot
        ("propensity", "f4"),  # chance that the policy shows this item at this position, given the positions before it
        ("weight", "f4"),  # of the reason
        ("reason_row", "i4"),  # the item that the reason speaks of; -1 none
        ("slot", "i1"),
        ("position", "i1"),  # 1-based within the slot
        ("explored", "i1"),
        ("reason", "i1"),
    ]
)


# The payloads, from which JSON Schema is generated. The writers below make their bytes; the types are the oracle.


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    code: Literal[REASONS]  # type: ignore[valid-type]
    weight: float
    item_id: str | None = None  # the item that the reason speaks of


class PageItem(msgspec.Struct, frozen=True):
    item_id: str
    kind: str
    position: Annotated[int, msgspec.Meta(ge=1, le=POSITIONS)]
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    propensity: Annotated[float, msgspec.Meta(gt=0, le=1)]
    explored: bool
    reason: Reason


class Slot(msgspec.Struct, frozen=True):
    slot: Literal[SLOTS[1:]]  # type: ignore[valid-type]
    title: str
    title_source: Literal["gpt2", "template"]
    items: Annotated[list[PageItem], msgspec.Meta(min_length=1)]


class Trigger(msgspec.Struct, frozen=True):
    event_id: str
    event_time: str


class Serving(msgspec.Struct, frozen=True):
    mode: Literal[MODES]  # type: ignore[valid-type]
    ranker: str
    history: str | None
    copywriter: str | None


class Homepage(msgspec.Struct, frozen=True):
    """What a storefront shows a shopper: schema `homepage/1`. Of one shopper the highest version holds."""

    schema: Literal["homepage/1"]
    page_id: str
    user_key: str
    version: Annotated[int, msgspec.Meta(ge=1)]
    generated_at: str
    expires_at: str
    trigger: Trigger
    channel_cards: dict[str, int]
    serving: Serving
    rules_applied: list[str]
    slots: list[Slot]


class ImpressionItem(msgspec.Struct, frozen=True):
    item_id: str
    kind: str
    slot: Literal[SLOTS[1:]]  # type: ignore[valid-type]
    position: int
    score: float
    propensity: float
    explored: bool


class Impression(msgspec.Struct, frozen=True):
    """What a page showed, for training: schema `impression/1`. `phi` is base64 of what `unpacked_phi` reads."""

    schema: Literal["impression/1"]
    page_id: str
    user_key: str
    version: int
    time: str
    ranker: str
    features_hash: str
    phi: str
    items: list[ImpressionItem]


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of every payload that crosses the product's border, by `name/version`."""
    types = {"event/1": Event, "item/1": Item, "homepage/1": Homepage, "impression/1": Impression}
    return {
        name: {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
        for name, kind in types.items()
    }


class PageHead(NamedTuple):
    """What a page says before its slots."""

    user_key: str
    version: int
    generated_at: float  # s since the epoch
    expires_at: float
    event_id: str  # of the event that it answers
    event_time: float
    mode: str


CARDS = {"app": 8, "social": 4}  # items that a channel of little room shows
_json = msgspec.json.Encoder().encode
_CARDS = _json(CARDS)


@lru_cache(1024)
def page_id(user_key: str, version: int) -> str:
    """The same for the same page, so that a page made twice is one page."""
    return blake2b(f"{user_key}\0{version}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


@lru_cache(1024)  # a step says the same few times on all of its pages and impressions
def rfc3339(time: float) -> str:
    """UTC with milliseconds."""
    return datetime.fromtimestamp(round(time * 1000) / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def slot_head(slot: int, title: str, source: str) -> bytes:
    """The JSON of a slot up to its items."""
    return b'{"slot":"%s","title":%s,"title_source":"%s","items":[' % (
        SLOTS[slot].encode(), msgspec.json.encode(title), source.encode(),
    )  # fmt: skip


def _table(parts: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    return join_blobs([part.encode() for part in parts])


_TOKENS, _TOKEN_AT = _table(
    (',"position":', ',"score":', ',"propensity":', ',"explored":true', ',"explored":false', ',"reason":{"code":"',
     '","weight":', "}}", "]}", ',"slot":"', '","items":[', '"')
)  # fmt: skip
_POSITION, _SCORE, _PROPENSITY, _TRUE, _FALSE, _REASON, _WEIGHT, _END_ITEM, _END_LIST, _SLOT, _ITEMS, _QUOTE = range(12)
_REASON_NAMES, _REASON_AT = _table(REASONS)
_SLOT_NAMES, _SLOT_AT = _table(SLOTS)
_PAIRS = np.frombuffer(b"".join(b"%02d" % pair for pair in range(100)), np.uint8)
_E8, _E4, _E2, _TEN = np.uint64(100_000_000), np.uint32(10_000), np.uint32(100), np.uint64(10)
_SIX_BITS = np.frombuffer(string.ascii_uppercase.encode() + string.ascii_lowercase.encode() + b"0123456789+/", np.uint8)
_KIND_BYTES = len(',"kind":"product"')  # at the end of an item's fragment


@njit
def _put(out, at, source, start, end):  # type: ignore[no-untyped-def]
    for j in range(end - start):
        out[at + j] = source[start + j]
    return at + end - start


@njit
def _token(out, at, token):  # type: ignore[no-untyped-def]
    return _put(out, at, _TOKENS, _TOKEN_AT[token], _TOKEN_AT[token + 1])


@njit
def _whole(out, at, value):  # type: ignore[no-untyped-def]
    digits = 1
    power = 10
    while value >= power:
        power *= 10
        digits += 1
    for j in range(digits - 1, -1, -1):
        out[at + j] = 48 + value % 10
        value //= 10
    return at + digits


@njit
def _decimal(out, at, value):  # type: ignore[no-untyped-def]
    """`value` with eight decimals; beyond 1e9 it is cut."""
    if value < 0.0:
        out[at] = 45
        at += 1
        value = -value
    scaled = np.uint64(min(value, 1e9) * 1e8 + 0.5)
    whole = scaled // _E8
    if whole < _TEN:
        out[at] = 48 + np.uint8(whole)
        at += 1
    else:
        at = _whole(out, at, np.int64(whole))
    out[at] = 46
    # Two digits at a time, in halves that do not wait for each other.
    part = np.uint32(scaled - whole * _E8)
    high, low = part // _E4, part % _E4
    for j, pair in ((1, high // _E2), (3, high % _E2), (5, low // _E2), (7, low % _E2)):
        out[at + j] = _PAIRS[2 * pair]
        out[at + j + 1] = _PAIRS[2 * pair + 1]
    return at + 9


@njit
def _figures(out, at, item):  # type: ignore[no-untyped-def]
    at = _whole(out, _token(out, at, _POSITION), np.int64(item.position))
    at = _decimal(out, _token(out, at, _SCORE), np.float64(item.score))
    at = _decimal(out, _token(out, at, _PROPENSITY), np.float64(item.propensity))
    return _token(out, at, _TRUE if item.explored else _FALSE)


@njit
def _write_pages(placed, count, texts, text_at, slot_of, fragments, fragment_at, out, ends):  # type: ignore[no-untyped-def]
    """texts: the heads of the pages, then those of the slots."""
    at = ends[0] = 0
    for u in range(placed.shape[0]):
        at = _put(out, at, texts, text_at[u], text_at[u + 1])
        slot = -1
        for j in range(count[u]):
            item = placed[u, j]
            if item.slot != slot:
                if slot >= 0:
                    at = _token(out, at, _END_LIST)
                    out[at] = 44
                    at += 1
                slot = item.slot
                head = placed.shape[0] + slot_of[u, slot]
                at = _put(out, at, texts, text_at[head], text_at[head + 1])
            else:
                out[at] = 44
                at += 1
            at = _put(out, at, fragments, fragment_at[item.row, 0], fragment_at[item.row, 1])
            at = _token(out, _figures(out, at, item), _REASON)
            at = _put(out, at, _REASON_NAMES, _REASON_AT[item.reason], _REASON_AT[item.reason + 1])
            at = _decimal(out, _token(out, at, _WEIGHT), np.float64(item.weight))
            if item.reason_row >= 0 and fragment_at[item.reason_row, 1] > 0:  # else an item that only signals know
                # `{"item_id":"SKU1","kind":"product"` holds the id as it stands in a reason.
                out[at] = 44
                start, end = fragment_at[item.reason_row, 0] + 1, fragment_at[item.reason_row, 1] - _KIND_BYTES
                at = _put(out, at + 1, fragments, start, end)
            at = _token(out, at, _END_ITEM)
        if slot >= 0:
            at = _token(out, at, _END_LIST)
        at = _token(out, at, _END_LIST)
        ends[u + 1] = at


@njit
def half(bits):  # type: ignore[no-untyped-def]
    """The bits of the float16 that is nearest to the float32 of `bits`, of two the even one: as numpy's `astype`."""
    sign, rest = (bits >> 16) & 0x8000, bits & 0x7FFFFFFF
    if rest >= 0x38800000:
        if rest > 0x7F800000:  # NaN stays NaN
            return sign | max(0x7C00 + ((rest & 0x7FFFFF) >> 13), 0x7C01)
        if rest >= 0x47800000:
            return sign | 0x7C00  # too large: infinite
        return sign | ((rest - 0x38000000 + 0xFFF + ((rest >> 13) & 1)) >> 13)
    shift = 126 - (rest >> 23)
    if shift > 24:
        return sign
    fraction = (rest & 0x7FFFFF) | 0x800000  # below 2**-14 in units of 2**-24
    return sign | ((fraction + (1 << (shift - 1)) - 1 + ((fraction >> shift) & 1)) >> shift)


@njit
def _base64(out, at, data, size):  # type: ignore[no-untyped-def]
    for i in range(0, size - size % 3, 3):
        bits = (np.int64(data[i]) << 16) | (np.int64(data[i + 1]) << 8) | np.int64(data[i + 2])
        for j in range(4):
            out[at + j] = _SIX_BITS[(bits >> (18 - 6 * j)) & 63]
        at += 4
    left = size % 3
    if left > 0:
        bits = np.int64(data[size - left]) << 16
        if left == 2:
            bits |= np.int64(data[size - 1]) << 8
        for j in range(4):
            out[at + j] = _SIX_BITS[(bits >> (18 - 6 * j)) & 63] if j <= left else 61
        at += 4
    return at


@njit
def _write_impressions(placed, count, texts, text_at, phi, fragments, fragment_at, out, ends):  # type: ignore[no-untyped-def]
    """phi (count.sum(), F): the bits of float32, as int32."""
    words = np.zeros((phi.shape[1] + 1) // 2, np.int32)
    packed = np.empty(POSITIONS * (5 + 5 * words.shape[0]), np.uint8)
    at, n = 0, 0
    ends[0] = 0
    for u in range(placed.shape[0]):
        at = _put(out, at, texts, text_at[u], text_at[u + 1])
        size = 0
        for _ in range(count[u]):
            for k in range(phi.shape[1]):
                if k % 2 == 0:
                    words[k // 2] = half(np.int64(phi[n, k]))
                else:
                    words[k // 2] |= np.int32(half(np.int64(phi[n, k])) << 16)
            size = pack_plain(words, PHI_VERSION, packed, size)
            n += 1
        at = _token(out, _base64(out, at, packed, size), _ITEMS)
        for j in range(count[u]):
            item = placed[u, j]
            if j > 0:
                out[at] = 44
                at += 1
            at = _put(out, at, fragments, fragment_at[item.row, 0], fragment_at[item.row, 1])
            at = _put(out, _token(out, at, _SLOT), _SLOT_NAMES, _SLOT_AT[item.slot], _SLOT_AT[item.slot + 1])
            at = _figures(out, _token(out, at, _QUOTE), item)
            out[at] = 125
            at += 1
        at = _token(out, at, _END_LIST)
        ends[u + 1] = at


def _shown_bytes(count: npt.NDArray[np.int32], catalog: Catalog) -> int:
    """Upper bound of what the items of U pages take in JSON: each its id, its reason's, and figures."""
    items: int = sum(count.tolist())
    return items * (2 * catalog.longest_fragment + 260)


def encode_pages(
    placed: Rows,
    count: npt.NDArray[np.int32],
    heads: Sequence[PageHead],
    slot_heads: Sequence[bytes],
    slot_of: npt.NDArray[np.int32],
    catalog: Catalog,
    ranker: str,
    history: str | None,
    copywriter: str | None,
    rules_applied: Sequence[str],
) -> list[bytes]:
    """U pages as JSON of schema homepage/1.

    placed (U, POSITIONS) PLACED and count (U,); slot_heads are made by `slot_head`, slot_of (U, slots) says which of them
    each slot of each page takes.
    """
    models = b'"ranker":%s,"history":%s,"copywriter":%s}' % (_json(ranker), _json(history), _json(copywriter))
    rest = b',"rules_applied":%s,"slots":[' % _json(list(rules_applied))
    texts = [
        b'{"schema":"homepage/1","page_id":"%s","user_key":%s,"version":%d,"generated_at":"%s","expires_at":"%s",'
        b'"trigger":{"event_id":%s,"event_time":"%s"},"channel_cards":%s,"serving":{"mode":"%s",%s%s'
        % (
            page_id(h.user_key, h.version).encode(), _json(h.user_key), h.version, rfc3339(h.generated_at).encode(),
            rfc3339(h.expires_at).encode(), _json(h.event_id), rfc3339(h.event_time).encode(), _CARDS, h.mode.encode(),
            models, rest,
        )
        for h in heads
    ]  # fmt: skip
    longest_slot = max(map(len, slot_heads), default=0)
    size = sum(map(len, texts)) + len(heads) * (len(SLOTS) * (longest_slot + 4) + 4)
    out = np.empty(size + _shown_bytes(count, catalog), np.uint8)
    ends = np.empty(len(heads) + 1, np.int64)
    _write_pages(
        placed, count, *join_blobs([*texts, *slot_heads]), slot_of, catalog.fragments, catalog.fragment_at, out, ends
    )
    return split_blobs(out, ends)


@lru_cache(8)
def _words(n: int) -> np.dtype[Any]:
    """A row of n words."""
    return np.dtype([("words", "<i4", n)])


def unpacked_phi(data: bytes, features: int) -> npt.NDArray[np.float32]:
    """(n, features) float32 of an impression's phi: rows of float16, little-endian, as `rows.pack` packs them.

    Raises ValueError for torn bytes.
    """
    words = (features + 1) // 2
    blobs, at, bitmap = [], 0, (words + 7) // 8
    while at < len(data):
        end = at + 1 + bitmap + 4 * int.from_bytes(data[at + 1 : at + 1 + bitmap], "little").bit_count()
        blobs.append(data[at:end])
        at = end
    rows = unpack(blobs, _words(words), PHI_VERSION)
    return rows.view("<f2").reshape(len(blobs), 2 * words)[:, :features].astype(np.float32)


def encode_impressions(
    placed: Rows,
    count: npt.NDArray[np.int32],
    heads: Sequence[PageHead],
    phi: npt.NDArray[np.float32],
    catalog: Catalog,
    ranker: str,
    features_hash: str,
) -> list[bytes]:
    """What U pages showed as JSON of schema impression/1; phi (count.sum(), F) is of the items shown, in order."""
    models = b'"ranker":%s,"features_hash":%s' % (_json(ranker), _json(features_hash))
    texts = [
        b'{"schema":"impression/1","page_id":"%s","user_key":%s,"version":%d,"time":"%s",%s,"phi":"'
        % (
            page_id(h.user_key, h.version).encode(),
            _json(h.user_key),
            h.version,
            rfc3339(h.event_time).encode(),
            models,
        )
        for h in heads
    ]
    phi_bytes = 4 + len(phi) * (4 * max_packed_bytes(_words((phi.shape[1] + 1) // 2)) // 3 + 1)
    size = sum(map(len, texts)) + len(heads) * 20 + phi_bytes
    out = np.empty(size + _shown_bytes(count, catalog), np.uint8)
    ends = np.empty(len(heads) + 1, np.int64)
    _write_impressions(
        placed, count, *join_blobs(texts), phi.view(np.int32), catalog.fragments, catalog.fragment_at, out, ends
    )
    return split_blobs(out, ends)
