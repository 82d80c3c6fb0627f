"""What the copywriter reads: plenty, in two languages, true to its facts, and without a single claim."""

import itertools
import random

import pytest

from models.copywriter.facts import BANNED, LOCALES, Facts
from models.copywriter.guard import guard
from models.copywriter.prompt import ITEMS, TOPIC, fill
from models.train.copywriter.corpus import (
    SLOTS,
    Pair,
    invent_interest,
    lexicon,
    misfits,
    pairs,
    render,
    shapes,
    texts,
    topics,
    unseen_slot,
    words_by_category,
)

pytestmark = pytest.mark.slow
ITEM_NAMES = ("Trail Shoe 3", "Oak Bench", "Paper Moon")
STRANGER = {"en": "glassblowing", "zh": "玻璃吹制"}  # an interest that nobody taught


def facts_of(pair: Pair) -> tuple[Facts, str]:
    """The facts of a pair as a shop would have them, and its headline as a shopper would read it."""
    interest = pair.category or (STRANGER[pair.locale] if pair.topic == TOPIC else pair.topic)
    names = ITEM_NAMES[: pair.items]
    put = {TOPIC: interest, **dict(zip(ITEMS, names, strict=False))}
    return Facts(pair.locale, pair.slot, interest, names), fill(pair.headline, put)


@pytest.mark.parametrize("held_out", [False, True])
def test_every_headline_that_is_learnt_passes_the_guard(held_out: bool) -> None:
    for pair in itertools.islice(pairs(3, held_out=held_out), 6000 if not held_out else 1500):
        facts, headline = facts_of(pair)
        assert guard(headline, facts, lexicon()) is None, (headline, facts)


def test_no_word_that_is_learnt_claims_anything() -> None:
    known, held_out = topics()
    for of in (known | held_out).values():
        for words in of.values():
            for word in itertools.chain(*words.parts):
                assert not BANNED.search(word), word
                assert not any(c.isdigit() for c in word), word
    for of_slot in shapes().values():
        for shape in of_slot:
            assert not BANNED.search(shape.text), shape.text
    for text in itertools.islice(texts(4), 5000):
        assert not BANNED.search(text), text


def test_there_are_plenty_of_topics_and_shapes_and_some_are_held_out() -> None:
    known, held_out = topics()
    assert len(known) >= 150
    assert len(held_out) >= 20
    for locale in LOCALES:
        for slot in SLOTS:
            of_slot = shapes()[locale, slot]
            assert sum(not shape.held_out for shape in of_slot) >= 20
            assert sum(shape.held_out for shape in of_slot) >= 4
            assert {shape.items for shape in of_slot} >= {0, 1, 2}


def test_a_topic_is_called_what_no_other_is_called() -> None:
    for locale, of in words_by_category("names").items():
        everything = [name.lower() for names in of.values() for name in names]
        assert len(everything) == len(set(everything)), locale
        for category, names in of.items():
            assert all(lexicon().known(name) == category for name in names), names


def test_held_out_topics_shapes_and_slots_are_not_in_the_corpus() -> None:
    held_out_names = {locale: [words[locale].names[0] for words in topics()[1].values()] for locale in LOCALES}
    for pair in itertools.islice(pairs(5), 4000):
        assert not any(name in pair.headline for name in held_out_names[pair.locale]), pair
        assert pair.category == "" or pair.slot != unseen_slot(pair.category)
    learnt = {shape.text for of in shapes().values() for shape in of if not shape.held_out}
    held_out = {shape.text for of in shapes().values() for shape in of if shape.held_out}
    assert not learnt & held_out


def test_the_same_seed_gives_the_same_text() -> None:
    first, again, other = (list(itertools.islice(pairs(seed), 200)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert list(itertools.islice(texts(7), 200)) == list(itertools.islice(texts(7), 200))


def test_a_headline_names_only_items_of_its_prompt() -> None:
    for pair in itertools.islice(pairs(9), 4000):
        assert not any(mark in pair.headline for mark in ITEMS[pair.items :]), pair
        assert (TOPIC in pair.headline) <= (pair.topic == TOPIC), pair


def test_a_headline_on_a_topic_mentions_it() -> None:
    own = words_by_category("names"), words_by_category("nouns")
    for pair in itertools.islice(pairs(11), 4000):
        if pair.category:
            mine = [word.lower() for of in own for word in of[pair.locale][pair.category]]
            assert any(word in pair.headline.lower() for word in mine), pair
        elif pair.topic:
            assert pair.topic.lower() in pair.headline.lower(), pair


def test_every_shape_can_be_rendered_for_every_topic() -> None:
    rng = random.Random(1)
    for (locale, slot), of_slot in shapes().items():
        for shape in of_slot:
            for of in itertools.islice(topics()[0].values(), 0, None, 40):
                text = next(filter(None, (render(rng, shape.text, locale, of[locale]) for _ in range(100))))
                assert "{" not in text and "[" not in text, (slot, text)


def test_a_quality_may_suit_only_some_things() -> None:
    violins = topics()[0]["violins"]["en"]
    assert violins.suits("warm", ["violins", "string instruments"])
    assert not violins.suits("warm", ["violins", "violin cases"])
    assert violins.suits("fine", ["violin cases"])
    assert "warm violin cases" in misfits()["en"]["violins"]
    assert not {"warm violins", "fine violin cases"} & set(misfits()["en"]["violins"])
    assert {"温暖的小提琴盒", "温暖小提琴盒"} <= set(misfits()["zh"]["violins"])
    assert rendered("romance", "Meet {a} {n} and {m}") & {"Meet sweet letters of love and summer romances"}
    assert all(
        " sparkling " not in text for text in rendered("christmas", "Meet {a} {n} and {m}") if "calendars" in text
    )


def test_rendered_headlines_do_not_repeat_words() -> None:
    assert rendered("romance", "For your love of {x}") == {"For your love of romance novels"}
    assert rendered("garden", "All things {x}") == {"All things pots and planters", "All things garden helpers"}


def rendered(category: str, shape: str) -> set[str]:
    """Headlines that a shape can give."""
    rng = random.Random(4)
    return set(filter(None, (render(rng, shape, "en", topics()[0][category]["en"]) for _ in range(200))))


def test_invented_interests_are_new_words() -> None:
    rng = random.Random(2)
    for locale in LOCALES:
        words = [invent_interest(rng, locale) for _ in range(300)]
        assert len(set(words)) > 200
        assert not any(lexicon().known(word) for word in words)
