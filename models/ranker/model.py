"""The ranker: P(C|U) = exp(theta . phi(U, C)) / sum over C' of exp(theta . phi(U, C')), in ONNX Runtime.

This is McFadden's conditional logit. With an MLP head it is the softmax of a small MLP's scores over the same phi.
theta is an input of the graph, not a constant in it: in ONNX Runtime an (F, 1) input is 2 to 3 times faster than an
initializer, and one graph serves every theta.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import onnxruntime as ort

from models import manifest
from models.onnx_session import create_session
from models.ranker.columns import FEATURES, features_hash, signals_hash
from stream.items.signals import HALF_LIVES, HalfLives
from stream.jit import njit
from stream.page.candidates import MAX_CANDIDATES
from stream.types import F32, I32, Bools

# Files of a ranker's folder.
GRAPH, THETA = "softmax.onnx", "theta.npy"
MLP_GRAPH, MLP_LINEAR = "mlp.onnx", "linear.npy"  # only in a folder with an MLP head

SUM_TOLERANCE = 1e-3  # allowed error of the sum of a distribution over 256 float32


@njit
def _check_distributions(scores: F32, count: I32, valid: Bools) -> None:
    """Fill valid (U,) for `is_distribution`, its oracle is in tests/unit/agents/page/test_broken_ranker.py."""
    for u in range(scores.shape[0]):
        total, is_positive = 0.0, True
        for c in range(count[u]):
            is_positive = is_positive and scores[u, c] >= 0.0  # False for NaN
            total += scores[u, c]
        valid[u] = is_positive and (count[u] == 0 or abs(total - 1.0) < SUM_TOLERANCE)


def is_distribution(scores: F32, count: I32) -> Bools:
    """Whether each row of scores (U, C) is a distribution over its first `count` (U,) columns, (U,) bool.

    A row with a count of 0 passes. If the shapes do not fit, no row passes.
    """
    valid = np.zeros(len(count), np.bool_)
    if scores.ndim == 2 and len(scores) == len(count) and scores.shape[1] >= max(count.tolist(), default=0):
        _check_distributions(scores, count, valid)
    return valid


@lru_cache(8)
def _column_numbers(n: int) -> I32:
    return np.arange(n, dtype=np.int32)[None, :]


class _SingleShopperScorer:
    """Scores of one shopper, with arrays that are bound to the session: half the time of an unbound call."""

    def __init__(self, session: Any, theta: F32) -> None:
        self.phi = np.zeros((1, MAX_CANDIDATES, len(theta)), np.float32)
        self._mask, self._scores = np.zeros((1, MAX_CANDIDATES), np.bool_), np.zeros((1, MAX_CANDIDATES), np.float32)
        self._masked_count = 0  # leading candidates for which the mask is True
        self._run, self._binding = session.run_with_iobinding, session.io_binding()
        for name, array in (("phi", self.phi), ("mask", self._mask), ("theta", theta)):
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        self._binding.bind_ortvalue_output("probability", ort.OrtValue.ortvalue_from_numpy(self._scores))

    def score(self, phi: F32, count: I32) -> F32:
        """P(C|U), (1, C), for phi (1, C, F), which is not copied if it is `self.phi`."""
        if phi is not self.phi:
            self.phi[:] = phi
        n, previous = int(count[0]), self._masked_count
        if n != previous:
            self._mask[0, min(n, previous) : max(n, previous)] = n > previous
            self._masked_count = n
        self._run(self._binding)
        return self._scores.copy()


def _read_half_lives(folder: Path, value: Any) -> HalfLives:
    """Half-lives of the signals that the ranker was fitted with. Raises ManifestError if they are invalid."""
    if value is None:
        return HALF_LIVES
    try:
        half_lives = msgspec.convert(value, HalfLives)
    except msgspec.ValidationError as error:
        raise manifest.ManifestError(
            f"half_lives of {folder / manifest.FILE}: {error}; fit the ranker again: shopwindow train ranker"
        ) from None
    if not min(half_lives.array()) > 0.0:
        raise manifest.ManifestError(
            f"half_lives of {folder / manifest.FILE} are {value}, expected seconds above 0; fit the ranker again: "
            "shopwindow train ranker"
        )
    return half_lives


class Scorer(Protocol):
    """The interface of a ranker that the page path uses."""

    @property
    def version(self) -> str: ...

    @property
    def head(self) -> str:
        """Which of the version's models scores: one of `stream.settings.HEADS`."""

    @property
    def theta(self) -> F32:
        """(F, 1), from which reasons are computed."""

    def phi_buffer(self, shoppers: int) -> F32 | None:
        """Array in which phi of that number of shoppers is scored without a copy, None if there is none."""

    def score(self, phi: F32, count: I32) -> F32:
        """P(C|U)."""

    def works(self) -> bool:
        """Whether the ranker scores features that no shopper influences."""


