"""The page path, from a run of events to pages: fold, retrieve, predict, compute features, score, assemble, encode.

No Kafka, and no clock but a stopwatch. One synchronous call handles all shoppers of a run. The agents call it to serve,
the simulator to train.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from agents.page.fold_step import (
    FoldedPartition,
    FoldReport,
    FoldRules,
    PageTrigger,
    PartitionInput,
    defer,
    fold_partitions,
    is_too_soon,
)
from agents.page.headline_cache import HeadlineCache, HeadlineRequest, RefreshRequest
from agents.page.slot_titles import TitleChooser
from models.featurize import featurize, retrieve_candidates
from models.history.model import History, HistoryPrediction
from models.ranker.columns import features_hash
from models.ranker.model import Scorer, is_distribution
from models.ranker.reasons import explain
from stream.degradation import Degradation
from stream.events.decode import ADD, BUY, CLICK, EVENT, HIDE, HOME, VIEW, Decoded
from stream.ids import key64
from stream.items.activity import decode_activity, encode_activity
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals
from stream.items.trending import Trending
from stream.locales import LOCALES
from stream.page.assembly import PageRules, Placements, assemble
from stream.page.candidates import Candidates, retrieve_popular
from stream.page.encode import Models, PageHead, encode_impressions, encode_pages
from stream.profile.codec import encode_records, touched_at
from stream.profile.exposure import next_page, remember_shown
from stream.profile.fold import top_categories
from stream.row_codec import rows_at
from stream.types import F32, F64, I8, I32, I64, Bools, Rows

CHUNK_SHOPPERS = 64  # phi of 256 shoppers does not fit the cache
log = logging.getLogger(__name__)
Record = tuple[bytes, bytes]  # key, value


class Policy(NamedTuple):
    """Settings that affect pages."""

    rules: PageRules = PageRules()
    default_locale: int = 1
    popular_share: float = 0.0
    page_ttl: float = 3600.0  # s
    copy: bool = True
    fold: FoldRules = FoldRules()


class Page(NamedTuple):
    """One page, and what was decided while it was made."""

    key: bytes  # of the shopper
    trigger: PageTrigger
    was_deferred: bool
    value: bytes  # JSON of schema homepage/1
    impression: bytes  # JSON of schema impression/1
    mode: str
    is_fallback: bool  # True if the ranker returned invalid scores, so that the page is the popular one
    missing_segments: list[str]  # segment headlines that the page goes without
    headline_requests: list[HeadlineRequest]
    shown: Rows  # (count,) PLACED
    phi: F32  # (count, F) of the items shown


class PageResult(NamedTuple):
    """The result of one partition's input."""

    fresh: Bools  # (n,) of the event rows, False for duplicates
    activity: Rows  # (m,) ACTIVITY
    changelog: list[tuple[bytes, bytes | None]]  # the new row of each shopper, also if the page was deferred
    pages: list[Page]
    seconds: dict[str, float]  # by stage, of all partitions of the call together
    clock: float = 0.0  # s, newest event time of the partition, this input included
    expired: Sequence[bytes] = ()  # shoppers who returned after their profile had expired
    report: FoldReport = FoldReport()

    def page_records(self) -> list[Record]:
        """Keys and values for `homepages`."""
        return [(page.key, page.value) for page in self.pages]

    def impression_records(self) -> list[Record]:
        """Keys and values for `impressions`."""
        return [(page.key, page.impression) for page in self.pages]


def is_in_popular_group(key: bytes, share: float) -> bool:
    """True for the `share` of shoppers, by the hash of their key, who always get the popular page."""
    return (key64(key.decode("utf-8", "surrogatepass")) & 0x7FFFFFFF) / 2**31 < share


