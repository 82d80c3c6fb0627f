"""The same log through two versions: determinism, and what an operator is told of a difference."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.cli.main import main
from deploy.replay import diff as replay_diff
from deploy.replay.diff import Diff, compare, diff_text
from stream.settings import SHIPPED_MODELS
from tests.harness.events import NOW, record
from tests.harness.ranker_model import write_ranker_folder
from tests.harness.shop import item
from tests.harness.worker_process import ROOT


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = ("view_item", "select_item", "add_to_cart", "search", "view_homepage")
    lines = []
    for k in range(200):
        more: dict[str, Any] = {"item": f"i{k * k % 40}"} if k % 5 < 3 else {"search_term": "thing"}
        lines.append(record(kinds[k % 5], f"u{k % 9}", f"e{k}", NOW + 60 * k, **more)[1])
    lines.append(record("purchase", "u1", "bought", NOW + 1, item="i3", transaction_id="t")[1])
    lines.append(b'{"type": "warp"}')
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.fixture(scope="module")
def shop(log: Path) -> Path:
    path = log.with_name("items.jsonl")
    path.write_bytes(b"\n".join(item(f"i{k}", category=f"c{k % 5}")[1] for k in range(30)))
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with another ranker."""
    folder = tmp_path_factory.mktemp("models")
    return write_ranker_folder(folder, seed=7).parent


def replayed(log: Path, shop: Path, seed: str) -> bytes:
    environ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "deploy.replay.pages", str(log), "--catalog", str(shop)], env=environ, cwd=ROOT,
        check=True, capture_output=True,
    ).stdout  # fmt: skip


def test_the_same_log_gives_the_same_bytes_in_any_process(log: Path, shop: Path) -> None:
    first, second = replayed(log, shop, "1"), replayed(log, shop, "2")
    assert first == second
    pages = [json.loads(line) for line in first.splitlines()]
    assert len(pages) > 50 and {page["user_key"] for page in pages} == {f"u{k}" for k in range(9)}
    assert all(page["generated_at"].startswith("2026-01-01") for page in pages), "the clock is that of the events"


def test_the_same_models_are_equal_and_others_differ_readably(
    log: Path, shop: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ["replay-diff", str(log), "--catalog", str(shop), "--left", str(SHIPPED_MODELS)]
    assert main([*sides, "--right", str(SHIPPED_MODELS)]) == 0
    assert "byte for byte the same\n" in capsys.readouterr().out
    assert main([*sides, "--right", str(other), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["equal"] and told["different"] > 0 and told["shoppers"] == 9
    first = told["first"]["u0"]["differences"]
    assert any(one["what"].startswith("for_you 1") or one["what"].startswith("trending 1") for one in first), first
    assert not any("serving" in one["what"] for one in first)


def page(**more: Any) -> dict[str, Any]:
    items = [
        {"item_id": f"SKU{k}", "score": 0.3 - k / 100, "propensity": 0.5, "reason": {"code": "FRESH"}} for k in range(3)
    ]
    return {
        "user_key": "u1", "version": 1, "trigger": {"event_id": "e1"}, "serving": {"mode": "full", "ranker": "sha256:a"},
        "slots": [{"slot": "for_you", "title": "For you", "title_source": "template", "items": items}], **more,
    }  # fmt: skip


def compared(tmp_path: Path, left: list[dict[str, Any]], right: list[dict[str, Any]]) -> Diff:
    paths = []
    for name, pages in (("l", left), ("r", right)):
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(json.dumps(one) + "\n" for one in pages))
    return compare(Diff("old", "new"), *paths)


def test_a_difference_names_slot_position_item_score_and_title(tmp_path: Path) -> None:
    changed = copy.deepcopy(page(version=2, serving={"mode": "popular", "ranker": "sha256:b"}))
    changed["slots"][0]["title"] = "Just for you"
    changed["slots"][0]["items"][1]["item_id"] = "SKU9"
    changed["slots"][0]["items"][2]["propensity"] = 0.25
    diff = compared(tmp_path, [page(), page(version=2)], [page(), changed])
    assert (diff.same, diff.different, diff.equal) == (1, 1, False)
    assert diff_text(diff).splitlines() == [
        "left old, right new: 2 pages of both, 1 byte for byte the same, 1 different",
        "u1, version 2, for event e1:",
        "  serving.mode: full | popular",
        "  for_you title: For you (template) | Just for you (template)",
        "  for_you 2: SKU1 0.29 FRESH | SKU9 0.29 FRESH",
        '  for_you 3 rest: {"propensity": 0.5, "reason": {"code": "FRESH"}} | '
        '{"propensity": 0.25, "reason": {"code": "FRESH"}}',
    ]


def test_pages_that_differ_in_the_models_version_only_are_equal(tmp_path: Path) -> None:
    diff = compared(tmp_path, [page()], [page(serving={"mode": "full", "ranker": "sha256:b"})])
    assert diff.equal and diff.renamed == 1 and "the same but for the models' versions" in diff_text(diff)


def test_a_page_of_one_side_only_and_the_earliest_difference_are_told(tmp_path: Path) -> None:
    other = page(user_key="u2")
    late = [page(version=v, serving={"mode": "static"}) for v in (3, 2)]
    diff = compared(tmp_path, [page(version=2), page(version=3), other], [*late, page(user_key="u3")])
    assert (diff.different, diff.only_left, diff.only_right) == (2, 1, 1)
    assert diff.first["u1"]["version"] == 2
    assert diff.first["u2"]["differences"] == [{"what": "page", "left": "there", "right": "-"}]


def repository(folder: Path, **modules: str) -> Path:
    """A git checkout whose package `deploy` has these modules, committed."""
    (folder / "deploy").mkdir(parents=True)
    for name, text in {"__init__": "", **modules}.items():
        (folder / "deploy" / f"{name}.py").write_text(text)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    return folder


def test_a_revision_runs_in_a_worktree_that_is_gone_afterwards(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = f"print({json.dumps(json.dumps(page()))})\n"
    root = repository(tmp_path / "r", replay_pages=runner)
    (root / "deploy" / "replay_pages.py").write_text("not committed, and so of no matter")
    monkeypatch.setattr(replay_diff, "ROOT", root)
    diff = replay_diff.replay_diff(log, "HEAD", "HEAD", None, 0)
    assert diff.equal and diff.same == 1
    told = subprocess.run(["git", "-C", str(root), "worktree", "list"], capture_output=True, text=True).stdout
    assert len(told.splitlines()) == 1


def test_a_side_that_cannot_be_run_is_one_sentence(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(left: str, file: Path = log) -> str:
        assert main(["replay-diff", str(file), "--left", left, "--right", left]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "Traceback" not in err
        return err

    assert "neither a models directory nor a revision" in told("no-such-thing")
    assert "without ranker/manifest.json" in told(str(tmp_path))
    assert "no such file" in told("HEAD", tmp_path / "none")
    (tmp_path / "m" / "ranker").mkdir(parents=True)
    (tmp_path / "m" / "ranker" / "manifest.json").write_text("{}")
    assert "does not run over events.jsonl: " in told(str(tmp_path / "m"))
    monkeypatch.setattr(replay_diff, "ROOT", repository(tmp_path / "old", cli=""))
    assert "'HEAD' has no deploy/replay/pages.py: it is from before replay-diff" in told("HEAD")
