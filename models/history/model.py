"""The history model: a GPT-2 over items predicts the shopper's next item from their last interactions.

The ONNX graph takes vectors, not item numbers, and returns one vector: the query. An item's score is its product with
the query. So the catalogue may have any size, and an item added after the training has a vector too: the sum of
vectors of its category, brand, price and title words. Vectors have unit length and are stored in 8 bits with a scale
each. Products are summed in integers, so they are equal to the bit in any batch and on any machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models import manifest
from models.history.ivf_index import IvfIndex, product
from models.onnx_session import create_session
from models.ranker.features import HistoryScores
from stream.ids import IdIndex, find
from stream.items.catalog import Catalog
from stream.jit import njit
from stream.page.candidates import MAX_PROPOSALS, Candidates
from stream.types import F32, I8, I16, I32, I64, Row, Rows

# Files of a history model's folder.
GRAPH, ITEMS, VECTORS, SCALES, ATTRIBUTES = "history.onnx", "items.npy", "vectors.npy", "scales.npy", "attributes.npy"
MAX_INTERACTIONS = 20  # the shopper's last interactions that the model reads
GAP_BUCKETS = 20  # buckets of the time between two interactions, by powers of two of a second; 0 for the first
KIND_CODES = 16  # of interactions, codes of stream.events.decode
MAX_ATTRIBUTES = 10  # attributes whose vectors are summed to an item's vector
PRICE_BUCKET_LOG = 0.35  # width of a bucket of ln(price): one bucket up is half as expensive again
# Largest integer of a query. With 7 bits of a vector and a width of 256, sums stay below 2^31.
_QUERY_MAX = 2047.0
_LANES = 16  # a vector's width in memory is a multiple of this, so that sums use whole registers
_SALT = np.array([0x1B873593, 0x2545F491, 0x6C8E9CF5, 0x7F4A7C15], np.int64)  # category, brand, price, word


class ItemVectors(NamedTuple):
    """Vectors of items in 8 bits: vector . scale has unit length."""

    vectors: I8  # (n, width)
    scales: F32  # (n,)


@njit
def hash_attributes(item: Row, size: int, slots: I32) -> int:
    """Write to slots (MAX_ATTRIBUTES,) the rows of a table of attribute vectors that are summed; return their number.

    item: ITEM row; size: rows of the table, a power of two. Row 0 is in every item's sum.
    """
    slots[0] = 0
    n = 1
    for at in range(3 + item.word.shape[0]):
        if at == 0:
            key = np.int64(item.category)
        elif at == 1:
            key = np.int64(item.brand)
        elif at == 2:
            key = np.int64(np.floor(item.log_price / PRICE_BUCKET_LOG)) + 1000 if item.log_price != 0.0 else np.int64(0)
        else:
            key = np.int64(item.word[at - 3])
        if key != 0:
            mixed = (key ^ _SALT[min(at, 3)]) * np.int64(-7046029254386353131)
            slots[n] = 1 + ((mixed >> 33) & 0x7FFFFFFF) % (size - 1)
            n += 1
    return n


@njit
def hash_all_attributes(items: Rows, size: int, slots: I32) -> None:
    """`hash_attributes` of items (n,) ITEM into slots (n, MAX_ATTRIBUTES) int32, -1 beyond."""
    for i in range(items.shape[0]):
        slots[i, hash_attributes(items[i], size, slots[i]) :] = -1


@njit
def _quantise(vector: F32, packed: I8) -> np.float32:
    """Write a vector to `packed` in 8 bits, zero beyond its width, and return its scale."""
    largest = np.float32(1e-12)
    for k in range(vector.shape[0]):
        largest = max(largest, abs(vector[k]))
    for k in range(packed.shape[0]):
        is_inside = k < vector.shape[0]
        packed[k] = np.int8(np.rint(vector[k] / largest * np.float32(127.0))) if is_inside else np.int8(0)
    return largest / np.float32(127.0)


@njit
def quantise_all(vectors: F32, packed: I8, scales: F32) -> None:
    """Write vectors (n, d) to packed (n, d) in 8 bits and their scales to scales (n,)."""
    for i in range(vectors.shape[0]):
        scales[i] = _quantise(vectors[i], packed[i])


@njit
def _embed(
    rows: I32,
    items: Rows,
    index_keys: I64,
    index_rows: I32,
    trained: ItemVectors,
    attributes: F32,
    embedded: ItemVectors,
    unknown: I8,
) -> None:
    """Write the vectors of the catalogue's `rows` to `embedded` and `unknown`, all (capacity,).

    Items of the training have their own vector, others the normalised sum of their attributes' vectors (size, d).
    index_keys, index_rows: the training's items, for `find`.
    """
    slots = np.empty(MAX_ATTRIBUTES, np.int32)
    total = np.empty(attributes.shape[1], np.float32)
    trained_vectors, trained_scales = trained
    vectors, scales = embedded
    for i in range(rows.shape[0]):
        row = rows[i]
        at = find(index_keys, index_rows, items[row].id)
        unknown[row] = at < 0
        if at >= 0:
            vectors[row, :] = trained_vectors[at]
            scales[row] = trained_scales[at]
            continue
        total[:] = np.float32(0.0)
        for j in range(hash_attributes(items[row], attributes.shape[0], slots)):
            for k in range(total.shape[0]):
                total[k] += attributes[slots[j], k]
        square = np.float32(1e-12)
        for k in range(total.shape[0]):
            square += total[k] * total[k]
        total /= np.sqrt(square)
        scales[row] = _quantise(total, vectors[row])


@njit
def gap_bucket(seconds: float) -> int:
    """Bucket of a time gap: 1 below two seconds, then one more for each doubling, at most GAP_BUCKETS - 1."""
    bucket = 1
    while seconds >= 2.0 and bucket < GAP_BUCKETS - 1:
        seconds /= 2.0
        bucket += 1
    return bucket


@njit
def _read_sequences(
    profiles: Rows,
    index_keys: I64,
    index_rows: I32,
    embedded: ItemVectors,
    inputs: F32,
    gaps: I64,
    kinds: I64,
    last: I64,
) -> None:
    """Write the last interactions of profiles (U,) to the graph's inputs, the oldest first, zeros beyond.

    inputs (U, MAX_INTERACTIONS, d), gaps, kinds (U, MAX_INTERACTIONS); last (U,) is the position of the newest, -1 for
    a shopper without any. index_keys, index_rows: the catalogue's items.
    """
    vectors, scales = embedded
    recent = np.empty(inputs.shape[1], np.int32)
    places = np.empty(inputs.shape[1], np.int32)
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
        inputs[u, n:, :] = np.float32(0.0)
        gaps[u, n:] = 0
        kinds[u, n:] = 0
        for i in range(n):
            row, j = recent[n - 1 - i], places[n - 1 - i]
            for k in range(inputs.shape[2]):
                inputs[u, i, k] = vectors[row, k] * scales[row]
            kinds[u, i] = min(max(p.recent_kind[j], 0), KIND_CODES - 1)
            gaps[u, i] = gap_bucket(p.recent_time[j] - p.recent_time[places[n - i]]) if i > 0 else 0


@njit
def _quantise_queries(queries: F32, packed: I16, unit: F32) -> None:
    """Write queries (U, d) to packed (U, width) in integers, and to unit (U,) the value of an integer of 1."""
    for u in range(queries.shape[0]):
        largest = np.float32(1e-12)
        for k in range(queries.shape[1]):
            largest = max(largest, abs(queries[u, k]))
        unit[u] = largest / np.float32(_QUERY_MAX)
        for k in range(packed.shape[1]):
            packed[u, k] = np.int16(np.rint(queries[u, k] / unit[u])) if k < queries.shape[1] else np.int16(0)


@njit
def _softmax_scores(query: I16, unit: F32, rows: I32, count: I32, embedded: ItemVectors, shares: F32) -> None:
    """Write the softmax of the candidates' scores to shares (U, C); zero beyond the count and without a query.

    query (U, width), unit (U,), rows (U, C), count (U,).
    """
    vectors, scales = embedded
    for u in range(rows.shape[0]):
        n = count[u] if unit[u] > 0.0 else 0
        shares[u, n:] = np.float32(0.0)
        largest = np.float32(-np.inf)
        for c in range(n):
            row = rows[u, c]
            shares[u, c] = np.float32(product(query, u, vectors, row)) * scales[row] * unit[u]
            largest = max(largest, shares[u, c])
        total = np.float32(0.0)
        for c in range(n):
            shares[u, c] = np.exp(shares[u, c] - largest)
            total += shares[u, c]
        for c in range(n):
            shares[u, c] /= total


class HistoryPrediction(NamedTuple):
    """The model's prediction for U shoppers; empty for a shopper without interactions."""

    query: I16  # (U, width)
    unit: F32  # (U,) factor of query . vector . scale to logits; 0 without a history
    rows: I32  # (U, PROPOSED) rows of the catalogue, the most likely first; -1 beyond


