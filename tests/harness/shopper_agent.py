"""The shopper agent over a small shop, without Kafka: runs go in, results and outputs come out."""

import asyncio
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from agents.page.path import PagePath, PageResult
from agents.shopper import ShopperAgent
from stream.kafka.commit import Output, Outputs
from stream.kafka.run import Run
from stream.profile.store import MemoryProfileStore
from stream.settings import Settings
from tests.harness.events import NOW, record


async def on_loop(call: Any, brief: bool = False) -> Any:
    """An `OffLoop` that makes the call at once."""
    return call()


def run_of(
    records: Sequence[tuple[bytes | None, bytes]], topic: str = "clicks", partition: int = 0, first: int = 0,
    headers: Sequence[Sequence[tuple[str, bytes]]] = (), times: Sequence[float] = (),
) -> Any:  # fmt: skip
    """A run of these records, from offset `first` on. `headers`: of each record; without them, none has any.

    times: of each record, s; without them, one that is later than all events.
    """
    made = [
        SimpleNamespace(key=key, value=value, timestamp=times[at] * 1000 if times else int(NOW + 9999) * 1000,
                        offset=first + at, partition=partition, headers=tuple(headers[at]) if headers else ())
        for at, (key, value) in enumerate(records)
    ]  # fmt: skip
    return LooseRun(topic=topic, partition=partition, records=made, left_over=(), skipped=0)


class LooseRun(SimpleNamespace):
    """A run without a consumer that takes back what it leaves over."""

    cut = Run.cut


def outputs_with(**batch_limits: int) -> Outputs:
    """Outputs without a producer. batch_limits: max.message.bytes of topics, with "_" for "-"."""
    no_kafka: Any = None
    outputs = Outputs(Settings(), no_kafka, no_kafka)
    outputs.batch_limits = {name.replace("_", "-"): limit for name, limit in batch_limits.items()}
    return outputs


def profile_store() -> MemoryProfileStore:
    """An empty store that serves the partitions 0 to 2."""
    profiles = MemoryProfileStore()
    profiles.serve(range(3), 0.0)
    return profiles


def agent_of(
    path: PagePath,
    profiles: MemoryProfileStore | None = None,
    settings: Settings | None = None,
    partitions: int = 1,
    out: Outputs | None = None,
) -> ShopperAgent:
    """An agent over topics with this number of partitions; with one, every key belongs to partition 0."""
    settings = dataclasses.replace(settings or Settings(), partitions=partitions)
    return ShopperAgent(settings, path, profiles or profile_store(), out or outputs_with(), on_loop)


def process(agent: ShopperAgent, *runs: Any) -> list[tuple[PageResult, list[Output]]]:
    """The results and outputs of runs that are processed in one batch."""

    async def call() -> list[Any]:
        return list(await asyncio.gather(*(agent._refresh(run) for run in runs)))

    return asyncio.run(call())


def one_view_each(shoppers: int, first: int = 0) -> list[tuple[bytes, bytes]]:
    """One view of each shopper, from the shopper with number `first` on, a second apart."""
    return [record("view_item", f"u{k}", f"e{k}", NOW + k, item=f"i{k % 60}") for k in range(first, first + shoppers)]
