"""`shopwindow train ranker --impressions`: from what pages showed and what was clicked on them."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploy.io.files import InputError, event_records
from deploy.train.inputs import Refusals, files_hash, is_impression, numbered, range_of
from models.evaluation.metrics import page_figures
from models.manifest import ManifestError, Source
from models.ranker.model import HEAD, Ranker
from models.train.progress import Say, of_stretch
from models.train.ranker.fit import Choices, examination, export
from models.train.ranker.heads import fit_heads
from models.train.ranker.impressions import Join, Joined, PageClicks
from models.train.step_cache import FOLDER, Arrays, StepCache
from stream.events import EventError, decode
from stream.items.signals import HALF_LIVES

if TYPE_CHECKING:
    from stream.settings import Settings

TOGETHER = 256  # choices that are scored at once
LIMITS = (
    "Fitted on what shoppers chose among what their pages showed: of items that pages never showed it knows what the "
    "features carry over. Examination is taken to depend on the position alone."
)
TOLD_POSITIONS = (1, 2, 5, 10, 20, 30)
TOPICS = ("clicks", "purchases", "privacy")  # of clicks on pages, and of consent and erasure


def train_on_impressions(
    settings: Settings, data: Sequence[Path], out: Path, seed: int, created: str, say: Say
) -> Path:
    """Of files where there are some, else of the broker's topics. Raises InputError, BrokerError, NoBroker, LookupError, ValueError."""
    if not data:
        from deploy.cluster import require_broker

        settings = require_broker(settings)
    folder = out / "ranker"
    inputs = f"impressions {files_hash(data) if data else f'{settings.broker} {settings.prefix}'} {seed}"

    def gathered() -> Arrays:
        joined = from_files(data, say) if data else asyncio.run(from_topics(settings, say))
        for why, count in sorted(joined.lost.items()):
            say(f"{count:,} clicks are left out: {why}")
        return {"time": joined.time, **joined.choices.arrays()}

    with StepCache(folder, inputs, say) as finished:
        if not data and "choices" in finished:
            say(
                "goes on with what was read from the topics before it was stopped; where shoppers have asked to be erased "
                f"since, remove {folder / FOLDER} to read them anew"
            )
        arrays = finished.once("choices", gathered)
        time = arrays.pop("time")
        choices = Choices(**arrays)
        say(f"{len(choices.chosen):,} clicks among what {len(choices.phi):,} places of pages showed")
        fitted, head = fit_heads(choices, say, seed=seed, finished=finished)
        served = _served(settings, say)
        figures = page_figures(choices, fitted, head, None if served is None else _scores(served, choices))
        e = examination((fitted if head is None else head).place, max(TOLD_POSITIONS))
        eye = {k: float(e[k - 1]) for k in TOLD_POSITIONS}
        _say_figures(time[choices.held], figures, eye, say)
        figures |= {f"position {k}/examination": value for k, value in eye.items()}
        names = ", ".join(path.name for path in data) or "the topics"
        export(
            folder, fitted, f"{len(choices.chosen)} clicks among what pages showed, of {names}", created,
            {"choices": float(len(choices.chosen)), **figures}, head, LIMITS,
            Source(files_hash(data) if data else _digest(choices), range_of(time)),
            half_lives=HALF_LIVES if served is None else served.half_lives,
        )  # fmt: skip
    return folder


def from_files(paths: Sequence[Path], say: Say) -> Joined:
    """JSON lines: impressions, and the events that tell of the clicks on them, in any file and order. Raises InputError."""
    refusals = Refusals(say)
    found = PageClicks()
    for path in paths:
        for number, line in numbered(path, say):
            if not is_impression(line):
                for record in event_records([line]):
                    try:
                        found.add(decode(record.value, record.key, record.topic))
                    except EventError as error:
                        refusals.add(f"{path} line {number}", error.message)
    clicks, lost = found.taken()
    join = Join(clicks, refusals.add)
    for path in paths:
        for number, line in numbered(path, say):
            if is_impression(line):
                join.add(f"{path} line {number}", line.strip().encode("utf-8", "surrogateescape"))
    refusals.sum_up("lines")
    return _some(join.joined(), lost, f"{', '.join(map(str, paths))}")


