"""The worker's HTTP endpoint: metrics for Prometheus, health and readiness for its supervisor."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from stream.addresses import Address
from stream.metrics import REGISTRY

if TYPE_CHECKING:
    from stream.settings import Settings

SHUTDOWN_TIMEOUT_S = 1.0  # for open connections


class HttpServerError(RuntimeError):
    """The address is not available; the message says which, and what to do."""


class HttpServer:
    """A server that listens; create it with `start`."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        self.port = int(runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()


class Health(NamedTuple):
    """The answer of /healthz."""

    problem: str | None = None  # a restart of the process may help
    note: str | None = None  # a restart would not help


async def start(
    settings: Settings,
    ready: Callable[[], Mapping[str, bool]],
    before_scrape: Callable[[], None],
    health: Callable[[], Health] = Health,
    recovery: Callable[[], Mapping[str, Any]] = dict,
) -> HttpServer:
    """Serve /metrics, /healthz and /readyz on the settings' address; returns once the server listens.

    `ready` gives the conditions that must all be true, and `recovery` the progress of the tables, shown beside them.
    `before_scrape` updates the gauges that are computed only for a scrape. Raises HttpServerError if the address is not
    available.
    """

    async def metrics(request: web.Request) -> web.Response:
        before_scrape()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(REGISTRY), headers={"Content-Type": content_type})

    async def healthz(request: web.Request) -> web.Response:
        found = health()
        if found.problem:
            return web.Response(text=f"{found.problem}\n", status=503)
        return web.Response(text=f"ok; {found.note}\n" if found.note else "ok\n")

    async def readyz(request: web.Request) -> web.Response:
        conditions = dict(ready())
        body = {**conditions, "recovery": dict(recovery())}
        return web.json_response(body, status=200 if all(conditions.values()) else 503)

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.web_host, settings.web_port).start()
    except OSError as error:
        await runner.cleanup()
        if error.errno == errno.EADDRINUSE:
            raise HttpServerError(
                f"port {settings.web_port} of {settings.web_host} is taken; stop the process that uses it, or set "
                "SHOPWINDOW_WEB_PORT (0 takes a free one)"
            ) from None
        raise HttpServerError(
            f"{Address(settings.web_host, settings.web_port)} cannot be listened on ({error.strerror or error}); "
            "set SHOPWINDOW_WEB_HOST and SHOPWINDOW_WEB_PORT to an address of this machine"
        ) from None
    return HttpServer(runner)
