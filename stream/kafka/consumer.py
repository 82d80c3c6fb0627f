"""Faust fed in runs: its consumer, which hands over one message for a stretch of records.

Stock Faust handles one record at a time (14,000/s before any work is done) and forgets or doubles some at
rebalances and crashes. Here an agent takes a `Run`: what has arrived in one partition, at most some hundred records.
Partitions go in parallel. Of one partition, between fetch and commit:

    Kafka ──> _backlog ──> Run ──> step ──> outputs ──> changelog ──> _done ──> Kafka
              1            2       3        4           5             6

    1  fetched, in no run yet: the next run forms here; nothing more is asked for while PREFETCH_RUNS wait
    2  in_flight, in the hands of the agent, one of a partition
    3  together with runs of other partitions, off the loop where it is not brief; then the next run may be handed over
    4  pages and all else, sent and acknowledged: those of the next run as well, where it touches other rows
    5  the changed rows and the run's end offset in one batch, sent and acknowledged, in order: the run counts now, once
    6  the offset is committed within a second

A crash before 5 redoes the whole run on the old state; after it, its records lie below the table's watermark.
A rebalance raises `epoch`: what was fetched before is dropped, runs at work may end, `_done` is committed, and only then do
the partitions go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from stream.kafka.client.fetcher import Answer, BatchConsumerThread, Fetcher
from stream.kafka.client.producer import BatchProducer
from stream.kafka.run import BatchMessage, PartitionLost, Run

if TYPE_CHECKING:
    from stream.kafka.app import BatchApp

# A partition is not read further while this many runs of it wait.
PREFETCH_RUNS = 4
# Of a partition, runs that have taken their step or are about to, and do not count yet.
DEPTH = 4
# How long a rebalance or a stop waits for runs at work. A rebalance may take 60 s (broker_rebalance_timeout).
PATIENCE = 10.0
log = logging.getLogger(__name__)


class BatchConsumer(driver.Consumer):
    """Delivers runs of the agents' topics, and keeps of each partition only how far it is done."""

    app: BatchApp
    _thread: BatchConsumerThread

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _reset_state(self) -> None:
        super()._reset_state()
        self.epoch = 0  # rises whenever what was fetched before must not be processed any more
        self.in_flight: dict[TP, list[Run]] = {}  # runs that agents work on or whose effects are on their way
        self._backlog: dict[TP, list[Any]] = {}  # fetched, not yet in a run
        # Partitions with a run on its way to the agent or before its step, and the timestamp (s) of its first record.
        self._delivered: dict[TP, float] = {}
        self._outbox: asyncio.Queue[BatchMessage] = asyncio.Queue()
        self._done: dict[TP, int] = {}  # next offset to commit
        self._withheld: set[TP] = set()  # resumed, but not before the seek
        self._answered: dict[TP, float] = {}  # when (s since the epoch) a fetch of the partition was last answered
        self._ends: dict[TP, int] = {}  # its high watermark then
        self._rests_until: dict[TP, float] = {}  # monotonic, of partitions of paced topics that keep up

    # Delivery.

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            await Fetcher(self.app.settings, self.wanted, self._take).run()
        except asyncio.CancelledError:
            if not self.app.should_stop:  # else Faust would take it for the reason of a stop that has another
                raise
        except Exception as error:
            await self.app.crash(error)

    def wanted(self) -> dict[TP, int]:
        """The next offset to fetch of each partition that is ours, has not enough waiting and does not rest."""
        if not self.flow_active:
            return {}
        now = monotonic()
        return {
            tp: offset
            for tp in self._get_active_partitions()
            if (offset := self._read_offset[tp]) is not None
            and now >= self._rests_until.get(tp, 0.0)
            and not self._full(tp)
        }

    def _take(self, tp: TP, asked: int, answer: Answer | None) -> None:
        """Note what was fetched, unless a rebalance has meanwhile given the partition away or set it back."""
        if not self.flow_active or self._read_offset[tp] != asked or tp not in self._get_active_partitions():
            return
        self._answered[tp] = time.time()
        if answer is None:
            self._read_offset[tp] = None
            self.add_future(self._start_anew(tp, asked))
            return
        self._read_offset[tp], self._ends[tp] = answer.next_offset, answer.end
        if answer.records:
            lanes = self.app.agent_of[tp.topic]
            if lanes.pace and len(answer.records) < lanes.limit:
                # A paced partition that keeps up rests till the next beat, the same for all of them: each answer of the
                # broker would else wake us for a record or two.
                self._rests_until[tp] = (monotonic() // lanes.pace + 1) * lanes.pace
            self._backlog.setdefault(tp, []).extend(answer.records)
            self._deliver_next(tp)

    async def _start_anew(self, tp: TP, missing: int) -> None:
        """Go on where the log begins: what was before has been removed, or the topic was created anew."""
        epoch, begins = self.epoch, await self.earliest_offsets(tp)
        if self.epoch == epoch and self._read_offset[tp] is None:
            log.error(
                "partition %d of '%s' has nothing at offset %d any more and is read from %d on: a retention that is shorter "
                "than the lag loses events", tp.partition, tp.topic, missing, begins[tp],
            )  # fmt: skip
            self._read_offset[tp] = begins[tp]

    def _full(self, tp: TP) -> bool:
        backlog = self._backlog.get(tp)
        if not backlog:
            return False
        lanes = self.app.agent_of[tp.topic]
        if lanes.limit_bytes:
            return lanes.run_length(backlog) < len(backlog)
        return len(backlog) >= PREFETCH_RUNS * lanes.limit

    def _deliver_next(self, tp: TP) -> None:
        """Make a run of what waits, unless one has its step before it or DEPTH do not count yet: so batches form by draining."""
        backlog = self._backlog.get(tp)
        if not backlog or tp in self._delivered or len(self.in_flight.get(tp, ())) >= DEPTH:
            return
        length = self.app.agent_of[tp.topic].run_length(backlog)
        records, self._backlog[tp] = backlog[:length], backlog[length:]
        last = records[-1]
        message = BatchMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, last.timestamp_type, None, None, b"", None, 0,
            0, tp, generation_id=self.app.consumer_generation_id,
        )  # fmt: skip
        message.records = records
        message.epoch = self.epoch
        self._delivered[tp] = records[0].timestamp / 1000
        self._outbox.put_nowait(message)

    @Service.task
    async def _deliverer(self) -> None:
        while not self.should_stop:
            message = await self._outbox.get()
            if message.epoch == self.epoch:
                await self.callback(message)

    def take_up(self, run: Run) -> None:
        """The agent has the run in hand."""
        self.in_flight.setdefault(run.tp, []).append(run)

    def step_on(self, run: Run) -> None:
        """The run has taken its step; the next of its partition may."""
        if self._has(run):
            self._delivered.pop(run.tp, None)
            self._deliver_next(run.tp)

    def finish(self, tp: TP, next_offset: int, run: Run | None) -> None:
        """All up to `next_offset` is done with. A run given up by a rebalance comes too late and changes nothing."""
        if run is not None and not self._has(run):
            return
        if run is not None:
            self.give_up(run)
        if run is None or run.counts is None:  # else another may be on its way already
            self._delivered.pop(tp, None)
        self._done[tp] = next_offset
        self._deliver_next(tp)

    def give_up(self, run: Run) -> None:
        if self._has(run):
            self.in_flight[run.tp].remove(run)
            if not self.in_flight[run.tp]:
                del self.in_flight[run.tp]

    def _has(self, run: Run) -> bool:
        return run in self.in_flight.get(run.tp, ())

    # Acknowledgement: Faust keeps a list of offsets and looks for gaps; runs of a partition end in order.

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return (tp for tp in self._done if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        return self._done.get(tp)

    # Rebalance.

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        # Faust would forget the acknowledgements first and then commit: a commit interval of work done twice.
        try:
            await self.settle()
        except Exception as error:
            await self.app.crash(error)
        await super().on_partitions_revoked(revoked)
        self._done.clear()
        self._answered.clear()
        self._ends.clear()

    async def settle(self) -> None:
        """Take no new runs, wait for those at work, commit what is done.

        Raises RuntimeError where a run that writes a table outlasts PATIENCE: its rows in memory are then ahead of
        the changelog, and only a restart is sure to forget them. A run without a table is left to itself; whatever
        it still does is done again.
        """
        self.stop_flow()
        self.epoch += 1
        self._backlog.clear()
        self._delivered.clear()
        at_work = [run for runs in self.in_flight.values() for run in runs]
        if at_work:
            await asyncio.wait([asyncio.ensure_future(run.ending()) for run in at_work], timeout=PATIENCE)
        late = [run for run in at_work if run.table is not None and not run.ended]
        self.in_flight.clear()
        await self.maybe_wait_for_commit_to_finish()
        await self.commit()
        if late:
            raise RuntimeError(
                f"a run of {len(late[0].records)} records of '{late[0].topic}' has not ended in {PATIENCE:.0f} s, and "
                "its partition is wanted elsewhere; it is done again after a restart"
            )

    async def still_owned(self, run: Run) -> None:
        """Return while the group counts the run's partition as ours.

        Waits while the coordinator is silent for longer than a session: it may just restart, or have given the
        partition away. Raises PartitionLost when it has, or when a rebalance gave the run up.
        """
        coordinator = self._thread._ensure_consumer()._coordinator
        while True:
            if not self._has(run) or coordinator.generation != run.generation:
                raise PartitionLost(f"'{run.topic}' {run.partition} has another owner")
            if monotonic() - self._thread.heartbeat_at < self.app.conf.broker_session_timeout:
                return
            await asyncio.sleep(self.app.conf.broker_heartbeat_interval)

    async def perform_seek(self) -> None:
        self._backlog.clear()
        await super().perform_seek()
        # A partition without a commit is read from its beginning.
        sources = [tp for tp in self.assignment() if tp.topic in self.app.agent_of]
        fresh = [tp for tp in sources if not self._read_offset[tp]]
        if fresh:
            begins = await self.earliest_offsets(*fresh)
            self._read_offset.update({tp: begins[tp] for tp in fresh})
        await self._check_watermarks(sources)

    async def _check_watermarks(self, sources: list[TP]) -> None:
        if not sources:
            return
        ends = await self.highwaters(*sources)
        for tp, end in ends.items():
            lane = self.app.agent_of[tp.topic]
            if lane.table is None:
                continue
            topic = tp.topic.removeprefix(self.app.settings.prefix)
            counted = lane.table.watermark(topic, tp.partition)
            if counted > end:
                error = RuntimeError(
                    f"partition {tp.partition} of '{tp.topic}' ends at {end}, but '{lane.table.name}' has counted it "
                    f"up to {counted}: the topic was created anew, and its new events would be taken for old ones. "
                    f"Create '{lane.table.name}' anew too, or use another SHOPWINDOW_PREFIX"
                )
                await self.app.crash(error)

    # Faust resumes partitions before it seeks: records from the old position slip in. Ours wait for the flow,
    # which is resumed after the seek.

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        # Changelogs never: recovery has a reader of its own.
        self._withheld |= {tp for tp in tps if tp.topic in self.app.agent_of}

    def resume_flow(self) -> None:
        withheld, self._withheld = self._withheld, set()
        super().resume_partitions(withheld)
        super().resume_flow()

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        self._withheld.difference_update(tps)
        super().pause_partitions(tps)

    # What others may ask.

    def position_now(self, tp: TP) -> int | None:
        """Where the next fetch of the partition starts; None while not known."""
        return self._read_offset[tp]

    def highwater(self, tp: TP) -> int | None:  # type: ignore[override]
        """Where the partition ended at its last fetch; None before."""
        return self._ends.get(tp)

    def waiting_since(self) -> dict[TP, float]:
        """Timestamp (s since the epoch) of the oldest record that waits or is worked on, of partitions that have one."""
        return self._delivered | {tp: runs[0].records[0].timestamp / 1000 for tp, runs in self.in_flight.items()}

    def fetched_at(self) -> float | None:
        """When (s since the epoch) the broker last answered a fetch; None before. It ages when we have gone deaf."""
        return max(self._answered.values(), default=None)

    def traces(self) -> dict[TP, object]:
        """Of each partition that the next fetch asks for, what its last answer left behind; any later one changes it.

        Empty where nothing is asked for: no partitions, a rebalance, or enough waiting in all of them.
        """
        return {tp: self._answered.get(tp) for tp in self.wanted()}


class BatchTransport(driver.Transport):
    Consumer = BatchConsumer
    Producer = BatchProducer
