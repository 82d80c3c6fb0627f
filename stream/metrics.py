"""The Prometheus metrics of a worker: base units, bounded labels, one home for every name."""

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
FRESHNESS_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STAGE_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
STAGES = ("decode", "fold", "history", "retrieve", "phi", "score", "assemble", "encode", "publish")


class Described(NamedTuple):
    name: str  # as Prometheus shows it
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    meaning: str


DESCRIBED: list[Described] = []


def _named(name: str, kind: str, meaning: str, labels: tuple[str, ...]) -> str:
    full = "shopwindow_" + name
    DESCRIBED.append(Described(full + "_total" if kind == "counter" else full, kind, labels, meaning))
    return full


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(_named(name, "counter", meaning, labels), meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(_named(name, "gauge", meaning, labels), meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(_named(name, "histogram", meaning, labels), meaning, labels, buckets=buckets, registry=REGISTRY)


EVENTS = _counter("events", "Events folded into a profile", "topic", "kind")
DUPLICATES = _counter("duplicates", "Events that had been folded before, by source and id")
DEAD_LETTERS = _counter("dead_letters", "Records written to dead-letters", "topic", "error")
SKIPPED = _counter("skipped_records", "Records delivered again, below the table's watermark", "topic")
CLAMPED = _counter("clamped_times", "Events from the future, clamped to their record's time")
PAGES = _counter("pages", "Pages published", "mode")
FRESHNESS = _histogram(
    "homepage_freshness_seconds", "Time of the newest event to its page acknowledged", FRESHNESS_BUCKETS
)
STAGE = _histogram("stage_seconds", "Time of a run in each stage of the path", STAGE_BUCKETS, "stage")
RUN_RECORDS = _histogram(
    "run_records", "Records of a run", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096), "topic"
)
COPIES = _counter("copies", "Headlines asked of GPT-2, by what came of it", "locale", "result")
COPY_SECONDS = _histogram(
    "copy_seconds", "Time to generate a batch of headlines", (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
)
COPYWRITER_UP = _gauge("copywriter_up", "1 while the copywriter's process runs")
COPYWRITER_DEATHS = _counter("copywriter_deaths", "Times that the copywriter's process died or hung over a request")
CATALOG_ITEMS = _gauge("catalog_items", "Items of the catalogue that may be shown")
SIGNAL_ITEMS = _gauge("signal_items", "Items with signals")
PROFILES = _gauge("profiles", "Profiles in this worker's partitions")
PROFILE_BYTES = _gauge("profile_bytes", "Bytes of those profiles at rest")
EXPIRED = _counter("expired_profiles", "Profiles forgotten, as their shopper was not seen for SHOPWINDOW_PROFILE_TTL")
LAG = _gauge("consumer_lag_records", "Records not yet done of this worker's partitions", "topic")
LAG_SECONDS = _gauge(
    "consumer_lag_seconds", "Age of the oldest record not yet done, in the partition of this worker that is furthest behind",
    "topic",
)  # fmt: skip
RECOVERING = _gauge("recovery_remaining_records", "Changelog records still to be read before events are")
FETCHED = _gauge("last_fetch_timestamp_seconds", "When the broker last answered a fetch")
FETCH_SILENCE = _gauge(
    "fetch_silence_seconds", "Longest time that a partition of this worker has waited for the answer to a fetch"
)
RUNG = _gauge("ladder_rung", "Rung of the ladder of degradation; 0 sheds nothing")
RUNG_MOVES = _counter("ladder_moves", "Moves on the ladder of degradation", "direction")
DEFERRED_PAGES = _counter("deferred_pages", "Times that a page was put off, as the shopper's last was too young")
OWED_PAGES = _gauge("owed_pages", "Shoppers whose page was put off and is yet to come")
UNSOUND_PAGES = _counter("unsound_pages", "Pages made the popular ones, as the ranker gave no probabilities for them")
RANKER_BROKEN = _gauge("ranker_broken", "1 while the ranker gives no probabilities")
HISTORY_UP = _gauge("history_up", "1 while the history model is asked, 0 where there is none or it has failed")
READY = _gauge("ready", "1 where partitions are assigned, tables recovered and models warmed")
