"""The way from a run of events to pages: fold, retrieve, phi, score, assemble, encode. No Kafka, no clock but a stopwatch.

A run takes one synchronous step over all of its shoppers. Serving calls it from the agents, training from the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.copybook import CopyBook, CopyRequest, Refresh, segment_of
from models.phi import explain, features_hash, joint_features
from models.ranker import Ranker
from stream.catalog import Catalog
from stream.events import EVENT, HIDE, HOME, LOCALES, VIEW, Decoded
from stream.ids import key64
from stream.page import SLOTS, PageHead, encode_impressions, encode_pages
from stream.profile import PROFILE, PROFILE_VERSION, SERVING, SERVING_VERSION, decode_record, encode_record
from stream.retrieval import Candidates, retrieve, retrieve_popular
from stream.rows import pack, unpack
from stream.rules import PageRules, Placements, assemble
from stream.serving import react, show
from stream.signals import ACTIVITY, ItemTable, Signals, decode_activity, encode_activity, fold_with_activity

Rows = npt.NDArray[np.void]
Floats = npt.NDArray[np.float32]
CHUNK = 32  # shoppers at a time: phi of 256 falls out of the cache
TITLES = 3  # leading items that a headline is told of


class Trigger(NamedTuple):
    event_id: str
    event_time: float


class Policy(NamedTuple):
    """What of the settings shapes a page."""

    rules: PageRules = PageRules()
    default_locale: int = 1
    popular_share: float = 0.0
    page_ttl: float = 3600.0
    copy: bool = True


class Part(NamedTuple):
    """What a step has to do in one partition: a run of events, or pages to make once more."""

    stored: Mapping[bytes, bytes]  # changelog values by shopper key
    decoded: Decoded = Decoded(np.zeros(0, EVENT), [], [], [], 0)
    offsets: npt.NDArray[np.int64] = np.zeros(0, np.int64)  # (records,)
    refreshes: Mapping[bytes, Refresh] = {}


class Step(NamedTuple):
    """What a part came to. The lists have an entry for each page; records are (key, value)."""

    fresh: npt.NDArray[np.bool_]  # (n,) of the event rows, False for duplicates
    activity: Rows  # (m,) ACTIVITY
    triggers: list[Trigger]
    changelog: list[tuple[bytes, bytes | None]]
    pages: list[tuple[bytes, bytes]]
    impressions: list[tuple[bytes, bytes]]
    requests: list[list[CopyRequest]]
    modes: list[str]
    shown: list[Rows]  # (count,) PLACED
    phi: list[Floats]  # (count, F) of the items shown
    seconds: dict[str, float]  # by stage, of all parts together


def popular_group(key: bytes, share: float) -> bool:
    """True for the `share` of shoppers, by the hash of their key, who get the popular page."""
    return (key64(key.decode("utf-8", "surrogatepass")) & 0x7FFFFFFF) / 2**31 < share


class PagePath:
    """The models and the shared state that pages are made of."""

    def __init__(self, catalog: Catalog, signals: Signals, ranker: Ranker, copies: CopyBook, policy: Policy) -> None:
        self.catalog, self.signals, self.ranker, self.copies, self.policy = catalog, signals, ranker, copies, policy
        self.copywriter: str | None = None  # version of the model that writes the headlines
        self._hash = features_hash()

    def step(
        self, stored: Mapping[bytes, bytes], decoded: Decoded, offsets: npt.NDArray[np.int64], generated_at: float
    ) -> Step:
        """`steps` of one run of events."""
        return self.steps([Part(stored, decoded, offsets)], generated_at)[0]

    def steps(self, parts: Sequence[Part], generated_at: float) -> list[Step]:
        """Fold what has come into the profiles of its shoppers, and make each of them one page; the parts go together.

        generated_at: s since the epoch, on the pages. Nothing is changed in place: the changelog is the new state. A
        shopper all of whose events are duplicates gets no page, nor does a refresh of one who is not stored.
        """
        watch = _Stopwatch()
        folded = [_fold(part) for part in parts]
        keys = [key for one in folded for key in one.keys]
        triggers = [trigger for one in folded for trigger in one.triggers]
        profiles = np.concatenate([one.profiles for one in folded]) if len(folded) > 1 else folded[0].profiles
        serving = np.concatenate([one.serving for one in folded]) if len(folded) > 1 else folded[0].serving
        watch.lap("fold")
        made = Step(np.zeros(0, np.bool_), np.zeros(0, ACTIVITY), triggers, [], [], [], [], [], [], [], watch.seconds)
        if keys:
            self._publish(watch, made, keys, profiles, serving, generated_at)
        steps, start = [], 0
        for one in folded:
            mine = slice(start, start + len(one.keys))
            steps.append(
                Step(
                    one.fresh, one.activity, made.triggers[mine], made.changelog[mine], made.pages[mine],
                    made.impressions[mine], made.requests[mine], made.modes[mine], made.shown[mine], made.phi[mine],
                    watch.seconds,
                )
            )  # fmt: skip
            start = mine.stop
        return steps

    def _publish(
        self, watch: _Stopwatch, step: Step, keys: list[bytes], profiles: Rows, serving: Rows, generated_at: float
    ) -> None:
        serving["version"] += 1
        refused = profiles["consent"] < 0
        without_consent = bool(refused.any())
        if without_consent:
            for field in ("fatigue_item", "fatigue_count", "fatigue_time"):
                serving[field][refused] = 0
        names = [key.decode("utf-8", "surrogatepass") for key in keys]
        shopper = np.array([key64(name) for name in names], np.int64)
        popular = (shopper & 0x7FFFFFFF) / 2.0**31 < self.policy.popular_share
        # One time a shopper, her newest event: a page is the same to the bit alone and in any batch.
        now = np.maximum(profiles["last_seen"], [trigger.event_time for trigger in step.triggers])
        batch = _Batch(
            keys, names, profiles, serving, now, step.triggers,
            ~popular & ~refused & (profiles["recent_item"][:, -1] != 0),
            np.where(profiles["locale"] == 0, self.policy.default_locale, profiles["locale"]),
            shopper ^ (serving["version"] * np.int64(-7046029254386353131)),
        )  # fmt: skip
        for at in range(0, len(keys), CHUNK):
            self._pages(watch, step, batch.part(slice(at, at + CHUNK)), generated_at)
        if without_consent:
            serving["shown_item"][refused] = 0  # not even what was shown is kept
        blobs = zip(pack(profiles, PROFILE_VERSION), pack(serving, SERVING_VERSION), strict=True)
        step.changelog.extend(zip(keys, (encode_record(*pair) for pair in blobs), strict=True))
        watch.lap("encode")

    def _pages(self, watch: _Stopwatch, step: Step, batch: _Batch, generated_at: float) -> None:
        policy, catalog, signals = self.policy, self.catalog, self.signals
        profiles, serving, now, personal = batch.profiles, batch.serving, batch.now, batch.personal
        # Shown after it is made: what expires between the event and the page must not be on it.
        shown_at = np.maximum(now, generated_at)
        leaders = signals.leaders(float(now.max()))
        candidates = retrieve(profiles, shown_at, catalog, signals, leaders, policy.default_locale)
        everyone = bool(personal.all())
        if not everyone:
            them = np.flatnonzero(~personal)
            common, popularity = retrieve_popular(
                profiles[them], shown_at[them], catalog, leaders, policy.default_locale
            )
            candidates = _replaced(candidates, them, common)
        watch.lap("retrieve")
        phi = joint_features(profiles, serving, now, candidates, catalog, signals)  # (U, C, F)
        watch.lap("phi")
        scores = self.ranker.score(phi, candidates.count)  # (U, C)
        if not everyone:
            scores[them] = popularity
        watch.lap("score")
        placements = assemble(candidates, scores, personal, batch.seeds, catalog, policy.rules)
        placed, count = placements.placed, placements.count
        shown_phi = explain(profiles, placed, count, personal, phi, self.ranker.theta, catalog, signals)
        show(serving, placed, count, catalog.items)
        watch.lap("assemble")
        slot_heads, slot_of = self._titles(step, batch, placements, generated_at)
        heads = [
            PageHead(
                name, version, generated_at, generated_at + policy.page_ttl, trigger.event_id, trigger.event_time,
                self._mode(shown, mine),
            )
            for name, version, trigger, shown, mine in zip(
                batch.names, serving["version"].tolist(), batch.triggers, count.tolist(), personal.tolist(), strict=True
            )
        ]  # fmt: skip
        step.modes.extend(head.mode for head in heads)
        pages = encode_pages(
            placed, count, heads, slot_heads, slot_of, catalog, self.ranker.version, self.copywriter,
            policy.rules.applied(),
        )  # fmt: skip
        step.pages.extend(zip(batch.keys, pages, strict=True))
        impressions = encode_impressions(placed, count, heads, shown_phi, catalog, self.ranker.version, self._hash)
        step.impressions.extend(zip(batch.keys, impressions, strict=True))
        step.phi.extend(shown_phi[start:end] for start, end in pairwise([0, *accumulate(count.tolist())]))
        step.shown.extend(row[:n] for row, n in zip(placed, count.tolist(), strict=True))
        watch.lap("encode")

    def _titles(
        self, step: Step, batch: _Batch, placements: Placements, now: float
    ) -> tuple[list[bytes], npt.NDArray[np.int32]]:
        """The heads of the slots, and which of them each slot of each page takes; what is missing is asked for."""
        placed, policy = placements.placed, self.policy
        slot_of = np.full((len(placed), len(SLOTS)), -1, np.int32)
        heads: dict[bytes, int] = {}
        categories = self._interests(batch.profiles)
        for i, (count, code) in enumerate(zip(placements.count.tolist(), batch.locales.tolist(), strict=True)):
            locale, category = LOCALES[code], categories[i] if batch.personal[i] else ""
            asked: list[CopyRequest] = []
            for slot in dict.fromkeys(placed["slot"][i, :count].tolist()):
                title = self.copies.title(locale, slot, category, now)
                slot_of[i, slot] = heads.setdefault(title.head, len(heads))
                if title.missing and policy.copy:
                    segment = segment_of(locale, slot, category)
                    if self.copies.ask(segment, batch.keys[i], batch.triggers[i], now):
                        asked.append(self._request(segment, locale, slot, placed[i, :count]))
            step.requests.append(asked)
        return list(heads), slot_of

    def _mode(self, shown: int, personal: bool) -> str:
        if not shown:
            return "static"
        if not personal:
            return "popular"
        return "full" if self.policy.copy else "cached_copy"

    def _interests(self, profiles: Rows) -> list[str]:
        """The category that each shopper is about now: of the last half hour the strongest; "" where unknown."""
        best = profiles["category_weight"][:, :, 0].argmax(axis=1)
        found = profiles["category"][np.arange(len(profiles)), best].tolist()
        return [self.catalog.names.get(key, "") if key else "" for key in found]

    def _request(self, segment: str, locale: str, slot: int, placed: Rows) -> CopyRequest:
        lead = placed["row"][placed["slot"] == slot][:TITLES].tolist()
        titles = [self.catalog.title(row, locale) for row in lead]
        return CopyRequest(segment, locale, SLOTS[slot], segment.rsplit("|", 1)[1], titles)


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


class _Folded(NamedTuple):
    """The shoppers of one part who get a page, in parallel."""

    keys: list[bytes]
    profiles: Rows  # (S,) PROFILE
    serving: Rows  # (S,) SERVING
    triggers: list[Trigger]
    fresh: npt.NDArray[np.bool_]
    activity: Rows


def _fold(part: Part) -> _Folded:
    if part.refreshes:
        keys = [key for key in part.refreshes if key in part.stored]
        wanted = [part.refreshes[key] for key in keys]
        triggers = [Trigger(refresh.event_id, refresh.event_time) for refresh in wanted]
        return _Folded(keys, *_read(part.stored, keys), triggers, np.zeros(0, np.bool_), np.zeros(0, ACTIVITY))
    decoded, rows = part.decoded, part.decoded.rows
    places: dict[bytes, int] = {}
    record_who = [places.setdefault(key, len(places)) if key else -1 for key in decoded.keys]
    heads = rows["record"]
    who = np.array(record_who, np.int32)[heads]  # (n,)
    keys = list(places)
    profiles, serving = _read(part.stored, keys)
    fresh, activity = fold_with_activity(profiles, who, rows, part.offsets)
    react(serving, who, rows, fresh)
    newest: list[Trigger | None] = [None] * len(keys)
    firsts = np.flatnonzero(fresh & (rows["part"] == 0))
    for s, record, time in zip(
        who[firsts].tolist(), heads[firsts].tolist(), rows["time"][firsts].tolist(), strict=True
    ):
        known = newest[s]
        if known is None or time >= known.event_time:
            newest[s] = Trigger(decoded.ids[record], time)
    triggers = [trigger for trigger in newest if trigger is not None]
    if len(triggers) < len(keys):
        touched = [s for s, trigger in enumerate(newest) if trigger is not None]
        keys, profiles, serving = [keys[s] for s in touched], profiles[touched], serving[touched]
    return _Folded(keys, profiles, serving, triggers, fresh, activity)


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap for `stage`."""
        now = perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _read(stored: Mapping[bytes, bytes], keys: Sequence[bytes]) -> tuple[Rows, Rows]:
    """Profiles (S,) and what was served (S,), blank where nothing is stored."""
    values = [stored.get(key) for key in keys]
    known = [at for at, value in enumerate(values) if value is not None]
    pairs = [decode_record(value) for value in values if value is not None]
    old = unpack([pair[0] for pair in pairs], PROFILE, PROFILE_VERSION)
    old_serving = unpack([pair[1] for pair in pairs], SERVING, SERVING_VERSION)
    if len(known) == len(keys):
        return old, old_serving
    profiles, serving = np.zeros(len(keys), PROFILE), np.zeros(len(keys), SERVING)
    profiles[known], serving[known] = old, old_serving
    return profiles, serving


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
    quiet = PagePath(catalog, signals, path.ranker, CopyBook(), path.policy)
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
    quiet.steps([Part(stored, refreshes={b"warm": Refresh("", "", 1e9)})], 1e9)
