"""Parity tests of a model's graphs: inputs and outputs of the reference (NumPy, torch) that are stored in its folder.

`verify` runs the graphs on the stored inputs and compares the outputs with the reference's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models import manifest
from models.onnx_session import create_session
from stream.types import F32, I64

FILE = "reference.npz"
Arrays = Mapping[str, npt.NDArray[Any]]


class Case(NamedTuple):
    """Inputs of one graph and the outputs of its reference."""

    graph: str  # file in the folder
    inputs: Arrays
    outputs: Arrays
    bound: float  # maximum allowed absolute difference


class Check(NamedTuple):
    """Result of comparing one output of a graph with its reference."""

    graph: str
    output: str
    difference: float  # maximum absolute difference
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the bound; False for NaN."""
        return self.difference <= self.bound


def write(folder: Path, cases: list[Case]) -> None:
    """Store cases in a model's folder. Call it before `manifest.write`, which hashes the file."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for case in cases:
        arrays[f"{case.graph}/bound"] = np.array(case.bound)
        arrays |= {f"{case.graph}/in/{name}": array for name, array in case.inputs.items()}
        arrays |= {f"{case.graph}/out/{name}": array for name, array in case.outputs.items()}
    np.savez(folder / FILE, allow_pickle=False, **arrays)


def write_logprobs(folder: Path, prompt: I64, texts: I64, logprob: F32, bound: float) -> None:
    """Store the reference of a GPT-2 in its folder. Call it before `manifest.write`.

    prompt (T,) tokens; texts (N, M) tokens that may follow it; logprob (N, M) of each token of the texts, in nats.
    """
    arrays: Arrays = {"prompt": prompt, "texts": texts, "logprob": logprob, "bound": np.array(bound)}
    np.savez(folder / FILE, allow_pickle=False, **arrays)


def verify(folder: Path) -> list[Check]:
    """Run each graph on its stored inputs. Raises ManifestError if the folder is invalid or has no stored inputs."""
    found = manifest.load(folder, manifest.kind_of(folder))
    if FILE not in found.files:
        raise manifest.ManifestError(
            f"{folder} has no reference inputs to verify its graphs with ({FILE} is missing); train it again with this "
            "version"
        )
    with np.load(folder / FILE, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    if found.kind == "copywriter":
        return [_verify_logprobs(folder, arrays)]
    checks = []
    for graph in sorted({name.split("/")[0] for name in arrays}):
        inputs = {name.split("/", 2)[2]: value for name, value in arrays.items() if name.startswith(f"{graph}/in/")}
        outputs = {name.split("/", 2)[2]: value for name, value in arrays.items() if name.startswith(f"{graph}/out/")}
        computed = create_session(folder / graph).run(list(outputs), inputs)
        for (name, expected), value in zip(outputs.items(), computed, strict=True):
            has_same_shape = value.shape == expected.shape
            difference = (
                float(np.abs(value.astype(np.float64) - expected).max(initial=0.0)) if has_same_shape else np.inf
            )
            checks.append(Check(graph, name, difference, float(arrays[f"{graph}/bound"])))
    return checks


def _verify_logprobs(folder: Path, arrays: Arrays) -> Check:
    from models.copywriter.gpt2 import Gpt2
    from models.copywriter.model import GRAPH

    computed = Gpt2(folder / GRAPH).score(arrays["prompt"].tolist(), arrays["texts"].tolist())
    difference = float(np.abs(np.array(computed) - arrays["logprob"]).max())
    return Check(GRAPH, "logprob", difference, float(arrays["bound"]))
