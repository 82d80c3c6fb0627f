"""A cluster that wants TLS and a password: every client comes in with both, and without them is told what is wrong."""

import dataclasses
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.broker import Broker, free_port
from stream.settings import Settings
from tests.counting import scenario
from tests.shopwindow import clicks, command, settings_for, until_counted, worker
from tests.unit.shop import item

SECURE = """
listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}},SECURE://127.0.0.1:{secure}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
sasl.enabled.mechanisms=PLAIN
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_shop="open sesame";
ssl.keystore.type=PEM
ssl.keystore.location={folder}/server.pem
"""
pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not here to make certificates with")


def authority(folder: Path, name: str) -> Path:
    """A certificate for 127.0.0.1 that is its own authority -> its PEM file; the key lies beside it."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / f"{name}.crt"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings that are let in."""
    folder, port = tmp_path_factory.mktemp("certificates"), free_port()
    trusted = authority(folder, "server")
    (folder / "server.pem").write_bytes((folder / "server.key").read_bytes() + trusted.read_bytes())
    with Broker(extra=SECURE.format(secure=port, folder=folder)):
        yield dataclasses.replace(
            settings_for(f"127.0.0.1:{port}", "secure-"), security_protocol="SASL_SSL", ssl_ca_file=trusted,
            sasl_username="shop", sasl_password="open sesame",
        )  # fmt: skip


@scenario
async def test_every_command_and_the_worker_come_in_with_tls_and_a_password(secured: Settings) -> None:
    assert command(secured, "topics", "create").returncode == 0
    shop = b"\n".join(item(f"i{k}")[1] for k in range(50)).decode()
    assert "loaded 50 items" in command(secured, "catalog", "load", "-", input=shop).stdout
    events = b"\n".join(value for _, value in clicks(60, 3) if value).decode()
    assert "sent 60 events" in command(secured, "send", "-", input=events).stdout
    with worker(secured):
        await until_counted(secured, 60)
    assert "3 profiles" in command(secured, "profiles").stdout
    shown = command(secured, "settings").stdout
    assert "***" in shown and "open sesame" not in shown


def test_who_is_not_let_in_is_told_so_in_one_sentence(secured: Settings, tmp_path: Path) -> None:
    for wrong in (
        dataclasses.replace(secured, sasl_password="guessed"),
        dataclasses.replace(secured, ssl_ca_file=authority(tmp_path, "somebody-else")),
        dataclasses.replace(secured, security_protocol="PLAINTEXT"),
    ):
        for arguments in (["topics", "check"], ["worker"]):
            refused = command(wrong, *arguments)
            assert refused.returncode == 1, refused
            (line,) = refused.stderr.strip().splitlines()
            assert line.startswith("shopwindow: ") and "SHOPWINDOW_BROKER" in line and "guessed" not in line, line
