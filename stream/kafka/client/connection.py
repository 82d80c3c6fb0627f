"""How every client reaches the cluster: addresses, TLS and SASL from the settings, and which partition owns a key."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import faust
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
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
    """Raises NoBroker where a file of the settings does not hold what it should."""
    ca, own, key = settings.ssl_ca_file, settings.ssl_cert_file, settings.ssl_key_file
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (ssl.SSLError, OSError) as error:
        raise NoBroker(f"SHOPWINDOW_SSL_CA_FILE '{ca}' holds no certificate in PEM ({error})") from error
    if own:
        try:
            context.load_cert_chain(str(own), str(key) if key else None)
        except (ssl.SSLError, OSError) as error:
            raise NoBroker(
                f"SHOPWINDOW_SSL_CERT_FILE '{own}' and SHOPWINDOW_SSL_KEY_FILE '{key or own}' hold no certificate and its "
                f"key in PEM ({error})"
            ) from error
    return context


class _Attempts:
    """Why each attempt to connect has failed: aiokafka logs the reasons, and raises only that there was one."""

    def __init__(self) -> None:
        self.open = True
        self.failed: list[tuple[str, BaseException]] = []  # host:port, error


_attempts: ContextVar[_Attempts | None] = ContextVar("attempts", default=None)


def _take_reason(record: logging.LogRecord) -> bool:
    """A filter of aiokafka's log: what is said while somebody connects goes to him alone."""
    attempts = _attempts.get()
    if attempts is None or not attempts.open:
        return True
    if isinstance(record.args, tuple) and len(record.args) == 3 and isinstance(record.args[2], BaseException):
        host, port, error = record.args
        assert isinstance(error, BaseException)
        attempts.failed.append((f"{host}:{port}", error))
    return False


# aiokafka.client logs as "aiokafka" itself.
for _name in ("aiokafka", "aiokafka.conn"):
    logging.getLogger(_name).addFilter(_take_reason)


@contextmanager
def connecting(settings: Settings) -> Iterator[None]:
    """Around a client's start: a broker that does not let us in becomes NoBroker, with the reason and what to do."""
    attempts = _Attempts()
    before = _attempts.set(attempts)
    try:
        yield
    except (KafkaError, OSError) as error:
        hosts = ", ".join(bootstrap(settings))
        # Where hosts fail for different reasons, one that let itself be spoken to knows most.
        told = sorted(attempts.failed, key=lambda failed: isinstance(failed[1], ConnectionRefusedError))
        host, reason = told[0] if told else (hosts, error)
        raise NoBroker(f"no Kafka answers at {hosts}: {_explained(settings, host, reason)}") from error
    finally:
        attempts.open = False
        _attempts.reset(before)


# OpenSSL's verdicts upon a certificate.
_NOT_YET, _EXPIRED, _OTHER_NAMES, _UNKNOWN_AUTHORITY = 9, 10, (62, 64), (2, 18, 19, 20, 21)


def _explained(settings: Settings, host: str, error: BaseException) -> str:
    """Why `host` (host:port) did not let us in, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return f"the certificate of {host} has expired; renew it on that broker"
        if error.verify_code == _NOT_YET:
            return f"the certificate of {host} is not valid yet; check the clocks of both machines"
        if error.verify_code in _OTHER_NAMES:
            return (
                f"the certificate of {host} is for another name ({error.verify_message}); write the name that it is for "
                "in SHOPWINDOW_BROKER, or have a certificate made for this one"
            )
        if error.verify_code in _UNKNOWN_AUTHORITY:
            authority = f"'{settings.ssl_ca_file}'" if settings.ssl_ca_file else "the authorities of this system"
            return (
                f"the certificate of {host} is not signed by {authority}; name the file of the authority that signed it "
                "in SHOPWINDOW_SSL_CA_FILE"
            )
        return f"the certificate of {host} is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (
            f"{host} does not agree to TLS ({error.reason or error}); check SHOPWINDOW_SECURITY_PROTOCOL and its port"
        )
    if isinstance(error, (SaslAuthenticationFailed, AuthenticationFailedError)):
        return (
            f"{host} refuses the user '{settings.sasl_username}' or the password by {settings.sasl_mechanism}; check "
            "SHOPWINDOW_SASL_USERNAME and SHOPWINDOW_SASL_PASSWORD"
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return f"{host} lets nobody log in by {settings.sasl_mechanism}; check SHOPWINDOW_SASL_MECHANISM"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {host}; start it, or check SHOPWINDOW_BROKER"
    if isinstance(error, socket.gaierror):
        return f"{host} is not known by name; check SHOPWINDOW_BROKER"
    if isinstance(error, TimeoutError):
        return f"{host} does not answer in time; check its load, the network and SHOPWINDOW_BROKER"
    if isinstance(error, (KafkaConnectionError, ConnectionError, asyncio.IncompleteReadError)):
        return (
            f"{host} closes the connection; check that it speaks {settings.security_protocol} "
            "(SHOPWINDOW_SECURITY_PROTOCOL) there, and SHOPWINDOW_BROKER"
        )
    return f"{error or type(error).__name__}; check SHOPWINDOW_BROKER"


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that owns `key`: murmur2, as Kafka's own clients in every language choose it."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
