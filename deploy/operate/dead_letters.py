"""What an operator does with dead letters: list them, look at one, send them back once their cause is gone."""

from __future__ import annotations

import heapq
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from agents.page.headline_cache import HeadlineRequest, Refresh
from deploy.io.files import InputError
from stream.events import TOPIC_KINDS, decode_run
from stream.kafka.dead_letters import DeadLetter, read_letter
from stream.kafka.global_topics import read_topic
from stream.kafka.redrive import Ledger, Sent, ledger, redrive
from stream.settings import Settings

AT_ONCE = 5_000  # letters held in memory
REFUSED_AGAIN = "this version refuses it again (--force sends it all the same)"


@dataclass(frozen=True)
class LetterList:
    """Letters as an operator asked for them."""

    letters: list[DeadLetter]  # the newest first
    others: Counter[str]  # by reason, of those that the limit left out
    done: dict[str, float]  # id -> when it was sent back, s since the epoch


async def list_letters(settings: Settings, reason: str | None, limit: int, redriven: bool) -> LetterList:
    """The newest `limit` letters (0: all of them), of one reason or of any; with `redriven` those that went back too."""
    newest: list[tuple[float, str, DeadLetter]] = []
    counted: Counter[str] = Counter()
    async with ledger(settings) as log:
        async for record in read_topic(settings, "dead-letters"):
            letter = read_letter(record)
            if (reason is not None and letter.error != reason) or (not redriven and log.done(letter.id) is not None):
                continue
            counted[letter.error] += 1
            entry = (letter.time, letter.id, letter)
            if limit and len(newest) == limit:
                heapq.heappushpop(newest, entry)
            else:
                heapq.heappush(newest, entry)
        letters = [letter for _, _, letter in sorted(newest, reverse=True)]
        counted.subtract(letter.error for letter in letters)
        done = {letter.id: at for letter in letters if (at := log.done(letter.id)) is not None}
    return LetterList(letters, +counted, done)


def format_letter_list(list_letters: LetterList) -> str:
    """Two lines a letter, at most 80 columns but for the message."""
    if not list_letters.letters:
        return "no dead letters"
    lines = [f"{'REFUSED (UTC)':14}  {'ID':9} {'FROM':24} {'TRIES':>5}  {'REASON':12} FIELD"]
    for letter in list_letters.letters:
        lines.append(
            f"{_moment(letter.time)[5:19]:14}  {letter.id:9} {_shown(_origin(letter)):24} {letter.attempts:5d}  "
            f"{_shown(letter.error) or '?':12} {_shown(letter.field)}"
        )
        if letter.id in list_letters.done:
            lines.append(f"    sent back {_moment(list_letters.done[letter.id])[:19]}")
        lines.append(f"    {_shown(letter.message)}")
    left = f"; {list_letters.others.total()} more: {_counts(list_letters.others)}" if list_letters.others else ""
    lines.append(f"{_letters(len(list_letters.letters))}{left}")
    return "\n".join(lines)


def letter_json(letter: DeadLetter, done: float | None) -> dict[str, Any]:
    return {
        "id": letter.id, "time": _moment(letter.time), "topic": letter.topic, "partition": letter.partition,
        "offset": letter.offset, "attempts": letter.attempts, "reason": letter.error, "field": letter.field,
        "message": letter.message, "key": None if letter.key is None else letter.key.decode("utf-8", "replace"),
        "bytes": None if letter.value is None else len(letter.value),
        "redriven": None if done is None else _moment(done),
    }  # fmt: skip


async def describe_letter(settings: Settings, id: str) -> str:
    """Everything of one letter, its bytes as text where they are text. Raises InputError where there is none of this id."""
    async with ledger(settings) as log:
        [letter] = [letter async for letter in _asked_for(settings, [id])]
        done = log.done(id)
    told = {
        "id": letter.id, "refused": _moment(letter.time), "from": _origin(letter), "attempts": str(letter.attempts),
        "reason": letter.error, "field": letter.field, "message": letter.message,
        "sent back": "no" if done is None else _moment(done),
        "key": "none" if letter.key is None else letter.key.decode("utf-8", "backslashreplace"),
    }  # fmt: skip
    lines = [f"{name:10} {_shown(value)}" for name, value in told.items()]
    lines += [
        f"{'header':10} {_shown(name)}: {_shown((value or b'').decode('utf-8', 'backslashreplace'))}"
        for name, value in letter.headers
    ]
    if letter.cut_from:
        lines.append(f"cut        from {letter.cut_from} bytes")
    if letter.value is None:
        return "\n".join([*lines, "value      none"])
    return "\n".join([*lines, f"value      {len(letter.value)} bytes", *_body(letter.value)])


@dataclass(frozen=True)
class RedriveResult:
    """What came of it, or with a dry run would have come; how many letters of each."""

    sent: Counter[tuple[str, str]]  # (topic, reason)
    left: Counter[tuple[str, str]]  # (reason, why it was not sent)


