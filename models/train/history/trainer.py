"""Train the GPT-2 over items: the next interaction from those before it, self-supervised, and export it to ONNX.

GPT-2's layers (a `transformers` GPT2Config) read vectors of items; what comes out is compared with the vectors of the
same table. Items are so many that only those of a batch and a sample of others get a gradient (sampled softmax with the
log-q correction of Bengio and Senecal, 2008). Vectors start from an SVD of the items' pointwise mutual information. Now
and then an item's own vector is left out, so that the vectors of attributes learn to stand in for an item never seen.

Needs torch: `make setup-train`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2Model

from models.history.model import (
    GAP_BUCKETS,
    GRAPH,
    KIND_CODES,
    MAX_ATTRIBUTES,
    MAX_INTERACTIONS,
    gap_bucket,
    hash_all_attributes,
)
from models.manifest import UNKNOWN_SOURCE, Manifest, Source
from models.parity import Case
from models.train.history.graph import LOUD, SCALE, Shape, export
from models.train.history.sequences import InteractionSequences
from models.train.learning_curve import Point
from models.train.progress import Say
from models.train.recipe import UNTOLD, Recipe
from models.train.step_cache import Arrays, StepCache
from stream.jit import njit

Rows = npt.NDArray[np.void]
Ints = npt.NDArray[np.int64]
AHEAD = (1.0, 0.4, 0.2)  # weights of the next, second and third next interaction; the latter two fade out
NEGATIVES = 2000  # items that each batch is compared with, half of them by popularity^.75, half uniform
WARM_UP = 200  # steps
TUNED = 0.3  # of the rate, when a model goes on from where it was
WINDOW = 5  # steps in which two items count as together, for the vectors to start from


def windows(behaviour: InteractionSequences) -> Ints:
    """(W, 2) first and last plus one of stretches of at most LENGTH + 1 interactions, each the target of one stretch at least."""
    found = []
    for start, end in zip(behaviour.starts.tolist(), behaviour.ends.tolist(), strict=True):
        while end - start >= 2:
            stop = min(start + MAX_INTERACTIONS + 1, end)
            found.append((start, stop))
            if stop == end:
                break
            start = stop - MAX_INTERACTIONS // 2 - 1  # what comes next has half a window before it
    return np.array(found, np.int64).reshape(-1, 2)


@njit
def _fill(windows, item, time, kind, items, gaps, kinds):  # type: ignore[no-untyped-def]
    """Right-padded with -1 items. All (B, n)."""
    for b in range(windows.shape[0]):
        start, stop = windows[b, 0], windows[b, 1]
        for i in range(items.shape[1]):
            at = start + i
            items[b, i] = item[at] if at < stop else -1
            kinds[b, i] = kind[at] if at < stop else 0
            gaps[b, i] = gap_bucket(time[at] - time[at - 1]) if i > 0 and at < stop else 0


def similar_start(behaviour: InteractionSequences, items: int, width: int, seed: int) -> torch.Tensor:
    """(items, width) unit vectors: an SVD of positive pointwise mutual information within WINDOW steps."""
    of = np.repeat(np.arange(len(behaviour.ends)), np.diff(behaviour.ends, prepend=0))
    lefts, rights, weights = [], [], []
    for step in range(1, WINDOW + 1):
        same = of[step:] == of[:-step]
        left, right = behaviour.item[:-step][same], behaviour.item[step:][same]
        lefts += [left, right]
        rights += [right, left]
        weights += [np.full(len(left), 1.0 / step)] * 2
    pairs = np.concatenate(lefts).astype(np.int64) * items + np.concatenate(rights)
    pairs, inverse = np.unique(pairs, return_inverse=True)
    together = np.bincount(inverse, np.concatenate(weights), len(pairs))
    left, right = pairs // items, pairs % items
    mass = np.bincount(left, together, items)
    mutual = np.log(np.maximum(together * mass.sum() / np.maximum(mass[left] * mass[right], 1e-12), 1e-12))
    keep = mutual > 0
    generator = torch.manual_seed(seed)
    vectors = torch.randn(items, width, generator=generator) / math.sqrt(width)
    if keep.any():
        places, values = torch.from_numpy(np.stack([left[keep], right[keep]])), torch.from_numpy(mutual[keep]).float()
        with torch.sparse.check_sparse_tensor_invariants():
            matrix = torch.sparse_coo_tensor(places, values, (items, items)).coalesce()
        u, s, _ = torch.svd_lowrank(matrix, q=min(width, items), niter=4)
        found = u * s.sqrt()
        length = found.norm(dim=1, keepdim=True)
        vectors[:, : found.shape[1]] = torch.where(length > 1e-6, found, vectors[:, : found.shape[1]])
    return functional.normalize(vectors, dim=1)


class Net(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gap = torch.nn.Embedding(GAP_BUCKETS, shape.width)
        self.kind = torch.nn.Embedding(KIND_CODES, shape.width)
        torch.nn.init.zeros_(self.gap.weight)
        torch.nn.init.zeros_(self.kind.weight)
        self.attributes = torch.nn.Parameter(torch.randn(shape.attributes, shape.width) * 0.02)
        self.layers = GPT2Model(
            GPT2Config(
                vocab_size=1, bos_token_id=None, eos_token_id=None, n_positions=MAX_INTERACTIONS, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
                resid_pdrop=shape.dropout, embd_pdrop=shape.dropout, attn_pdrop=shape.dropout,
            )
        )  # fmt: skip

    def forward(
        self, vectors: torch.Tensor, gaps: torch.Tensor, kinds: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Unit vectors (B, n, d) in, unit vectors of what comes next (B, n, d) out."""
        read = vectors * LOUD + self.gap(gaps) + self.kind(kinds)
        out = self.layers(inputs_embeds=read, attention_mask=mask).last_hidden_state
        return functional.normalize(out, dim=-1)


