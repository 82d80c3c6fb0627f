"""Grouped sends, and the order of writes that makes each run take effect exactly once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.errors import ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder

from stream.kafka.client.connection import partition_of
from stream.kafka.client.producer import BatchSender
from stream.kafka.topics import BATCH_LIMIT, DEFAULT_BATCH_LIMIT, MAX_CHANGELOG_BYTES
from stream.profile.store import META_PREFIX

if TYPE_CHECKING:
    from stream.kafka.run import Run
    from stream.settings import Settings

# Maximum bytes of one record batch of output. The limit of its topic may be lower.
BATCH_BYTES = 900_000
# Upper bounds of the bytes that a batch, and each record in it, needs beside keys and values.
BATCH_OVERHEAD, RECORD_OVERHEAD = 61, 32

Pair = tuple[bytes | None, bytes | None]  # key, value
Headers = list[tuple[str, bytes]]
_NO_HEADERS: Headers = []


class Output(NamedTuple):
    """Records for one topic (logical name). With partition None, each record goes to the partition of its key."""

    topic: str
    partition: int | None
    records: Sequence[Pair]
    headers: Sequence[Headers] | None = None  # one entry per record; None: no record has headers
    timestamps: Sequence[int] | None = None  # ms, one entry per record; None: the time of sending


class Batch(BatchBuilder):  # type: ignore[misc]  # aiokafka has no types
    """One record batch, filled by many records per call: calling aiokafka's `append` per record costs twice as much."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 0, is_transactional=0, key_serializer=None, value_serializer=None)
        self._timestamp = int(time.time() * 1000)

    def extend(
        self, records: Sequence[Pair], headers: Sequence[Headers] | None = None, start: int = 0,
        timestamps: Sequence[int] | None = None,
    ) -> int:  # fmt: skip
        """Append records from index `start` while they fit. Return the index of the first that did not.

        An empty batch takes one record of any size. `timestamps`: ms; without them, the time of the batch.
        """
        append, timestamp = self._builder.append, self._timestamp
        first: int = self.record_count()
        count = first
        own_headers = headers[start:] if headers else repeat(_NO_HEADERS)
        if timestamps:
            for (key, value), own, at in zip(records[start:], own_headers, timestamps[start:], strict=False):
                if append(count, at, key, value, own) is None:
                    break
                count += 1
        else:
            for (key, value), own in zip(records[start:] if start else records, own_headers, strict=False):
                if append(count, timestamp, key, value, own) is None:
                    break
                count += 1
        self._relative_offset = count
        return start + count - first


def changelog_bytes(records: Sequence[tuple[bytes, bytes | None]]) -> int:
    """Upper bound of the bytes of a record batch with these keys and values, without headers."""
    content = sum([len(key) + (0 if value is None else len(value)) for key, value in records])
    return BATCH_OVERHEAD + RECORD_OVERHEAD * len(records) + content


class ChangelogTooLarge(RuntimeError):
    """The changelog of a run does not fit one record batch; the message names topic, size and setting."""


class _PendingSend:
    """One call's records: how many of its batches are not acknowledged yet, and the future that its caller awaits."""

    __slots__ = ("acknowledged", "open_batches")

    def __init__(self, batches: int) -> None:
        self.open_batches = batches
        self.acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not batches:
            self.acknowledged.set_result(None)

    def settle_batch(self, error: BaseException | None) -> None:
        self.open_batches -= 1
        if self.acknowledged.done():  # an earlier batch failed, or the caller was cancelled
            return
        if error is not None:
            self.acknowledged.set_exception(error)
        elif self.open_batches == 0:
            self.acknowledged.set_result(None)


class _RecordGroup(NamedTuple):
    """Records for one partition. `headers` is empty, or has an entry for each record; `timestamps` alike."""

    records: list[Pair]
    headers: list[Headers]
    timestamps: list[int]

    def add(
        self, records: Sequence[Pair], headers: Sequence[Headers] | None, timestamps: Sequence[int] | None = None
    ) -> None:
        if timestamps is not None or self.timestamps:
            now = int(time.time() * 1000)
            self.timestamps.extend([now] * (len(self.records) - len(self.timestamps)))
            self.timestamps.extend([now] * len(records) if timestamps is None else timestamps)
        if headers is not None:
            self.headers.extend([_NO_HEADERS] * (len(self.records) - len(self.headers)))
            self.headers.extend(headers)
        elif self.headers:
            self.headers.extend([_NO_HEADERS] * len(records))
        self.records.extend(records)