async def redrive_letters(
    settings: Settings, reason: str | None, ids: Collection[str], dry_run: bool, force: bool
) -> RedriveResult:
    """Redrive the letters of a reason, or of these ids, or all; those that can never pass are left where they are.

    Raises InputError where an id names no letter, and what `redrive` raises.
    """
    done = RedriveResult(Counter(), Counter())
    async with ledger(settings) as log:
        ready: list[DeadLetter] = []
        async for letter in _asked_for(settings, ids):
            if reason not in (None, letter.error) or (not ids and log.done(letter.id) is not None):
                continue
            why = _already(log, letter) or refusal_reason(letter, force)
            if why:
                done.left[letter.error or "?", why] += 1
                continue
            ready.append(letter)
            if len(ready) == AT_ONCE:
                await _send(settings, ready, log, dry_run, done)
                ready = []
        await _send(settings, ready, log, dry_run, done)
    return done


async def _send(settings: Settings, letters: list[DeadLetter], log: Ledger, dry_run: bool, done: RedriveResult) -> None:
    if not letters:
        return
    result = Sent(letters, [], []) if dry_run else await redrive(settings, letters, log)
    done.sent.update((letter.topic, letter.error or "?") for letter in result.sent)
    for some, why in (
        (result.held, "another redrive has claimed it; if that was interrupted, run this again in two minutes"),
        (result.found, "an interrupted redrive had sent it already"),
    ):
        done.left.update((letter.error or "?", why) for letter in some)


def format_redrive(result: RedriveResult, dry_run: bool) -> str:
    what = "would be sent back" if dry_run else "sent back"
    lines = [f"{_letters(result.sent.total())} {what}" + (":" if result.sent else "")]
    lines += [f"  {count:7d}  {_shown(why):14} to {topic}" for (topic, why), count in sorted(result.sent.items())]
    if result.left:
        lines.append(f"{result.left.total()} left:")
        lines += [f"  {count:7d}  {_shown(why):14} {left}" for (why, left), count in sorted(result.left.items())]
    return "\n".join(lines)


def _already(log: Ledger, letter: DeadLetter) -> str:
    at = log.done(letter.id)
    return "" if at is None else f"was sent back at {_moment(at)[:19]}, and is not sent twice"


def refusal_reason(letter: DeadLetter, force: bool) -> str:
    """Why a letter can never pass; "" where it may. With `force` only where there is nowhere to send it."""
    if letter.cut_from:
        return f"its {letter.cut_from} bytes were too many to be kept whole; its producer must send it again"
    if not letter.topic:
        return "it does not say which topic it came from"
    if letter.topic == "item-activity":
        return "'item-activity' is counted in order, and what came after it has been counted"
    judge = _JUDGES.get(letter.topic)
    if judge is None:
        return f"it came from '{_shown(letter.topic)}', which no worker of this version reads"
    return REFUSED_AGAIN if not force and not judge(letter) else ""


def _passes_as_event(letter: DeadLetter) -> bool:
    return not decode_run([letter.value], [letter.key], [time.time()], letter.topic).rejects


def _passes_as(type: Any) -> Callable[[DeadLetter], bool]:
    def judge(letter: DeadLetter) -> bool:
        try:
            msgspec.json.decode(letter.value or b"", type=type)
        except msgspec.MsgspecError:
            return False
        return True

    return judge


_JUDGES: dict[str, Callable[[DeadLetter], bool]] = {
    **dict.fromkeys(TOPIC_KINDS, _passes_as_event),
    "refreshes": _passes_as(Refresh),
    "copy-requests": _passes_as(HeadlineRequest),
}


async def _asked_for(settings: Settings, ids: Collection[str]) -> AsyncIterator[DeadLetter]:
    """The letters of these ids, or all; of those that are missing InputError tells after the others."""
    missing = set(ids)
    for id in ids:
        if not re.fullmatch(r"\d+-\d+", id, re.ASCII):
            raise InputError(f"'{id}' is no id of a dead letter, expected PARTITION-OFFSET such as 3-17")
    async for record in read_topic(settings, "dead-letters"):
        id = f"{record.partition}-{record.offset}"
        if not ids or id in missing:
            missing.discard(id)
            yield read_letter(record)
    if missing:
        raise InputError(
            f"there is no dead letter {', '.join(sorted(missing))}; letters are kept for 30 days, "
            "`shopwindow dead-letters list` shows those there are"
        )


def _origin(letter: DeadLetter) -> str:
    return f"{letter.topic}/{letter.partition}/{letter.offset}" if letter.topic else "?"


def _letters(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"


def _moment(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("T", " ").replace("+00:00", "Z")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {_shown(reason) or '?'}" for reason, count in counts.most_common())


def _shown(text: str) -> str:
    """In one line, and without what would steer a terminal: letters hold whatever somebody sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _body(value: bytes) -> list[str]:
    try:
        text = value.decode()
        if all(c.isprintable() or c in "\n\t" for c in text):
            return [text]  # as it came: what is wrong may be its white space
    except UnicodeDecodeError:
        pass
    lines = []
    for at in range(0, len(value), 16):
        part = value[at : at + 16]
        seen = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        lines.append(f"{at:08x}  {part[:8].hex(' '):23}  {part[8:].hex(' '):23}  {seen}")
    return lines


def print_letter_list(list_letters: LetterList, as_lines: bool) -> None:
    if not as_lines:
        print(format_letter_list(list_letters))
        return
    for letter in list_letters.letters:
        print(json.dumps(letter_json(letter, list_letters.done.get(letter.id)), ensure_ascii=False))
