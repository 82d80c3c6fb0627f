"""Why an item is on a page: the largest theta_i phi_i that explains something to the shopper."""

import numpy as np

from models.ranker.columns import REASON_OF, F
from models.ranker.kernels import CatalogView
from stream.codes import (
    REASON_BOUGHT_BEFORE,
    REASON_EXPLORING,
    REASON_NEW,
    REASON_NEXT,
    REASON_POPULAR,
    REASON_TOGETHER,
)
from stream.items.catalog import Catalog
from stream.items.signals import Signals
from stream.jit import njit
from stream.page.candidates import RECENT_ITEMS, distinct_recent
from stream.types import F32, I8, I32, Bools, Row, Rows


@njit
def largest_term(x: F32, theta: F32, reason_of: I8) -> tuple[int, float]:
    """Return the reason code and the weight of the largest positive theta_i x_i that has a reason.

    x, theta, reason_of (F,). If no term is positive, the reason is POPULAR with weight 0.
    """
    largest, reason = 0.0, REASON_POPULAR
    for f in range(x.shape[0]):
        weight = theta[f] * x[f]
        if reason_of[f] >= 0 and weight > largest:
            largest, reason = weight, reason_of[f]
    return reason, largest


@njit
def _name_nearest(item: Row, recent: I32, count: int, signal_rows: Rows, neighbour_rows: I32) -> None:
    """Set item.reason_row (a PLACED row) to the recent item whose strongest neighbour it is; mutates `item`."""
    strongest = 0.0
    for a in range(count):
        s = signal_rows[recent[a]]
        for k in range(neighbour_rows.shape[1]):
            if neighbour_rows[recent[a], k] == item.row:
                strength = np.float64(s.near_next[k] if item.reason == REASON_NEXT else s.near_visit[k]) / (a + 1.0)
                if strength > strongest:
                    strongest = strength
                    item.reason_row = recent[a]


@njit
def _explain(
    profiles: Rows,
    placed: Rows,
    count: I32,
    personal: Bools,
    phi: F32,
    theta: F32,
    reason_of: I8,
    catalog: CatalogView,
    signal_rows: Rows,
    neighbour_rows: I32,
    shown_phi: F32,
) -> None:
    """`explain` on arrays; mutates `placed` and shown_phi (count.sum(), F)."""
    recent = np.empty(RECENT_ITEMS, np.int32)
    n = 0
    for u in range(placed.shape[0]):
        recent_count = distinct_recent(profiles[u], catalog.index_keys, catalog.index_rows, recent)
        for j in range(count[u]):
            item = placed[u, j]
            shown_phi[n, :] = phi[u, item.candidate]
            n += 1
            if not personal[u] or item.reason == REASON_EXPLORING:
                continue
            reason, item.weight = largest_term(phi[u, item.candidate], theta, reason_of)
            if item.reason != REASON_NEW and item.reason != REASON_BOUGHT_BEFORE:
                item.reason = reason
            if item.reason == REASON_NEXT or item.reason == REASON_TOGETHER:
                _name_nearest(item, recent, recent_count, signal_rows, neighbour_rows)


def explain(
    profiles: Rows,
    placed: Rows,
    count: I32,
    personal: Bools,
    phi: F32,
    theta: F32,
    catalog: Catalog,
    signals: Signals,
) -> F32:
    """Set the reason of each item of the personal pages in `placed`; return phi of all items shown.

    profiles (U,) PROFILE; placed (U, positions) PLACED; count (U,) items; personal (U,); phi (U, C, F); theta (F, 1).
    Returns (count.sum(), F) float32. The reason is the largest theta_i phi_i, unless the slot implies a reason. A
    reason of transitions or co-visits also names the recent item that the item is nearest to.
    """
    shown_phi = np.empty((sum(count.tolist()), F), np.float32)
    _explain(
        profiles,
        placed,
        count,
        personal,
        phi,
        theta.reshape(-1),
        REASON_OF,
        CatalogView(catalog.index.keys, catalog.index.rows, catalog.items),
        signals.rows,
        signals.neighbour_rows,
        shown_phi,
    )
    return shown_phi
