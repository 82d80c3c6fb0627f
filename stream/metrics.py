"""The Prometheus metrics of a worker: base units, bounded labels, and every name in one place."""

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
FRESHNESS_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STAGE_BUCKETS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
STAGES = ("decode", "fold", "history", "retrieve", "phi", "score", "assemble", "encode", "publish")


class MetricDescription(NamedTuple):
    name: str  # as Prometheus shows it
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    meaning: str


METRIC_DESCRIPTIONS: list[MetricDescription] = []


def _describe(name: str, kind: str, meaning: str, labels: tuple[str, ...]) -> str:
    """Add a metric to METRIC_DESCRIPTIONS. Return its name for prometheus_client, which appends _total itself."""
    full = "shopwindow_" + name
    shown = full + "_total" if kind == "counter" else full
    METRIC_DESCRIPTIONS.append(MetricDescription(shown, kind, labels, meaning))
    return full


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(_describe(name, "counter", meaning, labels), meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(_describe(name, "gauge", meaning, labels), meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    full = _describe(name, "histogram", meaning, labels)
    return Histogram(full, meaning, labels, buckets=buckets, registry=REGISTRY)


EVENTS = _counter("events", "Events folded into a profile", "topic", "kind")
DUPLICATES = _counter("duplicates", "Events with a source and id, or a transaction, that were folded before")
ID_WINDOW = _histogram(
    "id_window_seconds",
    "Age of the oldest event id that a profile with the maximum number of ids keeps; the lowest age of each run",
    (60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0),
)
FORGOTTEN_TRANSACTIONS = _counter(
    "forgotten_transactions", "Transactions dropped from profiles with the maximum number; a retry would count again"
)
WITHOUT_ACTIVITY = _counter(
    "interactions_without_influence",
    "Interactions that change no item's signals: repetitions of a day, of likely robots, of excluded shoppers",
    "reason",
)
DEAD_LETTERS = _counter("dead_letters", "Records written to dead-letters", "topic", "error")
OVERSIZED = _counter(
    "oversized_records", "Pages and impressions left out because their topic's max.message.bytes is too small", "topic"
)
UNREADABLE = _counter(
    "unreadable_batches", "Record batches that could not be read: those of events are in dead-letters", "topic"
)
SKIPPED = _counter("skipped_records", "Redelivered records below the watermark of their table", "topic")
FORWARDED = _counter(
    "forwarded_records", "Records that lay in a wrong partition and were forwarded to the owner of their key", "topic"
)
CLAMPED = _counter(
    "clamped_times", "Events too far ahead of their record's time, clamped to SHOPWINDOW_FUTURE_TOLERANCE"
)
LENIENT = _counter(
    "lenient_events",
    "Events accepted although the schema event-strict/1 refuses them, such as those with numbers in strings",
    "topic",
)
IGNORED = _counter(
    "ignored_events", "Records left out because SHOPWINDOW_IGNORED_TYPES lists their type", "topic", "type"
)
PAGES = _counter("pages", "Pages published", "mode")
FRESHNESS = _histogram(
    "homepage_freshness_seconds",
    "Time from the newest event, by its event time, to the acknowledgement of its page",
    FRESHNESS_BUCKETS_S,
)
LATENCY = _histogram(
    "homepage_latency_seconds",
    "Time from the timestamp of the newest event's record to the acknowledgement of its page; deferred: event time",
    FRESHNESS_BUCKETS_S,
)
LATE_EVENTS = _counter("late_events", "Events whose record has a timestamp more than 60 s after their time", "topic")
STAGE = _histogram("stage_seconds", "Time of a step in each stage of the page path", STAGE_BUCKETS_S, "stage")
RUN_RECORDS = _histogram("run_records", "Records per run", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096), "topic")
COPIES = _counter("copies", "Headlines requested from GPT-2, by result", "locale", "result")
COPY_SECONDS = _histogram(
    "copy_seconds", "Time to generate a batch of headlines", (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
)
COPYWRITER_UP = _gauge("copywriter_up", "1 while the copywriter process runs")
COPYWRITER_DEATHS = _counter("copywriter_deaths", "Times that the copywriter process died or hung on a request")
CATALOG_ITEMS = _gauge("catalog_items", "Catalogue items that pages may show")
SIGNAL_ITEMS = _gauge("signal_items", "Items with signals")
PROFILES = _gauge("profiles", "Profiles in this worker's partitions")
PROFILE_BYTES = _gauge("profile_bytes", "Packed bytes of these profiles")
EXPIRED = _counter("expired_profiles", "Profiles deleted after SHOPWINDOW_PROFILE_TTL without an event")
LAG = _gauge("consumer_lag_records", "Uncommitted records in this worker's partitions", "topic")
LAG_SECONDS = _gauge(
    "consumer_lag_seconds",
    "Age of the oldest uncommitted record, in the worker's partition that is furthest behind",
    "topic",
)
GROWN_PARTITIONS = _gauge(
    "grown_partitions", "Partitions of a topic beyond SHOPWINDOW_PARTITIONS; those of events are not read", "topic"
)
RECOVERING = _gauge("recovery_remaining_records", "Changelog records to read before events are processed")
FETCHED = _gauge("last_fetch_timestamp_seconds", "Time of the broker's last answer to a fetch")
FETCH_SILENCE = _gauge(
    "fetch_silence_seconds", "Longest time that a partition of this worker has waited for the answer to a fetch"
)
RUNG = _gauge("ladder_rung", "Rung of load shedding; 0 sheds nothing")
RUNG_MOVES = _counter("ladder_moves", "Changes of the load shedding rung", "direction")
DEFERRED_PAGES = _counter("deferred_pages", "Pages deferred because the shopper's last page was too recent")
OWED_PAGES = _gauge("owed_pages", "Shoppers whose deferred page has not been published yet")
UNSOUND_PAGES = _counter("unsound_pages", "Pages that fell back to popularity because the ranker's scores were invalid")
RANKER_BROKEN = _gauge("ranker_broken", "1 while the ranker returns invalid scores")
HISTORY_UP = _gauge("history_up", "1 while the history model is in use, 0 if it is missing or has failed")
READY = _gauge("ready", "1 when partitions are assigned, tables recovered and models warmed up")
