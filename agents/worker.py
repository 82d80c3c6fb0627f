"""A worker: load models and shared state, start the agents, run until stopped."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from aiokafka.errors import KafkaError

from agents import items, shopper
from agents.batcher import single_thread_offload
from agents.global_tables import GlobalTables
from agents.headlines.agent import HeadlineAgent
from agents.headlines.copywriter_process import CopywriterProcess, CopywriterUnavailable
from agents.headlines.worker import HeadlineWorker, headline_agent_of, update_headline_lag
from agents.health import http
from agents.health.lag_gauges import LagGauges
from agents.health.load_shedder import LoadShedder
from agents.health.status_reporter import StatusReporter
from agents.page.fold_step import FoldRules
from agents.page.path import PagePath, Policy, warm_up
from agents.page_refresher import PageRefresher
from models.history.model import History
from models.manifest import ManifestError, check_history
from models.ranker.model import Ranker
from stream import logs, metrics
from stream.addresses import Address
from stream.items.catalog import Catalog
from stream.kafka.app import BatchApp, make_app, serve, tune_garbage_collection
from stream.kafka.client import record_batch
from stream.kafka.client.connection import bootstrap
from stream.kafka.client.producer import BatchTooLarge, SendTimedOut
from stream.kafka.health.topic_monitor import TopicMonitor
from stream.kafka.health.watchdog import Watchdog
from stream.kafka.keys import partitioner
from stream.kafka.tables.disk_store import DiskProfileStore
from stream.kafka.tables.table import ExactTable
from stream.locales import LOCALES
from stream.name_patterns import name_patterns
from stream.page.assembly import PageRules
from stream.profile.store import MemoryProfileStore
from stream.settings import Settings

log = logging.getLogger(logs.COMMAND_LOGGER)
# The page thread and Kafka's share the interpreter. At Python's default, a click would wait 5 ms at each change.
THREAD_SWITCH_INTERVAL_S = 0.0005
BROKER_CHECK_S = 0.5  # between two looks at the worker's own broker
BROKER_STOP_S = 30.0  # for the worker to stop after its broker has ended
MEMORY_REMEDY = "free some, or raise the limit of this process (ulimit -v, the container's)"


def policy_of(settings: Settings) -> Policy:
    return Policy(
        rules=PageRules(settings.brand_cap, settings.explore),
        default_locale=LOCALES.index(settings.default_locale),
        popular_share=settings.popular_share,
        page_ttl=settings.page_ttl,
        copy=settings.copy,
        fold=FoldRules(
            settings.profile_ttl,
            settings.late_events == "refuse",
            settings.robot_events_per_minute,
            name_patterns(settings.exclude_shoppers),
        ),
    )


def profiles_of(settings: Settings) -> tuple[MemoryProfileStore | DiskProfileStore, DiskProfileStore | None]:
    """The profile store, and again the same store if it is on a disk."""
    if settings.store == "memory":
        return MemoryProfileStore(), None
    disk = DiskProfileStore(settings.data_dir / "profiles" / (settings.prefix + settings.app_id))
    return disk, disk


def history_of(settings: Settings, catalog: Catalog) -> History | None:
    """The history model if it is enabled and exists. Raises ManifestError if it must not be served."""
    folder = settings.models_dir / "history"
    return History(folder, catalog) if settings.history and folder.is_dir() else None


class Worker:
    """Everything of one process. Raises ManifestError if a model does not fit this program or another model."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        ranker = Ranker(settings.models_dir / "ranker", settings.head)
        self.tables = GlobalTables(settings, ranker.half_lives)
        history = history_of(settings, self.tables.catalog)
        check_history(ranker.manifest, None if history is None else history.manifest)
        self.path = PagePath(
            self.tables.catalog, self.tables.signals, ranker, self.tables.headlines, policy_of(settings), history
        )  # fmt: skip
        self.app: BatchApp = make_app(settings)
        self.profiles, disk = profiles_of(settings)
        # One thread makes pages: two would compete for one core, and for the tables that they change.
        self._off_loop = single_thread_offload("batches")
        out = self.app.outputs
        self.refresher = PageRefresher(self.path, self.profiles, out, self._off_loop)
        self.load_shedder = LoadShedder(settings, self.app, self.path, self.refresher)
        shoppers = shopper.ShopperAgent(settings, self.path, self.profiles, out, self._off_loop)
        self.placement = shoppers.placement
        self.app.listen(shopper.TOPICS, shoppers.handle_runs, ExactTable(self.app, "profiles", self.profiles, disk))
        self._listen_to_items(ranker)
        self.copywriter: CopywriterProcess | None = None
        self.headlines: HeadlineAgent | None = None
        if settings.copy and settings.role == "all":
            self.copywriter, self.headlines = headline_agent_of(settings)
            self.path.copywriter = self.copywriter.version
        self.watchdog = Watchdog(self.app)
        self.outage = self.watchdog.outage
        self.topic_monitor = TopicMonitor(settings, self.app.fetch_metadata)
        self._lag, self._headline_lag = LagGauges(), LagGauges()
        self._is_warm = False
        self._serving: asyncio.Future[Any] | None = None

    def _listen_to_items(self, ranker: Ranker) -> None:
        tables = items.ItemTables(ranker.half_lives)
        agent = items.ItemAgent(tables, self.app.outputs, single_thread_offload("items"))
        self.app.listen(
            items.TOPICS, agent.handle_runs, ExactTable(self.app, "item-signals", tables), limit=items.RUN_RECORDS,
            limit_bytes=items.RUN_BYTES, pace=items.POLL_INTERVAL_S,
        )  # fmt: skip

    def health(self) -> http.Health:
        # Neither a lost broker nor a changed topic is mended by a restart of the worker.
        notes = [note for note in (self.outage.note, self.topic_monitor.note) if note]
        return http.Health(self.watchdog.problem, "; ".join(notes))

    def conditions(self) -> dict[str, bool]:
        """The conditions that must be true before the worker counts as ready."""
        return {
            "partitions_assigned_and_tables_recovered": self.app.ready,
            "catalogue_and_signals_read": self.tables.ready,
            "models_warmed": self._is_warm,
            "kafka_answers": self.outage.seconds <= self.settings.fetch_timeout,
        }

    def recovery_progress(self) -> dict[str, Any]:
        """Progress of each table's recovery from its changelog; empty before the first assignment."""
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

    def _serve_partitions(self) -> None:
        """Serve the assigned profiles. This runs in the page thread, which alone reads and writes them."""
        assigned = self.app.partitions("clicks")
        self._serving = asyncio.ensure_future(self._off_loop(lambda: self.profiles.serve(assigned, time.monotonic())))

    async def _run_headlines(self, copywriter: CopywriterProcess, headlines: HeadlineAgent) -> None:
        """Load GPT-2 and write headlines once pages go out: loading both at once would delay the pages."""
        await self._first_ready()
        with suppress(CopywriterUnavailable):  # it is logged, and tried again
            await copywriter.start()
        await headlines.run_beside_pages()

    async def _first_ready(self) -> None:
        ready = asyncio.Event()
        self.app.when_ready(ready.set)
        await ready.wait()

    async def _monitor_topics(self) -> None:
        await self._first_ready()
        await self.topic_monitor.run()

    def update_gauges(self) -> None:
        """Set the gauges that are computed only for a scrape."""
        metrics.PROFILES.set(self.profiles.count())
        metrics.PROFILE_BYTES.set(self.profiles.size())
        metrics.CATALOG_ITEMS.set(self.tables.catalog.showable_count(time.time()))
        metrics.SIGNAL_ITEMS.set(self.tables.signals.count)
        metrics.COPYWRITER_UP.set(self.copywriter is not None and self.copywriter.is_alive)
        metrics.READY.set(all(self.conditions().values()))
        if self.app.started:
            self._update_lag()
            metrics.RECOVERING.set(self.app.recovery_remaining())
            metrics.FETCH_SILENCE.set(self.watchdog.longest)
            fetched_at = self.app.batch_consumer.fetched_at()
            if fetched_at is not None:  # None in a rebalance
                metrics.FETCHED.set(fetched_at)

    def _update_lag(self) -> None:
        assigned = None
        if self.app.ready:
            assigned = {(topic, number) for topic in self.app.read_topics() for number in self.app.partitions(topic)}
        self._lag.update(assigned, self.app.lag(), self.app.lag_seconds(time.time()))
        if self.headlines is not None:
            update_headline_lag(self._headline_lag, self.headlines)

    async def _warm_up(self) -> None:
        """Run all kernels once, so that the first click does not wait for the compiler."""
        await self._off_loop(lambda: warm_up(self.path))
        await self._off_loop(record_batch.warm)
        await self._off_loop(partitioner.warm)
        tune_garbage_collection()
        self._is_warm = True

    async def run(self, stop: asyncio.Event, say: Callable[[str], None]) -> None:
        """Serve until `stop` is set. Raises the error of an agent or of a background task."""
        endpoint = await http.start(
            self.settings, self.conditions, self.update_gauges, self.health, self.recovery_progress
        )
        # Not a TaskGroup: when a task fails, the app must commit and leave its group before the error is raised.
        tasks = [asyncio.create_task(self.watchdog.run())]
        try:
            await self.tables.start()
            await self._warm_up()
            follow_tables = self.tables.follow(self._off_loop, self.refresher.refresh_for_headlines)
            senders = [asyncio.create_task(follow_tables), asyncio.create_task(self.load_shedder.run())]
            tasks.append(asyncio.create_task(self._monitor_topics()))
            address = str(Address(self.settings.web_host, endpoint.port))
            reporter = StatusReporter(
                self.app, lambda: self.load_shedder.controller.rung, address, self.headlines, self.placement.shares
            )
            senders.append(asyncio.create_task(reporter.run()))
            tasks += senders
            self.app.when_ready(reporter.report_now)
            for task in tasks:
                task.add_done_callback(lambda _: stop.set())
            self.app.when_ready(self._serve_partitions)
            if self.copywriter is not None and self.headlines is not None:
                tasks.append(asyncio.create_task(self._run_headlines(self.copywriter, self.headlines)))
            self.app.when_ready(lambda: say(f"ready: {len(self.app.partitions('clicks'))} partitions of clicks"))
            say(f"metrics at http://{address}/metrics")
            may_end = asyncio.Event()
            tasks.append(asyncio.create_task(_end_sends_on_stop(stop, senders, reporter, may_end)))
            await serve(self.app, may_end)
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            for task in tasks:
                await _cancel(task)
            await self.tables.stop()
            if self.copywriter:
                await self.copywriter.stop()
            await endpoint.stop()
            self.profiles.close()


