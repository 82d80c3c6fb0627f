"""The shopper agent forwards records of other partitions, and warns once of producers that misplace them."""

import asyncio
import zlib
from collections import Counter
from typing import Any

import pytest

from agents import placement_monitor
from agents.placement_monitor import PlacementMonitor
from stream import metrics
from stream.kafka.client.connection import partition_of
from stream.kafka.commit import Output
from stream.kafka.keys.forwarding import FORWARDED
from stream.profile.store import META_PREFIX
from tests.harness.events import NOW, record
from tests.harness.page_path import path_of
from tests.harness.shopper_agent import agent_of, one_view_each, process, profile_store, run_of

PARTITIONS = 3
HOME = 1  # the partition whose runs are processed here


def counted(metric: str, topic: str = "clicks") -> float:
    return metrics.REGISTRY.get_sample_value(f"shopwindow_{metric}_total", {"topic": topic}) or 0.0


def owner_of(one: tuple[Any, Any]) -> int:
    return partition_of(one[0], PARTITIONS)


def pages(outputs: list[Output]) -> set[bytes | None]:
    return {key for output in outputs if output.topic == "homepages" for key, _ in output.records}


def test_events_of_other_partitions_are_forwarded_and_not_folded() -> None:
    before = counted("forwarded_records")
    sent = one_view_each(30)
    invalid = next((key, b"{half") for key, _ in sent if partition_of(key, PARTITIONS) != HOME)
    profiles = profile_store()
    run = run_of([*sent, invalid], partition=HOME, first=100)
    [(result, outputs)] = process(agent_of(path_of(), profiles, partitions=PARTITIONS), run)
    own = {one[0] for one in sent if owner_of(one) == HOME}
    assert pages(outputs) == own == {key for key, _ in result.changelog if not key.startswith(META_PREFIX)}
    assert set(profiles.rows_of(HOME)) == {key for key, _ in result.changelog}
    forwarded = [output for output in outputs if output.topic == "clicks"]
    for output in forwarded:
        assert [*output.records] == [one for one in sent if owner_of(one) == output.partition]
        assert {*(output.timestamps or ())} == {run.records[0].timestamp}
    assert {output.partition for output in forwarded} == {0, 2}
    assert counted("forwarded_records") - before == len(sent) - len(own)
    [letters] = [output for output in outputs if output.topic == "dead-letters"]
    assert list(letters.records) == [invalid], "an invalid record is refused where it lies"
    assert letters.headers is not None and dict(letters.headers[0])["offset"] == b"130"


def test_a_run_without_an_event_of_its_partition_has_an_empty_changelog() -> None:
    sent = [one for one in one_view_each(30) if owner_of(one) != HOME]
    [(result, outputs)] = process(agent_of(path_of(), partitions=PARTITIONS), run_of(sent, partition=HOME))
    assert (result.pages, result.changelog) == ([], [])
    assert sum(len(output.records) for output in outputs) == len(sent)


def test_an_event_that_is_forwarded_twice_is_folded_once_even_beyond_the_window_of_ids() -> None:
    path, profiles = path_of(), profile_store()
    shopper = next(key for key, _ in one_view_each(30) if partition_of(key, PARTITIONS) == HOME).decode()
    sent = [record("view_item", shopper, f"e{k}", NOW + k, item=f"i{k % 9}") for k in range(400)]
    headers = [[(FORWARDED, b"clicks/0/%d" % offset)] for offset in range(400)]
    agent, before = agent_of(path, profiles, partitions=PARTITIONS), counted("skipped_records")
    for start in range(0, 400, 100):
        part = slice(start, start + 100)
        process(agent, run_of(sent[part], partition=HOME, first=start, headers=headers[part]))
    once = {key: row for key, row in profiles.rows_of(HOME).items() if not key.startswith(META_PREFIX)}
    [(result, outputs)] = process(agent, run_of(sent[:50], partition=HOME, first=400, headers=headers[:50]))
    assert (result.changelog, outputs) == ([], [])
    assert {key: profiles.rows_of(HOME)[key] for key in once} == once
    assert counted("skipped_records") - before == 50


def misplaced_runs(keys: int) -> list[Any]:
    """Runs of the partitions to which CRC32 of the key leads."""
    sent = one_view_each(keys)
    return [
        run_of([one for one in sent if zlib.crc32(one[0]) % PARTITIONS == partition], partition=partition)
        for partition in range(PARTITIONS)
    ]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line.getMessage() for line in caplog.records if line.name == placement_monitor.__name__]


def test_one_warning_for_each_topic_names_the_partitioner_and_its_setting(caplog: pytest.LogCaptureFixture) -> None:
    agent = agent_of(path_of(), partitions=PARTITIONS)

    async def scene() -> None:
        for _ in range(3):
            await asyncio.gather(*(agent._refresh(run) for run in misplaced_runs(300)))
            agent.placement.warn_if_due()

    asyncio.run(scene())
    [warning] = warnings(caplog)
    assert "of 'clicks' lie in a wrong partition" in warning and "partitioner=murmur2_random" in warning
    assert "CRC32" in warning and "librdkafka" in warning
    share = agent.placement.shares()["clicks"]
    places = Counter(zlib.crc32(one[0]) % PARTITIONS != owner_of(one) for one in one_view_each(300))
    assert (share.forwarded, share.partitioner) == (3 * places[True], "crc32")
    assert share.forwarded < share.records <= 900


def test_a_few_misplaced_or_keyless_records_are_warned_of_after_a_while(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement_monitor, "WARNING_DELAY_S", 0.01)
    agent = agent_of(path_of(), partitions=PARTITIONS)
    event = record("view_item", "u1", "e1", NOW, item="i1")

    async def scene() -> None:
        for topic in ("clicks", "purchases"):
            await agent._refresh(run_of([event], topic, (owner_of(event) + 1) % PARTITIONS))
        await agent._refresh(run_of([(None, event[1])], "clicks"))
        agent.placement.warn_if_due()
        agent.placement.warn_if_due()
        assert not warnings(caplog)
        async with asyncio.timeout(5):
            while not warnings(caplog):
                await asyncio.sleep(0.005)
        agent.placement.warn_if_due()

    asyncio.run(scene())
    first, second = warnings(caplog)
    assert "1 of 2 records of 'clicks'" in first and "not recognised" in first
    assert "1 of 2 records of 'clicks' have no key" in second
    assert "purchases" not in agent.placement.shares(), "a view in purchases is refused, not forwarded"


def test_the_share_falls_when_the_producers_are_mended() -> None:
    monitor = PlacementMonitor(PARTITIONS)
    event: Any = run_of(one_view_each(1)).records[0]
    monitor.observe("clicks", 0, 1000, [event] * 900)
    assert monitor.shares()["clicks"].forwarded == 900
    for _ in range(200):
        monitor.observe("clicks", 0, 1000)
    share = monitor.shares().get("clicks")
    assert share is None or share.forwarded / share.records < 0.001
