"""The copywriter's training corpus: generated shop text in English and Chinese, the same for the same seed.

topics.txt has the words for what shops sell, shapes.txt the templates of headlines. Neither has a price, number,
offer or claim, because a model repeats what it has read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

from models.copywriter.facts import BANNED, LOCALES
from models.copywriter.guard import CLUMSY, DOUBLED, ENDS_OPEN, GIVEN, repeats_word
from models.copywriter.lexicon import SIGNS, Lexicon, bigrams
from models.copywriter.prompt import ITEMS, TOPIC

SLOTS = ("for_you", "because_you_viewed", "in_your_categories", "trending", "fresh", "buy_again")
_OF_A_TOPIC, _OF_ITEMS = frozenset("txnmfa"), "ijk"
_NEEDS_KNOWLEDGE = frozenset("tnmfa")
# Qualities that suit anything; most topics have better ones.
COMMON_QUALITIES = {"en": ("lovely", "delightful", "well-chosen", "fine"), "zh": ("贴心", "心动", "讨喜", "可心")}
_OWN_QUALITY_SHARE = 0.8
_SPECIFIC_SHARE = 0.6  # minimum share of headlines on a known topic that say more than its name
_NAMING_SHARE = 0.7  # share of headlines that name an item, if the prompt has items
# Parts of invented interests. They are given as words, so that the model learns to copy.
_HEADS = ("", "making", "gear", "supplies", "craft", "kits", "books", "art")
_SYLLABLES = (
    *("bra", "cor", "del", "fen", "gal", "hum", "jor", "kel", "lim", "mar", "nov", "ost", "pel", "quin", "rus", "sil"),
    *("tam", "ulv", "vor", "wen", "yar", "zim"),
)
_ENDINGS = ("dle", "ry", "ing", "ock", "ets", "ania", "ol", "ers", "ique", "o")


class Words(NamedTuple):
    """The words for a topic in one language."""

    names: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    occasions: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ()
    partial: tuple[
        tuple[str, str], ...
    ] = ()  # (quality, a name or thing that it suits), for qualities that do not suit all

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        return self.names, self.nouns, self.occasions, self.qualities

    def suits(self, quality: str, things: Iterable[str]) -> bool:
        suited = {thing for of, thing in self.partial if of == quality}
        return not suited or suited.issuperset(things)


class Shape(NamedTuple):
    text: str
    slots: frozenset[str]
    held_out: bool

    @property
    def items(self) -> int:
        """Number of items that it names."""
        return len(self.slots & frozenset(_OF_ITEMS))

    @property
    def names_topic(self) -> bool:
        return bool(self.slots & _OF_A_TOPIC)

    @property
    def fits_unknown_interest(self) -> bool:
        """True if the topic may be one that the model does not know."""
        return "x" in self.slots and not self.slots & _NEEDS_KNOWLEDGE


class Pair(NamedTuple):
    """Facts and a headline, with placeholders for what the model must not read."""

    locale: str
    slot: str
    topic: str  # as in the prompt: a known topic's first name, TOPIC, unknown words, or ""
    items: int  # in the prompt
    headline: str
    category: str  # the id of a known topic, else ""
    held_out: bool = False


@cache
def topics() -> tuple[dict[str, dict[str, Words]], dict[str, dict[str, Words]]]:
    """Return id -> locale -> words of the learnt topics and of the held-out ones. Raises ValueError for a bad line."""
    learnt: dict[str, dict[str, Words]] = {}
    held_out: dict[str, dict[str, Words]] = {}
    lines = [line for line in _lines("topics.txt") if line.strip()]
    for id_, en, zh in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        into, parts = (held_out, 1) if id_.startswith("*") else (learnt, 4)
        if re.fullmatch(r"\*?[a-z\-]+", id_) is None or id_.lstrip("*") in learnt | held_out:
            raise ValueError(f"topics.txt: {id_!r} is not a new id of a topic")
        words = {locale: _words(line, mark) for locale, line, mark in (("en", en, ", "), ("zh", zh, "、"))}
        if any(sum(map(bool, of.parts)) != parts for of in words.values()):
            raise ValueError(f"topics.txt: {id_} must have {parts} parts in each language")
        for of in words.values():
            if unknown := {thing for _, thing in of.partial} - {*of.names, *of.nouns}:
                raise ValueError(f"topics.txt: {id_} has no {', '.join(sorted(unknown))} that a quality could suit")
        into[id_.lstrip("*")] = words
    return learnt, held_out


def _words(line: str, mark: str) -> Words:
    parts = [tuple(part.strip().split(mark)) for part in line.split("|")]
    names, nouns, occasions, qualities = parts + [()] * (4 - len(parts))
    split = [quality.rstrip(")").partition(" (") for quality in qualities]
    partial = tuple((quality, thing) for quality, _, suited in split if suited for thing in suited.split("/"))
    return Words(names, nouns, occasions, tuple(quality for quality, _, _ in split), partial)


@cache
def shapes() -> dict[tuple[str, str], list[Shape]]:
    """Return (locale, slot or "text") -> shapes, including the held-out ones."""
    found: dict[tuple[str, str], list[Shape]] = {}
    for line in _lines("shapes.txt"):
        if section := re.fullmatch(r"\[(en|zh) (\w+)\]", line):
            into = found.setdefault((section[1], section[2]), [])
        elif line:
            text = line.lstrip("~")
            into.append(Shape(text, frozenset(re.findall(r"\{(\w)\}", text)), line != text))
    return found


def _lines(name: str) -> list[str]:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if not line.startswith("#")]


@cache
def lexicon() -> Lexicon:
    """Return the lexicon of a model that is trained on this corpus."""
    return Lexicon(**lexicon_params())


def lexicon_params() -> dict[str, Any]:
    """Return the parts of the lexicon, as in a model's manifest."""
    return {**_phrases(), "turns": allowed_bigrams(), "misfits": misfits()}


