"""What the copywriter learns from: text of shops in English and Chinese, all of it generated, the same for the same seed.

topics.txt says what shops sell, shapes.txt how headlines speak of it. No price, number, offer or claim stands in either,
for a model invents what it has read.
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
# True of anything; topics have better ones of their own.
LIKE = {"en": ("lovely", "delightful", "well-chosen", "fine"), "zh": ("贴心", "心动", "讨喜", "可心")}
_OWN_LIKE = 0.8
_SPECIFIC = 0.6  # of the headlines on a topic that is known: at least so many say more than its name
_NAMING = 0.7  # of the headlines whose prompt tells of items: so many name some
# Interests that the model does not know, as words, so that it learns to copy: made of these.
_HEADS = ("", "making", "gear", "supplies", "craft", "kits", "books", "art")
_SYLLABLES = ("bra", "cor", "del", "fen", "gal", "hum", "jor", "kel", "lim", "mar", "nov", "ost", "pel", "quin", "rus", "sil",
              "tam", "ulv", "vor", "wen", "yar", "zim")  # fmt: skip
_ENDINGS = ("dle", "ry", "ing", "ock", "ets", "ania", "ol", "ers", "ique", "o")


class Words(NamedTuple):
    """What is said of a topic in one language."""

    names: tuple[str, ...]
    nouns: tuple[str, ...] = ()
    occasions: tuple[str, ...] = ()
    qualities: tuple[str, ...] = ()
    partial: tuple[tuple[str, str], ...] = ()  # (quality, what it suits) of those that do not suit all names and things

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        return self.names, self.nouns, self.occasions, self.qualities

    def suits(self, quality: str, said: Iterable[str]) -> bool:
        only = {one for of, one in self.partial if of == quality}
        return not only or only.issuperset(said)


class Shape(NamedTuple):
    text: str
    slots: frozenset[str]
    held_out: bool

    @property
    def items(self) -> int:
        """How many items it names."""
        return len(self.slots & frozenset(_OF_ITEMS))

    @property
    def of_a_topic(self) -> bool:
        return bool(self.slots & _OF_A_TOPIC)

    @property
    def of_any_interest(self) -> bool:
        """True where the topic may be one that the model knows nothing of."""
        return "x" in self.slots and not self.slots & _NEEDS_KNOWLEDGE


class Pair(NamedTuple):
    """Facts -> headline, with placeholders for what the model is not to read."""

    locale: str
    slot: str
    topic: str  # as the prompt says it: a known topic's first name, TOPIC, words it does not know, or ""
    items: int  # of which the prompt tells
    headline: str
    category: str  # the id of a known topic, else ""
    held_out: bool = False


@cache
def topics() -> tuple[dict[str, dict[str, Words]], dict[str, dict[str, Words]]]:
    """id -> locale -> words: those that are learnt, and those held out. Raises ValueError for a line that is not right."""
    learnt: dict[str, dict[str, Words]] = {}
    held_out: dict[str, dict[str, Words]] = {}
    lines = [line for line in _lines("topics.txt") if line.strip()]
    for id_, en, zh in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        into, parts = (held_out, 1) if id_.startswith("*") else (learnt, 4)
        if re.fullmatch(r"\*?[a-z\-]+", id_) is None or id_.lstrip("*") in learnt | held_out:
            raise ValueError(f"topics.txt: {id_!r} is no new id of a topic")
        words = {locale: _words(line, mark) for locale, line, mark in (("en", en, ", "), ("zh", zh, "、"))}
        if any(sum(map(bool, of.parts)) != parts for of in words.values()):
            raise ValueError(f"topics.txt: {id_} must have {parts} parts in each language")
        for of in words.values():
            if strange := {one for _, one in of.partial} - {*of.names, *of.nouns}:
                raise ValueError(f"topics.txt: {id_} has no {', '.join(sorted(strange))} that a quality could suit")
        into[id_.lstrip("*")] = words
    return learnt, held_out


def _words(line: str, mark: str) -> Words:
    parts = [tuple(part.strip().split(mark)) for part in line.split("|")]
    names, nouns, occasions, qualities = parts + [()] * (4 - len(parts))
    told = [quality.rstrip(")").partition(" (") for quality in qualities]
    partial = tuple((quality, one) for quality, _, suited in told if suited for one in suited.split("/"))
    return Words(names, nouns, occasions, tuple(quality for quality, _, _ in told), partial)


@cache
def shapes() -> dict[tuple[str, str], list[Shape]]:
    """(locale, slot or "text") -> shapes, held out ones among them."""
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
    """What the model that is trained on this calls what it knows."""
    return Lexicon(**language())


def language() -> dict[str, Any]:
    """All parts of the lexicon, as they stand in a model's manifest."""
    return {**_phrases(), "turns": turns(), "misfits": misfits()}


