"""The catalogue: items as rows of 64 bytes for the kernels, and as pre-encoded JSON for the page writer."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, NamedTuple, Self

import msgspec
import numpy as np
import numpy.typing as npt

from stream.events import locale_code, words
from stream.ids import IdIndex, key32, key64
from stream.jit import njit

Rows = npt.NDArray[np.void]

AVAILABLE, PRODUCT, EN, ZH = 1, 2, 4, 8  # bits of `flags`; EN, ZH: has a title in that locale
TITLE_WORDS = 6
TITLE_BITS = np.array([0, EN, ZH])  # by locale code

# Row numbers are dense, in order of first sight, shared with the signals; `present` is 0 where only signals know the item.
ITEM = np.dtype(
    [
        ("id", "i8"),  # key64 of the item id
        ("expires", "f8"),  # s since the epoch; inf where it never does
        ("added", "f8"),  # s since the epoch; 0 unknown
        ("category", "i4"),  # key32
        ("brand", "i4"),  # key32
        ("log_price", "f4"),  # ln(price); 0 where there is none
        ("present", "i1"),
        ("flags", "i1"),
        ("pad", "i1", 2),
        ("word", "i4", TITLE_WORDS),  # key32 of title words of all locales
    ]
)
assert ITEM.itemsize == 64

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Words = Annotated[str, msgspec.Meta(max_length=8192)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of the catalogue, schema `item/1`. Texts are one string for every language, or one by locale."""

    item_id: Id
    title: Title | dict[str, Title]
    category: Short = ""
    brand: Short = ""
    price: Annotated[float, msgspec.Meta(ge=0, le=1e9)] | None = None
    currency: Annotated[str, msgspec.Meta(max_length=8)] = ""
    available: bool = True
    added_at: Time | None = None
    expires_at: Time | None = None
    url: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    image: Annotated[str, msgspec.Meta(max_length=2048)] = ""
    description: Words | dict[str, Words] = ""


