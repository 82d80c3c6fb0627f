"""Why an item is on a page: the theta_i phi_i that speaks the most for it."""

import numpy as np
import numpy.typing as npt

from models.ranker.columns import REASON_OF, F
from stream.items.catalog import Catalog
from stream.items.signals import Signals
from stream.jit import njit
from stream.page.candidates import RECENT_ITEMS, distinct_recent
from stream.page.json_kernels import AGAIN_BOUGHT, EXPLORING, NEW, NEXT, POPULAR, TOGETHER

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]


@njit
def largest_term(x, theta, reason_of):  # type: ignore[no-untyped-def]
    """-> code of stream.page.REASONS, weight: the largest theta_i x_i that speaks for an item; POPULAR, 0 where none."""
    best, code = 0.0, POPULAR
    for f in range(x.shape[0]):
        weight = theta[f] * x[f]
        if reason_of[f] >= 0 and weight > best:
            best, code = weight, reason_of[f]
    return code, best


@njit
def _explain(profiles, placed, count, personal, phi, theta, reason_of, index_keys, index_rows, signals,  # type: ignore[no-untyped-def]
             near_row, shown):  # fmt: skip
    recent = np.empty(RECENT_ITEMS, np.int32)
    n = 0
    for u in range(placed.shape[0]):
        r = distinct_recent(profiles[u], index_keys, index_rows, recent)
        for j in range(count[u]):
            item = placed[u, j]
            shown[n, :] = phi[u, item.candidate]
            n += 1
            if not personal[u] or item.reason == EXPLORING:
                continue
            code, item.weight = largest_term(phi[u, item.candidate], theta, reason_of)
            if item.reason != NEW and item.reason != AGAIN_BOUGHT:
                item.reason = code
            if item.reason != NEXT and item.reason != TOGETHER:
                continue
            best = 0.0
            for a in range(r):
                s = signals[recent[a]]
                for k in range(near_row.shape[1]):
                    if near_row[recent[a], k] == item.row:
                        strength = np.float64(s.near_next[k] if item.reason == NEXT else s.near_visit[k]) / (a + 1.0)
                        if strength > best:
                            best = strength
                            item.reason_row = recent[a]


def explain(
    profiles: Rows,
    placed: Rows,
    count: npt.NDArray[np.int32],
    personal: npt.NDArray[np.bool_],
    phi: Floats,
    theta: Floats,
    catalog: Catalog,
    signals: Signals,
) -> Floats:
    """In place: the exact reason of each item of a personal page. -> phi of the items shown (count.sum(), F) float32.

    profiles (U,) PROFILE; placed (U, POSITIONS) PLACED; count (U,); personal (U,); phi (U, C, F); theta (F, 1). The
    reason is the largest theta_i phi_i that speaks for the item, but where the slot is one. Where an item stands for
    its neighbourhood, the reason names the one of the last items that it is the nearest to.
    """
    shown = np.empty((sum(count.tolist()), F), np.float32)
    _explain(
        profiles, placed, count, personal, phi, theta.reshape(-1), REASON_OF, catalog.index.keys, catalog.index.rows,
        signals.rows, signals.near_row, shown,
    )  # fmt: skip
    return shown
