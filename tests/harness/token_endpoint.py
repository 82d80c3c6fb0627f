"""The token endpoint of an OpenID provider, on loopback."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

CLIENT_ID, CLIENT_SECRET = "shop: 1", "open/sesame +1"  # characters that a login must encode


class TokenEndpoint(ThreadingHTTPServer):
    """Gives its client unsigned tokens, and refuses any other. Attributes may be changed while it runs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lifetime = 600.0  # of the tokens, s
        self.scope = "kafka"  # of the tokens
        self.answer: tuple[int, bytes] | None = None  # to each request, instead of a token
        self.forms: list[dict[str, str]] = []  # of the requests so far

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/token"

    def respond(self, login: str, form: dict[str, str]) -> tuple[int, bytes]:
        """Return status and body of the answer to a request."""
        self.forms.append(form)
        if self.answer is not None:
            return self.answer
        # RFC 6749, section 2.3.1: both are form-encoded before they become an HTTP Basic login.
        if base64.b64decode(login.removeprefix("Basic ")) != b"shop%3A+1:open%2Fsesame+%2B1":
            return 401, b'{"error": "invalid_client", "error_description": "secretly"}'
        if form.get("grant_type") != "client_credentials":
            return 400, b'{"error": "unsupported_grant_type"}'
        now = time.time()
        claims = {"sub": "shop", "iat": now, "exp": now + self.lifetime, "scope": self.scope}
        token = f"{_encoded({'alg': 'none'})}.{_encoded(claims)}."
        return 200, json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: TokenEndpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        status, answer = self.server.respond(self.headers.get("Authorization", ""), dict(parse_qsl(body)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


@contextmanager
def token_endpoint() -> Iterator[TokenEndpoint]:
    """A token endpoint that runs until the block ends."""
    endpoint = TokenEndpoint()
    thread = threading.Thread(target=endpoint.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield endpoint
    finally:
        endpoint.shutdown()
        thread.join()
        endpoint.server_close()
