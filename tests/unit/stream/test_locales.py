"""One look-up of languages: RFC 4647 lookup, then basic filtering, then the shop's language, then the first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream.locales import LOCALES, choose_locale, locale_code, match_locale

TAGS = st.lists(
    st.sampled_from(("en", "de", "zh", "a", "x", "GB", "us", "Hant", "CN", "1996")), min_size=1, max_size=4
).map("-".join)


@pytest.mark.parametrize(
    ("wanted", "tags", "expected"),
    [
        # Lookup: the tag itself, then without its last subtags.
        ("en", ["de", "en"], "en"),
        ("en-GB", ["en", "en-US"], "en"),
        ("en-GB", ["en", "en-gb"], "en-gb"),
        ("zh-Hant-TW", ["zh-Hans", "zh-Hant", "zh"], "zh-Hant"),
        ("zh-Hant-CN-x-private1", ["zh-Hant-CN-x", "zh-Hant-CN"], "zh-Hant-CN"),
        ("zh-Hant-CN-x-private1-private2", ["zh", "zh-Hant-CN-x-private1"], "zh-Hant-CN-x-private1"),
        # Basic filtering: a tag that continues the range, or the range without its last subtags.
        ("en", ["de-DE", "en-US", "zh-CN"], "en-US"),
        ("en-GB", ["de-DE", "en-US", "en-AU"], "en-US"),
        ("zh-Hant-TW", ["zh-CN", "zh-Hant-HK"], "zh-Hant-HK"),
        ("de-de", ["de-1996", "de-DE-1996"], "de-DE-1996"),
        ("e", ["en"], None),
        ("en", ["eng", "e"], None),
        # A text for all languages.
        ("fr", ["de", ""], ""),
        ("fr", ["und", "de"], "und"),
        ("", ["en", ""], ""),
        ("", ["en"], None),
        # Spelling.
        ("ZH_cn", ["zh-CN"], "zh-CN"),
        ("en", ["EN_us"], "EN_us"),
        (" en ", ["en"], "en"),
        ("en-", ["en"], "en"),
        ("x-en", ["en"], None),
        ("fr", [], None),
    ],
)
def test_a_reader_gets_the_tag_that_fits(wanted: str, tags: list[str], expected: str | None) -> None:
    assert match_locale(wanted, tags) == expected


@pytest.mark.parametrize(
    ("wanted", "default", "tags", "expected"),
    [
        ("en", "zh", ["zh", "en-US"], "en-US"),
        ("fr", "zh", ["de", "zh-CN"], "zh-CN"),
        ("fr", "en", ["de", "it"], "de"),
        ("fr", "en", ["de", "en", ""], ""),
    ],
)
def test_without_a_fitting_tag_the_default_or_the_first_is_read(
    wanted: str, default: str, tags: list[str], expected: str
) -> None:
    assert choose_locale(wanted, default, tags) == expected


@given(TAGS, st.lists(TAGS, max_size=5))
def test_a_tag_is_found_if_and_only_if_one_has_the_language(wanted: str, tags: list[str]) -> None:
    found = match_locale(wanted, tags)
    languages = [tag.lower().split("-")[0] for tag in tags]
    language = wanted.lower().split("-")[0]
    if len(language) > 1:
        assert (found is not None) == (language in languages)
    if found is not None:
        assert found in tags and found.lower().split("-")[0] == language
    assert match_locale(wanted.upper().replace("-", "_"), tags) == found
    if wanted in tags:
        assert found is not None and found.lower() == wanted.lower()


@given(TAGS, st.lists(TAGS, max_size=5))
def test_lookup_comes_before_filtering(wanted: str, tags: list[str]) -> None:
    """Section 3.4 of RFC 4647, with a single range and without a default, as its text has it."""
    subtags, expected = wanted.lower().split("-"), None
    while subtags and expected is None:
        expected = next((tag for tag in tags if tag.lower().split("-") == subtags), None)
        subtags.pop()
        if subtags and len(subtags[-1]) == 1:
            subtags.pop()
    if expected is not None:
        assert match_locale(wanted, tags) == expected


@given(st.text())
def test_any_text_has_a_locale_code(text: str) -> None:
    assert 0 <= locale_code(text) < len(LOCALES)


def test_a_locale_code_depends_on_the_language_only() -> None:
    texts = ("en", "en-GB", "zh_CN", "ZH", "en-US,en;q=0.9", "de", "", None, "eng")
    assert [locale_code(text) for text in texts] == [1, 1, 2, 2, 1, 0, 0, 0, 0]
