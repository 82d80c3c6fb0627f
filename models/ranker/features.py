"""phi(U, C): the named features of a shopper and a candidate that the ranker reads, the same for serving and training.

Columns and their meaning: `columns.py`. Kernels: `kernels.py`.
"""

from typing import NamedTuple

import numpy as np

from models.ranker.columns import F
from models.ranker.kernels import CatalogView, SignalsView, fill_features
from stream.items.catalog import Catalog
from stream.items.signals import Signals
from stream.page.candidates import Candidates
from stream.types import F32, F64, I8, Rows


class HistoryScores(NamedTuple):
    """What a history model predicts of U shoppers' candidates."""

    shares: F32  # (U, C) softmax over the candidates; a row of zeros: no prediction. (0, 0) without a history model
    unknown: I8  # (capacity of the catalogue,) 1 for items that the model was not trained on


NO_HISTORY_SCORES = HistoryScores(np.empty((0, 0), np.float32), np.empty(0, np.int8))


def joint_features(
    profiles: Rows,
    serving: Rows,
    now: F64,
    candidates: Candidates,
    catalog: Catalog,
    signals: Signals,
    out: F32 | None = None,
    history_scores: HistoryScores = NO_HISTORY_SCORES,
) -> F32:
    """phi of U shoppers and their candidates, (U, C, F) float32, zero beyond the count.

    profiles (U,) PROFILE; serving (U,) SERVING; now (U,) each shopper's own newest event time, in seconds. A shopper's
    features are equal to the bit alone and in any batch. `out`: the array to write to and return, a new one if None.
    """
    phi = out if out is not None else np.empty((*candidates.rows.shape, F), np.float32)
    signals.grow_to_catalog()
    fill_features(
        profiles,
        serving,
        now,
        candidates.rows,
        candidates.generators,
        candidates.count,
        CatalogView(catalog.index.keys, catalog.index.rows, catalog.items),
        SignalsView(
            signals.rows, signals.neighbour_rows, signals.summaries, signals.seen, signals.half_lives, signals.clock
        ),
        history_scores.shares,
        history_scores.unknown,
        phi,
    )
    return phi
