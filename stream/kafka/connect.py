"""How every client reaches the cluster: addresses, TLS and SASL from the settings, and which partition owns a key."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import faust
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2

if TYPE_CHECKING:
    from stream.settings import Settings


class NoBroker(RuntimeError):
    """Kafka does not answer, or refuses us; the message says where and what to do."""


def bootstrap(settings: Settings) -> list[str]:
    """`host:port` of each broker named in the settings.

    Raises NoBroker where none is set.
    """
    if not settings.broker:
        raise NoBroker(
            "no broker is set: start `shopwindow broker` or `shopwindow worker`, "
            "or set SHOPWINDOW_BROKER (for instance kafka://127.0.0.1:9092)"
        )
    hosts = [host.removeprefix("kafka://").strip() for host in settings.broker.split(",")]
    return [host if ":" in host else f"{host}:9092" for host in hosts if host]


def client_options(settings: Settings) -> dict[str, Any]:
    """Arguments that every aiokafka client takes: address, TLS, SASL."""
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap(settings),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password
    return options


def faust_credentials(settings: Settings) -> faust.SSLCredentials | faust.SASLCredentials | None:
    """The same for Faust, which wants objects of its own."""
    tls = _ssl_context(settings) if settings.security_protocol.endswith("SSL") else None
    if settings.security_protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.sasl_username,
            password=settings.sasl_password,
            ssl_context=tls,
            mechanism=settings.sasl_mechanism,
        )
    return faust.SSLCredentials(tls) if tls is not None else None


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(settings.ssl_ca_file) if settings.ssl_ca_file else None)
    if settings.ssl_cert_file:
        key_file = str(settings.ssl_key_file) if settings.ssl_key_file else None
        context.load_cert_chain(str(settings.ssl_cert_file), key_file)
    return context


@contextmanager
def connecting(settings: Settings) -> Iterator[None]:
    """Around a client's start: a broker that does not let us in becomes NoBroker, and only that is said.

    aiokafka logs each failed attempt besides.
    """
    log = logging.getLogger("aiokafka")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except (KafkaError, OSError) as error:
        hosts = ", ".join(bootstrap(settings))
        raise NoBroker(f"no Kafka answers at {hosts} ({error}); check SHOPWINDOW_BROKER") from error
    finally:
        log.setLevel(level)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that owns `key`: murmur2, as Kafka's own clients in every language choose it."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
