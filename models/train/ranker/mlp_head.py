"""Fit the small MLP head on the listwise cross-entropy, with position effects handled as in `models.train.ranker.fit`.

Features are standardised for the descent; means and deviations are folded into the weights afterwards. Needs torch:
`make setup-train`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from models.train.learning_curve import OnEpoch, Point, ignore_epoch
from models.train.ranker.fit import (
    NO_POSITION_WEIGHTS,
    POSITION_FEATURES,
    Choices,
    feature_scales,
    position_features,
    select_offers,
)
from models.train.ranker.graph import NARROW, WIDE, Head
from stream.types import F32, I64

EPOCHS = 8
TEST_BATCH = 512  # choices


class _Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, features: int, position_size: int) -> None:
        """position_size: number of position features; 0 if there was no page."""
        super().__init__()
        self.linear = torch.nn.Linear(features, 1, bias=False)
        self.first, self.second = torch.nn.Linear(features, WIDE), torch.nn.Linear(WIDE, NARROW)
        self.last = torch.nn.Linear(NARROW, 1, bias=False)
        self.position_weights = torch.nn.Parameter(torch.zeros(position_size))

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(O,) scores of features (O, F) at positions with features (O, position_size)."""
        hidden = functional.relu(self.first(x))
        hidden = functional.relu(self.second(hidden))
        return (self.linear(x) + self.last(hidden))[:, 0] + position @ self.position_weights


def _losses(scores: torch.Tensor, count: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(B,) cross-entropy of each choice. scores (O,); count (B,) offers; chosen (B,) among the O."""
    choice = torch.repeat_interleave(torch.arange(len(count)), count)
    highest = torch.full((len(count),), -torch.inf).scatter_reduce(0, choice, scores.detach(), "amax")
    total = torch.zeros(len(count)).index_add(0, choice, (scores - highest[choice]).exp())
    return highest + total.log() - scores[chosen]


def fit_head(
    choices: Choices, *, epochs: int = EPOCHS, rate: float = 3e-3, decay: float = 1e-3, batch: int = 128, seed: int = 1,
    progress: OnEpoch = ignore_epoch,
) -> Head:  # fmt: skip
    """Fit with AdamW, at a rate that falls to zero, without the held-out choices."""
    # With several threads sums come in another order, and the artefact changes.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    held_out = choices.held_out(rng)
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    scale, mean = feature_scales(choices.phi, rng)
    net = _Net(choices.phi.shape[1], POSITION_FEATURES if choices.position is not None else 0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)

    def losses_of(numbers: I64) -> torch.Tensor:
        rows, count, chosen = select_offers(choices, numbers)
        x = (choices.phi[rows].astype(np.float32) - mean) / scale
        if choices.position is not None:
            position = position_features(choices.position[rows])
        else:
            position = np.zeros((len(x), 0), np.float32)
        scores = net(torch.from_numpy(x), torch.from_numpy(position))
        return _losses(scores, torch.from_numpy(count), torch.from_numpy(chosen))

    steps, done, loss = epochs * -(-len(train) // batch), 0, float("nan")
    for epoch in range(epochs):
        order, train_loss = rng.permutation(train), 0.0
        for at in range(0, len(order), batch):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - done / steps)
            optimizer.zero_grad()
            batch_losses = losses_of(order[at : at + batch])
            batch_losses.mean().backward()
            optimizer.step()
            train_loss += float(batch_losses.detach().sum())
            done += 1
        with torch.no_grad():
            test_losses = [losses_of(test[at : at + TEST_BATCH]) for at in range(0, len(test), TEST_BATCH)]
            loss = float(torch.cat(test_losses).mean())
        progress(Point(epoch + 1, train_loss / len(train), loss))
    return _head_of(net, mean, scale, loss, has_positions=choices.position is not None)


def _head_of(net: _Net, mean: F32, scale: F32, loss: float, *, has_positions: bool) -> Head:
    """The net's weights for raw phi."""
    weights = {name: value.detach().numpy() for name, value in net.named_parameters()}
    first = weights["first.weight"].T / scale[:, None]  # (F, WIDE)
    return Head(
        linear=np.ascontiguousarray(weights["linear.weight"].T / scale[:, None], np.float32),
        first=np.ascontiguousarray(first, np.float32),
        first_bias=(weights["first.bias"] - mean @ first).astype(np.float32),
        second=np.ascontiguousarray(weights["second.weight"].T),
        second_bias=weights["second.bias"],
        last=np.ascontiguousarray(weights["last.weight"].T),
        loss=loss,
        position_weights=weights["position_weights"] if has_positions else NO_POSITION_WEIGHTS,
    )
