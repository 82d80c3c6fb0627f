"""Logins by client certificate and by token, and brokers at IPv6 addresses, against Kafka."""

import asyncio
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from deploy.broker.embedded import Broker, free_port
from stream.kafka import topics
from stream.kafka.client.connection import NoBroker
from stream.kafka.global_topics import read_topic
from stream.settings import Settings
from tests.harness.certificates import authority, encrypted, needs_openssl
from tests.harness.counting import scenario, send
from tests.harness.token_endpoint import CLIENT_ID, CLIENT_SECRET, TokenEndpoint, token_endpoint
from tests.harness.tracing import Trace, needs_strace, traced
from tests.harness.worker_process import PRIVATE, ROOT, clicks, environ_of, settings_for, until_counted, worker

KEY_PASSWORD = "open sesame"
SESSION_S = 2.0  # of the listener SHORT, on which a login is valid for at most this long
LISTENERS = {
    "MUTUAL": ("127.0.0.1", "SSL"),
    "TOKEN": ("[::1]", "SASL_PLAINTEXT"),
    "SHORT": ("[::1]", "SASL_PLAINTEXT"),
}
MAYBE = "requires or refuses the"  # in the sentence if the broker's alert got lost when it closed the connection
pytestmark = needs_openssl


def configuration(folder: Path, ports: dict[str, int]) -> str:
    """Lines of server.properties: listeners that require a client certificate, or an unsigned token."""
    places = ",".join(f"{name}://{host}:{ports[name]}" for name, (host, _) in LISTENERS.items())
    lines = [
        f"listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}},{places}",
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},{places}",
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        + ",".join(f"{name}:{protocol}" for name, (_, protocol) in LISTENERS.items()),
        "sasl.enabled.mechanisms=OAUTHBEARER",
        "listener.name.mutual.ssl.client.auth=required",
        "listener.name.mutual.ssl.keystore.type=PEM",
        f"listener.name.mutual.ssl.keystore.location={folder}/broker.pem",
        "listener.name.mutual.ssl.truststore.type=PEM",
        f"listener.name.mutual.ssl.truststore.location={folder}/client.crt",
        f"listener.name.short.oauthbearer.connections.max.reauth.ms={SESSION_S * 1000:.0f}",
    ]
    for name in ("token", "short"):
        lines.append(
            f"listener.name.{name}.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer."
            'OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker" '
            'unsecuredValidatorRequiredScope="kafka";'
        )
    return "\n" + "\n".join(lines) + "\n"


class Kafka(NamedTuple):
    plain: str  # host:port of the listener without a login
    folder: Path  # of the certificates
    ports: dict[str, int]  # by listener

    def settings(self, listener: str, **more: Any) -> Settings:
        host, protocol = LISTENERS[listener]
        place = settings_for(f"{host}:{self.ports[listener]}", f"{listener}-", partitions=1)
        return dataclasses.replace(place, security_protocol=protocol, **more)

    def with_certificate(self, name: str = "client", **more: Any) -> Settings:
        """Settings that know the client certificate `name`."""
        files = {"ssl_ca_file": self.folder / "broker.crt", "ssl_cert_file": self.folder / f"{name}.crt",
                 "ssl_key_file": self.folder / f"{name}.encrypted", "ssl_key_password": KEY_PASSWORD}  # fmt: skip
        return self.settings("MUTUAL", **(files | more))

    def with_tokens(self, endpoint: TokenEndpoint, listener: str = "TOKEN", **more: Any) -> Settings:
        """Settings that know the client of the token endpoint."""
        client = {"sasl_mechanism": "OAUTHBEARER", "oauth_token_url": endpoint.url, "oauth_client_id": CLIENT_ID,
                  "oauth_client_secret": CLIENT_SECRET}  # fmt: skip
        return self.settings(listener, **(client | more))


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    folder, ports = tmp_path_factory.mktemp("certificates"), {name: free_port() for name in LISTENERS}
    authority(folder, "broker")
    for name in ("client", "stranger"):
        authority(folder, name)
        encrypted(folder / f"{name}.key", KEY_PASSWORD)
    with Broker(extra=configuration(folder, ports)) as broker:
        yield Kafka(broker.bootstrap, folder, ports)


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with token_endpoint() as running:
        yield running


