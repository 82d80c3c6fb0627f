"""The baselines: a Faust agent and a Faust table as Faust's documentation shows them."""

from tempfile import TemporaryDirectory
from typing import Any

import faust

from deploy.bench.common import Meter
from stream.settings import Settings


class Shopper(faust.Record):
    user_id: str


class Click(faust.Record, serializer="json"):
    id: str
    type: str
    time: str
    data: Shopper


async def count_with_faust(settings: Settings, meter: Meter) -> None:
    """Count clicks per shopper in a Faust table, with one send per event."""
    with TemporaryDirectory() as folder:
        app = faust.App(
            settings.app_id, broker=settings.broker, store="memory://", topic_partitions=settings.partitions,
            topic_replication_factor=1, web_enabled=False, topic_disable_leader=True, datadir=folder,
        )  # fmt: skip
        clicks = app.topic(settings.prefix + "clicks", key_type=bytes, value_type=Click, key_serializer="raw")
        homepages = app.topic(settings.prefix + "homepages", key_type=str, value_serializer="json")
        counts = app.Table("counts", default=int, partitions=settings.partitions)

        async def count(stream: Any) -> None:
            async for click in stream:
                meter.start()
                shopper = click.data.user_id
                counts[shopper] += 1
                await homepages.send(key=shopper, value={"shopper": shopper, "count": counts[shopper]})
                if meter.done == meter.expected - 1:
                    await app.producer.flush()
                meter.add(1)

        app.agent(clicks, name="count")(count)
        app.finalize()
        await app.start()
        await meter.all_done.wait()
        meter.print_figures()
        await app.stop()


def stock_table(settings: Settings) -> tuple[Any, Any]:
    """Return a Faust app, not yet started, and its table of bytes on the changelog `profiles`."""
    app = faust.App(
        settings.app_id, broker=settings.broker, store="memory://", topic_partitions=settings.partitions,
        topic_allow_declare=False, topic_disable_leader=True, web_enabled=False, stream_recovery_delay=0.0,
        datadir=settings.data_dir / "stock",
    )  # fmt: skip
    raw: dict[str, Any] = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    table = app.Table(
        "profiles", partitions=settings.partitions, key_type=bytes, value_type=bytes,
        changelog_topic=app.topic(settings.prefix + "profiles", **raw),
    )  # fmt: skip

    @app.agent(app.topic(settings.prefix + "clicks", **raw))
    async def clicks(stream: Any) -> None:
        async for _ in stream:
            pass

    return app, table
