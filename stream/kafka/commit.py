"""Grouped sends, and the order of writes that makes a run count exactly once."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from aiokafka.errors import ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder

from stream.kafka.client.connection import partition_of
from stream.kafka.client.producer import BatchProducer, BatchSender
from stream.kafka.topics import CHANGELOG_BYTES
from stream.profile.store import META_PREFIX

if TYPE_CHECKING:
    from stream.kafka.app import BatchApp
    from stream.kafka.run import Run

# Of one record batch of output; below the broker's message.max.bytes (1 MiB) with room for the batch's header.
BATCH_BYTES = 900_000


Pair = tuple[bytes | None, bytes | None]  # key, value
Headers = list[tuple[str, bytes]]
_NO_HEADERS: Headers = []


class Output(NamedTuple):
    """Records for one topic (logical name); partition None: each goes where its key hashes to."""

    topic: str
    partition: int | None
    records: Sequence[Pair]
    headers: Sequence[Headers] | None = None  # of each record, in parallel; None: none has any


class Batch(BatchBuilder):  # type: ignore[misc]  # aiokafka has no types
    """One record batch, filled a stretch at a time: a call of aiokafka's `append` for each record costs twice as much."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 0, is_transactional=0, key_serializer=None, value_serializer=None)
        self._timestamp = int(time.time() * 1000)

    def extend(self, records: Sequence[Pair], headers: Sequence[Headers] | None = None, start: int = 0) -> int:
        """Append records from `start` on while they fit; an empty batch takes one of any size. -> the first that did not."""
        append, timestamp = self._builder.append, self._timestamp
        first: int = self.record_count()
        at = first
        own_headers = headers[start:] if headers else repeat(_NO_HEADERS)
        for (key, value), own in zip(records[start:] if start else records, own_headers, strict=False):
            if append(at, timestamp, key, value, own) is None:
                break
            at += 1
        self._relative_offset = at
        return start + at - first


class _Post:
    """Records that somebody waits for, and how many of their batches are still on the way."""

    __slots__ = ("acknowledged", "open")

    def __init__(self, groups: int) -> None:
        self.open = groups
        self.acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not groups:
            self.acknowledged.set_result(None)

    def settle(self, error: BaseException | None) -> None:
        self.open -= 1
        if self.acknowledged.done():  # failed before, or its sender was cancelled
            return
        if error is not None:
            self.acknowledged.set_exception(error)
        elif self.open == 0:
            self.acknowledged.set_result(None)


class _Group(NamedTuple):
    """Records for one partition; headers of each, or none at all."""

    records: list[Pair]
    headers: list[Headers]

    def add(self, records: Sequence[Pair], headers: Sequence[Headers] | None) -> None:
        if headers is not None:
            self.headers.extend([_NO_HEADERS] * (len(self.records) - len(self.headers)))
            self.headers.extend(headers)
        elif self.headers:
            self.headers.extend([_NO_HEADERS] * len(records))
        self.records.extend(records)


