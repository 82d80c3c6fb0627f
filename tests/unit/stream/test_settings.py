"""Settings: parsing, clear errors, and masked secrets."""

import dataclasses
from pathlib import Path

import pytest

from stream.settings import Settings, SettingsError, describe, load, secrets_of, to_environ


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


SECRETS = ("SASL_PASSWORD", "SSL_KEY_PASSWORD", "OAUTH_CLIENT_SECRET")


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_be_in_a_file(secret: str, end: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(f" hunter2\n{end}".encode())
    environ = {f"SHOPWINDOW_{secret}_FILE": str(file)}
    settings = load(environ)
    assert getattr(settings, secret.lower()) == (" hunter2\n" if end else " hunter2")
    rows = {row.name: row for row in describe(settings, environ)}
    assert rows[f"SHOPWINDOW_{secret}"].value == "***" and rows[f"SHOPWINDOW_{secret}"].source == "file"
    assert not any("hunter2" in field for row in rows.values() for field in row)
    assert secrets_of(settings) == [getattr(settings, secret.lower())]


def test_every_secret_may_be_in_a_file() -> None:
    assert {f.name.upper() for f in dataclasses.fields(Settings) if f.metadata["secret"]} == set(SECRETS)
    for setting in dataclasses.fields(Settings):
        if not setting.metadata["secret"]:
            assert not any(setting.name.upper() == f"{secret}_FILE" for secret in SECRETS)


def test_a_secret_is_not_both_a_value_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2")
    with pytest.raises(SettingsError) as raised:
        load({"SHOPWINDOW_SASL_PASSWORD": "hunter3", "SHOPWINDOW_SASL_PASSWORD_FILE": str(file)})
    assert str(raised.value) == (
        "SHOPWINDOW_SASL_PASSWORD and SHOPWINDOW_SASL_PASSWORD_FILE are both set; unset one of them"
    )


BAD_FILES = {
    "missing": ("", "No such file or directory"),
    "empty": (b"\n", "empty"),
    "binary": (b"\xffhunter2", "not text in UTF-8"),
    "large": (b"hunter2" * 10_000, "larger than 65536 bytes"),
    "folder": (None, "not a regular file"),
}


@pytest.mark.parametrize("wrong", BAD_FILES)
def test_a_file_without_a_secret_is_named_but_not_shown(wrong: str, tmp_path: Path) -> None:
    content, reason = BAD_FILES[wrong]
    file = tmp_path / "secret"
    if content is None:
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        load({"SHOPWINDOW_SASL_PASSWORD_FILE": str(file)})
    assert str(raised.value) == (
        f"SHOPWINDOW_SASL_PASSWORD_FILE is '{file}', expected a file that holds the secret ({reason})"
    )


def test_a_file_of_what_is_no_secret_is_not_a_setting() -> None:
    with pytest.raises(SettingsError, match="SHOPWINDOW_APP_ID_FILE is not a setting"):
        load({"SHOPWINDOW_APP_ID_FILE": "/x"})
    with pytest.raises(SettingsError, match="SHOPWINDOW_SASL_PASSWORD_FILE is empty, expected the path"):
        load({"SHOPWINDOW_SASL_PASSWORD_FILE": ""})


def test_a_child_process_reads_the_same_settings_whatever_its_parent_has(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hunter2\n")
    environ = {
        "PATH": "/bin", "SHOPWINDOW_CACHE": "/c", "SHOPWINDOW_SASL_PASSWORD_FILE": str(file), "SHOPWINDOW_COPY": "no",
        "SHOPWINDOW_SASL_USERNAME": "shop", "SHOPWINDOW_SECURITY_PROTOCOL": "SASL_SSL",
    }  # fmt: skip
    settings = dataclasses.replace(load(environ), security_protocol="PLAINTEXT", web_port=0)
    handed_on = to_environ(settings, environ)
    assert load(handed_on) == settings
    assert handed_on["PATH"] == "/bin" and handed_on["SHOPWINDOW_CACHE"] == "/c"
    assert "SHOPWINDOW_SASL_PASSWORD_FILE" not in handed_on
