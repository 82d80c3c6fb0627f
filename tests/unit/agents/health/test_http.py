"""The worker's HTTP endpoint, as probes and Prometheus use it."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import pytest

from agents.health import http
from stream import metrics
from stream.settings import Settings

ANY_PORT = Settings(web_port=0)


def get(
    *paths: str,
    ready: Callable[[], Mapping[str, bool]] = lambda: {},
    before_scrape: Callable[[], None] = lambda: None,
    health: Callable[[], http.Health] = http.Health,
    recovery: Callable[[], Mapping[str, Any]] = dict,
) -> list[tuple[int, str, str]]:
    """(status, content type, text) of each path, from a server that runs during the call."""

    async def call() -> list[tuple[int, str, str]]:
        endpoint = await http.start(ANY_PORT, ready, before_scrape, health, recovery)
        found = []
        async with aiohttp.ClientSession(f"http://127.0.0.1:{endpoint.port}") as session:
            for path in paths:
                async with session.get(path) as answer:
                    found.append((answer.status, answer.headers["Content-Type"], await answer.text()))
        await endpoint.stop()
        return found

    return asyncio.run(call())


def test_metrics_are_updated_before_they_are_served() -> None:
    [(status, kind, text)] = get("/metrics", before_scrape=lambda: metrics.CATALOG_ITEMS.set(4321))
    assert status == 200 and kind.startswith("text/plain")
    assert "shopwindow_catalog_items 4321.0" in text
    assert "# HELP shopwindow_homepage_freshness_seconds" in text


def test_a_live_worker_is_healthy_before_it_is_ready() -> None:
    conditions = {"partitions_assigned": True, "models_warmed": False}
    health, readiness = get("/healthz", "/readyz", ready=lambda: conditions)
    assert (health[0], health[2]) == (200, "ok\n")
    assert readiness[0] == 503 and readiness[1].startswith("application/json")
    assert json.loads(readiness[2]) == conditions | {"recovery": {}}


def test_readiness_shows_the_progress_of_recovery() -> None:
    progress = {"profiles": {"records_read": 40, "records_to_read": 100, "percent": 40.0, "seconds_left": 1.5}}
    [(status, _, text)] = get("/readyz", ready=lambda: {"recovered": False}, recovery=lambda: progress)
    assert status == 503 and json.loads(text)["recovery"] == progress


def test_health_fails_only_for_problems_that_a_restart_may_fix() -> None:
    [problem] = get("/healthz", health=lambda: http.Health(problem="fetches stall"))
    assert (problem[0], problem[2]) == (503, "fetches stall\n")
    [note] = get("/healthz", health=lambda: http.Health(note="Kafka does not answer"))
    assert (note[0], note[2]) == (200, "ok; Kafka does not answer\n")


def test_a_worker_is_ready_when_every_condition_is_true() -> None:
    calls: list[Any] = []

    def ready() -> dict[str, bool]:
        calls.append(1)
        return {"models_warmed": len(calls) > 1}

    assert [status for status, _, _ in get("/readyz", "/readyz", ready=ready)] == [503, 200]


def test_another_path_is_not_found() -> None:
    assert get("/")[0][0] == 404


def test_a_port_in_use_gives_one_sentence_with_the_setting() -> None:
    async def twice() -> None:
        first = await http.start(ANY_PORT, dict, lambda: None)
        try:
            await http.start(dataclasses.replace(ANY_PORT, web_port=first.port), dict, lambda: None)
        finally:
            await first.stop()

    with pytest.raises(
        http.HttpServerError, match=r"port \d+ of 127.0.0.1 is taken; .* set SHOPWINDOW_WEB_PORT"
    ) as raised:
        asyncio.run(twice())
    assert isinstance(raised.value, RuntimeError) and "\n" not in str(raised.value)


def test_an_address_of_another_machine_gives_one_sentence_with_the_setting() -> None:
    with pytest.raises(http.HttpServerError, match=r"192\.0\.2\.1:0 cannot be listened on .*SHOPWINDOW_WEB_HOST"):
        asyncio.run(http.start(dataclasses.replace(ANY_PORT, web_host="192.0.2.1"), dict, lambda: None))
