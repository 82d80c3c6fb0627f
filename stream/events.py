"""Events of shoppers: from the bytes of a record to the rows that kernels read."""

import re
from collections.abc import Sequence
from datetime import datetime
from struct import Struct
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from stream.ids import key32, key64

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
LOCALES = ("", "en", "zh")  # "en-GB" is "en"; other locales are 0 and get the default locale
CHANNELS = ("", "web", "app", "social")

TOPIC_KINDS = {
    "clicks": frozenset((VIEW, CLICK, HOME, SEARCH, ADD, REMOVE, HIDE)),
    "purchases": frozenset((BUY, REFUND)),
    "privacy": frozenset((CONSENT, ERASE, IDENTIFY)),
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
# them.
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
    value: float | None = None


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    id: Id
    type: Id
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    data: EventData
    source: Short = ""
    specversion: Short = "1.0"


class EventError(ValueError):
    """A rejected event: a code for metrics, the field, and a message with the field and its value."""

    def __init__(self, code: str, field: str, message: str) -> None:
        super().__init__(message)
        self.code, self.field, self.message = code, field, message


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
# Range of event times: from 2000-01-01 to the end of the 32-bit seconds that profiles store.
EARLIEST_S, LATEST_S = 946_684_800.0, 2_147_483_000.0
MAX_WORDS = 8

_KIND_OF = {name: code for code, name in enumerate(KINDS) if name}
_LOCALE_OF = {name: code for code, name in enumerate(LOCALES) if name}
_CHANNEL_OF = {name: code for code, name in enumerate(CHANNELS) if name}
_WITH_ITEMS = frozenset((VIEW, CLICK, ADD, REMOVE, HIDE, BUY, REFUND))
_decoder = msgspec.json.Decoder(Event)
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


def locale_code(locale: str | None) -> int:
    """1 for "en" and "en-GB", 2 for "zh" and "zh_CN", 0 for others."""
    return _LOCALE_OF.get(locale[:2].lower(), 0) if locale and locale[2:3] in ("", "-", "_") else 0


def shopper_key(event: Event) -> str:
    """Account of the shopper if there is one, else the anonymous id."""
    return event.data.user_id or event.data.anonymous_id or ""


def encode(event: Event) -> bytes:
    """JSON of an event."""
    return msgspec.json.encode(event)


def decode(value: bytes | None, key: bytes | None, topic: str) -> Event:
    """Event in a record of `topic`, one of TOPIC_KINDS. Raises only EventError."""
    return _decode(value, key, topic)[0]


def _decode(value: bytes | None, key: bytes | None, topic: str) -> tuple[Event, int]:
    """Event in a record, and the code of its kind. Raises EventError."""
    if value is None:
        raise EventError("empty", "value", "the record has no value; an event was expected")
    if len(value) > MAX_EVENT_BYTES:
        raise EventError(
            "too_large", "value", f"the event has {len(value)} bytes, at most {MAX_EVENT_BYTES} are allowed"
        )
    try:
        event = _decoder.decode(value)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), value) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventError("not_json", "value", f"{error}: {_shown(value)}") from None
    except RecursionError:
        raise EventError("not_json", "value", f"nested too deeply: {_shown(value)}") from None
    kind = _KIND_OF.get(event.type)
    if kind is None:
        raise EventError("unknown_type", "type", f"type is {_shown(event.type)}, expected one of {', '.join(_KIND_OF)}")
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
            "bad_key", "key", f"the record's key is {_shown(key)}, expected the shopper's, {_shown(shopper)}"
        )
    if kind in _WITH_ITEMS:
        if not data.items:
            raise EventError(
                "missing", "data.items", f"{event.type} needs data.items with an item_id, got {data.items}"
            )
        if kind == BUY and not data.transaction_id:
            raise EventError("missing", "data.transaction_id", "purchase needs data.transaction_id")
    elif kind == SEARCH and not data.search_term:
        raise EventError(
            "missing", "data.search_term", f"search needs data.search_term, got {_shown(data.search_term)}"
        )
    elif kind == CONSENT and (data.consent is None or data.consent.personalization is None):
        raise EventError("missing", "data.consent", "consent needs data.consent.personalization, true or false")
    return event, kind


def _invalid(message: str, value: bytes) -> EventError:
    """Error from msgspec's message: its path is the field, to which the value found there is added."""
    match = _PATH.match(message)
    problem, path = (match.group(1), match.group(2) or "") if match else (message, "")
    named = _NAMED.search(problem)
    field = path.lstrip(".")
    if named:
        field = f"{field}.{named.group(1)}".lstrip(".")
        return EventError("missing", field, f"{field} is missing")
    found: Any
    try:
        found = msgspec.json.decode(value)
        for step in re.findall(r"\w+|\[\.\.\.\]|\[\d+\]", path):
            found = (found[0] if step == "[...]" else found[int(step[1:-1])]) if step.startswith("[") else found[step]
    except (msgspec.DecodeError, LookupError, TypeError, RecursionError, ValueError):
        found = value
    return EventError("invalid", field or "value", f"{field or 'value'} is {_shown(found)}: {problem}")


def _shown(value: object) -> str:
    """ASCII text of a value, at most 80 characters."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


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
) -> Decoded:
    """Decode a run of records of `topic`. timestamps: those of the records, s since the epoch.

    A bad record becomes a reject and does not affect the others. The time of an event is clamped to
    `future_tolerance` seconds after its record's timestamp.
    """
    rows: list[bytes] = []
    shoppers: list[bytes] = [b""] * len(values)
    ids: list[str] = [""] * len(values)
    rejects: list[Reject] = []
    clamped = 0
    for i, value in enumerate(values):
        try:
            event, kind = _decode(value, keys[i], topic)
            time = event.time.timestamp()
            if time > timestamps[i] + future_tolerance:
                time, is_clamped = timestamps[i] + future_tolerance, 1
            else:
                is_clamped = 0
            if not EARLIEST_S <= time <= LATEST_S:
                raise EventError(
                    "out_of_range", "time", f"time is {event.time.isoformat()}, expected one from 2000 to 2038"
                )
        except EventError as error:
            rejects.append(Reject(i, error.code, error.field, error.message))
            continue
        except (OverflowError, ValueError) as error:
            # From datetime: a zone offset that leaves the years 1 to 9999.
            rejects.append(Reject(i, "out_of_range", "time", f"time cannot be read: {error}"))
            continue
        clamped += is_clamped
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
    return Decoded(np.ndarray(len(rows), EVENT, bytearray(b"".join(rows))), shoppers, ids, rejects, clamped)
