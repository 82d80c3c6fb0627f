"""The guard: decides whether a sampled headline may be shown."""

import re
import unicodedata
from collections.abc import Iterable

from models.copywriter.facts import BANNED, CHINESE, Facts, allowed_interest, allowed_names
from models.copywriter.lexicon import Lexicon, any_of

MAX_CHARS = 96  # of a headline
_NOT_IN_HEADLINE = re.compile(r"[^A-Za-zÀ-ɏ\u3400-\u9fff\ufffc ,.:;!?'’&\-，。：；！？、“”《》·]")
_DANGLING = re.compile(
    r"\b(?:a|an|about|and|(?<!you )are|as|(?<!looked )(?<!look )at|by|for|from|(?<!just )(?<!come )in|into|is"
    r"|(?<!you )like|of|on|or|our|the|their|to|(?<!start )with|your)$",
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
# Stands for a given name or phrase while the rest of the headline is checked.
GIVEN = "\ufffc"
# A character doubled at the edge of a phrase: 爱爱情小说.
DOUBLED = re.compile(rf"([\u3400-\u9fff]){GIVEN}+\1")
# Words too common to count as a repetition.
_COMMON_WORDS = re.compile(r"about|every|from|here|just|like|more|such|that|them|these|this|those|what|with|your")


def guard(text: str, facts: Facts, lexicon: Lexicon) -> str | None:
    """Return None if the headline may be shown, else the reason why not.

    A headline may only say the interest, its things and the items' names. It must be a whole sentence in the right
    language, without a number, price, offer, claim or other interest. Each of its bigrams must occur in the training
    corpus.
    """
    if not 4 <= len(text) <= MAX_CHARS:
        return "length"
    if BANNED.search(unicodedata.normalize("NFKC", text)):
        return "claim"
    category = lexicon.known(facts.category)
    interest = "" if category is not None else allowed_interest(facts.category, facts.locale)
    names = allowed_names(facts)
    if any(len(title) > 2 and title in text and " ".join(title.split()) not in names for title in facts.titles):
        return "a name that may not be said"
    given = [*names, *([interest] if interest else [])]
    phrases_found: list[str] = []
    doubled = False

    def replace(found: re.Match[str]) -> str:
        nonlocal doubled
        phrases_found.append(found[0].lower())
        before, after = found.string[: found.start()], found.string[found.end() :]
        doubled |= DOUBLED.search(f"{before[-1:]}{GIVEN}{found[0]}{GIVEN}{after[:1]}") is not None
        return GIVEN

    rest = bare = any_of(given).sub(replace, text) if given else text
    if category is not None:
        rest = lexicon.own(facts.locale, category).sub(replace, rest)
    if _NOT_IN_HEADLINE.search(rest):
        return "number or sign"
    if facts.locale == "zh":
        in_language = CHINESE.search(rest) is not None and re.search(r"[A-Za-z]{2}|[,;:!?]", rest) is None
    else:
        in_language = (
            re.search(r"[\u3400-\u9fff，。：；！？、《》]", text) is None
            and re.search(r"[A-Za-z]{2}", rest) is not None
        )
    if not in_language:
        return "language"
    if not _is_sentence(text, rest):
        return "not a sentence"
    own_phrases = set(phrases_found) - {name.lower() for name in names}
    repeats_phrase = doubled or len(phrases_found) > len(set(phrases_found)) or repeats_word(rest, own_phrases)
    if repeats_phrase or _STUTTER.search(bare) or _ECHO.search(rest):
        return "the same twice"
    if (category is not None or interest) and GIVEN not in rest:
        return "off topic"
    if (other := lexicon.other_category(rest, facts.locale)) is not None:
        return f"speaks of {other}"
    if lexicon.unusual_bigram(text, facts) is not None:
        return "not how headlines speak"
    return None


def repeats_word(rest: str, phrases: Iterable[str]) -> bool:
    """Return True if an English content word is in a phrase and in the rest too: "your love of" "love stories"."""
    return not _stems(rest).isdisjoint(stem for phrase in phrases for stem in _stems(phrase))


def _stems(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-zà-ɏ]{4,}", text.lower()) if not _COMMON_WORDS.fullmatch(word)}


def _is_sentence(text: str, rest: str) -> bool:
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