def _phrases() -> dict[str, dict[str, dict[str, list[str]]]]:
    likes = said("qualities")
    for locale, of in likes.items():
        for category, own in of.items():
            both = dict.fromkeys([*own, *LIKE[locale]])
            of[category] = list(both) if locale == "en" else [form for like in both for form in _forms(like)]
    return {"names": said("names"), "nouns": said("nouns"), "uses": said("occasions"), "likes": likes}


def misfits() -> dict[str, dict[str, list[str]]]:
    """locale -> category -> a quality before what it does not suit, as no headline has them."""
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
    """A Chinese quality as it stands before a thing: a short one needs no 的."""
    return [like + "的", like] if len(like) == 2 else [like + "的"]


def turns() -> dict[str, list[str]]:
    """locale -> the neighbours of all headlines (`headline.bigrams`), sorted."""
    found = {}
    for locale in LOCALES:
        texts = {
            text
            for (of, slot), of_slot in shapes().items()
            for shape in (of_slot if of == locale and slot != "text" else ())
            for text in _signed(shape.text, locale)
        }
        # What a shape says of itself may be a phrase of some topic too: 心动 is a quality, and a word of headlines.
        pairs = {pair for text in texts for pair in bigrams(text, locale)}
        for sign, phrase in _all_phrases(locale):
            inside = re.compile(rf"\b{re.escape(phrase)}\b" if locale == "en" else re.escape(phrase), re.I)
            for text in texts:
                if phrase in text.lower():
                    pairs.update(bigrams(inside.sub(sign, text), locale))
        found[locale] = sorted(pairs)
    return found


def _signed(shape: str, locale: str) -> Iterator[str]:
    """All that a shape may become, with signs for what it leaves open. A thing may stand for a name, not the reverse."""
    name, thing, use, like, item = SIGNS.values()
    ways = {**dict.fromkeys("tx", (name, thing)), **dict.fromkeys("nm", thing), **dict.fromkeys("ijk", item), "f": use}
    ways["a"] = (like + " " * (locale == "en"), "")
    # Two things side by side may be what the topic is called: dumbbells and kettlebells.
    for both in ("{n} and {m}", "{n}与{m}"):
        if both in shape:
            yield from _signed(shape.replace(both, "{t}"), locale)
    pieces = re.split(r"\[([^\]]*)\]", shape)
    for whole in product(*(piece.split("|") if at % 2 else (piece,) for at, piece in enumerate(pieces))):
        open_ = re.split(r"\{(\w)\}", "".join(whole).replace("{a} ", "{a}"))
        yield from map("".join, product(*(ways[piece] if at % 2 else (piece,) for at, piece in enumerate(open_))))


def _all_phrases(locale: str) -> list[tuple[str, str]]:
    """(sign, phrase in small letters) of all topics."""
    parts = zip(SIGNS.values(), ("names", "nouns", "uses", "likes"), strict=False)
    return [(sign, phrase.lower()) for sign, part in parts for of in _phrases()[part][locale].values() for phrase in of]


def said(part: str) -> dict[str, dict[str, list[str]]]:
    """locale -> category -> the part ("names", "nouns", "occasions" or "qualities") of its words."""
    return {locale: {id_: list(getattr(of[locale], part)) for id_, of in topics()[0].items()} for locale in LOCALES}


def pairs(seed: int, *, only: tuple[str, str] | None = None, held_out: bool = False) -> Iterator[Pair]:
    """Facts and headlines without end, all languages and slots alike.

    only: of one language and slot. held_out: in the shapes that are not learnt, instead of those that are.
    """
    rng = random.Random(seed)
    while True:
        locale, slot = only or (rng.choice(LOCALES), rng.choice(SLOTS))
        pair = _pair(rng, locale, slot, held_out)
        if pair is not None:
            yield pair


def _pair(rng: random.Random, locale: str, slot: str, held_out: bool) -> Pair | None:
    # Half of the slots speak of the shopper's interest, half mostly of nothing in particular.
    about = slot in SLOTS[:3]
    # To name what it does not know is soon learnt; what is to be said of each topic takes most of the time.
    kind = rng.choices(("known", "unknown", "words", "none"), (81, 8, 3, 8) if about else (70, 7, 3, 20))[0]
    items = rng.choices((0, 1, 2, 3), (50, 25, 10, 15))[0]
    naming = items > 0 and rng.random() < _NAMING
    fitting, specific = _fitting(locale, slot, kind, items, naming, held_out)
    if not fitting:
        return None
    if kind == "known" and rng.random() < _SPECIFIC:
        fitting = specific or fitting
    category, topic = "", ""
    if kind == "known":
        category = rng.choice(list(topics()[0]))
        if slot == unseen_slot(category):
            return None
        words = topics()[0][category][locale]
        topic = words.names[0]
    elif kind != "none":
        topic = TOPIC if kind == "unknown" else invented(rng, locale)
        words = Words((topic,))
    else:
        words = Words(())
    headline = spoken(rng, rng.choice(fitting).text, locale, words)
    return None if headline is None else Pair(locale, slot, topic, items, headline, category, held_out)


