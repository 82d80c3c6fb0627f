"""The way from a run of events to pages: fold, retrieve, phi, score, assemble, encode. No Kafka, no clock but a stopwatch.

A run takes one synchronous step over all of its shoppers. Serving calls it from the agents, training from the simulator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.copybook import CopyBook, CopyRequest, Refresh, segment_of
from models.phi import explain, features_hash, joint_features, name_reasons
from models.ranker import Ranker
from stream.catalog import Catalog
from stream.events import EVENT, HIDE, HOME, LOCALES, VIEW, Decoded
from stream.ids import key64
from stream.page import (
    AGAIN_BOUGHT,
    EXPLORING,
    FRESH,
    NEW,
    POSITIONS,
    SLOTS,
    PageHead,
    encode_impressions,
    encode_pages,
)
from stream.profile import (
    PROFILE,
    PROFILE_VERSION,
    SERVING,
    SERVING_VERSION,
    decode_record,
    encode_record,
    pack,
    unpack,
)
from stream.retrieval import Candidates, retrieve, retrieve_popular
from stream.rules import PageRules, assemble
from stream.serving import react
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


class Step(NamedTuple):
    """What a run came to. Records are (key, value)."""

    fresh: npt.NDArray[np.bool_]  # (n,) of the event rows, False for duplicates
    changelog: list[tuple[bytes, bytes | None]]
    pages: list[tuple[bytes, bytes]]
    impressions: list[tuple[bytes, bytes]]
    activity: Rows  # (m,) ACTIVITY
    requests: list[CopyRequest]
    triggers: list[Trigger]  # of each page
    modes: list[str]
    shown: list[Rows]  # (count,) PLACED of each page
    phi: list[Floats]  # (count, F) of the items shown
    seconds: dict[str, float]  # by stage


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
        """Fold a run into the profiles of its shoppers, and make each of them one page.

        stored: changelog values by shopper key; offsets (records,) int64; generated_at: s since the epoch, on the pages.
        Nothing is changed in place: the changelog is the new state. A shopper all of whose events are duplicates has none.
        """
        watch = _Stopwatch()
        with watch("fold"):
            heads = decoded.rows["record"]
            places: dict[bytes, int] = {}
            record_who = [places.setdefault(key, len(places)) if key else -1 for key in decoded.keys]
            who = np.array(record_who, np.int32)[heads]  # (n,)
            keys = list(places)
            profiles, serving = _read(stored, keys)
            fresh, activity = fold_with_activity(profiles, who, decoded.rows, offsets)
            react(serving, who, decoded.rows, fresh)
            triggers: list[Trigger | None] = [None] * len(keys)
            firsts = np.flatnonzero(fresh & (decoded.rows["part"] == 0))
            for s, record, time in zip(
                who[firsts].tolist(), heads[firsts].tolist(), decoded.rows["time"][firsts].tolist(), strict=True
            ):
                known = triggers[s]
                if known is None or time >= known.event_time:
                    triggers[s] = Trigger(decoded.ids[record], time)
            touched = np.array([s for s, trigger in enumerate(triggers) if trigger is not None], np.int64)
        return self._publish(
            watch, [keys[s] for s in touched], profiles[touched], serving[touched],
            [trigger for trigger in triggers if trigger is not None], fresh, activity, generated_at,
        )  # fmt: skip

    def again(self, stored: Mapping[bytes, bytes], refreshes: Mapping[bytes, Refresh], generated_at: float) -> Step:
        """Make the pages of known shoppers once more, with the headlines that have come since."""
        watch = _Stopwatch()
        keys = [key for key in refreshes if key in stored]
        profiles, serving = _read(stored, keys)
        triggers = [Trigger(refreshes[key].event_id, refreshes[key].event_time) for key in keys]
        return self._publish(
            watch, keys, profiles, serving, triggers, np.zeros(0, np.bool_), np.zeros(0, ACTIVITY), generated_at
        )

    def _publish(
        self, watch: _Stopwatch, keys: list[bytes], profiles: Rows, serving: Rows, triggers: list[Trigger],
        fresh: npt.NDArray[np.bool_], activity: Rows, generated_at: float,
    ) -> Step:  # fmt: skip
        serving["version"] += 1
        refused = profiles["consent"] < 0
        for field in ("fatigue_item", "fatigue_count", "fatigue_time"):
            serving[field][refused] = 0
        step = Step(fresh, [], [], [], activity, [], triggers, [], [], [], watch.seconds)
        names = [key.decode("utf-8", "surrogatepass") for key in keys]
        shopper = np.array([key64(name) for name in names], np.int64)
        popular = (shopper & 0x7FFFFFFF) / 2.0**31 < self.policy.popular_share
        personal = ~popular & ~refused & (profiles["recent_item"][:, -1] != 0)
        # One time a shopper, her newest event: a page is the same to the bit alone and in any batch.
        now = np.maximum(profiles["last_seen"], [trigger.event_time for trigger in triggers])
        with np.errstate(over="ignore"):
            seeds = shopper ^ (serving["version"] * np.int64(-7046029254386353131))
        for at in range(0, len(keys), CHUNK):
            self._chunk(
                watch, step, slice(at, at + CHUNK), keys, names, profiles, serving, now, personal, seeds, generated_at
            )
        with watch("encode"):
            # Without consent not even what was shown is kept.
            serving["shown_item"][refused] = 0
            blobs = zip(pack(profiles, PROFILE_VERSION), pack(serving, SERVING_VERSION), strict=True)
            step.changelog.extend(zip(keys, (encode_record(*pair) for pair in blobs), strict=True))
        return step

    def _chunk(
        self, watch: _Stopwatch, step: Step, part: slice, keys: list[bytes], names: list[str], all_profiles: Rows,
        all_serving: Rows, all_now: npt.NDArray[np.float64], all_personal: npt.NDArray[np.bool_],
        all_seeds: npt.NDArray[np.int64], generated_at: float,
    ) -> None:  # fmt: skip
        policy, catalog, signals = self.policy, self.catalog, self.signals
        profiles, serving, now = all_profiles[part], all_serving[part], all_now[part]
        personal, triggers = all_personal[part], step.triggers[part]
        # Shown after it is made: what expires between the event and the page must not be on it.
        shown_at = np.maximum(now, generated_at)
        with watch("retrieve"):
            leaders = signals.leaders(float(now.max()))
            candidates = retrieve(profiles, shown_at, catalog, signals, leaders, policy.default_locale)
            if not personal.all():
                them = np.flatnonzero(~personal)
                common, popularity = retrieve_popular(
                    profiles[them], shown_at[them], catalog, leaders, policy.default_locale
                )
                candidates = _replaced(candidates, them, common)
        with watch("phi"):
            phi = joint_features(profiles, serving, now, candidates, catalog, signals)  # (U, C, F)
        with watch("score"):
            scores = self.ranker.score(phi, candidates.count)  # (U, C)
            if not personal.all():
                scores[them] = popularity
        with watch("assemble"):
            placements = assemble(candidates, scores, personal, all_seeds[part], catalog, policy.rules)
            placed, count = placements.placed, placements.count
            shown = np.arange(POSITIONS)[None, :] < count[:, None]  # (U, POSITIONS)
            u = np.nonzero(shown)[0]
            phi_shown = phi[u, placed["candidate"][shown]]  # (items, F)
            codes, weights = explain(phi_shown, self.ranker.theta)
            told = personal[u] & (placed["reason"][shown] != EXPLORING)
            slots = placed["slot"][shown]
            codes = np.where(
                slots == FRESH, NEW, np.where(placed["reason"][shown] == AGAIN_BOUGHT, AGAIN_BOUGHT, codes)
            )
            placed["reason"][shown] = np.where(told, codes, placed["reason"][shown])
            placed["weight"][shown] = np.where(told, weights, 0.0)
            name_reasons(profiles, placed, count, catalog, signals)
            serving["shown_item"][:] = np.where(shown, catalog.items["id"][placed["row"]], 0)
        with watch("encode"):
            locales = np.where(profiles["locale"] == 0, policy.default_locale, profiles["locale"])
            categories = self._interests(profiles)
            slot_of = np.full((len(profiles), len(SLOTS)), -1, np.int32)
            heads = []
            for i in range(len(profiles)):
                locale, category = LOCALES[locales[i]], categories[i] if personal[i] else ""
                for slot in np.unique(placed["slot"][i, : count[i]]).tolist():
                    title = self.copies.title(locale, slot, category, generated_at)
                    slot_of[i, slot] = title.head
                    if title.missing and policy.copy:
                        self._ask(
                            step, locale, slot, category, part.start + i, keys, placed[i, : count[i]], generated_at
                        )
                mode = (
                    "static"
                    if not count[i]
                    else "popular"
                    if not personal[i]
                    else "full"
                    if policy.copy
                    else "cached_copy"
                )
                step.modes.append(mode)
                heads.append(
                    PageHead(
                        names[part.start + i],
                        int(serving["version"][i]),
                        generated_at,
                        generated_at + policy.page_ttl,
                        triggers[i].event_id,
                        triggers[i].event_time,
                        mode,
                    )
                )
            pages = encode_pages(
                placed, count, heads, self.copies.heads, slot_of, catalog, self.ranker.version, self.copywriter,
                policy.rules.applied(),
            )  # fmt: skip
            chunk_keys = keys[part]
            step.pages.extend(zip(chunk_keys, pages, strict=True))
            step.phi.extend(np.split(phi_shown, np.cumsum(count)[:-1]))
            step.shown.extend(placed[i, : count[i]] for i in range(len(count)))
            impressions = encode_impressions(
                placed, count, heads, step.phi[-len(count) :], catalog, self.ranker.version, self._hash
            )
            step.impressions.extend(zip(chunk_keys, impressions, strict=True))

    def _interests(self, profiles: Rows) -> list[str]:
        """The category that each shopper is about now: of the last half hour the strongest; "" where unknown."""
        best = profiles["category_weight"][:, :, 0].argmax(axis=1)
        found = profiles["category"][np.arange(len(profiles)), best].tolist()
        return [self.catalog.names.get(key, "") if key else "" for key in found]

    def _ask(
        self, step: Step, locale: str, slot: int, category: str, s: int, keys: list[bytes], placed: Rows, now: float
    ) -> None:
        segment = segment_of(locale, slot, category)
        if self.copies.ask(segment, keys[s], step.triggers[s], now):
            lead = placed["row"][placed["slot"] == slot][:TITLES].tolist()
            titles = [self.catalog.title(row, locale) for row in lead]
            about = segment.rsplit("|", 1)[1]
            step.requests.append(CopyRequest(segment, locale, SLOTS[slot], about, titles))


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + perf_counter() - start


def _read(stored: Mapping[bytes, bytes], keys: Sequence[bytes]) -> tuple[Rows, Rows]:
    """Profiles (S,) and what was served (S,), blank where nothing is stored."""
    profiles, serving = np.zeros(len(keys), PROFILE), np.zeros(len(keys), SERVING)
    known = [(at, decode_record(stored[key])) for at, key in enumerate(keys) if key in stored]
    if known:
        at = [place for place, _ in known]
        profiles[at] = unpack([pair[0] for _, pair in known], PROFILE, PROFILE_VERSION)
        serving[at] = unpack([pair[1] for _, pair in known], SERVING, SERVING_VERSION)
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
    quiet.again(stored, {b"warm": Refresh("", "", 1e9)}, 1e9)
