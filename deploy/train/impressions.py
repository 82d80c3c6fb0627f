"""`shopwindow train ranker --impressions`: train on the items that pages showed and the clicks on them."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from deploy.io.files import InputError, event_records
from deploy.train.inputs import Refusals, files_hash, is_impression, numbered_lines, range_of
from models.evaluation.metrics import page_figures
from models.manifest import ManifestError, Source
from models.ranker.model import MLP_GRAPH, Ranker
from models.train.progress import LogLine, progress_logger
from models.train.ranker.fit import Choices, examination, export
from models.train.ranker.heads import fit_heads
from models.train.ranker.impressions import UNKNOWN_HISTORY, ClickJoin, JoinedClicks, PageClicks
from models.train.step_cache import FOLDER, Arrays, StepCache
from stream.events.decode import decode
from stream.events.errors import EventError
from stream.items.signals import HALF_LIVES
from stream.name_patterns import NO_NAMES, NamePatterns, name_patterns
from stream.types import F64

if TYPE_CHECKING:
    from stream.settings import Settings

SCORED_CHOICES = 256  # scored together
# The `limits` text of manifests.
LIMITS = (
    "Fitted on what shoppers chose among what their pages showed: of items that pages never showed it knows what the "
    "features carry over. Examination is taken to depend on the position alone."
)
REPORTED_POSITIONS = (1, 2, 5, 10, 20, 30)  # whose examination is reported
EVENT_TOPICS = ("clicks", "purchases", "privacy")  # with clicks on pages, consent and erasure requests


def train_on_impressions(
    settings: Settings, data: Sequence[Path], out: Path, seed: int, created: str, log: LogLine
) -> Path:
    """Train a ranker on files, or on the broker's topics if there are none. Return its folder.

    Raises InputError, BrokerError, NoBroker, LookupError, ValueError.
    """
    if not data:
        from deploy.cluster import require_broker

        settings = require_broker(settings)
    folder = out / "ranker"
    excluded = name_patterns(settings.exclude_shoppers)
    place = files_hash(data) if data else f"{settings.broker} {settings.prefix}"
    inputs = f"impressions {place} {seed} {settings.exclude_shoppers}".rstrip()

    def gather() -> Arrays:
        joined = from_files(data, log, excluded) if data else asyncio.run(from_topics(settings, log))
        for reason, count in sorted(joined.left_out.items()):
            log(f"{count:,} clicks are left out: {reason}")
        return {"time": joined.time, "history": np.array(joined.histories), **joined.choices.arrays()}

    with StepCache(folder, inputs, log) as cache:
        if not data and "choices" in cache:
            log(
                "resuming with the choices that were read from the topics before; if shoppers have asked to be erased "
                f"since then, remove {folder / FOLDER} to read the topics again"
            )
        arrays = cache.load_or_compute("choices", gather)
        time, histories = arrays.pop("time"), arrays.pop("history").tolist()
        choices = Choices(**arrays)
        log(f"{len(choices.chosen):,} clicks on pages that showed {len(choices.phi):,} items")
        fitted, head = fit_heads(choices, log, seed=seed, cache=cache)
        serving = _load_serving(settings, log)
        figures = page_figures(choices, fitted, head, None if serving is None else _log_probabilities(serving, choices))
        position_weights = (fitted if head is None else head).position_weights
        all_positions = examination(position_weights, max(REPORTED_POSITIONS))
        examined = {k: float(all_positions[k - 1]) for k in REPORTED_POSITIONS}
        _log_figures(time[choices.held], figures, examined, log)
        figures |= {f"position {k}/examination": value for k, value in examined.items()}
        names = ", ".join(path.name for path in data) or "the topics"
        export(
            folder,
            fitted,
            f"{len(choices.chosen)} clicks among what pages showed, of {names}",
            created,
            {"choices": float(len(choices.chosen)), **figures},
            head,
            LIMITS,
            Source(files_hash(data) if data else _choices_hash(choices), range_of(time)),
            half_lives=HALF_LIVES if serving is None else serving.half_lives,
            history=history_of_pages(histories, log),
        )
    return folder


def history_of_pages(histories: Sequence[str], log: LogLine) -> str | msgspec.UnsetType | None:
    """Version of the history model that the pages' features came from, as `export` takes it.

    histories: as in JoinedClicks, the oldest first. Under load pages go without the model; they do not count if others
    have one. If they name several, the newest page's is returned, and all are logged.
    """
    named = [version for version in histories if version not in ("", UNKNOWN_HISTORY)]
    if not named:
        return msgspec.UNSET if UNKNOWN_HISTORY in histories else None
    counts = Counter(named)
    if len(counts) > 1:
        found = ", ".join(f"{version[:19]} ({count:,} clicks)" for version, count in counts.most_common())
        log(
            f"the pages were made with several history models: {found}; their scores are features of the ranker, which "
            f"is to serve beside the newest, {named[-1][:19]}"
        )
    return named[-1]


def from_files(paths: Sequence[Path], log: LogLine, excluded_shoppers: NamePatterns = NO_NAMES) -> JoinedClicks:
    """Choices from JSON lines: impressions and events, in any files and order. Raises InputError."""
    refusals = Refusals(log)
    page_clicks = PageClicks(excluded_shoppers)
    for path in paths:
        for number, line in numbered_lines(path, log):
            if not is_impression(line):
                for record in event_records([line]):
                    try:
                        page_clicks.add(decode(record.value, record.key, record.topic))
                    except EventError as error:
                        refusals.add(f"{path} line {number}", error.message)
    clicks, left_out = page_clicks.newest()
    join = ClickJoin(clicks, refusals.add)
    for path in paths:
        for number, line in numbered_lines(path, log):
            if is_impression(line):
                join.add(f"{path} line {number}", line.strip().encode("utf-8", "surrogateescape"))
    refusals.log_total("lines")
    return _check_not_empty(join.joined(), left_out, f"{', '.join(map(str, paths))}")


async def from_topics(settings: Settings, log: LogLine) -> JoinedClicks:
    """Choices from the topics, up to their current ends.

    Events are read first, so that only impressions with clicks are kept. Raises NoBroker, LookupError if a topic is
    missing, InputError.
    """
    from stream.kafka.global_topics import read_topic

    page_clicks, refused = PageClicks(name_patterns(settings.exclude_shoppers)), 0
    for topic in EVENT_TOPICS:
        async for record in read_topic(settings, topic, progress_logger(f"records of {topic} read", log)):
            try:
                event = decode(record.value, record.key, topic, record.headers)
                page_clicks.add(event, record.timestamp / 1000)
            except EventError:
                refused += 1
    if refused:
        log(f"{refused:,} records are not valid events and are left out; `shopwindow dead-letters list` shows why")
    clicks, left_out = page_clicks.newest()
    refusals = Refusals(log)
    join = ClickJoin(clicks, refusals.add)
    async for record in read_topic(settings, "impressions", progress_logger("records of impressions read", log)):
        join.add(f"impressions partition {record.partition} offset {record.offset}", record.value)
    refusals.log_total("impressions")
    return _check_not_empty(join.joined(), left_out, f"the topics clicks and impressions at {settings.broker}")


def _check_not_empty(joined: JoinedClicks, left_out: Counter[str], place: str) -> JoinedClicks:
    """The choices with all clicks that are left out. Raises InputError if there is no choice to learn from."""
    left_out = joined.left_out + left_out
    if len(joined.time):
        return joined._replace(left_out=left_out)
    reasons = "; ".join(f"{count:,} clicks: {reason}" for reason, count in sorted(left_out.items()))
    raise InputError(
        f"{place}: no click on an item of a page whose impression is known ({reasons or 'no clicks at all'}); a "
        "storefront must set data.attribution.page_id in its select_item events"
    )


def _load_serving(settings: Settings, log: LogLine) -> Ranker | None:
    """The ranker that serves, or None if it cannot be loaded.

    It made the pages that the new ranker learns from, and the new ranker will read signals with its half-lives.
    """
    folder = settings.models_dir / "ranker"
    head = settings.head if (folder / MLP_GRAPH).is_file() else "logit"
    try:
        serving = Ranker(folder, head)
    except ManifestError as error:
        log(f"there is no serving ranker to compare the new one with: {error}")
        return None
    log(f"compared with the {head} of {folder}, {serving.version[:19]}")
    return serving


def _log_probabilities(ranker: Ranker, choices: Choices) -> F64:
    """(O,) log probabilities of the offers by the ranker."""
    scores = np.empty(len(choices.phi))
    count = np.diff(choices.ends, prepend=0).astype(np.int32)
    for first in range(0, len(count), SCORED_CHOICES):
        these = slice(first, first + SCORED_CHOICES)
        start, end = choices.ends[first] - count[first], choices.ends[these][-1]
        is_offer = np.arange(count[these].max())[None, :] < count[these][:, None]
        phi = np.zeros((*is_offer.shape, choices.phi.shape[1]), np.float32)
        phi[is_offer] = choices.phi[start:end]
        scores[start:end] = np.log(ranker.score(phi, count[these])[is_offer] + 1e-30)
    return scores


def _log_figures(held_out: F64, figures: dict[str, float], examined: dict[int, float], log: LogLine) -> None:
    """Log the comparison of the models, and a warning if the new ranker is worse.

    held_out: (H,) times of the held-out clicks, in seconds. examined: examination by position, from 1, of the head that
    serves by default.
    """
    first, last = range_of(held_out)
    log(
        f"evaluated on the newest {len(held_out):,} clicks, {first} to {last}; means over clicks, "
        "each model with its own examination:"
    )
    labels = {"served_": "serving", "": "new logit", "mlp_": "new MLP"}
    models = [(prefix, label) for prefix, label in labels.items() if f"{prefix}loss" in figures]
    for prefix, label in models:
        log(
            f"  {label:12} loss {figures[prefix + 'loss']:.4f} nats, expected calibration error "
            f"{figures[prefix + 'calibration_error']:.4f}, MRR among shown items {figures[prefix + 'shown_MRR']:.4f}, "
            f"unbiased {figures[prefix + 'unbiased_MRR']:.4f}"
        )
    log("examination by position: " + ", ".join(f"{k}: {value:.2f}" for k, value in examined.items()))
    default = models[-1][0]
    if figures.get("served_loss", np.inf) < figures[default + "loss"]:
        log("the new ranker predicts these clicks worse than the serving one; keep that one, or train on more data")


def _choices_hash(choices: Choices) -> str:
    """Hash of names and contents of the choices' arrays."""
    digest = hashlib.sha256()
    for name, array in sorted(choices.arrays().items()):
        digest.update(name.encode() + array.tobytes())
    return "sha256:" + digest.hexdigest()
