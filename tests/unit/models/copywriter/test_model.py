"""The copywriter is deterministic and guarded, and leaves unknown languages to the templates."""

import itertools

import pytest
from tokenizers import Tokenizer

from models.copywriter.facts import Facts
from models.copywriter.guard import guard
from models.copywriter.model import Copywriter
from models.train.copywriter.corpus import topics
from stream.settings import SHIPPED_MODELS

FOLDER = SHIPPED_MODELS / "copywriter"


@pytest.fixture(scope="module")
def writer() -> Copywriter:
    return Copywriter(FOLDER)


@pytest.mark.slow
def test_a_headline_does_not_depend_on_the_batch(writer: Copywriter) -> None:
    facts = [Facts("en", "for_you", "kitchen"), Facts("zh", "for_you", "lighting"), Facts("en", "trending", "")]
    together = writer.write(facts, 3)
    assert together == [writer.write([fact], 3)[0] for fact in facts]
    assert [copy.text for copy in together if copy] == [copy.text for copy in writer.write(facts, 3) if copy]


@pytest.mark.slow
def test_a_batch_larger_than_the_cache_gives_the_same_headlines(writer: Copywriter) -> None:
    facts = [Facts("en", slot, category) for slot in ("for_you", "trending") for category in list(topics()[0])[:9]]
    facts += [Facts("zh", "fresh", category) for category in ("", *list(topics()[0])[:5])] + facts[:2]
    together = writer.write(facts, 5)
    assert together == [writer.write([fact], 5)[0] for fact in facts]
    assert together[-2:] == together[:2]


@pytest.mark.slow
def test_nearly_every_segment_gets_an_accepted_headline(writer: Copywriter) -> None:
    facts = [Facts(locale, "for_you", category) for locale in ("en", "zh") for category in list(topics()[0])[::9]]
    copies = writer.write(facts, 11)
    assert sum(copy is not None for copy in copies) >= 0.95 * len(facts)
    for fact, copy in zip(facts, copies, strict=True):
        assert copy is None or guard(copy.text, fact, writer.lexicon) is None
    assert len({copy.text for copy in copies if copy}) > 0.8 * len(facts), "headlines differ"


def test_a_headline_mentions_an_unknown_interest(writer: Copywriter) -> None:
    facts = [Facts("en", "for_you", "falconry"), Facts("zh", "for_you", "书法"), Facts("en", "fresh", "submarines")]
    texts = [copy.text.lower() for copy in writer.write(facts, 1) if copy]
    assert [fact.category in text for fact, text in zip(facts, texts, strict=True)] == [True] * 3, texts


def test_an_unknown_language_gets_no_headline(writer: Copywriter) -> None:
    assert writer.write([Facts("de", "for_you", "kitchen")], 1) == [None]


def test_a_locale_with_a_region_gets_the_headline_of_its_language(writer: Copywriter) -> None:
    british, english = writer.write([Facts("en_GB", "fresh", "falconry"), Facts("en", "fresh", "falconry")], 1)
    assert british is not None and british == english


def test_item_names_are_shown_unchanged(writer: Copywriter) -> None:
    facts = [Facts("en", slot, "falconry", ("Hawk Glove 3",)) for slot in ("for_you", "trending", "fresh", "buy_again")]
    texts = [copy.text for seed in range(4) for copy in writer.write(facts, seed) if copy]
    assert any("Hawk Glove 3" in text for text in texts), texts
    assert all("Hawk Glove 3" in text or "3" not in text for text in texts)


def test_no_token_splits_a_character_of_a_known_word(writer: Copywriter) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for of in topics()[0].values():
        for word in itertools.chain(*of["zh"].parts):
            assert all("\ufffd" not in tokenizer.decode([token]) for token in tokenizer.encode(word).ids), word


def test_the_model_fits_in_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10_000_000
