"""Languages of shoppers and texts: one look-up for flags of items, titles, headlines and templates (RFC 4647)."""

from collections.abc import Collection, Iterator
from functools import lru_cache

# The position is the code in rows and profiles: append only. 0: another language, or none; it gets the default locale.
LOCALES = ("", "en", "zh")
NO_LANGUAGE = ("", "und")  # tags of a text for all languages: no tag, and BCP 47's "undetermined"
MAX_CACHED = 4096  # look-ups; events and items name few distinct languages


def match_locale(wanted: str, tags: Collection[str]) -> str | None:
    """Return the tag of `tags` that a reader of the language `wanted` gets, as it is written there; None if none fits.

    wanted: a language tag such as "en-GB"; "" for no language. The first step that finds a tag decides:

    1. RFC 4647 lookup (section 3.4): `wanted` itself, then without its last subtags, one after the other;
    2. RFC 4647 basic filtering (section 3.3.1): the first tag that continues one of these ranges, the longest first.
       So "en" and "en-GB" find "en-US";
    3. a text for all languages, with the tag "" or "und".

    Case does not matter, and an underscore is a hyphen.
    """
    return _match(wanted, tuple(tags))


def choose_locale(wanted: str, default: str, tags: Collection[str]) -> str:
    """Return the tag that fits `wanted`, else the one that fits the shop's language `default`, else the first tag."""
    offered = tuple(tags)
    for one in (wanted, default):
        if (found := _match(one, offered)) is not None:
            return found
    return offered[0]


@lru_cache(MAX_CACHED)
def locale_code(locale: str | None) -> int:
    """Code of a language tag in LOCALES: 1 for "en" and "en-GB", 2 for "zh" and "zh_CN", 0 for others."""
    return LOCALES.index(match_locale(locale or "", LOCALES) or "")


@lru_cache(MAX_CACHED)
def _match(wanted: str, tags: tuple[str, ...]) -> str | None:
    offered = {_normalized(tag): tag for tag in reversed(tags)}  # of equal tags, the first
    ranges = list(_truncations(_normalized(wanted)))
    for one in ranges:
        if one in offered:
            return offered[one]
    for one in ranges:
        for tag in map(_normalized, tags):
            if one and tag.startswith(one + "-"):
                return offered[tag]
    return next((offered[tag] for tag in NO_LANGUAGE if tag in offered), None)


def _normalized(tag: str) -> str:
    return tag.strip().replace("_", "-").lower()


def _truncations(tag: str) -> Iterator[str]:
    """Yield the tag, then the tag with fewer and fewer subtags. A singleton, such as the x of "en-x-a", never ends one.

    A tag such as "x-shop" or "i-klingon" has no language, so only the whole tag is a range.
    """
    subtags = tag.split("-")
    for count in range(len(subtags), 0, -1):
        if count == len(subtags) or len(subtags[count - 1]) > 1:
            yield "-".join(subtags[:count])
