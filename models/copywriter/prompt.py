"""What a headline is told and what it may say: the facts, the prompt made of them, and the guard, which is the law.

The model never reads what the shop's data says. An interest that it has learnt stands in the prompt in the model's own
words; any other, and every name of an item, is a placeholder in the prompt and in the headline, put in after sampling.
So a name can be as strange or as hostile as it likes: at worst its headline is refused, and one without it is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

LOCALES = ("en", "zh")
END = "<|end|>"
TOPIC = "<topic>"
ITEMS = ("<item1>", "<item2>", "<item3>")
LONGEST = 96  # characters of a headline
LONGEST_NAME = {"en": 40, "zh": 24}  # characters of a name within it
LONGEST_TOPIC = {"en": 30, "zh": 12}
_RECOMMEND = {
    "en": "Based on your interests, we recommend the following products:",
    "zh": "基于你的兴趣，我们推荐以下商品：",
}
BANNED = re.compile(
    # Prices and offers.
    r"\b(?:free|sales?|discount\w*|offers?|offered|cheap\w*|deals?|sav(?:e|es|ed|ing|ings)|off|percent|pric(?:e|es|ed|ing|ey)"
    r"|now only|limited|bargains?|clearance|coupons?|vouchers?|rebates?|refunds?|bogo|buy one|get one|\d+ for \d+|giveaways?"
    r"|dollars?|euros?|yuan|usd|eur|gbp|rmb|cny"
    # Claims of rank.
    r"|best|better than|top.rated|unbeatable|ultimate|number one|no\. ?1|award\w*|exclusive\w*|guarantee\w*|proven|perfect\w*"
    # Medical and legal claims.
    r"|cur(?:e|es|ed|ing)|heal(?:s|ed|ing|thy|thier)?|therap\w*|medic\w*|clinical\w*|doctors?|certified|warrant\w*|legal\w*"
    r"|risk.?free|safest|detox\w*|slimming)\b"
    r"|免费|免税|免邮|免单|包邮|打折|折扣|折起|[一二三四五六七八九]折|优惠|特价|特惠|促销|降价|减价|满减|立减|秒杀|清仓|甩卖|券|赠|买.送"
    r"|返现|红包(?!括)|便宜|划算|超值|省钱|低价|价格|原价|现价|(?<!多)元(?![素气旦宵])|块钱|限时|限量"
    r"|最(?![近后初])|第一|顶级|国家级|唯一|绝对|极致|完美|全网|独家|保证|保障|认证|百分"
    r"|治疗|治愈|疗效|疗|药|医|根治|功效|养生|排毒|减肥|抗菌|抗衰|法律|合法|退款|质保",
    re.I,
)
_NOT_IN_HEADLINE = re.compile(r"[^A-Za-zÀ-ɏ\u3400-\u9fff\ufffc ,.:;!?'’&\-，。：；！？、“”《》·]")
_NOT_IN_NAME = re.compile(r"[^A-Za-zÀ-ɏ\u3400-\u9fff0-9 ,.'’&+/()\-·]")
_ADDRESS = re.compile(r"www\.|\.(?:com|net|org|info|shop|biz|io|cn|co|me|xyz|top)\b", re.I)
_FIGURE = re.compile(r"\d[.,]\d|\d{5}")  # reads as a price or a stock number
_SHOUTED = re.compile(r"(?:\b[A-Z]{2,}\b[^A-Za-z]*){3}")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_DANGLING = re.compile(
    r"\b(?:a|an|about|and|(?<!you )are|as|(?<!looked )(?<!look )at|by|for|from|(?<!just )(?<!come )in|into|is|(?<!you )like|of|on|or|our|the|their|to|(?<!start )with|your)$",
    re.I,
)
ENDS_OPEN = tuple(",，、:：;；&-—·") + tuple("的和与从")
CLUMSY = re.compile(
    r"([\u3400-\u9fff]{2,})\1|  |[,.:;!?\-，。：；！？、]{2}| [,.:;!?]|[,;:](?=[A-Za-z'’])"
    r"|\ba (?=[aeiou](?!ne\b|ni|se|ur))|\ban (?=[bcdfgjklmnpqrstvwxyz])",
    re.I,
)
_STUTTER = re.compile(r"\b(\w+) \1\b|([\u3400-\u9fff])\2\2", re.I)
_ECHO = re.compile(r"\b(\w+ \w+ \w+)\b.*\b\1\b|([\u3400-\u9fff]{4,}).*\2", re.I)
GIVEN = "\ufffc"  # stands where a given name stood, or about one
TWICE = re.compile(rf"([\u3400-\u9fff]){GIVEN}+\1")  # where a phrase begins or ends: 爱爱情小说
_SMALL = re.compile(r"about|every|from|here|just|like|more|such|that|them|these|this|those|what|with|your")
# What a phrase is to a headline, and the sign that stands for it while neighbours are looked at.
SIGNS = dict(zip(("<name>", "<thing>", "<use>", "<like>", "<item>"), "\ue000\ue001\ue002\ue003\ue004", strict=True))
_KINDS = {sign: kind for kind, sign in SIGNS.items()}
# A thing and what it is a kind of: 长板与滑板.
_JOINED = re.compile("{0}{2}{1}|{1}{2}{0}".format(*list(SIGNS.values())[:2], "(?: and |, |与|和|、)"))


class Facts(NamedTuple):
    """What a headline is to be about."""

    locale: str
    slot: str
    category: str  # an id, or any shop's words in either language; "" for none
    titles: tuple[str, ...] = ()  # of the leading items


class Lexicon:
    """What headlines call the interests that the model has learnt, by language, and how they speak.

    names: locale -> category -> names, the first is the one that prompts use. nouns: locale -> category -> things that
    belong to it. Both may be said in a headline on the category, and in no other. uses, likes: locale -> category -> what
    its things are for, and what they are like. turns: locale -> the neighbours that `neighbours` may find; without them
    whatever neighbours will do. misfits: locale -> category -> a like before a name or a thing that it does not suit.
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
        self._turns = {locale: frozenset(of) for locale, of in (turns or {}).items()}
        self._misfits = {
            (locale, category): frozenset(phrase.lower() for phrase in phrases)
            for locale, of in (misfits or {}).items()
            for category, phrases in of.items()
        }
        self._phrases: dict[tuple[str, str], dict[str, str]] = {}
        for parts, kind in ((likes, "<like>"), (uses, "<use>"), (names, "<name>"), (nouns, "<thing>")):
            for locale, of in (parts or {}).items():
                for category, phrases in of.items():
                    into = self._phrases.setdefault((locale, category), {})
                    into.update((phrase.lower(), SIGNS[kind]) for phrase in phrases)
        self._readings: dict[tuple[str, str], list[list[re.Pattern[str]]]] = {}
        self._liked: dict[tuple[str, str], re.Pattern[str]] = {}
        self._ids: dict[str, str] = {}
        for of in names.values():
            for category, called in of.items():
                for name in called:
                    self._ids.setdefault(_key(name), category)
        for of in names.values():
            self._ids.update((_key(category), category) for category in of)
        self._own: dict[tuple[str, str], re.Pattern[str]] = {}
        self._said_of: dict[str, dict[str, str]] = {}  # locale -> phrase -> a category it belongs to
        self._longest: dict[str, int] = {}
        for locale, of in names.items():
            said_of: dict[str, str] = {}
            for category, called in of.items():
                phrases = [*called, *(nouns or {}).get(locale, {}).get(category, ())]
                said_of.update((phrase.lower(), category) for phrase in phrases)
                self._own[locale, category] = _any_of(phrases)
            self._said_of[locale] = said_of
            self._longest[locale] = max((len(_parts(phrase)) for phrase in said_of), default=0)

    def known(self, category: str) -> str | None:
        """The category that an id, or a name in either language, stands for."""
        return self._ids.get(_key(category)) if category else None

    def own(self, locale: str, category: str) -> re.Pattern[str]:
        """What is said of the category, the longest first."""
        return self._own[locale, category]

    def other(self, text: str, locale: str) -> str | None:
        """A category of which the text says something."""
        said_of, parts = self._said_of[locale], _parts(text.lower())
        glue = "" if locale == "zh" else " "
        for start in range(len(parts)):
            for end in range(start + 1, min(start + self._longest[locale], len(parts)) + 1):
                if (category := said_of.get(glue.join(parts[start:end]))) is not None:
                    return category
        return None

    def odd(self, text: str, facts: Facts) -> str | None:
        """What stands side by side in a headline and in none that the model has read: two words, or phrases."""
        turns = self._turns.get(facts.locale)
        if turns is None:
            return None
        text = _any_of(spoken_names(facts)).sub(SIGNS["<item>"], text)
        category = self.known(facts.category)
        if category is None and (interest := spoken_interest(facts.category, facts.locale)):
            text = _any_of([interest]).sub(SIGNS["<name>"], text)
        phrases = self._phrases.get((facts.locale, category or ""), {})
        odd = None
        for patterns in self._read(facts.locale, category or ""):
            read = text
            for pattern in patterns:
                read = pattern.sub(lambda found: phrases[found[0].lower()], read)
            odd = next((pair for pair in neighbours(read, facts.locale) if pair not in turns), None)
            odd = odd or ("kinds of one another" if _JOINED.search(read) else None)
            if odd is None:
                return self._misfit(text, facts.locale, category or "")
        return odd

    def _misfit(self, text: str, locale: str, category: str) -> str | None:
        """A like before what it does not suit: "warm violin cases"."""
        misfits = self._misfits.get((locale, category))
        if not misfits:
            return None
        if (locale, category) not in self._liked:
            like = _any_of(
                phrase for phrase, sign in self._phrases[locale, category].items() if sign == SIGNS["<like>"]
            )
            self._liked[locale, category] = re.compile(
                rf"(?:{like.pattern}){' ' * (locale == 'en')}(?:{self._own[locale, category].pattern})", re.I
            )
        found = (pair[0].lower() for pair in self._liked[locale, category].finditer(text))
        return next((pair for pair in found if pair in misfits), None)

    def _read(self, locale: str, category: str) -> list[list[re.Pattern[str]]]:
        """Ways to find a category's phrases, each by patterns one after the other.

        "Golden honey and syrups" is golden honey, or golden before honey and syrups; 多彩 is no word of 更多彩蛋.
        """
        at = locale, category
        if at not in self._readings:
            likes: dict[str, str] = {}
            others: dict[str, str] = {}
            for phrase, sign in self._phrases.get(at, {}).items():
                (likes if sign == SIGNS["<like>"] else others)[phrase] = sign
            like, other = _any_of(likes), _any_of(others)
            before = rf"(?:{like.pattern})(?={' ' * (locale == 'en')}(?:{other.pattern}))"
            self._readings[at] = [[other, like], [re.compile(before, re.I), other, like]]
        return self._readings[at]


