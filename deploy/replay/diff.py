"""Replay one log through two versions, and report whether their pages, impressions and profile rows are the same.

A version is a git revision of the project, or a models directory. A revision runs in a git worktree of its own, with
this interpreter and its own models. A models directory runs with the current code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from deploy.io.files import InputError

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path("deploy") / "replay" / "pages.py"
# The runner of revisions up to 1302050: it prints pages, without impressions, profiles and headlines.
PAGES_ONLY_RUNNER = Path("deploy") / "replay_pages.py"
MODEL_FIELDS = ("ranker", "head", "history", "copywriter")  # of a page's `serving`: they differ if the models do
IMPRESSION_MODEL_FIELDS = ("ranker", "head", "history", "features_hash")
TEXT_SHOPPERS, TEXT_LINES = 10, 8  # shoppers in the text, and lines for each
JSON_SHOPPERS = 1000
ABSENT = "-"


class DiffError(RuntimeError):
    """A side cannot run; the message says which side and why."""


class Side(NamedTuple):
    name: str  # as the operator gave it
    tree: Path  # folder of the code
    models: Path | None  # None: the tree's own models

    @property
    def writes_pages_only(self) -> bool:
        return not (self.tree / RUNNER).is_file()


@dataclass
class Count:
    """Records of one kind, compared."""

    same: int = 0
    different: int = 0


@dataclass
class Diff:
    """The result of a comparison. Pages are matched by shopper and version, other records by their order."""

    left: str
    right: str
    same: int = 0  # pages that are byte for byte the same
    renamed: int = 0  # pages that differ only in the versions of the models
    different: int = 0
    only_left: int = 0
    only_right: int = 0
    first: dict[str, dict[str, Any]] = field(default_factory=dict)  # shopper -> their first page that differs
    impressions: Count | None = None  # None: one side writes pages only
    profiles: Count | None = None

    @property
    def equal(self) -> bool:
        others = (self.impressions, self.profiles)
        return not (
            self.different or self.only_left or self.only_right or any(count and count.different for count in others)
        )


def replay_diff(log: Path, left: str, right: str, catalog: Path | None, limit: int) -> Diff:
    """Compare two versions over one log; limit 0: all of its events.

    Raises InputError if a file or a side does not exist, DiffError if a side does not run.
    """
    for path in (log, *([catalog] if catalog else [])):
        if not path.is_file():
            raise InputError(f"{path} cannot be read (no such file); replay-diff reads it twice")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shopwindow-diff-")))
        sides = {name: stack.enter_context(_side(name)) for name in dict.fromkeys((left, right))}
        pages_only = any(side.writes_pages_only for side in sides.values())
        outputs = []
        for number, name in enumerate((left, right)):
            outputs.append(folder / str(number))
            outputs[-1].mkdir()
            _run(sides[name], log.resolve(), catalog and catalog.resolve(), limit, outputs[-1], pages_only)
        diff = compare_pages(Diff(left, right), *(output / "pages.jsonl" for output in outputs))
        if not pages_only:
            diff.impressions = compare_impressions(*(output / "impressions.jsonl" for output in outputs))
            diff.profiles = compare_profiles(*(output / "profiles.jsonl" for output in outputs))
        return diff


@contextmanager
def _side(name: str) -> Iterator[Side]:
    path = Path(name)
    if path.is_dir():
        if not (path / "ranker" / "manifest.json").is_file():
            raise InputError(
                f"'{name}' is a directory without ranker/manifest.json; expected a models directory such as "
                "models/default"
            )
        yield Side(name, ROOT, path.resolve())
        return
    found = _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if found.returncode:
        raise InputError(
            f"'{name}' is neither a models directory nor a revision of the git checkout {ROOT}; "
            "`git log --oneline` lists revisions"
        )
    with tempfile.TemporaryDirectory(prefix="shopwindow-version-") as folder:
        tree = Path(folder) / "tree"
        added = _git("worktree", "add", "--quiet", "--detach", str(tree), found.stdout.strip())
        if added.returncode:
            raise DiffError(f"'{name}' cannot be checked out: {added.stderr.strip().splitlines()[-1]}")
        try:
            if not any((tree / runner).is_file() for runner in (RUNNER, PAGES_ONLY_RUNNER)):
                raise InputError(
                    f"'{name}' has neither {RUNNER} nor {PAGES_ONLY_RUNNER}: it is older than replay-diff, and "
                    "cannot be compared"
                )
            yield Side(name, tree, None)
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise DiffError(
            "git is not installed, and replay-diff needs it to check out revisions; compare models directories instead"
        ) from None


def _run(side: Side, log: Path, catalog: Path | None, limit: int, output: Path, pages_only: bool) -> None:
    """Run one side's own runner; it writes the files of `output`."""
    module = ".".join((PAGES_ONLY_RUNNER if side.writes_pages_only else RUNNER).with_suffix("").parts)
    command = [sys.executable, "-m", module, str(log), "--limit", str(limit)]
    command += ["--models", str(side.models)] if side.models else []
    command += ["--catalog", str(catalog)] if catalog else []
    command += [] if side.writes_pages_only else ["--outputs", str(output)]
    command += [] if pages_only else ["--headlines"]
    # No SHOPWINDOW_* variable: the same log must give the same pages wherever it is replayed.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SHOPWINDOW_")}
    # The kernels of a temporary tree are not worth keeping.
    cache = os.environ.get("SHOPWINDOW_CACHE", str(ROOT / ".cache"))
    cache = cache if side.tree == ROOT else str(side.tree.parent / "cache")
    environ |= {"PYTHONPATH": str(side.tree), "SHOPWINDOW_CACHE": cache}
    stdout = output / ("pages.jsonl" if side.writes_pages_only else "stdout")
    with stdout.open("wb") as file:
        done = subprocess.run(command, cwd=side.tree, env=environ, stdout=file, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise DiffError(f"'{side.name}' does not run over {log.name}: {reason}")


def compare_pages(diff: Diff, left: Path, right: Path) -> Diff:
    """Compare two files of pages, one a line. Memory holds the position of each left page, not the page."""
    with left.open("rb") as old, right.open("rb") as new:
        positions: dict[tuple[str, int], tuple[int, int]] = {}
        at = 0
        for line in old:
            positions[_page_key(json.loads(line))] = at, len(line)
            at += len(line)
        for line in new:
            page = json.loads(line)
            position = positions.pop(_page_key(page), None)
            if position is None:
                diff.only_right += 1
                _note(diff, page, [{"what": "page", "left": ABSENT, "right": "there"}])
                continue
            old.seek(position[0])
            before = old.read(position[1])
            if before == line:
                diff.same += 1
                continue
            found = differences(json.loads(before), page)
            if found:
                diff.different += 1
                _note(diff, page, found)
            else:
                diff.renamed += 1
        for start, length in positions.values():
            old.seek(start)
            diff.only_left += 1
            _note(diff, json.loads(old.read(length)), [{"what": "page", "left": "there", "right": ABSENT}])
    return diff


def compare_impressions(left: Path, right: Path) -> Count:
    """Compare two files of impressions line by line; versions of the models may differ."""
    count = Count()
    with left.open("rb") as old, right.open("rb") as new:
        for before, after in zip_longest(old, new):
            if before == after or (before and after and _without_models(before) == _without_models(after)):
                count.same += 1
            else:
                count.different += 1
    return count


def _without_models(line: bytes) -> dict[str, Any]:
    impression = json.loads(line)
    return {name: value for name, value in impression.items() if name not in IMPRESSION_MODEL_FIELDS}


def compare_profiles(left: Path, right: Path) -> Count:
    """Compare two files of profile rows line by line, byte for byte."""
    count = Count()
    with left.open("rb") as old, right.open("rb") as new:
        for before, after in zip_longest(old, new):
            if before == after:
                count.same += 1
            else:
                count.different += 1
    return count


def _page_key(page: dict[str, Any]) -> tuple[str, int]:
    return page["user_key"], page["version"]


def _note(diff: Diff, page: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """Keep the differences of a page if it is the shopper's earliest."""
    known = diff.first.get(page["user_key"])
    if known is None or page["version"] < known["version"]:
        event = page["trigger"]["event_id"]
        diff.first[page["user_key"]] = {"version": page["version"], "event": event, "differences": found}


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[dict[str, Any]]:
    """Return how two pages differ: [{what, left, right}]; `what` is a field, or a slot and a position in it."""
    before, after = dict(_facts(left)), dict(_facts(right))
    return [
        {"what": what, "left": before.get(what, ABSENT), "right": after.get(what, ABSENT)}
        for what in dict.fromkeys([*before, *after])
        if before.get(what, ABSENT) != after.get(what, ABSENT)
    ]


def _facts(page: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in page.items():
        if name == "serving":
            yield from ((f"serving.{n}", str(v)) for n, v in value.items() if n not in MODEL_FIELDS)
        elif name != "slots":
            yield name, json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else str(value)
    yield "slots", " ".join(slot["slot"] for slot in page["slots"])
    for slot in page["slots"]:
        yield f"{slot['slot']} title", f"{slot['title']} ({slot['title_source']})"
        for at, item in enumerate(slot["items"]):
            summary = f"{item['item_id']} {item['score']:.6g} {item['reason']['code']}"
            rest = {name: value for name, value in item.items() if name not in ("item_id", "score")}
            yield f"{slot['slot']} {at + 1}", summary
            # Propensity, exploration and the reason's weight may differ while the summary does not.
            yield f"{slot['slot']} {at + 1} rest", json.dumps(rest, sort_keys=True)


def diff_text(diff: Diff) -> str:
    """Return the result as lines for a terminal."""
    pages = diff.same + diff.renamed + diff.different
    counts = [f"{diff.same} byte for byte the same"]
    counts += [f"{diff.renamed} the same but for the models' versions"] if diff.renamed else []
    counts += [f"{diff.different} different"] if diff.different else []
    counts += [f"{diff.only_left} only left"] if diff.only_left else []
    counts += [f"{diff.only_right} only right"] if diff.only_right else []
    lines = [f"left {diff.left}, right {diff.right}: {pages} pages of both, {', '.join(counts)}"]
    for name, count in (("impressions", diff.impressions), ("profile rows", diff.profiles)):
        if count is not None:
            lines.append(f"{name}: {count.same} the same, {count.different} different")
    if diff.impressions is None:
        lines.append("impressions and profile rows: not compared, one side writes pages only")
    for shopper, first in sorted(diff.first.items())[:TEXT_SHOPPERS]:
        lines.append(f"{_printable(shopper)}, version {first['version']}, for event {_printable(first['event'])}:")
        named = {one["what"] for one in first["differences"]}
        # The rest of an item is only shown if its summary is the same.
        shown = [d for d in first["differences"] if not (d["what"].endswith(" rest") and d["what"][:-5] in named)]
        lines += [f"  {d['what']}: {_printable(d['left'])} | {_printable(d['right'])}" for d in shown[:TEXT_LINES]]
        if len(shown) > TEXT_LINES:
            lines.append(f"  and {len(shown) - TEXT_LINES} more")
    if len(diff.first) > TEXT_SHOPPERS:
        lines.append(f"and {len(diff.first) - TEXT_SHOPPERS} more shoppers")
    return "\n".join(lines)


def diff_json(diff: Diff) -> dict[str, Any]:
    """Return the result for `--json`: counts, and the first difference of at most JSON_SHOPPERS shoppers."""
    return {
        "equal": diff.equal,
        "left": diff.left,
        "right": diff.right,
        "same": diff.same,
        "renamed": diff.renamed,
        "different": diff.different,
        "only_left": diff.only_left,
        "only_right": diff.only_right,
        "impressions": None if diff.impressions is None else vars(diff.impressions),
        "profiles": None if diff.profiles is None else vars(diff.profiles),
        "shoppers": len(diff.first),
        "first": dict(sorted(diff.first.items())[:JSON_SHOPPERS]),
    }


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
