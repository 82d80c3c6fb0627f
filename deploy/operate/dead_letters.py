"""Operator commands for dead letters: list them, show one, and send them back once the cause is fixed."""

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

from agents.page.headline_cache import HeadlineRequest, RefreshRequest
from deploy.io.files import InputError
from stream.events.decode import TOPIC_KINDS, decode_run
from stream.kafka.dead_letters import UNREADABLE, DeadLetter, decode_dead_letter
from stream.kafka.global_topics import read_topic
from stream.kafka.redrive import RedriveLog, RedriveResult, open_redrive_log, redrive
from stream.settings import Settings

REDRIVE_BATCH = 5_000  # letters held in memory at a time
STILL_REFUSED = "this version refuses it again (--force sends it all the same)"
CLAIMED = "another redrive has claimed it; if that was interrupted, run this again in two minutes"
SENT_BEFORE_INTERRUPTION = "an interrupted redrive had sent it already"


@dataclass(frozen=True)
class LetterList:
    """The letters that a listing shows, and counts of the others."""

    letters: list[DeadLetter]  # newest first
    others: Counter[str]  # by reason: letters beyond the limit
    sent_back: dict[str, float]  # letter id -> when it was sent back, s since the epoch


async def list_letters(settings: Settings, reason: str | None, limit: int, include_sent_back: bool) -> LetterList:
    """Return the newest `limit` letters (0: all), optionally of one reason.

    Letters that were sent back are left out unless `include_sent_back`.
    """
    newest: list[tuple[float, str, DeadLetter]] = []  # a heap, oldest on top
    counts: Counter[str] = Counter()
    async with open_redrive_log(settings) as log:
        async for record in read_topic(settings, "dead-letters"):
            letter = decode_dead_letter(record)
            if reason is not None and letter.error != reason:
                continue
            if not include_sent_back and log.done(letter.id) is not None:
                continue
            counts[letter.error] += 1
            entry = (letter.time, letter.id, letter)
            if limit and len(newest) == limit:
                heapq.heappushpop(newest, entry)
            else:
                heapq.heappush(newest, entry)
        letters = [letter for _, _, letter in sorted(newest, reverse=True)]
        counts.subtract(letter.error for letter in letters)
        sent_back = {letter.id: at for letter in letters if (at := log.done(letter.id)) is not None}
    return LetterList(letters, +counts, sent_back)


def format_letter_list(found: LetterList) -> str:
    """Format the letters as two or three lines each, at most 80 columns except for the message."""
    if not found.letters:
        return "no dead letters"
    lines = [f"{'REFUSED (UTC)':14}  {'ID':9} {'FROM':24} {'TRIES':>5}  {'REASON':12} FIELD"]
    for letter in found.letters:
        lines.append(
            f"{_time_text(letter.time)[5:19]:14}  {letter.id:9} {_printable(_origin(letter)):24} {letter.attempts:5d}  "
            f"{_printable(letter.error) or '?':12} {_printable(letter.field)}"
        )
        if letter.id in found.sent_back:
            lines.append(f"    sent back {_time_text(found.sent_back[letter.id])[:19]}")
        lines.append(f"    {_printable(letter.message)}")
    more = f"; {found.others.total()} more: {_counts_text(found.others)}" if found.others else ""
    lines.append(f"{_letters_text(len(found.letters))}{more}")
    return "\n".join(lines)


def letter_json(letter: DeadLetter, sent_back_at: float | None) -> dict[str, Any]:
    """Return the fields that `dead-letters list --json` prints; the value appears only as its size."""
    return {
        "id": letter.id, "time": _time_text(letter.time), "topic": letter.topic, "partition": letter.partition,
        "offset": letter.offset, "attempts": letter.attempts, "reason": letter.error, "field": letter.field,
        "message": letter.message, "key": None if letter.key is None else letter.key.decode("utf-8", "replace"),
        "bytes": None if letter.value is None else len(letter.value),
        "redriven": None if sent_back_at is None else _time_text(sent_back_at),
    }  # fmt: skip


