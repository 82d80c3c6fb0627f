"""Settings: parsing, clear errors, and masked secrets."""

from pathlib import Path

import pytest

from stream.settings import SettingsError, describe, load


def test_settings_have_defaults() -> None:
    settings = load({"HOME": "/x"})
    assert (settings.broker, settings.partitions, settings.copy_top_p) == (None, 8, 0.95)


def test_values_are_parsed_to_their_types() -> None:
    settings = load(
        {
            "SHOPWINDOW_BROKER": "kafka://a:1,b:2",
            "SHOPWINDOW_COPY": "no",
            "SHOPWINDOW_PAGE_TTL": "60",
            "SHOPWINDOW_DATA_DIR": "/d",
        }
    )
    assert settings.broker == "kafka://a:1,b:2"
    assert settings.copy is False
    assert settings.page_ttl == 60.0
    assert settings.data_dir == Path("/d")


def test_errors_name_each_invalid_value_and_the_expected_one() -> None:
    with pytest.raises(SettingsError) as error:
        load({"SHOPWINDOW_PARTITIONS": "many", "SHOPWINDOW_EXPLORE": "maybe", "SHOPWINDOW_BROKER": "http://x/y"})
    message = str(error.value)
    assert "SHOPWINDOW_PARTITIONS is 'many', expected a whole number from 1 to 4096" in message
    assert "SHOPWINDOW_EXPLORE is 'maybe', expected true or false" in message
    assert "SHOPWINDOW_BROKER is 'http://x/y'" in message


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e999", ""])
def test_a_number_out_of_range_is_rejected(value: str) -> None:
    with pytest.raises(SettingsError, match="SHOPWINDOW_PAGE_TTL"):
        load({"SHOPWINDOW_PAGE_TTL": value})


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(SettingsError, match="did you mean SHOPWINDOW_PARTITIONS"):
        load({"SHOPWINDOW_PARTITION": "8"})


def test_contradicting_settings_are_rejected() -> None:
    with pytest.raises(SettingsError) as error:
        load(
            {"SHOPWINDOW_SECURITY_PROTOCOL": "SASL_SSL", "SHOPWINDOW_HEARTBEAT": "5", "SHOPWINDOW_SSL_CA_FILE": "/none"}
        )
    for part in ("SASL_PASSWORD", "at most a third", "/none"):
        assert part in str(error.value)


def test_a_headline_worker_requires_headlines_to_be_enabled() -> None:
    assert load({"SHOPWINDOW_ROLE": "copy"}).role == "copy"
    with pytest.raises(SettingsError, match="SHOPWINDOW_ROLE is copy and SHOPWINDOW_COPY is false"):
        load({"SHOPWINDOW_ROLE": "copy", "SHOPWINDOW_COPY": "false"})
    with pytest.raises(SettingsError, match="SHOPWINDOW_ROLE is 'headlines', expected one of all, pages, copy"):
        load({"SHOPWINDOW_ROLE": "headlines"})


def test_described_settings_mask_secrets() -> None:
    environ = {"SHOPWINDOW_SASL_PASSWORD": "hunter2"}
    rows = {row.name: row for row in describe(load(environ), environ)}
    assert rows["SHOPWINDOW_SASL_PASSWORD"].value == "***"
    assert rows["SHOPWINDOW_SASL_PASSWORD"].source == "environment"
    assert not any("hunter2" in field for row in rows.values() for field in row)


def test_ignored_types_are_names_of_which_the_end_may_be_open() -> None:
    assert load({}).ignored_types == "ga4"
    assert load({"SHOPWINDOW_IGNORED_TYPES": " ga4, app_* ,,login"}).ignored_types == "ga4,app_*,login"
    assert load({"SHOPWINDOW_IGNORED_TYPES": ""}).ignored_types == ""
    with pytest.raises(SettingsError, match="expected names with commas between"):
        load({"SHOPWINDOW_IGNORED_TYPES": "*_opened"})
