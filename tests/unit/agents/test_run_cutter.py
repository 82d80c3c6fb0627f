"""Runs are cut so that each changelog fits one record batch, and no record is lost or counted twice."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from agents import items
from agents.items import MAX_SIGNAL_BYTES, ItemAgent, ItemTables
from agents.run_cutter import RunCutter
from agents.shopper import CHANGELOG_ROOM_BYTES
from stream import metrics
from stream.events.decode import VIEW
from stream.items.activity import ACTIVITY, INTERACTION, encode_activity
from stream.items.signals import HALF_LIVES, ItemTable
from stream.kafka.commit import Batch, Output, Outputs, changelog_bytes
from stream.kafka.topics import DEFAULT_BATCH_LIMIT, MIN_BATCH_LIMIT
from stream.profile.codec import decode_record
from stream.profile.store import CLOCK_KEY
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of
from tests.harness.shopper_agent import LooseRun, agent_of, on_loop, one_view_each, outputs_with, process, run_of


def views_of_heavy_shoppers(shoppers: int, events: int) -> list[tuple[bytes, bytes]]:
    """`events` views of each shopper, in turn."""
    return [
        record("view_item", f"u{k % shoppers}", f"e{k}", NOW + k, item=f"i{k * 7 % 60}")
        for k in range(shoppers * events)
    ]


def in_runs(sent: Sequence[Any], size: int, take: Callable[[Any], None]) -> Iterator[int]:
    """Deliver records as the consumer does: a run gets what the previous one has left over first.

    `take` processes a run. Yields the number of records that each run has kept.
    """
    waiting = list(run_of(sent).records)
    while waiting:
        run = run_of([])
        run.records, waiting = waiting[:size], waiting[size:]
        take(run)
        waiting = [*run.left_over, *waiting]
        yield len(run.records)


@pytest.mark.parametrize("limit", [5_000, 15_000])
def test_runs_that_are_split_give_the_same_profiles(limit: int) -> None:
    sent = views_of_heavy_shoppers(60, 3)
    tables: list[dict[bytes, bytes | None]] = []
    kept: list[list[int]] = []
    for out in (outputs_with(profiles=CHANGELOG_ROOM_BYTES + limit), outputs_with()):
        agent = agent_of(path_of(), out=out)
        changelog: dict[bytes, bytes | None] = {}

        def take(run: Any, agent: Any = agent, changelog: Any = changelog, out: Any = out) -> None:
            [(result, _)] = process(agent, run)
            assert changelog_bytes(result.changelog) < out.changelog_limit("profiles") - 200
            changelog.update(result.changelog)

        kept.append(list(in_runs(sent, 90, take)))
        tables.append(changelog)
    split, whole = kept
    assert whole == [90, 90] and len(split) > 2 and sum(split) == 180
    profiles, whole_profiles = (
        {key: decode_record(value)[0] for key, value in table.items() if value and key != CLOCK_KEY} for table in tables
    )
    assert profiles == whole_profiles and len(profiles) == 60


def test_a_step_joins_split_runs_with_runs_that_fit() -> None:
    agent = agent_of(path_of(), out=outputs_with(profiles=CHANGELOG_ROOM_BYTES + 8_000))
    large, small = run_of(one_view_each(60)), run_of(one_view_each(3, first=100), first=1000)
    (cut, _), (fits, _) = process(agent, large, small)
    assert len(large.records) == len(cut.pages) < 60
    assert [record.offset for record in (*large.records, *large.left_over)] == list(range(60))
    assert len(fits.pages) == 3 and not small.left_over


def test_the_size_of_split_runs_is_the_estimate_for_the_next() -> None:
    cutter = RunCutter(lambda: 10_000)
    runs: list[Any] = [LooseRun(records=list(range(100)), left_over=()) for _ in range(3)]
    cutter.cut_to_estimate(runs[0])
    assert len(runs[0].records) == 100, "nothing is known yet"
    assert cutter.cut_to_fit(runs[0], rows_of(100, 400)) and len(runs[0].records) == 20
    assert not cutter.cut_to_fit(runs[0], rows_of(20, 400))
    cutter.cut_to_estimate(runs[1])
    assert len(runs[1].records) == 20 and not cutter.cut_to_fit(runs[1], rows_of(20, 40)), "rows have become smaller"
    cutter.cut_to_estimate(runs[2])
    assert len(runs[2].records) == 100


def test_a_run_of_one_record_is_not_cut() -> None:
    run: Any = LooseRun(records=[1], left_over=())
    assert not RunCutter(lambda: 1000).cut_to_fit(run, rows_of(1, 5000)) and run.records == [1]


def rows_of(count: int, size: int) -> list[tuple[bytes, bytes | None]]:
    return [(b"%4d" % k, bytes(size)) for k in range(count)]


def test_the_bytes_of_a_changelog_are_never_underestimated() -> None:
    for count, size in ((1, 0), (1, 1 << 20), (4096, 3), (700, 5000)):
        records = [*rows_of(count, size), (b"gone", None)]
        batch = Batch(1 << 30)
        assert batch.extend(records) == count + 1 and batch.size() <= changelog_bytes(records)


# Pages and impressions.


def test_a_page_larger_than_its_topic_allows_is_left_out_alone(caplog: pytest.LogCaptureFixture) -> None:
    sizes = sorted(changelog_bytes([(page.key, page.value)]) for page in page_result(outputs_with())[0].pages)
    limit = sizes[15]  # the pages differ by a few bytes
    before = oversized("homepages")
    result, outputs = page_result(outputs_with(homepages=limit))
    fitting = [page for page in result.pages if changelog_bytes([(page.key, page.value)]) <= limit]
    published = {output.topic: list(output.records) for output in outputs}
    assert published["homepages"] == [(page.key, page.value) for page in fitting] and len(fitting) < len(result.pages)
    assert len(published["impressions"]) == len(result.pages) == 30, "the events count all the same"
    assert oversized("homepages") - before == len(result.pages) - len(fitting)
    assert f"for 'homepages' 0 is left out: the topic takes at most {limit} bytes" in caplog.text


def page_result(out: Outputs) -> tuple[Any, list[Output]]:
    [(result, outputs)] = process(agent_of(path_of(), out=out), run_of(one_view_each(30)))
    return result, outputs


def oversized(topic: str) -> float:
    return float(metrics.OVERSIZED.labels(topic)._value.get())


# Item signals.


def activity_of(number: int, count: int, first: int) -> bytes:
    """A record with an interaction with each of `count` items, caused by the event at offset `number`."""
    rows = np.zeros(count, ACTIVITY)
    rows["item"], rows["time"], rows["offset"] = np.arange(first, first + count) + 1, NOW + number, number
    rows["kind"], rows["event"], rows["first"] = INTERACTION, VIEW, 1
    return encode_activity("clicks", 0, rows)


def signals_after(values: Sequence[bytes], limit: int) -> tuple[ItemTable, list[int], list[Output]]:
    """The recovered table, the records of each run, and the dead letters, with changelog batches of this size."""
    out = outputs_with(item_signals=limit)
    agent, recovered = ItemAgent(ItemTables(HALF_LIVES), out, on_loop), ItemTable(HALF_LIVES)
    letters: list[Output] = []

    def take(run: Any) -> None:
        [(changelog, rejected)] = agent._fold_all([run])
        assert changelog_bytes(changelog) < limit - 200
        recovered.apply(changelog)
        letters.extend(rejected)

    return recovered, list(in_runs([(b"", value) for value in values], items.RUN_RECORDS, take)), letters


def test_split_runs_of_activity_give_the_same_signals() -> None:
    values = [activity_of(number, 30, number * 17 % 900) for number in range(200)]
    small, runs, _ = signals_after(values, MIN_BATCH_LIMIT)
    whole, [records], _ = signals_after(values, 16 << 20)
    assert records == sum(runs) == 200 and len(runs) > 5
    assert small.sources == whole.sources
    order, other = np.argsort(small.rows["item"]), np.argsort(whole.rows["item"])
    assert small.rows[order].tobytes() == whole.rows[other].tobytes()


def test_activity_of_too_many_items_is_a_dead_letter_and_its_neighbours_count() -> None:
    limit = 100 * MAX_SIGNAL_BYTES
    values = [activity_of(0, 10, 0), b"garbage", activity_of(1, 200, 50), activity_of(2, 10, 500)]
    table, runs, [garbage, letter] = signals_after(values, limit)
    assert len(table) == 20 and sum(runs) == 4
    assert garbage.headers is not None and dict(garbage.headers[0])["error"] == b"invalid"
    assert letter.headers is not None and dict(letter.headers[0])["error"] == b"too_large"
    assert b"the signals of 200 items do not fit one record batch" in dict(letter.headers[0])["message"]


def test_each_record_of_activity_fits_one_changelog_batch() -> None:
    sent = [record("view_item", f"u{k % 40}", f"e{k}", NOW + k, item=f"i{k % 60}") for k in range(400)]
    for limit in (MIN_BATCH_LIMIT, DEFAULT_BATCH_LIMIT):
        [(_, outputs)] = process(agent_of(path_of(), out=outputs_with(item_signals=limit)), run_of(sent))
        values = [value for output in outputs if output.topic == "item-activity" for _, value in output.records]
        assert values and all(len(value or b"") // ACTIVITY.itemsize * MAX_SIGNAL_BYTES < limit for value in values)