class ItemError(ValueError):
    """An item that is refused; the message names the field and the value."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


class ItemReject(NamedTuple):
    record: int  # index among the records applied
    field: str
    message: str


_decoder = msgspec.json.Decoder(Item)


def decode_item(key: bytes | None, value: bytes) -> Item:
    """The item in a record of the catalogue, whose key is the item id (None: not checked). Raises only ItemError."""
    try:
        item = _decoder.decode(value)
        for time in (item.added_at, item.expires_at):
            if time is not None:
                time.timestamp()
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        field = path.strip("`.") or "value"
        raise ItemError(field, f"{field}: {what} in {value[:80]!r}") from None
    except (msgspec.DecodeError, RecursionError, OverflowError, ValueError) as error:
        raise ItemError("value", f"not an item: {error} in {value[:80]!r}") from None
    if key is not None and key != item.item_id.encode("utf-8", "surrogatepass"):
        raise ItemError("key", f"the record's key is {key[:80]!r}, expected the item id {item.item_id[:80]!r}")
    if isinstance(item.title, dict) and not item.title:
        raise ItemError("title", "title is {}, expected a text for at least one locale")
    return item


def fragment_of(item_id: str) -> bytes:
    """How pages and impressions begin to speak of an item."""
    return b'{"item_id":%s,"kind":"product"' % msgspec.json.encode(item_id)


@njit
def showable(item, now, title_bit):  # type: ignore[no-untyped-def]
    """True where the ITEM row may be on a page at `now` for a reader of the locale whose flag is `title_bit` (0: any)."""
    return (
        item.present == 1
        and (item.flags & AVAILABLE) != 0
        and item.expires > now
        and (title_bit == 0 or (item.flags & title_bit) != 0)
    )


class Catalog:
    """The items by row. Arrays grow by doubling: read the attribute anew for each batch."""

    def __init__(self) -> None:
        self.index = IdIndex()  # item id -> row, for ever
        self.items = np.zeros(1024, ITEM)  # (capacity,) ITEM
        self.version = 0  # +1 for each change that was applied
        self.names: dict[int, str] = {}  # ids of items, categories, brands -> their text
        # `{"item_id":"SKU1","kind":"product"` of each row, as pages and impressions say it.
        self.fragments = np.zeros(1 << 16, np.uint8)
        self.fragment_at = np.zeros((1024, 2), np.int64)  # (capacity, 2) start and end in `fragments`
        self.longest_fragment = 0  # bytes
        self._changed: set[int] | None = None  # rows, while somebody watches
        self._used = 0
        self._items: dict[int, Item] = {}

    @classmethod
    def of_rows(cls, items: Rows, fragments: Sequence[bytes]) -> Self:
        """A catalogue of (n,) ITEM that are ready, with distinct ids, and the n fragments that pages name them by.

        It knows no texts: `item`, `item_id` and `title` raise KeyError.
        """
        self = cls()
        self.index.add_all(np.ascontiguousarray(items["id"]))
        if len(self) != len(items):
            raise ValueError(f"{len(items)} items have {len(self)} ids; give each its own")
        self.items, self.fragments = items.copy(), np.frombuffer(b"".join(fragments), np.uint8).copy()
        ends = np.cumsum([len(fragment) for fragment in fragments], dtype=np.int64)
        self.fragment_at = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
        self.longest_fragment = max(map(len, fragments))
        self._used, self.version = len(self.fragments), 1
        return self

    def __len__(self) -> int:
        return len(self.index)

    def row(self, item: int) -> int:
        """Row of the item id (key64), a new one at first sight."""
        row = self.index.add(item)
        if row >= len(self.items):
            self.items = np.concatenate([self.items, np.zeros_like(self.items)])
            self.fragment_at = np.concatenate([self.fragment_at, np.zeros_like(self.fragment_at)])
        if self.items[row]["id"] == 0:
            self.items[row]["id"] = item
            self._note(row)
        return row

    def watch(self) -> set[int]:
        """Where rows are noted from now on that come or change; whoever asked for it clears it. One at a time."""
        self._changed = set()
        return self._changed

    def _note(self, row: int) -> None:
        if self._changed is not None:
            self._changed.add(row)

    def rows_of(self, items: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Row of each item id, a new one at first sight; -1 for 0. (n,) -> (n,)."""
        rows = self.index.get_all(np.ascontiguousarray(items))
        for at in np.flatnonzero((rows < 0) & (items != 0)).tolist():
            rows[at] = self.row(int(items[at]))
        return rows

    def apply(self, records: Sequence[tuple[bytes, bytes | None]]) -> list[ItemReject]:
        """Set the items of catalogue records, in order; None deletes. Bad ones are returned and change nothing."""
        rejects = []
        for at, (key, value) in enumerate(records):
            try:
                if value is None:
                    self._remove(key64(key.decode("utf-8", "surrogatepass")))
                else:
                    self._set(decode_item(key, value))
            except ItemError as error:
                rejects.append(ItemReject(at, error.field, error.message))
            except UnicodeDecodeError:
                rejects.append(ItemReject(at, "key", f"the record's key {key[:80]!r} is not UTF-8"))
        if len(rejects) < len(records):
            self.version += 1
        return rejects

    def item_id(self, row: int) -> str:
        return self._items[row].item_id

    def item(self, row: int) -> Item:
        """Raises KeyError where only signals know the row."""
        return self._items[row]

    def title(self, row: int, locale: str) -> str:
        """In `locale`, else in the first language there is."""
        return self.named(row, locale)[1]

    def named(self, row: int, locale: str) -> tuple[str, str]:
        """Id and title at once: the path asks for both, often. Raises KeyError as `item`."""
        item = self._items[row]
        title = item.title
        if not isinstance(title, str):
            title = title.get(locale) or next(iter(title.values()))
        return item.item_id, title

    def __contains__(self, item_id: str) -> bool:
        row = self.index.get(key64(item_id))
        return row >= 0 and bool(self.items[row]["present"])

    def showable_count(self, now: float) -> int:
        items = self.items[: len(self)]
        return int(((items["present"] == 1) & ((items["flags"] & AVAILABLE) != 0) & (items["expires"] > now)).sum())

    def _remove(self, key: int) -> None:
        row = self.index.get(key)
        if row >= 0:
            self.items[row]["present"] = 0

    def _set(self, item: Item) -> None:
        key = key64(item.item_id)
        if self.names.setdefault(key, item.item_id) != item.item_id:
            raise ItemError("item_id", f"item_id {item.item_id!r} has the same hash as {self.names[key]!r}; rename one")
        row = self.row(key)
        filled = self.items[row]
        titles = {"": item.title} if isinstance(item.title, str) else item.title
        flags = PRODUCT | (AVAILABLE if item.available else 0)
        for locale in titles:
            flags |= {0: EN | ZH if locale == "" else 0, 1: EN, 2: ZH}[locale_code(locale)]
        if not flags & (EN | ZH):
            flags |= EN | ZH  # only languages that no shopper asks for: better shown than lost
        found = list(dict.fromkeys(key32(word) for title in titles.values() for word in words(title)))[:TITLE_WORDS]
        filled["flags"] = flags
        filled["category"] = key32(item.category) if item.category else 0
        filled["brand"] = key32(item.brand) if item.brand else 0
        filled["log_price"] = np.log(item.price) if item.price else 0.0
        filled["added"] = item.added_at.timestamp() if item.added_at else 0.0
        filled["expires"] = item.expires_at.timestamp() if item.expires_at else np.inf
        filled["word"] = found + [0] * (TITLE_WORDS - len(found))
        filled["present"] = 1
        for text in (item.category, item.brand):
            if text:
                self.names.setdefault(key32(text), text)
        if row not in self._items:
            self._write_fragment(row, fragment_of(item.item_id))
        self._items[row] = item
        self._note(row)

    def _write_fragment(self, row: int, fragment: bytes) -> None:
        end = self._used + len(fragment)
        while end > len(self.fragments):
            self.fragments = np.concatenate([self.fragments, np.zeros_like(self.fragments)])
        self.fragments[self._used : end] = np.frombuffer(fragment, np.uint8)
        self.fragment_at[row] = self._used, end
        self.longest_fragment = max(self.longest_fragment, len(fragment))
        self._used = end
