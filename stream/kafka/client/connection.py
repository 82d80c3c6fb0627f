"""Connection options of every client (addresses, TLS, SASL), clear connection errors, and the partition of a key."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import faust
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.partitioner import murmur2

from stream.addresses import Address, parse_brokers
from stream.kafka.client.sasl import KERBEROS_PACKAGE
from stream.kafka.client.tokens import MSK_SIGNER, TokenUnavailable, token_provider

if TYPE_CHECKING:
    from stream.settings import Settings


TOKEN_MECHANISMS = ("OAUTHBEARER", "AWS_MSK_IAM")  # both are OAUTHBEARER for Kafka
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
    return [str(address) for address in parse_brokers(settings.broker)]


def client_options(settings: Settings) -> dict[str, Any]:
    """Arguments of every aiokafka client: address, TLS, SASL. Raises NoBroker if a file or a package is missing."""
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap(settings),
        "security_protocol": settings.security_protocol,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options |= _sasl_options(settings)
    return options


def _sasl_options(settings: Settings) -> dict[str, Any]:
    _require_package(settings.sasl_mechanism)
    if settings.sasl_mechanism in TOKEN_MECHANISMS:
        return {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": token_provider(settings)}
    if settings.sasl_mechanism == "GSSAPI":
        return {"sasl_mechanism": "GSSAPI", "sasl_kerberos_service_name": settings.kerberos_service}
    return {
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password,
    }


def _require_package(mechanism: str) -> None:
    """Raise NoBroker if the optional package that a SASL mechanism needs cannot be imported."""
    if mechanism == "GSSAPI" and KERBEROS_PACKAGE is None:
        missing, extra = "the package gssapi and the Kerberos library of the system", "kerberos"
    elif mechanism == "AWS_MSK_IAM" and find_spec(MSK_SIGNER) is None:
        missing, extra = "the package aws-msk-iam-sasl-signer-python", "msk"
    else:
        return
    raise NoBroker(
        f"SHOPWINDOW_SASL_MECHANISM is {mechanism}, which needs {missing}; install it with "
        f"pip install 'shopwindow[{extra}]'"
    )


def faust_credentials(settings: Settings) -> faust.types.auth.CredentialsT | None:
    """TLS and SASL for Faust, which has its own credential classes; None for a plaintext connection."""
    tls = _ssl_context(settings) if settings.security_protocol.endswith("SSL") else None
    if not settings.security_protocol.startswith("SASL"):
        return faust.SSLCredentials(tls) if tls is not None else None
    _require_package(settings.sasl_mechanism)
    if settings.sasl_mechanism in TOKEN_MECHANISMS:
        return faust.OAuthCredentials(oauth_cb=token_provider(settings), ssl_context=tls)
    if settings.sasl_mechanism == "GSSAPI":
        return faust.GSSAPICredentials(
            kerberos_service_name=settings.kerberos_service, mechanism="GSSAPI", ssl_context=tls
        )
    return faust.SASLCredentials(
        username=settings.sasl_username,
        password=settings.sasl_password,
        ssl_context=tls,
        mechanism=settings.sasl_mechanism,
    )


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """The TLS context of the settings. Raises NoBroker if a file does not contain what it should."""
    ca, certificate, key = settings.ssl_ca_file, settings.ssl_cert_file, settings.ssl_key_file
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (ssl.SSLError, OSError) as error:
        raise NoBroker(f"SHOPWINDOW_SSL_CA_FILE '{ca}' holds no certificate in PEM ({error})") from error
    if certificate:
        is_encrypted = False

        def password() -> str:  # called for an encrypted key only; without it, OpenSSL would ask on the terminal
            nonlocal is_encrypted
            is_encrypted = True
            return settings.ssl_key_password or ""

        try:
            context.load_cert_chain(str(certificate), str(key) if key else None, password)
        except (ssl.SSLError, OSError, ValueError) as error:
            if is_encrypted:
                problem = "does not decrypt it" if settings.ssl_key_password else "is not set"
                raise NoBroker(
                    f"the key in '{key or certificate}' is encrypted, and SHOPWINDOW_SSL_KEY_PASSWORD {problem}; set "
                    "its password there, or name a file with it in SHOPWINDOW_SSL_KEY_PASSWORD_FILE"
                ) from error
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
        assert isinstance(port, int) and isinstance(error, BaseException)
        attempts.failures.append((str(Address(str(host), port)), error))
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
        if isinstance(reason, TokenUnavailable):
            raise NoBroker(f"no login to Kafka at {hosts}: {reason}") from error
        raise NoBroker(f"no Kafka answers at {hosts}: {_explain(settings, host, reason)}") from error
    finally:
        attempts.is_open = False
        _attempts.reset(token)


# OpenSSL's verification error codes.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _UNKNOWN_AUTHORITY = 9, 10, (62, 64), (2, 18, 19, 20, 21)


def _explain(settings: Settings, host: str, error: BaseException) -> str:
    """Why `host` (host:port) refused the connection, and what to do."""
    if isinstance(error, KafkaConnectionError) and isinstance(error.__cause__, ssl.SSLError):
        error = error.__cause__  # with TLS 1.3, a broker refuses the client's certificate after the handshake
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
        return _explain_tls(settings, host, error)
    if isinstance(error, (SaslAuthenticationFailed, AuthenticationFailedError)):
        return _explain_login(settings, host, error)
    if isinstance(error, UnsupportedSaslMechanismError):
        return f"{host} does not support logins by {settings.sasl_mechanism}; check SHOPWINDOW_SASL_MECHANISM"
    if isinstance(error, ConnectionRefusedError):
        return f"nothing listens at {host}; start it, or check SHOPWINDOW_BROKER"
    if isinstance(error, socket.gaierror):
        return f"{host} cannot be resolved; check SHOPWINDOW_BROKER"
    if isinstance(error, TimeoutError):
        return f"{host} does not answer in time; check its load, the network and SHOPWINDOW_BROKER"
    if isinstance(error, (KafkaConnectionError, ConnectionError, asyncio.IncompleteReadError)):
        # The alert about a certificate may get lost when the broker closes the connection.
        certificate = "whether it requires or refuses the client certificate (SHOPWINDOW_SSL_CERT_FILE), "
        return (
            f"{host} closes the connection; check that it speaks {settings.security_protocol} "
            f"(SHOPWINDOW_SECURITY_PROTOCOL) there, {certificate if settings.security_protocol.endswith('SSL') else ''}"
            "and SHOPWINDOW_BROKER"
        )
    return f"{error or type(error).__name__}; check SHOPWINDOW_BROKER"


# Reasons of OpenSSL for the alerts by which a broker refuses the client's certificate, or misses one.
_CERTIFICATE_ALERT = re.compile(r"ALERT_(.*CERTIFICATE.*|UNKNOWN_CA|ACCESS_DENIED)")


def _explain_tls(settings: Settings, host: str, error: ssl.SSLError) -> str:
    reason = error.reason or str(error)
    if not (alert := _CERTIFICATE_ALERT.search(reason)):
        return f"{host} does not agree to TLS ({reason}); check SHOPWINDOW_SECURITY_PROTOCOL and its port"
    if settings.ssl_cert_file is None:
        return (
            f"{host} requires a client certificate; name its files in SHOPWINDOW_SSL_CERT_FILE and "
            "SHOPWINDOW_SSL_KEY_FILE"
        )
    return (
        f"{host} refuses the client certificate '{settings.ssl_cert_file}' ({alert[1].lower()}); check that it has not "
        "expired, and that the brokers trust the authority that signed it"
    )


def _explain_login(settings: Settings, host: str, error: KafkaError) -> str:
    if settings.sasl_mechanism == "GSSAPI":
        return (
            f"there is no Kerberos login for the service '{settings.kerberos_service}' of {host} ({error}); get a "
            "ticket with kinit, or check KRB5_CLIENT_KTNAME, KRB5_CONFIG and SHOPWINDOW_KERBEROS_SERVICE"
        )
    if settings.sasl_mechanism == "AWS_MSK_IAM":
        return (
            f"{host} refuses the AWS identity of this process; check its permission kafka-cluster:Connect and "
            "SHOPWINDOW_AWS_REGION"
        )
    if settings.sasl_mechanism == "OAUTHBEARER":
        return (
            f"{host} refuses the token that {settings.oauth_token_url} gave to '{settings.oauth_client_id}'; check "
            "SHOPWINDOW_OAUTH_SCOPE, SHOPWINDOW_OAUTH_AUDIENCE, and which issuer the broker trusts"
        )
    return (
        f"{host} refuses the user '{settings.sasl_username}' or the password by {settings.sasl_mechanism}; check "
        "SHOPWINDOW_SASL_USERNAME and SHOPWINDOW_SASL_PASSWORD"
    )


async def stop_client(client: Any) -> None:
    """Stop a consumer, a producer or an admin client of aiokafka, whatever it raises, for at most STOP_TIMEOUT_S.

    The brokers may be down. Then a consumer raises the cancellation of its own tasks, as if ours had been cancelled.
    """
    stopping = asyncio.ensure_future(client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())
    await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that owns `key`: murmur2, like Kafka's own clients in every language."""
    return int(murmur2(key) & 0x7FFFFFFF) % partitions
