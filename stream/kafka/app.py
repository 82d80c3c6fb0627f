"""The Faust app over runs: agents with a lane for each partition, and a worker that starts, crashes and stops as one.

Topics that share a table share its partitions' turns: two runs never fold into one partition of a table at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import faust

from stream.kafka.client.connection import bootstrap, faust_credentials
from stream.kafka.commit import BATCH_BYTES, Outputs, Pair
from stream.kafka.consumer import PATIENCE, BatchConsumer, BatchTransport
from stream.kafka.run import BatchMessage, PartitionLost, Run
from stream.kafka.tables.table import BatchRecovery, BatchTableManager, ExactTable
from stream.kafka.topics import CHANGELOG_BYTES, WrongTopics, check

if TYPE_CHECKING:
    from stream.settings import Settings

# A send that the broker does not acknowledge within this stops the worker. Broker restarts take 5 to 15 s.
SEND_TIMEOUT = 60.0

AgentBody = Callable[[AsyncIterator[Run]], Awaitable[None]]


class AgentPartitions(NamedTuple):
    """An agent as the transport sees it: its body runs once per partition number, over all of its topics."""

    body: AgentBody
    table: ExactTable | None
    limit: int  # records of a run, at most
    limit_bytes: int  # of a run's values, about, 0 for any; a single record may have more
    pace: float  # s between two looks at a partition that keeps up; 0: what comes is taken at once
    queues: dict[int, asyncio.Queue[BatchMessage]]
    tasks: dict[int, asyncio.Task[None]]

    def run_length(self, backlog: Sequence[Any]) -> int:
        """How many of the records that wait go into the next run."""
        if not self.limit_bytes:
            return self.limit
        size = 0
        for length, record in enumerate(backlog[: self.limit]):
            size += len(record.value or b"")
            if size > self.limit_bytes:
                return max(1, length)
        return self.limit


class BatchApp(faust.App):
    """A Faust app over runs. Make it with `make_app`."""

    def __init__(self, settings: Settings, **options: Any) -> None:
        self.settings = settings
        self.agent_of: dict[str, AgentPartitions] = {}  # topic (as the cluster names it) -> its agent
        self._when_ready: list[Callable[[], None]] = []
        super().__init__(settings.app_id, **options)
        self.outputs = Outputs(self)

    def listen(
        self, topics: Sequence[str], body: AgentBody, table: ExactTable | None = None, limit: int = 0,
        limit_bytes: int = 0, pace: float = 0.0,
    ) -> None:  # fmt: skip
        """Declare an agent: `body` takes the runs of `topics` (logical names) and commits each, or begins to, before the next.

        The body runs once per partition number, all of them at once; runs of the same number come one after the
        other, of whichever topic. `limit` (records; 0: the setting), `limit_bytes` and `pace` are as in `AgentPartitions`.
        """
        names = [self.settings.prefix + topic for topic in topics]
        lanes = AgentPartitions(body, table, limit or self.settings.run_records, limit_bytes, pace, {}, {})
        self.agent_of.update((name, lanes) for name in names)
        source = self.topic(*names, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw")

        async def sort_into_lanes(stream: Any) -> None:
            # noack: stock Faust acknowledges an event when the loop takes the next one, or dies of this one.
            async for event in stream.noack().events():
                message = event.message
                if message.partition not in lanes.queues:
                    lanes.queues[message.partition] = asyncio.Queue()
                    lanes.tasks[message.partition] = asyncio.create_task(self._live(lanes, message.partition))
                lanes.queues[message.partition].put_nowait(message)

        sort_into_lanes.__name__ = f"{topics[0]}_lanes"
        self.agent(source, name=f"{topics[0]}-lanes")(sort_into_lanes)

    async def _live(self, lanes: AgentPartitions, partition: int) -> None:
        try:
            while True:
                with suppress(PartitionLost):
                    async with aclosing(self._runs(lanes, partition)) as runs:
                        await lanes.body(runs)
                    raise RuntimeError("an agent has ended though its topic has not")
                if lanes.table is not None:
                    lanes.table.invalidate(partition)
        except Exception as error:
            await self.crash(error)

    async def _runs(self, lanes: AgentPartitions, partition: int) -> AsyncGenerator[Run, None]:
        consumer = self.feed
        last: Run | None = None
        while True:
            message = await lanes.queues[partition].get()
            if message.epoch != consumer.epoch:
                continue
            topic = message.topic.removeprefix(self.settings.prefix)
            records = message.records
            if lanes.table is not None:
                counted = lanes.table.watermark(topic, partition)
                if records[0].offset < counted:
                    records = [record for record in records if record.offset >= counted]
                    lanes.table.skipped += len(message.records) - len(records)
            if not records:
                consumer.finish(message.tp, message.offset + 1, None)
                continue
            before = last if last and last.epoch == message.epoch else None
            last = run = Run(consumer, message, topic, records, lanes.table, before)
            consumer.take_up(run)
            try:
                yield run
                if not run.ended and run.counts is None:
                    raise RuntimeError(f"the agent of '{topic}' took the next run and has not committed the last")
            finally:
                if run.counts is None:
                    run.abandon()

    def run_ended(self, run: Run, counts: asyncio.Task[None]) -> None:
        """What was to make the run count, behind its agent, has ended; where it failed, so do all that come after it."""
        run.abandon()
        error = None if counts.cancelled() else counts.exception()
        if isinstance(error, PartitionLost) and run.table is not None:
            run.table.invalidate(run.partition)
        elif error is not None and not self.should_stop:
            self.add_future(self.crash(error))

    # Faust types what it holds by its interfaces; these are what we gave it.

    @property
    def feed(self) -> BatchConsumer:
        return cast(BatchConsumer, self.consumer)

    @property
    def recovery(self) -> BatchRecovery:
        return cast(BatchTableManager, self.tables).recovery

    def when_ready(self, hook: Callable[[], None]) -> None:
        """Call `hook` each time an assignment is complete: partitions assigned, tables recovered."""
        self._when_ready.append(hook)

    def announce_ready(self) -> None:
        for hook in self._when_ready:
            hook()

    @property
    def ready(self) -> bool:
        """True when the group has given us an assignment (it may be empty), and our tables are recovered."""
        return (
            bool(self.started and self._assignment is not None and self.tables.actives_ready and not self.rebalancing)
            and not self.should_stop
        )

    def read_topics(self) -> set[str]:
        """The agents' topics (logical)."""
        return {name.removeprefix(self.settings.prefix) for name in self.agent_of}

    async def tell(self, topic: str, record: Pair) -> None:
        """Send a record to `topic` (logical), and wait for its acknowledgement."""
        await self.outputs.send(topic, None, [record])

    def partitions(self, topic: str) -> set[int]:
        """Partitions of `topic` (logical) that are ours."""
        name = self.settings.prefix + topic
        return {tp.partition for tp in self._assignment or () if tp.topic == name}

    def lag(self) -> Mapping[tuple[str, int], int]:
        """Records not yet done, by (logical topic, partition), of the partitions that are ours."""
        consumer = self.feed
        behind = {}
        for tp, done in list(consumer._done.items()):
            end = consumer.highwater(tp)
            if end is not None:
                behind[tp.topic.removeprefix(self.settings.prefix), tp.partition] = max(0, end - done)
        return behind

    def lag_seconds(self, now: float) -> dict[tuple[str, int], float]:
        """Age (s) of the oldest record not yet done, by (logical topic, partition); 0 where none waits."""
        ages = dict.fromkeys(self.lag(), 0.0)
        for tp, since in self.feed.waiting_since().items():
            ages[tp.topic.removeprefix(self.settings.prefix), tp.partition] = max(0.0, now - since)
        return ages

    def recovery_remaining(self) -> int:
        """Changelog records that are still to be read before agents go on; 0 once the tables are recovered."""
        # What we write ourselves moves the offsets past the ends that recovery had noted.
        return sum(max(0, left) for left in self.recovery.active_remaining().values())

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def _create_directories(self) -> None:
        """All state lives in Kafka: nothing to create on the disk."""


