"""The catalogue: items as rows of 64 bytes for the kernels, and as encoded JSON fragments for the page encoder."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, NamedTuple, Self

import msgspec
import numpy as np

from stream.events.decode import words
from stream.ids import IdIndex, key32, key64
from stream.jit import njit
from stream.locales import LOCALES, choose_locale, match_locale
from stream.types import I32, I64, Row, Rows

AVAILABLE, PRODUCT, EN, ZH = 1, 2, 4, 8  # bits of `flags`; EN, ZH: the item has a title that fits the locale
TITLE_WORDS = 6
TITLE_BITS = np.array([0, EN, ZH])  # by locale code

# One item. Row numbers are dense, in order of first appearance, and shared with the signals.
#
# field      unit                  meaning of the value, and of zero
# id         key64                 of the item id; 0: the row is free
# expires    s since the epoch     when the item leaves the shop; inf: never
# added      s since the epoch     when it came; 0: unknown
# category   key32                 0: none
# brand      key32                 0: none
# log_price  ln of the price       0: no price
# present    0 or 1                0: only the signals know the item, or it was deleted
# flags      bits                  AVAILABLE, PRODUCT, EN, ZH
# word       key32                 title words of all locales; 0: no more words
ITEM = np.dtype(
    [
        ("id", "i8"),
        ("expires", "f8"),
        ("added", "f8"),
        ("category", "i4"),
        ("brand", "i4"),
        ("log_price", "f4"),
        ("present", "i1"),
        ("flags", "i1"),
        ("pad", "i1", 2),
        ("word", "i4", TITLE_WORDS),
    ]
)
assert ITEM.itemsize == 64

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Short = Annotated[str, msgspec.Meta(max_length=256)]
Title = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Words = Annotated[str, msgspec.Meta(max_length=8192)]
Time = Annotated[datetime, msgspec.Meta(tz=True)]


class Item(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of the catalogue, schema `item/1`. A text is one string for all languages, or one for each locale."""

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
    """A record that is not a valid item; the message names the field and the value."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


class ItemReject(NamedTuple):
    record: int  # index among the records passed to `apply`
    field: str
    message: str


_decoder = msgspec.json.Decoder(Item)


def decode_item(key: bytes | None, value: bytes) -> Item:
    """The item in a catalogue record. `key` must be the item id; None skips that check. Raises only ItemError."""
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
        raise ItemError("value", f"the record is not a valid item: {error} in {value[:80]!r}") from None
    if key is not None and key != item.item_id.encode("utf-8", "surrogatepass"):
        raise ItemError("key", f"the record's key is {key[:80]!r}, expected the item id {item.item_id[:80]!r}")
    if isinstance(item.title, dict) and not item.title:
        raise ItemError("title", "title is {}, expected a text for at least one locale")
    return item


def fragment_of(item_id: str) -> bytes:
    """Start of the item's JSON object in pages and impressions."""
    return b'{"item_id":%s,"kind":"product"' % msgspec.json.encode(item_id)


@njit
def showable(item: Row, now: float, title_bit: int) -> bool:
    """Whether the ITEM row may be on a page at `now` (s) for the locale with the flag `title_bit` (0: any locale)."""
    return (
        item.present == 1
        and (item.flags & AVAILABLE) != 0
        and item.expires > now
        and (title_bit == 0 or (item.flags & title_bit) != 0)
    )


