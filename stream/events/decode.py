"""Events of shoppers: from the bytes of a record to the rows that kernels read."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from struct import Struct
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from stream.events import cloudevents
from stream.events.cloudevents import Headers
from stream.events.errors import EventError, shown
from stream.events.ignored_types import NONE_IGNORED, IgnoredTypes
from stream.events.lenient import LenientDecoder, id_text
from stream.ids import key32, key64
from stream.locales import locale_code
from stream.times import EARLIEST_S, LATEST_S, record_seconds

# The position is the code in rows and profiles: append only.
KINDS = (
    "",
    "view_item",
    "select_item",
    "view_homepage",
    "search",
    "add_to_cart",
    "remove_from_cart",
    "hide_item",
    "purchase",
    "refund",
    "consent",
    "erase",
    "identify",
)
VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, HIDE, BUY, REFUND, CONSENT, ERASE, IDENTIFY = range(1, len(KINDS))
CHANNELS = ("", "web", "app", "social")

TOPIC_KINDS = {
    "clicks": frozenset((VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, HIDE)),
    "purchases": frozenset((BUY, REFUND)),
    "privacy": frozenset((CONSENT, ERASE, IDENTIFY)),
}
# What an event of each kind needs besides its id, its type and SHOPPER_FIELDS. The decoder, the JSON Schema and the
# reference table use it.
REQUIRED_FIELDS: dict[int, tuple[str, ...]] = {
    **dict.fromkeys((VIEW, CLICK, ADD, REMOVE, HIDE, REFUND), ("data.items",)),
    BUY: ("data.items", "data.transaction_id"),
    SEARCH: ("data.search_term",),
    CONSENT: ("data.consent.personalization",),
}
# Fields of `data`: one of them says whose event it is, the first if both are there.
SHOPPER_FIELDS = ("user_id", "anonymous_id")
KIND_MEANINGS = {
    VIEW: "the shopper opens the page of an item",
    CLICK: "the shopper clicks an item in a list; `data.attribution` names the page and the slot",
    HOME: (
        "the shopper opens the homepage; a visitor without history needs it: pages answer events, and this is the only "
        "event that such a visitor has"
    ),
    SEARCH: "the shopper searches for a text",
    ADD: "items are put into the cart",
    REMOVE: "items are taken out of the cart",
    HIDE: "the shopper does not want to see these items",
    BUY: "an order is placed",
    REFUND: "items are returned",
    CONSENT: "the shopper allows or refuses personalisation",
    ERASE: "the shopper asks to be erased",
    IDENTIFY: "an anonymous visitor signs in",
}

# One row per item or search word of an event, numbered by `part`. An event is counted by its part 0.
EVENT = np.dtype(
    [
        ("shopper", "i8"),  # key64 of the shopper key
        ("id", "i8"),  # key64 of source + "\0" + id
        ("item", "i8"),  # key64 of the item id; 0 if the event has no items
        ("time", "f8"),  # event time, s since the epoch, clamped to the record's timestamp + the tolerance
        ("record", "i4"),  # index of the record in its run
        ("category", "i4"),  # key32 of the event's own item_category; 0 absent
        ("brand", "i4"),  # key32 of the event's own item_brand; 0 absent
        ("word", "i4"),  # key32 of one search word; 0 absent
        ("price", "f4"),  # 0 absent
        ("quantity", "i4"),
        ("part", "i2"),
        ("kind", "i1"),
        ("locale", "i1"),
        ("channel", "i1"),
        ("consent", "i1"),  # 1 granted, -1 refused, 0 not stated
        ("pad", "i2"),
        ("transaction", "i8"),  # key64 that a purchase or refund shares with its retries; 0 for other events
    ]
)
_ROW = Struct("=qqqdiiiifihbbbbhq")
assert _ROW.size == EVENT.itemsize
_row = _ROW.pack  # takes a third of the time of a NumPy row made from a tuple


# Types of the JSON: GA4's e-commerce names in a CloudEvents 1.0 envelope. The JSON Schema `event/1` is generated from
# them (`schema.py`), and so are the other forms of a value that are accepted (`lenient.py`).
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Price = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class EventItem(msgspec.Struct, frozen=True, omit_defaults=True):
    item_id: Id
    price: Price | None = None
    quantity: Annotated[int, msgspec.Meta(ge=0, le=30_000)] = 1
    item_category: Short | None = None
    item_brand: Short | None = None


class Consent(msgspec.Struct, frozen=True, omit_defaults=True):
    personalization: bool | None = None


class Attribution(msgspec.Struct, frozen=True, omit_defaults=True):
    """Position on a page that led to the event."""

    page_id: Short | None = None
    slot: Short | None = None
    position: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None


class EventData(msgspec.Struct, frozen=True, omit_defaults=True):
    user_id: Id | None = None
    anonymous_id: Id | None = None
    session_id: Short | None = None
    channel: Short | None = None
    locale: Short | None = None
    consent: Consent | None = None
    attribution: Attribution | None = None
    items: Annotated[list[EventItem], msgspec.Meta(max_length=100)] | None = None
    search_term: Text | None = None
    transaction_id: Short | None = None
    currency: Short | None = None
    value: Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)] | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    id: Id
    type: Id
    data: EventData
    time: Annotated[datetime, msgspec.Meta(tz=True)] | None = None  # if absent, the record's timestamp is the time
    source: Short = ""
    specversion: Short = "1.0"


class Reject(NamedTuple):
    """A rejected record of a run."""

    record: int  # index in its run
    code: str
    field: str
    message: str


class Decoded(NamedTuple):
    """A run of records as rows. `keys` and `ids` have an entry per record, empty for a rejected one."""

    rows: np.ndarray  # (n,) EVENT in the order of records; the parts of a record are adjacent, part 0 first
    keys: list[bytes]  # shopper keys, UTF-8
    ids: list[str]  # CloudEvents id
    rejects: list[Reject]
    clamped: int  # number of events whose time was clamped
    timestamps: Sequence[float]  # of the records, s since the epoch
    lenient: int = 0  # number of events that the strict schema refuses
    ignored: Mapping[str, int] = {}  # number of records that were left out, by the entry of the ignored types


# Reasons for a rejection, as metrics and dead letters name them.
REJECT_CODES = (
    "empty",
    "too_large",
    "not_json",
    "invalid",
    "missing",
    "unknown_type",
    "wrong_topic",
    "bad_key",
    "out_of_range",
)
TOO_LATE_CODE = "too_late"  # reason of the fold, which knows the shopper's earlier events
MAX_EVENT_BYTES = 256 * 1024
FUTURE_TOLERANCE_S = 300.0  # default; SHOPWINDOW_FUTURE_TOLERANCE sets it for a worker
NO_ARRIVAL_S = inf  # timestamp of an event that is in no record, such as a line of a file
FIRST_YEAR, LAST_YEAR = 2000, 2999  # of a time as it is written; a time after 2038 is clamped or refused
# From here on, a time is of FIRST_YEAR or later in every time zone.
_SAFELY_EARLIEST_S = EARLIEST_S + 86_400.0
MAX_WORDS = 8

_KIND_OF = {name: code for code, name in enumerate(KINDS) if name}
_CHANNEL_OF = {name: code for code, name in enumerate(CHANNELS) if name}
_WITH_ITEMS = frozenset(kind for kind, fields in REQUIRED_FIELDS.items() if "data.items" in fields)
_decoder = msgspec.json.Decoder(Event)
_lenient_decoder = LenientDecoder(Event)
_PATH = re.compile(r"^(.*?)(?: - at `(?:key in )?\$(.*)`)?$", re.S)
_NAMED = re.compile(r"required field `(\w+)`")
_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+|[^\W_\u3400-\u4dbf\u4e00-\u9fff]+")


def words(text: str) -> list[str]:
    """First MAX_WORDS words of a text, in lower case. Chinese has no spaces: each pair of characters is a word."""
    found: list[str] = []
    for match in re.finditer(_WORD, text.lower()):
        run = match.group()
        if "\u3400" <= run[0] <= "\u9fff":
            found += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        else:
            found.append(run)
        if len(found) >= MAX_WORDS:
            break
    return found[:MAX_WORDS]


def shopper_key(event: Event) -> str:
    """Account of the shopper if there is one, else the anonymous id."""
    return event.data.user_id or event.data.anonymous_id or ""


def encode(event: Event) -> bytes:
    """JSON of an event."""
    return msgspec.json.encode(event)


def shopper_of(data: Any) -> str:
    """Id of the shopper in the `data` of a JSON document; "" if there is none that can be read."""
    return next((text for name in SHOPPER_FIELDS if (text := id_text(data.get(name)))), "")


def decode(value: bytes | None, key: bytes | None, topic: str, headers: Headers = ()) -> Event:
    """Event in a record of `topic`, one of TOPIC_KINDS. Raises only EventError."""
    return _decode(value, key, topic, _Run(lambda _: headers, NONE_IGNORED, [], {}), 0)[0]


class _Run(NamedTuple):
    """What only the second try of a record needs, and what it notes."""

    headers: Callable[[int], Headers]  # of a record, by its index
    ignored_types: IgnoredTypes
    lenient: list[int]  # records with a lenient form; a record may be in it twice
    ignored: dict[str, int]  # number of records, by entry of the ignored types


class _Ignored(Exception):
    """The record has a type that is ignored."""


def _decode(value: bytes | None, key: bytes | None, topic: str, run: _Run, index: int) -> tuple[Event, int]:
    """Event in record `index` of a run, and the code of its kind. Raises EventError, and _Ignored."""
    if value is None:
        raise EventError("empty", "value", "the record has no value; an event was expected")
    if len(value) > MAX_EVENT_BYTES:
        raise EventError(
            "too_large", "value", f"the event has {len(value)} bytes, at most {MAX_EVENT_BYTES} are allowed"
        )
    try:
        event = _decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        event = _decode_again(value, error, run, index)
    kind = _KIND_OF.get(event.type)
    if kind is None:
        raise _unknown_type(event.type, run)
    if kind not in TOPIC_KINDS[topic]:
        home = next(name for name, kinds in TOPIC_KINDS.items() if kind in kinds)
        raise EventError("wrong_topic", "type", f"type {event.type} belongs to topic '{home}', not to '{topic}'")
    data = event.data
    shopper = data.user_id or data.anonymous_id
    if not shopper:
        raise EventError(
            "missing", "data.user_id", "neither data.user_id nor data.anonymous_id says whose event this is"
        )
    if key != shopper.encode("utf-8", "surrogatepass"):
        raise EventError(
            "bad_key", "key", f"the record's key is {shown(key)}, expected the shopper's, {shown(shopper)}"
        )
    if kind in _WITH_ITEMS:
        if not data.items:
            raise EventError(
                "missing", "data.items", f"{event.type} needs data.items with an item_id, got {data.items}"
            )
        if kind == BUY and not data.transaction_id:
            raise EventError("missing", "data.transaction_id", "purchase needs data.transaction_id")
    elif kind == SEARCH and not data.search_term:
        raise EventError("missing", "data.search_term", f"search needs data.search_term, got {shown(data.search_term)}")
    elif kind == CONSENT and (data.consent is None or data.consent.personalization is None):
        raise EventError("missing", "data.consent", "consent needs data.consent.personalization, true or false")
    return event, kind


def _decode_again(value: bytes, refusal: Exception, run: _Run, index: int) -> Event:
    """Event in a record that the strict decoder refuses with `refusal`: in another mode, or with lenient forms.

    Raises EventError, and _Ignored.
    """
    if isinstance(refusal, RecursionError):
        raise EventError("not_json", "value", f"nested too deeply: {shown(value)}")
    envelope = cloudevents.unpack(value, run.headers(index))
    document = envelope.document
    type = document.get("type") if isinstance(document, dict) else None
    if isinstance(type, str) and type and type not in _KIND_OF:
        raise _unknown_type(type, run)
    try:
        event: Event
        event, is_lenient = _lenient_decoder.convert(document, is_refused=not envelope.prefix)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), envelope) from None
    if is_lenient:
        run.lenient.append(index)
    return event


def _unknown_type(type: str, run: _Run) -> Exception:
    """_Ignored, which is counted here, or the error of a type that is neither known nor ignored."""
    entry = run.ignored_types.match(type)
    if entry is None:
        known = ", ".join(_KIND_OF)
        return EventError(
            "unknown_type", "type",
            f"type is {shown(type)}, expected one of {known}; SHOPWINDOW_IGNORED_TYPES lists types to ignore",
        )  # fmt: skip
    run.ignored[entry] = run.ignored.get(entry, 0) + 1
    return _Ignored()


def _invalid(message: str, envelope: cloudevents.Envelope) -> EventError:
    """Error from msgspec's message: its path is the field, to which the value found there is added."""
    match = _PATH.match(message)
    problem, path = (match.group(1), match.group(2) or "") if match else (message, "")
    field = path.lstrip(".")
    if envelope.prefix and field in cloudevents.ATTRIBUTES:
        field = envelope.prefix + field
    if named := _NAMED.search(problem):
        name = named.group(1)
        if envelope.prefix and not field and name in cloudevents.ATTRIBUTES:
            name = envelope.prefix + name
        field = f"{field}.{name}".lstrip(".")
        return EventError("missing", field, f"{field} is missing")
    found: Any = envelope.document
    try:
        for step in re.findall(r"\w+|\[\.\.\.\]|\[\d+\]", path):
            found = (found[0] if step == "[...]" else found[int(step[1:-1])]) if step.startswith("[") else found[step]
    except (LookupError, TypeError):
        found = envelope.document
    if path == ".time":
        problem = _TIME_EXPECTED
    return EventError("invalid", field or "value", f"{field or 'value'} is {shown(found)}: {problem}")


