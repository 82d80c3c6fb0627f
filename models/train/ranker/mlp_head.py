"""Fit the small MLP head by gradient descent on the listwise cross-entropy, positions handled as in `ranker`.

Inputs are standardised for the descent; means and deviations are folded into the weights afterwards. Needs torch:
`make setup-train`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from models.train.learning_curve import Point, Progress, unheard
from models.train.ranker.fit import NO_PLACE, PLACES, Choices, features_scale, position_features, ragged
from models.train.ranker.graph import NARROW, WIDE, Head

EPOCHS = 8


class _Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, features: int, places: int) -> None:
        """places: features of a position that are scored beside the net; 0 where there was no page."""
        super().__init__()
        self.linear = torch.nn.Linear(features, 1, bias=False)
        self.first, self.second = torch.nn.Linear(features, WIDE), torch.nn.Linear(WIDE, NARROW)
        self.last = torch.nn.Linear(NARROW, 1, bias=False)
        self.place = torch.nn.Parameter(torch.zeros(places))

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(O, F) and (O, places) -> (O,)."""
        hidden = functional.relu(self.first(x))
        hidden = functional.relu(self.second(hidden))
        return (self.linear(x) + self.last(hidden))[:, 0] + position @ self.place


def _losses(scores: torch.Tensor, count: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each of B choices among its offers. scores (O,); count (B,) offers; chosen (B,) among the O."""
    of = torch.repeat_interleave(torch.arange(len(count)), count)
    most = torch.full((len(count),), -torch.inf).scatter_reduce(0, of, scores.detach(), "amax")
    total = torch.zeros(len(count)).index_add(0, of, (scores - most[of]).exp())
    return most + total.log() - scores[chosen]


def fit_head(
    choices: Choices, *, epochs: int = EPOCHS, rate: float = 3e-3, decay: float = 1e-3, batch: int = 128, seed: int = 1,
    progress: Progress = unheard,
) -> Head:  # fmt: skip
    """AdamW at a rate that falls to nothing, less the choices that are held out."""
    torch.set_num_threads(1)  # sums of several threads come in another order, and the artefact with them
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    held = choices.held_out(rng)
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    scale, mean = features_scale(choices.phi, rng)
    net = _Net(choices.phi.shape[1], PLACES if choices.position is not None else 0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=decay)

    def losses(these: npt.NDArray[np.int64]) -> torch.Tensor:
        offers, count, chosen = ragged(choices, these)
        x = (choices.phi[offers].astype(np.float32) - mean) / scale
        position = (
            position_features(choices.position[offers])
            if choices.position is not None
            else np.zeros((len(x), 0), np.float32)
        )
        scores = net(torch.from_numpy(x), torch.from_numpy(position))
        return _losses(scores, torch.from_numpy(count), torch.from_numpy(chosen))

    steps, done, loss = epochs * -(-len(train) // batch), 0, float("nan")
    for epoch in range(epochs):
        order, learnt = rng.permutation(train), 0.0
        for at in range(0, len(order), batch):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - done / steps)
            optimizer.zero_grad()
            lost = losses(order[at : at + batch])
            lost.mean().backward()
            optimizer.step()
            learnt += float(lost.detach().sum())
            done += 1
        with torch.no_grad():
            loss = float(torch.cat([losses(test[at : at + 512]) for at in range(0, len(test), 512)]).mean())
        progress(Point(epoch + 1, learnt / len(train), loss))
    of = {name: value.detach().numpy() for name, value in net.named_parameters()}
    first = of["first.weight"].T / scale[:, None]  # (F, WIDE)
    return Head(
        np.ascontiguousarray(of["linear.weight"].T / scale[:, None], np.float32),
        np.ascontiguousarray(first, np.float32), (of["first.bias"] - mean @ first).astype(np.float32),
        np.ascontiguousarray(of["second.weight"].T), of["second.bias"], np.ascontiguousarray(of["last.weight"].T), loss,
        of["place"] if choices.position is not None else NO_PLACE,
    )  # fmt: skip