def _phrases() -> dict[str, dict[str, dict[str, list[str]]]]:
    likes = words_by_category("qualities")
    for locale, of in likes.items():
        for category, own in of.items():
            both = dict.fromkeys([*own, *COMMON_QUALITIES[locale]])
            of[category] = list(both) if locale == "en" else [form for like in both for form in _forms(like)]
    return {
        "names": words_by_category("names"),
        "nouns": words_by_category("nouns"),
        "uses": words_by_category("occasions"),
        "likes": likes,
    }


def misfits() -> dict[str, dict[str, list[str]]]:
    """Return locale -> category -> a quality followed by what it does not suit."""
    found: dict[str, dict[str, list[str]]] = {locale: {} for locale in LOCALES}
    for id_, of in topics()[0].items():
        for locale, words in of.items():
            unsuited = [
                (like, thing)
                for like in words.qualities
                for thing in (*words.names, *words.nouns)
                if not words.suits(like, [thing])
            ]
            found[locale][id_] = [
                f"{like} {thing}" if locale == "en" else form + thing
                for like, thing in unsuited
                for form in ([like] if locale == "en" else _forms(like))
            ]
    return found


def _forms(like: str) -> list[str]:
    """Return the forms of a Chinese quality before a thing: a short one does not need 的."""
    return [like + "的", like] if len(like) == 2 else [like + "的"]


def allowed_bigrams() -> dict[str, list[str]]:
    """Return locale -> the bigrams of all headlines (`lexicon.bigrams`), sorted."""
    found = {}
    for locale in LOCALES:
        texts = {
            text
            for (of, slot), of_slot in shapes().items()
            for shape in (of_slot if of == locale and slot != "text" else ())
            for text in _with_signs(shape.text, locale)
        }
        # Words of a shape may be a phrase of some topic too: 心动 is a quality, and a word of headlines.
        pairs = {pair for text in texts for pair in bigrams(text, locale)}
        for sign, phrase in _all_phrases(locale):
            inside = re.compile(rf"\b{re.escape(phrase)}\b" if locale == "en" else re.escape(phrase), re.I)
            for text in texts:
                if phrase in text.lower():
                    pairs.update(bigrams(inside.sub(sign, text), locale))
        found[locale] = sorted(pairs)
    return found