_TIME_EXPECTED = (
    "expected an RFC 3339 time with a zone, such as 2026-01-01T10:00:00Z, or a number of s, ms or us since the epoch "
    "from 2000 to 2038"
)


class EventTime(NamedTuple):
    """Time of an event, s since the epoch."""

    seconds: float
    is_clamped: bool
    is_lenient: bool  # the record's timestamp, which was needed, is not in ms


def event_time(event: Event, timestamp: float, future_tolerance: float = FUTURE_TOLERANCE_S) -> EventTime:
    """Time of an event in a record with this timestamp (s since the epoch), clamped to timestamp + future_tolerance.

    An event without a time has that of its record. Raises EventError, which names the time or the timestamp.
    """
    arrived = record_seconds(timestamp)
    is_lenient = arrived is not None and arrived != timestamp
    if event.time is None:
        if arrived is None:
            reason = "" if timestamp == NO_ARRIVAL_S else f", and {_unusable(timestamp)}"
            raise EventError("missing", "time", "time is missing" + reason)
        return EventTime(arrived, False, is_lenient)
    written = event.time.isoformat()
    out_of_range = EventError("out_of_range", "time", f"time is {written}, expected one from 2000 to 2038")
    if not FIRST_YEAR <= event.time.year <= LAST_YEAR:
        raise out_of_range
    time, latest = event.time.timestamp(), timestamp + future_tolerance
    if time > latest:
        if arrived is None:
            raise EventError("out_of_range", "timestamp", f"{_unusable(timestamp)}, and time, {written}, is after it")
        latest = arrived + future_tolerance
    if min(time, latest) > LATEST_S:
        raise out_of_range
    return EventTime(min(time, latest), time > latest, is_lenient and time > timestamp + future_tolerance)


