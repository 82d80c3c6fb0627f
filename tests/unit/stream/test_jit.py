"""Kernels: their cache notices every change, its absence is no error, and ids are the same in every process."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from stream import jit
from stream.ids import key32, key64


def test_a_changed_kernel_in_any_file_makes_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in jit.KERNEL_FOLDERS:
        shutil.copytree(jit.ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("default", "__pycache__"))
    before = jit.sources_hash()
    monkeypatch.setattr(jit, "ROOT", tmp_path)
    assert jit.sources_hash() == before, "the place does not matter"
    callee = tmp_path / "stream" / "ids.py"
    callee.write_text(callee.read_text().replace("key >> 29", "key >> 31"))
    assert jit.sources_hash() != before


def test_where_nothing_can_be_written_kernels_are_compiled_without_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_ids_are_for_ever() -> None:
    # Stored in profiles and on changelogs: other numbers would orphan them.
    assert (key64("SKU1"), key64("台灯")) == (-3158549216727340205, 7711959513338147684)
    assert key32("SKU1") == (key64("SKU1") & 0xFFFFFFFF) - (1 << 32 if key64("SKU1") & 0x80000000 else 0)
