"""What headlines call the interests that the model has learnt, and which words may stand side by side.

A lexicon has phrases of four kinds for each category: names of the category, things that belong to it, uses of those
things, and qualities ("likes") that the things have.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from models.copywriter.facts import CHINESE, Facts, allowed_interest, allowed_names

# Kinds of phrases, and the private-use character that replaces a phrase while bigrams are read.
SIGNS = dict(zip(("<name>", "<thing>", "<use>", "<like>", "<item>"), "\ue000\ue001\ue002\ue003\ue004", strict=True))
_KIND_OF_SIGN = {sign: kind for kind, sign in SIGNS.items()}
# A thing joined with the name of its kind, in either order: 长板与滑板 (longboards and skateboards).
_JOINED = re.compile("{0}{2}{1}|{1}{2}{0}".format(*list(SIGNS.values())[:2], "(?: and |, |与|和|、)"))


class Lexicon:
    """Phrases of each category by language, and the bigrams that headlines may hold.

    names: locale -> category -> names; prompts use the first. nouns: locale -> category -> things that belong to it. A
    headline may say both if it is about the category, and never otherwise. uses, likes: locale -> category -> what its
    things are for, and what they are like. turns: locale -> allowed results of `bigrams`; without them every bigram is
    allowed. misfits: locale -> category -> a quality followed by a name or thing that it does not suit.
    """

    def __init__(
        self,
        names: Mapping[str, Mapping[str, Sequence[str]]],
        nouns: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        uses: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        likes: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        turns: Mapping[str, Iterable[str]] | None = None,
        misfits: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
    ) -> None:
        self.names = names
        self._allowed_bigrams = {locale: frozenset(of) for locale, of in (turns or {}).items()}
        self._misfits = {
            (locale, category): frozenset(phrase.lower() for phrase in phrases)
            for locale, of in (misfits or {}).items()
            for category, phrases in of.items()
        }
        self._sign_of: dict[tuple[str, str], dict[str, str]] = {}  # (locale, category) -> phrase -> sign of its kind
        for parts, kind in ((likes, "<like>"), (uses, "<use>"), (names, "<name>"), (nouns, "<thing>")):
            for locale, of in (parts or {}).items():
                for category, phrases in of.items():
                    signs = self._sign_of.setdefault((locale, category), {})
                    signs.update((phrase.lower(), SIGNS[kind]) for phrase in phrases)
        # Compiled when first used, by (locale, category).
        self._readings: dict[tuple[str, str], list[list[re.Pattern[str]]]] = {}
        self._quality_pairs: dict[tuple[str, str], re.Pattern[str]] = {}
        self._category_of_key = _category_keys(names)
        self._own: dict[tuple[str, str], re.Pattern[str]] = {}
        self._category_of_phrase: dict[str, dict[str, str]] = {}  # locale -> phrase -> a category it belongs to
        self._max_words: dict[str, int] = {}  # of those phrases, by locale
        for locale, of in names.items():
            category_of: dict[str, str] = {}
            for category, own_names in of.items():
                phrases = [*own_names, *(nouns or {}).get(locale, {}).get(category, ())]
                category_of.update((phrase.lower(), category) for phrase in phrases)
                self._own[locale, category] = any_of(phrases)
            self._category_of_phrase[locale] = category_of
            self._max_words[locale] = max((len(_words(phrase)) for phrase in category_of), default=0)

    def known(self, category: str) -> str | None:
        """Return the category that an id, or a name in either language, belongs to."""
        return self._category_of_key.get(_key(category)) if category else None

    def own(self, locale: str, category: str) -> re.Pattern[str]:
        """Return a pattern of the category's names and things, the longest first."""
        return self._own[locale, category]

    def other_category(self, text: str, locale: str) -> str | None:
        """Return a category that the text mentions, if any."""
        category_of, words = self._category_of_phrase[locale], _words(text.lower())
        separator = "" if locale == "zh" else " "
        for start in range(len(words)):
            for end in range(start + 1, min(start + self._max_words[locale], len(words)) + 1):
                if (category := category_of.get(separator.join(words[start:end]))) is not None:
                    return category
        return None

    def unusual_bigram(self, text: str, facts: Facts) -> str | None:
        """Return two neighbours in a headline that no headline of the training corpus has; None if there are none."""
        allowed = self._allowed_bigrams.get(facts.locale)
        if allowed is None:
            return None
        text = any_of(allowed_names(facts)).sub(SIGNS["<item>"], text)
        category = self.known(facts.category)
        if category is None and (interest := allowed_interest(facts.category, facts.locale)):
            text = any_of([interest]).sub(SIGNS["<name>"], text)
        signs = self._sign_of.get((facts.locale, category or ""), {})
        unusual = None
        for patterns in self._phrase_patterns(facts.locale, category or ""):
            reading = text
            for pattern in patterns:
                reading = pattern.sub(lambda found: signs[found[0].lower()], reading)
            unusual = next((pair for pair in bigrams(reading, facts.locale) if pair not in allowed), None)
            unusual = unusual or ("a thing joined with its own kind" if _JOINED.search(reading) else None)
            if unusual is None:
                return self._misfit(text, facts.locale, category or "")
        return unusual

    def _misfit(self, text: str, locale: str, category: str) -> str | None:
        """Return a quality followed by something that it does not suit: "warm violin cases"."""
        misfits = self._misfits.get((locale, category))
        if not misfits:
            return None
        if (locale, category) not in self._quality_pairs:
            qualities = any_of(
                phrase for phrase, sign in self._sign_of[locale, category].items() if sign == SIGNS["<like>"]
            )
            self._quality_pairs[locale, category] = re.compile(
                rf"(?:{qualities.pattern}){' ' * (locale == 'en')}(?:{self._own[locale, category].pattern})", re.I
            )
        found = (pair[0].lower() for pair in self._quality_pairs[locale, category].finditer(text))
        return next((pair for pair in found if pair in misfits), None)

    def _phrase_patterns(self, locale: str, category: str) -> list[list[re.Pattern[str]]]:
        """Return the ways to find a category's phrases; each way is a list of patterns to apply in order.

        A text may have two readings. "Golden honey and syrups" is golden honey, or golden before honey and syrups; 多彩
        is not a word of 更多彩蛋.
        """
        at = locale, category
        if at not in self._readings:
            qualities: dict[str, str] = {}
            others: dict[str, str] = {}
            for phrase, sign in self._sign_of.get(at, {}).items():
                (qualities if sign == SIGNS["<like>"] else others)[phrase] = sign
            quality, other = any_of(qualities), any_of(others)
            before = rf"(?:{quality.pattern})(?={' ' * (locale == 'en')}(?:{other.pattern}))"
            self._readings[at] = [[other, quality], [re.compile(before, re.I), other, quality]]
        return self._readings[at]