def neighbours(text: str, locale: str) -> list[str]:
    """Each two words (Chinese characters) side by side in a headline with SIGNS in it, "^" and "$" at its ends."""
    found = re.findall(r"[\w'’\-]+|[^\w\s]" if locale == "en" else r"\S", text.lower())
    words = ["^", *(_KINDS.get(word, word) for word in found), "$"]
    return [f"{first} {second}" for first, second in pairwise(words)]


class Prompt(NamedTuple):
    prompt: str
    stands_for: dict[str, str]  # placeholder -> what it stands for


def prefix(locale: str, slot: str) -> str:
    """How all prompts of a slot begin: whoever generates may keep the state of the model behind it."""
    return f"<{slot}>{_RECOMMEND[locale]}"


def prompt(locale: str, slot: str, topic: str, items: int) -> str:
    """What the model is given, training and serving alike: the interest in words, TOPIC or "", and how many items."""
    told = [*([topic] if topic else []), *ITEMS[:items]]
    return prefix(locale, slot) + (f" {'; '.join(told)}\n" if locale == "en" else f"{'；'.join(told)}\n")


def brief(facts: Facts, lexicon: Lexicon) -> Prompt:
    """The prompt for the facts. What may not be said is left out of it: the interest, or names of items."""
    stands_for: dict[str, str] = {}
    category = lexicon.known(facts.category)
    if category is not None:
        topic = lexicon.names[facts.locale][category][0]
    elif interest := spoken_interest(facts.category, facts.locale):
        topic, stands_for[TOPIC] = TOPIC, interest
    else:
        topic = ""
    names = spoken_names(facts)[: len(ITEMS)]
    stands_for.update(zip(ITEMS, names, strict=False))
    return Prompt(prompt(facts.locale, facts.slot, topic, len(names)), stands_for)