class _Sampled(NamedTuple):
    """A batch: B windows of n interactions, and the M items that it is about."""

    place: torch.Tensor  # (B, n) of each interaction among `items`
    mask: torch.Tensor  # (B, n) bool
    gaps: torch.Tensor
    kinds: torch.Tensor
    items: torch.Tensor  # (M,)
    negatives: torch.Tensor  # (N,) places among `items`


class _Compared(NamedTuple):
    """T places with a next interaction."""

    here: torch.Tensor  # (B, n - 1) bool, T of them set
    query: torch.Tensor  # (T, d) what is foreseen
    rest: torch.Tensor  # (T,) log of the sum over the negatives but the next interaction
    correction: torch.Tensor  # (M,) log of how often each item is drawn

    def losses(self, vectors: torch.Tensor, meant: torch.Tensor, these: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, nats, of the places `these` (T,) bool, if the items `meant` come, places among the M."""
        score = SCALE * (self.query[these] * vectors[meant]).sum(dim=1) - self.correction[meant]
        return torch.logaddexp(self.rest[these], score) - score


class Trainer:
    """A history model under training. items: (V,) ITEM, of which attributes are read; name: for progress and in `finished`."""

    def __init__(
        self, items: Rows, shape: Shape, *, rate: float = 2e-3, batch: int = 64, seed: int = 1, name: str = "history"
    ) -> None:
        torch.set_num_threads(1)  # sums of several threads come in another order, and the artefact with them
        torch.manual_seed(seed)
        self.items, self.shape, self._rate, self._batch, self._seed = items, shape, rate, batch, seed
        self._name = name
        self.net = Net(shape)
        slots = np.empty((len(items), MAX_ATTRIBUTES), np.int32)
        hash_all_attributes(items, shape.attributes, slots)
        self._slots = torch.from_numpy(slots.astype(np.int64))  # (V, SLOTS_OF_ITEM)
        self.vectors = functional.normalize(torch.randn(len(items), shape.width), dim=1)
        self._first, self._second = torch.zeros_like(self.vectors), torch.zeros_like(self.vectors)
        self.known = np.zeros(len(items), np.bool_)  # which the training has seen
        self._optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-2)
        self.steps = 0  # taken
        self.epochs = 0
        self.loss = float("nan")  # of the last epoch, nats
        self.curve: list[Point] = []  # of the epochs that this process has done

    def start(self, behaviour: InteractionSequences) -> None:
        """Vectors that lie near each other for items that are seen together."""
        if self.shape.unseen < 1.0:
            self.vectors = similar_start(behaviour, len(self.items), self.shape.width, self._seed)

    def learn(
        self, behaviour: InteractionSequences, epochs: int, say: Say, *, tune: bool = False, finished: StepCache | None = None,
        held_out: InteractionSequences | None = None,
    ) -> float:  # fmt: skip
        """So many epochs at a rate that rises and falls to nothing, or with `tune` falls from a lower one. -> last loss, nats.

        held_out: what the curve tells of too; training does not depend on it. In `finished` each epoch is kept, and those that
        are there already are passed over.
        """
        stretches = windows(behaviour)
        if not len(stretches) or not epochs:
            return self.loss
        self.known[behaviour.item] = True
        counts = np.bincount(behaviour.item, minlength=len(self.items)).astype(np.float64)
        chance = 0.5 * counts**0.75 / (counts**0.75).sum() + 0.5 * (counts > 0) / (counts > 0).sum()
        pool, log_chance = np.cumsum(chance) / chance.sum(), torch.from_numpy(np.log(chance + 1e-30)).float()
        total = epochs * -(-len(stretches) // self._batch)
        done, began = 0, perf_counter()
        kept = finished.get(self._name) if finished is not None else None
        first, start = self.epochs, 0
        if kept is not None and int(kept["epochs"]) > first:
            if int(kept["epochs"]) > first + epochs:  # of a later call
                self.epochs += epochs
                return self.loss
            self._restore(kept)
            start = self.epochs - first
            done = start * (total // epochs)
            say(f"{self._name}, {start} of {epochs} epochs were finished before")
        before = done
        for epoch in range(start, epochs):
            rng = np.random.default_rng([self._seed, self.epochs])
            torch.manual_seed(self._seed * 1_000_003 + self.epochs)
            self.net.train()
            lost, count = 0.0, 0
            for these in self._batches(stretches, rng):
                share = done / total
                rate = self._rate * (1.0 - share) * (TUNED if tune else min(1.0, (done + 1) / WARM_UP))
                ahead = [w if k == 0 or tune else w * max(0.0, 1.0 - 1.5 * share) for k, w in enumerate(AHEAD)]
                ahead = ahead[:1] if tune else ahead
                sampled = self._sampled(behaviour, these, pool, rng)
                one, n = self._step(sampled, log_chance, ahead, max(rate, 1e-6), rng)
                lost, count, done = lost + one * n, count + n, done + 1
            self.epochs += 1
            self.loss = lost / count if count else float("nan")
            if finished is not None:
                finished.put(self._name, self._state())
            unseen = float("nan") if held_out is None else self._held_out(held_out, log_chance, pool, counts)
            self.curve.append(Point(self.epochs, self.loss, unseen))
            told = "" if held_out is None else f", held-out {unseen:.3f}"
            left = (perf_counter() - began) / (done - before) * (total - done)
            say(f"{self._name}, epoch {epoch + 1} of {epochs}: loss {self.loss:.3f} nats{told}, {left:.0f} s left")
        return self.loss

    def _state(self) -> Arrays:
        arrays = {
            "epochs": np.array(self.epochs),
            "steps": np.array(self.steps),
            "known": self.known,
            "loss": np.array(self.loss),
        }
        tensors = {"vectors": self.vectors, "first": self._first, "second": self._second}
        tensors |= {f"net/{name}": value for name, value in self.net.state_dict().items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": value for name, value in state.items()}
        return {**arrays, **{name: value.detach().numpy() for name, value in tensors.items()}}

    def _restore(self, arrays: Arrays) -> None:
        self.epochs, self.steps, self.known = int(arrays["epochs"]), int(arrays["steps"]), arrays["known"]
        self.loss = float(arrays["loss"])
        self.vectors, self._first, self._second = (torch.from_numpy(arrays[n]) for n in ("vectors", "first", "second"))
        self.net.load_state_dict({name: torch.from_numpy(arrays[f"net/{name}"]) for name in self.net.state_dict()})
        told = self._optimizer.state_dict()
        for key, value in arrays.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                number, name = rest.split("/")
                told["state"].setdefault(int(number), {})[name] = torch.from_numpy(np.asarray(value))
        self._optimizer.load_state_dict(told)

    def _batches(self, stretches: Ints, rng: np.random.Generator) -> Sequence[Ints]:
        """Windows of about the same length together, in an order by chance."""
        length = stretches[:, 1] - stretches[:, 0]
        order, many = rng.permutation(len(stretches)), 50 * self._batch
        found = []
        for at in range(0, len(order), many):
            some = order[at : at + many]
            some = some[np.argsort(length[some], kind="stable")]
            found += [stretches[some[k : k + self._batch]] for k in range(0, len(some), self._batch)]
        rng.shuffle(found)
        return found

    def _sampled(
        self, behaviour: InteractionSequences, these: Ints, pool: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> _Sampled:
        room = (len(these), int((these[:, 1] - these[:, 0]).max()))
        item, gaps, kinds = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
        _fill(these, behaviour.item, behaviour.time, behaviour.kind, item, gaps, kinds)
        negatives = np.unique(np.searchsorted(pool, rng.random(NEGATIVES)).clip(max=len(pool) - 1))
        items, place = np.unique(np.concatenate([item[item >= 0], negatives]), return_inverse=True)
        among = np.zeros(room, np.int64)
        among[item >= 0] = place[: len(place) - len(negatives)]
        return _Sampled(
            *map(torch.from_numpy, (among, item >= 0, gaps, kinds, items, place[len(place) - len(negatives) :]))
        )

    def vectors_of(self, items: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """(M, d) unit vectors. own: (M, d) vectors of the items; of a row of zeros: made of attributes alone."""
        slots = self._slots[items]  # (M, SLOTS_OF_ITEM)
        table = functional.pad(self.net.attributes, (0, 0, 0, 1))  # the last row is that of an absent attribute
        described = functional.embedding(slots[:, 1:] % len(table), table).sum(dim=1)
        base = self.net.attributes[:1].expand(len(items), -1)
        alone = (own == 0).all(dim=1, keepdim=True)
        return functional.normalize(torch.where(alone, base, own) + described, dim=1)

    def _step(
        self, batch: _Sampled, log_chance: torch.Tensor, ahead: Sequence[float], rate: float, rng: np.random.Generator
    ) -> tuple[float, int]:
        """-> mean loss of the next interaction, nats, over so many."""
        own = self.vectors[batch.items].requires_grad_()
        kept = torch.from_numpy(rng.random(len(batch.items)) >= self.shape.unseen)[:, None]
        vectors = self.vectors_of(batch.items, own * kept)
        seen = self._compared(batch, vectors, log_chance)
        if seen is None:
            return 0.0, 0
        total, first = torch.zeros(()), 0.0
        for k, weight in enumerate(ahead):
            shifted, there = torch.zeros_like(batch.place[:, 1:]), torch.zeros_like(seen.here)
            shifted[:, : there.shape[1] - k], there[:, : there.shape[1] - k] = (
                batch.place[:, 1 + k :],
                batch.mask[:, 1 + k :],
            )
            these = there[seen.here]
            if weight <= 0.0 or not these.any():
                continue
            loss = seen.losses(vectors, shifted[seen.here][these], these).mean()
            total = total + weight * loss
            if k == 0:
                first = float(loss.detach())
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimizer.step()
        self.steps += 1
        if own.grad is not None:
            self._move(batch.items, own.grad, rate)
        return first, len(seen.query)

    def _compared(self, batch: _Sampled, vectors: torch.Tensor, log_chance: torch.Tensor) -> _Compared | None:
        """What the net foresees, against the negatives. vectors: (M, d) of the batch's items; None: nothing comes next."""
        out = self.net(vectors[batch.place[:, :-1]], batch.gaps[:, :-1], batch.kinds[:, :-1], batch.mask[:, :-1].long())
        # Places with a next interaction, (B, n - 1). A click and the look that follows it are one choice.
        again = (batch.place[:, 1:] == batch.place[:, :-1]) & (batch.kinds[:, 1:] != batch.kinds[:, :-1])
        here = batch.mask[:, 1:] & ~again
        if not here.any():
            return None
        query = out[here]  # (T, d)
        correction = log_chance[batch.items] + math.log(NEGATIVES)
        scores = SCALE * query @ vectors[batch.negatives].T - correction[batch.negatives]  # (T, N)
        target = batch.place[:, 1:][here]
        # A target that is among the negatives as well would count twice.
        at = torch.full((len(batch.items),), -1)
        at[batch.negatives] = torch.arange(len(batch.negatives))
        hit = at[target]
        twice = hit >= 0
        scores = scores.index_put((torch.nonzero(twice)[:, 0], hit[twice]), torch.tensor(-1e9))
        return _Compared(here, query, torch.logsumexp(scores, dim=1), correction)

    def _held_out(
        self,
        behaviour: InteractionSequences,
        log_chance: torch.Tensor,
        pool: npt.NDArray[np.float64],
        counts: npt.NDArray[np.float64],
    ) -> float:
        """Mean loss, nats, of the next interactions with items that were learnt from (`counts` above 0); NaN without any."""
        rng = np.random.default_rng(self._seed)  # the same negatives after each epoch
        lost, count = 0.0, 0
        self.net.eval()
        with torch.no_grad():
            for these in self._batches(windows(behaviour), rng):
                batch = self._sampled(behaviour, these, pool, rng)
                own = torch.from_numpy(self.known)[batch.items] & (self.shape.unseen < 1.0)
                vectors = self.vectors_of(batch.items, self.vectors[batch.items] * own[:, None])
                seen = self._compared(batch, vectors, log_chance)
                if seen is None:
                    continue
                target = batch.place[:, 1:][seen.here]
                known = torch.from_numpy(counts > 0)[batch.items][target]
                lost += float(seen.losses(vectors, target[known], known).sum())
                count += int(known.sum())
        return lost / count if count else float("nan")

    def _move(self, items: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """Adam on the vectors of a batch alone: the others have no gradient, and are most."""
        with torch.no_grad():
            first = self._first[items].mul_(0.9).add_(gradient, alpha=0.1)
            second = self._second[items].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            self._first[items], self._second[items] = first, second
            step = first / (1 - 0.9**self.steps) / ((second / (1 - 0.999**self.steps)).sqrt() + 1e-8)
            self.vectors[items] -= rate * step

    def export(
        self, folder: Path, *, data: str, created: str, metrics: dict[str, float], source: Source = UNKNOWN_SOURCE,
        recipe: Recipe = UNTOLD,
    ) -> Manifest:  # fmt: skip
        """Write graph, vectors, attributes and manifest into `folder` (made where it is missing)."""
        self.net.eval()
        weights = {name: value.detach().numpy() for name, value in self.net.state_dict().items()}
        known = np.flatnonzero(self.known) if self.shape.unseen < 1.0 else np.zeros(0, np.int64)
        with torch.no_grad():
            rows = torch.from_numpy(known)
            vectors = self.vectors_of(rows, self.vectors[rows]).numpy()
        ids = np.ascontiguousarray(self.items["id"][known])
        return export(
            folder,
            self.shape,
            weights,
            ids,
            vectors,
            data=data,
            created=created,
            metrics=metrics,
            case=self._case(),
            source=source,
            recipe=recipe,
        )

    def _case(self) -> Case:
        """What the graph is to give, by torch."""
        rng = np.random.default_rng(1)
        inputs: dict[str, npt.NDArray[Any]] = {
            "vectors": rng.normal(size=(6, MAX_INTERACTIONS, self.shape.width)).astype(np.float32),
            "gaps": rng.integers(0, GAP_BUCKETS, (6, MAX_INTERACTIONS)),
            "kinds": rng.integers(0, KIND_CODES, (6, MAX_INTERACTIONS)),
        }
        inputs["vectors"] /= np.linalg.norm(inputs["vectors"], axis=-1, keepdims=True)
        last = np.array([0, 1, 5, 12, MAX_INTERACTIONS - 2, MAX_INTERACTIONS - 1])
        with torch.no_grad():
            given = {name: torch.from_numpy(value) for name, value in inputs.items()}
            out = self.net(**given, mask=torch.ones(6, MAX_INTERACTIONS, dtype=torch.long))
        query = SCALE * out[torch.arange(6), torch.from_numpy(last)].numpy()
        return Case(GRAPH, {**inputs, "last": last}, {"query": query}, 1e-3)
