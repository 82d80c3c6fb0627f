"""The group's consumer, which delivers runs: one Faust message carries a stretch of records.

Stock Faust handles one record at a time (14,000 records/s before any work is done). At rebalances and crashes it loses
or duplicates some. Here an agent takes a `Run`: the records that have arrived in one partition, at most some hundred.
Partitions are processed concurrently. A partition's records pass these stages:

    Kafka ──> _backlog ──> Run ──> step ──> outputs ──> changelog ──> acknowledged ──> Kafka
              1            2       3        4           5             6

    1  Fetched, but in no run yet. The next run forms here. Fetching pauses while PREFETCH_RUNS runs wait.
    2  In `in_flight`, held by the agent: one run per partition. It may leave its last records to the next run.
    3  The agent's step, together with runs of other partitions. Then the next run may be delivered.
    4  Pages and all other outputs, sent and acknowledged. The next run's outputs may follow if it changes other rows.
    5  The changed rows and the run's end offset, in one batch, in order. From now on the run counts, exactly once.
    6  The offset is committed within a second.

A crash before stage 5 repeats the whole run on the old state. After it, the run's records are below the table's
watermark. A rebalance increments `epoch`: fetched records are dropped, runs in flight may end, `acknowledged` is
committed, and only then are the partitions revoked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from stream.kafka.agent import AgentApp
from stream.kafka.client.fetcher import BatchConsumerThread, FetchedRecords, Fetcher
from stream.kafka.client.producer import BatchProducer
from stream.kafka.client.record_batch import UnreadableBatch
from stream.kafka.run import BatchMessage, PartitionLost, Run
from stream.times import record_seconds

# A partition is not fetched further while this many of its runs wait.
PREFETCH_RUNS = 4
# Maximum runs of a partition that are in flight: in the agent's step, or with a commit under way.
MAX_UNCOMMITTED_RUNS = 4
# How long a rebalance or a stop waits for runs in flight. A rebalance may take 60 s (broker_rebalance_timeout).
FINISH_TIMEOUT_S = 10.0
log = logging.getLogger(__name__)


def _arrival(record: Any) -> float:
    """Timestamp (s since the epoch) of a record; the present time if its producer wrote none that can be understood.

    A single wrong timestamp would otherwise count as a lag of decades, and shed load.
    """
    return record_seconds(record.timestamp / 1000) or time.time()


class BatchConsumer(driver.Consumer):
    """Delivers runs of the agents' topics. Per partition it keeps a single offset: everything below it is done."""

    app: AgentApp
    _thread: BatchConsumerThread

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _reset_state(self) -> None:
        super()._reset_state()
        self.epoch = 0  # incremented whenever records fetched so far must not be processed any more
        self.in_flight: dict[TP, list[Run]] = {}  # runs in an agent's step, or with a commit under way
        self.acknowledged: dict[TP, int] = {}  # next offset to commit
        self._backlog: dict[TP, list[Any]] = {}  # fetched, not yet in a run
        # Partitions with a run that is delivered and has not finished its step; the timestamp (s) of its first record.
        self._delivered: dict[TP, float] = {}
        self._outbox: asyncio.Queue[BatchMessage] = asyncio.Queue()
        self._resume_after_seek: set[TP] = set()
        self._answered: dict[TP, float] = {}  # time (s since the epoch) of the partition's last fetch answer
        self._ends: dict[TP, int] = {}  # end of the partition at the last fetch answer
        self._with_unreadable: set[TP] = set()  # partitions whose backlog may have a batch that cannot be read
        self._paused_until: dict[TP, float] = {}  # monotonic; partitions of paced topics that keep up

    # Delivery.

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            await Fetcher(self.app.settings, self.wanted, self._on_fetched).run()
        except asyncio.CancelledError:
            if not self.app.should_stop:  # otherwise Faust would report it as the reason of the stop
                raise
        except Exception as error:
            await self.app.crash(error)

    def wanted(self) -> dict[TP, int]:
        """The next offset to fetch, of each assigned partition that has no full backlog and is not paused."""
        if not self.flow_active:
            return {}
        now = monotonic()
        return {
            tp: offset
            for tp in self._get_active_partitions()
            if (offset := self._read_offset[tp]) is not None
            and now >= self._paused_until.get(tp, 0.0)
            and not self._has_full_backlog(tp)
        }

    def _on_fetched(self, tp: TP, offset: int, fetched: FetchedRecords | None) -> None:
        """Take in the records of a fetch from `offset`, unless a rebalance has revoked or rewound the partition."""
        if not self.flow_active or self._read_offset[tp] != offset or tp not in self._get_active_partitions():
            return
        self._answered[tp] = time.time()
        if fetched is None:
            self._read_offset[tp] = None
            self.add_future(self._restart_from_beginning(tp, offset))
            return
        self._read_offset[tp], self._ends[tp] = fetched.next_offset, fetched.end
        if fetched.records or fetched.unreadable is not None:
            agent = self.app.agent_of[tp.topic]
            if agent.pace and len(fetched.records) < agent.limit:
                # A paced partition that keeps up pauses until the next beat, which all partitions share. Otherwise
                # each answer of the broker would wake the agent for a record or two.
                self._paused_until[tp] = (monotonic() // agent.pace + 1) * agent.pace
            backlog = self._backlog.setdefault(tp, [])
            backlog.extend(fetched.records)
            if fetched.unreadable is not None:
                backlog.append(fetched.unreadable)
                self._with_unreadable.add(tp)
            self._deliver_next(tp)
        elif fetched.next_offset > offset and self._is_idle(tp):  # there were only aborted or control records
            self.acknowledged[tp] = fetched.next_offset

    async def _restart_from_beginning(self, tp: TP, missing: int) -> None:
        """Continue where the log begins: earlier records have been removed, or the topic was recreated."""
        epoch, begins = self.epoch, await self.earliest_offsets(tp)
        if self.epoch == epoch and self._read_offset[tp] is None:
            log.error(
                "partition %d of '%s' has nothing at offset %d any more and is read from %d on: a retention that is "
                "shorter than the lag loses events", tp.partition, tp.topic, missing, begins[tp],
            )  # fmt: skip
            self._read_offset[tp] = begins[tp]

    def _has_full_backlog(self, tp: TP) -> bool:
        backlog = self._backlog.get(tp)
        if not backlog:
            return False
        agent = self.app.agent_of[tp.topic]
        if agent.limit_bytes:
            return agent.run_length(backlog) < len(backlog)
        return len(backlog) >= PREFETCH_RUNS * agent.limit

    def _deliver_next(self, tp: TP) -> None:
        """Form a run of the backlog and deliver it, so that batches form by draining.

        Do nothing while a delivered run has not finished its step, or MAX_UNCOMMITTED_RUNS are in flight.
        """
        backlog = self._backlog.get(tp)
        if not backlog or tp in self._delivered or len(self.in_flight.get(tp, ())) >= MAX_UNCOMMITTED_RUNS:
            return
        length = self._run_length(tp, backlog)
        records, self._backlog[tp] = backlog[:length], backlog[length:]
        last = records[-1]
        message = BatchMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, last.timestamp_type, None, None, b"", None, 0,
            0, tp, generation_id=self.app.consumer_generation_id,
        )  # fmt: skip
        message.records = records
        message.epoch = self.epoch
        self._delivered[tp] = _arrival(records[0])
        self._outbox.put_nowait(message)

    def _run_length(self, tp: TP, backlog: list[Any]) -> int:
        """How many of the waiting records go into the next run. A batch that cannot be read is a run of its own."""
        length = self.app.agent_of[tp.topic].run_length(backlog)
        if tp not in self._with_unreadable:
            return length
        for index, record in enumerate(backlog):
            if isinstance(record, UnreadableBatch):
                return min(length, max(1, index))
        self._with_unreadable.discard(tp)
        return length

    def _is_idle(self, tp: TP) -> bool:
        """True if no fetched record of the partition waits or is in a run."""
        return not self._backlog.get(tp) and tp not in self._delivered and tp not in self.in_flight

    @Service.task
    async def _deliverer(self) -> None:
        while not self.should_stop:
            message = await self._outbox.get()
            if message.epoch == self.epoch:
                await self.callback(message)

    # The life of a run.

    def add_run(self, run: Run) -> None:
        """Note that the agent has taken the run."""
        self.in_flight.setdefault(run.tp, []).append(run)

    def release_next(self, run: Run) -> None:
        """Note that the run has finished its step, and deliver the next run of its partition."""
        if self._is_in_flight(run):
            self._take_back(run)
            self._delivered.pop(run.tp, None)
            self._deliver_next(run.tp)

    def _take_back(self, run: Run) -> None:
        """Put the records that the run has left over before those that wait."""
        if run.left_over and run.epoch == self.epoch:
            self._backlog[run.tp] = [*run.left_over, *self._backlog.get(run.tp, ())]
        run.left_over = ()

    def acknowledge(self, tp: TP, next_offset: int, run: Run | None) -> None:
        """Note that every record below `next_offset` is done. Ignored if a rebalance has abandoned `run`.

        `run` is None if all records of a message were below the watermark.
        """
        if run is not None and not self._is_in_flight(run):
            return
        if run is not None:
            self._take_back(run)
            self.remove_run(run)
        if run is None or run.commit_task is None:  # otherwise the next run may have been delivered already
            self._delivered.pop(tp, None)
        if self.flow_active and self._is_idle(tp):
            # Aborted and control records may follow the last record that was delivered.
            next_offset = max(next_offset, self._read_offset[tp] or 0)
        self.acknowledged[tp] = next_offset
        self._deliver_next(tp)

    def remove_run(self, run: Run) -> None:
        """Remove the run from those in flight, without an acknowledgement."""
        if self._is_in_flight(run):
            self.in_flight[run.tp].remove(run)
            if not self.in_flight[run.tp]:
                del self.in_flight[run.tp]

    def _is_in_flight(self, run: Run) -> bool:
        return run in self.in_flight.get(run.tp, ())

    # Commit. Faust keeps a list of acknowledged offsets and looks for gaps; runs of a partition end in order.

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self.acknowledged if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self.acknowledged.get(tp)

    # Rebalance.

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Faust would discard the acknowledgements before it commits: a commit interval of work would be repeated.
        try:
            await self.finish_runs()
        except Exception as error:
            await self.app.crash(error)
        await super().on_partitions_revoked(revoked)
        self.acknowledged.clear()
        self._answered.clear()
        self._ends.clear()

    async def finish_runs(self) -> None:
        """Deliver no new runs, wait for those in flight, and commit what is acknowledged.

        Raises RuntimeError if a run that writes a table takes longer than FINISH_TIMEOUT_S. Its rows in memory are then
        ahead of the changelog, and only a restart is sure to discard them. A run without a table is left running;
        its effects are repeated by the next owner.
        """
        self.stop_flow()
        self.epoch += 1
        self._backlog.clear()
        self._delivered.clear()
        in_flight = [run for runs in self.in_flight.values() for run in runs]
        if in_flight:
            await asyncio.wait([asyncio.ensure_future(run.wait_ended()) for run in in_flight], timeout=FINISH_TIMEOUT_S)
        late = [run for run in in_flight if run.table is not None and not run.has_ended]
        self.in_flight.clear()
        await self.maybe_wait_for_commit_to_finish()
        await self.commit()
        if late:
            raise RuntimeError(
                f"a run of {len(late[0].records)} records of '{late[0].topic}' has not ended in {FINISH_TIMEOUT_S:.0f} "
                "s, and its partition is needed elsewhere; the run is repeated after a restart"
            )

    async def ensure_owned(self, run: Run) -> None:
        """Return while the group counts the run's partition as ours.

        Waits while the coordinator has been silent for longer than a session: it may be restarting, or have assigned
        the partition elsewhere. Raises PartitionLost if it has, or if a rebalance abandoned the run.
        """
        coordinator = self._thread._ensure_consumer()._coordinator
        while True:
            if not self._is_in_flight(run) or coordinator.generation != run.generation:
                raise PartitionLost(f"'{run.topic}' {run.partition} has another owner")
            if monotonic() - self._thread.heartbeat_at < self.app.conf.broker_session_timeout:
                return
            await asyncio.sleep(self.app.conf.broker_heartbeat_interval)

    async def perform_seek(self) -> None:
        self._backlog.clear()
        await super().perform_seek()
        # A partition without a committed offset is read from its beginning.
        sources = [tp for tp in self.assignment() if tp.topic in self.app.agent_of]
        fresh = [tp for tp in sources if not self._read_offset[tp]]
        if fresh:
            begins = await self.earliest_offsets(*fresh)
            self._read_offset.update({tp: begins[tp] for tp in fresh})
        await self._check_watermarks(sources)

    async def _check_watermarks(self, sources: list[TP]) -> None:
        """Crash the app if a source ends below its table's watermark: the source was recreated."""
        if not sources:
            return
        ends = await self.highwaters(*sources)
        for tp, end in ends.items():
            table = self.app.agent_of[tp.topic].table
            if table is None:
                continue
            topic = tp.topic.removeprefix(self.app.settings.prefix)
            watermark = table.watermark(topic, tp.partition)
            if watermark > end:
                error = RuntimeError(
                    f"partition {tp.partition} of '{tp.topic}' ends at {end}, but '{table.name}' has counted it "
                    f"up to {watermark}: the topic was recreated, and its new events would be skipped as old ones. "
                    f"Recreate '{table.name}' too, or use another SHOPWINDOW_PREFIX"
                )
                await self.app.crash(error)

    # Faust resumes partitions before it seeks, so records from the old position could be delivered. Here partitions
    # resume together with the flow, which Faust resumes after the seek.

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        # Changelogs are never resumed: recovery has its own reader.
        self._resume_after_seek |= {tp for tp in tps if tp.topic in self.app.agent_of}

    def resume_flow(self) -> None:
        partitions, self._resume_after_seek = self._resume_after_seek, set()
        super().resume_partitions(partitions)
        super().resume_flow()

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        self._resume_after_seek.difference_update(tps)
        super().pause_partitions(tps)

    async def verify_all_partitions_active(self) -> None:
        """Do nothing: Faust would look for fetches of aiokafka's consumer, which makes none (`health/watchdog.py`)."""

    def verify_recovery_event_path(self, now: float, tp: TP) -> None:
        """Do nothing, for the same reason."""

    # State that others may read.

    def next_fetch_offset(self, tp: TP) -> int | None:
        """Where the next fetch of the partition starts; None while not known."""
        return self._read_offset[tp]

    def highwater(self, tp: TP) -> int | None:  # type: ignore[override]
        """Where the partition ended at its last fetch; None before the first.

        If it is read committed, it ends at its last stable offset: the first record of an open transaction.
        """
        return self._ends.get(tp)

    def waiting_since(self) -> dict[TP, float]:
        """Timestamp (s since the epoch) of the oldest record that is delivered or in flight, by partition."""
        return self._delivered | {tp: _arrival(runs[0].records[0]) for tp, runs in self.in_flight.items()}

    def fetched_at(self) -> float | None:
        """When (s since the epoch) the broker last answered a fetch; None before the first answer."""
        return max(self._answered.values(), default=None)

    def last_answers(self) -> dict[TP, object]:
        """A value for each partition that the next fetch requests; any later fetch answer changes it.

        Empty if nothing is requested: no partitions, a rebalance, or a full backlog in all of them.
        """
        return {tp: self._answered.get(tp) for tp in self.wanted()}


class BatchTransport(driver.Transport):
    """Faust's transport, with our consumer and producer."""

    Consumer = BatchConsumer
    Producer = BatchProducer
