"""Log lines: their form, and what is never in them."""

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
from stream.events import decode
from stream.settings import Settings

PASSWORD = 'open "sesame'
BODY = "u-4711 searched for red shoes"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
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


def configured(**more: Any) -> io.StringIO:
    out = io.StringIO()
    logs.configure(Settings(sasl_password=PASSWORD, **more), out)
    return out


def objects(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def raised(call: Any, *args: Any) -> BaseException:
    try:
        call(*args)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_a_line_of_json_says_when_who_what_and_which_record() -> None:
    out = configured(log_format="json")
    record = SimpleNamespace(partition=3, offset=17)
    logging.getLogger("agents.shopper").warning("refused\nfor %s", "it", extra=logs.about("clicks", record))
    logs.say("ready")
    line, voice = objects(out)
    assert line.pop("time").endswith("Z")
    assert line == {"level": "WARNING", "logger": "agents.shopper", "message": "refused\nfor it",
                    "topic": "clicks", "partition": 3, "offset": 17}  # fmt: skip
    assert (voice["level"], voice["logger"], voice["message"]) == ("INFO", "shopwindow", "ready")


def test_a_line_of_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    out = configured()
    record = SimpleNamespace(partition=3, offset=17)
    logging.getLogger("agents.shopper").warning("refused", extra=logs.about("clicks", record))
    logging.getLogger("agents.shopper").info("not asked for")
    logs.say("ready")
    first, second = out.getvalue().splitlines()
    assert first.endswith("Z WARNING agents.shopper refused [clicks/3/17]"[1:]) and second == "shopwindow: ready"


def test_a_password_is_masked_wherever_it_got_in() -> None:
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
def test_what_an_exception_holds_is_not_told_but_its_type_and_place_are(failing: Any, form: str, level: str) -> None:
    out = configured(log_format=form, log_level=level)
    error = raised(failing)
    logging.getLogger("agents.worker").error("failed: %s", logs.told(error), exc_info=error)
    try:
        raise RuntimeError("a run failed") from error
    except RuntimeError as outer:
        logging.getLogger("agents.worker").error("and so did the rest", exc_info=outer)
    logging.getLogger("mode.services").error("a service says %r and %s", error, error)
    logging.getLogger("aiokafka").error("a record: %r", BODY.encode())
    told = out.getvalue()
    assert "4711" not in told and "red shoes" not in told and type(error).__name__ in told
    assert "a run failed" in told


def test_sentences_are_told_whoever_raises_them() -> None:
    assert logs.told(raised(Path("/none").read_text)).endswith("No such file or directory: '/none'")
    assert "Unable to bootstrap" in logs.told(KafkaConnectionError("Unable to bootstrap"))
    # A ValueError whose words we chose, as opposed to one of int(): what is raised by our own `raise`.
    from stream.items.activity import decode_activity

    assert logs.told(raised(decode_activity, b"x")) == "a value of 1 bytes is too short for item activity"
    assert logs.told(raised(surprise)).startswith("KeyError in surprise, ")


def test_a_refused_events_message_stays_out_of_the_log() -> None:
    """EventError's words hold what was found; it is caught where it is raised, and only code and field are logged."""
    assert BODY in str(raised(decode, f'{{"x": "{BODY}"'.encode(), b"u", "clicks"))


def test_a_traceback_comes_with_debug_or_json_and_once() -> None:
    error = raised(surprise)
    for form, level, wanted in (("text", "INFO", 0), ("text", "DEBUG", 1), ("json", "INFO", 1)):
        out = configured(log_format=form, log_level=level)
        error.__dict__.clear()
        for name in ("agents.worker", "mode.services", "asyncio"):
            logging.getLogger(name).error("it failed", exc_info=error)
        assert out.getvalue().count("it failed") == 1
        assert out.getvalue().count("in surprise: dict[str, int]()[BODY]") == wanted


def test_the_last_words_of_a_worker_are_said_though_the_error_was_told_before() -> None:
    out = configured(log_level="DEBUG")
    error = raised(surprise)
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task x=%s>", BODY, exc_info=error)
    logging.getLogger("shopwindow").critical("the worker stopped: %s", logs.told(error), exc_info=error)
    assert out.getvalue().splitlines()[-1].startswith("shopwindow: the worker stopped: KeyError in surprise")
    assert "4711" not in out.getvalue() and out.getvalue().count("in surprise: dict[str, int]()[BODY]") == 1


def test_libraries_are_quiet_below_warning_whatever_the_level() -> None:
    out = configured(log_level="DEBUG")
    for name in ("aiokafka.consumer.fetcher", "faust.transport", "mode.services", "numba.core", "asyncio"):
        logging.getLogger(name).info("records: %s", BODY)
        logging.getLogger(name).debug("records: %s", BODY)
    assert out.getvalue() == ""
    logging.getLogger("stream.kafka.tables.table").info("[^--BatchRecovery]: Faust, by the name of its service of ours")
    assert out.getvalue() == ""
    logging.getLogger("stream.kafka").debug("ours")
    assert "ours" in out.getvalue()


def test_troubles_that_kafkas_clients_mend_themselves_and_crashes_that_we_tell_are_left_out() -> None:
    out = configured()
    logging.getLogger("aiokafka.consumer.fetcher").error("Failed fetch: %s", "[Error 6] NotLeaderForPartitionError")
    logging.getLogger("mode.services").error("[^App]: Crashed reason=%r", RuntimeError("x"))
    logging.getLogger("stream.kafka.app").error("[^BatchApp]: Crashed reason=%r", RuntimeError("x"))
    logging.getLogger("stream.kafka.consumer").error("[^-BatchConsumer]: Error while stopping child %r: %s", 1, 2)
    assert out.getvalue() == ""
    logging.getLogger("aiokafka").error("Unable to connect")
    assert "Unable to connect" in out.getvalue()


def test_a_flood_of_like_lines_is_thinned_and_counted() -> None:
    now = [0.0]
    sparing = logs.Sparing(lambda: now[0])

    def passes(text: str, name: str = "agents.shopper") -> logging.LogRecord | None:
        record = logging.LogRecord(name, logging.WARNING, "", 0, "refused, %s", (text,), None)
        return record if sparing.filter(record) else None

    assert [bool(passes(str(k))) for k in range(100)] == [True] * 5 + [False] * 95
    assert passes("other", "agents.items") is not None
    assert all(passes("x", "shopwindow") for _ in range(100)), "what was asked for is always said"
    now[0] = 60.0
    record = passes("again")
    assert record is not None and record.more == " (and 95 more like it since)"  # type: ignore[attr-defined]
    next_one = passes("once more")
    assert next_one is not None and not hasattr(next_one, "more")


def test_what_dies_outside_of_our_hands_is_a_line_too() -> None:
    out = configured(log_format="json")
    thread = threading.Thread(target=surprise, name="batches")
    thread.start()
    thread.join()
    sys.excepthook(KeyError, raised(surprise), None)
    warnings.warn("old", UserWarning, stacklevel=1)

    async def forgotten() -> None:
        asyncio.get_running_loop().set_exception_handler(logs.loop_failed)
        asyncio.get_running_loop().call_exception_handler({"message": "a task failed", "exception": raised(surprise),
                                                           "future": BODY})  # fmt: skip

    asyncio.run(forgotten())
    told = objects(out)
    assert [line["logger"] for line in told] == ["shopwindow", "shopwindow", "py.warnings", "asyncio"]
    assert told[0]["message"].startswith("thread batches died: KeyError in surprise")
    assert "4711" not in out.getvalue()


def test_before_a_command_configures_logs_what_it_says_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    logs.say("hello")
    assert capsys.readouterr().err == "shopwindow: hello\n"
