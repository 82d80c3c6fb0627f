"""Profiles that expire: by the event time of their partition, a few at a time, and never so that anybody can tell when."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.shopper import Shoppers
from stream import metrics
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.profile.codec import decode_record, encode_records, touched_at
from stream.profile.exposure import SERVING, OLD_SERVING_DTYPES, SERVING_VERSION, expired
from stream.profile.row import PROFILE
from stream.profile.row import PROFILE_VERSION
from stream.profile.row import blank_profiles
from stream.profile.store import CLOCK_KEY, SWEEP_ROWS, MemoryProfileStore
from stream.row_codec import pack, unpack
from stream.settings import Settings
from tests.harness.events import NOW, record
from tests.unit.agents.page.test_path import path_of
from tests.unit.agents.test_poison import answers

DAY = 86_400.0
TTL = 90 * DAY
Event = tuple[str, float, str]  # shopper, days from NOW, id


def run_of(events: list[Event], first: int = 0) -> Any:
    """A run of views, each of which arrives when it happens."""
    made = []
    for at, (shopper, day, name) in enumerate(events):
        time = NOW + day * DAY
        key, value = record("view_item", shopper, name, time, item="i7")
        made.append(
            SimpleNamespace(key=key, value=value, timestamp=time * 1000, offset=first + at, partition=0, headers=())
        )
    return SimpleNamespace(topic="clicks", partition=0, records=made, skipped=0)


class Shop:
    """The shoppers' agent of one partition, and what it has written."""

    def __init__(self, profiles: Any = None, ttl: float = TTL) -> None:
        async def off_loop(call: Any, brief: bool = False) -> Any:
            return call()

        self.profiles = profiles or MemoryProfileStore()
        self.profiles.serve([0], 0.0)
        nothing: Any = None
        self.agent = Shoppers(Settings(profile_ttl=ttl), path_of(profile_ttl=ttl), self.profiles, nothing, off_loop)
        self.changelog: dict[bytes, bytes] = {}
        self.homepages: list[tuple[bytes | None, bool]] = []
        self.offset = 0

    def take(self, *events: Event) -> Any:
        [(step, outputs)] = answers(self.agent, run_of(list(events), self.offset))
        self.offset += len(events)
        assert not [output for output in outputs if output.topic == "dead-letters"], "every event is good"
        for key, value in step.changelog:
            if value is None:
                del self.changelog[key]
            else:
                self.changelog[key] = value
        for output in outputs:
            if output.topic == "homepages":
                self.homepages += [(key, value is not None) for key, value in output.records]
        return step

    def profile(self, shopper: str) -> Any:
        return unpack([decode_record(self.changelog[shopper.encode()])[0]], PROFILE, PROFILE_VERSION)[0]

    def living(self) -> dict[bytes, bytes]:
        """The profiles of those who have not expired, swept or not, and when each was last seen."""
        clock = float(self.changelog[CLOCK_KEY])
        rows = {key: value for key, value in self.changelog.items() if key != CLOCK_KEY}
        return {
            key: decode_record(value)[0] + b"%d" % seen
            for (key, value), seen in zip(rows.items(), touched_at(list(rows.values())), strict=True)
            if seen >= clock - TTL
        }


HISTORIES = st.lists(
    st.tuples(st.sampled_from(["ada", "bob", "eve"]), st.integers(-20, 60)), min_size=1, max_size=30
)  # the shopper, and days since the event before


@given(HISTORIES, st.lists(st.integers(1, 29), max_size=6), st.lists(st.integers(1, 29), max_size=6))
@settings(deadline=None, max_examples=25)
def test_profiles_do_not_depend_on_runs_nor_on_when_the_sweep_came_by(
    history: list[tuple[str, int]], cuts: list[int], others: list[int]
) -> None:
    day, events = 0, []
    for n, (shopper, days) in enumerate(history):
        day += days
        events.append((shopper, float(day), f"e{n}"))
    tables = []
    for at in (cuts, others):
        shop = Shop()
        ends = sorted({cut for cut in at if cut < len(events)})
        for start, end in zip([0, *ends], [*ends, len(events)], strict=True):
            shop.take(*events[start:end])
        tables.append(shop)
    one, two = tables
    assert one.changelog[CLOCK_KEY] == two.changelog[CLOCK_KEY]
    assert one.living() == two.living()


def test_lapses_are_those_of_a_loop_over_the_events() -> None:
    chance = np.random.default_rng(3)
    for _ in range(200):
        who = chance.integers(0, 4, 30).astype(np.int32)
        times = 1e6 + np.cumsum(chance.integers(-20, 40, 30)).astype(np.float64)
        clocks = np.maximum(np.maximum.accumulate(times), 1e6 + 60)
        touched = np.where(chance.random(4) < 0.3, 0, 1e6 - chance.integers(0, 90, 4)).astype(np.int32)
        expected, seen = [-1] * 4, touched.tolist()
        for i, (s, clock) in enumerate(zip(who.tolist(), clocks.tolist(), strict=True)):
            if seen[s] and clock - seen[s] > 100:
                expected[s] = i
            seen[s] = int(clock)
        before = touched.copy()
        assert expired(touched, who, times, 1e6 + 60, 100.0).tolist() == expected
        assert (touched == before).all(), "the rows are left alone"


