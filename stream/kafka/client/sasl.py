"""Logins of aiokafka's connections: what its authenticators for tokens and Kerberos lack.

Importing this module replaces them in aiokafka.
"""

from __future__ import annotations

from typing import Any

from aiokafka import conn
from aiokafka.errors import AuthenticationFailedError

KERBEROS_PACKAGE: Any = conn.gssapi  # None if it, or the system's Kerberos library, is missing


class KerberosLoginFailed(AuthenticationFailedError):  # type: ignore[misc]  # aiokafka has no types
    """The Kerberos library of this machine has refused the login; the message is its own."""

    def __str__(self) -> str:
        return str(self.args[0])


class TokenLogin(conn.OAuthAuthenticator):  # type: ignore[misc]  # aiokafka has no types
    """Login with a token that reports a refusal.

    A broker refuses a token by an answer with a reason (RFC 7628, section 3.2.2), not by an error code. aiokafka takes
    any answer for a success; its next request then finds the connection closed, without a reason.
    """

    def __init__(self, *, sasl_oauth_token_provider: Any) -> None:
        super().__init__(sasl_oauth_token_provider=sasl_oauth_token_provider)
        self._provider = sasl_oauth_token_provider

    async def step(self, payload: bytes | None) -> tuple[str | bytes, bool] | None:
        """Return the next message to the broker; None after the last. `payload`: its answer to the previous one."""
        if payload:
            self._provider.discard()
            return b"\x01", True  # the broker answers with the error code
        message: tuple[str | bytes, bool] | None = await super().step(payload)
        return message


class KerberosLogin(conn.SaslGSSAPIAuthenticator):  # type: ignore[misc]  # aiokafka has no types
    """Login by GSSAPI that fails with an error of Kafka's: any other would end aiokafka's tasks.

    aiokafka creates the Kerberos context in the first step, so a missing ticket appears there.
    """

    async def step(self, payload: bytes | None) -> Any:
        """As `TokenLogin.step`. Raises KerberosLoginFailed."""
        try:
            return await super().step(payload)
        except KERBEROS_PACKAGE.exceptions.GSSError as error:
            raise KerberosLoginFailed(" ".join(str(error).split())) from error


conn.OAuthAuthenticator, conn.SaslGSSAPIAuthenticator = TokenLogin, KerberosLogin