@scenario
async def test_a_worker_counts_each_event_once_while_its_logins_end_again_and_again(
    kafka: Kafka, endpoint: TokenEndpoint
) -> None:
    endpoint.lifetime = SESSION_S
    settings = kafka.with_tokens(
        endpoint, "SHORT", oauth_scope="kafka", oauth_audience="brokers", web_host="::1", oauth_extensions="trace=1"
    )
    here = dataclasses.replace(settings, broker=f"kafka://{kafka.plain}", security_protocol="PLAINTEXT")
    await topics.create(here)
    with worker(settings) as running:
        await running.ready()
        logins, counted = len(endpoint.forms), 0
        # The worker asks for a token when a session has ended, and its last token too.
        while len(endpoint.forms) < logins + 3:
            await send(here, "clicks", clicks(20, 5, first=counted))
            counted += 20
            await until_counted(here, counted)
        found = await running.wait_for_output(r"metrics at (http://\[::1\]:\d+)/metrics")
        async with aiohttp.ClientSession(found[1]) as session, session.get("/readyz") as answer:
            assert answer.status == 200, await answer.text()
    assert running.output().count("shopwindow: ready") == 1, "the end of a session is no rebalance"
    assert endpoint.forms[-1] == {"grant_type": "client_credentials", "scope": "kafka", "audience": "brokers"}


@scenario
async def test_a_client_certificate_whose_key_is_encrypted_is_a_login(kafka: Kafka) -> None:
    settings = kafka.with_certificate()
    await topics.create(settings)
    await send(settings, "clicks", clicks(40, 3))
    assert len([record async for record in read_topic(settings, "clicks")]) == 40


def refusal(settings: Settings) -> str:
    """The sentence by which a client reports that it cannot connect."""
    with pytest.raises(NoBroker) as raised:
        asyncio.run(topics.check(settings))
    sentence = str(raised.value)
    assert "\n" not in sentence and not PRIVATE.search(sentence)
    return sentence


def test_a_broker_that_misses_a_client_certificate_is_named(kafka: Kafka) -> None:
    settings = kafka.with_certificate(ssl_cert_file=None, ssl_key_file=None)
    sentence = refusal(settings)
    assert re.search(f"(requires a|{MAYBE}) client certificate.*SHOPWINDOW_SSL_CERT_FILE", sentence), sentence


def test_a_refused_client_certificate_is_named(kafka: Kafka) -> None:
    sentence = refusal(kafka.with_certificate("stranger"))
    assert re.search(rf"refuses the client certificate '.*stranger\.crt'|{MAYBE} client certificate", sentence), (
        sentence
    )


def test_a_refused_client_secret_is_reported_with_its_endpoint(kafka: Kafka, endpoint: TokenEndpoint) -> None:
    sentence = refusal(kafka.with_tokens(endpoint, oauth_client_secret="a secretly guessed one"))
    assert sentence == (
        f"no login to Kafka at [::1]:{kafka.ports['TOKEN']}: the token endpoint {endpoint.url} refuses the client "
        f"'{CLIENT_ID}' (401, invalid_client); check SHOPWINDOW_OAUTH_CLIENT_ID and SHOPWINDOW_OAUTH_CLIENT_SECRET"
    )


def test_a_token_endpoint_that_is_down_is_reported(kafka: Kafka) -> None:
    with token_endpoint() as ended:
        settings = kafka.with_tokens(ended)
    assert f"the token endpoint {ended.url} does not answer (Connection refused); start it" in refusal(settings)


def test_a_token_that_the_broker_refuses_is_reported(kafka: Kafka, endpoint: TokenEndpoint) -> None:
    endpoint.scope = "other"
    sentence = refusal(kafka.with_tokens(endpoint))
    assert f"refuses the token that {endpoint.url} gave to '{CLIENT_ID}'; check SHOPWINDOW_OAUTH_SCOPE" in sentence


@needs_strace
def test_a_login_by_token_contacts_the_broker_and_the_token_endpoint_only(
    kafka: Kafka, endpoint: TokenEndpoint, tmp_path: Path
) -> None:
    settings = environ_of(kafka.with_tokens(endpoint, data_dir=tmp_path))
    environ = {name: value for name, value in settings.items() if name.startswith("SHOPWINDOW_")}
    arguments = [sys.executable, "-m", "shopwindow", "topics", "create"]
    trace = traced(arguments, tmp_path, [tmp_path, ROOT / ".cache"], **environ)
    assert trace == Trace(0, set(), set()), f"{trace}\n{trace.output}"
    assert endpoint.forms
