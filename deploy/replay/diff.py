"""The same log through two versions: the same pages, or where they differ.

A version is a revision of the project (it runs in a git worktree of its own, with this interpreter and its own models) or a
models directory (this code with those models).
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
from pathlib import Path
from typing import Any, NamedTuple

from deploy.io.files import InputError

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path("deploy") / "replay" / "pages.py"
MODEL_FIELDS = ("ranker", "history", "copywriter")  # of `serving`: versions, which differ by what is compared
SHOWN, LINES = 10, 8  # shoppers in the text, and lines of each
LISTED = 1000  # shoppers in JSON
ABSENT = "-"


class DiffError(RuntimeError):
    """A side that cannot be run; the message says which and why."""


class Side(NamedTuple):
    name: str  # as the operator gave it
    tree: Path  # of the code
    models: Path | None  # None: the tree's own


@dataclass
class Diff:
    """What came of it. Pages are told apart by shopper and version."""

    left: str
    right: str
    same: int = 0  # byte for byte
    renamed: int = 0  # the same but for the versions of the models
    different: int = 0
    only_left: int = 0
    only_right: int = 0
    first: dict[str, dict[str, Any]] = field(default_factory=dict)  # shopper -> of her first page that differs

    @property
    def equal(self) -> bool:
        return not (self.different or self.only_left or self.only_right)


def replay_diff(log: Path, left: str, right: str, catalog: Path | None, limit: int) -> Diff:
    """Raises InputError where a file or a side is not there, DiffError where a side does not run."""
    for path in (log, *([catalog] if catalog else [])):
        if not path.is_file():
            raise InputError(f"{path} cannot be read (no such file); replay-diff reads it twice")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shopwindow-diff-")))
        sides = {name: stack.enter_context(_side(name)) for name in dict.fromkeys((left, right))}
        made = []
        for number, name in enumerate((left, right)):
            out = folder / f"{number}.jsonl"
            _run(sides[name], log.resolve(), catalog and catalog.resolve(), limit, out)
            made.append(out)
        return compare(Diff(left, right), *made)


@contextmanager
def _side(name: str) -> Iterator[Side]:
    path = Path(name)
    if path.is_dir():
        if not (path / "ranker" / "manifest.json").is_file():
            raise InputError(f"'{name}' is a directory without ranker/manifest.json; expected one as models/default")
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
            if not (tree / RUNNER).is_file():
                raise InputError(f"'{name}' has no {RUNNER}: it is from before replay-diff, and cannot be compared")
            yield Side(name, tree, None)
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise DiffError(
            "git is not installed, and revisions are checked out with it; compare models directories"
        ) from None


def _run(side: Side, log: Path, catalog: Path | None, limit: int, out: Path) -> None:
    command = [sys.executable, "-m", "deploy.replay.pages", str(log), "--limit", str(limit)]
    command += ["--models", str(side.models)] if side.models else []
    command += ["--catalog", str(catalog)] if catalog else []
    # Nothing of the settings: the same log must give the same pages wherever it is replayed.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SHOPWINDOW_")}
    # Kernels of a tree that is soon gone are not kept either.
    own = os.environ.get("SHOPWINDOW_CACHE", str(ROOT / ".cache"))
    cache = own if side.tree == ROOT else str(side.tree.parent / "cache")
    environ |= {"PYTHONPATH": str(side.tree), "SHOPWINDOW_CACHE": cache}
    with out.open("wb") as file:
        done = subprocess.run(command, cwd=side.tree, env=environ, stdout=file, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise DiffError(f"'{side.name}' does not run over {log.name}: {said}")


def compare(diff: Diff, left: Path, right: Path) -> Diff:
    """Files of pages, one a line. Holds the place of each left page in memory, not the page."""
    with left.open("rb") as old, right.open("rb") as new:
        places: dict[tuple[str, int], tuple[int, int]] = {}
        at = 0
        for line in old:
            places[_key(json.loads(line))] = at, len(line)
            at += len(line)
        for line in new:
            page = json.loads(line)
            place = places.pop(_key(page), None)
            if place is None:
                diff.only_right += 1
                _note(diff, page, [{"what": "page", "left": ABSENT, "right": "there"}])
                continue
            old.seek(place[0])
            before = old.read(place[1])
            if before == line:
                diff.same += 1
                continue
            found = differences(json.loads(before), page)
            if found:
                diff.different += 1
                _note(diff, page, found)
            else:
                diff.renamed += 1
        for start, length in places.values():
            old.seek(start)
            diff.only_left += 1
            _note(diff, json.loads(old.read(length)), [{"what": "page", "left": "there", "right": ABSENT}])
    return diff


def _key(page: dict[str, Any]) -> tuple[str, int]:
    return page["user_key"], page["version"]


def _note(diff: Diff, page: dict[str, Any], found: list[dict[str, Any]]) -> None:
    known = diff.first.get(page["user_key"])
    if known is None or page["version"] < known["version"]:
        event = page["trigger"]["event_id"]
        diff.first[page["user_key"]] = {"version": page["version"], "event": event, "differences": found}


def differences(left: dict[str, Any], right: dict[str, Any]) -> list[dict[str, Any]]:
    """What differs of two pages: [{what, left, right}], `what` a field, or a slot and the position in it."""
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
            told = f"{item['item_id']} {item['score']:.6g} {item['reason']['code']}"
            rest = {name: value for name, value in item.items() if name not in ("item_id", "score")}
            yield f"{slot['slot']} {at + 1}", told
            # Not lost where the line above is equal: propensity, explored, the reason's own figures.
            yield f"{slot['slot']} {at + 1} rest", json.dumps(rest, sort_keys=True)


def diff_text(diff: Diff) -> str:
    pages = diff.same + diff.renamed + diff.different
    counts = [f"{diff.same} byte for byte the same"]
    counts += [f"{diff.renamed} the same but for the models' versions"] if diff.renamed else []
    counts += [f"{diff.different} different"] if diff.different else []
    counts += [f"{diff.only_left} only left"] if diff.only_left else []
    counts += [f"{diff.only_right} only right"] if diff.only_right else []
    lines = [f"left {diff.left}, right {diff.right}: {pages} pages of both, {', '.join(counts)}"]
    for shopper, first in sorted(diff.first.items())[:SHOWN]:
        lines.append(f"{_shown(shopper)}, version {first['version']}, for event {_shown(first['event'])}:")
        named = {one["what"] for one in first["differences"]}
        # The rest of an item is told where the item itself is the same.
        told = [d for d in first["differences"] if not (d["what"].endswith(" rest") and d["what"][:-5] in named)]
        lines += [f"  {d['what']}: {_shown(d['left'])} | {_shown(d['right'])}" for d in told[:LINES]]
        if len(told) > LINES:
            lines.append(f"  and {len(told) - LINES} more")
    if len(diff.first) > SHOWN:
        lines.append(f"and {len(diff.first) - SHOWN} shoppers more")
    return "\n".join(lines)


def diff_json(diff: Diff) -> dict[str, Any]:
    return {
        "equal": diff.equal, "left": diff.left, "right": diff.right, "same": diff.same, "renamed": diff.renamed,
        "different": diff.different, "only_left": diff.only_left, "only_right": diff.only_right,
        "shoppers": len(diff.first), "first": dict(sorted(diff.first.items())[:LISTED]),
    }  # fmt: skip


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
