"""The recipe of a shipped model, part of its manifest: arguments, data, library versions, processor.

The same recipe gives the same model, to the bit on one kind of processor. A test computes the recipe from the current
code and compares it, so that a shipped model never falls behind the code that trains it.
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
NO_RECIPE = msgspec.UNSET  # of a model that is not shipped
LIBRARIES = ("numpy", "tokenizers", "torch", "transformers")
_CPU_INFO = Path("/proc/cpuinfo")


def make_recipe(arguments: Mapping[str, Any], data: Iterable[bytes], **more: Any) -> dict[str, Any]:
    """Recipe without library versions and processor.

    arguments, more: JSON values. data: the training data, or enough of it to detect a change; only its hash is kept.
    """
    digest = hashlib.sha256()
    for part in data:
        digest.update(len(part).to_bytes(8, "little") + part)
    return {"arguments": dict(arguments), "data": "sha256:" + digest.hexdigest(), **more}


def with_environment(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with library versions and processor of this machine. Needs torch."""
    return {
        **recipe,
        "versions": {name: version(name).partition("+")[0] for name in LIBRARIES},
        "processor": processor(),
    }


def processor() -> str:
    """Kind of this processor. On the same kind, sums are computed in the same order and give the same bits."""
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.is_file() else []
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    vector_unit = "avx512" if "avx512f" in values.get("flags", "").split() else ""
    fields = (values.get(name, "") for name in ("model name", "cpu family", "model"))
    return " ".join(part for part in (platform.machine(), *fields, vector_unit) if part)