class PagePath:
    """The models and the shared state that pages are made from."""

    def __init__(
        self, catalog: Catalog, signals: Signals, ranker: Scorer, headlines: HeadlineCache, policy: Policy,
        history: History | None = None,
    ) -> None:  # fmt: skip
        self.catalog, self.signals, self.ranker, self.headlines = catalog, signals, ranker, headlines
        self.policy, self.history = policy, history
        self.copywriter: str | None = None  # version of the model that writes the headlines
        # May be set during a call, which then continues with the value it began with.
        self.degradation = Degradation()
        self._features_hash = features_hash()

    def refresh_partition(
        self, stored: Mapping[bytes, bytes], decoded: Decoded, offsets: I64, generated_at: float
    ) -> PageResult:
        """`refresh_pages` for one run of events."""
        return self.refresh_pages([PartitionInput(stored, decoded, offsets)], generated_at)[0]

    def refresh_pages(self, inputs: Sequence[PartitionInput], generated_at: float) -> list[PageResult]:
        """Fold the events of each partition into profiles, and make one page for each shopper affected.

        generated_at: s since the epoch, written into the pages. Nothing is changed in place: the changelog is the new
        state, and `record_published` notes the headlines requested, so a call may be tried and its result discarded.
        No page is made if all events of a shopper are duplicates, nor for a refresh request of an unknown shopper.
        While pages are paced (`degradation`), a page too soon after the previous one is deferred: the shopper's row
        keeps its trigger until any later page is made.
        """
        watch, degradation = _Stopwatch(), self.degradation
        partitions, profiles, serving = fold_partitions(inputs, degradation, self.policy.fold)
        watch.lap("fold")
        shoppers = _Shoppers(
            [key for partition in partitions for key in partition.keys],
            [trigger for partition in partitions for trigger in partition.triggers],
            [time for partition in partitions for time in partition.first_arrivals],
            profiles, serving,
        )  # fmt: skip
        if not shoppers.keys:
            return _split(partitions, [], [], [], watch.seconds)
        is_deferred = _deferred(shoppers, inputs, partitions, generated_at, degradation.page_interval_s)
        pages, changelog = self._refresh(watch, shoppers, is_deferred, generated_at, degradation)
        return _split(partitions, is_deferred, pages, changelog, watch.seconds)

    def self_test(self, generated_at: float) -> PageResult:
        """Make pages for events known to be good, from the present catalogue: an error is then no fault of an event."""
        events: Any = np.zeros(6, EVENT)
        events["kind"], events["part"] = (HOME, VIEW, CLICK, ADD, BUY, HIDE), 0
        events["id"], events["record"] = np.arange(1, 7), np.arange(6)
        events["time"], events["quantity"] = generated_at, 1
        events["item"][1:5], events["item"][5] = self.catalog.items[0]["id"] or 1, 2
        decoded = Decoded(events, [b"new", *[b"probe"] * 5], [str(k) for k in range(6)], [], 0, [generated_at] * 6)
        return self.refresh_partition({}, decoded, np.arange(6), generated_at)

    def record_published(self, results: Sequence[PageResult], generated_at: float) -> None:
        """Record the headlines that published pages request, and which pages wait for them."""
        for result in results:
            for page in result.pages:
                for segment in page.missing_segments:
                    self.headlines.add_waiter(segment, page.key, page.trigger[:2], generated_at)
                for request in page.headline_requests:
                    self.headlines.record_request(request.segment, generated_at, bool(request.item))
        self.headlines.evict(generated_at)

    def _refresh(
        self, watch: _Stopwatch, shoppers: _Shoppers, is_deferred: list[bool], generated_at: float,
        degradation: Degradation,
    ) -> tuple[list[Page], list[tuple[bytes, bytes | None]]]:  # fmt: skip
        """Make the pages that are not deferred. Return them, and the new row of every shopper. Changes `shoppers`."""
        keys, triggers, _, profiles, serving = shoppers
        has_refusals = -1 in profiles["consent"].tolist()  # faster than numpy's `any`
        if has_refusals:
            refused = profiles["consent"] < 0
            for field in ("fatigue_item", "fatigue_count", "fatigue_time"):
                serving[field][refused] = 0
        if True in is_deferred:
            defer(serving, is_deferred, triggers)
            due = [index for index, deferred in enumerate(is_deferred) if not deferred]
            due_shoppers = shoppers.at(due)
            pages = self._make_pages(watch, due_shoppers, generated_at, degradation)
            serving[due] = due_shoppers.serving
        else:
            pages = self._make_pages(watch, shoppers, generated_at, degradation)
        if has_refusals:
            serving["shown_item"][refused] = 0  # without consent, not even the items shown are stored
        changelog: list[tuple[bytes, bytes | None]] = [*zip(keys, encode_records(profiles, serving), strict=True)]
        watch.lap("encode")
        return pages, changelog

    def _make_pages(
        self, watch: _Stopwatch, shoppers: _Shoppers, generated_at: float, degradation: Degradation
    ) -> list[Page]:
        """One page for each shopper, in chunks. A page also settles a deferred one; `serving` is changed in place."""
        keys, triggers, first_arrivals, profiles, serving = shoppers
        if not keys:
            return []
        was_deferred = [time > 0 for time in serving["owed_time"].tolist()]
        names = [key.decode("utf-8", "surrogatepass") for key in keys]
        now, personal, locales, seeds = next_page(
            serving, profiles, np.array([key64(name) for name in names], np.int64),
            [trigger.event_time for trigger in triggers], first_arrivals,
            generated_at if degradation.page_interval_s else 0.0, self.policy.popular_share, self.policy.default_locale,
        )  # fmt: skip
        batch = _Batch(keys, names, profiles, serving, triggers, was_deferred, now, personal, locales, seeds)
        policy = _degraded(self.policy, degradation)
        titles = TitleChooser(self.headlines, self.catalog, generated_at, policy.copy)
        making = _Making(watch, generated_at, policy, degradation, titles)
        if len(keys) <= CHUNK_SHOPPERS:
            return self._make_chunk(making, batch)
        pages: list[Page] = []
        for start in range(0, len(keys), CHUNK_SHOPPERS):
            pages += self._make_chunk(making, batch.chunk(start, start + CHUNK_SHOPPERS))
        return pages

    def _make_chunk(self, making: _Making, batch: _Batch) -> list[Page]:
        """The pages of some shoppers: retrieve, predict, compute features, score, assemble, encode."""
        # A page is shown after it is made. What expires between the event and the page must not be on it.
        shown_at = np.maximum(batch.now, making.generated_at)
        trending = self.signals.trending(max(batch.now.tolist()))
        prediction = None if making.degradation.sheds_exploration else self._predict(making.watch, batch)
        personal, candidates, phi, scores = self._rank(making.watch, batch, shown_at, trending, prediction)
        placements = assemble(candidates, scores, personal, batch.seeds, self.catalog, making.policy.rules)
        shown_phi = explain(
            batch.profiles,
            placements.placed,
            placements.count,
            personal,
            phi,
            self.ranker.theta,
            self.catalog,
            self.signals,
        )
        remember_shown(batch.serving, placements.placed, placements.count, self.catalog.items)
        making.watch.lap("assemble")
        is_fallback = _only_in_first(batch.personal, personal)
        history_version = None if prediction is None or self.history is None else self.history.version
        pages = self._encode(
            making, batch._replace(personal=personal), placements, shown_phi, is_fallback, history_version
        )
        making.watch.lap("encode")
        return pages

    def _predict(self, watch: _Stopwatch, batch: _Batch) -> HistoryPrediction | None:
        """The history model's prediction; None without such a model, or if no page is personal."""
        if self.history is None or True not in batch.personal.tolist():
            return None
        try:
            prediction = self.history.predict(batch.profiles)
        except MemoryError:
            raise
        except Exception as error:
            # A page without it is a good page, and a worker that stops here would serve none.
            log.error("the history model failed and is disabled from now on: %r", error)
            self.history = None
            return None
        watch.lap("history")
        return prediction

    def _rank(
        self, watch: _Stopwatch, batch: _Batch, shown_at: F64, trending: Trending, prediction: HistoryPrediction | None
    ) -> tuple[Bools, Candidates, F32, F32]:
        """Return which pages are personal, the candidates, phi (U, C, F) and scores (U, C).

        A page whose scores are not a probability distribution falls back to the popular one; the batch is then ranked
        again.
        """
        while True:
            candidates, popularity = self._retrieve(batch, shown_at, trending, prediction)
            watch.lap("retrieve")
            phi = self._features(batch, candidates, prediction)
            watch.lap("phi")
            scores = self._score(batch, candidates, phi, popularity)
            watch.lap("score")
            is_invalid = _only_in_first(batch.personal, is_distribution(scores, candidates.count))
            if True not in is_invalid:
                return batch.personal, candidates, phi, scores
            batch = batch._replace(personal=batch.personal & ~np.array(is_invalid))

    def _retrieve(
        self, batch: _Batch, shown_at: F64, trending: Trending, prediction: HistoryPrediction | None
    ) -> tuple[Candidates, F32 | None]:
        """Candidates of each page, and the popularity scores of the pages that are not personal; None if all are."""
        locale = self.policy.default_locale
        candidates = retrieve_candidates(
            batch.profiles, shown_at, self.catalog, self.signals, trending, prediction, locale
        )
        if False not in batch.personal.tolist():
            return candidates, None
        popular = np.flatnonzero(~batch.personal)
        popular_candidates, popularity = retrieve_popular(
            batch.profiles[popular], shown_at[popular], self.catalog, trending, locale
        )
        for all_rows, popular_rows in (
            (candidates.rows, popular_candidates.rows),
            (candidates.generators, popular_candidates.generators),
            (candidates.count, popular_candidates.count),
        ):
            all_rows[popular] = popular_rows
        return candidates, popularity

    def _features(self, batch: _Batch, candidates: Candidates, prediction: HistoryPrediction | None) -> F32:
        """Phi (U, C, F) of the candidates."""
        scratch = self.ranker.phi_buffer(len(batch.keys))
        return featurize(
            batch.profiles, batch.serving, batch.now, candidates, self.catalog, self.signals, self.history, prediction,
            scratch,
        )  # fmt: skip

    def _score(self, batch: _Batch, candidates: Candidates, phi: F32, popularity: F32 | None) -> F32:
        """Scores (U, C): the ranker's for personal pages, popularity for the others."""
        if popularity is None or True in batch.personal.tolist():
            scores = self._probabilities(phi, candidates.count)
        else:
            scores = np.zeros(phi.shape[:2], np.float32)
        if popularity is not None:
            scores[np.flatnonzero(~batch.personal)] = popularity
        return scores

    def _probabilities(self, phi: F32, count: I32) -> F32:
        """The ranker's scores, or NaN if the ranker fails for any features. Raises if it fails for these only."""
        try:
            scores = self.ranker.score(phi, count)
            if scores.shape == phi.shape[:2]:
                return scores
        except MemoryError:
            raise
        except Exception:
            if self.ranker.works():
                raise
        return np.full(phi.shape[:2], np.nan, np.float32)

    def _encode(
        self, making: _Making, batch: _Batch, placements: Placements, shown_phi: F32, is_fallback: list[bool],
        history_version: str | None,
    ) -> list[Page]:  # fmt: skip
        """Choose the titles, and encode pages and impressions. shown_phi: of the items shown, page after page."""
        policy, generated_at = making.policy, making.generated_at
        placed, count = placements.placed, placements.count
        counts = count.tolist()
        heads = [
            PageHead(
                name, version, generated_at, generated_at + policy.page_ttl, trigger.event_id, trigger.event_time,
                _mode(shown, personal, policy.copy), LOCALES[locale],
            )
            for name, version, trigger, shown, personal, locale in zip(
                batch.names, batch.serving["version"].tolist(), batch.triggers, counts, batch.personal.tolist(),
                batch.locales.tolist(), strict=True,
            )
        ]  # fmt: skip
        slot_heads, titles = making.titles.choose(placements, self._interests(batch), batch.locales)
        rules = [*policy.rules.applied()]
        if making.degradation.page_interval_s:
            rules.append(f"page_every:{making.degradation.page_interval_s:g}")
        models = Models(
            self.ranker.version, self.ranker.head, history_version,
            self.copywriter or self.headlines.copywriter_version,
        )  # fmt: skip
        values = encode_pages(
            placed, count, heads, slot_heads, np.array([page.head_of for page in titles], np.int32), self.catalog,
            models, rules,
        )  # fmt: skip
        impressions = encode_impressions(placed, count, heads, shown_phi, self.catalog, models, self._features_hash)
        phi_rows = pairwise([0, *accumulate(counts)])
        return [
            Page(
                key, trigger, was_deferred, value, impression, head.mode, fallback, title.missing_segments,
                title.headline_requests, row[:shown], shown_phi[start:end],
            )
            for key, trigger, was_deferred, value, impression, head, fallback, title, row, shown, (start, end) in zip(
                batch.keys, batch.triggers, batch.was_deferred, values, impressions, heads, is_fallback, titles, placed,
                counts, phi_rows, strict=True,
            )
        ]  # fmt: skip

    def _interests(self, batch: _Batch) -> I32:
        """(U,) The strongest category key of each shopper's last half hour; 0 if unknown or not personal."""
        found = np.empty(len(batch.keys), np.int32)
        top_categories(batch.profiles, found)
        found *= batch.personal
        return found


