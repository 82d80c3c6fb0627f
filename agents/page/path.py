"""The way from a run of events to pages: fold, retrieve, phi, score, assemble, encode. No Kafka, no clock but a stopwatch.

A run takes one synchronous step over all of its shoppers. Serving calls it from the agents, training from the simulator.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise, repeat
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from agents.page.fold_step import NO_ACTIVITY, NO_EVENT, PartitionInput, Trigger, defer, folded, is_too_soon
from agents.page.headline_cache import (
    ABOUT_A_CATEGORY,
    NAMES_ITS_LEAD,
    HeadlineCache,
    HeadlineRequest,
    Refresh,
    naming_segment_of,
    segment_of,
)
from models.history.model import History, HistoryPrediction
from models.ranker.features import NO_HISTORY_SCORES, joint_features
from models.ranker.columns import features_hash
from models.ranker.model import Scorer, is_distribution
from models.ranker.reasons import explain
from stream.codes import SLOTS
from stream.degradation import Degradation
from stream.events import ADD, BUY, CLICK, EVENT, HIDE, HOME, LOCALES, VIEW, Decoded
from stream.ids import key64
from stream.items.activity import decode_activity, encode_activity
from stream.items.catalog import Catalog
from stream.items.signals import ItemTable, Signals
from stream.items.trending import Trending
from stream.page.assembly import PageRules, Placements, assemble, leads
from stream.page.candidates import NO_PROPOSALS, Candidates, retrieve, retrieve_popular
from stream.page.json_kernels import PageHead, encode_impressions, encode_pages
from stream.profile.codec import encode_records, touched_at
from stream.profile.exposure import show, turn
from stream.profile.fold import interests
from stream.row_codec import rows_at

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
CHUNK = 64  # shoppers at a time: phi of 256 falls out of the cache
# Whether a slot's headline may name the item that leads it: only one of the interest that it speaks of.
_NAMED = np.array(
    [(2 if slot in ABOUT_A_CATEGORY else 1) if slot in NAMES_ITS_LEAD else 0 for slot in range(len(SLOTS))], np.int8
)
log = logging.getLogger(__name__)
_NO_LEADS = [-1] * len(SLOTS)


class Policy(NamedTuple):
    """What of the settings shapes a page."""

    rules: PageRules = PageRules()
    default_locale: int = 1
    popular_share: float = 0.0
    page_ttl: float = 3600.0
    copy: bool = True
    profile_ttl: float = 0.0  # s of the partition's event time after which a shopper is forgotten; 0: never


class PageResult(NamedTuple):
    """What a part came to. The lists have an entry for each page, the changelog also for each that is put off.

    Records are (key, value).
    """

    fresh: npt.NDArray[np.bool_]  # (n,) of the event rows, False for duplicates
    activity: Rows  # (m,) ACTIVITY
    triggers: list[Trigger]
    owed: list[bool]  # True for a page that had been put off
    changelog: list[tuple[bytes, bytes | None]]
    pages: list[tuple[bytes, bytes]]
    impressions: list[tuple[bytes, bytes]]
    missing: list[list[str]]  # segments whose headline the page goes without
    requests: list[list[HeadlineRequest]]  # those of them that are to be asked for
    modes: list[str]
    unsound: list[bool]  # True where the ranker gave no probabilities, so that the page is the popular one
    shown: list[Rows]  # (count,) PLACED
    phi: list[Floats]  # (count, F) of the items shown
    seconds: dict[str, float]  # by stage, of all parts together
    clock: float = 0.0  # s, the newest event time of the partition, these events included
    lapsed: Sequence[bytes] = ()  # shoppers who came back after their profile had expired, and began anew


def popular_group(key: bytes, share: float) -> bool:
    """True for the `share` of shoppers, by the hash of their key, who get the popular page."""
    return (key64(key.decode("utf-8", "surrogatepass")) & 0x7FFFFFFF) / 2**31 < share


class PagePath:
    """The models and the shared state that pages are made of."""

    def __init__(
        self, catalog: Catalog, signals: Signals, ranker: Scorer, copies: HeadlineCache, policy: Policy,
        history: History | None = None,
    ) -> None:  # fmt: skip
        self.catalog, self.signals, self.ranker, self.copies, self.policy = catalog, signals, ranker, copies, policy
        self.history = history
        self.copywriter: str | None = None  # version of the model that writes the headlines
        self.shed = (
            Degradation()
        )  # what pages go without now; may be set while a step is at work, which then goes on as it began
        self._hash = features_hash()

    def step(
        self, stored: Mapping[bytes, bytes], decoded: Decoded, offsets: npt.NDArray[np.int64], generated_at: float
    ) -> PageResult:
        """`steps` of one run of events."""
        return self.steps([PartitionInput(stored, decoded, offsets)], generated_at)[0]

    def steps(self, parts: Sequence[PartitionInput], generated_at: float) -> list[PageResult]:
        """Fold what has come into the profiles of its shoppers, and make each of them one page; the parts go together.

        generated_at: s since the epoch, on the pages. Nothing is changed in place: the changelog is the new state, and
        `took_effect` notes who waits for a headline. Steps may be tried and thrown away. A
        shopper all of whose events are duplicates gets no page, nor does a refresh of one who is not stored. While pages
        are paced (`shed`), a page too soon after the last is put off: the shopper's row says that it is owed, until any
        later one is made.
        """
        watch, shed = _Stopwatch(), self.shed
        each, profiles, serving = folded(parts, shed, self.policy.profile_ttl)
        keys = [key for one in each for key in one.keys]
        triggers = [trigger for one in each for trigger in one.triggers]
        watch.lap("fold")
        made = PageResult(NO_EVENT, NO_ACTIVITY, [], [], [], [], [], [], [], [], [], [], [], watch.seconds)
        late = [False] * len(keys)  # whose page is put off
        if keys:
            if shed.page_every:
                soon = is_too_soon(profiles, serving, triggers, generated_at, shed.page_every)
                soon &= np.repeat([not part.refreshes for part in parts], [len(one.keys) for one in each])
                late = soon.tolist()
            self._publish(watch, made, keys, triggers, profiles, serving, late, generated_at, shed)
        steps, start, page = [], 0, 0
        for one in each:
            mine = slice(start, start + len(one.keys))
            paged = slice(page, page + late[mine].count(False))
            steps.append(
                PageResult(
                    one.fresh, one.activity, made.triggers[paged], made.owed[paged], made.changelog[mine],
                    made.pages[paged], made.impressions[paged], made.missing[paged], made.requests[paged],
                    made.modes[paged], made.unsound[paged], made.shown[paged], made.phi[paged], watch.seconds,
                    one.clock, one.lapsed,
                )
            )  # fmt: skip
            start, page = mine.stop, paged.stop
        return steps

    def probe(self, generated_at: float) -> PageResult:
        """The step of events that are known to be good, over the catalogue there is: where it raises, no event is to blame."""
        events: Any = np.zeros(6, EVENT)
        events["kind"], events["part"] = (HOME, VIEW, CLICK, ADD, BUY, HIDE), 0
        events["id"], events["record"] = np.arange(1, 7), np.arange(6)
        events["time"], events["quantity"] = generated_at, 1
        events["item"][1:5], events["item"][5] = self.catalog.items[0]["id"] or 1, 2
        decoded = Decoded(events, [b"new", *[b"probe"] * 5], [str(k) for k in range(6)], [], 0)
        return self.step({}, decoded, np.arange(6), generated_at)

    def took_effect(self, steps: Sequence[PageResult], generated_at: float) -> None:
        """Note, of steps that are published, which headlines are asked for and who waits for them."""
        for step in steps:
            for (key, _), trigger, missing, requests in zip(
                step.pages, step.triggers, step.missing, step.requests, strict=True
            ):
                for segment in missing:
                    self.copies.waits(segment, key, trigger, generated_at)
                for request in requests:
                    self.copies.asked(request.segment, generated_at, bool(request.item))
        self.copies.forget(generated_at)

    def _publish(
        self, watch: _Stopwatch, step: PageResult, keys: list[bytes], triggers: list[Trigger], profiles: Rows, serving: Rows,
        late: list[bool], generated_at: float, shed: Degradation,
    ) -> None:  # fmt: skip
        without_consent = -1 in profiles["consent"].tolist()  # numpy's `any` takes longer
        if without_consent:
            refused = profiles["consent"] < 0
            for field in ("fatigue_item", "fatigue_count", "fatigue_time"):
                serving[field][refused] = 0
        if True in late:
            defer(serving, late, triggers)
            paged = [at for at, waits in enumerate(late) if not waits]
            served = rows_at(serving, paged)
            self._page_all(
                watch, step, [keys[at] for at in paged], [triggers[at] for at in paged], rows_at(profiles, paged), served,
                generated_at, shed,
            )  # fmt: skip
            serving[paged] = served
        else:
            self._page_all(watch, step, keys, triggers, profiles, serving, generated_at, shed)
        if without_consent:
            serving["shown_item"][refused] = 0  # not even what was shown is kept
        step.changelog.extend(zip(keys, encode_records(profiles, serving), strict=True))
        watch.lap("encode")

    def _page_all(
        self, watch: _Stopwatch, step: PageResult, keys: list[bytes], triggers: list[Trigger], profiles: Rows, serving: Rows,
        generated_at: float, shed: Degradation,
    ) -> None:  # fmt: skip
        """A page for each, which settles what was owed. profiles (S,), serving (S,); the latter is changed in place."""
        if not keys:
            return
        step.triggers.extend(triggers)
        step.owed.extend(time > 0 for time in serving["owed_time"].tolist())
        names = [key.decode("utf-8", "surrogatepass") for key in keys]
        now, personal, locales, seeds = turn(
            serving, profiles, np.array([key64(name) for name in names], np.int64),
            [trigger.event_time for trigger in triggers], generated_at if shed.page_every else 0.0,
            self.policy.popular_share, self.policy.default_locale,
        )  # fmt: skip
        batch = _Batch(keys, names, profiles, serving, now, triggers, personal, locales, seeds)
        for at in range(0, len(keys), CHUNK):
            part = batch.part(slice(at, at + CHUNK)) if len(keys) > CHUNK else batch
            self._pages(watch, step, part, generated_at, shed)

    def _pages(
        self, watch: _Stopwatch, step: PageResult, batch: _Batch, generated_at: float, shed: Degradation
    ) -> None:
        policy, catalog, signals = _shorn(self.policy, shed), self.catalog, self.signals
        profiles, serving, wanted = batch.profiles, batch.serving, batch.personal
        # Shown after it is made: what expires between the event and the page must not be on it.
        shown_at = np.maximum(batch.now, generated_at)
        leaders = signals.leaders(max(batch.now.tolist()))
        foresight = None if shed.exploration else self._foresee(watch, batch)
        candidates, phi, scores = self._scored(watch, batch, shown_at, leaders, foresight)
        while True in (bad := _but_not(batch.personal, is_distribution(scores, candidates.count))):
            batch = batch._replace(personal=batch.personal & ~np.array(bad))
            candidates, phi, scores = self._scored(watch, batch, shown_at, leaders, foresight)
        personal = batch.personal
        step.unsound.extend(_but_not(wanted, personal))
        placements = assemble(candidates, scores, personal, batch.seeds, catalog, policy.rules)
        placed, count = placements.placed, placements.count
        shown_phi = explain(profiles, placed, count, personal, phi, self.ranker.theta, catalog, signals)
        show(serving, placed, count, catalog.items)
        watch.lap("assemble")
        slot_heads, slot_of = self._titles(step, batch, placements, generated_at, policy.copy)
        heads = [
            PageHead(
                name, version, generated_at, generated_at + policy.page_ttl, trigger.event_id, trigger.event_time,
                _mode(shown, mine, policy.copy),
            )
            for name, version, trigger, shown, mine in zip(
                batch.names, serving["version"].tolist(), batch.triggers, count.tolist(), personal.tolist(), strict=True
            )
        ]  # fmt: skip
        step.modes.extend(head.mode for head in heads)
        pages = encode_pages(
            placed, count, heads, slot_heads, slot_of, catalog, self.ranker.version,
            None if foresight is None or self.history is None else self.history.version, self.copywriter or self.copies.writer,
            [*policy.rules.applied(), *([f"page_every:{shed.page_every:g}"] if shed.page_every else [])],
        )  # fmt: skip
        step.pages.extend(zip(batch.keys, pages, strict=True))
        impressions = encode_impressions(placed, count, heads, shown_phi, catalog, self.ranker.version, self._hash)
        step.impressions.extend(zip(batch.keys, impressions, strict=True))
        step.phi.extend(shown_phi[start:end] for start, end in pairwise([0, *accumulate(count.tolist())]))
        step.shown.extend(row[:n] for row, n in zip(placed, count.tolist(), strict=True))
        watch.lap("encode")

    def _foresee(self, watch: _Stopwatch, batch: _Batch) -> HistoryPrediction | None:
        """What the history model says; None where there is none, or nobody whose page is personal."""
        if self.history is None or True not in batch.personal.tolist():
            return None
        try:
            foresight = self.history.predict(batch.profiles)
        except MemoryError:
            raise
        except Exception as error:
            # A page without it is a good page; one that never comes is not.
            log.error("the history model fails and is left out from now on: %r", error)
            self.history = None
            return None
        watch.lap("history")
        return foresight

    def _scored(
        self,
        watch: _Stopwatch,
        batch: _Batch,
        shown_at: npt.NDArray[np.float64],
        leaders: Trending,
        foresight: HistoryPrediction | None,
    ) -> tuple[Candidates, Floats, Floats]:
        """Candidates, phi (U, C, F) and scores (U, C): the ranker's for personal pages, popularity for the others."""
        profiles, catalog, signals, locale = batch.profiles, self.catalog, self.signals, self.policy.default_locale
        proposals = NO_PROPOSALS if foresight is None else foresight.rows
        candidates = retrieve(profiles, shown_at, catalog, signals, leaders, locale, proposals=proposals)
        everyone = False not in batch.personal.tolist()
        if not everyone:
            them = np.flatnonzero(~batch.personal)
            common, popularity = retrieve_popular(profiles[them], shown_at[them], catalog, leaders, locale)
            candidates = _replaced(candidates, them, common)
        watch.lap("retrieve")
        history_scores = NO_HISTORY_SCORES
        if foresight is not None and self.history is not None:
            history_scores = self.history.score(foresight, candidates)
        room = self.ranker.phi_buffer(len(profiles))
        phi = joint_features(profiles, batch.serving, batch.now, candidates, catalog, signals, room, history_scores)
        watch.lap("phi")
        if everyone or True in batch.personal.tolist():
            scores = self._probabilities(phi, candidates.count)
        else:
            scores = np.zeros(phi.shape[:2], np.float32)
        if not everyone:
            scores[them] = popularity
        watch.lap("score")
        return candidates, phi, scores

    def _probabilities(self, phi: Floats, count: npt.NDArray[np.int32]) -> Floats:
        """What the ranker says; NaN where it raises and would over any features. Raises where it does over these alone."""
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

    def _titles(
        self, step: PageResult, batch: _Batch, placements: Placements, now: float, copy: bool
    ) -> tuple[list[bytes], npt.NDArray[np.int32]]:
        """The heads of the slots, and which of them each slot of each page takes; with `copy` what is missing is asked for."""
        copies = self.copies
        slot_of: list[list[int]] = []
        heads: dict[bytes, int] = {}
        # (locale, slot, category) -> place among the heads, whether it is missing
        titles: dict[tuple[int, int, str], tuple[int, bool]] = {}
        interest, categories = self._interests(batch)
        asked_before = [request for requests in step.requests for request in requests]
        wanted = {request.segment for request in asked_before}
        room = copies.naming_room(now) - sum(bool(request.item) for request in asked_before) if copy else 0
        named = self._leads(placements, interest) if copies.naming or room > 0 else repeat(_NO_LEADS)
        who = zip(
            categories, placements.placed["slot"].tolist(), placements.count.tolist(), batch.locales.tolist(), named,
            strict=False,
        )  # fmt: skip
        for category, filled, count, code, rows in who:
            locale = LOCALES[code]
            mine = [-1] * len(SLOTS)
            missing: list[str] = []
            asked: list[HeadlineRequest] = []
            for slot in dict.fromkeys(filled[:count]):
                about = code, slot, category if slot in ABOUT_A_CATEGORY else ""
                if (known := titles.get(about)) is None:
                    title = copies.title(locale, slot, category, now)
                    known = titles[about] = heads.setdefault(title.head, len(heads)), title.missing
                mine[slot], lacks = known
                if rows[slot] >= 0:
                    item, name = self.catalog.named(rows[slot], locale)
                    segment = naming_segment_of(locale, slot, item)
                    naming = copies.naming_title(segment, about[2], name, now)
                    if naming.head:
                        mine[slot] = heads.setdefault(naming.head, len(heads))
                        continue
                    # First the headline of many pages, then one of few.
                    if (
                        naming.missing and room > 0 and not lacks and segment not in wanted
                        and copies.wants_naming(segment, now)
                    ):  # fmt: skip
                        room -= 1
                        wanted.add(segment)
                        asked.append(HeadlineRequest(segment, locale, SLOTS[slot], about[2], [name], item))
                if lacks and copy:
                    segment = segment_of(locale, slot, category)
                    missing.append(segment)
                    if segment not in wanted and copies.wants(segment, now, len(wanted)):
                        wanted.add(segment)
                        asked.append(HeadlineRequest(segment, locale, SLOTS[slot], about[2], []))
            slot_of.append(mine)
            step.missing.append(missing)
            step.requests.append(asked)
        return list(heads), np.array(slot_of, np.int32)

    def _interests(self, batch: _Batch) -> tuple[npt.NDArray[np.int32], list[str]]:
        """What each page is about: of the last half hour the strongest category; 0 and "" where unknown or not personal."""
        found = np.empty(len(batch.keys), np.int32)
        interests(batch.profiles, found)
        found *= batch.personal
        return found, [self.catalog.names.get(key, "") if key else "" for key in found.tolist()]

    def _leads(self, placements: Placements, interest: npt.NDArray[np.int32]) -> list[list[int]]:
        rows: list[list[int]] = leads(placements, interest, _NAMED, self.catalog).tolist()
        return rows


