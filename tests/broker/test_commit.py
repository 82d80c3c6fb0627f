"""Grouped sends share batches, keep their order and fail independently."""

import asyncio
from typing import Any

from stream.kafka import topics
from stream.kafka.app import make_app
from tests.harness.counting import running, scenario, settings_for
from tests.harness.worker_process import read_all


async def app_of(broker: str, prefix: str) -> tuple[Any, Any]:
    settings = settings_for(broker, prefix)
    await topics.create(settings)
    app = make_app(settings)

    async def idle(runs: Any) -> None:
        async for run in runs:
            run.acknowledge()

    app.listen(["clicks"], idle)
    return app, settings


@scenario
async def test_concurrent_sends_keep_their_order_and_share_batches(broker: str, topic_prefix: str) -> None:
    app, settings = await app_of(broker, topic_prefix)
    async with running(app):
        sent = 0
        send_batch = app.producer.sender.send

        def counted(*args: Any) -> Any:
            nonlocal sent
            sent += 1
            return send_batch(*args)

        app.producer.sender.send = counted
        each = [[(b"k", b"%d %d" % (sender, n)) for n in range(5)] for sender in range(20)]
        await asyncio.gather(*(app.outputs.send("impressions", 1, records) for records in each))
        assert sent == 1
        await app.outputs.send("impressions", None, [(b"%d" % n, b"keyed") for n in range(40)])
        await app.outputs.send("impressions", 1, [])
    read = await read_all(settings, "impressions")
    assert [r.value for r in read if r.value != b"keyed"] == [value for records in each for _, value in records]
    assert len({r.partition for r in read if r.value == b"keyed"}) == settings.partitions
    assert sent == 1 + settings.partitions, "an empty send makes no batch"


@scenario
async def test_records_that_arrive_during_a_batch_form_the_next(broker: str, topic_prefix: str) -> None:
    app, settings = await app_of(broker, topic_prefix)
    async with running(app):
        batches: list[int] = []
        send_batch, go = app.producer.sender.send, asyncio.Event()

        def held(batch: Any, *place: Any) -> Any:
            batches.append(batch.record_count())

            async def later() -> int:
                await go.wait()
                offset: int = await send_batch(batch, *place)
                return offset

            return asyncio.ensure_future(later())

        app.producer.sender.send = held
        sends = []
        for n in range(6):
            sends.append(asyncio.create_task(app.outputs.send("impressions", 1, [(b"k", b"%d" % n)])))
            await asyncio.sleep(0)  # in a separate turn of the event loop
            await asyncio.sleep(0)
        sends.append(asyncio.create_task(app.outputs.send("impressions", 0, [(b"k", b"other")])))
        while len(batches) < 2:
            await asyncio.sleep(0)
        assert batches == [1, 1], "the first batch, and that of another partition"
        go.set()
        await asyncio.gather(*sends)
        assert batches == [1, 1, 5]
    read = await read_all(settings, "impressions")
    assert [r.value for r in read if r.partition == 1] == [b"%d" % n for n in range(6)]


@scenario
async def test_a_large_send_uses_several_batches_and_waits_for_all(broker: str, topic_prefix: str) -> None:
    app, settings = await app_of(broker, topic_prefix)
    async with running(app):
        large = [(b"k", b"%d" % n + bytes(300_000)) for n in range(7)]
        await asyncio.gather(app.outputs.send("impressions", 0, large), app.outputs.send("impressions", 0, large[:1]))
        read = await read_all(settings, "impressions")
    assert [r.value for r in read] == [value for _, value in [*large, large[0]]]


@scenario
async def test_a_failed_send_fails_only_itself_and_those_behind_it(broker: str, topic_prefix: str) -> None:
    app, settings = await app_of(broker, topic_prefix)
    async with running(app):
        outcomes = await asyncio.gather(
            app.outputs.send("impressions", 0, [(b"k", bytes(3 << 20))]),
            app.outputs.send("impressions", 1, [(b"k", b"fits")]),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], Exception) and outcomes[1] is None
        refused = asyncio.create_task(app.outputs.send("impressions", 0, [(b"k", bytes(3 << 20))]))
        while not app.outputs._in_flight:
            await asyncio.sleep(0)
        behind = asyncio.create_task(app.outputs.send("impressions", 0, [(b"k", b"would overtake it")]))
        assert all(isinstance(one, Exception) for one in await asyncio.gather(refused, behind, return_exceptions=True))
        await app.outputs.send("impressions", 0, [(b"k", b"after")])
    assert sorted(r.value for r in await read_all(settings, "impressions")) == [b"after", b"fits"]