async def from_topics(settings: Settings, say: Say) -> Joined:
    """Of the topics as far as they go now: events first, so that of all impressions only those clicked on are kept.

    Raises NoBroker, LookupError where a topic is missing, InputError.
    """
    from stream.kafka.global_topics import read_topic

    found, refused = PageClicks(), 0
    for topic in TOPICS:
        async for record in read_topic(settings, topic, of_stretch(f"records of {topic} read", say)):
            try:
                found.add(decode(record.value, record.key, topic), record.timestamp / 1000)
            except EventError:
                refused += 1
    if refused:
        say(f"{refused:,} records are no events and left out; shopwindow dead-letters list tells why")
    clicks, lost = found.taken()
    refusals = Refusals(say)
    join = Join(clicks, refusals.add)
    async for record in read_topic(settings, "impressions", of_stretch("records of impressions read", say)):
        join.add(f"impressions partition {record.partition} offset {record.offset}", record.value)
    refusals.sum_up("impressions")
    return _some(join.joined(), lost, f"the topics clicks and impressions at {settings.broker}")


def _some(joined: Joined, lost: Counter[str], where: str) -> Joined:
    """With all that is left out. Raises InputError where nothing is left to learn from."""
    lost = joined.lost + lost
    if len(joined.time):
        return joined._replace(lost=lost)
    why = "; ".join(f"{count:,} clicks: {reason}" for reason, count in sorted(lost.items()))
    raise InputError(
        f"{where}: no click on an item of a page that an impression tells of ({why or 'no clicks at all'}); a storefront "
        "is to say data.attribution.page_id in its select_item events"
    )


def _served(settings: Settings, say: Say) -> Ranker | None:
    """The ranker that serves now, whose pages taught and whose signals the new one will read; None where none does."""
    folder = settings.models_dir / "ranker"
    head = settings.head if (folder / HEAD).is_file() else "logit"
    try:
        served = Ranker(folder, head)
    except ManifestError as error:
        say(f"the new ranker is compared with none that serves: {error}")
        return None
    say(f"compared with the {head} of {folder}, {served.version[:19]}")
    return served


def _scores(served: Ranker, choices: Choices) -> npt.NDArray[np.float64]:
    """(O,) logarithms of what it says of the offers."""
    scores = np.empty(len(choices.phi))
    count = np.diff(choices.ends, prepend=0).astype(np.int32)
    for at in range(0, len(count), TOGETHER):
        these = slice(at, at + TOGETHER)
        start, end = choices.ends[at] - count[at], choices.ends[these][-1]
        filled = np.arange(count[these].max())[None, :] < count[these][:, None]
        phi = np.zeros((*filled.shape, choices.phi.shape[1]), np.float32)
        phi[filled] = choices.phi[start:end]
        scores[start:end] = np.log(served.score(phi, count[these])[filled] + 1e-30)
    return scores


def _say_figures(held: npt.NDArray[np.float64], figures: dict[str, float], eye: dict[int, float], say: Say) -> None:
    """held: (H,) times of the held-out clicks, s. eye: examination of positions, from 1, as the head that serves by default has it."""
    first, last = range_of(held)
    say(f"judged by the newest {len(held):,} clicks, {first} to {last}; per click, with each one's own examination:")
    names = {"served_": "that serves", "": "new logit", "mlp_": "new MLP"}
    there = [(prefix, name) for prefix, name in names.items() if f"{prefix}loss" in figures]
    for prefix, name in there:
        say(
            f"  {name:12} loss {figures[prefix + 'loss']:.4f} nats, expected calibration error "
            f"{figures[prefix + 'calibration_error']:.4f}, MRR among what was shown {figures[prefix + 'shown_MRR']:.4f}, "
            f"unbiased {figures[prefix + 'unbiased_MRR']:.4f}"
        )
    say("examination by position: " + ", ".join(f"{k}: {value:.2f}" for k, value in eye.items()))
    best = there[-1][0]
    if figures.get("served_loss", np.inf) < figures[best + "loss"]:
        say("the new ranker foresees these clicks worse than the one that serves; keep that one, or learn from more")


def _digest(choices: Choices) -> str:
    """Of all that was learnt from."""
    digest = hashlib.sha256()
    for name, array in sorted(choices.arrays().items()):
        digest.update(name.encode() + array.tobytes())
    return "sha256:" + digest.hexdigest()