class _Shoppers(NamedTuple):
    """The shoppers of a call, each with a trigger."""

    keys: list[bytes]
    triggers: list[PageTrigger]
    first_arrivals: list[float]  # s since the epoch, see FoldedPartition
    profiles: Rows  # (S,) PROFILE
    serving: Rows  # (S,) SERVING

    def at(self, indices: Sequence[int]) -> _Shoppers:
        """Copy of some of the shoppers."""
        return _Shoppers(
            [self.keys[index] for index in indices], [self.triggers[index] for index in indices],
            [self.first_arrivals[index] for index in indices],
            rows_at(self.profiles, indices), rows_at(self.serving, indices),
        )  # fmt: skip


class _Batch(NamedTuple):
    """Shoppers who get a page now; every field has one entry a shopper, (U,)."""

    keys: list[bytes]
    names: list[str]
    profiles: Rows  # PROFILE
    serving: Rows  # SERVING
    triggers: list[PageTrigger]
    was_deferred: list[bool]
    now: F64  # s
    personal: Bools
    locales: I8  # codes
    seeds: I64

    def chunk(self, start: int, end: int) -> _Batch:
        return _Batch._make(field[start:end] for field in self)


class _Making(NamedTuple):
    """What all pages of one call share."""

    watch: _Stopwatch
    generated_at: float  # s since the epoch
    policy: Policy  # less what is degraded
    degradation: Degradation
    titles: TitleChooser


