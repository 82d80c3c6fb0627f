"""GPT-2 that writes headlines, in ONNX Runtime: sampled by temperature, top-k and top-p, and guarded.

Several headlines are drawn for each segment, the likeliest that passes the guard is kept, none where none does. All
samples of a segment share its prompt, and segments are generated one by one: a headline does not depend on who else
asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from tokenizers import Tokenizer

from models import manifest
from models.headline import END, Facts, Lexicon, brief, fill, guard
from stream.ids import key64

GRAPH, TOKENIZER = "gpt2.onnx", "tokenizer.json"


class Copy(NamedTuple):
    text: str
    logprob: float  # of all its tokens with the end, nats


class Copywriter:
    """A GPT-2 read from a folder. Raises ManifestError where a file is missing or changed."""

    def __init__(
        self, folder: Path, *, temperature: float = 0.9, top_k: int = 50, top_p: float = 0.95, max_tokens: int = 50,
        samples: int = 4,
    ) -> None:  # fmt: skip
        self.manifest = manifest.load(folder, "copywriter")
        self._temperature, self._top_k, self._top_p = temperature, top_k, top_p
        self._max_tokens, self._samples = max_tokens, samples
        params: dict[str, Any] = self.manifest.params
        self._shape: tuple[int, int, int] = (
            2 * params["n_layer"],
            params["n_head"],
            params["n_embd"] // params["n_head"],
        )
        self._positions: int = params["n_positions"]
        self.lexicon = Lexicon(params["names"], params["nouns"])
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._end = self._tokenizer.token_to_id(END)
        ort.disable_telemetry_events()  # what happens in the shop stays in the shop
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = ort.InferenceSession(
            str(folder / GRAPH), sess_options=options, providers=["CPUExecutionProvider"]
        )

    @property
    def version(self) -> str:
        """The artefact's content address, `sha256:...`."""
        return self.manifest.version

    def write(self, batch: Sequence[Facts], seed: int) -> list[Copy | None]:
        """A headline for each; None where no sample passed the guard.

        The same facts and seed give the same headline, whatever else is in the batch.
        """
        return [self._best(facts, seed) for facts in batch]

    def _best(self, facts: Facts, seed: int) -> Copy | None:
        if facts.locale not in self.lexicon.names:
            return None
        told = brief(facts, self.lexicon)
        rng = np.random.default_rng([seed & 0x7FFFFFFF, key64("|".join(facts[:3])) & 0x7FFFFFFF])
        drawn = self._generate(np.array(self._tokenizer.encode(told.prompt).ids, np.int64), rng)
        good = [
            headline
            for copy in drawn
            if copy is not None
            and guard((headline := copy._replace(text=fill(copy.text, told.stands_for))).text, facts, self.lexicon)
            is None
        ]
        # The whole counts, not the mean of its tokens: a slip that is made good by many likely tokens is still a slip.
        return max(good, key=lambda copy: copy.logprob, default=None)

    def _generate(self, ids: npt.NDArray[np.int64], rng: np.random.Generator) -> list[Copy | None]:
        """Samples that follow the prompt (T,); None where one did not end in time."""
        n = self._samples
        planes, heads, width = self._shape
        past = np.zeros((planes, n, heads, 0, width), np.float32)
        step = np.repeat(ids[None, :], n, 0)  # (n, T) int64
        texts: list[list[int]] = [[] for _ in range(n)]
        logprob = np.zeros(n)
        open_ = np.ones(n, np.bool_)
        for _ in range(min(self._max_tokens, self._positions - len(ids))):
            logits, past = self._session.run(None, {"ids": step, "past": past})
            tokens, logs = self._draw(logits, rng)
            for i in np.flatnonzero(open_):
                logprob[i] += logs[i]
                if tokens[i] == self._end:
                    open_[i] = False
                else:
                    texts[i].append(int(tokens[i]))
            if not open_.any():
                break
            step = tokens[:, None]
        return [
            None if open_[i] or not texts[i] else Copy(self._tokenizer.decode(texts[i]).strip(), float(logprob[i]))
            for i in range(n)
        ]

    def _draw(self, logits: npt.NDArray[np.float32], rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], Any]:
        """One token of each row of (n, V) logits -> ids (n,), log-probabilities (n,) under the sampling distribution."""
        rows = np.arange(len(logits))[:, None]
        top = np.argpartition(logits, -self._top_k, axis=1)[:, -self._top_k :]  # (n, k)
        top = top[rows, np.lexsort((top, -logits[rows, top]))]  # the likeliest first, of equals the lowest id
        scores = logits[rows, top].astype(np.float64) / self._temperature
        p = np.exp(scores - scores[:, :1])
        p /= p.sum(axis=1, keepdims=True)
        # The likeliest tokens up to a total of top_p; the one that crosses it still counts.
        p[np.cumsum(p, axis=1) - p >= self._top_p] = 0.0
        p /= p.sum(axis=1, keepdims=True)
        at = (np.cumsum(p, axis=1) < rng.random((len(p), 1))).sum(axis=1).clip(max=p.shape[1] - 1)
        chosen = rows[:, 0], at
        return top[chosen], np.log(np.maximum(p[chosen], 1e-12))