@cache
def _fitting(
    locale: str, slot: str, kind: str, items: int, naming: bool, held_out: bool
) -> tuple[list[Shape], list[Shape]]:
    """The shapes for a prompt, and of them those that say more of a topic than its name."""
    fitting = [
        shape
        for shape in shapes()[locale, slot]
        if shape.held_out == held_out
        and shape.items <= items
        and (shape.items > 0) == naming
        and (shape.of_a_topic if kind == "known" else shape.of_any_interest if kind != "none" else not shape.of_a_topic)
    ]
    return fitting, [shape for shape in fitting if not shape.of_any_interest]


def unseen_slot(category: str) -> str:
    """The slot in which the model meets the topic in no pair: what it writes there shows whether it has understood both."""
    return SLOTS[crc32(category.encode()) % len(SLOTS)]


def texts(seed: int) -> Iterator[str]:
    """What shops write, without end: headlines on topics, and sentences on their goods."""
    rng = random.Random(seed)
    headlines = (pair.headline for pair in pairs(seed + 1) if pair.category)
    while True:
        if rng.random() < 0.6:
            yield next(headlines)
            continue
        locale = rng.choice(LOCALES)
        words = rng.choice(list(topics()[0].values()))[locale]
        text = spoken(rng, rng.choice(shapes()[locale, "text"]).text, locale, words)
        if text is not None:
            yield text


def spoken(rng: random.Random, shape: str, locale: str, words: Words) -> str | None:
    """The shape with what it leaves open put in; None where what was drawn says a word twice: "your love of love stories"."""
    text = re.sub(r"\[([^\]]*)\]", lambda found: rng.choice(found[1].split("|")), shape)
    put: dict[str, str] = dict(zip(_OF_ITEMS, ITEMS, strict=True))
    if words.nouns:
        put["n"], put["m"] = rng.sample(words.nouns, 2)
        put["f"] = rng.choice(words.occasions)
    if words.names:
        # "The bags for every day corner" is none, nor are "things for hikers for long views" or "power banks: power banks".
        put["x"] = rng.choice([name for name in words.names if " for " not in name])
        things = [put[slot] for slot in "nm" if f"{{{slot}}}" in text]
        # Nor "rich things for painters", nor what is new "in things for painters".
        bare = "{a} {t}" in text or "in {t}" in text
        plain = [name for name in words.names if not bare or not name.startswith("things ")]
        named = [name for name in plain if "{f}" not in text or " for " not in name]
        put["t"] = rng.choice([name for name in named if not any(thing in name for thing in things)] or named)
    if words.nouns:
        put["a"] = _quality(rng, text, locale, words, put)
    told = [put[slot] for slot in "nmtx" if f"{{{slot}}}" in text]
    apart = re.sub(r"\{[nmtx]\}", lambda found: GIVEN + put[found[0][1]] + GIVEN, text)
    apart = re.sub(r"\{[afijk]\}", lambda found: put[found[0][1]], apart)
    text = apart.replace(GIVEN, "")
    rest = re.sub(f"{GIVEN}[^{GIVEN}]*{GIVEN}", GIVEN, apart)
    if repeats_word(rest, told) or DOUBLED.search(apart) or CLUMSY.search(text):
        return None
    return text if text.startswith("<") else text[0].upper() + text[1:]


def _quality(rng: random.Random, shape: str, locale: str, words: Words, put: dict[str, str]) -> str:
    """One that suits what the shape puts behind it. 的 follows a Chinese one where it must."""
    likened = re.search(r"\{a\} ?\{n\}((?: and |与|、)\{m\})?", shape)
    said = [put["t"]] if likened is None else [put["n"], *([put["m"]] if likened[1] else [])]
    own = [like for like in words.qualities if words.suits(like, said)]
    own, any_ = ([like for like in of if not any(like in one for one in said)] for of in (own, LIKE[locale]))
    quality = rng.choice(own if own and rng.random() < _OWN_LIKE else any_)
    # One 的 will do: 你会喜欢的柔软毛线. Longer words must have their own.
    bare = "的{a}" in shape and len(quality) == 2 and not any("的" in one for one in said)
    return quality if locale == "en" or bare else quality + "的"


def invented(rng: random.Random, locale: str) -> str:
    """The name of an interest that nobody has."""
    while True:
        if locale == "en":
            word = rng.choice(_SYLLABLES) + rng.choice(("", rng.choice(_SYLLABLES))) + rng.choice(_ENDINGS)
            head = rng.choice(_HEADS)
            word = f"{word} {head}".strip()
        else:
            word = "".join(rng.sample(_characters(), rng.choice((2, 2, 3, 4))))
        if BANNED.search(word) is None and not word.endswith(ENDS_OPEN) and lexicon().other_category(word, locale) is None:
            return word


@cache
def _characters() -> Sequence[str]:
    return sorted(
        {c for of in topics()[0].values() for name in of["zh"].names for c in name if "\u3400" <= c <= "\u9fff"}
    )