class _Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to `stage`."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _deferred(
    shoppers: _Shoppers, inputs: Sequence[PartitionInput], partitions: Sequence[FoldedPartition], now: float,
    min_interval: float,
) -> list[bool]:  # fmt: skip
    """(S,) True for each shopper whose page is deferred. Refresh requests are never deferred."""
    if not min_interval:
        return [False] * len(shoppers.keys)
    too_soon = is_too_soon(shoppers.profiles, shoppers.serving, shoppers.triggers, now, min_interval)
    sizes = [len(partition.keys) for partition in partitions]
    too_soon &= np.repeat([not one.refreshes for one in inputs], sizes)
    is_deferred: list[bool] = too_soon.tolist()
    return is_deferred


def _split(
    partitions: Sequence[FoldedPartition], is_deferred: list[bool], pages: list[Page],
    changelog: list[tuple[bytes, bytes | None]], seconds: dict[str, float],
) -> list[PageResult]:  # fmt: skip
    """The result of each partition; `pages` and `changelog` are in the order of the partitions' shoppers."""
    results, start, page_start = [], 0, 0
    for partition in partitions:
        end = start + len(partition.keys)
        page_end = page_start + is_deferred[start:end].count(False)
        results.append(
            PageResult(
                partition.fresh, partition.activity, changelog[start:end], pages[page_start:page_end], seconds,
                partition.clock, partition.expired, partition.report,
            )
        )  # fmt: skip
        start, page_start = end, page_end
    return results