class Catalog:
    """The items by row. Arrays are replaced when they grow: read the attributes again for each batch."""

    def __init__(self, default_locale: str = "en") -> None:
        """default_locale: the shop's; titles of items without the shopper's language are in it."""
        self.default_locale = default_locale
        self.index = IdIndex()  # item id (key64) -> row; never changes
        self.items = np.zeros(1024, ITEM)  # (capacity,) ITEM
        self.version = 0  # incremented by every `apply` that changes an item
        self.names: dict[int, str] = {}  # keys of items, categories and brands -> their text
        # `{"item_id":"SKU1","kind":"product"` of each row, for pages and impressions.
        self.fragments = np.zeros(1 << 16, np.uint8)
        self.fragment_at = np.zeros((1024, 2), np.int64)  # (capacity, 2) start and end in `fragments`
        self.longest_fragment = 0  # bytes
        self._changed: set[int] | None = None  # rows, once `track_changes` was called
        self._fragment_bytes = 0  # used of `fragments`
        self._items: dict[int, Item] = {}

    @classmethod
    def from_rows(cls, items: Rows, fragments: Sequence[bytes]) -> Self:
        """A catalogue of (n,) ITEM rows with distinct ids, and their n fragments.

        It has no texts: `item`, `item_id` and `title` raise KeyError.
        """
        self = cls()
        self.index.add_all(np.ascontiguousarray(items["id"]))
        if len(self) != len(items):
            raise ValueError(f"{len(items)} items have {len(self)} ids; every item needs a distinct id")
        self.items, self.fragments = items.copy(), np.frombuffer(b"".join(fragments), np.uint8).copy()
        ends = np.cumsum([len(fragment) for fragment in fragments], dtype=np.int64)
        self.fragment_at = np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)
        self.longest_fragment = max(map(len, fragments))
        self._fragment_bytes, self.version = len(self.fragments), 1
        return self

    def __len__(self) -> int:
        return len(self.index)

    def row(self, item: int) -> int:
        """Row of the item id (key64); an unknown id gets a new row."""
        row = self.index.add(item)
        if row >= len(self.items):
            self.items = np.concatenate([self.items, np.zeros_like(self.items)])
            self.fragment_at = np.concatenate([self.fragment_at, np.zeros_like(self.fragment_at)])
        if self.items[row]["id"] == 0:
            self.items[row]["id"] = item
            self._note_change(row)
        return row

    def track_changes(self) -> set[int]:
        """Set that new and changed rows are added to from now on. The caller clears it; only one caller at a time."""
        self._changed = set()
        return self._changed

    def _note_change(self, row: int) -> None:
        if self._changed is not None:
            self._changed.add(row)

    def rows_of(self, items: I64) -> I32:
        """Row of each item id (key64); an unknown id gets a new row, 0 gets -1. (n,) -> (n,)."""
        rows = self.index.get_all(np.ascontiguousarray(items))
        for at in np.flatnonzero((rows < 0) & (items != 0)).tolist():
            rows[at] = self.row(int(items[at]))
        return rows

    def apply(
        self, records: Sequence[tuple[bytes, bytes | None]], claim: Callable[[int], bool] = lambda _: True
    ) -> list[ItemReject]:
        """Apply catalogue records in order; the value None deletes an item. Returns the invalid records, ignored.

        `claim` is asked for each valid record, by its index, and returns False if the record is outdated.
        """
        rejects = []
        for at, (key, value) in enumerate(records):
            try:
                if value is None:
                    item_key = key64(key.decode("utf-8", "surrogatepass"))
                    if claim(at):
                        self._remove(item_key)
                else:
                    item = decode_item(key, value)
                    if claim(at):
                        self._set(item)
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
        """The item of the row. Raises KeyError if only the signals know it."""
        return self._items[row]

    def title(self, row: int, locale: str) -> str:
        """Title that `choose_locale` finds for `locale`. Raises KeyError like `item`."""
        return self.id_and_title(row, locale)[1]

    def id_and_title(self, row: int, locale: str) -> tuple[str, str]:
        """Item id and title in one look-up, because the page path often needs both. Raises KeyError like `item`."""
        item = self._items[row]
        title = item.title
        if not isinstance(title, str):
            title = title[choose_locale(locale, self.default_locale, title)]
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
        for code in range(1, len(LOCALES)):
            if match_locale(LOCALES[code], titles) is not None:
                flags |= int(TITLE_BITS[code])
        if not flags & (EN | ZH):
            # All titles are in languages that no shopper can have: show the item in both.
            flags |= EN | ZH
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
        self._note_change(row)

    def _write_fragment(self, row: int, fragment: bytes) -> None:
        end = self._fragment_bytes + len(fragment)
        while end > len(self.fragments):
            self.fragments = np.concatenate([self.fragments, np.zeros_like(self.fragments)])
        self.fragments[self._fragment_bytes : end] = np.frombuffer(fragment, np.uint8)
        self.fragment_at[row] = self._fragment_bytes, end
        self.longest_fragment = max(self.longest_fragment, len(fragment))
        self._fragment_bytes = end
