"""The content model: P(C|U) = exp(theta . phi(U, C)) / sum over C' of exp(theta . phi(U, C')), in ONNX Runtime.

McFadden's conditional logit; or, over the same phi, the softmax of a small MLP's scores. theta is an input of the graph, not a constant in it: an (F, 1) input is 2 to 3 times faster
than an initializer in ONNX Runtime, and one graph serves every theta.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models import manifest
from models.onnx_session import session
from models.ranker.columns import FEATURES, features_hash
from stream.items.signals import HALF_LIVES, HalfLives
from stream.jit import njit
from stream.page.candidates import CANDIDATES

GRAPH, THETA = "softmax.onnx", "theta.npy"
HEAD, LINEAR = "mlp.onnx", "linear.npy"  # of the MLP, where the folder has one


TOLERANCE = 1e-3  # of the sum of a distribution over 256 float32


@njit
def _sound(scores, count, sound):  # type: ignore[no-untyped-def]
    for u in range(scores.shape[0]):
        total, good = 0.0, True
        for c in range(count[u]):
            good = good and scores[u, c] >= 0.0  # not so for NaN
            total += scores[u, c]
        sound[u] = good and (count[u] == 0 or abs(total - 1.0) < TOLERANCE)


def sound(scores: npt.NDArray[np.float32], count: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """(U,) True where a row of scores (U, C) is a distribution over its first `count` (U,), or that is 0."""
    found = np.zeros(len(count), np.bool_)
    if scores.ndim == 2 and len(scores) == len(count) and scores.shape[1] >= max(count.tolist(), default=0):
        _sound(scores, count, found)
    return found


@lru_cache(8)
def _columns(n: int) -> npt.NDArray[np.int32]:
    return np.arange(n, dtype=np.int32)[None, :]


class _Alone:
    """One shopper's phi, mask and scores at a fixed place that the session is bound to: half the time of a free call."""

    def __init__(self, session: Any, theta: npt.NDArray[np.float32]) -> None:
        self.phi = np.zeros((1, CANDIDATES, len(theta)), np.float32)
        self._mask, self._scores = np.zeros((1, CANDIDATES), np.bool_), np.zeros((1, CANDIDATES), np.float32)
        self._masked = 0  # candidates that the mask leaves
        self._run, self._bound = session.run_with_iobinding, session.io_binding()
        for name, array in (("phi", self.phi), ("mask", self._mask), ("theta", theta)):
            self._bound.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._bound.bind_ortvalue_output("probability", ort.OrtValue.ortvalue_from_numpy(self._scores))

    def score(self, phi: npt.NDArray[np.float32], count: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        if phi is not self.phi:
            self.phi[:] = phi
        n, before = int(count[0]), self._masked
        if n != before:
            self._mask[0, min(n, before) : max(n, before)] = n > before
            self._masked = n
        self._run(self._bound)
        return self._scores.copy()


def _half_lives(folder: Path, told: Any) -> HalfLives:
    """Those of the signals that a ranker was fitted with; raises ManifestError where they are none."""
    if told is None:
        return HALF_LIVES
    try:
        lives = msgspec.convert(told, HalfLives)
    except msgspec.ValidationError as error:
        raise manifest.ManifestError(f"half_lives of {folder / manifest.FILE}: {error}; fit it again") from None
    if not min(lives.array()) > 0.0:
        raise manifest.ManifestError(
            f"half_lives of {folder / manifest.FILE} are {told}, expected seconds; fit it again"
        )
    return lives


class Scorer(Protocol):
    """What the path asks of a content model."""

    @property
    def version(self) -> str: ...

    @property
    def theta(self) -> npt.NDArray[np.float32]:
        """(F, 1), of which reasons are made."""

    def room(self, shoppers: int) -> npt.NDArray[np.float32] | None:
        """Where phi of so many shoppers is best written, if anywhere."""

    def score(self, phi: npt.NDArray[np.float32], count: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """P(C|U)."""

    def works(self) -> bool:
        """False where it fails over features that no shopper has a part in."""


class Ranker:
    """The softmax over theta . phi or over an MLP's scores, read from a folder that holds both and their manifest.

    Reasons are of theta in either case. `half_lives` are those that the signals must have. Raises ManifestError where a file is missing or changed, where theta was fitted on
    other features than today's phi, or where the folder has no MLP and `head` is "mlp".
    """

    def __init__(self, folder: Path, head: str = "logit") -> None:
        self.manifest = manifest.load(folder, "ranker")
        if self.manifest.features_hash != features_hash():
            raise manifest.ManifestError(
                f"the ranker in {folder} was fitted on other features (hash {self.manifest.features_hash}) than this "
                f"program computes ({features_hash()}); fit it again: shopwindow train ranker"
            )
        self.theta: npt.NDArray[np.float32] = np.load(folder / THETA, allow_pickle=False)  # (F, 1)
        if self.theta.shape != (len(FEATURES), 1) or self.theta.dtype != np.float32:
            raise manifest.ManifestError(
                f"{folder / THETA} holds {self.theta.dtype}{self.theta.shape}, expected float32({len(FEATURES)}, 1); "
                "fit it again: shopwindow train ranker"
            )
        self.half_lives = _half_lives(folder, self.manifest.params.get("half_lives"))
        name, self._theta = GRAPH, self.theta
        if head == "mlp":
            if HEAD not in self.manifest.files:
                raise manifest.ManifestError(
                    f"the ranker in {folder} has no MLP; set SHOPWINDOW_HEAD=logit, or fit it again with one: "
                    "make setup-train && shopwindow train ranker"
                )
            name, self._theta = HEAD, np.load(folder / LINEAR, allow_pickle=False)
        self._session = session(folder / name)
        self._alone = _Alone(self._session, self._theta)

    def room(self, shoppers: int) -> npt.NDArray[np.float32] | None:
        """Where phi of one shopper (1, CANDIDATES, F) is scored without being copied, until the next is written there."""
        return self._alone.phi if shoppers == 1 else None

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def score(self, phi: npt.NDArray[np.float32], count: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """P(C|U): (U, C, F) float32 and (U,) candidates of each shopper to (U, C) float32; zero beyond the count.

        A shopper without candidates gets a row of zeros. Not for several threads at once.
        """
        if phi.shape == self._alone.phi.shape:
            return self._alone.score(phi, count)
        mask = _columns(phi.shape[1]) < count[:, None]  # (U, C) bool
        (scores,) = self._session.run(["probability"], {"phi": phi, "mask": mask, "theta": self._theta})
        return scores  # type: ignore[no-any-return]

    def works(self) -> bool:
        """False where the model fails over features that no shopper has a part in: then no shopper is to blame."""
        count = np.array([2, 1], np.int32)
        try:
            return bool(sound(self.score(np.zeros((2, 2, len(FEATURES)), np.float32), count), count).all())
        except MemoryError:
            raise
        except Exception:
            return False
