"""What a model's graphs must give: inputs and outputs of its reference (numpy, torch), kept in its folder and asked for again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import manifest
from models.onnx_session import session

FILE = "reference.npz"
Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


class Case(NamedTuple):
    graph: str  # file in the folder
    inputs: Arrays
    outputs: Arrays  # of the reference
    bound: float  # largest difference that is none


class Check(NamedTuple):
    graph: str
    output: str
    difference: float  # largest, absolute
    bound: float

    @property
    def good(self) -> bool:
        return self.difference <= self.bound  # not so for NaN


def write(folder: Path, cases: list[Case]) -> None:
    """Before the manifest, which hashes it."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for case in cases:
        arrays[f"{case.graph}/bound"] = np.array(case.bound)
        arrays |= {f"{case.graph}/in/{name}": array for name, array in case.inputs.items()}
        arrays |= {f"{case.graph}/out/{name}": array for name, array in case.outputs.items()}
    np.savez(folder / FILE, allow_pickle=False, **arrays)


def write_texts(
    folder: Path, prompt: npt.NDArray[np.int64], texts: npt.NDArray[np.int64], logprob: Floats, bound: float
) -> None:
    """For a GPT-2: tokens (T,), texts that may follow them (N, M), and the logprob (N, M) of each of their tokens, nats."""
    arrays: Arrays = {"prompt": prompt, "texts": texts, "logprob": logprob, "bound": np.array(bound)}
    np.savez(folder / FILE, allow_pickle=False, **arrays)


def verify(folder: Path) -> list[Check]:
    """Run each graph on what is stored for it. Raises ManifestError where the folder is broken or stores nothing."""
    found = manifest.load(folder, manifest.kind_of(folder))
    if FILE not in found.files:
        raise manifest.ManifestError(
            f"{folder} stores no inputs to be verified on ({FILE}); train it again with this version"
        )
    with np.load(folder / FILE, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if found.kind == "copywriter":
        return [_verify_texts(folder, arrays)]
    checks = []
    for graph in sorted({name.split("/")[0] for name in arrays}):
        inputs = {name.split("/", 2)[2]: value for name, value in arrays.items() if name.startswith(f"{graph}/in/")}
        outputs = {name.split("/", 2)[2]: value for name, value in arrays.items() if name.startswith(f"{graph}/out/")}
        given = session(folder / graph).run(list(outputs), inputs)
        for (name, expected), value in zip(outputs.items(), given, strict=True):
            same_shape = value.shape == expected.shape
            difference = float(np.abs(value.astype(np.float64) - expected).max(initial=0.0)) if same_shape else np.inf
            checks.append(Check(graph, name, difference, float(arrays[f"{graph}/bound"])))
    return checks


def _verify_texts(folder: Path, arrays: Arrays) -> Check:
    from models.copywriter.gpt2 import Gpt2
    from models.copywriter.model import GRAPH

    given = Gpt2(folder / GRAPH).score(arrays["prompt"].tolist(), arrays["texts"].tolist())
    difference = float(np.abs(np.array(given) - arrays["logprob"]).max())
    return Check(GRAPH, "logprob", difference, float(arrays["bound"]))