def _shorn(policy: Policy, shed: Degradation) -> Policy:
    """The policy less what is shed."""
    if shed.exploration:
        policy = policy._replace(rules=policy.rules._replace(explore=False))
    return policy._replace(copy=False) if shed.copy else policy


def _but_not(these: npt.NDArray[np.bool_], those: npt.NDArray[np.bool_]) -> list[bool]:
    return [one and not other for one, other in zip(these.tolist(), those.tolist(), strict=True)]


def _mode(shown: int, personal: bool, copy: bool) -> str:
    if not shown:
        return "static"
    if not personal:
        return "popular"
    return "full" if copy else "cached_copy"


class _Batch(NamedTuple):
    """Shoppers who get a page, in parallel. (U,) each."""

    keys: list[bytes]
    names: list[str]
    profiles: Rows  # PROFILE
    serving: Rows  # SERVING
    now: npt.NDArray[np.float64]  # s
    triggers: list[Trigger]
    personal: npt.NDArray[np.bool_]
    locales: npt.NDArray[np.int8]  # codes
    seeds: npt.NDArray[np.int64]

    def part(self, these: slice) -> _Batch:
        return _Batch(
            self.keys[these], self.names[these], self.profiles[these], self.serving[these], self.now[these],
            self.triggers[these], self.personal[these], self.locales[these], self.seeds[these],
        )  # fmt: skip


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for `stage`."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _replaced(candidates: Candidates, rows: npt.NDArray[np.int64], others: Candidates) -> Candidates:
    for mine, theirs in (
        (candidates.rows, others.rows),
        (candidates.generators, others.generators),
        (candidates.count, others.count),
    ):
        mine[rows] = theirs
    return candidates