def _category_keys(names: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Return the category of each normalised name and id; an id wins over a name."""
    category_of: dict[str, str] = {}
    for of in names.values():
        for category, own_names in of.items():
            for name in own_names:
                category_of.setdefault(_key(name), category)
    for of in names.values():
        category_of.update((_key(category), category) for category in of)
    return category_of


def bigrams(text: str, locale: str) -> list[str]:
    """Return each pair of neighbouring words (Chinese: characters) of a headline that may hold SIGNS.

    The ends of the headline are "^" and "$".
    """
    found = re.findall(r"[\w'’\-]+|[^\w\s]" if locale == "en" else r"\S", text.lower())
    words = ["^", *(_KIND_OF_SIGN.get(word, word) for word in found), "$"]
    return [f"{first} {second}" for first, second in pairwise(words)]


def any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of any of the phrases, the longest first; English phrases match as whole words."""
    ordered = sorted(phrases, key=len, reverse=True)
    return re.compile("|".join(_whole_words(phrase) for phrase in ordered) or r"(?!)", re.I)


def _whole_words(phrase: str) -> str:
    if CHINESE.search(phrase):
        return re.escape(phrase)
    # \b does not work here: within Chinese text an English name touches letters of another script.
    return rf"(?<![A-Za-z0-9]){re.escape(phrase)}(?![A-Za-z0-9])"


def _words(text: str) -> list[str]:
    """Return English words, or Chinese characters."""
    return re.findall(r"[a-zà-ɏ]+(?:['’\-&][a-zà-ɏ]+)*|[\u3400-\u9fff]", text)


def _key(text: str) -> str:
    return "-".join(re.findall(r"\w+", text.casefold().replace("'", "").replace("’", "").replace("_", " ")))
