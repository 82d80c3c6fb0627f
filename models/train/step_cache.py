"""Finished steps of a training, kept on disk so that a killed training resumes and gives the same models."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.ranker.columns import features_hash
from models.train.progress import LogLine

Arrays = dict[str, npt.NDArray[Any]]
FOLDER = ".training"
# Version of the stored arrays. Steps of another version are deleted, as steps of other inputs are.
FORMAT = 3


class StepCache:
    """Arrays of finished steps by name, in a folder beside the models. Steps of other inputs or features are deleted.

    inputs: text that identifies all the result depends on, except the features of phi, which are added here. As a
    context manager the cache survives an interrupt, a kill and any other error. It is deleted when training ends, or
    when the data are unusable (ValueError): the next run then reads the data again.
    """

    def __init__(self, out: Path, inputs: str, log: LogLine) -> None:
        self._folder, self._log = out / FOLDER, log
        mark = self._folder / "inputs"
        expected = hashlib.sha256(f"{FORMAT} {features_hash()} {inputs}".encode()).hexdigest()
        if self._folder.is_dir() and (not mark.is_file() or mark.read_text() != expected):
            log(f"{self._folder} holds steps of other inputs; they are deleted")
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(expected)

    def __enter__(self) -> StepCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, ValueError):
            shutil.rmtree(self._folder)

    def __contains__(self, step: str) -> bool:
        return self._file(step).is_file()

    def load(self, step: str) -> Arrays | None:
        """Arrays of a finished step, or None."""
        path = self._file(step)
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def save(self, step: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Store a step atomically: after a kill the file is the previous one or the new one."""
        path = self._file(step)
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".part"), path)

    def load_or_compute(self, step: str, compute: Callable[[], Arrays]) -> Arrays:
        """Arrays of a step, computed and stored if it is not finished yet."""
        found = self.load(step)
        if found is None:
            found = compute()
            self.save(step, found)
        else:
            self._log(f"{step} was finished before")
        return found

    def _file(self, step: str) -> Path:
        return self._folder / f"{step}.npz"
