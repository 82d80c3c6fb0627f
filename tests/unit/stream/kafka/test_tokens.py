"""Tokens of an OpenID provider and of AWS: requested once, renewed in time, and clear errors."""

import asyncio
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream.kafka.client import tokens
from stream.kafka.client.connection import NoBroker, client_options, faust_credentials
from stream.kafka.client.tokens import CachedTokens, ClientCredentials, Token, TokenUnavailable, request_token
from stream.settings import Settings
from tests.harness.token_endpoint import CLIENT_ID, CLIENT_SECRET, TokenEndpoint, token_endpoint


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with token_endpoint() as running:
        yield running


def credentials(url: str, **more: Any) -> ClientCredentials:
    values = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET, "scope": None, "audience": None, "ca_file": None}
    return ClientCredentials(url, **(values | more))


class Clock:
    """The monotonic clock of `tokens`, which a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(tokens, "monotonic", lambda: self.now)


class Provider:
    """A source of numbered tokens that may fail; `cached` caches them."""

    def __init__(self, lifetime: float) -> None:
        self.lifetime, self.requests = lifetime, 0
        self.failure: str | None = None
        self.cached = CachedTokens(self.request)

    def request(self) -> Token:
        self.requests += 1
        if self.failure:
            raise TokenUnavailable(self.failure)
        return Token(f"t{self.requests}", self.lifetime)

    def token(self) -> str:
        return asyncio.run(self.cached.token())


def test_a_token_is_used_again_until_most_of_its_lifetime_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, provider = Clock(monkeypatch), Provider(100.0)
    assert provider.token() == "t1"
    clock.now += 79
    assert provider.token() == "t1"
    clock.now += 2
    assert provider.token() == "t2"


def test_a_token_without_a_lifetime_is_used_for_one_connection() -> None:
    provider = Provider(0.0)
    assert [provider.token(), provider.token()] == ["t1", "t2"]


def test_a_token_is_used_until_its_end_if_it_cannot_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, provider = Clock(monkeypatch), Provider(100.0)
    provider.token()
    provider.failure = "the endpoint is down"
    clock.now += 90
    assert provider.token() == "t1"
    clock.now += 11
    with pytest.raises(TokenUnavailable, match="the endpoint is down"):
        provider.token()
    provider.failure = None
    clock.now += tokens.RETRY_S
    assert provider.token() == "t4"


def test_many_connections_cause_one_failed_request(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, provider = Clock(monkeypatch), Provider(100.0)
    provider.failure = "the endpoint is down"
    for _ in range(5):
        with pytest.raises(TokenUnavailable):
            provider.token()
    assert provider.requests == 1
    clock.now += tokens.RETRY_S
    with pytest.raises(TokenUnavailable):
        provider.token()
    assert provider.requests == 2


def test_connections_on_two_event_loops_share_one_request() -> None:
    provider = Provider(100.0)
    both_wait = threading.Barrier(2)

    def ask() -> None:
        both_wait.wait()
        found.append(provider.token())

    found: list[str] = []
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["t1", "t1"] and provider.requests == 1


def test_a_token_that_a_broker_refuses_is_replaced_unless_it_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, provider = Clock(monkeypatch), Provider(100.0)
    provider.token()
    provider.cached.discard()
    assert provider.token() == "t1"
    clock.now += tokens.DISCARD_AGE_S + 1
    provider.cached.discard()
    assert provider.token() == "t2"


def test_a_request_has_the_form_of_the_client_credentials_grant(endpoint: TokenEndpoint) -> None:
    token = request_token(credentials(endpoint.url, scope="kafka offline", audience="https://kafka"))
    assert token.lifetime == endpoint.lifetime and token.value.count(".") == 2
    assert endpoint.forms == [
        {"grant_type": "client_credentials", "scope": "kafka offline", "audience": "https://kafka"}
    ]


GIVEN = b'{"access_token": "abc.def-_~+/==", "token_type": "bearer", "expires_in": %s}'


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [(b"3600", 3600.0), (b'"300"', 300.0), (b"null", 0.0), (b'"soon"', 0.0), (b"-5", 0.0), (b'"inf"', 0.0)],
)
def test_a_lifetime_is_a_number_or_unknown(endpoint: TokenEndpoint, expires_in: bytes, lifetime: float) -> None:
    endpoint.answer = 200, GIVEN % expires_in
    assert request_token(credentials(endpoint.url)) == Token("abc.def-_~+/==", lifetime)


REFUSALS = {
    "a wrong secret": (401, b"", r"refuses the client 'shop: 1' \(401\); check SHOPWINDOW_OAUTH_CLIENT_ID and"),
    "an unknown client": (400, b'{"error": "invalid_client"}', r"refuses the client .*\(400, invalid_client\)"),
    "a wrong scope": (400, b'{"error": "invalid_scope"}', r"\(400, invalid_scope\); check SHOPWINDOW_OAUTH_SCOPE and"),
    "an unknown path": (404, b"<html>secretly", r"is no token endpoint \(404\); check SHOPWINDOW_OAUTH_TOKEN_URL"),
    "a redirect": (302, b"", r"is no token endpoint \(302\)"),
    "an internal error": (503, b'{"error": ["secretly"]}', r"is out of order \(503\); look at its log"),
    "too many requests": (429, b"null", r"is out of order \(429\)"),
    "an answer without a token": (200, b'{"id_token": "secretly"}', r"has no access_token; check SHOPWINDOW_OAUTH_TO"),
    "an answer that is no JSON": (200, b"\xff secretly", r"has no access_token"),
    "an answer that is deeply nested": (200, b'{"x": ' + b"[" * 100_000, r"has no access_token"),
    "an answer that is no object": (200, b'["secretly"]', r"has no access_token"),
    "a token of another type": (200, b'{"access_token": "secretly", "token_type": "mac"}', r"is no bearer token"),
    "a token with control characters": (200, b'{"access_token": "secretly\\u0001auth=x"}', r"is no bearer token"),
}


@pytest.mark.parametrize("wrong", REFUSALS)
def test_a_refused_request_raises_one_sentence_without_the_secret(endpoint: TokenEndpoint, wrong: str) -> None:
    status, body, sentence = REFUSALS[wrong]
    endpoint.answer = status, body
    with pytest.raises(TokenUnavailable, match=sentence) as raised:
        request_token(credentials(endpoint.url))
    message = str(raised.value)
    assert endpoint.url in message and "\n" not in message
    assert "secretly" not in message and CLIENT_SECRET not in message


def test_an_endpoint_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REQUEST_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/token"
        with pytest.raises(TokenUnavailable, match=f"the token endpoint {url} has not answered for 0 s"):
            request_token(credentials(url))


def test_a_file_without_an_authority_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.touch()
    with pytest.raises(TokenUnavailable, match=r"SHOPWINDOW_OAUTH_CA_FILE '.*ca\.pem' holds no certificate in PEM"):
        request_token(credentials("https://127.0.0.1:1/token", ca_file=empty))


def login(mechanism: str, **more: Any) -> Settings:
    return Settings(broker="kafka://b:1", security_protocol="SASL_PLAINTEXT", sasl_mechanism=mechanism, **more)


def test_all_clients_of_a_process_share_their_tokens_and_extensions() -> None:
    settings = login(
        "OAUTHBEARER", oauth_token_url="http://idp/token", oauth_client_id="shop", oauth_client_secret="x",
        oauth_extensions="logicalCluster=lkc-1,identityPoolId=pool=2",
    )  # fmt: skip
    options, again = client_options(settings), client_options(settings)
    provider = options["sasl_oauth_token_provider"]
    assert options["sasl_mechanism"] == "OAUTHBEARER" and provider is again["sasl_oauth_token_provider"]
    assert faust_credentials(settings).oauth_cb is provider  # type: ignore[union-attr]
    assert provider.extensions() == {"logicalCluster": "lkc-1", "identityPoolId": "pool=2"}


def test_tokens_for_msk_are_signed_by_the_package_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    signer: Any = types.ModuleType("MSKAuthTokenProvider")
    signer.generate_auth_token = lambda region: (f"signed-for-{region}", (time.time() + 900) * 1000)
    package: Any = types.ModuleType(tokens.MSK_SIGNER)
    package.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, tokens.MSK_SIGNER, package)
    monkeypatch.setitem(sys.modules, f"{tokens.MSK_SIGNER}.MSKAuthTokenProvider", signer)
    options = client_options(login("AWS_MSK_IAM", aws_region="eu-test-1"))
    assert options["sasl_mechanism"] == "OAUTHBEARER"
    assert asyncio.run(options["sasl_oauth_token_provider"].token()) == "signed-for-eu-test-1"
    token = tokens.sign_msk_token("eu-test-1")
    assert 890 < token.lifetime <= 900

    def no_credentials(region: str) -> None:
        raise KeyError("no credentials")

    signer.generate_auth_token = no_credentials
    with pytest.raises(
        TokenUnavailable, match=r"AWS signs no token for MSK in 'eu-test-1' \(KeyError: .*\); check the"
    ):
        tokens.sign_msk_token("eu-test-1")


@pytest.mark.parametrize(
    ("mechanism", "package", "more"),
    [("AWS_MSK_IAM", r"aws-msk-iam-sasl-signer-python", {"aws_region": "r"}), ("GSSAPI", "gssapi", {})],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    mechanism: str, package: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.kafka.client.connection.find_spec", lambda name: None)
    monkeypatch.setattr("stream.kafka.client.connection.KERBEROS_PACKAGE", None)
    for connect in (client_options, faust_credentials):
        with pytest.raises(NoBroker, match=rf"is {mechanism}, which needs the package {package}.*pip install 'shopw"):
            connect(login(mechanism, **more))
