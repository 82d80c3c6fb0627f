"""GPT-2 in ONNX Runtime: texts drawn after prompts, and the likelihood of given ones.

Any graph of `models.copywriter.gpt2_graph`. A sequence's keys and values stay where they are while it grows. Prompts are read one
by one in the order of their tokens, each from where it parts from the one before; all samples of all prompts then take
their steps together, and whoever waits gets the place of who has ended. Nothing that a sequence computes depends on the
others: a text is the same to the bit alone and in any company.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.onnx_session import create_session

ABOUT = "shopwindow.gpt2"  # in the metadata of a graph: its shape
ROWS = (
    32  # sequences at a time: with 8 it is nine tenths of the throughput of 32, and samples of one prompt are several
)
SCORED = 16  # candidates at a time: their logits are the largest tensor, 35 MB for 11 tokens each of GPT-2
# Tokens of a sequence that are read at once, at least: the product of a single row may be summed in another order than that
# of several, and what is read would depend on how much was read before.
TOGETHER = 2
PAGE = 32  # positions that a cache grows by
Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Sampling(NamedTuple):
    """How tokens are drawn: of the `top_k` likeliest, of these the likeliest that make up `top_p`."""

    temperature: float = 0.9  # above 0
    top_k: int = 50
    top_p: float = 0.95
    max_tokens: int = 50


DEFAULT = Sampling()


class Drawn(NamedTuple):
    ids: tuple[int, ...]  # what follows the prompt, without the end token
    logprob: float  # of all its tokens and the end, as they were drawn, nats
    ended: bool  # False where there was no end within the tokens allowed


class Shape(NamedTuple):
    layers: int
    heads: int
    width: int
    positions: int
    vocabulary: int


class _Cache:
    """Keys and values of some sequences, a pair of arrays for each layer."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._memory = [np.empty(0, np.float32) for _ in range(2 * shape.layers)]
        self.rows = self.capacity = 0
        self.planes: list[Floats] = []  # (rows, H, capacity, D) float32

    def fit(self, rows: int, tokens: int) -> bool:
        """Room for so many sequences of so many tokens. -> whether what it held is lost."""
        if rows <= self.rows and tokens <= self.capacity <= tokens + 4 * PAGE:
            return False
        self.rows, self.capacity = max(rows, self.rows), -(-tokens // PAGE) * PAGE
        dims = (self.rows, self._shape.heads, self.capacity, self._shape.width // self._shape.heads)
        size = int(np.prod(dims))
        if size > len(self._memory[0]):
            self._memory = [np.zeros(size, np.float32) for _ in self._memory]
        self.planes = [memory[:size].reshape(dims) for memory in self._memory]
        return True


def _copy(source: _Cache, row: int, target: _Cache, rows: slice, tokens: int) -> None:
    """The first `tokens` of a sequence to others."""
    for of, to in zip(source.planes, target.planes, strict=True):
        to[rows, :, :tokens] = of[row, :, :tokens]


class _Bound:
    """The graph's inputs and outputs at fixed places, for the first B sequences of a cache and S tokens of each.

    asked: R positions, as b S + s. k: the likeliest tokens of each are wanted. targets: the logprob of these (R, C).
    """

    def __init__(
        self, session: ort.InferenceSession, cache: _Cache, b: int, s: int, asked: Ids,
        k: int = 1, targets: Ids | None = None,
    ) -> None:  # fmt: skip
        self.ids, self.positions = np.zeros((b, s), np.int64), np.zeros((b, s), np.int64)
        self.length, self.count = np.zeros(b, np.int32), np.ones(b, np.int32)
        self._session, self._io = session, session.io_binding()
        self._kept: list[Any] = []  # a bound array must outlive its binding
        for name, array in (
            ("ids", self.ids), ("positions", self.positions), ("seqlens_k", self.length), ("query_seqlens", self.count),
            ("capacity", np.array([cache.capacity], np.int32)), ("rows", asked), ("k", np.array([k])),
            ("scoring", np.array(targets is not None)),
            ("targets", np.zeros((len(asked), 1), np.int64) if targets is None else targets),
        ):  # fmt: skip
            self._io.bind_ortvalue_input(name, self._value(array))
        for at, plane in enumerate(cache.planes):
            name, value = f"{('key', 'value')[at % 2]}.{at // 2}", self._value(plane[:b])
            self._io.bind_ortvalue_input(f"past_{name}", value)
            self._io.bind_ortvalue_output(f"present_{name}", value)
        if targets is None:
            self.top_logits = np.zeros((len(asked), k), np.float32)
            self.top_ids = np.zeros((len(asked), k), np.int64)
            self._io.bind_ortvalue_output("top_logits", self._value(self.top_logits))
            self._io.bind_ortvalue_output("top_ids", self._value(self.top_ids))
        else:
            self.logprob = np.zeros(targets.shape, np.float32)
            self._io.bind_ortvalue_output("logprob", self._value(self.logprob))

    def _value(self, array: npt.NDArray[Any]) -> ort.OrtValue:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._kept += [array, value]
        return value

    def run(self, past: npt.NDArray[np.int32] | int) -> None:
        """The `ids`, of which each sequence has `count`, after `past` tokens of each."""
        self.length[:] = past + self.count - 1
        starts = np.broadcast_to(past, len(self.ids))[:, None]
        # Padding stays within the table of positions.
        np.minimum(starts + np.arange(self.ids.shape[1]), self.length[:, None], out=self.positions)
        self._session.run_with_iobinding(self._io)


@dataclass
class _Text:
    """One text being drawn."""

    prompt: int  # which
    number: int  # of the prompt's texts
    length: int  # tokens in the cache
    limit: int  # tokens that it may get
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    ended: bool = False


class _Task(NamedTuple):
    prompts: Sequence[Sequence[int]]
    chances: Sequence[npt.NDArray[np.float64]]  # of each prompt (max_tokens, samples)
    ends: Collection[int]
    sampling: Sampling
    k: int

    def draw(self, texts: Sequence[_Text], likely: Ids, logits: Floats) -> list[bool]:
        """The next token of each text, of (n, K) likely ones. -> which go on."""
        chances = np.array([self.chances[text.prompt][len(text.ids), text.number] for text in texts])
        places, logprobs = draw(logits, chances, self.sampling)
        for text, token, logprob in zip(
            texts, likely[np.arange(len(texts)), places].tolist(), logprobs.tolist(), strict=True
        ):
            text.logprob += logprob
            text.ended = token in self.ends
            if not text.ended:
                text.ids.append(token)
        return [not text.ended and len(text.ids) < text.limit for text in texts]


class Gpt2:
    """A graph of `models.copywriter.gpt2_graph`, at a path or as bytes. Not for several threads at once.

    Raises ValueError for another graph.
    """

    def __init__(self, graph: Path | bytes) -> None:
        self._session = create_session(graph)
        about = self._session.get_modelmeta().custom_metadata_map.get(ABOUT)
        if about is None:
            raise ValueError(
                f"{'the graph' if isinstance(graph, bytes) else graph} is no GPT-2 of this version; train or build it again"
            )
        self.shape = Shape(**json.loads(about))
        self._cache = _Cache(self.shape)
        self._steps: dict[tuple[int, int], _Bound] = {}  # of so many rows, and K
        # The prompt that was read last, of which the next may share the beginning.
        self._reader = _Cache(self.shape)
        self._read: tuple[int, ...] = ()

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], ends: Collection[int],
        sampling: Sampling = DEFAULT, samples: int = 1,
    ) -> list[list[Drawn]]:  # fmt: skip
        """`samples` texts after each prompt, drawn with a random generator of its own, of the prompt's seed.

        An end token ends a text, and is not its first where there is a choice. Raises ValueError for a prompt that is
        empty or leaves no room.
        """
        for prompt in prompts:
            self._check(prompt, 1)
        longest = max((min(len(p) + sampling.max_tokens, self.shape.positions) for p in prompts), default=1)
        self._make_room(min(ROWS, len(prompts) * samples), longest)
        chances = [np.random.default_rng(seed).random((sampling.max_tokens, samples)) for seed in seeds]
        task = _Task(prompts, chances, ends, sampling, min(sampling.top_k, self.shape.vocabulary))
        texts = [
            [
                _Text(at, number, len(p), min(sampling.max_tokens, self.shape.positions - len(p)))
                for number in range(samples)
            ]
            for at, p in enumerate(prompts)
        ]
        order = sorted(range(len(prompts)), key=lambda at: tuple(prompts[at]))
        waiting = [text for at in order for text in texts[at]]
        rows: list[_Text] = []  # as they lie in the cache
        while waiting or rows:
            while waiting and len(rows) < self._cache.rows:
                self._start(task, waiting, rows)
            if rows:
                self._step(task, rows)
        return [[Drawn(tuple(text.ids), text.logprob, text.ended) for text in of] for of in texts]

    def score(self, prompt: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[Floats]:
        """For each candidate the log-probability of each of its tokens where it follows the prompt, (its tokens,) nats.

        Raises ValueError where the prompt or a candidate is empty or they are too long together.
        """
        if not candidates:
            return []
        for candidate in candidates:
            if not candidate:
                raise ValueError("a candidate has no tokens, so there is nothing to score")
            self._check(prompt, len(candidate) - 1)
        first = self._read_prompt(prompt, targets=np.array([[candidate[0] for candidate in candidates]], np.int64))
        found = [np.full(len(candidate), first.logprob[0, at]) for at, candidate in enumerate(candidates)]
        order = sorted((at for at, of in enumerate(candidates) if len(of) > 1), key=lambda at: len(candidates[at]))
        if order:
            self._make_room(min(SCORED, len(order)), len(prompt) + len(candidates[order[-1]]))
            _copy(self._reader, 0, self._cache, slice(min(SCORED, len(order))), len(prompt))
        for start in range(0, len(order), SCORED):
            group = order[start : start + SCORED]
            counts = np.array([len(candidates[at]) - 1 for at in group])
            size = max(TOGETHER, int(counts.max()))
            asked = np.flatnonzero(np.arange(size) < counts[:, None])  # (R,), the padding left out
            targets = np.concatenate([candidates[at][1:] for at in group])[:, None]  # (R, 1)
            bound = _Bound(self._session, self._cache, len(group), size, asked, targets=targets)
            for row, at in enumerate(group):
                bound.ids[row, : counts[row]] = candidates[at][:-1]
            bound.count[:] = counts
            bound.run(len(prompt))
            for at, logprobs in zip(group, np.split(bound.logprob[:, 0], np.cumsum(counts)[:-1]), strict=True):
                found[at][1:] = logprobs
        return found

    def _check(self, prompt: Sequence[int], more: int) -> None:
        if not prompt:
            raise ValueError("a prompt has no tokens; give it one at least, such as the end token")
        if len(prompt) + more > self.shape.positions:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {more} more are too many, at most {self.shape.positions}"
            )

    def _make_room(self, rows: int, tokens: int) -> None:
        if self._cache.fit(rows, tokens):
            self._steps.clear()

    def _read_prompt(self, prompt: Sequence[int], k: int = 1, targets: Ids | None = None) -> _Bound:
        """Leave the prompt's keys and values in the reader. -> what follows its last token."""
        if self._reader.fit(1, len(prompt)):
            self._read = ()
        keep = min(_common(self._read, prompt), max(0, len(prompt) - TOGETHER))
        count = len(prompt) - keep
        self._read = ()  # until it is there
        bound = _Bound(self._session, self._reader, 1, max(count, TOGETHER), np.array([count - 1]), k, targets)
        bound.ids[0, :count] = prompt[keep:]
        bound.count[0] = count
        bound.run(keep)
        self._read = tuple(prompt)
        return bound

    def _start(self, task: _Task, waiting: list[_Text], rows: list[_Text]) -> None:
        """Move texts of the prompt that waits longest to the rows that are free, each with its first token."""
        at, free = waiting[0].prompt, self._cache.rows - len(rows)
        some = [text for text in waiting[:free] if text.prompt == at]
        del waiting[: len(some)]
        prompt = task.prompts[at]
        bound = self._read_prompt(prompt, task.k)
        likely, logits = bound.top_ids[0], bound.top_logits[0]
        empty = np.isin(likely, list(task.ends))
        if not empty.all():
            logits = np.where(empty, np.float32(-np.inf), logits)
        going = task.draw(some, np.tile(likely, (len(some), 1)), np.tile(logits, (len(some), 1)))
        go_on = [text for text, goes in zip(some, going, strict=True) if goes]
        _copy(self._reader, 0, self._cache, slice(len(rows), len(rows) + len(go_on)), len(prompt))
        rows += go_on

    def _step(self, task: _Task, rows: list[_Text]) -> None:
        """One more token for each; those that end leave their rows to the last ones."""
        n = len(rows)
        if (n, task.k) not in self._steps:
            self._steps[n, task.k] = _Bound(self._session, self._cache, n, 1, np.arange(n), task.k)
        bound = self._steps[n, task.k]
        bound.ids[:, 0] = [text.ids[-1] for text in rows]
        bound.run(np.array([text.length for text in rows], np.int32))
        going = task.draw(rows, bound.top_ids, bound.top_logits)
        for row in reversed(range(n)):
            rows[row].length += 1
            if not going[row]:
                last = rows.pop()
                if row < len(rows):
                    _copy(self._cache, len(rows), self._cache, slice(row, row + 1), last.length)
                    rows[row] = last


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def draw(logits: Floats, chances: npt.NDArray[np.float64], sampling: Sampling) -> tuple[Ids, npt.NDArray[np.float64]]:
    """One of K tokens for each of n rows, by chances (n,) in [0, 1).

    logits (n, K), the likeliest first; -inf is never drawn. -> places in them (n,), log-probabilities (n,) under the
    distribution that it was drawn from, nats.
    """
    scores = logits.astype(np.float64) / sampling.temperature
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    reached = np.cumsum(p, axis=1)
    # The likeliest tokens up to a total of top_p; the one that crosses it still counts.
    p[reached - p >= sampling.top_p * reached[:, -1:]] = 0.0
    reached = np.cumsum(p, axis=1)
    total = reached[:, -1]
    places = (reached <= (chances * total)[:, None]).sum(axis=1)
    return places, np.log(p[np.arange(len(p)), places] / total)