def make_app(settings: Settings) -> BatchApp:
    """The Faust app of a worker, tuned; give it agents with `listen` and tables with `ExactTable`."""
    # Retries are aiokafka's daily business and warnings to it; what is not mended by them stops the worker.
    for name, level in (("faust", logging.WARNING), ("mode", logging.WARNING), ("aiokafka", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    return BatchApp(
        settings,
        broker=[f"kafka://{host}" for host in bootstrap(settings)],
        broker_credentials=faust_credentials(settings),
        store="memory://",
        TableManager=BatchTableManager,
        table_standby_replicas=settings.standbys,
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication,
        topic_allow_declare=False,  # Faust would create them with settings of its own, or hang; see topics.py
        topic_disable_leader=True,
        web_enabled=False,
        stream_wait_empty=False,  # settle() waits for runs, and knows which
        stream_recovery_delay=0.0,
        # A queue never holds more than one run a partition; full, it would block the other agents' runs.
        stream_buffer_maxsize=65_536,
        broker_session_timeout=settings.session_timeout,
        broker_heartbeat_interval=settings.heartbeat,
        broker_commit_interval=1.0,
        producer_linger=0.0,
        producer_max_batch_size=BATCH_BYTES,
        producer_max_request_size=2 * CHANGELOG_BYTES,
        producer_request_timeout=SEND_TIMEOUT,
    )


def settle_garbage() -> None:
    """Call once all that stays is loaded. What has come to stay is no garbage, and records in flight make no cycles.

    By its defaults Python would look through all of them every few thousand records: a quarter of a backlog's time, and
    tens of milliseconds of a click's.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 1_000)


async def serve(app: BatchApp, stop: asyncio.Event) -> None:
    """Run the app until `stop` is set; then finish the runs at work, commit, leave the group.

    Raises whatever crashed the app, NoBroker where no broker answers, WrongTopics where `topics.check` finds fault:
    Faust would wait for a missing topic without a word.
    """
    problems = await check(app.settings)
    if problems:
        raise WrongTopics("\n".join(problems))
    await app.start()
    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(app._crashed.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if app.crash_reason is None and app._assignment is not None:
            await app.feed.settle()
    finally:
        for wait in waits:
            wait.cancel()
        await _stop(app)
    if app.crash_reason is not None:
        raise app.crash_reason


async def _stop(app: BatchApp) -> None:
    for lanes in app.agent_of.values():
        for task in lanes.tasks.values():
            task.cancel()
    # Faust waits for a broker that may be gone.
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(app.stop(), PATIENCE)