class Outputs:
    """What agents publish through. Sends return when the broker has acknowledged; a failed send raises.

    What several runs have to send to a partition goes in common batches: what comes while one is under way waits for its
    acknowledgement, and is the next.
    """

    def __init__(self, app: BatchApp) -> None:
        self._app = app
        self._waiting: dict[tuple[str, int], list[tuple[_Group, _Post]]] = {}
        self._under_way: Counter[tuple[str, int]] = Counter()  # batches of each partition
        self._due = False

    async def send(self, topic: str, partition: int | None, records: Sequence[Pair]) -> None:
        """Send all in as few record batches as fit, and wait for their acknowledgement.

        Raises the Kafka error of the first batch that failed; others of the call may have arrived.
        """
        await self._post([Output(topic, partition, records)])

    def _post(self, outputs: Iterable[Output]) -> asyncio.Future[None]:
        """-> settled when all are acknowledged, or the first has failed."""
        groups: dict[tuple[str, int], _Group] = {}
        count = self._app.settings.partitions  # of every topic: nothing starts where the cluster has it otherwise
        for output in outputs:
            name = self._app.settings.prefix + output.topic
            if output.partition is not None:
                groups.setdefault((name, output.partition), _Group([], [])).add(output.records, output.headers)
                continue
            for at, record in enumerate(output.records):
                place = name, partition_of(record[0] or b"", count)
                groups.setdefault(place, _Group([], [])).add((record,), output.headers and (output.headers[at],))
        groups = {place: group for place, group in groups.items() if group.records}
        post = _Post(len(groups))
        for place, group in groups.items():
            self._waiting.setdefault(place, []).append((group, post))
        if not groups.keys() <= self._under_way.keys():
            self._send_soon()
        return post.acknowledged

    def _send_soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send_waiting)

    def _send_waiting(self) -> None:
        self._due = False
        for place in self._waiting.keys() - self._under_way.keys():
            for batch, posts in _batches(self._waiting.pop(place)):
                self._under_way[place] += 1
                self._posts().send(batch, *place).add_done_callback(partial(self._settle, place, posts))

    def _settle(self, place: tuple[str, int], posts: Sequence[_Post], sent: asyncio.Future[Any]) -> None:
        error = ProducerClosed() if sent.cancelled() else sent.exception()
        for post in posts:
            post.settle(error)
        if error is not None:  # nothing may overtake what did not come
            for _, post in self._waiting.pop(place, ()):
                post.settle(error)
        self._under_way[place] -= 1
        if not self._under_way[place]:
            del self._under_way[place]
            if place in self._waiting:
                self._send_soon()

    async def commit_run(
        self, run: Run, outputs: Iterable[Output] = (), changelog: Sequence[tuple[bytes, bytes | None]] = ()
    ) -> None:
        """Make the effect of `run` durable; when this returns, it is, and the run is acknowledged.

        The order is the guarantee:

        1. the outputs, acknowledged;
        2. the changelog with the run's end as watermark in ONE batch (one append: whole or not at all), acknowledged;
        3. the run's acknowledgement.

        A crash before 2 redoes the whole run upon the old state (outputs may come twice, the state does not);
        after 2 its records are below the watermark and never reach an agent again.

        Raises PartitionLost where the partition has, or may have, another owner: nothing more is written, and the
        transport drops the state of the partition. Raises ValueError where the changelog exceeds one batch, the
        Kafka error where a send failed: both stop the worker, and the run is done again after its restart.
        """
        await self._count(run, outputs, changelog, self._post(outputs))

    def commit_in_background(
        self, run: Run, outputs: Sequence[Output] = (), changelog: Sequence[tuple[bytes, bytes | None]] = ()
    ) -> asyncio.Task[None]:
        """Begin what `commit_run` does, and let the agent have the partition's next run. -> ends when this one counts.

        Runs of a partition count in order, each as `commit_run` promises it. Outputs go out while a run before does not
        count yet only where the two change no row in common: a crash then redoes each of them on the state that it had
        found. What fails stops the worker or drops the partition's state, as in `commit_run`; nobody has to await it.
        """
        run.rows = frozenset(key for key, _ in changelog if not key.startswith(META_PREFIX))
        sent = None
        if all(before.posted and run.rows.isdisjoint(before.rows) for before in run.uncounted()):
            sent, run.posted = self._post(outputs), True
        run.counts = asyncio.create_task(self._count(run, outputs, changelog, sent))
        run.counts.add_done_callback(partial(self._app.run_ended, run))
        run.stepped()
        return run.counts

    async def _count(
        self, run: Run, outputs: Iterable[Output], changelog: Sequence[tuple[bytes, bytes | None]],
        sent: asyncio.Future[None] | None,
    ) -> None:  # fmt: skip
        before = next(run.uncounted(), None)
        if sent is None:
            await _counted(before)
            sent, run.posted = self._post(outputs), True
        await sent
        await _counted(before)
        if run.table is not None:
            await self._write_changelog(run, changelog)
        elif changelog:
            raise ValueError(f"the agent of '{run.topic}' keeps no table, but wrote a changelog of {len(changelog)}")
        run.done()

    async def _write_changelog(self, run: Run, changelog: Sequence[tuple[bytes, bytes | None]]) -> None:
        table = run.table
        assert table is not None
        batch = Batch(CHANGELOG_BYTES)
        records = [*changelog, table.watermark_record(run.topic, run.partition, run.last + 1)]
        if batch.extend(records) < len(records) or batch.size() > CHANGELOG_BYTES:
            raise ValueError(
                f"the changelog of a run of {len(run.records)} records ({len(changelog)} keys) exceeds one batch "
                f"of {CHANGELOG_BYTES} bytes; smaller runs fit (SHOPWINDOW_RUN_RECORDS)"
            )
        # The last look before the write. What remains is the time the batch is on its way: a worker cut off from the
        # group right here, for longer than its session, while its batch still reaches the partition's leader, writes
        # after the next owner has recovered. Its successor's state is right, the changelog then holds our older row
        # until the shopper's next event. Only transactions would close that; they cost a p99 of tens of ms.
        await run.still_owned()
        offset = await self._posts().send(batch, table.changelog_topic.get_topic_name(), run.partition)
        table.written(run.topic, run.partition, run.last + 1, offset + batch.record_count() - 1, changelog)

    def _posts(self) -> BatchSender:
        return cast(BatchProducer, self._app.producer).posts


async def _counted(run: Run | None) -> None:
    """Return when the run counts. Raises what keeps it from it."""
    if run is not None and not run.counted and run.counts is not None:
        await asyncio.shield(run.counts)


def _batches(groups: Sequence[tuple[_Group, _Post]]) -> list[tuple[Batch, list[_Post]]]:
    """All records in order, each batch with the posts that wait for it."""
    batch = Batch(BATCH_BYTES)
    made: list[tuple[Batch, list[_Post]]] = [(batch, [])]
    for (records, headers), post in groups:
        made[-1][1].append(post)
        done = batch.extend(records, headers)
        while done < len(records):
            batch = Batch(BATCH_BYTES)  # takes a record of any size: the broker has the last word
            made.append((batch, [post]))
            post.open += 1
            done = batch.extend(records, headers, done)
    return made