def warm(path: PagePath) -> None:
    """Run every kernel once, so that the first shopper does not wait for a compiler. Changes nothing in `path`."""
    catalog = Catalog()
    catalog.apply([(b"%d" % k, b'{"item_id":"%d","title":"warm"}' % k) for k in range(4)])
    signals, table = Signals(catalog), ItemTable()
    history = None if path.history is None else History(path.history.folder, catalog)
    quiet = PagePath(catalog, signals, path.ranker, HeadlineCache(), path.policy, history)
    events: Any = np.zeros(4, EVENT)
    events["kind"], events["time"] = (HOME, VIEW, VIEW, HIDE), (1e9, 1e9, 1e9 + 1, 1e9 + 2)
    events["id"], events["record"] = (1, 2, 3, 4), (0, 1, 2, 3)
    events["item"][1:] = [key64(str(k)) for k in range(3)]
    decoded = Decoded(events, [b"new", b"warm", b"warm", b"warm"], ["a", "b", "c", "d"], [], 0)
    stored: dict[bytes, bytes] = {}
    for _ in range(2):
        step = quiet.step(stored, decoded, np.arange(4), 1e9)
        stored.update((key, value) for key, value in step.changelog if value is not None)
        source, partition, activity = decode_activity(encode_activity("clicks", 0, step.activity))
        records = table.records(table.fold(source, partition, activity))
        signals.apply(records)
        ItemTable().apply(records)
        events["id"] += 10
    touched_at(list(stored.values()))
    quiet.steps([PartitionInput(stored, refreshes={b"warm": Refresh("en|for_you|", "", 1e9)})], 1e9)
