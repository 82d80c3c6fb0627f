"""GPT-2 over items: what a shopper touched last in, what she will touch next out, in ONNX Runtime.

The graph takes vectors, not numbers of items, and gives one vector: an item's score is its product with that. So the
catalogue may be of any size, and an item that came after the training has a vector too, made of its category, brand,
price and title words. Vectors are of unit length, in 8 bits with a scale each; products are summed in integers, so that
they are the same to the bit in any batch and on any machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import manifest
from models.history.ivf_index import IvfIndex, product
from models.onnx_session import session
from models.ranker.features import HistoryScores
from stream.ids import IdIndex, find
from stream.items.catalog import Catalog
from stream.jit import njit
from stream.page.candidates import MAX_PROPOSALS, Candidates

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]

GRAPH, ITEMS, VECTORS, SCALES, ATTRIBUTES = "history.onnx", "items.npy", "vectors.npy", "scales.npy", "attributes.npy"
LENGTH = 20  # interactions that are read, the last ones
GAPS = 20  # buckets of the time between two of them, by powers of two of a second; 0 for the first
KINDS = 16  # of interactions, codes of stream.events
SLOTS_OF_ITEM = 10  # attributes that an item's vector is made of at most
PRICE_STEP = 0.35  # of ln(price): a bucket is half as dear again
_QUERY = 2047.0  # a query's largest number in integers: with 7 bits of a vector and 256 of them, sums stay below 2^31
_LANES = 16  # a vector's width in memory is a multiple, so that its sum is one of whole registers
_SALT = np.array([0x1B873593, 0x2545F491, 0x6C8E9CF5, 0x7F4A7C15], np.int64)  # category, brand, price, word


@njit
def attribute_slots(item, size, out):  # type: ignore[no-untyped-def]
    """Rows of a table of `size` (a power of two) that an ITEM row's vector is the sum of, into out (SLOTS_OF_ITEM,). -> how many.

    Row 0 is in every item's.
    """
    out[0] = 0
    n = 1
    for at in range(3 + item.word.shape[0]):
        if at == 0:
            key = np.int64(item.category)
        elif at == 1:
            key = np.int64(item.brand)
        elif at == 2:
            key = np.int64(np.floor(item.log_price / PRICE_STEP)) + 1000 if item.log_price != 0.0 else np.int64(0)
        else:
            key = np.int64(item.word[at - 3])
        if key != 0:
            mixed = (key ^ _SALT[min(at, 3)]) * np.int64(-7046029254386353131)
            out[n] = 1 + ((mixed >> 33) & 0x7FFFFFFF) % (size - 1)
            n += 1
    return n


@njit
def all_attribute_slots(items, size, out):  # type: ignore[no-untyped-def]
    """`attribute_slots` of (n,) ITEM into out (n, SLOTS_OF_ITEM) int32, -1 beyond."""
    for i in range(items.shape[0]):
        out[i, attribute_slots(items[i], size, out[i]) :] = -1


@njit
def _quantise(vector, into):  # type: ignore[no-untyped-def]
    """A vector in 8 bits, zero beyond its width. -> its scale."""
    most = np.float32(1e-12)
    for k in range(vector.shape[0]):
        most = max(most, abs(vector[k]))
    for k in range(into.shape[0]):
        into[k] = np.int8(np.rint(vector[k] / most * np.float32(127.0))) if k < vector.shape[0] else np.int8(0)
    return most / np.float32(127.0)


@njit
def quantise_all(vectors, packed, scales):  # type: ignore[no-untyped-def]
    """Vectors (n, d) float32 in 8 bits (n, d) int8, and a scale of each (n,)."""
    for i in range(vectors.shape[0]):
        scales[i] = _quantise(vectors[i], packed[i])


@njit
def _embed(rows, items, index_keys, index_rows, known, known_scale, attributes, vectors, scales, unknown):  # type: ignore[no-untyped-def]
    slots = np.empty(SLOTS_OF_ITEM, np.int32)
    sum_ = np.empty(attributes.shape[1], np.float32)
    for i in range(rows.shape[0]):
        row = rows[i]
        at = find(index_keys, index_rows, items[row].id)
        unknown[row] = at < 0
        if at >= 0:
            vectors[row, :] = known[at]
            scales[row] = known_scale[at]
            continue
        sum_[:] = np.float32(0.0)
        for j in range(attribute_slots(items[row], attributes.shape[0], slots)):
            for k in range(sum_.shape[0]):
                sum_[k] += attributes[slots[j], k]
        square = np.float32(1e-12)
        for k in range(sum_.shape[0]):
            square += sum_[k] * sum_[k]
        sum_ /= np.sqrt(square)
        scales[row] = _quantise(sum_, vectors[row])


@njit
def gap_bucket(seconds):  # type: ignore[no-untyped-def]
    """1 up to a second, then one more for each doubling, GAPS - 1 at most."""
    bucket = 1
    while seconds >= 2.0 and bucket < GAPS - 1:
        seconds /= 2.0
        bucket += 1
    return bucket


@njit
def _sequences(profiles, index_keys, index_rows, vectors, scales, out, gaps, kinds, last):  # type: ignore[no-untyped-def]
    """The last interactions of each, the oldest first, zeros beyond; `last` becomes the place of the newest, -1 for none."""
    recent = np.empty(out.shape[1], np.int32)
    places = np.empty(out.shape[1], np.int32)
    for u in range(profiles.shape[0]):
        p = profiles[u]
        n = 0
        for j in range(p.recent_item.shape[0] - 1, -1, -1):
            if p.recent_item[j] == 0 or n == recent.shape[0]:
                break
            row = find(index_keys, index_rows, p.recent_item[j])
            if row >= 0 and row < scales.shape[0]:
                recent[n], places[n] = row, j
                n += 1
        last[u] = n - 1
        out[u, n:, :] = np.float32(0.0)
        gaps[u, n:] = 0
        kinds[u, n:] = 0
        for i in range(n):
            row, j = recent[n - 1 - i], places[n - 1 - i]
            for k in range(out.shape[2]):
                out[u, i, k] = vectors[row, k] * scales[row]
            kinds[u, i] = min(max(p.recent_kind[j], 0), KINDS - 1)
            gaps[u, i] = gap_bucket(p.recent_time[j] - p.recent_time[places[n - i]]) if i > 0 else 0


@njit
def _whole(queries, whole, unit):  # type: ignore[no-untyped-def]
    """Queries (U, d) in integers (U, width) int16, and what a one stands for (U,)."""
    for u in range(queries.shape[0]):
        most = np.float32(1e-12)
        for k in range(queries.shape[1]):
            most = max(most, abs(queries[u, k]))
        unit[u] = most / np.float32(_QUERY)
        for k in range(whole.shape[1]):
            whole[u, k] = np.int16(np.rint(queries[u, k] / unit[u])) if k < queries.shape[1] else np.int16(0)


@njit
def _shares(whole, unit, rows, count, vectors, scales, out):  # type: ignore[no-untyped-def]
    """Softmax of the scores of each shopper's candidates into out (U, C); zero beyond the count, and without a query."""
    for u in range(rows.shape[0]):
        n = count[u] if unit[u] > 0.0 else 0
        out[u, n:] = np.float32(0.0)
        most = np.float32(-np.inf)
        for c in range(n):
            row = rows[u, c]
            out[u, c] = np.float32(product(whole, u, vectors, row)) * scales[row] * unit[u]
            most = max(most, out[u, c])
        total = np.float32(0.0)
        for c in range(n):
            out[u, c] = np.exp(out[u, c] - most)
            total += out[u, c]
        for c in range(n):
            out[u, c] /= total