class History:
    """A history model read from a folder, and the vectors of a catalogue's items.

    Raises ManifestError if a file is missing or changed.
    """

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder, self.manifest = folder, manifest.load(folder, "history")
        params: dict[str, Any] = self.manifest.params
        self._width = int(params["width"])
        trained: I64 = np.load(folder / ITEMS, allow_pickle=False)
        self._attributes: F32 = np.load(folder / ATTRIBUTES, allow_pickle=False)
        self._trained_index = IdIndex(len(trained))
        self._trained_index.add_all(trained)
        padded = np.zeros((len(trained), -(-self._width // _LANES) * _LANES), np.int8)
        padded[:, : self._width] = np.load(folder / VECTORS, allow_pickle=False)
        self._trained = ItemVectors(padded, np.load(folder / SCALES, allow_pickle=False))
        self._session = create_session(folder / GRAPH)
        self._catalog, self._changed = catalog, catalog.track_changes()
        self.vectors = np.zeros((0, padded.shape[1]), np.int8)  # (capacity, width) of the catalogue's items
        self.scales = np.zeros(0, np.float32)  # (capacity,)
        self._search_index, self._indexed_rows = IvfIndex(), 0
        self.unknown = np.zeros(0, np.int8)  # (capacity,) 1 for items that the model was not trained on
        self.embed_changed_items()

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def embed_changed_items(self) -> None:
        """Compute the vectors of items that were added or changed. `predict` calls it before each batch."""
        catalog, capacity, indexed = self._catalog, len(self.scales), self._indexed_rows
        rows = np.array(sorted(self._changed), np.int32) if indexed else np.arange(len(catalog), dtype=np.int32)
        if capacity < len(catalog.items):
            more = len(catalog.items) - capacity
            self.vectors = np.concatenate([self.vectors, np.zeros((more, self.vectors.shape[1]), np.int8)])
            self.scales = np.concatenate([self.scales, np.zeros(more, np.float32)])
            self.unknown = np.concatenate([self.unknown, np.zeros(more, np.int8)])
        if len(rows):
            self._changed.clear()
            index = self._trained_index
            embedded = ItemVectors(self.vectors, self.scales)
            _embed(rows, catalog.items, index.keys, index.rows, self._trained, self._attributes, embedded, self.unknown)
        if len(catalog) > indexed:
            self._indexed_rows = len(catalog)
            self._search_index.add(indexed, self._indexed_rows, self.vectors, self.scales)

    def predict(self, profiles: Rows) -> HistoryPrediction:
        """Predict the next items of profiles (U,) PROFILE. Equal to the bit alone and in any batch.

        Raises ValueError if the model returns non-finite values.
        """
        self.embed_changed_items()
        u = len(profiles)
        inputs = np.empty((u, MAX_INTERACTIONS, self._width), np.float32)
        gaps, kinds = np.empty((u, MAX_INTERACTIONS), np.int64), np.empty((u, MAX_INTERACTIONS), np.int64)
        last = np.empty(u, np.int64)
        index, embedded = self._catalog.index, ItemVectors(self.vectors, self.scales)
        _read_sequences(profiles, index.keys, index.rows, embedded, inputs, gaps, kinds, last)
        (query,) = self._session.run(
            ["query"], {"vectors": inputs, "gaps": gaps, "kinds": kinds, "last": np.maximum(last, 0)}
        )
        if not np.isfinite(query).all():
            raise ValueError("the history model returned NaN or infinity; train it again")
        packed, unit = np.empty((u, self.vectors.shape[1]), np.int16), np.empty(u, np.float32)
        _quantise_queries(query, packed, unit)
        unit[last < 0] = 0.0
        rows = self._search_index.find(packed, self.vectors, self.scales, MAX_PROPOSALS)
        rows[last < 0] = -1
        return HistoryPrediction(packed, unit, rows)

    def score(self, prediction: HistoryPrediction, candidates: Candidates) -> HistoryScores:
        """The model's own P(C|U) of U shoppers' candidates."""
        shares = np.empty(candidates.rows.shape, np.float32)
        embedded = ItemVectors(self.vectors, self.scales)
        _softmax_scores(prediction.query, prediction.unit, candidates.rows, candidates.count, embedded, shares)
        return HistoryScores(shares, self.unknown)