class Outputs:
    """What agents publish through. Sends return once the broker has acknowledged them; a failed send raises.

    Records of several runs for one partition share batches. While a batch of a partition is in flight, further
    records of that partition wait; they form the next batch.

    `sender` returns the sender of the started producer. `on_commit_end` is called with a run and its commit task
    when that task, started by `commit_in_background`, has ended.
    """

    def __init__(
        self,
        settings: Settings,
        sender: Callable[[], BatchSender],
        on_commit_end: Callable[[Run, asyncio.Task[None]], None],
    ) -> None:
        self._settings, self._sender, self._on_commit_end = settings, sender, on_commit_end
        self.batch_limits: Mapping[str, int] = {}  # max.message.bytes by logical topic, as read at the start
        self._waiting: dict[tuple[str, int], list[tuple[_RecordGroup, _PendingSend]]] = {}
        self._in_flight: Counter[tuple[str, int]] = Counter()  # batches of each partition
        self._flush_is_scheduled = False

    def batch_limit(self, topic: str) -> int:
        """Maximum bytes of a record batch of `topic` (logical name)."""
        return self.batch_limits.get(topic, DEFAULT_BATCH_LIMIT)

    def changelog_limit(self, topic: str) -> int:
        """Maximum bytes of a changelog batch of `topic` (logical name)."""
        return min(self.batch_limit(topic), MAX_CHANGELOG_BYTES)

    async def send(self, topic: str, partition: int | None, records: Sequence[Pair]) -> None:
        """Send all records in as few batches as possible, and wait for their acknowledgement.

        Raises the Kafka error of the first batch that failed; other batches of the call may have arrived.
        """
        await self._enqueue([Output(topic, partition, records)])

    def _enqueue(self, outputs: Iterable[Output]) -> asyncio.Future[None]:
        """Queue records to be sent. The future is done when all are acknowledged, or when the first batch failed."""
        groups: dict[tuple[str, int], _RecordGroup] = {}
        # Every topic has this number of partitions: the worker refuses to start otherwise.
        partitions = self._settings.partitions
        for output in outputs:
            name = self._settings.prefix + output.topic
            if output.partition is not None:
                group = groups.setdefault((name, output.partition), _RecordGroup([], [], []))
                group.add(output.records, output.headers, output.timestamps)
                continue
            for index, record in enumerate(output.records):
                place = name, partition_of(record[0] or b"", partitions)
                own_headers = output.headers and (output.headers[index],)
                own_time = output.timestamps and (output.timestamps[index],)
                groups.setdefault(place, _RecordGroup([], [], [])).add((record,), own_headers, own_time)
        groups = {place: group for place, group in groups.items() if group.records}
        pending = _PendingSend(len(groups))
        for place, group in groups.items():
            self._waiting.setdefault(place, []).append((group, pending))
        if not groups.keys() <= self._in_flight.keys():
            self._schedule_flush()
        return pending.acknowledged

    def _schedule_flush(self) -> None:
        if not self._flush_is_scheduled:
            self._flush_is_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_scheduled = False
        for place in self._waiting.keys() - self._in_flight.keys():
            size = min(BATCH_BYTES, self.batch_limit(place[0].removeprefix(self._settings.prefix)))
            for batch, senders in _fill_batches(self._waiting.pop(place), size):
                self._in_flight[place] += 1
                self._sender().send(batch, *place).add_done_callback(partial(self._settle, place, senders))

    def _settle(self, place: tuple[str, int], senders: Sequence[_PendingSend], sent: asyncio.Future[Any]) -> None:
        error = ProducerClosed() if sent.cancelled() else sent.exception()
        for pending in senders:
            pending.settle_batch(error)
        if error is not None:  # records that wait behind a failed batch must not overtake it
            for _, pending in self._waiting.pop(place, ()):
                pending.settle_batch(error)
        self._in_flight[place] -= 1
        if not self._in_flight[place]:
            del self._in_flight[place]
            if place in self._waiting:
                self._schedule_flush()

    async def commit_run(
        self, run: Run, outputs: Iterable[Output] = (), changelog: Sequence[tuple[bytes, bytes | None]] = ()
    ) -> None:
        """Make the effects of `run` durable and acknowledge it.

        The order of the steps is the guarantee:

        1. the outputs, acknowledged;
        2. the changelog and the run's end as watermark, in ONE batch (a single append: whole or not at all),
           acknowledged;
        3. the run's acknowledgement.

        A crash before step 2 repeats the whole run on the old state: outputs may be duplicated, the state is not.
        After step 2 the records are below the watermark and never reach an agent again.

        Raises PartitionLost if the partition has, or may have, another owner. Nothing more is then written, and the
        partition's state is dropped. Raises ChangelogTooLarge if the changelog exceeds one batch, or the Kafka error
        of a failed send. Both stop the worker, and the run is repeated after a restart.
        """
        await self._commit(run, outputs, changelog, self._enqueue(outputs))

    def commit_in_background(
        self, run: Run, outputs: Sequence[Output] = (), changelog: Sequence[tuple[bytes, bytes | None]] = ()
    ) -> asyncio.Task[None]:
        """Start what `commit_run` does, and let the agent take the partition's next run. Return the commit task.

        Runs of a partition are committed in order, each as `commit_run` guarantees. The outputs may be sent before an
        earlier run is committed, but only if the two runs change no common row. After a crash each of them is then
        repeated on the state that it had found. Outputs never follow earlier ones that have failed: forwarded records
        must arrive in order. A failure stops the worker or drops the partition's state, as in
        `commit_run`; the task need not be awaited.
        """
        run.changed_keys = frozenset(key for key, _ in changelog if not key.startswith(META_PREFIX))
        sent = None
        if all(
            earlier.outputs_sent and run.changed_keys.isdisjoint(earlier.changed_keys)
            for earlier in run.uncommitted_predecessors()
        ):
            sent = run.sent = self._enqueue(outputs)
        run.commit_task = asyncio.create_task(self._commit(run, outputs, changelog, sent))
        run.commit_task.add_done_callback(partial(self._on_commit_end, run))
        run.release_next()
        return run.commit_task

    async def _commit(
        self, run: Run, outputs: Iterable[Output], changelog: Sequence[tuple[bytes, bytes | None]],
        sent: asyncio.Future[None] | None,
    ) -> None:  # fmt: skip
        """Take the steps of `commit_run`. `sent`: the outputs' acknowledgement; None: they are not sent yet."""
        previous = next(run.uncommitted_predecessors(), None)
        if sent is None:
            await _wait_committed(previous)
            sent = run.sent = self._enqueue(outputs)
        await sent
        await _wait_committed(previous)
        if run.table is not None:
            await self._write_changelog(run, changelog)
        elif changelog:
            raise ValueError(f"the agent of '{run.topic}' keeps no table, but wrote a changelog of {len(changelog)}")
        run.acknowledge()

    async def _write_changelog(self, run: Run, changelog: Sequence[tuple[bytes, bytes | None]]) -> None:
        table = run.table
        assert table is not None
        limit = self.changelog_limit(table.name)
        batch = Batch(limit)
        records = [*changelog, table.watermark_record(run.topic, run.partition, run.last + 1)]
        if batch.extend(records) < len(records) or batch.size() > limit:
            raise ChangelogTooLarge(
                f"the changelog of a run of {len(run.records)} records has {len(changelog)} rows of together "
                f"{changelog_bytes(changelog)} bytes; it must be one record batch, and topic "
                f"'{table.changelog_name()}' takes at most {limit} bytes: raise its {BATCH_LIMIT}"
            )
        # The last check before the write. One race remains, while the batch is on its way: a worker is cut off from
        # the group for longer than its session, yet its batch still reaches the partition's leader, after the next
        # owner has recovered. The next owner's state is right, but the changelog then holds our older row until the
        # shopper's next event. Only transactions would close this gap, and they cost a p99 of tens of milliseconds.
        await run.ensure_owned()
        offset = await self._sender().send(batch, table.changelog_name(), run.partition)
        table.mark_written(run.topic, run.partition, run.last + 1, offset + batch.record_count() - 1, changelog)


async def _wait_committed(run: Run | None) -> None:
    """Return once the run is committed. Raises the error that prevents it."""
    if run is not None and not run.is_committed and run.commit_task is not None:
        await asyncio.shield(run.commit_task)


def _fill_batches(
    groups: Sequence[tuple[_RecordGroup, _PendingSend]], size: int
) -> list[tuple[Batch, list[_PendingSend]]]:
    """Put all records into batches of at most `size` bytes, in order. Return each with the sends that wait for it."""
    batch = Batch(size)
    filled: list[tuple[Batch, list[_PendingSend]]] = [(batch, [])]
    for (records, headers, timestamps), pending in groups:
        filled[-1][1].append(pending)
        done = batch.extend(records, headers, timestamps=timestamps)
        while done < len(records):
            # An empty batch takes a record of any size: whether that is too large is for the broker to decide.
            batch = Batch(size)
            filled.append((batch, [pending]))
            pending.open_batches += 1
            done = batch.extend(records, headers, done, timestamps)
    return filled
