"""The copywriter: deterministic, guarded, and silent where it knows nothing."""

import itertools

import pytest

from models.copywriter import Copywriter, Facts, guard
from models.train.shoptext import TOPICS, samples
from stream.settings import SHIPPED_MODELS

FOLDER = SHIPPED_MODELS / "copywriter"
NAMES = {"kitchen": ["kitchenware", "pots and pans"], "lighting": ["lamps", "lighting"]}
NAMES_ZH = {"kitchen": ["厨具"], "lighting": ["灯具"]}


@pytest.fixture(scope="module")
def writer() -> Copywriter:
    return Copywriter(FOLDER)


def test_a_headline_is_the_same_for_the_same_facts_whoever_else_asks(writer: Copywriter) -> None:
    facts = [Facts("en", "for_you", "kitchen"), Facts("zh", "for_you", "lighting"), Facts("en", "trending", "")]
    together = writer.write(facts, 3)
    assert together == [writer.write([fact], 3)[0] for fact in facts]
    assert [copy.text for copy in together if copy] == [copy.text for copy in writer.write(facts, 3) if copy]


def test_more_segments_than_fit_at_once_get_the_headlines_that_each_gets_alone(writer: Copywriter) -> None:
    facts = [Facts("en", slot, category) for slot in ("for_you", "trending") for category in list(TOPICS)[:9]]
    facts += [Facts("zh", "fresh", category) for category in ("", *list(TOPICS)[:5])] + facts[:2]
    together = writer.write(facts, 5)
    assert together == [writer.write([fact], 5)[0] for fact in facts]
    assert together[-2:] == together[:2]


def test_nearly_every_segment_gets_a_headline_that_passes_the_guard(writer: Copywriter) -> None:
    facts = [Facts(locale, "for_you", category) for locale in ("en", "zh") for category in list(TOPICS)[::3]]
    copies = writer.write(facts, 11)
    assert sum(copy is not None for copy in copies) >= 0.8 * len(facts)
    for fact, copy in zip(facts, copies, strict=True):
        assert copy is None or guard(copy.text, fact, writer.names[fact.locale]) is None
    assert len({copy.text for copy in copies if copy}) > 0.8 * len(facts), "they are not all the same"


def test_what_was_not_learnt_is_left_to_the_template(writer: Copywriter) -> None:
    assert writer.write([Facts("en", "for_you", "submarines"), Facts("de", "for_you", "kitchen")], 1) == [None, None]


def test_the_model_fits_in_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10_000_000


@pytest.mark.parametrize(
    ("text", "locale", "category", "reason"),
    [
        ("Hand-picked kitchenware for home cooking", "en", "kitchen", None),
        ("为家庭聚餐挑选的厨具", "zh", "kitchen", None),
        ("Kitchenware at 20 euro", "en", "kitchen", "number or sign"),
        ("Kitchenware for free, today", "en", "kitchen", "claim"),
        ("The best kitchenware of the year", "en", "kitchen", "claim"),
        ("厨具限时特价", "zh", "kitchen", "claim"),
        ("为你精选的厨具 for you", "zh", "kitchen", "language"),
        ("Kitchenware 厨具", "en", "kitchen", "language"),
        ("Lovely things for you", "en", "kitchen", "off topic"),
        ("Kitchenware and lamps", "en", "kitchen", "speaks of lighting"),
        ("Kitchenware for", "en", "kitchen", "not a sentence"),
        ("Kitchenware for the the table", "en", "kitchen", "not a sentence"),
        ("Kitchenware for you,", "en", "kitchen", "not a sentence"),
        ("a", "en", "", "length"),
        ("x" * 200, "en", "", "length"),
        ("<b>Kitchenware</b>", "en", "kitchen", "number or sign"),
    ],
)
def test_the_guard_lets_through_only_what_was_given(text: str, locale: str, category: str, reason: str | None) -> None:
    assert guard(text, Facts(locale, "for_you", category), NAMES if locale == "en" else NAMES_ZH) == reason


def test_what_the_model_reads_passes_its_own_guard() -> None:
    names = {"en": {c: list(t.en) for c, t in TOPICS.items()}, "zh": {c: list(t.zh) for c, t in TOPICS.items()}}
    refused = [
        (sample, reason)
        for sample in itertools.islice(samples(3), 4000)
        if (reason := guard(sample.headline, Facts(sample.locale, sample.slot, sample.category), names[sample.locale]))
    ]
    assert len(refused) < 0.03 * 4000, refused[:5]