def fill(text: str, stands_for: Mapping[str, str]) -> str:
    """A headline as it was sampled -> as it is read: each placeholder replaced, none of them anew."""
    if not stands_for:
        return text
    filled = re.sub("|".join(map(re.escape, stands_for)), lambda found: stands_for[found[0]], text)
    return filled[:1].upper() + filled[1:] if text.startswith(TOPIC) else filled


def spoken_names(facts: Facts) -> list[str]:
    """Of the items' names those that a headline may say, each once."""
    names = (_spoken(title, facts.locale, LONGEST_NAME) for title in facts.titles)
    return list(dict.fromkeys(name for name in names if name))


def spoken_interest(category: str, locale: str) -> str:
    """A category that the model does not know, as a headline may call it; "" where it may not.

    Of a path such as "Home > Kitchen" it is the last part; of an id such as "bird-watching" its words. As with names, a
    Chinese page quotes what is in Latin letters ("cosplay"), while an English one says nothing that its reader cannot read.
    """
    last = [part for part in re.split(r"[>/|]", category) if part.strip()]
    return _spoken(re.sub(r"[_\-]+", " ", last[-1]) if last else "", locale, LONGEST_TOPIC)


def guard(text: str, facts: Facts, lexicon: Lexicon) -> str | None:
    """None where the headline may be shown, else the reason why not.

    Only what was given may be said: the interest, its things, the items' names; no number, price, offer or claim, no
    other interest, in the right language and a whole sentence, each two words of which are neighbours in what was learnt.
    """
    if not 4 <= len(text) <= LONGEST:
        return "length"
    if BANNED.search(unicodedata.normalize("NFKC", text)):
        return "claim"
    category = lexicon.known(facts.category)
    interest = "" if category is not None else spoken_interest(facts.category, facts.locale)
    names = spoken_names(facts)
    if any(len(title) > 2 and title in text and " ".join(title.split()) not in names for title in facts.titles):
        return "a name that may not be said"
    given = [*names, *([interest] if interest else [])]
    said: list[str] = []
    doubled = False

    def noted(found: re.Match[str]) -> str:
        nonlocal doubled
        said.append(found[0].lower())
        before, after = found.string[: found.start()], found.string[found.end() :]
        doubled |= TWICE.search(f"{before[-1:]}{GIVEN}{found[0]}{GIVEN}{after[:1]}") is not None
        return GIVEN

    rest = bare = _any_of(given).sub(noted, text) if given else text
    if category is not None:
        rest = lexicon.own(facts.locale, category).sub(noted, rest)
    if _NOT_IN_HEADLINE.search(rest):
        return "number or sign"
    if facts.locale == "zh":
        right = _CHINESE.search(rest) is not None and re.search(r"[A-Za-z]{2}|[,;:!?]", rest) is None
    else:
        right = (
            re.search(r"[\u3400-\u9fff，。：；！？、《》]", text) is None
            and re.search(r"[A-Za-z]{2}", rest) is not None
        )
    if not right:
        return "language"
    if not _sentence(text, rest):
        return "not a sentence"
    own = set(said) - {name.lower() for name in names}
    if len(said) > len(set(said)) or doubled or says_again(rest, own) or _STUTTER.search(bare) or _ECHO.search(rest):
        return "the same twice"
    if (category is not None or interest) and GIVEN not in rest:
        return "off topic"
    if (other := lexicon.other(rest, facts.locale)) is not None:
        return f"speaks of {other}"
    if lexicon.odd(text, facts) is not None:
        return "not how headlines speak"
    return None


