"""The worker's HTTP side: what probes and Prometheus see."""

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import pytest

from agents.health import http as web
from stream import metrics
from stream.settings import Settings

ANY_PORT = Settings(web_port=0)


def asked(
    *paths: str,
    ready: Callable[[], Mapping[str, bool]] = lambda: {},
    before_scrape: Callable[[], None] = lambda: None,
    health: Callable[[], web.Health] = web.Health,
    recovery: Callable[[], Mapping[str, Any]] = dict,
) -> list[tuple[int, str, str]]:
    """(status, content type, text) of each path, of a server that lives for the call."""

    async def ask() -> list[tuple[int, str, str]]:
        endpoint = await web.start(ANY_PORT, ready, before_scrape, health, recovery)
        found = []
        async with aiohttp.ClientSession(f"http://127.0.0.1:{endpoint.port}") as session:
            for path in paths:
                async with session.get(path) as answer:
                    found.append((answer.status, answer.headers["Content-Type"], await answer.text()))
        await endpoint.stop()
        return found

    return asyncio.run(ask())


def test_metrics_are_prometheus_text_with_figures_brought_up_to_date_first() -> None:
    [(status, kind, text)] = asked("/metrics", before_scrape=lambda: metrics.CATALOG_ITEMS.set(4321))
    assert status == 200 and kind.startswith("text/plain")
    assert "shopwindow_catalog_items 4321.0" in text
    assert "# HELP shopwindow_homepage_freshness_seconds" in text


def test_a_live_worker_is_healthy_before_it_is_ready() -> None:
    conditions = {"partitions_assigned": True, "models_warmed": False}
    health, readiness = asked("/healthz", "/readyz", ready=lambda: conditions)
    assert (health[0], health[2]) == (200, "ok\n")
    assert readiness[0] == 503 and readiness[1].startswith("application/json")
    assert json.loads(readiness[2]) == conditions | {"recovery": {}}


def test_readiness_says_how_far_recovery_is() -> None:
    far = {"profiles": {"records_read": 40, "records_to_read": 100, "percent": 40.0, "seconds_left": 1.5}}
    [(status, _, text)] = asked("/readyz", ready=lambda: {"recovered": False}, recovery=lambda: far)
    assert status == 503 and json.loads(text)["recovery"] == far


def test_health_gives_the_reason_for_a_restart_and_takes_note_of_what_none_would_mend() -> None:
    [deaf] = asked("/healthz", health=lambda: web.Health(problem="gone deaf"))
    assert (deaf[0], deaf[2]) == (503, "gone deaf\n")
    [alone] = asked("/healthz", health=lambda: web.Health(note="Kafka does not answer"))
    assert (alone[0], alone[2]) == (200, "ok; Kafka does not answer\n")


def test_a_worker_is_ready_when_every_condition_holds() -> None:
    asks: list[Any] = []

    def ready() -> dict[str, bool]:
        asks.append(1)
        return {"models_warmed": len(asks) > 1}

    assert [status for status, _, _ in asked("/readyz", "/readyz", ready=ready)] == [503, 200]


def test_another_path_is_not_found() -> None:
    assert asked("/")[0][0] == 404


def test_a_taken_port_is_one_sentence_that_names_the_setting() -> None:
    async def twice() -> None:
        first = await web.start(ANY_PORT, dict, lambda: None)
        try:
            await web.start(dataclasses.replace(ANY_PORT, web_port=first.port), dict, lambda: None)
        finally:
            await first.stop()

    with pytest.raises(
        web.HttpServerError, match=r"port \d+ of 127.0.0.1 is taken; .* set SHOPWINDOW_WEB_PORT"
    ) as told:
        asyncio.run(twice())
    assert isinstance(told.value, RuntimeError) and "\n" not in str(told.value)


def test_an_address_of_another_machine_is_one_sentence_that_names_the_setting() -> None:
    with pytest.raises(web.HttpServerError, match=r"192\.0\.2\.1:0 cannot be listened on .*SHOPWINDOW_WEB_HOST"):
        asyncio.run(web.start(dataclasses.replace(ANY_PORT, web_host="192.0.2.1"), dict, lambda: None))