async def _end_sends_on_stop(
    stop: asyncio.Event, senders: Sequence[asyncio.Task[None]], reporter: StatusReporter, may_end: asyncio.Event
) -> None:
    """After `stop`, end the tasks that send records and deregister. Then set `may_end`, which ends the app.

    The app closes its producer. A send under way would fail, and be taken for the reason why the worker stops.
    """
    await stop.wait()
    try:
        for sender in senders:
            await _cancel(sender)
        await reporter.deregister()
    finally:
        may_end.set()


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel the task and wait for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _watch_broker(problem: Callable[[], str | None], stop: asyncio.Event) -> None:
    """Set `stop` and raise RuntimeError once `problem` returns a text."""
    while (found := problem()) is None:
        await asyncio.sleep(BROKER_CHECK_S)
    stop.set()
    raise RuntimeError(found)


async def _run_with_broker(
    worker: Worker | HeadlineWorker, stop: asyncio.Event, problem: Callable[[], str | None]
) -> None:
    """Run the worker, but stop it and raise RuntimeError once `problem` returns a text."""
    serving = asyncio.create_task(worker.run(stop, logs.say))
    watching = asyncio.create_task(_watch_broker(problem, stop))
    await asyncio.wait([serving, watching], return_when=asyncio.FIRST_COMPLETED)
    if watching.done():
        # What it reports while it stops without a broker is not the reason.
        await asyncio.wait([serving], timeout=BROKER_STOP_S)
        await _cancel(serving)
        watching.result()
    await _cancel(watching)
    serving.result()


