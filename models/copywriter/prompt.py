"""The prompt of a headline, built from its facts.

The model never reads the shop's own words. An interest that it has learnt is in the prompt in the model's words. Any
other interest, and every item name, is a placeholder in the prompt and in the sampled headline; `fill` replaces it.
So a strange or hostile name cannot steer the model: at worst its headline is refused, and one without the name is
kept.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from models.copywriter.facts import Facts, allowed_interest, allowed_names
from models.copywriter.lexicon import Lexicon

END = "<|end|>"
TOPIC = "<topic>"
ITEMS = ("<item1>", "<item2>", "<item3>")
_RECOMMEND = {
    "en": "Based on your interests, we recommend the following products:",
    "zh": "基于你的兴趣，我们推荐以下商品：",
}


class Prompt(NamedTuple):
    text: str
    placeholders: dict[str, str]  # placeholder -> the text that replaces it


def prefix(locale: str, slot: str) -> str:
    """Return how all prompts of a slot begin; a generator may keep the model's state after it."""
    return f"<{slot}>{_RECOMMEND[locale]}"


def format_prompt(locale: str, slot: str, topic: str, items: int) -> str:
    """Return the text that the model is given in training and serving.

    topic: the interest in words, TOPIC, or "" for none; items: how many item names follow it.
    """
    facts = [*([topic] if topic else []), *ITEMS[:items]]
    return prefix(locale, slot) + (f" {'; '.join(facts)}\n" if locale == "en" else f"{'；'.join(facts)}\n")


def build_prompt(facts: Facts, lexicon: Lexicon) -> Prompt:
    """Return the prompt for the facts, without an interest or names that a headline may not say."""
    placeholders: dict[str, str] = {}
    category = lexicon.known(facts.category)
    if category is not None:
        topic = lexicon.names[facts.locale][category][0]
    elif interest := allowed_interest(facts.category, facts.locale):
        topic, placeholders[TOPIC] = TOPIC, interest
    else:
        topic = ""
    names = allowed_names(facts)[: len(ITEMS)]
    placeholders.update(zip(ITEMS, names, strict=False))
    return Prompt(format_prompt(facts.locale, facts.slot, topic, len(names)), placeholders)


def fill(text: str, placeholders: Mapping[str, str]) -> str:
    """Replace the placeholders of a sampled headline in one pass, so that a name cannot introduce another one."""
    if not placeholders:
        return text
    filled = re.sub("|".join(map(re.escape, placeholders)), lambda found: placeholders[found[0]], text)
    return filled[:1].upper() + filled[1:] if text.startswith(TOPIC) else filled
