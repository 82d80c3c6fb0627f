"""Connection options of every client (addresses, TLS, SASL), clear connection errors, and the partition of a key."""

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


STOP_TIMEOUT_S = 3.0  # for a client; the brokers may be down


class NoBroker(RuntimeError):
    """Kafka does not answer, or refuses the connection; the message says where and what to do."""


def bootstrap(settings: Settings) -> list[str]:
    """`host:port` of each broker in the settings. Raises NoBroker if none is set."""
    if not settings.broker:
        raise NoBroker(
            "no broker is set: start `shopwindow broker` or `shopwindow worker`, "
            "or set SHOPWINDOW_BROKER (for instance kafka://127.0.0.1:9092)"
        )
    hosts = [host.removeprefix("kafka://").strip() for host in settings.broker.split(",")]
    return [host if ":" in host else f"{host}:9092" for host in hosts if host]


def client_options(settings: Settings) -> dict[str, Any]:
    """Arguments of every aiokafka client: address, TLS, SASL."""
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
    """TLS and SASL for Faust, which has its own credential classes; None for a plaintext connection."""
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
    """The TLS context of the settings. Raises NoBroker if a file does not contain what it should."""
    ca, certificate, key = settings.ssl_ca_file, settings.ssl_cert_file, settings.ssl_key_file
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (ssl.SSLError, OSError) as error:
        raise NoBroker(f"SHOPWINDOW_SSL_CA_FILE '{ca}' holds no certificate in PEM ({error})") from error
    if certificate:
        try:
            context.load_cert_chain(str(certificate), str(key) if key else None)
        except (ssl.SSLError, OSError) as error:
            raise NoBroker(
                f"SHOPWINDOW_SSL_CERT_FILE '{certificate}' and SHOPWINDOW_SSL_KEY_FILE '{key or certificate}' hold no "
                f"certificate and its key in PEM ({error})"
            ) from error
    return context


class _Attempts:
    """Why each connection attempt failed: aiokafka logs the reasons, and raises only that there was one."""

    def __init__(self) -> None:
        self.is_open = True
        self.failures: list[tuple[str, BaseException]] = []  # host:port, error


_attempts: ContextVar[_Attempts | None] = ContextVar("attempts", default=None)


def _collect_failure(record: logging.LogRecord) -> bool:
    """Filter of aiokafka's log: within `connecting`, failures are collected instead of logged."""
    attempts = _attempts.get()
    if attempts is None or not attempts.is_open:
        return True
    if isinstance(record.args, tuple) and len(record.args) == 3 and isinstance(record.args[2], BaseException):
        host, port, error = record.args
        assert isinstance(error, BaseException)
        attempts.failures.append((f"{host}:{port}", error))
    return False


# aiokafka.client logs under the name "aiokafka".
for _name in ("aiokafka", "aiokafka.conn"):
    logging.getLogger(_name).addFilter(_collect_failure)


@contextmanager
def connecting(settings: Settings) -> Iterator[None]:
    """Wrap the start of a client: a failed connection raises NoBroker, with the reason and what to do."""
    attempts = _Attempts()
    token = _attempts.set(attempts)
    try:
        yield
    except (KafkaError, OSError) as error:
        hosts = ", ".join(bootstrap(settings))
        # If hosts fail for different reasons, one that accepted the connection has the most informative error.
        failures = sorted(attempts.failures, key=lambda failure: isinstance(failure[1], ConnectionRefusedError))
        host, reason = failures[0] if failures else (hosts, error)
        raise NoBroker(f"no Kafka answers at {hosts}: {_explain(settings, host, reason)}") from error
    finally:
        attempts.is_open = False
        _attempts.reset(token)


# OpenSSL's verification error codes.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _UNKNOWN_AUTHORITY = 9, 10, (62, 64), (2, 18, 19, 20, 21)


def _explain(settings: Settings, host: str, error: BaseException) -> str:
    """Why `host` (host:port) refused the connection, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return f"the certificate of {host} has expired; renew it on that broker"
        if error.verify_code == _NOT_YET_VALID:
            return f"the certificate of {host} is not valid yet; check the clocks of both machines"
        if error.verify_code in _WRONG_NAME:
            return (
                f"the certificate of {host} is for another name ({error.verify_message}); write the name that it is "
                "for in SHOPWINDOW_BROKER, or issue a certificate for this host"
            )
        if error.verify_code in _UNKNOWN_AUTHORITY:
            authority = f"'{settings.ssl_ca_file}'" if settings.ssl_ca_file else "the authorities of this system"
            return (
                f"the certificate of {host} is not signed by {authority}; name the file of the authority that signed "
                "it in SHOPWINDOW_SSL_CA_FILE"
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
        return f"{host} does not support logins by {settings.sasl_mechanism}; check SHOPWINDOW_SASL_MECHANISM"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {host}; start it, or check SHOPWINDOW_BROKER"
    if isinstance(error, socket.gaierror):
        return f"{host} cannot be resolved; check SHOPWINDOW_BROKER"
    if isinstance(error, TimeoutError):
        return f"{host} does not answer in time; check its load, the network and SHOPWINDOW_BROKER"
    if isinstance(error, (KafkaConnectionError, ConnectionError, asyncio.IncompleteReadError)):
        return (
            f"{host} closes the connection; check that it speaks {settings.security_protocol} "
            "(SHOPWINDOW_SECURITY_PROTOCOL) there, and SHOPWINDOW_BROKER"
        )
    return f"{error or type(error).__name__}; check SHOPWINDOW_BROKER"


async def stop_client(client: Any) -> None:
    """Stop a consumer or producer of aiokafka, whatever it raises, for at most STOP_TIMEOUT_S.

    The brokers may be down. Then a consumer raises the cancellation of its own tasks, as if ours had been cancelled.
    """
    stopping = asyncio.ensure_future(client.stop())
    await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that owns `key`: murmur2, like Kafka's own clients in every language."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
