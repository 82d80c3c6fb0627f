"""The command line as a user meets it: help with examples, errors in one sentence."""

import argparse
import gzip
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy.io.clients import clickstream

from deploy.cli.main import main, parser
from deploy.io.event_log import click_record
from deploy.io.files import InputError, event_records, opened
from stream.events import decode
from tests.harness.events import record


def commands(of: argparse.ArgumentParser, above: str = "") -> Iterator[str]:
    """All there are, with their actions."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                yield f"{above}{name}"
                yield from commands(parser, f"{above}{name} ")


@pytest.fixture(autouse=True)
def nobody_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOPWINDOW_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("command", commands(parser()))
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "example: " in told and f"shopwindow {command}" in told.split("example: ")[1]


def test_a_training_that_is_interrupted_says_that_it_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.train.command.train", interrupted)
    assert main(["train", "ranker"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_help_does_not_load_what_it_does_not_need() -> None:
    probe = "import sys; from deploy.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    probe += "heavy = {'faust', 'numba', 'onnxruntime', 'transformers', 'aiokafka', 'numpy'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bad_setting_is_named_and_the_status_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOPWINDOW_PARTITIONS", "many")
    assert main(["settings"]) == 2
    assert (
        capsys.readouterr().err
        == "shopwindow: SHOPWINDOW_PARTITIONS is 'many', expected a whole number from 1 to 4096\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "x"],
        ["profiles"],
        ["watch"],
        ["topics", "check"],
        ["replay", "x"],
        ["catalog", "load", "x"],
        ["status"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "1-2"],
        ["dead-letters", "redrive"],
    ],
)
def test_without_a_broker_commands_say_what_to_do(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "no broker: start `shopwindow broker` or `shopwindow worker`, or set SHOPWINDOW_BROKER" in told
    assert told.count("\n") == 1


def test_a_broker_that_does_not_answer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOPWINDOW_BROKER", "kafka://127.0.0.1:1")
    assert main(["topics", "check"]) == 1
    assert "no Kafka answers at 127.0.0.1:1" in capsys.readouterr().err


def test_settings_show_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOPWINDOW_SASL_PASSWORD", "hunter2")
    assert main(["settings"]) == 0
    told = capsys.readouterr().out
    assert "hunter2" not in told
    assert any(line.split()[:3] == ["SHOPWINDOW_SASL_PASSWORD", "***", "environment"] for line in told.splitlines())


def test_schemas_are_written_one_a_file(tmp_path: Path) -> None:
    assert main(["schemas", str(tmp_path / "s")]) == 0
    assert {path.name for path in (tmp_path / "s").iterdir()} == {
        "event-1.json",
        "item-1.json",
        "homepage-1.json",
        "impression-1.json",
    }


def test_lines_of_events_find_their_topic_and_key_or_go_to_be_judged() -> None:
    lines = [record("purchase", "u1", item="a", transaction_id="t")[1].decode(), record("view_item", "u2", item="a")[1].decode(),
             "", "{garbage", "[]", '{"type": 7, "data": null}', record("consent", "u3")[1].decode()]  # fmt: skip
    made = [(out.topic, out.key) for out in event_records(lines)]
    assert made == [
        ("purchases", b"u1"),
        ("clicks", b"u2"),
        ("clicks", None),
        ("clicks", None),
        ("clicks", None),
        ("privacy", b"u3"),
    ]


def stream_of(text: str) -> list[tuple[float, str, str]]:
    first, *rest = text.splitlines(keepends=True)
    return [(c.time, c.session, c.item) for c in clickstream(first, iter(rest), "f")]  # type: ignore[arg-type]


def test_a_clickstream_is_read_in_order_of_time_whatever_the_order_of_its_columns() -> None:
    expected = [(1.4e9, "s1", "b"), (1.4e9 + 1, "s1", "a"), (1767225600.0, "s2", "c")]
    assert stream_of("SessionId\tItemId\tTime\ns1\ta\t1400000001\ns1\tb\t1400000000.0\ns2\tc\t1767225600\n") == expected
    assert stream_of("Time,SessionId,ItemId\n1400000001,s1,a\n1400000000,s1,b\n2026-01-01T00:00:00,s2,c\n") == expected


def test_replayed_clicks_are_valid_events_whose_ids_come_from_their_content() -> None:
    rows = "SessionId\tItemId\tTime\ns1\ta\t1400000000\ns1\ta\t1400000000\n"
    first, *rest = rows.splitlines(keepends=True)
    clicks = clickstream(first, iter(rest), "f")  # type: ignore[arg-type]
    records = [click_record(click) for click in clicks]
    events = [decode(out.value, out.key, "clicks") for out in records]
    assert len({event.id for event in events}) == 2
    assert [click.id for click in clicks] == [click.id for click in clickstream(first, iter(rest), "g")]  # type: ignore[arg-type]


def test_files_that_cannot_be_used_are_named_with_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.tsv cannot be read"), opened(str(tmp_path / "none.tsv")):
        pass
    with pytest.raises(InputError, match="expected SessionId, ItemId, Time"):
        stream_of("a,b\n1,2\n")
    for bad in ("soon", "1400000000000000000000", "1", ""):
        with pytest.raises(InputError, match="line 3"):
            stream_of(f"SessionId,ItemId,Time\ns,i,1400000000\ns,i,{bad}\n")
    with pytest.raises(InputError, match="empty"):
        stream_of("\n")
    (tmp_path / "a.zst").write_bytes(b"\x28\xb5\x2f\xfd...")
    with pytest.raises(InputError, match="zstd -d"), opened(str(tmp_path / "a.zst")):
        pass
    broken = tmp_path / "broken.gz"
    packed = bytearray(gzip.compress(bytes(range(256)) * 400))
    packed[len(packed) // 2] ^= 0xFF
    broken.write_bytes(packed)
    with pytest.raises(InputError, match="damaged gzip"), opened(str(broken)) as file:
        file.read()
    torn = tmp_path / "torn.gz"
    torn.write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(InputError, match="damaged gzip"), opened(str(torn)) as file:
        file.read()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["all", "--impressions"], "train ranker, not all"),
        (["ranker", "--data", "pages.jsonl"], "train ranker --impressions learns from them"),
        (["ranker", "--impressions", "--data", "clicks.tsv"], "JSON lines of impressions and events"),
        (["ranker", "--data", "clicks.tsv", "--catalog", "items.jsonl"], "--catalog tells of the items"),
        (["ranker", "--data", "clicks.tsv", "events.jsonl"], "files of one kind"),
        (["copywriter", "--data", "events.jsonl"], "leave --data out"),
        (["ranker", "--data", "none.jsonl"], "none.jsonl cannot be read"),
    ],
)
def test_training_says_what_data_it_cannot_use(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pages.jsonl").write_text('{"schema":"impression/1"}\n')
    Path("clicks.tsv").write_text("SessionId\tItemId\tTime\n1\ta\t5\n")
    Path("events.jsonl").write_bytes(record(item="a")[1] + b"\n")
    assert main(["train", *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "told"),
    [("events.jsonl", "these are events"), ("none", "none cannot be read"), ("packed", "zstd -d packed")],
)
def test_evaluation_says_what_it_cannot_use(
    train: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("packed").write_bytes(b"\x28\xb5\x2f\xfd...")
    Path("events.jsonl").write_bytes(record(item="a")[1] + b"\n")
    assert main(["evaluate", "--train", train, "--test", "events.jsonl"]) == 1
    assert told in capsys.readouterr().err
