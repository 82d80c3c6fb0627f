"""Whoever judges headlines must know the good ones, and miss no bad one of the kinds that a small model writes."""

import itertools

import pytest

from models.copywriter.facts import Facts
from models.copywriter.prompt import ITEMS, TOPIC, fill
from models.train.copywriter.corpus import pairs, topics, unseen_slot
from models.train.copywriter.evaluation import (
    Line,
    Segment,
    counts_a_mass,
    does_claim,
    does_parse,
    is_grammatical,
    is_on_topic,
    line_of,
    metrics,
    segments,
    sounds_right,
)


def test_every_shape_parses_the_held_out_ones_too() -> None:
    for held_out in (False, True):
        for pair in itertools.islice(pairs(123, held_out=held_out), 400):
            interest = pair.category or pair.topic.replace(TOPIC, "glassblowing" if pair.locale == "en" else "吹玻璃")
            names = ("Trail Shoe 3", "Oak Bench", "Paper Moon")[: pair.items]
            headline = fill(pair.headline, {TOPIC: interest, **dict(zip(ITEMS, names, strict=False))})
            assert does_parse(headline, Facts(pair.locale, pair.slot, interest, names)), (headline, interest)


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
def test_what_is_not_grammatical_is_not_held_to_be(text: str, locale: str, category: str) -> None:
    facts = Facts(locale, "for_you", category)
    assert not does_parse(text, facts)
    assert not sounds_right(text, facts)


def test_a_new_sentence_of_known_turns_sounds_right() -> None:
    text = "Because you viewed lamps: soft floor lamps for quiet evenings"
    assert sounds_right(text, Facts("en", "because_you_viewed", "lighting"))


@pytest.mark.parametrize(
    ("text", "slot", "category"),
    [
        (
            "The talk of the shop: colourful fish tanks",
            "trending",
            "aquariums",
        ),  # though "colourful fish" is what they are for
        ("New ideas around sundials", "in_your_categories", "sundials"),  # "new ideas" is what notebooks are for
    ],
)
def test_a_phrase_is_read_in_each_way_that_it_can_be(text: str, slot: str, category: str) -> None:
    assert is_grammatical(text, Facts("en", slot, category))


def test_topics_and_claims_are_judged_without_the_guard() -> None:
    facts = Facts("en", "for_you", "lighting", ("Trail Shoe 3", "Half Price Lamp"))
    assert is_on_topic("Soft floor lamps", facts)
    assert is_on_topic("Start with Trail Shoe 3", facts)
    assert not is_on_topic("Soft things", facts)
    assert is_on_topic("Soft things", Facts("en", "for_you", ""))
    assert not is_on_topic("Soft things", Facts("en", "for_you", "falconry"))
    assert not does_claim("Start with Trail Shoe 3", facts)
    assert does_claim("Start with Trail Shoe 4", facts)
    assert does_claim("Start with Half Price Lamp", facts)


def test_segments_are_half_of_unknown_interests_and_half_of_topics_where_they_were_never_seen() -> None:
    asked = segments(1000, 1)
    assert len(asked) == 2000
    for locale in ("en", "zh"):
        mine = [segment for segment in asked if segment.facts.locale == locale]
        assert sum(segment.known for segment in mine) == 500
        for segment in mine:
            assert (segment.facts.category in topics()[0]) == segment.known
            assert not segment.known or segment.facts.slot == unseen_slot(segment.facts.category)


def test_shares_are_of_the_segments_or_of_the_lines() -> None:
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


def test_segments_with_items_are_counted_apart() -> None:
    bare, told = (Segment(Facts("en", "for_you", "lighting", titles), known=True) for titles in ((), ("Oak Lamp",)))
    lines = [line_of(bare, "Soft lamps", True), line_of(told, "Start with Oak Lamp", True), line_of(told, None, False)]
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
        ("We hope you like these sturdy denim jackets", "denim", False),  # denim is a mass, its jackets are not
        ("We hope you like these sturdy denim", "denim", True),
        ("Even more golden honey to discover", "honey", False),
    ],
)
def test_a_mass_is_not_counted(text: str, category: str, wrong: bool) -> None:
    facts = Facts("en", "in_your_categories", category)
    assert counts_a_mass(text, facts) == wrong
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
    assert does_parse(text, Facts(locale, "for_you", category))