def _unusable(timestamp: float) -> str:
    """Text about a record's timestamp (s since the epoch) that is no event time."""
    try:
        date = f" ({datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d})"
    except (OverflowError, ValueError, OSError):
        date = ""
    return f"the record's timestamp is {timestamp * 1000:.0f} ms{date}, expected ms since the epoch from 2000 to 2038"


def _no_headers(_: int) -> Headers:
    return ()


def _transaction_key(kind: int, data: EventData) -> int:
    """key64 of the natural key of a purchase or refund; 0 for other kinds.

    A purchase is identified by its transaction id. A purchase may be refunded in parts, so a refund is identified by
    its items too.
    """
    if kind == BUY:
        return key64(f"{KINDS[BUY]}\0{data.transaction_id}")
    if kind != REFUND:
        return 0
    items = "\0".join(f"{item.item_id}\0{item.quantity}" for item in data.items or ())
    return key64(f"{KINDS[REFUND]}\0{data.transaction_id}\0{items}")


def decode_run(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    timestamps: Sequence[float],
    topic: str,
    future_tolerance: float = FUTURE_TOLERANCE_S,
    headers: Callable[[int], Headers] = _no_headers,
    ignored_types: IgnoredTypes = NONE_IGNORED,
) -> Decoded:
    """Decode a run of records of `topic`. timestamps: those of the records, s since the epoch.

    A bad record becomes a reject and does not affect the others. The time of an event is clamped to
    `future_tolerance` seconds after its record's timestamp. `headers` gives those of a record by its index; it is only
    called for records whose value alone is no event.
    """
    rows: list[bytes] = []
    shoppers: list[bytes] = [b""] * len(values)
    ids: list[str] = [""] * len(values)
    rejects: list[Reject] = []
    clamped = 0
    run = _Run(headers, ignored_types, [], {})
    for i, value in enumerate(values):
        try:
            event, kind = _decode(value, keys[i], topic, run, i)
            at = event.time
            if (
                at is None
                or not _SAFELY_EARLIEST_S <= (time := at.timestamp()) <= timestamps[i] + future_tolerance
                or time > LATEST_S
            ):
                time, is_clamped, is_lenient = event_time(event, timestamps[i], future_tolerance)
                clamped += is_clamped
                if is_lenient:
                    run.lenient.append(i)
        except EventError as error:
            rejects.append(Reject(i, error.code, error.field, error.message))
            continue
        except _Ignored:
            continue
        except (OverflowError, ValueError) as error:
            # From datetime: a zone offset that leaves the years 1 to 9999.
            rejects.append(Reject(i, "out_of_range", "time", f"time cannot be read: {error}"))
            continue
        data = event.data
        key = keys[i]
        assert key is not None
        shoppers[i], ids[i] = key, event.id
        personal = data.consent.personalization if data.consent is not None else None
        consent = 0 if personal is None else 1 if personal else -1
        head = key64(key.decode("utf-8", "surrogatepass")), key64(f"{event.source}\0{event.id}")
        transaction = _transaction_key(kind, data) if data.transaction_id else 0
        tail = kind, locale_code(data.locale), _CHANNEL_OF.get(data.channel or "", 0), consent, 0, transaction
        if kind in _WITH_ITEMS:
            for part, item in enumerate(data.items or ()):
                category = key32(item.item_category) if item.item_category else 0
                brand = key32(item.item_brand) if item.item_brand else 0
                id, price = key64(item.item_id), item.price or 0.0
                rows.append(_row(*head, id, time, i, category, brand, 0, price, item.quantity, part, *tail))
        elif kind == SEARCH:
            for part, word in enumerate(words(data.search_term or "") or [""]):
                rows.append(_row(*head, 0, time, i, 0, 0, key32(word) if word else 0, 0.0, 0, part, *tail))
        else:
            rows.append(_row(*head, 0, time, i, 0, 0, 0, 0.0, 0, 0, *tail))
    lenient = sum(1 for i in set(run.lenient) if shoppers[i])
    array = np.ndarray(len(rows), EVENT, bytearray(b"".join(rows)))
    return Decoded(array, shoppers, ids, rejects, clamped, timestamps, lenient, run.ignored)
