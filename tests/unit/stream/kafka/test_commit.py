"""The order of outputs that are sent in the background, with a sender instead of a broker."""

import asyncio
from types import SimpleNamespace
from typing import Any

from aiokafka.errors import MessageSizeTooLargeError

from stream.kafka.commit import Output, Outputs
from stream.kafka.run import Run


def run_at(offset: int, previous: Run | None) -> Run:
    record = SimpleNamespace(offset=offset)
    message: Any = SimpleNamespace(partition=0, records=[record], tp=None, generation_id=1, epoch=1)
    owner: Any = SimpleNamespace(
        release_next=lambda run: None, acknowledge=lambda tp, next_offset, run: None, remove_run=lambda run: None
    )
    return Run(owner, message, "clicks", [record], None, previous)


def test_outputs_never_follow_those_of_an_earlier_run_that_have_failed() -> None:
    sent: list[asyncio.Future[int]] = []

    def send(batch: Any, topic: str, partition: int) -> asyncio.Future[int]:
        sent.append(asyncio.get_running_loop().create_future())
        return sent[-1]

    async def scene() -> None:
        settings: Any = SimpleNamespace(prefix="", partitions=4)
        sender: Any = SimpleNamespace(send=send)
        outputs = Outputs(settings, lambda: sender, lambda run, task: None)
        forwarded = [Output("clicks", 1, [(b"k", b"v")], [[("h", b"x")]], [7])]
        first = run_at(0, None)
        commit = outputs.commit_in_background(first, forwarded)
        await asyncio.sleep(0)
        assert len(sent) == 1 and first.outputs_sent
        sent[0].set_exception(MessageSizeTooLargeError())
        await asyncio.sleep(0)
        assert not commit.done(), "the commit has not taken notice of the failure yet"
        second = run_at(1, first)
        later = outputs.commit_in_background(second, forwarded)
        failures = await asyncio.gather(commit, later, return_exceptions=True)
        assert all(isinstance(failure, MessageSizeTooLargeError) for failure in failures)
        assert not first.outputs_sent and not second.outputs_sent and not second.is_committed

    asyncio.run(scene())
    assert len(sent) == 1