class Ranker:
    """The softmax over theta . phi or over an MLP's scores, read from a folder with both and their manifest.

    Reasons are computed from theta in either case. `half_lives` are those that the signals must have. Raises
    ManifestError if a file is missing or changed, if theta was fitted on other features than `FEATURES` or on signals
    with another meaning, or if `head` is "mlp" and the folder has no MLP.
    """

    def __init__(self, folder: Path, head: str = "logit") -> None:
        self.manifest, self.head = manifest.load(folder, "ranker"), head
        if self.manifest.features_hash != features_hash():
            raise manifest.ManifestError(
                f"the ranker in {folder} was fitted on other features (hash {self.manifest.features_hash}) than this "
                f"program computes ({features_hash()}); fit it again: shopwindow train ranker"
            )
        self.theta: F32 = np.load(folder / THETA, allow_pickle=False)  # (F, 1)
        if self.theta.shape != (len(FEATURES), 1) or self.theta.dtype != np.float32:
            raise manifest.ManifestError(
                f"{folder / THETA} is {self.theta.dtype}{self.theta.shape}, expected float32({len(FEATURES)}, 1); "
                "fit it again: shopwindow train ranker"
            )
        self.half_lives = _read_half_lives(folder, self.manifest.params.get("half_lives"))
        fitted_with = self.manifest.fitted_with
        if fitted_with is not msgspec.UNSET and fitted_with.signals != signals_hash(self.half_lives):
            raise manifest.ManifestError(
                f"the ranker in {folder} was fitted on item signals with another meaning (hash {fitted_with.signals}) "
                f"than this program counts ({signals_hash(self.half_lives)}); fit it again: shopwindow train ranker"
            )
        name, self._theta = GRAPH, self.theta
        if head == "mlp":
            if MLP_GRAPH not in self.manifest.files:
                raise manifest.ManifestError(
                    f"the ranker in {folder} has no MLP; set SHOPWINDOW_HEAD=logit, or fit it again with one: "
                    "make setup-train && shopwindow train ranker"
                )
            name, self._theta = MLP_GRAPH, np.load(folder / MLP_LINEAR, allow_pickle=False)
        self._session = create_session(folder / name)
        self._single = _SingleShopperScorer(self._session, self._theta)

    def phi_buffer(self, shoppers: int) -> F32 | None:
        """Array (1, CANDIDATES, F) in which one shopper's phi is scored without a copy; the next call overwrites it."""
        return self._single.phi if shoppers == 1 else None

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def score(self, phi: F32, count: I32) -> F32:
        """P(C|U), (U, C) float32 and zero beyond the count, for phi (U, C, F) and numbers of candidates (U,).

        A shopper without candidates gets a row of zeros. Not safe for several threads at once.
        """
        if phi.shape == self._single.phi.shape:
            return self._single.score(phi, count)
        mask = _column_numbers(phi.shape[1]) < count[:, None]  # (U, C) bool
        (scores,) = self._session.run(["probability"], {"phi": phi, "mask": mask, "theta": self._theta})
        return scores  # type: ignore[no-any-return]

    def works(self) -> bool:
        """Whether the model scores features of zero. If not, the model is broken and no shopper's data is the cause."""
        count = np.array([2, 1], np.int32)
        try:
            return bool(is_distribution(self.score(np.zeros((2, 2, len(FEATURES)), np.float32), count), count).all())
        except MemoryError:
            raise
        except Exception:
            return False