def print_letter_list(found: LetterList, as_json: bool) -> None:
    """Print one line for each letter, as text or JSON."""
    if not as_json:
        print(format_letter_list(found))
        return
    for letter in found.letters:
        print(json.dumps(letter_json(letter, found.sent_back.get(letter.id)), ensure_ascii=False))


async def describe_letter(settings: Settings, id: str) -> str:
    """Return all fields, headers and bytes of one letter as text. Raises InputError if no letter has this id."""
    async with open_redrive_log(settings) as log:
        [letter] = [letter async for letter in _select(settings, [id])]
        sent_back_at = log.done(id)
    fields = {
        "id": letter.id, "refused": _time_text(letter.time), "from": _origin(letter), "attempts": str(letter.attempts),
        "reason": letter.error, "field": letter.field, "message": letter.message,
        "sent back": "no" if sent_back_at is None else _time_text(sent_back_at),
        "key": "none" if letter.key is None else letter.key.decode("utf-8", "backslashreplace"),
    }  # fmt: skip
    lines = [f"{name:10} {_printable(value)}" for name, value in fields.items()]
    lines += [
        f"{'header':10} {_printable(name)}: {_printable((value or b'').decode('utf-8', 'backslashreplace'))}"
        for name, value in letter.headers
    ]
    if letter.cut_from:
        lines.append(f"cut        from {letter.cut_from} bytes")
    if letter.value is None:
        return "\n".join([*lines, "value      none"])
    return "\n".join([*lines, f"value      {len(letter.value)} bytes", *_value_lines(letter.value)])


@dataclass(frozen=True)
class RedriveCounts:
    """How many letters were sent and left; after a dry run, how many would have been."""

    sent: Counter[tuple[str, str]]  # (topic, reason)
    left: Counter[tuple[str, str]]  # (reason, why it was not sent)


async def redrive_letters(
    settings: Settings, reason: str | None, ids: Collection[str], dry_run: bool, force: bool
) -> RedriveCounts:
    """Send back the letters of a reason, or of these ids, or all; letters that can never pass stay where they are.

    Raises InputError if an id names no letter, and the errors of `redrive`.
    """
    result = RedriveCounts(Counter(), Counter())
    async with open_redrive_log(settings) as log:
        batch: list[DeadLetter] = []
        async for letter in _select(settings, ids):
            if reason not in (None, letter.error) or (not ids and log.done(letter.id) is not None):
                continue
            why = _already_sent(log, letter) or refusal_reason(letter, force)
            if why:
                result.left[letter.error or "?", why] += 1
                continue
            batch.append(letter)
            if len(batch) == REDRIVE_BATCH:
                await _redrive_batch(settings, batch, log, dry_run, result)
                batch = []
        await _redrive_batch(settings, batch, log, dry_run, result)
    return result


async def _redrive_batch(
    settings: Settings, letters: list[DeadLetter], log: RedriveLog, dry_run: bool, result: RedriveCounts
) -> None:
    """Send a batch unless it is a dry run, and add its counts to `result`."""
    if not letters:
        return
    outcome = RedriveResult(letters, [], []) if dry_run else await redrive(settings, letters, log)
    result.sent.update((letter.topic, letter.error or "?") for letter in outcome.sent)
    result.left.update((letter.error or "?", CLAIMED) for letter in outcome.held)
    result.left.update((letter.error or "?", SENT_BEFORE_INTERRUPTION) for letter in outcome.found)


def format_redrive(result: RedriveCounts, dry_run: bool) -> str:
    verb = "would be sent back" if dry_run else "sent back"
    lines = [f"{_letters_text(result.sent.total())} {verb}" + (":" if result.sent else "")]
    lines += [
        f"  {count:7d}  {_printable(reason):14} to {topic}" for (topic, reason), count in sorted(result.sent.items())
    ]
    if result.left:
        lines.append(f"{result.left.total()} left:")
        lines += [
            f"  {count:7d}  {_printable(reason):14} {why}" for (reason, why), count in sorted(result.left.items())
        ]
    return "\n".join(lines)


