"""Fit theta by gradient descent on the listwise cross-entropy of what was chosen among what was offered, and export it.

Inputs are standardised for the descent, and theta is handed back for raw phi: a shift of every candidate's score by the
same constant leaves a softmax as it was, so dividing theta by the features' deviation is all there is to undo.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import manifest
from models.phi import FEATURES, features_hash
from models.ranker import GRAPH, THETA

Floats = npt.NDArray[np.float32]
POSITION_KNOTS = 4  # training-only features of the position that an item was shown at


@dataclass(frozen=True)
class Choices:
    """What was offered and what was chosen, N times."""

    phi: Floats  # (N, C, F) float32, zero beyond the count
    count: npt.NDArray[np.int32]  # (N,) offers of each choice
    position: npt.NDArray[np.int32]  # (N, C) 0-based rank on the page
    chosen: npt.NDArray[np.int32]  # (N,) column that was chosen

    def part(self, rows: npt.NDArray[np.bool_]) -> "Choices":
        return Choices(self.phi[rows], self.count[rows], self.position[rows], self.chosen[rows])


class Fit(NamedTuple):
    theta: Floats  # (F, 1) float32, for raw phi
    loss: float  # mean cross-entropy on held-out choices, nats
    uniform: float  # the same for a model that knows nothing: mean log(count)
    top1: float  # share of held-out choices ranked first, position effects removed


def _position_features(position: npt.NDArray[np.int32]) -> Floats:
    """(N, C) ranks to (N, C, 4): a shopper's eye prefers the top; without these theta would learn our own order."""
    p = position.astype(np.float32)
    return np.stack([np.log1p(p), p / 10.0, (p == 0).astype(np.float32), (p < 4).astype(np.float32)], axis=2)


def _probabilities(scores: Floats, count: npt.NDArray[np.int32]) -> Floats:
    mask = np.arange(scores.shape[1])[None, :] < count[:, None]
    scores = np.where(mask, scores, -np.inf)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = scores / scores.sum(axis=1, keepdims=True)
    return shares


def fit(
    choices: Choices,
    *,
    epochs: int = 30,
    rate: float = 0.03,
    l2: float = 1e-3,
    batch: int = 256,
    seed: int = 1,
    progress: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Fit:
    """Adam on the mean cross-entropy plus `l2` |theta|^2 (standardised units); a tenth of the choices is held out.

    Raises ValueError where there are fewer than 100 choices to learn from.
    """
    n = len(choices.chosen)
    if n < 100:
        raise ValueError(
            f"{n} choices are too few to fit {len(FEATURES)} weights on; simulate for longer (at least 100)"
        )
    rng = np.random.default_rng(seed)
    held = rng.random(n) < 0.1
    train, test = choices.part(~held), choices.part(held)

    present = np.arange(choices.phi.shape[1])[None, :] < train.count[:, None]
    seen = train.phi[present]  # (offers, F)
    spread = seen.std(axis=0)
    # A constant feature gets no weight, and one that hardly varies no giant: its theta would explode off-line's few cases.
    scale = np.where(spread > 1e-4, np.maximum(spread, 0.05), np.inf).astype(np.float32)

    def inputs(part: Choices) -> Floats:
        return np.concatenate([part.phi / scale, _position_features(part.position)], axis=2)

    x, x_test = inputs(train), inputs(test)
    theta = np.zeros(x.shape[2], np.float32)
    first, second, step = np.zeros_like(theta), np.zeros_like(theta), 0
    loss = float("nan")
    for epoch in range(epochs):
        slope = rate * (1 - epoch / epochs)
        order = rng.permutation(len(train.chosen))
        for at in range(0, len(order), batch):
            rows = order[at : at + batch]
            p = _probabilities(x[rows] @ theta, train.count[rows])  # (B, C)
            p[np.arange(len(rows)), train.chosen[rows]] -= 1.0
            gradient = np.einsum("bc,bcf->f", p, x[rows]) / len(rows) + 2 * l2 * theta
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            theta -= slope * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        p = _probabilities(x_test @ theta, test.count)
        loss = float(-np.log(p[np.arange(len(test.chosen)), test.chosen] + 1e-12).mean())
        progress(epoch + 1, loss)
    features = len(FEATURES)
    bare = np.where(
        np.arange(x_test.shape[1])[None, :] < test.count[:, None], x_test[..., :features] @ theta[:features], -np.inf
    )
    return Fit(
        theta=(theta[:features] / scale).astype(np.float32)[:, None],
        loss=loss,
        uniform=float(np.log(test.count).mean()),
        top1=float((bare.argmax(axis=1) == test.chosen).mean()),
    )


def graph() -> bytes:
    """The softmax as an ONNX graph: phi (U, C, F) float32, mask (U, C) bool, theta (F, 1) -> probability (U, C)."""
    from onnx import TensorProto, checker, helper

    nodes = [
        helper.make_node("MatMul", ["phi", "theta"], ["column"]),
        helper.make_node("Squeeze", ["column", "last"], ["raw"]),
        helper.make_node("Where", ["mask", "raw", "lowest"], ["score"]),
        helper.make_node("Softmax", ["score"], ["share"], axis=1),
        helper.make_node("Where", ["mask", "share", "zero"], ["probability"]),
    ]
    built = helper.make_graph(
        nodes,
        "softmax",
        [
            helper.make_tensor_value_info("phi", TensorProto.FLOAT, ["U", "C", "F"]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["U", "C"]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["F", 1]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["U", "C"])],
        [
            helper.make_tensor("last", TensorProto.INT64, [1], [2]),
            helper.make_tensor("lowest", TensorProto.FLOAT, [], [-1e30]),
            helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        ],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def export(folder: Path, fitted: Fit, data: str, created: str, metrics: dict[str, float]) -> manifest.Manifest:
    """Write graph, theta and manifest into `folder` (made where it is missing)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(graph())
    np.save(folder / THETA, fitted.theta)
    return manifest.write(
        folder,
        name="softmax",
        kind="ranker",
        created=created,
        features_hash=features_hash(),
        data=data,
        metrics={"loss": fitted.loss, "uniform": fitted.uniform, "top1": fitted.top1, **metrics},
        params={"features": list(FEATURES), "theta": [round(float(v), 5) for v in fitted.theta[:, 0]]},
    )