def _reason(error: BaseException, worker: Worker | HeadlineWorker | None) -> str:
    """The reason of a worker's end. An error of Kafka's is completed by the brokers, and the time without an answer."""
    text = logs.redacted(error)
    if worker is None or not isinstance(error, KafkaError) or isinstance(error, SendTimedOut | BatchTooLarge):
        return text
    silence = f", which has not answered for {worker.outage.seconds:.0f} s," if worker.outage.since is not None else ""
    return f"Kafka at {', '.join(bootstrap(worker.settings))}{silence} did not do what was asked ({text})"


def run(settings: Settings, broker_problem: Callable[[], str | None] | None = None) -> int:
    """Run a worker until SIGTERM or SIGINT. Return the exit status: 0, or 1 with a sentence on stderr.

    broker_problem: why the worker's own broker has ended, None while it runs; the worker then ends with this sentence.
    """
    sys.setswitchinterval(THREAD_SWITCH_INTERVAL_S)
    logs.configure(settings)
    worker: Worker | HeadlineWorker | None = None

    async def serve_until_signal() -> None:
        nonlocal worker
        asyncio.get_running_loop().set_exception_handler(logs.log_loop_error)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        worker = HeadlineWorker(settings) if settings.role == "copy" else Worker(settings)
        if broker_problem is None:
            await worker.run(stop, logs.say)
        else:
            await _run_with_broker(worker, stop, broker_problem)

    try:
        asyncio.run(serve_until_signal())
    except ManifestError as error:
        logs.say(str(error))
        return 1
    except MemoryError as error:
        log.critical("the worker stopped: it did not get enough memory; %s", MEMORY_REMEDY, exc_info=error)
        return 1
    except Exception as error:
        log.critical("the worker stopped: %s", _reason(error, worker), exc_info=error)
        return 1
    return 0
