"""Bearer tokens for logins by OAUTHBEARER: of an OpenID provider, or signed with AWS credentials.

aiokafka asks for a token at each new connection, and never again on an open one (KIP-368). A broker that limits
sessions closes the connection at the first request after its end; the client connects again, with a current token.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import quote_plus, urlencode
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

import msgspec
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from stream.settings import Settings

MSK_SIGNER = "aws_msk_iam_sasl_signer"  # module of an optional package
USED_SHARE = 0.8  # of a token's lifetime, then the next is requested; as in Kafka's Java client
REQUEST_TIMEOUT_S = 10.0  # without anything from the endpoint
RETRY_S = 1.0  # between two requests if the first has failed, however many connections wait
DISCARD_AGE_S = 10.0  # a token that a broker refuses is not used again, but a new one would be refused as well
BEARER_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")  # RFC 6750, section 2.1
ERROR_CODE = re.compile(r"[a-z_]{1,40}")  # of RFC 6749, section 5.2
log = logging.getLogger(__name__)


class TokenUnavailable(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """There is no token to log in with. The message says why and what to do.

    An error of Kafka's, because aiokafka then treats it as a connection that has failed, and tries again.
    """

    retriable = True

    def __str__(self) -> str:
        return str(self.args[0])


class Token(NamedTuple):
    value: str
    lifetime: float  # seconds, from the request on; 0 if it is unknown


class ClientCredentials(NamedTuple):
    """What an OpenID provider gives a token for, by the grant of RFC 6749, section 4.4."""

    url: str
    client_id: str
    client_secret: str
    scope: str | None
    audience: str | None
    ca_file: Path | None


class CachedTokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Tokens of `request`, for all clients of this process. Without a lifetime, each connection requests its own.

    A token is renewed after USED_SHARE of its lifetime. If that fails, it is used until its end. Clients run on two
    event loops, because Faust's consumer has its own. So requests run in threads, one at a time.
    """

    def __init__(self, request: Callable[[], Token], extensions: Mapping[str, str] | None = None) -> None:
        self._request, self._extensions = request, dict(extensions or {})
        self._lock = threading.Lock()
        self._value = ""
        # Times of the monotonic clock.
        self._received_at = self._renew_at = self._ends_at = self._retry_at = float("-inf")
        self._failure: TokenUnavailable | None = None  # of the last request

    async def token(self) -> str:
        """Return a token that is valid now. Raises TokenUnavailable."""
        if monotonic() < self._renew_at:
            return self._value
        return await asyncio.to_thread(self._renew)

    def discard(self) -> None:
        """Do not use the current token again, because a broker has refused it; unless it is quite new."""
        if monotonic() > self._received_at + DISCARD_AGE_S:
            self._renew_at = self._ends_at = float("-inf")

    def extensions(self) -> dict[str, str]:
        """The SASL extensions that aiokafka sends with each token."""
        return self._extensions

    def _renew(self) -> str:
        with self._lock:
            now = monotonic()
            if now < self._renew_at:  # another connection has renewed it in the meantime
                return self._value
            if self._failure is None or now >= self._retry_at:
                try:
                    token = self._request()
                except TokenUnavailable as error:
                    self._failure, self._retry_at = error, monotonic() + RETRY_S
                    if now < self._ends_at:
                        log.warning("the token is not renewed, and is used for %.0f s: %s", self._ends_at - now, error)
                else:
                    self._value, self._failure, self._received_at = token.value, None, now
                    self._ends_at, self._renew_at = now + token.lifetime, now + USED_SHARE * token.lifetime
                    return token.value
            if now >= self._ends_at:
                raise TokenUnavailable(*self._failure.args)
            return self._value


def token_provider(settings: Settings) -> CachedTokens:
    """Tokens for OAUTHBEARER and AWS_MSK_IAM. All clients of a process with the same settings share them."""
    if settings.sasl_mechanism == "AWS_MSK_IAM":
        assert settings.aws_region is not None
        return _msk_tokens(settings.aws_region)
    assert settings.oauth_token_url and settings.oauth_client_id and settings.oauth_client_secret
    credentials = ClientCredentials(
        settings.oauth_token_url, settings.oauth_client_id, settings.oauth_client_secret, settings.oauth_scope,
        settings.oauth_audience, settings.oauth_ca_file,
    )  # fmt: skip
    return _oidc_tokens(credentials, settings.oauth_extensions or "")


@cache
def _oidc_tokens(credentials: ClientCredentials, extensions: str) -> CachedTokens:
    pairs = dict(pair.split("=", 1) for pair in extensions.split(",") if pair)
    return CachedTokens(partial(request_token, credentials), pairs)


@cache
def _msk_tokens(region: str) -> CachedTokens:
    return CachedTokens(partial(sign_msk_token, region))


