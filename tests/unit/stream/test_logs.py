"""Log lines: their format, and the data that they never contain."""

import asyncio
import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from stream import logs
from stream.events.decode import decode
from stream.settings import Settings

PASSWORD = 'open "sesame'
BODY = "u-4711 searched for red shoes"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    names = [*logs.OURS, "aiokafka", "mode", "faust", "asyncio"]
    before = root.handlers[:], root.level, {name: logging.getLogger(name).level for name in names}
    hooks = sys.excepthook, threading.excepthook
    yield
    root.handlers[:], root.level = before[0], before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    logging.captureWarnings(False)


def configured(**settings: Any) -> io.StringIO:
    out = io.StringIO()
    logs.configure(Settings(sasl_password=PASSWORD, **settings), out)
    return out


def objects(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def raised(call: Any, *args: Any) -> BaseException:
    try:
        call(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_json_line_has_time_logger_message_and_record() -> None:
    out = configured(log_format="json")
    record = SimpleNamespace(partition=3, offset=17)
    logging.getLogger("agents.shopper").warning("refused\nfor %s", "it", extra=logs.record_fields("clicks", record))
    logs.say("ready")
    line, from_command = objects(out)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "WARNING", "logger": "agents.shopper", "message": "refused\nfor it",
                    "topic": "clicks", "partition": 3, "offset": 17}  # fmt: skip
    assert (from_command["level"], from_command["logger"], from_command["message"]) == ("INFO", "shopwindow", "ready")


def test_a_text_line_names_logger_and_record(capsys: pytest.CaptureFixture[str]) -> None:
    out = configured()
    record = SimpleNamespace(partition=3, offset=17)
    logging.getLogger("agents.shopper").warning("refused", extra=logs.record_fields("clicks", record))
    logging.getLogger("agents.shopper").info("below the level")
    logs.say("ready")
    first, second = out.getvalue().splitlines()
    assert first.endswith("Z WARNING agents.shopper refused [clicks/3/17]"[1:]) and second == "shopwindow: ready"


def test_passwords_are_masked_in_messages_and_errors() -> None:
    for form in ("text", "json"):
        out = configured(log_format=form, log_level="DEBUG")
        logging.getLogger("aiokafka").error("SASL PLAIN of %s refused", PASSWORD)
        logging.getLogger("agents").debug("x", exc_info=raised(Path(f"/none/{PASSWORD}").read_text))
        assert "sesame" not in out.getvalue() and "***" in out.getvalue()


def surprise() -> None:
    dict[str, int]()[BODY]


@pytest.mark.parametrize(
    "failing",
    [surprise, lambda: int(BODY), lambda: BODY.encode().decode("ascii", "strict") and int(BODY), lambda: [][len(BODY)],
     lambda: json.loads(BODY), lambda: (_ for _ in ()).throw(KeyError(BODY.encode()))],
)  # fmt: skip
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_exceptions_are_logged_by_type_and_place_without_their_data(failing: Any, form: str, level: str) -> None:
    out = configured(log_format=form, log_level=level)
    error = raised(failing)
    logging.getLogger("agents.worker").error("failed: %s", logs.redacted(error), exc_info=error)
    try:
        raise RuntimeError("a run failed") from error
    except RuntimeError as outer:
        logging.getLogger("agents.worker").error("and so did the rest", exc_info=outer)
    logging.getLogger("mode.services").error("a service says %r and %s", error, error)
    logging.getLogger("aiokafka").error("a record: %r", BODY.encode())
    logged = out.getvalue()
    assert "4711" not in logged and "red shoes" not in logged and type(error).__name__ in logged
    assert "a run failed" in logged


def test_safe_messages_are_logged_in_full() -> None:
    assert logs.redacted(raised(Path("/none").read_text)).endswith("No such file or directory: '/none'")
    assert "Unable to bootstrap" in logs.redacted(KafkaConnectionError("Unable to bootstrap"))
    # Our own `raise` chose the words of this ValueError, in contrast to one of int().
    from stream.items.activity import decode_activity

    assert logs.redacted(raised(decode_activity, b"x")) == "a value of 1 bytes is too short for item activity"
    assert logs.redacted(raised(surprise)).startswith("KeyError in surprise, ")


def test_the_message_of_a_rejected_event_contains_data() -> None:
    """Therefore the message is never logged: the caller catches EventError and logs its code and field only."""
    assert BODY in str(raised(decode, f'{{"x": "{BODY}"'.encode(), b"u", "clicks"))


def test_a_traceback_is_logged_once_and_only_with_debug_or_json() -> None:
    error = raised(surprise)
    for form, level, wanted in (("text", "INFO", 0), ("text", "DEBUG", 1), ("json", "INFO", 1)):
        out = configured(log_format=form, log_level=level)
        error.__dict__.clear()
        for name in ("agents.worker", "mode.services", "asyncio"):
            logging.getLogger(name).error("it failed", exc_info=error)
        assert out.getvalue().count("it failed") == 1
        assert out.getvalue().count("in surprise: dict[str, int]()[BODY]") == wanted


def test_the_final_message_is_logged_even_if_its_error_was_before() -> None:
    out = configured(log_level="DEBUG")
    error = raised(surprise)
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task x=%s>", BODY, exc_info=error)
    logging.getLogger("shopwindow").critical("the worker stopped: %s", logs.redacted(error), exc_info=error)
    assert out.getvalue().splitlines()[-1].startswith("shopwindow: the worker stopped: KeyError in surprise")
    assert "4711" not in out.getvalue() and out.getvalue().count("in surprise: dict[str, int]()[BODY]") == 1


def test_library_lines_below_warning_are_dropped_at_every_level() -> None:
    out = configured(log_level="DEBUG")
    for name in ("aiokafka.consumer.fetcher", "faust.transport", "mode.services", "numba.core", "asyncio"):
        logging.getLogger(name).info("records: %s", BODY)
        logging.getLogger(name).debug("records: %s", BODY)
    assert out.getvalue() == ""
    logging.getLogger("stream.kafka.tables.table").info("[^--BatchRecovery]: Faust, by the name of its service of ours")
    assert out.getvalue() == ""
    logging.getLogger("stream.kafka").debug("ours")
    assert "ours" in out.getvalue()


def test_transient_kafka_errors_and_duplicate_crash_reports_are_dropped() -> None:
    out = configured()
    logging.getLogger("aiokafka.consumer.fetcher").error("Failed fetch: %s", "[Error 6] NotLeaderForPartitionError")
    logging.getLogger("mode.services").error("[^App]: Crashed reason=%r", RuntimeError("x"))
    logging.getLogger("stream.kafka.app").error("[^BatchApp]: Crashed reason=%r", RuntimeError("x"))
    logging.getLogger("stream.kafka.consumer").error("[^-BatchConsumer]: Error while stopping child %r: %s", 1, 2)
    logging.getLogger("aiokafka").error("Unable connect to node with id %s: %s", 1, OSError("refused"))
    logging.getLogger("aiokafka.consumer.group_coordinator").error("Heartbeat send request failed: %s. Will retry.", 1)
    assert out.getvalue() == ""
    logging.getLogger("aiokafka").error("Unable to connect")
    assert "Unable to connect" in out.getvalue()


def test_a_flood_of_similar_lines_is_limited_and_counted() -> None:
    now = [0.0]
    rate_limit = logs.RateLimitFilter(lambda: now[0])

    def passes(text: str, name: str = "agents.shopper") -> logging.LogRecord | None:
        record = logging.LogRecord(name, logging.WARNING, "", 0, "refused, %s", (text,), None)
        return record if rate_limit.filter(record) else None

    assert [bool(passes(str(k))) for k in range(100)] == [True] * 5 + [False] * 95
    assert passes("other", "agents.items") is not None
    assert all(passes("x", "shopwindow") for _ in range(100)), "command messages are never dropped"
    now[0] = 60.0
    record = passes("again")
    assert record is not None and record.suppressed == " (95 similar lines suppressed)"  # type: ignore[attr-defined]
    next_one = passes("once more")
    assert next_one is not None and not hasattr(next_one, "suppressed")


def test_uncaught_errors_and_warnings_become_log_lines() -> None:
    out = configured(log_format="json")
    thread = threading.Thread(target=surprise, name="batches")
    thread.start()
    thread.join()
    sys.excepthook(KeyError, raised(surprise), None)
    warnings.warn("old", UserWarning, stacklevel=1)

    async def failing() -> None:
        asyncio.get_running_loop().set_exception_handler(logs.log_loop_error)
        asyncio.get_running_loop().call_exception_handler({"message": "a task failed", "exception": raised(surprise),
                                                           "future": BODY})  # fmt: skip

    asyncio.run(failing())
    lines = objects(out)
    assert [line["logger"] for line in lines] == ["shopwindow", "shopwindow", "py.warnings", "asyncio"]
    assert lines[0]["message"].startswith("thread batches died: KeyError in surprise")
    assert "4711" not in out.getvalue()


def test_command_messages_before_configuration_are_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.say("hello")
    assert capsys.readouterr().err == "shopwindow: hello\n"
