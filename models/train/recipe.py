"""What a model that ships was made of, as its manifest tells: arguments, data, versions, processor.

The same recipe gives the same model, to the bit on one kind of processor. A test makes the recipe anew and compares, so
that a model is not left behind by the code that made it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

Recipe = dict[str, Any] | msgspec.UnsetType
UNTOLD = msgspec.UNSET  # of a model that is not shipped, which nobody compares
LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
_CPU = Path("/proc/cpuinfo")


def ingredients(arguments: Mapping[str, Any], data: Iterable[bytes], **more: Any) -> dict[str, Any]:
    """arguments, more: JSON values; data: what is learnt from, or enough of it to tell whether it is another."""
    digest = hashlib.sha256()
    for part in data:
        digest.update(len(part).to_bytes(8, "little") + part)
    return {"arguments": dict(arguments), "data": "sha256:" + digest.hexdigest(), **more}


def made_here(of: Mapping[str, Any]) -> dict[str, Any]:
    """The ingredients, and by what they are made into a model. Needs torch."""
    return {**of, "versions": {name: version(name).partition("+")[0] for name in LIBRARIES}, "processor": processor()}


def processor() -> str:
    """On one of the same kind sums come in the same order, and results to the same bit."""
    told = _CPU.read_text().splitlines() if _CPU.is_file() else []
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(told))}
    wide = "avx512" if "avx512f" in values.get("flags", "").split() else ""
    return " ".join(
        part
        for part in (
            platform.machine(),
            *(values.get(name, "") for name in ("model name", "cpu family", "model")),
            wide,
        )
        if part
    )
