"""Profile expiry: by the event time of the partition, a few at a time, and independent of how runs are cut."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.page.fold_step import FoldRules
from agents.page.path import PageResult
from stream import metrics
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.profile.codec import decode_record, encode_records, touched_at
from stream.profile.exposure import OLD_SERVING_DTYPES, SERVING, expired
from stream.profile.row import PROFILE, PROFILE_VERSION, blank_profiles
from stream.profile.store import CLOCK_KEY, SWEEP_ROWS, MemoryProfileStore
from stream.row_codec import pack, unpack
from stream.settings import Settings
from tests.harness import shopper_agent
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of
from tests.harness.shopper_agent import agent_of, process

DAY_S = 86_400.0
TTL_S = 90 * DAY_S
Event = tuple[str, float, str]  # shopper, days from NOW, id


def run_of(events: list[Event], first: int = 0) -> Any:
    """A run of views, each of which arrives when it happens."""
    times = [NOW + day * DAY_S for _, day, _ in events]
    views = [
        record("view_item", shopper, name, time, item="i7")
        for (shopper, _, name), time in zip(events, times, strict=True)
    ]
    return shopper_agent.run_of(views, first=first, times=times)


class Shop:
    """The shopper agent with one partition, and what it has written."""

    def __init__(self, profiles: Any = None, ttl: float = TTL_S) -> None:
        self.profiles = profiles or MemoryProfileStore()
        self.profiles.serve([0], 0.0)
        self.agent = agent_of(path_of(fold=FoldRules(profile_ttl=ttl)), self.profiles, Settings(profile_ttl=ttl))
        self.changelog: dict[bytes, bytes] = {}
        self.homepages: list[tuple[bytes | None, bool]] = []  # key, False for a tombstone
        self.offset = 0

    def process(self, *events: Event) -> PageResult:
        [(result, outputs)] = process(self.agent, run_of(list(events), self.offset))
        self.offset += len(events)
        assert not [output for output in outputs if output.topic == "dead-letters"], "every event is good"
        for key, value in result.changelog:
            if value is None:
                del self.changelog[key]
            else:
                self.changelog[key] = value
        for output in outputs:
            if output.topic == "homepages":
                self.homepages += [(key, value is not None) for key, value in output.records]
        return result

    def profile(self, shopper: str) -> Any:
        return unpack([decode_record(self.changelog[shopper.encode()])[0]], PROFILE, PROFILE_VERSION)[0]

    def living(self) -> dict[bytes, bytes]:
        """Each profile that has not expired, swept or not, with the time when its shopper was last seen."""
        clock = float(self.changelog[CLOCK_KEY])
        rows = {key: value for key, value in self.changelog.items() if key != CLOCK_KEY}
        return {
            key: decode_record(value)[0] + b"%d" % seen
            for (key, value), seen in zip(rows.items(), touched_at(list(rows.values())), strict=True)
            if seen >= clock - TTL_S
        }


HISTORIES = st.lists(
    st.tuples(st.sampled_from(["ada", "bob", "eve"]), st.integers(-20, 60)), min_size=1, max_size=30
)  # the shopper, and days since the previous event


@pytest.mark.slow
@given(HISTORIES, st.lists(st.integers(1, 29), max_size=6), st.lists(st.integers(1, 29), max_size=6))
@settings(deadline=None)
def test_living_profiles_do_not_depend_on_runs_or_sweeps(
    history: list[tuple[str, int]], cuts: list[int], other_cuts: list[int]
) -> None:
    day, events = 0, []
    for n, (shopper, days) in enumerate(history):
        day += days
        events.append((shopper, float(day), f"e{n}"))
    shops = []
    for at in (cuts, other_cuts):
        shop = Shop()
        ends = sorted({cut for cut in at if cut < len(events)})
        for start, end in zip([0, *ends], [*ends, len(events)], strict=True):
            shop.process(*events[start:end])
        shops.append(shop)
    one, two = shops
    assert one.changelog[CLOCK_KEY] == two.changelog[CLOCK_KEY]
    assert one.living() == two.living()


def test_expired_shoppers_are_those_of_a_loop_over_events() -> None:
    chance = np.random.default_rng(3)
    for _ in range(200):
        shopper_of = chance.integers(0, 4, 30).astype(np.int32)
        times = 1e6 + np.cumsum(chance.integers(-20, 40, 30)).astype(np.float64)
        clocks = np.maximum(np.maximum.accumulate(times), 1e6 + 60)
        touched = np.where(chance.random(4) < 0.3, 0, 1e6 - chance.integers(0, 90, 4)).astype(np.int32)
        expected, seen = [-1] * 4, touched.tolist()
        for i, (s, clock) in enumerate(zip(shopper_of.tolist(), clocks.tolist(), strict=True)):
            if seen[s] and clock - seen[s] > 100:
                expected[s] = i
            seen[s] = int(clock)
        before = touched.copy()
        assert expired(touched, shopper_of, times, 1e6 + 60, 100.0).tolist() == expected
        assert (touched == before).all(), "the rows are unchanged"


def test_a_shopper_who_returns_after_the_ttl_starts_with_an_empty_profile() -> None:
    shop = Shop()
    for n in range(3):
        shop.process(("ada", n, f"e{n}"))
    before = metrics.EXPIRED._value.get()
    result = shop.process(("bob", 50, "b"), ("ada", 95, "late"), ("ada", 95.1, "later"))
    assert result.expired == [b"ada"]
    assert shop.profile("ada")["events"] == 2 and shop.profile("ada")["first_seen"] == NOW + 95 * DAY_S
    of_ada = [one for one in shop.homepages if one[0] == b"ada"]
    assert of_ada[-2:] == [(b"ada", False), (b"ada", True)], "the old page is deleted before the new one is sent"
    assert metrics.EXPIRED._value.get() == before + 1


def test_events_before_the_return_belong_to_the_expired_profile() -> None:
    shop = Shop()
    result = shop.process(("ada", 0, "a"), ("ada", 1, "b"), ("ada", 100, "c"))
    assert result.expired == [b"ada"] and result.fresh.all()
    assert shop.profile("ada")["events"] == 1
    assert len(result.activity) == 3, "the views count for the items all the same"


@pytest.mark.slow
@pytest.mark.parametrize("is_on_disk", [False, True], ids=["memory", "rocksdb"])
def test_the_sweep_checks_a_few_rows_a_run_and_reaches_all(is_on_disk: bool, tmp_path: Path) -> None:
    profiles: Any = DiskProfileStore(tmp_path) if is_on_disk else MemoryProfileStore()
    if is_on_disk:
        profiles.open(0)
    shop = Shop(profiles)
    many = 3 * SWEEP_ROWS

    def persist(result: PageResult) -> None:
        if is_on_disk:
            profiles.persist(0, result.changelog, {}, shop.offset)

    persist(shop.process(*((f"u{k:03d}", 0.0, f"e{k}") for k in range(many))))
    swept = []
    for n in range(8):
        before = len(shop.changelog)
        persist(shop.process(("eve", 100.0 + n, f"x{n}")))
        swept.append(before - len(shop.changelog) + (n == 0))
    assert set(shop.changelog) == {b"eve", CLOCK_KEY}
    assert max(swept) <= SWEEP_ROWS and sum(swept) == many
    assert len([key for key, is_page in shop.homepages if not is_page and key != b"eve"]) == many
    assert profiles.count() == 1
    assert set(profiles.rows_of(0)) - {CLOCK_KEY} == {b"eve"}
    profiles.close()


def test_no_profile_expires_without_a_ttl_or_by_a_future_event() -> None:
    never = Shop(ttl=0.0)
    never.process(("ada", 0, "a"))
    never.process(("bob", 1500, "b"))
    assert set(never.changelog) == {b"ada", b"bob"}
    shop = Shop()
    shop.process(("ada", 0, "a"))
    future = run_of([("bob", 27_000, "b")])
    future.records[0].timestamp = (NOW + DAY_S) * 1000  # the event's clock is wrong, Kafka's is not
    process(shop.agent, future)
    assert shop.profiles.clock(0) <= NOW + DAY_S + 300
    assert b"ada" in shop.profiles.rows_of(0)


def test_an_old_event_keeps_a_profile_as_long_as_a_new_one() -> None:
    shop = Shop()
    shop.process(("bob", 1000, "b"))
    shop.process(("ada", 0, "replayed"))
    shop.process(("bob", 1080, "b2"))
    assert shop.profile("ada")["events"] == 1, "last seen 80 days ago, whenever that event happened"
    shop.process(("bob", 1091, "b3"))
    assert b"ada" not in shop.changelog


def test_a_refusal_of_consent_does_not_expire() -> None:
    shop = Shop()
    shop.process(("ada", 0, "a"))
    run = run_of([])
    key, value = record("consent", "ada", "c", NOW + 1, consent={"personalization": False})
    run.records.append(
        SimpleNamespace(key=key, value=value, timestamp=(NOW + 1) * 1000, offset=9, partition=0, headers=())
    )
    run.topic = "privacy"
    process(shop.agent, run)
    process(shop.agent, run_of([("bob", 500, "b")], 10))
    process(shop.agent, run_of([("bob", 501, "b2")], 11))
    assert b"ada" in shop.profiles.rows_of(0)


@given(st.integers(0, 2**31 - 1), st.integers(1, 2**40), st.booleans())
def test_a_rows_last_use_is_read_without_unpacking_it(touched: int, version: int, is_paged: bool) -> None:
    serving = np.zeros(1, SERVING)
    serving["touched"], serving["version"], serving["paged_at"] = touched, version, 1.5 if is_paged else 0
    profile = blank_profiles(1)
    profile["first_seen"], profile["last_seen"] = NOW + 0.25, NOW + 7
    [value] = encode_records(profile, serving)
    assert touched_at([value]) == [touched]
    assert touched_at([b"", value[:2], value]) == [0, 0, touched], "a torn row is left to its reader"
    for before, dtype in OLD_SERVING_DTYPES.items():
        old = value[: -len(decode_record(value)[1])] + pack(np.zeros(1, dtype), before)[0]
        assert touched_at([value, old]) == [touched, NOW + 7], "in an older row version: the time of the newest event"