def _with_signs(shape: str, locale: str) -> Iterator[str]:
    """Yield all variants of a shape, with signs for its open slots. A thing may replace a name, but not the reverse."""
    name, thing, use, like, item = SIGNS.values()
    ways = {**dict.fromkeys("tx", (name, thing)), **dict.fromkeys("nm", thing), **dict.fromkeys("ijk", item), "f": use}
    ways["a"] = (like + " " * (locale == "en"), "")
    # Two joined things may be the name of the topic: dumbbells and kettlebells.
    for both in ("{n} and {m}", "{n}与{m}"):
        if both in shape:
            yield from _with_signs(shape.replace(both, "{t}"), locale)
    pieces = re.split(r"\[([^\]]*)\]", shape)
    for whole in product(*(piece.split("|") if at % 2 else (piece,) for at, piece in enumerate(pieces))):
        open_ = re.split(r"\{(\w)\}", "".join(whole).replace("{a} ", "{a}"))
        yield from map("".join, product(*(ways[piece] if at % 2 else (piece,) for at, piece in enumerate(open_))))


def _all_phrases(locale: str) -> list[tuple[str, str]]:
    """Return (sign, lower-case phrase) of all topics."""
    parts = zip(SIGNS.values(), ("names", "nouns", "uses", "likes"), strict=False)
    return [(sign, phrase.lower()) for sign, part in parts for of in _phrases()[part][locale].values() for phrase in of]


def words_by_category(part: str) -> dict[str, dict[str, list[str]]]:
    """Return locale -> category -> one part of its words: "names", "nouns", "occasions" or "qualities"."""
    return {locale: {id_: list(getattr(of[locale], part)) for id_, of in topics()[0].items()} for locale in LOCALES}


def pairs(seed: int, *, only: tuple[str, str] | None = None, held_out: bool = False) -> Iterator[Pair]:
    """Yield pairs without end, evenly over languages and slots.

    only: a single language and slot. held_out: use the held-out shapes instead of the learnt ones.
    """
    rng = random.Random(seed)
    while True:
        locale, slot = only or (rng.choice(LOCALES), rng.choice(SLOTS))
        pair = _pair(rng, locale, slot, held_out)
        if pair is not None:
            yield pair


def _pair(rng: random.Random, locale: str, slot: str, held_out: bool) -> Pair | None:
    # Half of the slots are about the shopper's interest; the other half mostly is not.
    about = slot in SLOTS[:3]
    # The model soon learns to copy unknown names. The words of each topic take most of the training.
    kind = rng.choices(("known", "unknown", "words", "none"), (81, 8, 3, 8) if about else (70, 7, 3, 20))[0]
    items = rng.choices((0, 1, 2, 3), (50, 25, 10, 15))[0]
    naming = items > 0 and rng.random() < _NAMING_SHARE
    fitting, specific = _fitting_shapes(locale, slot, kind, items, naming, held_out)
    if not fitting:
        return None
    if kind == "known" and rng.random() < _SPECIFIC_SHARE:
        fitting = specific or fitting
    category, topic = "", ""
    if kind == "known":
        category = rng.choice(list(topics()[0]))
        if slot == unseen_slot(category):
            return None
        words = topics()[0][category][locale]
        topic = words.names[0]
    elif kind != "none":
        topic = TOPIC if kind == "unknown" else invent_interest(rng, locale)
        words = Words((topic,))
    else:
        words = Words(())
    headline = render(rng, rng.choice(fitting).text, locale, words)
    return None if headline is None else Pair(locale, slot, topic, items, headline, category, held_out)


@cache
def _fitting_shapes(
    locale: str, slot: str, kind: str, items: int, naming: bool, held_out: bool
) -> tuple[list[Shape], list[Shape]]:
    """Return the shapes for a prompt, and those of them that say more about a topic than its name."""
    fitting = [
        shape
        for shape in shapes()[locale, slot]
        if shape.held_out == held_out
        and shape.items <= items
        and (shape.items > 0) == naming
        and (
            shape.names_topic
            if kind == "known"
            else shape.fits_unknown_interest
            if kind != "none"
            else not shape.names_topic
        )
    ]
    return fitting, [shape for shape in fitting if not shape.fits_unknown_interest]


def unseen_slot(category: str) -> str:
    """Return the slot in which no pair has the topic: headlines there show whether the model generalises."""
    return SLOTS[crc32(category.encode()) % len(SLOTS)]