class HistoryPrediction(NamedTuple):
    """What the model makes of U shoppers; of one who has touched nothing it makes nothing."""

    query: npt.NDArray[np.int16]  # (U, width)
    unit: Floats  # (U,) what a one of query . vector . scale is in logits; 0 where there is no history
    rows: npt.NDArray[np.int32]  # (U, PROPOSED) of the catalogue, the likeliest first; -1 beyond


class History:
    """A history model read from a folder, and the vectors of a catalogue's items.

    Raises ManifestError where a file is missing or changed.
    """

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder, self.manifest = folder, manifest.load(folder, "history")
        params: dict[str, Any] = self.manifest.params
        self._width = int(params["width"])
        known: npt.NDArray[np.int64] = np.load(folder / ITEMS, allow_pickle=False)
        self._attributes: Floats = np.load(folder / ATTRIBUTES, allow_pickle=False)
        self._vocabulary = IdIndex(len(known))
        self._vocabulary.add_all(known)
        self._known = np.zeros((len(known), -(-self._width // _LANES) * _LANES), np.int8)
        self._known[:, : self._width] = np.load(folder / VECTORS, allow_pickle=False)
        self._known_scale: Floats = np.load(folder / SCALES, allow_pickle=False)
        self._session = session(folder / GRAPH)
        self._catalog, self._changed = catalog, catalog.track_changes()
        self.vectors = np.zeros((0, self._known.shape[1]), np.int8)  # (capacity, width) of the catalogue's items
        self.scales = np.zeros(0, np.float32)  # (capacity,)
        self._nearest, self._rows = IvfIndex(), 0
        self.unknown = np.zeros(0, np.int8)  # (capacity,) 1 for items that the training has not seen
        self.fit()

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def fit(self) -> None:
        """Make vectors of the items that have come or changed: call before a batch reads them."""
        catalog, size, known = self._catalog, len(self.scales), self._rows
        rows = np.array(sorted(self._changed), np.int32) if known else np.arange(len(catalog), dtype=np.int32)
        if size < len(catalog.items):
            more = len(catalog.items) - size
            self.vectors = np.concatenate([self.vectors, np.zeros((more, self.vectors.shape[1]), np.int8)])
            self.scales = np.concatenate([self.scales, np.zeros(more, np.float32)])
            self.unknown = np.concatenate([self.unknown, np.zeros(more, np.int8)])
        if len(rows):
            self._changed.clear()
            _embed(
                rows, catalog.items, self._vocabulary.keys, self._vocabulary.rows, self._known, self._known_scale,
                self._attributes, self.vectors, self.scales, self.unknown,
            )  # fmt: skip
        if len(catalog) > known:
            self._rows = len(catalog)
            self._nearest.add(known, self._rows, self.vectors, self.scales)

    def predict(self, profiles: Rows) -> HistoryPrediction:
        """What U shoppers will touch next. profiles (U,) PROFILE. The same to the bit alone and in any batch."""
        self.fit()
        u = len(profiles)
        vectors = np.empty((u, LENGTH, self._width), np.float32)
        gaps, kinds, last = np.empty((u, LENGTH), np.int64), np.empty((u, LENGTH), np.int64), np.empty(u, np.int64)
        index = self._catalog.index
        _sequences(profiles, index.keys, index.rows, self.vectors, self.scales, vectors, gaps, kinds, last)
        (query,) = self._session.run(
            ["query"], {"vectors": vectors, "gaps": gaps, "kinds": kinds, "last": np.maximum(last, 0)}
        )
        if not np.isfinite(query).all():
            raise ValueError("the history model gives numbers that are none; train it again")
        whole, unit = np.empty((u, self.vectors.shape[1]), np.int16), np.empty(u, np.float32)
        _whole(query, whole, unit)
        unit[last < 0] = 0.0
        rows = self._nearest.find(whole, self.vectors, self.scales, MAX_PROPOSALS)
        rows[last < 0] = -1
        return HistoryPrediction(whole, unit, rows)

    def judge(self, foresight: HistoryPrediction, candidates: Candidates) -> HistoryScores:
        """The model's own P(C|U) among U shoppers' candidates."""
        shares = np.empty(candidates.rows.shape, np.float32)
        _shares(
            foresight.query, foresight.unit, candidates.rows, candidates.count, self.vectors, self.scales, shares
        )  # fmt: skip
        return HistoryScores(shares, self.unknown)
