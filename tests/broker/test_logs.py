"""What a worker logs while it runs, rejects records and crashes: no secret, and nothing that a shopper did."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.broker.embedded import Broker, free_port
from stream.kafka import topics
from stream.settings import Settings
from tests.harness.counting import scenario, send
from tests.harness.events import NOW, record
from tests.harness.shop import item
from tests.harness.worker_process import Record, read_all, settings_for, until_counted, worker

PASSWORD = "open sesame"
MARK = "tweed-marked"  # one of the words that `worker` searches a worker's output for
SECURE = """
listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}},SECURE://127.0.0.1:{secure}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},SECURE://127.0.0.1:{secure}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.secure.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \\
  required user_shop="{password}";
"""
prefixes = (f"logs{number}-" for number in itertools.count())


@pytest.fixture(scope="module")
def locked() -> Iterator[Settings]:
    """Settings with the password of a Kafka that requires one."""
    port = free_port()
    with Broker(extra=SECURE.format(secure=port, password=PASSWORD)):
        yield dataclasses.replace(
            settings_for(f"127.0.0.1:{port}", "logs-"), security_protocol="SASL_PLAINTEXT", sasl_username="shop",
            sasl_password=PASSWORD,
        )  # fmt: skip


def of_marked_shoppers(n: int) -> list[Record]:
    kinds: list[dict[str, Any]] = [
        {"type": "view_item", "item": f"{MARK}-item"},
        {"type": "search", "search_term": f"{MARK} jacket"},
        {"type": "add_to_cart", "item": "i1", "session_id": MARK},
    ]
    return [record(user=f"{MARK}-{k % 5}", id=f"{MARK}-e{k}", time=NOW + k, **kinds[k % 3]) for k in range(n)]


BAD: list[Record] = [
    (MARK.encode(), f"{{half of {MARK}".encode()),
    (MARK.encode(), None),
    (None, record("view_item", MARK, item="i1")[1]),
    (MARK.encode(), record("view_item", MARK)[1]),
    (MARK.encode(), record(MARK, MARK)[1]),
    (f"{MARK}\n\x1b[31m".encode(), b'{"id": "' + MARK.encode() + b'", "type": 7}'),
    (MARK.encode(), record("view_item", MARK, item="i1", session_id=[MARK])[1]),
    (b"\xff" + MARK.encode(), MARK.encode() * 20_000),
]


async def opened(locked: Settings, level: str, form: str) -> Settings:
    """Settings with fresh topics on the cluster that requires a password."""
    prefix = next(prefixes)
    settings = dataclasses.replace(locked, prefix=prefix, app_id=prefix, log_level=level, log_format=form)
    await topics.create(settings)
    return settings


@pytest.mark.parametrize(("level", "form"), [("INFO", "text"), ("DEBUG", "text"), ("DEBUG", "json")])
@scenario
async def test_no_shopper_and_no_password_is_logged(locked: Settings, level: str, form: str) -> None:
    settings = await opened(locked, level, form)
    await send(settings, "catalog", [*(item(f"i{k}") for k in range(9)), (b"bad", b'{"item_id": "bad", "price": "x"}')])
    await send(settings, "clicks", [*of_marked_shoppers(60), *BAD])
    await send(settings, "refreshes", [(MARK.encode(), MARK.encode())])
    with worker(settings) as process:
        await until_counted(settings, 60)
        while len(await read_all(settings, "dead-letters")) < len(BAD) + 1:
            await asyncio.sleep(0.05)
    said = process.output()
    assert MARK not in said and "sesame" not in said
    if form == "text":
        assert "WARNING stream.kafka.dead_letters a record is refused, not_json in value [clicks/" in said
        return
    lines = [json.loads(line) for line in said.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    refused = [line for line in lines if line["message"].startswith("a record is refused")]
    assert refused and all(line["topic"] in ("clicks", "refreshes") for line in refused)
    assert all(isinstance(line["partition"], int) and isinstance(line["offset"], int) for line in refused)
    (left_out,) = [line for line in lines if line["message"].startswith("an item of the catalogue")]
    assert left_out["topic"] == "catalog" and {"partition", "offset"} <= left_out.keys()
    assert "price: Expected" in left_out["message"], "the catalogue has no shopper data, so the reason is logged"


@pytest.mark.parametrize(("level", "form"), [("INFO", "text"), ("DEBUG", "text"), ("INFO", "json")])
@scenario
async def test_a_crash_logs_one_sentence_and_a_traceback_only_on_request(
    locked: Settings, level: str, form: str
) -> None:
    settings = await opened(locked, level, form)
    # The table expects a number here; the message of int() contains the bytes.
    await send(settings, "profiles", [(b"\x00wm:clicks:0", MARK.encode())])
    with worker(settings) as process:
        assert await process.wait_for_exit() == 1
    said = process.output()
    assert MARK not in said
    assert said.count("the worker stopped: ValueError in apply_records, stream/kafka/tables/table.py:") == 1, said
    if form == "text":
        assert said.count("Traceback") == 0
        assert ("in apply_records: self.watermarks" in said) == (level == "DEBUG")
        others = [line for line in said.splitlines() if not line.startswith(("shopwindow: ", "    "))]
        assert others == [], "only that sentence is logged"
    else:
        (last,) = [json.loads(line) for line in said.splitlines() if "the worker stopped" in line]
        assert last["level"] == "CRITICAL" and last["error"]["type"] == "ValueError"
        assert any("in apply_records: self.watermarks" in frame for frame in last["error"]["traceback"])
