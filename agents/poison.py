"""Find the records of a run that make processing fail, so that their neighbours are served.

The search bisects: one bad record among hundreds costs a few attempts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeVar, cast

import msgspec

from stream.events.decode import Reject
from stream.kafka.run import Run

Item = TypeVar("Item")
Answer = TypeVar("Answer")
MAX_MESSAGE_CHARS = 200
# If that many records in a row fail, and no others were processed, the cause is not the records.
MAX_POISON_IN_A_ROW = 100
log = logging.getLogger(__name__)


class PoisonFilter:
    """Processes runs without their poison records, and stops the worker if the records are not to blame."""

    def __init__(self) -> None:
        self._poison_in_a_row = 0

    def reset(self) -> None:
        """Call this after a run without poison."""
        self._poison_in_a_row = 0

    def process(
        self, run: Run, attempt: Callable[[Sequence[Any]], Answer], self_test: Callable[[], object]
    ) -> tuple[Answer, list[Reject]]:
        """Return `attempt` over the records that do not make it fail, and a reject for each of the others.

        `attempt` must have no side effects. `self_test` runs if there are rejects, and must succeed. Raises
        MemoryError, and RuntimeError if the records are not to blame.
        """
        try:
            answer, poison = without_poison(run.records, attempt)
            if not poison:
                return answer, []
            self_test()
        except MemoryError:
            raise
        except Exception as error:
            # Not `from error`: its message may contain a shopper's data.
            raise RuntimeError(
                f"page generation fails for every event ({error_location(error)}); nothing is lost, the offsets stay "
                "uncommitted and the events wait in Kafka: run an earlier version, or with the previous models "
                "(SHOPWINDOW_MODELS_DIR), and report it"
            ) from None
        self._poison_in_a_row = self._poison_in_a_row + len(poison) if len(poison) == len(run.records) else 0
        if self._poison_in_a_row >= MAX_POISON_IN_A_ROW:
            raise RuntimeError(
                f"page generation failed for each of the last {self._poison_in_a_row} records "
                f"({error_location(poison[0])}), so the records are hardly the cause; they wait in Kafka: run an "
                "earlier version, or with the previous models (SHOPWINDOW_MODELS_DIR), and report it"
            )
        return answer, [_reject(run, index, error) for index, error in sorted(poison.items())]


def _reject(run: Run, index: int, error: Exception) -> Reject:
    """The reject of a poison record, which is also logged."""
    record = run.records[index]
    where = {"topic": run.topic, "partition": run.partition, "offset": record.offset}
    log.error(
        "a record of '%s' (partition %d, offset %d) makes page generation fail: %s; it was sent to dead-letters",
        *where.values(), error_location(error), extra=where,
    )  # fmt: skip
    return Reject(index, "poison", "value", redacted(error, record.key, record.value))


def without_poison(
    records: Sequence[Item], attempt: Callable[[Sequence[Item]], Answer]
) -> tuple[Answer, dict[int, Exception]]:
    """Return `attempt` over all records that let it succeed, and the errors of the others by index.

    `attempt` must have no side effects: it is called with parts of the records, and with none. Raises MemoryError, and
    what `attempt` raises for no records at all: neither is the fault of a record.
    """
    poison: dict[int, Exception] = {}

    def attempt_indices(indices: Sequence[int]) -> tuple[Answer | None, Exception | None]:
        try:
            return attempt([records[index] for index in indices]), None
        except MemoryError:
            raise
        except Exception as error:
            return None, error

    def bisect(indices: Sequence[int], error: Exception) -> None:
        if len(indices) == 1:
            poison[indices[0]] = error
            return
        for half in (indices[: len(indices) // 2], indices[len(indices) // 2 :]):
            _, half_error = attempt_indices(half)
            if half_error is not None:
                bisect(half, half_error)

    everything: Sequence[int] = range(len(records))
    answer, error = attempt_indices(everything)
    if error is not None:
        attempt([])
        bisect(everything, error)
    while error is not None:
        good = [index for index in everything if index not in poison]
        answer, error = attempt_indices(good)
        if error is not None:
            # Each succeeds alone, but some fail together. Find the shortest prefix that fails and drop its last record.
            passes, fails = 0, len(good)
            while fails - passes > 1:
                middle = (passes + fails) // 2
                _, prefix_error = attempt_indices(good[:middle])
                if prefix_error is None:
                    passes = middle
                else:
                    fails, error = middle, prefix_error
            poison[good[passes]] = error
    return cast(Answer, answer), poison


def redacted(error: Exception, key: bytes | None, value: bytes | None) -> str:
    """The error's type and message without any text of the record: headers of dead letters hold no shopper's data."""
    message = str(error)
    for text in sorted(_texts(key, value), key=len, reverse=True):
        message = message.replace(text, "...")
    return f"{type(error).__name__}: {message}"[:MAX_MESSAGE_CHARS]


def error_location(error: Exception) -> str:
    """Type, file and line of an error, for the log. Its message is left out, for it may contain a shopper's data."""
    frames = extract_tb(error.__traceback__)
    location = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{location}"


def _texts(key: bytes | None, value: bytes | None) -> set[str]:
    found = {(key or b"").decode("utf-8", "replace"), (value or b"").decode("utf-8", "replace")}
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found.update(_strings_in(msgspec.json.decode(value or b"null")))
    return {text for text in found if text}


def _strings_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _strings_in(part)
    elif isinstance(value, str):
        yield value
