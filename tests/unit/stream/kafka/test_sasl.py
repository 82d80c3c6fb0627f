"""Logins: what a mechanism needs, encrypted client keys, and Kerberos without a ticket."""

import asyncio
import types
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka import conn

from stream.kafka.client import connection, sasl
from stream.kafka.client.connection import NoBroker, client_options, faust_credentials
from stream.settings import Settings, SettingsError, load
from tests.harness.certificates import authority, encrypted, needs_openssl

KEY_PASSWORD = "open sesame"


@pytest.mark.parametrize(
    ("mechanism", "missing"),
    [
        ("SCRAM-SHA-512", "SHOPWINDOW_SASL_USERNAME and SHOPWINDOW_SASL_PASSWORD"),
        ("OAUTHBEARER", "SHOPWINDOW_OAUTH_TOKEN_URL and SHOPWINDOW_OAUTH_CLIENT_ID and SHOPWINDOW_OAUTH_CLIENT_SECRET"),
        ("AWS_MSK_IAM", "SHOPWINDOW_AWS_REGION"),
    ],
)
def test_a_mechanism_names_the_settings_that_it_needs(mechanism: str, missing: str) -> None:
    environ = {"SHOPWINDOW_SECURITY_PROTOCOL": "SASL_SSL", "SHOPWINDOW_SASL_MECHANISM": mechanism}
    with pytest.raises(SettingsError, match=f"SHOPWINDOW_SASL_MECHANISM is {mechanism}, which needs {missing}"):
        load(environ)


@pytest.mark.parametrize("url", ["idp/token", "ftp://idp/token", "https://shop:x@idp/token", "https://", "http://a:x/"])
def test_a_token_url_is_an_http_url_without_a_password(url: str) -> None:
    with pytest.raises(SettingsError, match="expected an http:// or https:// URL without a password"):
        load({"SHOPWINDOW_OAUTH_TOKEN_URL": url})
    assert load({"SHOPWINDOW_OAUTH_TOKEN_URL": "https://[::1]:8443/realms/a/token?x=1"}).oauth_token_url


@pytest.mark.parametrize("extensions", ["logicalCluster", "=x", "auth=x", "a1=x", "a=\x01", "a=x,", "a=é"])
def test_an_extension_has_a_name_and_a_value(extensions: str) -> None:
    with pytest.raises(SettingsError, match="expected name=value, several with commas between"):
        load({"SHOPWINDOW_OAUTH_EXTENSIONS": extensions})


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the certificate client.crt, its key client.key, and that key encrypted: client.encrypted."""
    folder = tmp_path_factory.mktemp("keys")
    authority(folder, "client")
    encrypted(folder / "client.key", KEY_PASSWORD)
    return folder


def with_key(folder: Path, key: str, password: str | None) -> Settings:
    return Settings(
        broker="kafka://b:1", security_protocol="SSL", ssl_cert_file=folder / "client.crt", ssl_key_file=folder / key,
        ssl_key_password=password,
    )  # fmt: skip


@needs_openssl
def test_an_encrypted_key_is_opened_with_its_password(keys: Path) -> None:
    assert client_options(with_key(keys, "client.encrypted", KEY_PASSWORD))["ssl_context"]
    assert client_options(with_key(keys, "client.key", "not needed"))["ssl_context"]
    assert isinstance(faust_credentials(with_key(keys, "client.encrypted", KEY_PASSWORD)), faust.SSLCredentials)


@needs_openssl
@pytest.mark.parametrize(
    ("password", "problem"),
    [(None, "is not set"), ("secretly guessed", "does not decrypt it"), ("x" * 2000, "does not decrypt it")],
)
def test_an_encrypted_key_without_its_password_is_reported_without_a_prompt(
    keys: Path, password: str | None, problem: str
) -> None:
    with pytest.raises(NoBroker) as raised:
        client_options(with_key(keys, "client.encrypted", password))
    key = keys / "client.encrypted"
    assert str(raised.value) == (
        f"the key in '{key}' is encrypted, and SHOPWINDOW_SSL_KEY_PASSWORD {problem}; set its password there, or name "
        "a file with it in SHOPWINDOW_SSL_KEY_PASSWORD_FILE"
    )


@needs_openssl
def test_a_key_of_another_certificate_is_reported(keys: Path, tmp_path: Path) -> None:
    authority(tmp_path, "other")
    with pytest.raises(NoBroker, match="hold no certificate and its key in PEM"):
        client_options(with_key(keys, str(tmp_path / "other.key"), None))
    with pytest.raises(SettingsError, match="SHOPWINDOW_SSL_KEY_FILE is set, which needs SHOPWINDOW_SSL_CERT_FILE"):
        load({"SHOPWINDOW_SSL_KEY_FILE": str(keys / "client.key")})


class GSSError(Exception):
    """The error of a Kerberos library."""


def without_ticket(*_: object, **__: object) -> Any:
    raise GSSError("Major (851968): Unspecified GSS failure.\nMinor: No Kerberos credentials available")


def test_a_kerberos_login_without_a_ticket_fails_with_the_librarys_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.SimpleNamespace(
        Name=without_ticket, NameType=types.SimpleNamespace(hostbased_service=1),
        exceptions=types.SimpleNamespace(GSSError=GSSError),
    )  # fmt: skip
    monkeypatch.setattr(conn, "gssapi", library)
    monkeypatch.setattr(sasl, "KERBEROS_PACKAGE", library)
    monkeypatch.setattr(connection, "KERBEROS_PACKAGE", library)
    settings = Settings(
        broker="kafka://b:1", security_protocol="SASL_PLAINTEXT", sasl_mechanism="GSSAPI", kerberos_service="kfk"
    )
    assert client_options(settings)["sasl_kerberos_service_name"] == "kfk"
    credentials = faust_credentials(settings)
    assert isinstance(credentials, faust.GSSAPICredentials) and credentials.kerberos_service_name == "kfk"

    async def log_in() -> None:
        made = conn.AIOKafkaConnection("b", 1, sasl_mechanism="GSSAPI", sasl_kerberos_service_name="kfk")
        await made.authenticator_gssapi().step(None)

    with pytest.raises(sasl.KerberosLoginFailed, match="No Kerberos credentials available") as raised:
        asyncio.run(log_in())
    assert "\n" not in str(raised.value)