def says_again(rest: str, phrases: Iterable[str]) -> bool:
    """True where an English word that matters stands in a phrase, and in the rest too: "your love of" "love stories"."""
    return not _stems(rest).isdisjoint(stem for phrase in phrases for stem in _stems(phrase))


def _stems(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-zà-ɏ]{4,}", text.lower()) if not _SMALL.fullmatch(word)}


def _sentence(text: str, rest: str) -> bool:
    return not (
        text != text.strip()
        or text.endswith(ENDS_OPEN)
        or text[0] in ",.:;!?'’&-，。：；！？、”》·"
        or rest[0].islower()
        or re.search(r"[a-z\ufffc][A-Z]", rest)
        or _DANGLING.search(rest)
        or CLUMSY.search(rest)
        or f"{GIVEN}{GIVEN}" in rest.replace(" ", "")
        or text.count("“") != text.count("”")
        or text.count("《") != text.count("》")
    )


def _spoken(text: str, locale: str, longest: Mapping[str, int]) -> str:
    """A text of the shop's data with single spaces; "" where a headline of the language may not say it."""
    said = " ".join(text.split())
    plain = unicodedata.normalize("NFKC", said)  # full-width figures and signs are figures and signs
    if (
        len(said) > longest["zh" if _CHINESE.search(said) else "en"]
        or len(re.findall(r"[A-Za-zÀ-ɏ]", said)) + 2 * len(_CHINESE.findall(said)) < 2
        or not (said[0].isalnum() and (said[-1].isalnum() or said[-1] in ")+."))
        or (locale == "en" and _CHINESE.search(said))
        or _NOT_IN_NAME.search(said)
        or any(pattern.search(plain) for pattern in (BANNED, _ADDRESS, _FIGURE, _SHOUTED))
    ):
        return ""
    return said


def _any_of(phrases: Iterable[str]) -> re.Pattern[str]:
    """Any of the phrases, the longest first; English ones as whole words."""
    ordered = sorted(phrases, key=len, reverse=True)
    return re.compile("|".join(_whole(re.escape(phrase), phrase) for phrase in ordered) or r"(?!)", re.I)


def _whole(pattern: str, phrase: str) -> str:
    if _CHINESE.search(phrase):
        return pattern
    # Within Chinese an English name touches letters of another script, so \b would not do.
    return rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"


def _parts(text: str) -> list[str]:
    """English words, or Chinese characters."""
    return re.findall(r"[a-zà-ɏ]+(?:['’\-&][a-zà-ɏ]+)*|[\u3400-\u9fff]", text)


def _key(text: str) -> str:
    return "-".join(re.findall(r"\w+", text.casefold().replace("'", "").replace("’", "").replace("_", " ")))
