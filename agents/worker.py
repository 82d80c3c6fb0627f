"""A worker: models and shared state loaded, agents declared, run until told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agents import items, shopper
from agents.batcher import single_thread_offload
from agents.global_tables import GlobalTables, cancelled
from agents.headlines.agent import HeadlineAgent
from agents.headlines.copywriter_process import CopywriterProcess, CopywriterUnavailable
from agents.headlines.worker import CopyWorker, copies_of, note_lag
from agents.health import http as web
from agents.health.load_shedder import LoadShedder
from agents.health.status_reporter import StatusReporter
from agents.page.path import PagePath, Policy, warm
from models.history.model import History
from models.manifest import ManifestError
from models.ranker.model import Ranker
from stream import logs, metrics
from stream.events import LOCALES
from stream.items.catalog import Catalog
from stream.kafka.app import BatchApp, make_app, serve, tune_garbage_collection
from stream.kafka.client import record_batch
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.kafka.tables.table import ExactTable
from stream.kafka.watchdog import Watchdog
from stream.page.assembly import PageRules
from stream.profile.store import MemoryProfileStore
from stream.settings import Settings

log = logging.getLogger(logs.VOICE)
SWITCH = 0.0005  # s


def policy_of(settings: Settings) -> Policy:
    return Policy(
        rules=PageRules(settings.brand_cap, settings.explore),
        default_locale=LOCALES.index(settings.default_locale),
        popular_share=settings.popular_share,
        page_ttl=settings.page_ttl,
        copy=settings.copy,
        profile_ttl=settings.profile_ttl,
    )


def profiles_of(settings: Settings) -> tuple[MemoryProfileStore | DiskProfileStore, DiskProfileStore | None]:
    """The store that is set; and once more where it is on a disk."""
    if settings.store == "memory":
        return MemoryProfileStore(), None
    disk = DiskProfileStore(settings.data_dir / "profiles" / (settings.prefix + settings.app_id))
    return disk, disk


def history_of(settings: Settings, catalog: Catalog) -> History | None:
    """The history model, where one is wanted and there. Raises ManifestError where it must not be served."""
    folder = settings.models_dir / "history"
    return History(folder, catalog) if settings.history and folder.is_dir() else None


class Worker:
    """Everything of one process. Raises ManifestError where a model does not fit this program."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        ranker = Ranker(settings.models_dir / "ranker", settings.head)
        self.world = GlobalTables(settings, ranker.half_lives)
        self.path = PagePath(
            self.world.catalog, self.world.signals, ranker, self.world.copies, policy_of(settings),
            history_of(settings, self.world.catalog),
        )  # fmt: skip
        self.app: BatchApp = make_app(settings)
        self.profiles, disk = profiles_of(settings)
        # Two at a time would only fight for the same core, and for the tables that they change.
        self._batches = single_thread_offload("batches")
        out = self.app.outputs
        self.shoppers = shopper.Shoppers(settings, self.path, self.profiles, out, self._batches)
        self.overload = LoadShedder(settings, self.app, self.path, self.shoppers)
        table = ExactTable(self.app, "profiles", self.profiles, disk)
        self.app.listen(shopper.TOPICS, self.shoppers.live, table)
        tables = items.ItemTables(ranker.half_lives)
        signals = ExactTable(self.app, "item-signals", tables)
        self.app.listen(
            items.TOPICS, items.Items(tables, out, single_thread_offload("items")).live, signals, limit=items.RUN_RECORDS,
            limit_bytes=items.RUN_BYTES, pace=items.PACE,
        )  # fmt: skip
        self.scribe: CopywriterProcess | None = None
        self.copies: HeadlineAgent | None = None
        if settings.copy and settings.role == "all":
            self.scribe, self.copies = copies_of(settings)
            self.path.copywriter = self.scribe.version
        self.watch = Watchdog(self.app)
        self._warm = False
        self._serving: asyncio.Future[Any] | None = None

    def health(self) -> web.Health:
        return web.Health(self.watch.problem, self.watch.note)

    def conditions(self) -> dict[str, bool]:
        """What must hold before the worker counts as ready."""
        return {
            "partitions_assigned_and_tables_recovered": self.app.ready,
            "catalogue_and_signals_read": self.world.ready,
            "models_warmed": self._warm,
        }

    def recovered(self) -> dict[str, Any]:
        """How far each table is read from its changelog; empty before the first assignment."""
        return {
            one.table: {
                "partitions": one.partitions,
                "records_read": one.read,
                "records_to_read": one.to_read,
                "percent": 100.0 if not one.to_read else round(100.0 * one.read / one.to_read, 1),
                "standby_partitions": one.copies,
                "standby_records_to_read": one.behind,
                "seconds_left": None if one.seconds_left is None else round(one.seconds_left, 1),
            }
            for one in self.app.recovery.progress()
        }

    def _serve(self) -> None:
        """In the thread of the batches, which alone reads and writes what is served."""
        ours = self.app.partitions("clicks")
        self._serving = asyncio.ensure_future(self._batches(lambda: self.profiles.serve(ours, time.monotonic())))

    async def _copies_after_pages(self, scribe: CopywriterProcess, copies: HeadlineAgent) -> None:
        """GPT-2 is loaded once pages go out, with templates for headlines: side by side they would wait for each other."""
        ready = asyncio.Event()
        self.app.when_ready(ready.set)
        await ready.wait()
        with suppress(CopywriterUnavailable):  # it has said so, and is tried again
            await scribe.start()
        await copies.run_beside_pages()

    def update_gauges(self) -> None:
        """Figures that are read when somebody asks."""
        metrics.PROFILES.set(self.profiles.count())
        metrics.PROFILE_BYTES.set(self.profiles.size())
        metrics.CATALOG_ITEMS.set(self.world.catalog.showable_count(time.time()))
        metrics.SIGNAL_ITEMS.set(self.world.signals.count)
        metrics.COPYWRITER_UP.set(self.scribe is not None and self.scribe.alive)
        metrics.READY.set(all(self.conditions().values()))
        if self.app.started:
            # Anew each time: a topic whose partitions have all gone elsewhere must not show what it had here.
            metrics.LAG.clear()
            metrics.LAG_SECONDS.clear()
            for (topic, _), records in self.app.lag().items():
                metrics.LAG.labels(topic).inc(records)
            oldest: dict[str, float] = {}
            for (topic, _), age in self.app.lag_seconds(time.time()).items():
                oldest[topic] = max(age, oldest.get(topic, 0.0))
            for topic, age in oldest.items():
                metrics.LAG_SECONDS.labels(topic).set(age)
            if self.copies is not None:
                note_lag(self.copies)
            metrics.RECOVERING.set(self.app.recovery_remaining())
            metrics.FETCH_SILENCE.set(self.watch.longest)
            metrics.FETCHED.set(self.app.batch_consumer.fetched_at() or 0.0)

    async def run(self, stop: asyncio.Event, say: Callable[[str], None]) -> None:
        """Serve until `stop` is set. Raises what crashed the worker."""
        endpoint = await web.start(self.settings, self.conditions, self.update_gauges, self.health, self.recovered)
        tasks = [asyncio.create_task(self.watch.run())]
        try:
            await self.world.start()
            await self._batches(lambda: warm(self.path))
            await self._batches(record_batch.warm)
            tune_garbage_collection()
            self._warm = True
            for watch in (self.world.follow(self._batches, self.shoppers.headlines_came), self.overload.watch()):
                tasks.append(asyncio.create_task(watch))
            address = f"{self.settings.web_host}:{endpoint.port}"
            telling = StatusReporter(self.app, lambda: self.overload.ladder.rung, address, self.copies)
            tasks.append(asyncio.create_task(telling.run()))
            self.app.when_ready(telling.report_now)
            for task in tasks:
                task.add_done_callback(lambda _: stop.set())
            self.app.when_ready(self._serve)
            if self.scribe is not None and self.copies is not None:
                tasks.append(asyncio.create_task(self._copies_after_pages(self.scribe, self.copies)))
            self.app.when_ready(lambda: say(f"ready: {len(self.app.partitions('clicks'))} partitions of clicks"))
            say(f"metrics at http://{address}/metrics")
            left = asyncio.Event()
            tasks.append(asyncio.create_task(_leave(stop, telling, left)))
            await serve(self.app, left)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                await cancelled(task)
            await self.world.stop()
            if self.scribe:
                await self.scribe.stop()
            await endpoint.stop()
            self.profiles.close()


async def _leave(stop: asyncio.Event, telling: StatusReporter, left: asyncio.Event) -> None:
    """Set `left` after `stop` and a farewell, for which the app must still be there."""
    await stop.wait()
    try:
        await telling.deregister()
    finally:
        left.set()


def run(settings: Settings) -> int:
    """A worker as this process, until SIGTERM or SIGINT. -> exit status: 0, or 1 with a sentence on stderr."""
    # The batches' thread and Kafka's share the interpreter: at its usual 5 ms a click would wait that long at each handover.
    sys.setswitchinterval(SWITCH)
    logs.configure(settings)

    async def until_told() -> None:
        asyncio.get_running_loop().set_exception_handler(logs.loop_failed)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        worker = CopyWorker(settings) if settings.role == "copy" else Worker(settings)
        await worker.run(stop, logs.say)

    try:
        asyncio.run(until_told())
    except ManifestError as error:
        logs.say(str(error))
        return 1
    except Exception as error:  # the end of the process, whatever it is; nothing goes on after it
        log.critical("the worker stopped: %s", logs.told(error), exc_info=error)
        return 1
    return 0
