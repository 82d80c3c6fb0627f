"""Commands, traced: they write below the data, cache and temporary folders only, and contact nothing but the broker."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.harness import gpt2_checkpoints
from tests.harness.events import record
from tests.harness.shop import item
from tests.harness.tracing import Trace, needs_strace, start_traced, trace_of, traced
from tests.harness.worker_process import ROOT, clicks, command, environ_of, settings_for

pytestmark = needs_strace
CLEAN = Trace(0, set(), set())


def run(folder: Path, arguments: Sequence[str], **environ: str) -> Trace:
    """A command with its data and temporary folders below `folder`; the compiled kernels and the jars stay cached."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    places = {"TMPDIR": str(folder / "tmp"), "SHOPWINDOW_DATA_DIR": str(folder / "data")}
    program = [sys.executable, "-m", "shopwindow", *arguments]
    return traced(program, folder, allowed_in(folder), **places, **environ)


def allowed_in(folder: Path) -> list[Path]:
    return [folder / "tmp", folder / "data", folder / "out", ROOT / ".cache"]


def test_a_demo_with_its_broker_and_worker_stays_on_this_machine(tmp_path: Path) -> None:
    trace = run(tmp_path, ["demo", "--seconds", "5"])
    assert trace == CLEAN, f"{trace}\n{trace.output}"
    assert not list((tmp_path / "home").rglob("*")) and not list((tmp_path / "tmp").glob("shopwindow*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["settings"],
        ["metrics"],
        ["kinds"],
        ["schemas", "out"],
        ["models", "list"],
        ["models", "verify", "history"],
        ["copy"],
        ["export", "checkpoint", "--out", "out"],
        ["evaluate", "--train", "clicks", "--test", "clicks", "--no-history"],
        ["replay-diff", "events", "--left", "models/default", "--right", "models/default"],
    ],
    ids=lambda arguments: "-".join(arguments[:2]),
)
def test_a_command_without_a_broker_contacts_nothing(arguments: list[str], tmp_path: Path) -> None:
    events, sessions, checkpoint = tmp_path / "events", tmp_path / "clicks", tmp_path / "checkpoint"
    events.write_bytes(b"\n".join(value for _, value in clicks(50, 5) if value))
    rows = "".join(f"{n // 4}\t{1 + n * n % 17}\t{1_400_000_000 + 60 * n}\n" for n in range(1200))
    sessions.write_text("SessionId\tItemId\tTime\n" + rows)
    gpt2_checkpoints.byte_level().save(str(gpt2_checkpoints.save(checkpoint) / "tokenizer.json"))
    places = {path.name: str(path) for path in (tmp_path / "out", events, sessions, checkpoint)}
    trace = run(tmp_path, [places.get(argument, argument) for argument in arguments])
    assert trace == CLEAN, f"{trace}\n{trace.output}"


def test_commands_contact_the_broker_only(broker: str, topic_prefix: str, tmp_path: Path) -> None:
    settings = settings_for(broker, topic_prefix)
    environ = {name: value for name, value in environ_of(settings).items() if name.startswith("SHOPWINDOW_")}
    environ.pop("SHOPWINDOW_DATA_DIR", None)
    shop, events = tmp_path / "shop.jsonl", tmp_path / "events.jsonl"
    shop.write_bytes(b"\n".join(item(f"i{k}")[1] for k in range(20)))
    events.write_bytes(b"\n".join([*(value for _, value in clicks(50, 4) if value), b"{half an event"]))
    for arguments in (
        ["topics", "create"], ["catalog", "load", str(shop)], ["send", str(events), "--force"],
        ["replay", str(events), "--skip-bad"], ["profiles"], ["dead-letters", "list"], ["topics", "check"], ["status"],
    ):  # fmt: skip
        folder = tmp_path / "-".join(arguments[:2]).replace("/", "")
        trace = run(folder, arguments, **environ)
        trace.status -= arguments == ["status"]  # 1: no worker runs
        assert trace == CLEAN, f"{arguments}: {trace}\n{trace.output}"


def test_a_broker_that_is_used_and_stopped_leaves_only_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    process = start_traced(
        [sys.executable, "-m", "shopwindow", "broker", "--port", "0"], tmp_path,
        SHOPWINDOW_DATA_DIR=str(tmp_path / "data"), TMPDIR=str(tmp_path / "tmp"),
    )  # fmt: skip
    assert process.stdout is not None
    lines: list[str] = []
    while not (lines and "export SHOPWINDOW_BROKER" in lines[-1]):
        lines.append(process.stdout.readline())
        assert lines[-1], lines
    address = re.search(r"kafka://([\d.:]+)", lines[-1])
    assert address is not None
    done = command(
        settings_for(address[1], "", partitions=8), "send", "-", input=record("view_item", item="a")[1].decode()
    )
    assert done.returncode == 0, done.stderr
    # strace does not pass the signal on, so its child gets it.
    [child] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert trace_of(tmp_path, process.returncode, output, allowed_in(tmp_path)) == CLEAN, output