def sign_msk_token(region: str) -> Token:
    """Return a token that AWS's signer makes of this process's AWS credentials. Raises TokenUnavailable."""
    signer = importlib.import_module(f"{MSK_SIGNER}.MSKAuthTokenProvider")
    try:
        value, ends_at_ms = signer.generate_auth_token(region)
    except Exception as error:  # whatever AWS's libraries raise for credentials that are missing or refused
        raise TokenUnavailable(
            f"AWS signs no token for MSK in '{region}' ({type(error).__name__}: {error}); check the AWS credentials of "
            "this process and SHOPWINDOW_AWS_REGION"
        ) from error
    return Token(value, max(0.0, ends_at_ms / 1000 - time.time()))


def request_token(credentials: ClientCredentials) -> Token:
    """Request a token from the OpenID provider. Blocks until it answers. Raises TokenUnavailable."""
    status, body = _post(credentials)
    if status != 200:
        raise TokenUnavailable(_refusal(credentials, status, body))
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except (msgspec.MsgspecError, RecursionError):
        raise TokenUnavailable(
            f"the answer of the token endpoint {credentials.url} has no access_token; check SHOPWINDOW_OAUTH_TOKEN_URL"
        ) from None
    if not BEARER_TOKEN.fullmatch(answer.access_token) or answer.token_type.lower() != "bearer":
        raise TokenUnavailable(
            f"the token endpoint {credentials.url} gave something that is no bearer token; check its client's settings"
        )
    return Token(answer.access_token, _lifetime(answer.expires_in))


class _Answer(msgspec.Struct):
    """RFC 6749, section 5.1."""

    access_token: str
    token_type: str = "Bearer"
    expires_in: float | str | None = None  # some providers write a string


class _Refusal(msgspec.Struct):
    """RFC 6749, section 5.2."""

    error: str = ""


def _lifetime(expires_in: float | str | None) -> float:
    """Seconds of an answer's `expires_in`; 0 if it is no positive number."""
    try:
        seconds = float(expires_in or 0)
    except ValueError:
        return 0.0
    return seconds if 0 < seconds < float("inf") else 0.0


class _RefuseRedirects(HTTPRedirectHandler):
    """Lets a redirect fail: it could send the client's secret elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(credentials: ClientCredentials) -> tuple[int, bytes]:
    """Return status and body of the endpoint's answer. Raises TokenUnavailable if it does not answer."""
    form = {"grant_type": "client_credentials", "scope": credentials.scope, "audience": credentials.audience}
    login = f"{quote_plus(credentials.client_id)}:{quote_plus(credentials.client_secret)}"
    request = Request(
        credentials.url,
        urlencode({name: value for name, value in form.items() if value}).encode(),
        {"Authorization": f"Basic {b64encode(login.encode()).decode()}", "Accept": "application/json"},
    )
    try:
        tls = ssl.create_default_context(cafile=str(credentials.ca_file) if credentials.ca_file else None)
    except (ssl.SSLError, OSError) as error:
        raise TokenUnavailable(
            f"SHOPWINDOW_OAUTH_CA_FILE '{credentials.ca_file}' holds no certificate in PEM ({error})"
        ) from error
    try:
        with build_opener(HTTPSHandler(context=tls), _RefuseRedirects).open(request, None, REQUEST_TIMEOUT_S) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, HTTPException) as error:
        raise TokenUnavailable(_explain(credentials.url, error)) from error


def _explain(url: str, error: Exception) -> str:
    """Why the token endpoint does not answer, and what to do."""
    reason = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(reason, TimeoutError):
        return (
            f"the token endpoint {url} has not answered for {REQUEST_TIMEOUT_S:.0f} s; check it, the network and "
            "SHOPWINDOW_OAUTH_TOKEN_URL"
        )
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"the certificate of the token endpoint {url} is refused ({reason.verify_message}); check the URL's host, "
            "or name the file of the authority that signed it in SHOPWINDOW_OAUTH_CA_FILE"
        )
    text = (isinstance(reason, OSError) and reason.strerror) or str(reason) or type(reason).__name__
    return f"the token endpoint {url} does not answer ({text}); start it, or check SHOPWINDOW_OAUTH_TOKEN_URL"


def _refusal(credentials: ClientCredentials, status: int, body: bytes) -> str:
    """Why there is no token, and what to do. Of the body, only a known form of error code is shown."""
    code = ""
    with suppress(msgspec.MsgspecError, RecursionError):
        code = msgspec.json.decode(body, type=_Refusal).error
    reason = f"{status}, {code}" if ERROR_CODE.fullmatch(code) else str(status)
    url = credentials.url
    if status == 401 or code in ("invalid_client", "unauthorized_client"):
        return (
            f"the token endpoint {url} refuses the client '{credentials.client_id}' ({reason}); check "
            "SHOPWINDOW_OAUTH_CLIENT_ID and SHOPWINDOW_OAUTH_CLIENT_SECRET"
        )
    if status == 400:
        return (
            f"the token endpoint {url} refuses the request ({reason}); check SHOPWINDOW_OAUTH_SCOPE and "
            "SHOPWINDOW_OAUTH_AUDIENCE"
        )
    if status >= 500 or status == 429:
        return f"the token endpoint {url} is out of order ({reason}); look at its log"
    return f"{url} is no token endpoint ({reason}); check SHOPWINDOW_OAUTH_TOKEN_URL"
