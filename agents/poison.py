"""Which records of a run make work over it raise: found by halves, so that one of hundreds costs a few tries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeVar, cast

import msgspec

Item = TypeVar("Item")
Answer = TypeVar("Answer")
LONGEST = 200  # characters of what is told of an error


def without_poison(
    records: Sequence[Item], work: Callable[[Sequence[Item]], Answer]
) -> tuple[Answer, dict[int, Exception]]:
    """`work` over all records that let it end, and what each of the others, by its index, made it raise.

    `work` must have no side effects: it is tried over parts of the records, and over none of them. Raises what it raises
    over no record at all, and MemoryError: neither is the fault of a record.
    """
    poison: dict[int, Exception] = {}

    def attempt(part: Sequence[int]) -> tuple[Answer | None, Exception | None]:
        try:
            return work([records[at] for at in part]), None
        except MemoryError:
            raise
        except Exception as error:
            return None, error

    def hunt(part: Sequence[int], error: Exception) -> None:
        if len(part) == 1:
            poison[part[0]] = error
            return
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            _, found = attempt(half)
            if found is not None:
                hunt(half, found)

    everything: Sequence[int] = range(len(records))
    answer, error = attempt(everything)
    if error is not None:
        work([])
        hunt(everything, error)
    while error is not None:
        good = [at for at in everything if at not in poison]
        answer, error = attempt(good)
        if error is not None:
            # None fails alone, but some do together. The first that tips over what comes before it goes.
            passes, fails = 0, len(good)
            while fails - passes > 1:
                middle = (passes + fails) // 2
                _, found = attempt(good[:middle])
                passes, fails, error = (middle, fails, error) if found is None else (passes, middle, found)
            poison[good[passes]] = error
    return cast(Answer, answer), poison


def told(error: Exception, key: bytes | None, value: bytes | None) -> str:
    """The error's type and message, less every text that the record holds: nothing of a shopper goes where it is read."""
    message = str(error)
    for text in sorted(_texts(key, value), key=len, reverse=True):
        message = message.replace(text, "...")
    return f"{type(error).__name__}: {message}"[:LONGEST]


def place(error: Exception) -> str:
    """Type and place of an error, for the log: its message may hold what belongs to a shopper."""
    frames = extract_tb(error.__traceback__)
    at = f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{at}"


def _texts(key: bytes | None, value: bytes | None) -> set[str]:
    found = {(key or b"").decode("utf-8", "replace"), (value or b"").decode("utf-8", "replace")}
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found.update(_leaves(msgspec.json.decode(value or b"null")))
    return {text for text in found if text}


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str):
        yield value
