"""From profiles to candidates and phi, the same for serving, replay, training and evaluation."""

from models.history.model import History, HistoryPrediction
from models.ranker.features import NO_HISTORY_SCORES, joint_features
from stream.items.catalog import Catalog
from stream.items.signals import Signals
from stream.items.trending import Trending
from stream.page.candidates import NO_PROPOSALS, Candidates, retrieve
from stream.types import F32, F64, Rows


def retrieve_candidates(
    profiles: Rows,
    shown_at: F64,
    catalog: Catalog,
    signals: Signals,
    trending: Trending,
    prediction: HistoryPrediction | None,
    default_locale: int = 1,
) -> Candidates:
    """Return the candidates of U shoppers, the history model's proposals included.

    profiles (U,) PROFILE; shown_at (U,) in s: an item that has expired by then is no candidate.
    """
    proposals = NO_PROPOSALS if prediction is None else prediction.rows
    return retrieve(profiles, shown_at, catalog, signals, trending, default_locale, proposals=proposals)


def featurize(
    profiles: Rows,
    serving: Rows,
    now: F64,
    candidates: Candidates,
    catalog: Catalog,
    signals: Signals,
    history: History | None,
    prediction: HistoryPrediction | None,
    out: F32 | None = None,
) -> F32:
    """Return phi (U, C, F) of the candidates, the history model's scores included.

    profiles (U,) PROFILE; serving (U,) SERVING; now (U,) each shopper's newest event time in s. `out`: the array to
    write to.
    """
    scores = NO_HISTORY_SCORES if history is None or prediction is None else history.score(prediction, candidates)
    return joint_features(profiles, serving, now, candidates, catalog, signals, out, scores)
