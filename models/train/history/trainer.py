"""Train a GPT-2 over items to predict the next interaction from those before it, and export it to ONNX.

The layers are GPT-2's (a `transformers` GPT2Config). They read item vectors, and their output is compared with the
vectors of the same table. Only the items of a batch and a sample of others get a gradient: a sampled softmax with the
log-q correction of Bengio and Senecal (2008). Vectors are initialised from an SVD of the items' pointwise mutual
information. A random share of items goes without its own vector, so that the attribute vectors learn to represent items
that were never seen.

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
from models.train.history.graph import INPUT_SCALE, SCALE, Shape, export
from models.train.history.sequences import InteractionSequences
from models.train.learning_curve import Point
from models.train.progress import LogLine
from models.train.recipe import NO_RECIPE, Recipe
from models.train.step_cache import Arrays, StepCache
from stream.jit import njit
from stream.types import F64, I8, I32, I64, Rows

# Weights of the next, second and third next interaction in the loss. The latter two fade out during training.
AHEAD_WEIGHTS = (1.0, 0.4, 0.2)
NEGATIVES = 2000  # sampled items that a batch is compared with: half by popularity^.75, half uniform
WARM_UP_STEPS = 200
TUNING_RATE = 0.3  # of the learning rate, when a trained model continues
PAIR_DISTANCE = 5  # largest distance, in interactions, at which two items count as a pair in the initial vectors
# Number of batches whose windows are sorted by length together.
SORTED_BATCHES = 50


def windows(sequences: InteractionSequences) -> I64:
    """(W, 2) start and end of windows of at most LENGTH + 1 interactions; each is a target in at least one window."""
    found = []
    for start, end in zip(sequences.starts.tolist(), sequences.ends.tolist(), strict=True):
        while end - start >= 2:
            stop = min(start + MAX_INTERACTIONS + 1, end)
            found.append((start, stop))
            if stop == end:
                break
            # The next window's targets have at least half a window before them.
            start = stop - MAX_INTERACTIONS // 2 - 1
    return np.array(found, np.int64).reshape(-1, 2)


@njit
def _fill_windows(windows: I64, item: I32, time: F64, kind: I8, items: I64, gaps: I64, kinds: I64) -> None:
    """Copy windows (B, 2) of interactions (n,) into items, gaps and kinds, all (B, width).

    Rows are padded on the right with item -1, gap 0 and kind 0. Exercised by the training tests in
    tests/unit/deploy/test_train.py.
    """
    for b in range(windows.shape[0]):
        start, stop = windows[b, 0], windows[b, 1]
        for i in range(items.shape[1]):
            at = start + i
            items[b, i] = item[at] if at < stop else -1
            kinds[b, i] = kind[at] if at < stop else 0
            gaps[b, i] = gap_bucket(time[at] - time[at - 1]) if i > 0 and at < stop else 0


def initial_vectors(sequences: InteractionSequences, items: int, width: int, seed: int) -> torch.Tensor:
    """(items, width) unit vectors from an SVD of positive pointwise mutual information.

    Two items are a pair if they are at most PAIR_DISTANCE interactions apart, with weight 1 / distance. Items without
    pairs get random vectors.
    """
    left, right, together = _weighted_pairs(sequences, items)
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


def _weighted_pairs(sequences: InteractionSequences, items: int) -> tuple[I64, I64, F64]:
    """Ordered pairs of items within PAIR_DISTANCE of each other: left and right items, and their total weights."""
    sequence = np.repeat(np.arange(len(sequences.ends)), np.diff(sequences.ends, prepend=0))
    lefts, rights, weights = [], [], []
    for distance in range(1, PAIR_DISTANCE + 1):
        is_same = sequence[distance:] == sequence[:-distance]
        left, right = sequences.item[:-distance][is_same], sequences.item[distance:][is_same]
        lefts += [left, right]
        rights += [right, left]
        weights += [np.full(len(left), 1.0 / distance)] * 2
    pairs = np.concatenate(lefts).astype(np.int64) * items + np.concatenate(rights)
    pairs, inverse = np.unique(pairs, return_inverse=True)
    together = np.bincount(inverse, np.concatenate(weights), len(pairs)).astype(np.float64)
    return pairs // items, pairs % items, together


class Net(torch.nn.Module):  # type: ignore[misc]
    """Embeddings of gaps, kinds and attributes, and GPT-2's layers. `graph` reads the parameters by their names."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gap = torch.nn.Embedding(GAP_BUCKETS, shape.width)
        self.kind = torch.nn.Embedding(KIND_CODES, shape.width)
        torch.nn.init.zeros_(self.gap.weight)
        torch.nn.init.zeros_(self.kind.weight)
        self.attributes = torch.nn.Parameter(torch.randn(shape.attributes, shape.width) * 0.02)
        config = GPT2Config(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            n_positions=MAX_INTERACTIONS,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
        )
        self.layers = GPT2Model(config)

    def forward(
        self, vectors: torch.Tensor, gaps: torch.Tensor, kinds: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """(B, n, d) unit vectors of the predicted next items, from unit vectors (B, n, d), gaps, kinds, mask (B, n)."""
        inputs = vectors * INPUT_SCALE + self.gap(gaps) + self.kind(kinds)
        out = self.layers(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
        return functional.normalize(out, dim=-1)


class _Batch(NamedTuple):
    """B windows of n interactions, and M items: those of the windows and the negatives."""

    place: torch.Tensor  # (B, n) index of each interaction's item in `items`
    mask: torch.Tensor  # (B, n) bool, True for interactions, False for padding
    gaps: torch.Tensor  # (B, n)
    kinds: torch.Tensor  # (B, n)
    items: torch.Tensor  # (M,) item rows
    negatives: torch.Tensor  # (N,) indices in `items`


class _Predictions(NamedTuple):
    """Predictions at the T places that have a next interaction."""

    has_next: torch.Tensor  # (B, n - 1) bool, T of them True
    query: torch.Tensor  # (T, d) predicted vectors
    log_rest: torch.Tensor  # (T,) log of the sum over the negatives, without the target
    correction: torch.Tensor  # (M,) log of the expected number of draws of each item

    def losses(self, vectors: torch.Tensor, target: torch.Tensor, these: torch.Tensor) -> torch.Tensor:
        """Cross-entropies, in nats, at the places `these` (T,) bool.

        vectors: (M, d). target: index among the M items of each of these places.
        """
        score = SCALE * (self.query[these] * vectors[target]).sum(dim=1) - self.correction[target]
        return torch.logaddexp(self.log_rest[these], score) - score


class _Sampling(NamedTuple):
    """Distribution of the negatives over V items."""

    counts: F64  # (V,) interactions with each item in the training sequences
    cumulative: F64  # (V,) cumulative probabilities
    log_probability: torch.Tensor  # (V,)

    @classmethod
    def of(cls, sequences: InteractionSequences, items: int) -> _Sampling:
        counts = np.bincount(sequences.item, minlength=items).astype(np.float64)
        probability = 0.5 * counts**0.75 / (counts**0.75).sum() + 0.5 * (counts > 0) / (counts > 0).sum()
        cumulative = np.cumsum(probability) / probability.sum()
        return cls(counts, cumulative, torch.from_numpy(np.log(probability + 1e-30)).float())


class Trainer:
    """A history model in training.

    items: (V,) ITEM, whose attributes are read. name: of the model in progress lines and in the step cache.
    """

    def __init__(
        self, items: Rows, shape: Shape, *, rate: float = 2e-3, batch: int = 64, seed: int = 1, name: str = "history"
    ) -> None:
        # With several threads sums come in another order, and the artefact changes.
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.items, self.shape, self._rate, self._batch_windows, self._seed = items, shape, rate, batch, seed
        self._name = name
        self.net = Net(shape)
        slots = np.empty((len(items), MAX_ATTRIBUTES), np.int32)
        hash_all_attributes(items, shape.attributes, slots)
        self._slots = torch.from_numpy(slots.astype(np.int64))  # (V, SLOTS_OF_ITEM)
        self.vectors = functional.normalize(torch.randn(len(items), shape.width), dim=1)
        # Adam's moments of the item vectors.
        self._first, self._second = torch.zeros_like(self.vectors), torch.zeros_like(self.vectors)
        self.known = np.zeros(len(items), np.bool_)  # (V,) items with training interactions
        self._optimizer = torch.optim.AdamW(self.net.parameters(), lr=rate, weight_decay=1e-2)
        self.steps = 0
        self.epochs = 0
        self.loss = float("nan")  # training loss of the last epoch, in nats
        self.curve: list[Point] = []  # of the epochs trained in this process

    def init_vectors(self, sequences: InteractionSequences) -> None:
        """Initialise the item vectors so that items that occur together are close."""
        if self.shape.unseen < 1.0:
            self.vectors = initial_vectors(sequences, len(self.items), self.shape.width, self._seed)

    def learn(
        self, sequences: InteractionSequences, epochs: int, log: LogLine, *, tune: bool = False,
        cache: StepCache | None = None, held_out: InteractionSequences | None = None,
    ) -> float:  # fmt: skip
        """Train for `epochs` epochs and return the training loss of the last one, in nats.

        The rate rises during warm-up and then falls to zero; with `tune` it falls from a lower rate. Each epoch is kept
        in the cache, and epochs that are finished there are skipped. held_out: sequences whose loss is added to the
        curve; training does not depend on them.
        """
        stretches = windows(sequences)
        if not len(stretches) or not epochs:
            return self.loss
        self.known[sequences.item] = True
        sampling = _Sampling.of(sequences, len(self.items))
        total = epochs * -(-len(stretches) // self._batch_windows)
        began, first = perf_counter(), self.epochs
        if self._resume(cache, first + epochs, log, epochs):
            return self.loss
        start = self.epochs - first
        done_before = done = start * (total // epochs)
        for epoch in range(start, epochs):
            rng = np.random.default_rng([self._seed, self.epochs])
            torch.manual_seed(self._seed * 1_000_003 + self.epochs)
            self.net.train()
            loss_sum, count = 0.0, 0
            for batch_windows in self._batches(stretches, rng):
                rate, weights = self._schedule(done, total, tune)
                batch = self._sample(sequences, batch_windows, sampling, rng)
                batch_loss, n = self._step(batch, sampling.log_probability, weights, rate, rng)
                loss_sum, count, done = loss_sum + batch_loss * n, count + n, done + 1
            self.epochs += 1
            self.loss = loss_sum / count if count else float("nan")
            if cache is not None:
                cache.save(self._name, self._state())
            held_out_loss = float("nan") if held_out is None else self._held_out_loss(held_out, sampling)
            self.curve.append(Point(self.epochs, self.loss, held_out_loss))
            held_out_text = "" if held_out is None else f", held-out {held_out_loss:.3f}"
            left = (perf_counter() - began) / (done - done_before) * (total - done)
            losses = f"loss {self.loss:.3f} nats{held_out_text}"
            log(f"{self._name}, epoch {epoch + 1} of {epochs}: {losses}, {left:.0f} s left")
        return self.loss

    def _resume(self, cache: StepCache | None, until: int, log: LogLine, epochs: int) -> bool:
        """Restore the newest finished epoch of this call from the cache. Return True if the call is finished.

        until: number of epochs in all after this call. If the cache is of a later call, that call restores its state.
        """
        stored = cache.load(self._name) if cache is not None else None
        if stored is None or int(stored["epochs"]) <= self.epochs:
            return False
        if int(stored["epochs"]) > until:
            self.epochs = until
            return True
        first = self.epochs
        self._restore(stored)
        log(f"{self._name}, {self.epochs - first} of {epochs} epochs were finished before")
        return False

    def _schedule(self, done: int, total: int, tune: bool) -> tuple[float, list[float]]:
        """Learning rate and weights of the next interactions, after `done` of `total` steps."""
        share = done / total
        rate = self._rate * (1.0 - share) * (TUNING_RATE if tune else min(1.0, (done + 1) / WARM_UP_STEPS))
        weights = [
            weight if k == 0 or tune else weight * max(0.0, 1.0 - 1.5 * share) for k, weight in enumerate(AHEAD_WEIGHTS)
        ]
        return max(rate, 1e-6), weights[:1] if tune else weights

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
        """Undo `_state`."""
        self.epochs, self.steps, self.known = int(arrays["epochs"]), int(arrays["steps"]), arrays["known"]
        self.loss = float(arrays["loss"])
        self.vectors, self._first, self._second = (torch.from_numpy(arrays[n]) for n in ("vectors", "first", "second"))
        self.net.load_state_dict({name: torch.from_numpy(arrays[f"net/{name}"]) for name in self.net.state_dict()})
        state = self._optimizer.state_dict()
        for key, value in arrays.items():
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                number, name = rest.split("/")
                state["state"].setdefault(int(number), {})[name] = torch.from_numpy(np.asarray(value))
        self._optimizer.load_state_dict(state)

    def _batches(self, stretches: I64, rng: np.random.Generator) -> Sequence[I64]:
        """Batches of windows of similar length, in random order. stretches: (W, 2)."""
        length = stretches[:, 1] - stretches[:, 0]
        order, size = rng.permutation(len(stretches)), self._batch_windows
        found = []
        for at in range(0, len(order), SORTED_BATCHES * size):
            numbers = order[at : at + SORTED_BATCHES * size]
            numbers = numbers[np.argsort(length[numbers], kind="stable")]
            found += [stretches[numbers[k : k + size]] for k in range(0, len(numbers), size)]
        rng.shuffle(found)
        return found

    def _sample(
        self, sequences: InteractionSequences, batch_windows: I64, sampling: _Sampling, rng: np.random.Generator
    ) -> _Batch:
        """The batch of windows (B, 2) with sampled negatives."""
        shape = (len(batch_windows), int((batch_windows[:, 1] - batch_windows[:, 0]).max()))
        item, gaps, kinds = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int64)
        _fill_windows(batch_windows, sequences.item, sequences.time, sequences.kind, item, gaps, kinds)
        draws = np.searchsorted(sampling.cumulative, rng.random(NEGATIVES)).clip(max=len(sampling.cumulative) - 1)
        negatives = np.unique(draws)
        items, index = np.unique(np.concatenate([item[item >= 0], negatives]), return_inverse=True)
        interactions = len(index) - len(negatives)
        place = np.zeros(shape, np.int64)
        place[item >= 0] = index[:interactions]
        return _Batch(*map(torch.from_numpy, (place, item >= 0, gaps, kinds, items, index[interactions:])))

    def vectors_of(self, items: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """(M, d) unit vectors of items (M,).

        own: (M, d) their own vectors; a row of zeros leaves only the attributes.
        """
        slots = self._slots[items]  # (M, SLOTS_OF_ITEM)
        # The appended last row is that of an absent attribute.
        table = functional.pad(self.net.attributes, (0, 0, 0, 1))
        described = functional.embedding(slots[:, 1:] % len(table), table).sum(dim=1)
        base = self.net.attributes[:1].expand(len(items), -1)
        alone = (own == 0).all(dim=1, keepdim=True)
        return functional.normalize(torch.where(alone, base, own) + described, dim=1)

    def _step(
        self, batch: _Batch, log_probability: torch.Tensor, weights: Sequence[float], rate: float,
        rng: np.random.Generator,
    ) -> tuple[float, int]:  # fmt: skip
        """One optimiser step. Return the mean loss of the next interactions, in nats, and their number."""
        own = self.vectors[batch.items].requires_grad_()
        is_kept = torch.from_numpy(rng.random(len(batch.items)) >= self.shape.unseen)[:, None]
        vectors = self.vectors_of(batch.items, own * is_kept)
        predictions = self._predict(batch, vectors, log_probability)
        if predictions is None:
            return 0.0, 0
        total, next_loss = torch.zeros(()), 0.0
        for k, weight in enumerate(weights):
            target, exists = torch.zeros_like(batch.place[:, 1:]), torch.zeros_like(predictions.has_next)
            columns = exists.shape[1] - k
            target[:, :columns], exists[:, :columns] = batch.place[:, 1 + k :], batch.mask[:, 1 + k :]
            these = exists[predictions.has_next]
            if weight <= 0.0 or not these.any():
                continue
            loss = predictions.losses(vectors, target[predictions.has_next][these], these).mean()
            total = total + weight * loss
            if k == 0:
                next_loss = float(loss.detach())
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self._optimizer.step()
        self.steps += 1
        if own.grad is not None:
            self._update_vectors(batch.items, own.grad, rate)
        return next_loss, len(predictions.query)

    def _predict(self, batch: _Batch, vectors: torch.Tensor, log_probability: torch.Tensor) -> _Predictions | None:
        """Predictions of the net, compared with the negatives; None if no interaction has a next one.

        vectors: (M, d), of the batch's items.
        """
        out = self.net(vectors[batch.place[:, :-1]], batch.gaps[:, :-1], batch.kinds[:, :-1], batch.mask[:, :-1].long())
        # A click and the view that follows it are one choice, so the view is no target.
        is_repeat = (batch.place[:, 1:] == batch.place[:, :-1]) & (batch.kinds[:, 1:] != batch.kinds[:, :-1])
        has_next = batch.mask[:, 1:] & ~is_repeat
        if not has_next.any():
            return None
        query = out[has_next]  # (T, d)
        correction = log_probability[batch.items] + math.log(NEGATIVES)
        scores = SCALE * query @ vectors[batch.negatives].T - correction[batch.negatives]  # (T, N)
        target = batch.place[:, 1:][has_next]
        # A target that is also a negative would count twice, so its score as a negative is masked.
        column_of = torch.full((len(batch.items),), -1)
        column_of[batch.negatives] = torch.arange(len(batch.negatives))
        column = column_of[target]
        is_twice = column >= 0
        scores = scores.index_put((torch.nonzero(is_twice)[:, 0], column[is_twice]), torch.tensor(-1e9))
        return _Predictions(has_next, query, torch.logsumexp(scores, dim=1), correction)

    def _held_out_loss(self, sequences: InteractionSequences, sampling: _Sampling) -> float:
        """Mean loss, in nats, of next interactions with items of the training sequences; NaN if there are none."""
        # The same negatives after each epoch.
        rng = np.random.default_rng(self._seed)
        loss_sum, count = 0.0, 0
        self.net.eval()
        with torch.no_grad():
            for batch_windows in self._batches(windows(sequences), rng):
                batch = self._sample(sequences, batch_windows, sampling, rng)
                has_own = torch.from_numpy(self.known)[batch.items] & (self.shape.unseen < 1.0)
                vectors = self.vectors_of(batch.items, self.vectors[batch.items] * has_own[:, None])
                predictions = self._predict(batch, vectors, sampling.log_probability)
                if predictions is None:
                    continue
                target = batch.place[:, 1:][predictions.has_next]
                is_known = torch.from_numpy(sampling.counts > 0)[batch.items][target]
                loss_sum += float(predictions.losses(vectors, target[is_known], is_known).sum())
                count += int(is_known.sum())
        return loss_sum / count if count else float("nan")

    def _update_vectors(self, items: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """One Adam step on the vectors of a batch's items. The others, which are most, have no gradient."""
        with torch.no_grad():
            first = self._first[items].mul_(0.9).add_(gradient, alpha=0.1)
            second = self._second[items].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            self._first[items], self._second[items] = first, second
            step = first / (1 - 0.9**self.steps) / ((second / (1 - 0.999**self.steps)).sqrt() + 1e-8)
            self.vectors[items] -= rate * step

    def export(
        self, folder: Path, *, data: str, created: str, metrics: dict[str, float], source: Source = UNKNOWN_SOURCE,
        recipe: Recipe = NO_RECIPE,
    ) -> Manifest:  # fmt: skip
        """Write graph, vectors, attributes and manifest into `folder`, created if missing."""
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
            case=self._reference_case(),
            source=source,
            recipe=recipe,
        )

    def _reference_case(self) -> Case:
        """Random inputs of the graph, and the net's output for them."""
        rng = np.random.default_rng(1)
        inputs: dict[str, npt.NDArray[Any]] = {
            "vectors": rng.normal(size=(6, MAX_INTERACTIONS, self.shape.width)).astype(np.float32),
            "gaps": rng.integers(0, GAP_BUCKETS, (6, MAX_INTERACTIONS)),
            "kinds": rng.integers(0, KIND_CODES, (6, MAX_INTERACTIONS)),
        }
        inputs["vectors"] /= np.linalg.norm(inputs["vectors"], axis=-1, keepdims=True)
        last = np.array([0, 1, 5, 12, MAX_INTERACTIONS - 2, MAX_INTERACTIONS - 1])
        with torch.no_grad():
            tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
            out = self.net(**tensors, mask=torch.ones(6, MAX_INTERACTIONS, dtype=torch.long))
        query = SCALE * out[torch.arange(6), torch.from_numpy(last)].numpy()
        return Case(GRAPH, {**inputs, "last": last}, {"query": query}, 1e-3)