def texts(seed: int) -> Iterator[str]:
    """Yield shop texts without end: headlines on topics, and sentences on their goods."""
    rng = random.Random(seed)
    headlines = (pair.headline for pair in pairs(seed + 1) if pair.category)
    while True:
        if rng.random() < 0.6:
            yield next(headlines)
            continue
        locale = rng.choice(LOCALES)
        words = rng.choice(list(topics()[0].values()))[locale]
        text = render(rng, rng.choice(shapes()[locale, "text"]).text, locale, words)
        if text is not None:
            yield text


def render(rng: random.Random, shape: str, locale: str, words: Words) -> str | None:
    """Fill the open slots of a shape; None if the result repeats a word: "your love of love stories"."""
    text = re.sub(r"\[([^\]]*)\]", lambda found: rng.choice(found[1].split("|")), shape)
    put: dict[str, str] = dict(zip(_OF_ITEMS, ITEMS, strict=True))
    if words.nouns:
        put["n"], put["m"] = rng.sample(words.nouns, 2)
        put["f"] = rng.choice(words.occasions)
    if words.names:
        # Avoid "the bags for every day corner", "things for hikers for long views" and "power banks: power banks".
        put["x"] = rng.choice([name for name in words.names if " for " not in name])
        things = [put[slot] for slot in "nm" if f"{{{slot}}}" in text]
        # Avoid "rich things for painters", and what is new "in things for painters".
        bare = "{a} {t}" in text or "in {t}" in text
        plain = [name for name in words.names if not bare or not name.startswith("things ")]
        named = [name for name in plain if "{f}" not in text or " for " not in name]
        put["t"] = rng.choice([name for name in named if not any(thing in name for thing in things)] or named)
    if words.nouns:
        put["a"] = _quality(rng, text, locale, words, put)
    phrases = [put[slot] for slot in "nmtx" if f"{{{slot}}}" in text]
    apart = re.sub(r"\{[nmtx]\}", lambda found: GIVEN + put[found[0][1]] + GIVEN, text)
    apart = re.sub(r"\{[afijk]\}", lambda found: put[found[0][1]], apart)
    text = apart.replace(GIVEN, "")
    rest = re.sub(f"{GIVEN}[^{GIVEN}]*{GIVEN}", GIVEN, apart)
    if repeats_word(rest, phrases) or DOUBLED.search(apart) or CLUMSY.search(text):
        return None
    return text if text.startswith("<") else text[0].upper() + text[1:]


def _quality(rng: random.Random, shape: str, locale: str, words: Words, put: dict[str, str]) -> str:
    """Return a quality that suits what follows it in the shape; a Chinese one ends in 的 if it must."""
    likened = re.search(r"\{a\} ?\{n\}((?: and |与|、)\{m\})?", shape)
    things = [put["t"]] if likened is None else [put["n"], *([put["m"]] if likened[1] else [])]
    own = [like for like in words.qualities if words.suits(like, things)]
    own, common = (
        [like for like in of if not any(like in thing for thing in things)] for of in (own, COMMON_QUALITIES[locale])
    )
    quality = rng.choice(own if own and rng.random() < _OWN_QUALITY_SHARE else common)
    # One 的 is enough for short words: 你会喜欢的柔软毛线. Longer words need their own.
    bare = "的{a}" in shape and len(quality) == 2 and not any("的" in thing for thing in things)
    return quality if locale == "en" or bare else quality + "的"


def invent_interest(rng: random.Random, locale: str) -> str:
    """Return the name of an interest that does not exist."""
    while True:
        if locale == "en":
            word = rng.choice(_SYLLABLES) + rng.choice(("", rng.choice(_SYLLABLES))) + rng.choice(_ENDINGS)
            head = rng.choice(_HEADS)
            word = f"{word} {head}".strip()
        else:
            word = "".join(rng.sample(_characters(), rng.choice((2, 2, 3, 4))))
        if (
            BANNED.search(word) is None
            and not word.endswith(ENDS_OPEN)
            and lexicon().other_category(word, locale) is None
        ):
            return word


@cache
def _characters() -> Sequence[str]:
    return sorted(
        {c for of in topics()[0].values() for name in of["zh"].names for c in name if "\u3400" <= c <= "\u9fff"}
    )