def _degraded(policy: Policy, degradation: Degradation) -> Policy:
    """The policy less what is degraded."""
    if degradation.sheds_exploration:
        policy = policy._replace(rules=policy.rules._replace(explore=False))
    return policy._replace(copy=False) if degradation.sheds_headlines else policy


def _only_in_first(these: Bools, those: Bools) -> list[bool]:
    # For the few shoppers of a batch, lists are faster than numpy.
    return [one and not other for one, other in zip(these.tolist(), those.tolist(), strict=True)]


def _mode(items_shown: int, is_personal: bool, with_headlines: bool) -> str:
    if not items_shown:
        return "static"
    if not is_personal:
        return "popular"
    return "full" if with_headlines else "cached_copy"


def warm_up(path: PagePath) -> None:
    """Run every kernel once, so that no shopper waits for the compiler. `path` is not changed."""
    catalog = Catalog()
    catalog.apply([(b"%d" % k, b'{"item_id":"%d","title":"warm"}' % k) for k in range(4)])
    signals, table = Signals(catalog), ItemTable()
    history = None if path.history is None else History(path.history.folder, catalog)
    copy = PagePath(catalog, signals, path.ranker, HeadlineCache(), path.policy, history)
    events: Any = np.zeros(4, EVENT)
    events["kind"], events["time"] = (HOME, VIEW, VIEW, HIDE), (1e9, 1e9, 1e9 + 1, 1e9 + 2)
    events["id"], events["record"] = (1, 2, 3, 4), (0, 1, 2, 3)
    events["item"][1:] = [key64(str(k)) for k in range(3)]
    decoded = Decoded(events, [b"new", b"warm", b"warm", b"warm"], ["a", "b", "c", "d"], [], 0, [1e9] * 4)
    stored: dict[bytes, bytes] = {}
    for _ in range(2):
        result = copy.refresh_partition(stored, decoded, np.arange(4), 1e9)
        stored.update((key, value) for key, value in result.changelog if value is not None)
        source, partition, activity = decode_activity(encode_activity("clicks", 0, result.activity))
        records = table.records(table.fold(source, partition, activity))
        signals.apply(records)
        ItemTable().apply(records)
        events["id"] += 10
    touched_at(list(stored.values()))
    copy.refresh_pages([PartitionInput(stored, refreshes={b"warm": RefreshRequest("en|for_you|", "", 1e9)})], 1e9)
