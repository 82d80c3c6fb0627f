"""The evaluation of headlines accepts good ones, and finds the errors that a small model makes."""

import itertools

import pytest

from models.copywriter.facts import Facts
from models.copywriter.prompt import ITEMS, TOPIC, fill
from models.train.copywriter.corpus import pairs, topics, unseen_slot
from models.train.copywriter.evaluation import (
    Line,
    Segment,
    counts_mass_noun,
    evaluate_line,
    has_known_trigrams,
    is_grammatical,
    is_on_topic,
    makes_claim,
    metrics,
    parses,
    segments,
)

pytestmark = pytest.mark.slow  # the grammar and the trigrams of the corpus take half a minute


def test_every_shape_parses_including_held_out_ones() -> None:
    for held_out in (False, True):
        for pair in itertools.islice(pairs(123, held_out=held_out), 400):
            interest = pair.category or pair.topic.replace(TOPIC, "glassblowing" if pair.locale == "en" else "吹玻璃")
            names = ("Trail Shoe 3", "Oak Bench", "Paper Moon")[: pair.items]
            headline = fill(pair.headline, {TOPIC: interest, **dict(zip(ITEMS, names, strict=False))})
            assert parses(headline, Facts(pair.locale, pair.slot, interest, names)), (headline, interest)


@pytest.mark.parametrize(
    ("text", "locale", "category"),
    [
        ("Soft lamps for for quiet evenings", "en", "lighting"),
        ("Lamps for soft quiet evenings in mind", "en", "lighting"),
        ("These lighting for you", "en", "lighting"),
        ("Picked you: soft floor lamps", "en", "lighting"),
        ("Soft lamps for quiet eveningers", "en", "lighting"),
        ("From the world of", "en", "lighting"),
        ("为安静的夜晚的挑选灯具", "zh", "lighting"),
        ("灯具的的世界", "zh", "lighting"),
        ("柔软毛线，与你很合拍的", "zh", "knitting"),
        ("Soft for quiet evenings", "en", "lighting"),
    ],
)
def test_ungrammatical_headlines_are_found(text: str, locale: str, category: str) -> None:
    facts = Facts(locale, "for_you", category)
    assert not parses(text, facts)
    assert not has_known_trigrams(text, facts)


def test_a_new_sentence_of_known_trigrams_is_accepted() -> None:
    text = "Because you viewed lamps: soft floor lamps for quiet evenings"
    assert has_known_trigrams(text, Facts("en", "because_you_viewed", "lighting"))


@pytest.mark.parametrize(
    ("text", "slot", "category"),
    [
        # "colourful fish" is also what aquariums are for.
        ("The talk of the shop: colourful fish tanks", "trending", "aquariums"),
        # "new ideas" is also what notebooks are for.
        ("New ideas around sundials", "in_your_categories", "sundials"),
    ],
)
def test_a_headline_is_read_in_each_possible_way(text: str, slot: str, category: str) -> None:
    assert is_grammatical(text, Facts("en", slot, category))


def test_topic_and_claims_are_evaluated_without_the_guard() -> None:
    facts = Facts("en", "for_you", "lighting", ("Trail Shoe 3", "Half Price Lamp"))
    assert is_on_topic("Soft floor lamps", facts)
    assert is_on_topic("Start with Trail Shoe 3", facts)
    assert not is_on_topic("Soft things", facts)
    assert is_on_topic("Soft things", Facts("en", "for_you", ""))
    assert not is_on_topic("Soft things", Facts("en", "for_you", "falconry"))
    assert not makes_claim("Start with Trail Shoe 3", facts)
    assert makes_claim("Start with Trail Shoe 4", facts)
    assert makes_claim("Start with Half Price Lamp", facts)


def test_half_of_the_segments_are_unknown_interests_half_unseen_slots() -> None:
    chosen = segments(1000, 1)
    assert len(chosen) == 2000
    for locale in ("en", "zh"):
        mine = [segment for segment in chosen if segment.facts.locale == locale]
        assert sum(segment.known for segment in mine) == 500
        for segment in mine:
            assert (segment.facts.category in topics()[0]) == segment.known
            assert not segment.known or segment.facts.slot == unseen_slot(segment.facts.category)


def test_shares_count_segments_or_headlines() -> None:
    segment = Segment(Facts("en", "for_you", "lighting"), known=True)
    lines = [
        Line(segment, "Soft lamps", True, True, True, True, False),
        Line(segment, "Soft lamps", False, False, True, True, False),
        Line(segment, None, False),
        Line(segment, None, False),
    ]
    found = metrics(lines)
    assert {name.rsplit("/", 1)[1]: value for name, value in found.items() if name.startswith("en.known/")} == {
        "first_sample": 0.25, "passed": 0.5, "on_topic": 1.0, "grammatical": 1.0, "parses": 0.5, "distinct": 0.5,
        "named": 0.0, "segments": 4, "claims": 0,
    }  # fmt: skip
    assert found["en.without_items/segments"] == 4
    assert found["en.with_items/segments"] == found["zh.known/segments"] == 0


def test_segments_with_items_are_a_group() -> None:
    bare, with_item = (
        Segment(Facts("en", "for_you", "lighting", titles), known=True) for titles in ((), ("Oak Lamp",))
    )
    lines = [
        evaluate_line(bare, "Soft lamps", True),
        evaluate_line(with_item, "Start with Oak Lamp", True),
        evaluate_line(with_item, None, False),
    ]
    found = metrics(lines)
    assert (found["en.with_items/segments"], found["en.with_items/passed"], found["en.with_items/named"]) == (2, 0.5, 1)
    assert (found["en.without_items/segments"], found["en.without_items/named"]) == (1, 0)


@pytest.mark.parametrize(
    ("text", "category", "wrong"),
    [
        ("So many golden honey to discover", "honey", True),
        ("So many honey to discover", "honey", True),
        ("Those furniture, once again", "furniture", True),
        ("So many honeycombs to discover", "honey", False),
        ("So many lamps to discover", "lighting", False),
        ("We hope you like these sturdy denim jackets", "denim", False),  # denim is a mass noun, jackets are not
        ("We hope you like these sturdy denim", "denim", True),
        ("Even more golden honey to discover", "honey", False),
    ],
)
def test_a_plural_mass_noun_is_an_error(text: str, category: str, wrong: bool) -> None:
    facts = Facts("en", "in_your_categories", category)
    assert counts_mass_noun(text, facts) == wrong
    if wrong:
        assert not is_grammatical(text, facts)


@pytest.mark.parametrize(
    ("text", "locale", "category"),
    [
        ("Next to what you viewed: headphones and speakers for music lovers", "en", "audio"),  # without its adjective
        ("为冬日夜晚挑选的柔软毛线", "zh", "knitting"),
        ("为冬日夜晚挑选的柔软的毛线", "zh", "knitting"),
        ("为冬日夜晚挑选的毛线", "zh", "knitting"),
    ],
)
def test_an_adjective_may_be_missing_or_short(text: str, locale: str, category: str) -> None:
    assert parses(text, Facts(locale, "for_you", category))
