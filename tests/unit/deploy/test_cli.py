"""The command line as a user meets it: help with examples, errors in one sentence, exit statuses."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from aiokafka.errors import NodeNotReadyError

from deploy.cli.command import repeat_option
from deploy.cli.main import SECTIONS, main, shopwindow
from stream.settings import Settings
from tests.harness.events import record
from tests.harness.worker_process import ROOT


def commands(group: Any, path: str = "") -> Iterator[str]:
    """Yield every command with the names of its groups, such as `topics create`."""
    with click.Context(group) as context:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            yield f"{path}{name}"
            if hasattr(command, "list_commands"):
                yield from commands(command, f"{path}{name} ")


@pytest.fixture(autouse=True)
def no_broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOPWINDOW_DATA_DIR", str(tmp_path / "data"))


@pytest.mark.parametrize("command", commands(shopwindow))
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: shopwindow {command}" in text
    assert f"shopwindow {command}" in text.split("Example")[1]
    if "\nCommands:\n" in text:
        summaries = text.split("\nCommands:\n")[1].split("\n\n")[0]
        assert "..." not in summaries, "a summary is too long"


def test_help_shows_every_command_under_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for heading, names in SECTIONS.items():
        section = text.split(f"\n{heading}:\n")[1].split("\n\n")[0]
        assert [line.split()[0] for line in section.splitlines()] == list(names)
        assert "..." not in section, "a summary is too long"
    assert max(map(len, text.splitlines())) <= 80


def test_a_call_without_a_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "Usage: shopwindow" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "no such command 'dance'; see `shopwindow --help`"),
        (["topics", "drop"], "no such command 'drop'; see `shopwindow topics --help`"),
        (["send"], "missing argument 'FILE'; see `shopwindow send --help`"),
        (["export", "gpt2"], "missing option '--out'; see `shopwindow export --help`"),
        (["demo", "--secnds", "3"], "see `shopwindow demo --help`"),
        (["demo", "--seconds", "0"], "'0' is not a number of seconds above 0 and below 10,000,000; see"),
        (["bench", "page", "--rounds", "0"], "'0' is not a whole number above 0; see"),
        (["replay", "f", "--speed", "-1"], "'-1' is not a number above 0, or max; see"),
        (["replay", "f", "--speed", "nan"], "'nan' is not a number above 0, or max; see"),
        (["copy", "--top-k", "51"], "'51' is not a whole number from 1 to 50; see"),
        (["copy", "--top-p", "lots"], "'lots' is not a number from 0.01 to 1; see"),
        (["bench", "everything"], "'everything' is not one of 'stream', 'page', 'latency', 'recovery', "),
    ],
)
def test_a_usage_error_is_one_line_and_the_status_is_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("shopwindow: ") and output.err.count("\n") == 1 and message in output.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("all --data a b --out c", "all --data a --data b --out c"),
        ("--data a b c", "--data a --data b --data c"),
        ("all --data - --seed -5", "all --data - --seed -5"),
        ("all --data a --data b", "all --data a --data b"),
        ("all --out c", "all --out c"),
    ],
)
def test_an_option_takes_several_files(arguments: str, expected: str) -> None:
    assert " ".join(repeat_option("--data", arguments.split())) == expected


def test_an_interrupted_training_says_how_to_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.train.command.train", interrupted)
    assert main(["train", "ranker"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["settings"]])
def test_a_light_command_imports_no_heavy_module(arguments: list[str]) -> None:
    probe = f"import sys; from deploy.cli.main import main; main({arguments})\n"
    probe += "heavy = {'faust', 'numba', 'onnxruntime', 'transformers', 'aiokafka', 'numpy', 'asyncio'}\n"
    probe += "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_commands(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        probe = "import sys; from deploy.cli.main import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", probe], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
        )

    script = run(_SHOPWINDOW_COMPLETE=f"{shell}_source")
    # Click asks bash for its version, and only warns if there is none.
    assert script.returncode == 0 and f"_SHOPWINDOW_COMPLETE={shell}_complete" in script.stdout, script.stderr
    words = {"COMP_WORDS": "shopwindow dead-letters re", "COMP_CWORD": "re" if shell == "fish" else "2"}
    assert "redrive" in run(_SHOPWINDOW_COMPLETE=f"{shell}_complete", **words).stdout


def test_a_bad_setting_is_named_and_the_status_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOPWINDOW_PARTITIONS", "many")
    assert main(["settings"]) == 2
    assert (
        capsys.readouterr().err
        == "shopwindow: SHOPWINDOW_PARTITIONS is 'many', expected a whole number from 1 to 4096\n"
    )
    assert main(["settings", "--help"]) == 0, "help needs no settings"


@pytest.mark.parametrize(
    "arguments",
    [
        ["send", "x"],
        ["profiles"],
        ["watch"],
        ["topics", "check"],
        ["replay", "x"],
        ["catalog", "load", "x"],
        ["catalog", "delete", "x"],
        ["status"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "1-2"],
        ["dead-letters", "redrive"],
    ],
)
def test_without_a_broker_commands_say_what_to_do(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "no broker: start `shopwindow broker` or `shopwindow worker`, or set SHOPWINDOW_BROKER" in error
    assert error.count("\n") == 1


def test_a_broker_that_does_not_answer_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOPWINDOW_BROKER", "kafka://127.0.0.1:1")
    assert main(["topics", "check"]) == 1
    assert "no Kafka answers at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (MemoryError(), "there is not enough memory; free some, or raise the limit"),
        (ImportError("std::bad_alloc"), "a library cannot be loaded (std::bad_alloc); install it again"),
        (TimeoutError(), "Kafka did not answer in time; check that it runs"),
        (
            NodeNotReadyError("node 1"),
            "Kafka did not do what was asked (NodeNotReadyError: node 1); check that it runs",
        ),
    ],
)
def test_an_error_of_a_library_is_one_sentence(
    raised: BaseException, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr("deploy.train.command.train", fail)
    assert main(["train", "ranker"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_port_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broker", "--port", "80000"]) == 2
    assert "'80000' is not a whole number from 0 to 65535; see" in capsys.readouterr().err


def test_settings_show_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHOPWINDOW_SASL_PASSWORD", "hunter2")
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    assert "hunter2" not in text
    assert any(line.split()[:3] == ["SHOPWINDOW_SASL_PASSWORD", "***", "environment"] for line in text.splitlines())


def test_the_settings_table_holds_defaults_without_local_paths(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--markdown"]) == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head == "| variable | default | expected | meaning |" and rule == "|---|---|---|---|"
    assert len(rows) == len(Settings.__dataclass_fields__)
    assert not any(str(Path.home()) in row or str(ROOT) in row for row in rows)


def test_each_schema_is_written_into_its_own_file(tmp_path: Path) -> None:
    assert main(["schemas", str(tmp_path / "s")]) == 0
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"event-1.json", "event-strict-1.json", "item-1.json", "homepage-1.json", "impression-1.json"}


def test_schemas_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schemas"]) == 0
    schema, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    assert isinstance(schema, dict)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["all", "--impressions"], "train ranker, not all"),
        (["ranker", "--data", "pages.jsonl"], "use `train ranker --impressions`"),
        (["ranker", "--impressions", "--data", "clicks.tsv"], "JSON lines of impressions and events"),
        (["ranker", "--data", "clicks.tsv", "--catalog", "items.jsonl"], "--catalog describes the items"),
        (["ranker", "--data", "clicks.tsv", "events.jsonl"], "files of one kind"),
        (["copywriter", "--data", "events.jsonl"], "leave --data out"),
        (["ranker", "--data", "none.jsonl"], "none.jsonl cannot be read"),
    ],
)
def test_training_names_the_data_that_it_cannot_use(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pages.jsonl").write_text('{"schema":"impression/1"}\n')
    Path("clicks.tsv").write_text("SessionId\tItemId\tTime\n1\ta\t5\n")
    Path("events.jsonl").write_bytes(record(item="a")[1] + b"\n")
    assert main(["train", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "message"),
    [("events.jsonl", "these are events"), ("none", "none cannot be read"), ("packed", "zstd -d packed")],
)
def test_evaluation_names_the_data_that_it_cannot_use(
    train: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("packed").write_bytes(b"\x28\xb5\x2f\xfd...")
    Path("events.jsonl").write_bytes(record(item="a")[1] + b"\n")
    assert main(["evaluate", "--train", train, "--test", "events.jsonl"]) == 1
    assert message in capsys.readouterr().err