def _already_sent(log: RedriveLog, letter: DeadLetter) -> str:
    at = log.done(letter.id)
    return "" if at is None else f"was sent back at {_time_text(at)[:19]}, and is not sent twice"


def refusal_reason(letter: DeadLetter, force: bool) -> str:
    """Return why a letter can never pass, or "" if it may. `force` overrides only the check of this version."""
    if letter.error == UNREADABLE:
        return "it is a whole record batch that no consumer can read; its producer must send the records again"
    if letter.cut_from:
        return f"its {letter.cut_from} bytes were too many to be kept whole; its producer must send it again"
    if not letter.topic:
        return "it does not say which topic it came from"
    if letter.topic == "item-activity":
        return "'item-activity' is counted in order, and what came after it has been counted"
    is_valid = _VALIDATORS.get(letter.topic)
    if is_valid is None:
        return f"it came from '{_printable(letter.topic)}', which no worker of this version reads"
    return STILL_REFUSED if not force and not is_valid(letter) else ""


def _is_valid_event(letter: DeadLetter) -> bool:
    values, keys = [letter.value], [letter.key]
    return not decode_run(values, keys, [time.time()], letter.topic, headers=lambda _: letter.headers).rejects


def _is_valid_json_of(type: Any) -> Callable[[DeadLetter], bool]:
    def is_valid(letter: DeadLetter) -> bool:
        try:
            msgspec.json.decode(letter.value or b"", type=type)
        except msgspec.MsgspecError:
            return False
        return True

    return is_valid


_VALIDATORS: dict[str, Callable[[DeadLetter], bool]] = {
    **dict.fromkeys(TOPIC_KINDS, _is_valid_event),
    "refreshes": _is_valid_json_of(RefreshRequest),
    "copy-requests": _is_valid_json_of(HeadlineRequest),
}


async def _select(settings: Settings, ids: Collection[str]) -> AsyncIterator[DeadLetter]:
    """Yield the letters of these ids, or all if `ids` is empty. Raises InputError after them if an id is missing."""
    missing = set(ids)
    for id in ids:
        if not re.fullmatch(r"\d+-\d+", id, re.ASCII):
            raise InputError(f"'{id}' is not an id of a dead letter, expected PARTITION-OFFSET such as 3-17")
    async for record in read_topic(settings, "dead-letters"):
        id = f"{record.partition}-{record.offset}"
        if not ids or id in missing:
            missing.discard(id)
            yield decode_dead_letter(record)
    if missing:
        raise InputError(
            f"there is no dead letter {', '.join(sorted(missing))}; letters are kept for 30 days, "
            "`shopwindow dead-letters list` shows the existing ones"
        )


def _origin(letter: DeadLetter) -> str:
    return f"{letter.topic}/{letter.partition}/{letter.offset}" if letter.topic else "?"


def _letters_text(count: int) -> str:
    return "1 dead letter" if count == 1 else f"{count} dead letters"


def _time_text(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds").replace("T", " ").replace("+00:00", "Z")


def _counts_text(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {_printable(reason) or '?'}" for reason, count in counts.most_common())


def _printable(text: str) -> str:
    """Escape line breaks and terminal control codes: letters hold whatever a producer sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _value_lines(value: bytes) -> list[str]:
    """Return the value as text if it is printable, else as a hex dump of 16 bytes a line."""
    try:
        text = value.decode()
        if all(c.isprintable() or c in "\n\t" for c in text):
            return [text]  # unchanged: the fault may be in its white space
    except UnicodeDecodeError:
        pass
    lines = []
    for at in range(0, len(value), 16):
        row = value[at : at + 16]
        ascii_text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{at:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  {ascii_text}")
    return lines
