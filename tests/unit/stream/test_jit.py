"""The kernel cache follows every change and may be missing; ids are the same in every process."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from stream import jit
from stream.ids import key32, key64


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [("ids.py", "key >> 29", "key >> 31"), ("profile/row.py", "86_400.0", "86_401.0")],
    ids=["kernel", "constant"],
)
def test_a_changed_kernel_or_constant_selects_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, old: str, new: str
) -> None:
    for folder in jit.KERNEL_FOLDERS:
        shutil.copytree(jit.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("default", "__pycache__"))
    before = jit.sources_hash()
    monkeypatch.setattr(jit, "ROOT", tmp_path)
    assert jit.sources_hash() == before, "the location does not matter"
    changed = tmp_path / "stream" / module
    assert old in changed.read_text()
    changed.write_text(changed.read_text().replace(old, new))
    assert jit.sources_hash() != before


def test_kernels_compile_without_a_writable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("read-only")

    def nowhere() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert jit.cache_dir() is None
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert jit.cache_dir() is None
    monkeypatch.setattr(jit, "_CACHE", None)

    def three(x: int) -> int:
        return x + 3

    assert jit.njit(three)(4) == 7


def test_ids_never_change() -> None:
    # Profiles and changelogs store them: other numbers would orphan those rows.
    assert (key64("SKU1"), key64("台灯")) == (-3158549216727340205, 7711959513338147684)
    assert key32("SKU1") == (key64("SKU1") & 0xFFFFFFFF) - (1 << 32 if key64("SKU1") & 0x80000000 else 0)
