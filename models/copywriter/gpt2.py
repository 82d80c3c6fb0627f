"""GPT-2 in ONNX Runtime: sample texts after prompts, and score given texts.

It runs any graph of `models.copywriter.gpt2_graph`. Keys and values of a sequence stay in place while it grows.
Prompts are read one by one in lexicographic order, so that each one only reads the tokens after its common prefix
with the previous one. All samples of all prompts then advance in one batch; when a sample ends, the next waiting one
takes its row. The result of a sequence does not depend on the others: a text is the same to the bit alone and in any
batch.
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
from stream.types import F32, F64, I32, I64

SHAPE_KEY = "shopwindow.gpt2"  # metadata key of a graph that holds its shape as JSON
# Sequences sampled in one batch. Throughput with 8 is nine tenths of that with 32; each prompt has several samples.
BATCH_ROWS = 32
# Candidates scored in one batch. Their logits are the largest tensor: 35 MB for 11 tokens each of GPT-2.
SCORE_ROWS = 16
# Minimum number of tokens read at once. The product of a single row may be summed in another order than that of several
# rows; the result would then depend on how many tokens were read before.
MIN_READ_TOKENS = 2
CACHE_PAGE_TOKENS = 32  # a cache grows by so many positions


class Sampling(NamedTuple):
    """How to draw a token.

    Keep the `top_k` likeliest, and of these the likeliest up to a total probability of `top_p`.
    """

    temperature: float = 0.9  # above 0
    top_k: int = 50
    top_p: float = 0.95
    max_tokens: int = 50


DEFAULT_SAMPLING = Sampling()


class Sample(NamedTuple):
    ids: tuple[int, ...]  # tokens after the prompt, without the end token
    logprob: float  # of all its tokens and the end token under the sampling distribution, in nats
    ended: bool  # False if there is no end token within the allowed length


class Shape(NamedTuple):
    layers: int
    heads: int
    width: int
    positions: int
    vocabulary: int


class _Cache:
    """Keys and values of several sequences: two arrays for each layer."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._memory = [np.empty(0, np.float32) for _ in range(2 * shape.layers)]
        self.rows = self.capacity = 0
        self.planes: list[F32] = []  # (rows, H, capacity, D) float32

    def fit(self, rows: int, tokens: int) -> bool:
        """Make room for `rows` sequences of `tokens` tokens. Return True if the previous content is lost."""
        if rows <= self.rows and tokens <= self.capacity <= tokens + 4 * CACHE_PAGE_TOKENS:
            return False
        self.rows, self.capacity = max(rows, self.rows), -(-tokens // CACHE_PAGE_TOKENS) * CACHE_PAGE_TOKENS
        dims = (self.rows, self._shape.heads, self.capacity, self._shape.width // self._shape.heads)
        size = int(np.prod(dims))
        if size > len(self._memory[0]):
            self._memory = [np.zeros(size, np.float32) for _ in self._memory]
        self.planes = [memory[:size].reshape(dims) for memory in self._memory]
        return True


def _copy(source: _Cache, row: int, target: _Cache, rows: slice, tokens: int) -> None:
    """Copy the first `tokens` of one sequence to the rows of another cache."""
    for plane, copy in zip(source.planes, target.planes, strict=True):
        copy[rows, :, :tokens] = plane[row, :, :tokens]


class _Bound:
    """The graph's inputs and outputs bound to fixed arrays, for the first B sequences of a cache and S tokens of each.

    asked: the R positions to return, as b S + s. With targets (R, C) a run returns their log-probabilities; without,
    the k likeliest tokens of each position.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        cache: _Cache,
        b: int,
        s: int,
        asked: I64,
        k: int = 1,
        targets: I64 | None = None,
    ) -> None:
        self.ids, self.positions = np.zeros((b, s), np.int64), np.zeros((b, s), np.int64)
        self.length, self.count = np.zeros(b, np.int32), np.ones(b, np.int32)
        self._session, self._io = session, session.io_binding()
        self._kept: list[Any] = []  # bound arrays must outlive their binding
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

    def run(self, past: I32 | int) -> None:
        """Run the graph over `ids`, of which each sequence has `count`, after `past` tokens of each sequence."""
        self.length[:] = past + self.count - 1
        starts = np.broadcast_to(past, len(self.ids))[:, None]
        # Padding must not exceed the table of positions.
        np.minimum(starts + np.arange(self.ids.shape[1]), self.length[:, None], out=self.positions)
        self._session.run_with_iobinding(self._io)


@dataclass
class _Text:
    """One sample in progress."""

    prompt: int  # index of its prompt
    number: int  # index among the samples of its prompt
    length: int  # tokens in the cache
    limit: int  # maximum number of tokens after the prompt
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    ended: bool = False


class _Task(NamedTuple):
    prompts: Sequence[Sequence[int]]
    uniforms: Sequence[F64]  # random numbers in [0, 1) of each prompt, (max_tokens, samples)
    ends: Collection[int]  # end tokens
    sampling: Sampling
    k: int

    def draw(self, texts: Sequence[_Text], likely: I64, logits: F32) -> list[bool]:
        """Append the next token to each text, drawn from (n, K) likely ones. Return True for each text that goes on."""
        uniforms = np.array([self.uniforms[text.prompt][len(text.ids), text.number] for text in texts])
        places, logprobs = draw(logits, uniforms, self.sampling)
        for text, token, logprob in zip(
            texts, likely[np.arange(len(texts)), places].tolist(), logprobs.tolist(), strict=True
        ):
            text.logprob += logprob
            text.ended = token in self.ends
            if not text.ended:
                text.ids.append(token)
        return [not text.ended and len(text.ids) < text.limit for text in texts]


class Gpt2:
    """A graph of `models.copywriter.gpt2_graph`, at a path or as bytes. Not thread-safe.

    Raises ValueError for any other graph.
    """

    def __init__(self, graph: Path | bytes) -> None:
        self._session = create_session(graph)
        shape = self._session.get_modelmeta().custom_metadata_map.get(SHAPE_KEY)
        if shape is None:
            raise ValueError(
                f"{'the graph' if isinstance(graph, bytes) else graph} is not a GPT-2 of this version; train or build "
                f"it again"
            )
        self.shape = Shape(**json.loads(shape))
        self._cache = _Cache(self.shape)
        self._steps: dict[tuple[int, int], _Bound] = {}  # by (rows, K)
        # The last prompt that was read; the next one may share its prefix.
        self._reader = _Cache(self.shape)
        self._read: tuple[int, ...] = ()

    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], ends: Collection[int],
        sampling: Sampling = DEFAULT_SAMPLING, samples: int = 1,
    ) -> list[list[Sample]]:  # fmt: skip
        """Sample `samples` texts after each prompt; each prompt has its own random generator with its own seed.

        An end token ends a text; it is only drawn first if every likely token is an end token. Raises ValueError for a
        prompt that is empty or leaves no room.
        """
        for prompt in prompts:
            self._check(prompt, 1)
        longest = max((min(len(p) + sampling.max_tokens, self.shape.positions) for p in prompts), default=1)
        self._make_room(min(BATCH_ROWS, len(prompts) * samples), longest)
        uniforms = [np.random.default_rng(seed).random((sampling.max_tokens, samples)) for seed in seeds]
        task = _Task(prompts, uniforms, ends, sampling, min(sampling.top_k, self.shape.vocabulary))
        texts = [
            [
                _Text(at, number, len(p), min(sampling.max_tokens, self.shape.positions - len(p)))
                for number in range(samples)
            ]
            for at, p in enumerate(prompts)
        ]
        order = sorted(range(len(prompts)), key=lambda at: tuple(prompts[at]))
        waiting = [text for at in order for text in texts[at]]
        rows: list[_Text] = []  # the text in each row of the cache
        while waiting or rows:
            while waiting and len(rows) < self._cache.rows:
                self._start(task, waiting, rows)
            if rows:
                self._step(task, rows)
        return [[Sample(tuple(text.ids), text.logprob, text.ended) for text in of] for of in texts]

    def score(self, prompt: Sequence[int], candidates: Sequence[Sequence[int]]) -> list[F32]:
        """Return for each candidate the log-probabilities of its tokens after the prompt, (tokens,) in nats.

        Raises ValueError if the prompt or a candidate is empty, or if they are too long together.
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
            self._make_room(min(SCORE_ROWS, len(order)), len(prompt) + len(candidates[order[-1]]))
            _copy(self._reader, 0, self._cache, slice(min(SCORE_ROWS, len(order))), len(prompt))
        for start in range(0, len(order), SCORE_ROWS):
            group = order[start : start + SCORE_ROWS]
            counts = np.array([len(candidates[at]) - 1 for at in group])
            size = max(MIN_READ_TOKENS, int(counts.max()))
            asked = np.flatnonzero(np.arange(size) < counts[:, None])  # (R,), without padding
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
            raise ValueError("a prompt has no tokens; give it at least one, such as the end token")
        if len(prompt) + more > self.shape.positions:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {more} more are too many, at most {self.shape.positions}"
            )

    def _make_room(self, rows: int, tokens: int) -> None:
        if self._cache.fit(rows, tokens):
            self._steps.clear()

    def _read_prompt(self, prompt: Sequence[int], k: int = 1, targets: I64 | None = None) -> _Bound:
        """Read the prompt into the reader's cache, and return the outputs after its last token."""
        if self._reader.fit(1, len(prompt)):
            self._read = ()
        keep = min(_common_prefix(self._read, prompt), max(0, len(prompt) - MIN_READ_TOKENS))
        count = len(prompt) - keep
        self._read = ()  # until the run succeeds
        bound = _Bound(self._session, self._reader, 1, max(count, MIN_READ_TOKENS), np.array([count - 1]), k, targets)
        bound.ids[0, :count] = prompt[keep:]
        bound.count[0] = count
        bound.run(keep)
        self._read = tuple(prompt)
        return bound

    def _start(self, task: _Task, waiting: list[_Text], rows: list[_Text]) -> None:
        """Move the next prompt's waiting texts to the free rows, each with its first token."""
        at, free = waiting[0].prompt, self._cache.rows - len(rows)
        started = [text for text in waiting[:free] if text.prompt == at]
        del waiting[: len(started)]
        prompt = task.prompts[at]
        bound = self._read_prompt(prompt, task.k)
        likely, logits = bound.top_ids[0], bound.top_logits[0]
        is_end = np.isin(likely, list(task.ends))
        if not is_end.all():
            logits = np.where(is_end, np.float32(-np.inf), logits)
        goes_on = task.draw(started, np.tile(likely, (len(started), 1)), np.tile(logits, (len(started), 1)))
        unfinished = [text for text, on in zip(started, goes_on, strict=True) if on]
        _copy(self._reader, 0, self._cache, slice(len(rows), len(rows) + len(unfinished)), len(prompt))
        rows += unfinished

    def _step(self, task: _Task, rows: list[_Text]) -> None:
        """Append one token to each text. A text that ends gives its row to the last one."""
        n = len(rows)
        if (n, task.k) not in self._steps:
            self._steps[n, task.k] = _Bound(self._session, self._cache, n, 1, np.arange(n), task.k)
        bound = self._steps[n, task.k]
        bound.ids[:, 0] = [text.ids[-1] for text in rows]
        bound.run(np.array([text.length for text in rows], np.int32))
        goes_on = task.draw(rows, bound.top_ids, bound.top_logits)
        for row in reversed(range(n)):
            rows[row].length += 1
            if not goes_on[row]:
                last = rows.pop()
                if row < len(rows):
                    _copy(self._cache, len(rows), self._cache, slice(row, row + 1), last.length)
                    rows[row] = last


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the common prefix of two token sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def draw(logits: F32, uniforms: F64, sampling: Sampling) -> tuple[I64, F64]:
    """Draw one of K tokens for each of n rows by inverting the cumulative distribution at uniforms (n,) in [0, 1).

    logits (n, K), the likeliest first; -inf is never drawn. Returns the columns (n,), and their log-probabilities
    (n,) under the truncated distribution, in nats.
    """
    scores = logits.astype(np.float64) / sampling.temperature
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    reached = np.cumsum(p, axis=1)
    # Keep the likeliest tokens up to a total of top_p, including the one that crosses it.
    p[reached - p >= sampling.top_p * reached[:, -1:]] = 0.0
    reached = np.cumsum(p, axis=1)
    total = reached[:, -1]
    places = (reached <= (uniforms * total)[:, None]).sum(axis=1)
    return places, np.log(p[np.arange(len(p)), places] / total)
