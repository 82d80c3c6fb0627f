"""What a training has finished, kept on disk, so that one that was killed goes on and comes to the same."""

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
from models.train.progress import Say

Arrays = dict[str, npt.NDArray[Any]]
FOLDER = ".training"


class StepCache:
    """Finished pieces of a training by name, in a folder beside what it makes; those of other inputs or features are thrown away.

    inputs: all that the result depends on beside the features of phi, as text. As a context manager they are kept where the
    training is interrupted, killed or breaks, not where it ends or its data do not do (ValueError): asked again, it looks
    at the data anew.
    """

    def __init__(self, out: Path, inputs: str, say: Say) -> None:
        self._folder, self._say = out / FOLDER, say
        mark, wanted = self._folder / "inputs", hashlib.sha256(f"{features_hash()} {inputs}".encode()).hexdigest()
        if self._folder.is_dir() and (not mark.is_file() or mark.read_text() != wanted):
            say(f"what {self._folder} holds is of other inputs and is thrown away")
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(wanted)

    def __enter__(self) -> StepCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, ValueError):
            shutil.rmtree(self._folder)

    def __contains__(self, name: str) -> bool:
        return (self._folder / f"{name}.npz").is_file()

    def get(self, name: str) -> Arrays | None:
        """What was put there, if anything."""
        path = self._folder / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    def put(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Whole or not at all: a kill leaves what was there before."""
        path = self._folder / f"{name}.npz"
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path.with_suffix(".part"), path)

    def once(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """What `make` gives, asked for only where it is not there yet."""
        found = self.get(name)
        if found is None:
            found = make()
            self.put(name, found)
        else:
            self._say(f"{name} was finished before")
        return found