def test_who_comes_back_after_the_ttl_begins_anew_and_her_old_page_is_taken_back_first() -> None:
    shop = Shop()
    for n in range(3):
        shop.take(("ada", n, f"e{n}"))
    before = metrics.EXPIRED._value.get()
    step = shop.take(("bob", 50, "b"), ("ada", 95, "late"), ("ada", 95.1, "later"))
    assert step.lapsed == [b"ada"]
    assert shop.profile("ada")["events"] == 2 and shop.profile("ada")["first_seen"] == NOW + 95 * DAY
    assert [one for one in shop.homepages if one[0] == b"ada"][-2:] == [(b"ada", False), (b"ada", True)]
    serving = unpack([decode_record(shop.changelog[b"ada"])[1]], SERVING, SERVING_VERSION)[0]
    assert serving["version"] == 1
    assert metrics.EXPIRED._value.get() == before + 1


def test_an_event_before_the_return_counts_for_the_life_before() -> None:
    shop = Shop()
    step = shop.take(("ada", 0, "a"), ("ada", 1, "b"), ("ada", 100, "c"))
    assert step.lapsed == [b"ada"] and step.fresh.all()
    assert shop.profile("ada")["events"] == 1
    assert len(step.activity) == 3, "what she looked at counts for the items all the same"


@pytest.mark.parametrize("disk", [False, True], ids=["memory", "rocksdb"])
def test_the_sweep_looks_at_a_few_rows_a_run_and_gets_round(disk: bool, tmp_path: Path) -> None:
    profiles: Any = DiskProfileStore(tmp_path) if disk else MemoryProfileStore()
    if disk:
        profiles.open(0)
    shop = Shop(profiles)
    many = 3 * SWEEP_ROWS

    def durable(step: Any) -> None:
        if disk:
            profiles.persist(0, step.changelog, {}, shop.offset)

    durable(shop.take(*((f"u{k:03d}", 0.0, f"e{k}") for k in range(many))))
    gone = []
    for n in range(8):
        before = len(shop.changelog)
        durable(shop.take(("eve", 100.0 + n, f"x{n}")))
        gone.append(before - len(shop.changelog) + (n == 0))
    assert set(shop.changelog) == {b"eve", CLOCK_KEY}
    assert max(gone) <= SWEEP_ROWS and sum(gone) == many
    assert [key for key, page in shop.homepages if not page and key != b"eve"].__len__() == many
    assert profiles.count() == 1 or disk  # RocksDB only estimates
    assert set(profiles.rows_of(0)) - {CLOCK_KEY} == {b"eve"}
    profiles.close()


def test_nobody_expires_without_a_ttl_nor_by_an_event_from_the_future() -> None:
    never = Shop(ttl=0.0)
    never.take(("ada", 0, "a"))
    never.take(("bob", 1500, "b"))
    assert set(never.changelog) == {b"ada", b"bob"}
    shop = Shop()
    shop.take(("ada", 0, "a"))
    far = run_of([("bob", 27_000, "b")])
    far.records[0].timestamp = (NOW + DAY) * 1000  # its clock goes wrong, Kafka's does not
    answers(shop.agent, far)
    assert shop.profiles.clock(0) <= NOW + DAY + 300
    assert b"ada" in shop.profiles.rows_of(0)


def test_an_old_event_keeps_its_shopper_as_long_as_a_new_one() -> None:
    shop = Shop()
    shop.take(("bob", 1000, "b"))
    shop.take(("ada", 0, "replayed"))
    shop.take(("bob", 1080, "b2"))
    assert shop.profile("ada")["events"] == 1, "last seen 80 days ago, whenever that event was"
    shop.take(("bob", 1091, "b3"))
    assert b"ada" not in shop.changelog


def test_a_refusal_does_not_expire() -> None:
    shop = Shop()
    shop.take(("ada", 0, "a"))
    run = run_of([])
    key, value = record("consent", "ada", "c", NOW + 1, consent={"personalization": False})
    run.records.append(
        SimpleNamespace(key=key, value=value, timestamp=(NOW + 1) * 1000, offset=9, partition=0, headers=())
    )
    run.topic = "privacy"
    answers(shop.agent, run)
    answers(shop.agent, run_of([("bob", 500, "b")], 10))
    answers(shop.agent, run_of([("bob", 501, "b2")], 11))
    assert b"ada" in shop.profiles.rows_of(0)


@given(st.integers(0, 2**31 - 1), st.integers(1, 2**40), st.booleans())
def test_when_a_row_was_touched_is_read_without_unpacking_it(touched: int, version: int, paged: bool) -> None:
    serving = np.zeros(1, SERVING)
    serving["touched"], serving["version"], serving["paged_at"] = touched, version, 1.5 if paged else 0
    profile = blank_profiles(1)
    profile["first_seen"], profile["last_seen"] = NOW + 0.25, NOW + 7
    [value] = encode_records(profile, serving)
    assert touched_at([value]) == [touched]
    assert touched_at([b"", value[:2], value]) == [0, 0, touched], "what is torn is left to whoever reads it"
    for before, dtype in OLD_SERVING_DTYPES.items():
        old = value[: -len(decode_record(value)[1])] + pack(np.zeros(1, dtype), before)[0]
        assert touched_at([value, old]) == [touched, NOW + 7], "a row of before: the time of her newest event"
