"""A cluster that requires TLS and a password: clients connect with both, and otherwise get a clear error."""

import asyncio
import dataclasses
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deploy.broker.embedded import Broker, free_port
from stream.kafka import topics
from stream.kafka.client.connection import NoBroker
from stream.settings import Settings
from tests.harness.certificates import authority, expired, needs_openssl
from tests.harness.counting import scenario, send
from tests.harness.shop import item
from tests.harness.worker_process import PRIVATE, clicks, command, mixed_clicks, settings_for, until_counted, worker

LISTENERS = ("SECURE", "EXPIRED", "ELSEWHERE")  # each with its own certificate
PASSWORD = "open sesame"
pytestmark = needs_openssl


def configuration(folder: Path, ports: dict[str, int]) -> str:
    """Lines of server.properties: a listener for each certificate, with PLAIN and SCRAM logins."""
    places = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    login = f'required user_shop="{PASSWORD}";'
    lines = [
        f"listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}},{places}",
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},{places}",
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
        + ",".join(f"{name}:SASL_SSL" for name in ports),
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
    ]
    for name in map(str.lower, ports):
        at = f"listener.name.{name}"
        lines += [
            f"{at}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule {login}",
            f"{at}.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
            f"{at}.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
            f"{at}.ssl.keystore.type=PEM",
            f"{at}.ssl.keystore.location={folder}/{name}.pem",
        ]
    return "\n" + "\n".join(lines) + "\n"


class Secured(NamedTuple):
    folder: Path  # of the certificates
    ports: dict[str, int]  # by listener

    def settings(self, listener: str = "SECURE", **more: Any) -> Settings:
        """Settings that trust the listener's certificate and know the password."""
        values = {"security_protocol": "SASL_SSL", "ssl_ca_file": self.folder / f"{listener.lower()}.crt",
                  "sasl_username": "shop", "sasl_password": PASSWORD, **more}  # fmt: skip
        return dataclasses.replace(settings_for(f"127.0.0.1:{self.ports[listener]}", "secure-"), **values)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder, ports = tmp_path_factory.mktemp("certificates"), {name: free_port() for name in LISTENERS}
    authority(folder, "secure")
    authority(folder, "elsewhere", "DNS:kafka.example")
    expired(folder, "expired")
    with Broker(extra=configuration(folder, ports), users={"shop": PASSWORD}):
        yield Secured(folder, ports)


@scenario
async def test_every_command_and_the_worker_connect_with_tls_and_a_password(secured: Secured) -> None:
    settings = secured.settings(prefix="plain-", app_id="plain", partitions=1, log_level="DEBUG")
    assert command(settings, "topics", "create").returncode == 0
    shop = b"\n".join(item(f"i{k}")[1] for k in range(50)).decode()
    assert "loaded 50 items" in command(settings, "catalog", "load", "-", input=shop).stdout
    events = b"\n".join(value for _, value in mixed_clicks(random.Random(1), 60, 3) if value).decode()
    assert "sent 60 events" in command(settings, "send", "-", input=events).stdout
    with worker(settings), worker(dataclasses.replace(settings, role="copy", copy=True)) as writer:
        await until_counted(settings, 60)
        await writer.ready()
    assert "3 profiles" in command(settings, "profiles").stdout
    shown = command(settings, "settings").stdout
    assert "***" in shown and PASSWORD not in shown


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
@scenario
async def test_a_worker_logs_in_by_scram(secured: Secured, mechanism: str) -> None:
    settings = secured.settings(sasl_mechanism=mechanism, prefix=mechanism, app_id=mechanism, partitions=1)
    await topics.create(settings)
    await send(settings, "clicks", clicks(60, 3))
    with worker(settings):
        await until_counted(settings, 60)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the password": (
        {"sasl_password": "a secretly guessed one"},
        r"refuses the user 'shop' or the password by PLAIN; check SHOPWINDOW_SASL_USERNAME and "
        r"SHOPWINDOW_SASL_PASSWORD",
    ),
    "the password, by SCRAM": (
        {"sasl_password": "a secretly guessed one", "sasl_mechanism": "SCRAM-SHA-512"},
        r"refuses the user 'shop' or the password by SCRAM-SHA-512; check SHOPWINDOW_SASL_USERNAME",
    ),
    "the authority": (
        {"ssl_ca_file": "stranger.crt"},
        r"is not signed by '.*stranger\.crt'; name the file of the authority that signed it in SHOPWINDOW_SSL_CA_FILE",
    ),
    "no file of an authority": (
        {"ssl_ca_file": None},
        r"is not signed by the authorities of this system; name the file .* in SHOPWINDOW_SSL_CA_FILE",
    ),
    "a file that holds no certificate": (
        {"ssl_ca_file": "index"},
        r"SHOPWINDOW_SSL_CA_FILE '.*index' holds no certificate in PEM",
    ),
    "an expired certificate": ({"listener": "EXPIRED"}, r"the certificate of [\d.:]+ has expired; renew it on that"),
    "a certificate for another host": (
        {"listener": "ELSEWHERE"},
        r"the certificate of [\d.:]+ is for another name \(.*127\.0\.0\.1.*\); write the name that it is for in SHOPW",
    ),
    "no TLS": (
        {"security_protocol": "PLAINTEXT"},
        r"closes the connection; check that it speaks PLAINTEXT \(SHOPWINDOW_",
    ),
    "TLS and no password": (
        {"security_protocol": "SSL"},
        r"closes the connection; check that it speaks SSL \(SHOPWINDOW_",
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_refused_client_raises_one_sentence_with_a_solution(secured: Secured, wrong: str) -> None:
    changed, sentence = REFUSED[wrong]
    if "ssl_ca_file" in changed:
        authority(secured.folder, "stranger")
        name = changed["ssl_ca_file"]
        changed = {"ssl_ca_file": secured.folder / name if name else None}
    with pytest.raises(NoBroker, match=sentence) as raised:
        asyncio.run(topics.check(secured.settings(**changed)))
    assert "\n" not in str(raised.value) and not PRIVATE.search(str(raised.value))


@pytest.mark.parametrize("wrong", ["the password", "an expired certificate"])
def test_a_refused_worker_exits_with_that_sentence(secured: Secured, wrong: str) -> None:
    changed, sentence = REFUSED[wrong]
    refused = command(secured.settings(**changed), "worker")
    assert refused.returncode == 1, refused
    (line,) = refused.stderr.strip().splitlines()
    assert line.startswith("shopwindow: the worker stopped: ") and re.search(sentence, line), line
    assert not PRIVATE.search(line)
