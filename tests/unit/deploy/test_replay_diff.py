"""`shopwindow replay-diff`: the replay is deterministic, and the report names each difference."""

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
from deploy.replay.diff import Count, Diff, compare_impressions, compare_pages, compare_profiles, diff_text
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
    """A models directory with another ranker."""
    folder = tmp_path_factory.mktemp("models")
    return write_ranker_folder(folder, seed=7).parent


def replayed(log: Path, shop: Path, output: Path, seed: str) -> dict[str, bytes]:
    """Return what the runner writes, by file name."""
    output.mkdir()
    environ = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deploy.replay.pages", str(log), "--catalog", str(shop), "--outputs", str(output)]
    subprocess.run([*command, "--headlines"], env=environ, cwd=ROOT, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.slow
def test_the_same_log_gives_the_same_bytes_in_any_process(log: Path, shop: Path, tmp_path: Path) -> None:
    first, second = (replayed(log, shop, tmp_path / seed, seed) for seed in ("1", "2"))
    assert first == second and first.keys() == {"pages.jsonl", "impressions.jsonl", "profiles.jsonl"}
    pages = [json.loads(line) for line in first["pages.jsonl"].splitlines()]
    assert len(pages) > 50 and {page["user_key"] for page in pages} == {f"u{k}" for k in range(9)}
    assert all(page["generated_at"].startswith("2026-01-01") for page in pages), "the clock is the event time"
    sources = {slot["title_source"] for page in pages for slot in page["slots"]}
    assert sources == {"template", "gpt2"}, "stand-in headlines arrive after the first runs"
    assert len(first["impressions.jsonl"].splitlines()) == len(pages)
    assert len(first["profiles.jsonl"].splitlines()) >= len(pages)


@pytest.mark.slow
def test_the_same_models_are_equal_and_others_differ_readably(
    log: Path, shop: Path, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ["replay-diff", str(log), "--catalog", str(shop), "--left", str(SHIPPED_MODELS)]
    assert main([*sides, "--right", str(SHIPPED_MODELS)]) == 0
    out = capsys.readouterr().out
    assert "byte for byte the same\n" in out and "profile rows: " in out and " 0 different" in out
    assert main([*sides, "--right", str(other), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["equal"] and report["different"] > 0 and report["shoppers"] == 9
    first = report["first"]["u0"]["differences"]
    assert any(one["what"].startswith("for_you 1") or one["what"].startswith("trending 1") for one in first), first
    assert not any("serving" in one["what"] for one in first)


def page(**more: Any) -> dict[str, Any]:
    items = [
        {"item_id": f"SKU{k}", "score": 0.3 - k / 100, "propensity": 0.5, "reason": {"code": "FRESH"}} for k in range(3)
    ]
    return {
        "user_key": "u1", "version": 1, "trigger": {"event_id": "e1"},
        "serving": {"mode": "full", "ranker": "sha256:a"},
        "slots": [{"slot": "for_you", "title": "For you", "title_source": "template", "items": items}], **more,
    }  # fmt: skip


def compared(tmp_path: Path, left: list[dict[str, Any]], right: list[dict[str, Any]]) -> Diff:
    paths = []
    for name, pages in (("l", left), ("r", right)):
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(json.dumps(one) + "\n" for one in pages))
    return compare_pages(Diff("old", "new"), *paths)


def test_a_difference_names_slot_position_item_score_and_title(tmp_path: Path) -> None:
    changed = copy.deepcopy(page(version=2, serving={"mode": "popular", "ranker": "sha256:b"}))
    changed["slots"][0]["title"] = "Just for you"
    changed["slots"][0]["items"][1]["item_id"] = "SKU9"
    changed["slots"][0]["items"][2]["propensity"] = 0.25
    diff = compared(tmp_path, [page(), page(version=2)], [page(), changed])
    assert (diff.same, diff.different, diff.equal) == (1, 1, False)
    assert diff_text(diff).splitlines() == [
        "left old, right new: 2 pages of both, 1 byte for byte the same, 1 different",
        "impressions and profile rows: not compared, one side writes pages only",
        "u1, version 2, for event e1:",
        "  serving.mode: full | popular",
        "  for_you title: For you (template) | Just for you (template)",
        "  for_you 2: SKU1 0.29 FRESH | SKU9 0.29 FRESH",
        '  for_you 3 rest: {"propensity": 0.5, "reason": {"code": "FRESH"}} | '
        '{"propensity": 0.25, "reason": {"code": "FRESH"}}',
    ]


def test_pages_that_differ_only_in_model_versions_are_equal(tmp_path: Path) -> None:
    diff = compared(tmp_path, [page()], [page(serving={"mode": "full", "ranker": "sha256:b"})])
    assert diff.equal and diff.renamed == 1 and "the same but for the models' versions" in diff_text(diff)


def test_the_report_names_missing_pages_and_the_earliest_difference(tmp_path: Path) -> None:
    other = page(user_key="u2")
    late = [page(version=v, serving={"mode": "static"}) for v in (3, 2)]
    diff = compared(tmp_path, [page(version=2), page(version=3), other], [*late, page(user_key="u3")])
    assert (diff.different, diff.only_left, diff.only_right) == (2, 1, 1)
    assert diff.first["u1"]["version"] == 2
    assert diff.first["u2"]["differences"] == [{"what": "page", "left": "there", "right": "-"}]


def test_impressions_are_compared_without_the_versions_of_models(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    left.write_text('{"page_id": "a", "ranker": "1"}\n{"page_id": "b", "ranker": "1"}\n')
    right.write_text('{"page_id": "a", "ranker": "2"}\n{"page_id": "c", "ranker": "1"}\n{"page_id": "d"}\n')
    assert compare_impressions(left, right) == Count(same=1, different=2)


def test_profile_rows_are_compared_byte_for_byte(tmp_path: Path) -> None:
    left, right = tmp_path / "left", tmp_path / "right"
    left.write_text("aa 01\nbb 02\n")
    right.write_text("aa 01\nbb 03\n")
    assert compare_profiles(left, right) == Count(same=1, different=1)
    assert not Diff("old", "new", profiles=Count(same=1, different=1)).equal


def repository(folder: Path, **modules: str) -> Path:
    """A git checkout whose package `deploy` has these modules, committed."""
    (folder / "deploy").mkdir(parents=True)
    for name, text in {"__init__": "", **modules}.items():
        (folder / "deploy" / f"{name}.py").write_text(text)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    return folder


@pytest.fixture
def old_revision(tmp_path: Path) -> Path:
    """A checkout whose runner only prints pages, as revisions up to 1302050 do."""
    runner = f"print({json.dumps(json.dumps(page()))})\n"
    return repository(tmp_path / "r", replay_pages=runner)


def test_a_revision_runs_in_a_temporary_worktree(
    log: Path, old_revision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old_revision / "deploy" / "replay_pages.py").write_text("an uncommitted change, which must not matter")
    monkeypatch.setattr(replay_diff, "ROOT", old_revision)
    diff = replay_diff.replay_diff(log, "HEAD", "HEAD", None, 0)
    assert diff.equal and diff.same == 1 and diff.profiles is None
    command = ["git", "-C", str(old_revision), "worktree", "list"]
    worktrees = subprocess.run(command, capture_output=True, text=True).stdout
    assert len(worktrees.splitlines()) == 1


@pytest.mark.slow
def test_a_side_that_cannot_run_is_one_sentence(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(left: str, file: Path = log) -> str:
        assert main(["replay-diff", str(file), "--left", left, "--right", left]) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "Traceback" not in err
        return err

    assert "neither a models directory nor a revision" in error("no-such-thing")
    assert "without ranker/manifest.json" in error(str(tmp_path))
    assert "no such file" in error("HEAD", tmp_path / "none")
    (tmp_path / "m" / "ranker").mkdir(parents=True)
    (tmp_path / "m" / "ranker" / "manifest.json").write_text("{}")
    assert "does not run over events.jsonl: " in error(str(tmp_path / "m"))
    monkeypatch.setattr(replay_diff, "ROOT", repository(tmp_path / "old", cli=""))
    assert "'HEAD' has neither deploy/replay/pages.py nor deploy/replay_pages.py" in error("HEAD")
