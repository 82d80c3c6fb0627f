"""The Faust app over runs: one task per agent and partition, and a worker that starts, crashes and stops as a whole.

Topics that share a table share its partitions' tasks: two runs are never folded into one partition of a table at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

from aiokafka.cluster import ClusterMetadata

from stream.kafka.agent import AgentApp, AgentBody, AgentPartitions
from stream.kafka.assignor import FixedAssignor
from stream.kafka.client.connection import bootstrap, faust_credentials
from stream.kafka.client.consumer_records import report_unreadable
from stream.kafka.client.producer import BatchProducer
from stream.kafka.client.record_batch import UnreadableBatch
from stream.kafka.commit import BATCH_BYTES, Outputs, Pair
from stream.kafka.consumer import BatchConsumer, BatchTransport
from stream.kafka.dead_letters import count_dead_letters, unreadable_letter
from stream.kafka.run import PartitionLost, Run
from stream.kafka.tables.recovery import BatchRecovery, BatchTableManager
from stream.kafka.topics import MAX_CHANGELOG_BYTES, WrongTopics, inspect

if TYPE_CHECKING:
    from stream.kafka.tables.table import ExactTable
    from stream.settings import Settings

# A send that the broker does not acknowledge within this time stops the worker. Broker restarts take 5 to 15 s.
SEND_TIMEOUT_S = 60.0
# How long Faust may take to stop: it waits for a broker that may not come back.
STOP_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 2.0


class BatchApp(AgentApp):
    """A Faust app over runs. Create it with `make_app`."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.settings = settings
        self.agent_of: dict[str, AgentPartitions] = {}
        self._ready_hooks: list[Callable[[], None]] = []
        super().__init__(settings.app_id, **options)
        self.outputs = Outputs(settings, lambda: cast(BatchProducer, self.producer).sender, self._on_commit_end)

    def listen(
        self, topics: Sequence[str], body: AgentBody, table: ExactTable | None = None, limit: int = 0,
        limit_bytes: int = 0, pace: float = 0.0,
    ) -> None:  # fmt: skip
        """Declare an agent: `body` takes the runs of `topics` (logical names).

        It commits each run, or starts to commit it in the background, before it takes the next. The body runs once per
        partition number, all concurrently. Runs of one partition number come one after the other, whatever their
        topic. `limit` (records; 0: the setting), `limit_bytes` and `pace` are those of `AgentPartitions`.
        """
        names = [self.settings.prefix + topic for topic in topics]
        agent = AgentPartitions(body, table, limit or self.settings.run_records, limit_bytes, pace, {}, {})
        self.agent_of.update((name, agent) for name in names)
        source = self.topic(*names, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

        async def queue_runs(stream: Any) -> None:
            # noack: otherwise Faust acknowledges an event as soon as the loop takes the next one, or raises.
            async for event in stream.noack().events():
                message = event.message
                if message.partition not in agent.queues:
                    agent.queues[message.partition] = asyncio.Queue()
                    agent.tasks[message.partition] = asyncio.create_task(self._run_agent(agent, message.partition))
                agent.queues[message.partition].put_nowait(message)

        queue_runs.__name__ = f"{topics[0]}_runs"
        self.agent(source, name=f"{topics[0]}-runs")(queue_runs)

    async def _run_agent(self, agent: AgentPartitions, partition: int) -> None:
        """Run the agent's body for one partition number, and restart it whenever a run's partition is lost."""
        try:
            while True:
                with suppress(PartitionLost):
                    async with aclosing(self._runs(agent, partition)) as runs:
                        await agent.body(runs)
                    raise RuntimeError("an agent has ended though its topic has not")
                if agent.table is not None:
                    agent.table.invalidate(partition)
        except Exception as error:
            await self.crash(error)

    async def _runs(self, agent: AgentPartitions, partition: int) -> AsyncGenerator[Run, None]:
        """Yield the runs of one partition number, without records below the table's watermark."""
        consumer = self.batch_consumer
        last: Run | None = None
        while True:
            message = await agent.queues[partition].get()
            if message.epoch != consumer.epoch:
                continue
            topic = message.topic.removeprefix(self.settings.prefix)
            records = message.records
            if agent.table is not None:
                watermark = agent.table.watermark(topic, partition)
                if records[0].offset < watermark:
                    records = [record for record in records if record.offset >= watermark]
                    agent.table.skipped += len(message.records) - len(records)
            if not records:
                consumer.acknowledge(message.tp, message.offset + 1, None)
                continue
            previous = last if last and last.epoch == message.epoch else None
            last = run = Run(consumer, message, topic, records, agent.table, previous)
            consumer.add_run(run)
            try:
                if isinstance(records[0], UnreadableBatch):
                    await self._reject_batch(run, records[0])
                    continue
                yield run
                if not run.has_ended and run.commit_task is None:
                    raise RuntimeError(f"the agent of '{topic}' took the next run and has not committed the last")
            finally:
                if run.commit_task is None:
                    run.abandon()

    async def _reject_batch(self, run: Run, batch: UnreadableBatch) -> None:
        """Send a batch that cannot be read to `dead-letters` as raw bytes, and commit it as a run of its own."""
        letters = [unreadable_letter(run.topic, run.partition, batch, self.outputs.batch_limit("dead-letters"))]
        await self.outputs.commit_run(run, letters)
        count_dead_letters(letters)
        report_unreadable(run.topic, run.partition, batch, "its bytes were sent to dead-letters")

    def _on_commit_end(self, run: Run, commit_task: asyncio.Task[None]) -> None:
        """Handle the end of a background commit. If it failed, all later runs of the partition fail as well."""
        run.abandon()
        error = None if commit_task.cancelled() else commit_task.exception()
        if isinstance(error, PartitionLost) and run.table is not None:
            run.table.invalidate(run.partition)
        elif error is not None and not self.should_stop:
            self.add_future(self.crash(error))

    def _crash(self, reason: BaseException) -> None:
        # Faust keeps the last reason: when a crash cancels its services, some of them report that as another.
        super()._crash(self.crash_reason or reason)

    # Faust types these parts by its interfaces; the app created them, so their classes are known.

    @property
    def batch_consumer(self) -> BatchConsumer:
        return cast(BatchConsumer, self.consumer)

    @property
    def recovery(self) -> BatchRecovery:
        return cast(BatchTableManager, self.tables).recovery

    def when_ready(self, hook: Callable[[], None]) -> None:
        """Call `hook` each time an assignment is complete: partitions assigned, tables recovered."""
        self._ready_hooks.append(hook)

    def announce_ready(self) -> None:
        for hook in self._ready_hooks:
            hook()

    @property
    def ready(self) -> bool:
        """True when the group has given us an assignment, possibly empty, and our tables are recovered."""
        return (
            bool(self.started and self._assignment is not None and self.tables.actives_ready and not self.rebalancing)
            and not self.should_stop
        )

    def read_topics(self) -> set[str]:
        """The agents' topics (logical names)."""
        return {name.removeprefix(self.settings.prefix) for name in self.agent_of}

    async def send_record(self, topic: str, record: Pair) -> None:
        """Send a record to `topic` (logical name) and wait for its acknowledgement."""
        await self.outputs.send(topic, None, [record])

    async def fetch_metadata(self) -> ClusterMetadata:
        """Ask the cluster for all of its topics."""
        return await cast(BatchProducer, self.producer).client.fetch_all_metadata()

    def partitions(self, topic: str) -> set[int]:
        """Partitions of `topic` (logical name) that are assigned to this worker."""
        name = self.settings.prefix + topic
        return {tp.partition for tp in self._assignment or () if tp.topic == name}

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet acknowledged, by (logical topic, partition), of the assigned partitions."""
        consumer = self.batch_consumer
        behind = {}
        for tp, next_offset in list(consumer.acknowledged.items()):
            end = consumer.highwater(tp)
            if end is not None:
                behind[tp.topic.removeprefix(self.settings.prefix), tp.partition] = max(0, end - next_offset)
        return behind

    def lag_seconds(self, now: float) -> dict[tuple[str, int], float]:
        """Age (s) of the oldest unacknowledged record, by (logical topic, partition); 0 if none waits."""
        ages = dict.fromkeys(self.lag(), 0.0)
        for tp, since in self.batch_consumer.waiting_since().items():
            ages[tp.topic.removeprefix(self.settings.prefix), tp.partition] = max(0.0, now - since)
        return ages

    def recovery_remaining(self) -> int:
        """Changelog records still to be read before the agents start; 0 once the tables are recovered."""
        # Our own later writes move the offsets beyond the ends that recovery noted, hence the max.
        return sum(max(0, left) for left in self.recovery.active_remaining().values())

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        """Do nothing: Faust would create data directories, but all state lives in Kafka."""


def make_app(settings: Settings) -> BatchApp:
    """Return the tuned Faust app of a worker. Add agents with `listen` and tables with `ExactTable`."""
    # These libraries log each retry as a warning or an error. What retries do not solve stops the worker.
    # In an outage of Kafka, commits also take longer than their interval, of which mode's timers warn each time.
    quiet = {"faust": logging.WARNING, "mode": logging.WARNING, "mode.timers": logging.ERROR, "aiokafka": logging.ERROR}
    for name, level in quiet.items():
        logging.getLogger(name).setLevel(level)
    return BatchApp(
        settings,
        broker=[f"kafka://{host}" for host in bootstrap(settings)],
        broker_credentials=faust_credentials(settings),
        store="memory://",
        TableManager=BatchTableManager,
        PartitionAssignor=FixedAssignor,
        table_standby_replicas=settings.standbys,
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        # Faust would create missing topics with its own settings, or hang. See topics.py.
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        # BatchConsumer.finish_runs waits for runs instead.
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        # A queue never holds more than one run per partition. If it were full, it would block other agents' runs.
        stream_buffer_maxsize=65_536,
        broker_session_timeout=settings.session_timeout,
        broker_heartbeat_interval=settings.heartbeat,
        broker_commit_interval=1.0,
        producer_linger=0.0,
        producer_max_batch_size=BATCH_BYTES,
        producer_max_request_size=2 * MAX_CHANGELOG_BYTES,
        producer_request_timeout=SEND_TIMEOUT_S,
    )


def tune_garbage_collection() -> None:
    """Exempt all current objects from garbage collection, and collect less often. Call after everything is loaded.

    What is loaded by then stays, and records in flight create no reference cycles. With Python's defaults the collector
    would scan all objects every few thousand records. That costs a quarter of a backlog's time, and tens of
    milliseconds of a click's latency.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1_000)


async def serve(app: BatchApp, stop: asyncio.Event) -> None:
    """Run the app until `stop` is set; then finish the runs in flight, commit and leave the group.

    Raises whatever crashed the app, NoBroker if no broker answers, and WrongTopics if `topics.check` finds a problem.
    Faust would wait silently for a missing topic.
    """
    found = await inspect(app.settings)
    if found.problems:
        raise WrongTopics("\n".join(found.problems))
    app.outputs.batch_limits = found.batch_limits  # topics that have grown are reported by `health/topic_monitor.py`
    await app.start()
    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(app._crashed.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if app.crash_reason is None and app._assignment is not None:
            await app.batch_consumer.finish_runs()
    finally:
        for wait in waits:
            wait.cancel()
        await _stop(app)
    if app.crash_reason is not None:
        raise app.crash_reason


async def _stop(app: BatchApp) -> None:
    for agent in app.agent_of.values():
        for task in agent.tasks.values():
            task.cancel()
    stopping = asyncio.ensure_future(app.stop())
    await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait([stopping], timeout=CANCEL_TIMEOUT_S)
    # Without a broker, Faust raises the cancellation of its own services here. That is not why the app stops.
    if stopping.done() and not stopping.cancelled() and app.crash_reason is None:
        stopping.result()
