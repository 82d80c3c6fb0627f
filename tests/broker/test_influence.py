"""What one shopper, a robot and a monitor change for everybody else, over a real broker."""

import asyncio
from collections import Counter

from stream.ids import key64
from stream.items.activity import INTERACTION, decode_activity
from stream.items.catalog import Catalog
from stream.items.signals import Signals
from stream.kafka.global_topics import read_table
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.worker_process import open_shop, pages_of, read_all, settings_for, until_counted, worker


@scenario
async def test_robots_monitors_and_repeated_views_get_pages_but_move_no_trend(broker: str, topic_prefix: str) -> None:
    settings = settings_for(broker, topic_prefix, robot_events_per_minute=5, exclude_shoppers="monitor-*")
    await open_shop(settings)
    fan = [record("view_item", "fan", f"f{k}", NOW + 60 * k, item="i9") for k in range(40)]
    others = [record("view_item", f"u{k}", f"u{k}", NOW + 60 * 39, item="i8") for k in range(2)]
    robot = [record("view_homepage", "robot", f"h{k}", NOW + k) for k in range(6)]
    robot += [record("view_item", "robot", f"r{k}", NOW + 6 + k, item=f"i{20 + k}") for k in range(20)]
    monitor = [record("view_item", "monitor-1", f"m{k}", NOW + 600 * k, item=f"i{k}") for k in range(3)]
    sent = [*fan, *others, *robot, *monitor]
    with worker(settings) as process:
        await process.ready()
        await send(settings, "clicks", sent)
        profiles = await until_counted(settings, len(sent))
        signals = Signals(Catalog())
        async with asyncio.timeout(20):
            while signals.count < 2:
                await asyncio.sleep(0.05)
                signals.apply([*(await read_table(settings, "item-signals")).items()])
        pages = pages_of(await read_all(settings, "homepages"))
    # A run's activity is written before its profiles, so all of it is there.
    interactions: Counter[int] = Counter()
    for activity in await read_all(settings, "item-activity"):
        rows = decode_activity(activity.value)[2]
        interactions.update(rows["item"][rows["kind"] == INTERACTION].tolist())
    assert interactions == {key64("i8"): 2, key64("i9"): 1}
    names = {key64(f"i{k}"): f"i{k}" for k in range(50)}
    counts = {names[int(row["item"])]: float(row["count"]) for row in signals.rows if row["item"]}
    assert counts["i9"] == 1 and set(counts) == {"i8", "i9"}
    assert {key: made[-1]["trigger"]["event_id"] for key, made in pages.items()} == {
        "fan": "f39", "u0": "u0", "u1": "u1", "robot": "r19", "monitor-1": "m2"
    }  # fmt: skip
    assert [int(profiles[key]["kinds"].sum()) for key in ("fan", "robot", "monitor-1")] == [40, 26, 3]
